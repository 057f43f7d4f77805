//! DNS messages, and the answers of the tailnet's names.
//!
//! [`Query`] reads what a program asks, [`Reply`] what an upstream resolver says; both read hostile bytes. [`Zone`] knows the
//! names of the tailnet and which upstreams are asked for others. [`Question`] asks for the program itself. [`Resolver`] puts them together: it answers, forwards,
//! remembers, and tries again. It touches no socket and reads no clock.
#![forbid(unsafe_code)]

mod ask;
mod cache;
mod derive;
mod name;
mod query;
mod reply;
mod resolver;
mod write;
mod zone;

pub use ask::Question;
pub use derive::{Member, reverse_zones, upstream};
pub use name::{MAX_NAME_BYTES, Name, NameError};
pub use query::{Class, Kind, Query, QueryError};
pub use reply::{Reply, ReplyError};
pub use resolver::{AttemptId, ClientId, Counters, MAX_PENDING, Output, Resolver, Transport};
pub use zone::{Config, Host, SERVICE_V4, SERVICE_V6, Verdict, Zone};
