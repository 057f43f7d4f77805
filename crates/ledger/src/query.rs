//! Asking: which records there are about whom, where and when, without reading what cannot have them.
//!
//! A [`Query`] says what is looked for; [`View::query`](crate::store::View::query) finds it, in the order in which it was
//! stored. Names of users, tags and machines are not in records: the caller knows whose keys they are.
//!
//! What a frame's summary excludes is not read: times and kinds of its records, and a filter of nodes, addresses and ports.
//! Signatures are not checked again here: that is [`verify`](crate::store::verify())'s.

mod find;
mod output;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::BitOr;
use std::time::Duration;

use ipnet::IpNet;
use warren_wire::key::NodeKey;

use crate::key::LogKey;
use crate::record::{Direction, Drops, Event, Record, Start};
use crate::time::Time;

pub use find::{Began, Found, Results};
pub use output::{COLUMNS, Keys, Line, Names, csv_head};
pub use sums::{Attempt, Denials, Denied, SUMS_MAX, Talkers, Traffic};

/// How long before the time that is asked about a conversation may have begun, for what it is about to be known.
pub const LOOKBACK: Duration = Duration::from_secs(3600);

/// The most conversations of which it is remembered what they are about, at a time.
pub const OPEN_MAX: usize = 1 << 18;

/// Is a set of kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// None.
    pub const NONE: Self = Self(0);
    /// Conversations begin.
    pub const START: Self = Self(1);
    /// They go on.
    pub const UPDATE: Self = Self(2);
    /// They end.
    pub const END: Self = Self(4);
    /// Packets were dropped.
    pub const DENIED: Self = Self(8);
    /// A node could not write something down.
    pub const MISSED: Self = Self(16);
    /// All.
    pub const ALL: Self = Self(31);

    /// Returns the kind of an event.
    #[must_use]
    pub const fn of(event: &Event) -> Self {
        match event {
            Event::Start(_) => Self::START,
            Event::Update(_) => Self::UPDATE,
            Event::End(_) => Self::END,
            Event::Drops(_) => Self::DENIED,
            Event::Missed { .. } => Self::MISSED,
        }
    }

    /// Tells whether both have a kind in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Default for Kinds {
    fn default() -> Self {
        Self::ALL
    }
}

/// Is one or several nodes, by all their keys: what they wrote, and what others wrote about them. A user is all of theirs, a
/// tag those that carry it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Party {
    /// The keys with which they sign records.
    pub logs: BTreeSet<LogKey>,
    /// Their node keys, earlier ones, too.
    pub nodes: BTreeSet<NodeKey>,
}

impl Party {
    fn has(&self, writer: &LogKey, peer: Option<&NodeKey>) -> bool {
        self.logs.contains(writer) || peer.is_some_and(|peer| self.nodes.contains(peer))
    }
}

/// Says what is looked for. Everything that is said must hold; the default is everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// From this position of the store on.
    pub position: u64,
    /// From this time on, by the clock of the node that wrote it.
    pub since: Option<Time>,
    /// Before this time.
    pub until: Option<Time>,
    /// Of these kinds.
    pub kinds: Kinds,
    /// One end is one of these; of several parties, all of them: two are the conversations between them.
    pub parties: Vec<Party>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// The port to which it was begun.
    pub port: Option<u16>,
    /// One end's address is in one of these networks.
    pub networks: Vec<IpNet>,
    /// No more than so many.
    pub limit: Option<usize>,
}

/// Is what conditions are about, of whatever record.
struct About<'a> {
    peer: Option<&'a NodeKey>,
    /// Protocol, addresses, port, if they are known.
    what: Option<(u8, [IpAddr; 2], u16)>,
}

impl<'a> About<'a> {
    const fn start(start: &'a Start) -> Self {
        let to = if matches!(start.direction, Direction::Outbound) { start.remote } else { start.local };
        Self { peer: Some(&start.peer), what: Some((start.protocol, [start.local.ip(), start.remote.ip()], to.port())) }
    }

    fn drops(drops: &'a Drops) -> Self {
        let what = drops.target.map(|target| (target.protocol, [target.source, target.destination], target.port));
        Self { peer: drops.peer.as_ref(), what }
    }
}

impl Query {
    /// Tells whether a record is looked for; `start` is how its conversation began, if that is known.
    #[must_use]
    pub fn holds(&self, writer: &LogKey, record: &Record, start: Option<&Start>) -> bool {
        self.kinds.meets(Kinds::of(&record.event))
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
            && match &record.event {
                Event::Start(start) => self.is_about(writer, &About::start(start)),
                Event::Drops(drops) => self.is_about(writer, &About::drops(drops)),
                Event::Update(_) | Event::End(_) | Event::Missed { .. } => {
                    let about = start.map_or(About { peer: None, what: None }, About::start);
                    self.is_about(writer, &about)
                }
            }
    }

    fn is_about(&self, writer: &LogKey, about: &About<'_>) -> bool {
        let is_what = |is: &dyn Fn(u8, &[IpAddr; 2], u16) -> bool| {
            about.what.as_ref().is_some_and(|(protocol, ips, port)| is(*protocol, ips, *port))
        };
        self.parties.iter().all(|party| party.has(writer, about.peer))
            && self.protocol.is_none_or(|wanted| is_what(&|protocol, _, _| protocol == wanted))
            && self.port.is_none_or(|wanted| is_what(&|_, _, port| port == wanted))
            && (self.networks.is_empty()
                || is_what(&|_, ips, _| self.networks.iter().any(|network| ips.iter().any(|ip| network.contains(ip)))))
    }
}
