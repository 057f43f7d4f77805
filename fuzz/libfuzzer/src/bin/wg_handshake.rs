//! Target `wg_handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::wg::handshake(data));
