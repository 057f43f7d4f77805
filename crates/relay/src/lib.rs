//! Relays: DERP server and client, STUN server; and the byte stream over Noise that control's both ends share.

#![forbid(unsafe_code)]

mod certificate;
mod client;
pub mod http;
mod hub;
pub mod noise_stream;
mod pin;
mod server;
mod stun;

pub use certificate::{Certificate, CertificateError, SelfMade};
pub use client::{ClientError, ClientReader, ClientWriter, ConnectError, Received, connect};
pub use hub::Counters;
pub use server::{Admission, ServeError, Server, Taken};
pub use stun::serve_stun;
