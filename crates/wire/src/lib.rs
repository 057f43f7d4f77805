//! Every byte and JSON document on the wire, and the keys: encode and decode, nothing else.

#![forbid(unsafe_code)]

pub mod key;
pub mod nacl;
pub mod noise;
