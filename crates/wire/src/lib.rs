//! Every byte and JSON document on the wire, and the keys: encode and decode, nothing else.

#![forbid(unsafe_code)]

pub mod control;
pub mod datagram;
pub mod derp;
pub mod disco;
pub mod flows;
pub mod geneve;
pub mod key;
pub mod mapframe;
pub mod nacl;
pub mod noise;
pub mod stun;
