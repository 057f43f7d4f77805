//! The coordination server: store, tailnets, registration, map streams, administration.
//!
//! [`Control`] is the whole of it without sockets: the server module moves bytes between connections and its methods.
//! Each tailnet has one actor that checks a change, writes it to the store and publishes an immutable snapshot; map
//! streams compare snapshots and never wait for the actor.

#![forbid(unsafe_code)]

mod account;
mod address;
pub mod admin;
pub mod admin_socket;
mod auth_key;
mod authenticate;
mod authority;
pub mod backup;
mod clock;
mod collector;
mod config;
mod control;
mod domains;
mod identity;
mod login;
mod machine_proof;
mod map;
mod model;
mod name;
mod oidc;
mod register;
pub mod server;
mod sign_in;
mod store;
mod tailnet;
#[cfg(test)]
mod testing;
mod thinking;
mod tokens;

pub use clock::Clock;
pub use collector::FlowsRefusal;
pub use config::Config;
pub use control::Control;
pub use map::{MapError, MapStream};
pub use model::{
    AuthKeyRecord, CredentialKind, CredentialRecord, DnsSettings, KeyLifetime, MachineCaRecord, MachineProof,
    MachineRecord, Nameserver, NodeRecord, NodeState, Owner, TailnetId, TailnetRecord, Unconfirmed, UserIdentity,
    UserRecord, Who,
};
pub use oidc::{OidcConfig, OidcConfigError};
pub use store::audit::{AuditEntry, AuditVerdict};
pub use store::{OpenError, Quarantined, StoreError};
