//! Target `peer_relay`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::path::peer_relay(data));
