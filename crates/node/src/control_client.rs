//! The client of the coordination server: connection, registration, map stream, reports.
//!
//! [`Session`] runs one login; it tells the daemon what happens as [`Event`]s and is told what to report by a watch
//! channel. The network is behind [`Connector`], so tests put a server in the same process.

mod backoff;
mod certificate;
mod connect;
mod early;
#[cfg(test)]
#[allow(clippy::unused_async, clippy::wildcard_enum_match_arm, reason = "test code")]
pub(crate) mod fake;
mod network;
mod ping;
mod register;
mod server_url;
mod session;

pub use certificate::MachineCertificate;
pub use connect::{ConnectError, Connector, Stream, Target};
pub use network::Network;
pub use server_url::{Scheme, ServerUrl, UrlError};
pub use session::{AuthKey, Event, Login, Report, Session, WATCHDOG, log_out};
