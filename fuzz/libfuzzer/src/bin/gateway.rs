//! Target `gateway`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::gateway::gateway(data));
