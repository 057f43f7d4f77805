//! Relays: DERP server and client, STUN server; and what relay and control connections share: how they are dialled, and
//! the byte stream over Noise.

#![forbid(unsafe_code)]

mod ask;
mod bucket;
mod certificate;
mod client;
mod counters;
pub mod dial;
pub mod http;
mod hub;
mod mesh;
pub mod noise_stream;
mod pin;
mod queue;
mod server;
mod station;
mod stun;
pub mod websocket;

pub use ask::{AskError, AskServer};
pub use certificate::{Certificate, CertificateError, SelfMade};
pub use client::{ClientError, ClientReader, ClientWriter, ConnectError, Received, connect};
pub use counters::{Counters, DropReason};
pub use hub::Kind;
pub use server::{Admission, RateLimit, ServeError, Server, Taken};
pub use station::{Addresses, BindError, Limits, Station, TlsHandle, prepare_socket};
pub use stun::serve_stun;
pub use warren_wire::derp::MeshKey;
