//! Relays: DERP server and client, STUN server; and the byte stream over Noise that control's both ends share.

#![forbid(unsafe_code)]

pub mod noise_stream;
