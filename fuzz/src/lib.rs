//! What the fuzz targets do: one module per crate, one function per target.
//!
//! The same files are compiled into the `replay` test of the crate that they exercise, so that continuous integration
//! replays the corpora without libFuzzer.

#![forbid(unsafe_code)]

pub mod wire;
