//! Target `map_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::map_frames::map_frames(data));
