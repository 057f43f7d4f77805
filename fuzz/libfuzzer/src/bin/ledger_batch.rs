//! Target `ledger_batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::ledger::batch(data));
