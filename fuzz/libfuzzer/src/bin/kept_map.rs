//! Target `kept_map`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::node::kept_map(data));
