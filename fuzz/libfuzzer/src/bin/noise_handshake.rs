//! Target `noise_handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::noise::handshake(data));
