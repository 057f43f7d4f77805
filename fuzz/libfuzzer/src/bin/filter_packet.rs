//! Target `filter_packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::filter::packet(data));
