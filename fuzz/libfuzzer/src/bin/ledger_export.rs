//! Target `ledger_export`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| warren_fuzz::ledger_export::export(data));
