//! Paths as people want to see them.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::lifetime::UdpLifetime;
use super::output::Path;
use super::punch::{OwnNat, Punched};

/// A peer's paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// Where the peer's packets go now.
    pub path: Path,
    /// Time there and back on the direct path.
    pub latency: Option<Duration>,
    /// The largest IP packet that is proved to get through on the direct path, if that was tried.
    pub mtu: Option<u16>,
    /// For how long the direct path stays open that nobody uses, if that was measured.
    pub lifetime: Option<UdpLifetime>,
    /// Time there and back over the peer relay.
    pub peer_relay_latency: Option<Duration>,
    /// Whether packets were sent to the peer in the last 45 s.
    pub in_use: bool,
    /// How `path` came about.
    pub reason: Reason,
    /// Addresses at which the peer may be.
    pub candidates: Vec<CandidateStatus>,
    /// What came of the last attempt to get through NATs that give each peer its own port; `None` if there was none.
    pub punched: Option<Punched>,
    /// The last decisions while the peer is in use, oldest first, at most eight.
    pub history: Vec<Decision>,
}

/// A change of a peer's direct path, or of that over a peer relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Instant,
    /// The address that was adopted or doubted; `None` if the direct path was given up.
    pub address: Option<SocketAddr>,
    /// Why.
    pub reason: Reason,
}

/// The last decisions of a peer.
#[derive(Debug, Default)]
pub(super) struct History(Vec<Decision>);

impl History {
    const MAX: usize = 8;

    pub(super) fn note(&mut self, decision: Decision) {
        if self.0.len() >= Self::MAX {
            self.0.remove(0);
        }
        self.0.push(decision);
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Decision>()
    }

    pub(super) fn list(&self) -> Vec<Decision> {
        self.0.clone()
    }
}

impl PathStatus {
    /// Says for people why packets go over the relay, what was tried, and what would help; `None` while there is a direct
    /// path or nothing was tried yet. `own` is what is known of this node's network.
    #[must_use]
    pub fn advice(&self, own: &OwnNat) -> Option<String> {
        let has_failed = matches!(
            self.reason,
            Reason::NoAnswer | Reason::Lost | Reason::NoAddress | Reason::Unreachable | Reason::Withdrawn
        );
        if self.path.direct.is_some() || !has_failed {
            return None;
        }
        let tried = self.candidates.iter().filter(|candidate| candidate.pinged.is_some()).count();
        let tried = match tried {
            0 => String::new(),
            1 => ", one address was tried".to_owned(),
            many => format!(", {many} addresses were tried"),
        };
        let punched = self.punched.map_or(String::new(), |punched| format!("; {punched}"));
        let help = match own {
            OwnNat { udp: Some(false), .. } => "UDP is blocked in this network: let UDP out, or at least to port 41641",
            OwnNat { hard: Some(true), mapped: false, .. } => {
                "this machine's router gives each peer its own port and maps none: enable UPnP or NAT-PMP on it, or \
                 forward UDP port 41641 to this machine"
            }
            OwnNat { mapped: true, .. } => {
                "this machine's router maps a port, so it is the peer's firewall or router that blocks: let UDP in there"
            }
            OwnNat { .. } => {
                "probably the peer's router gives each peer its own port or its firewall blocks UDP: enable UPnP or \
                 NAT-PMP there, or forward UDP port 41641 to the peer"
            }
        };
        Some(format!("{}{tried}{punched}; {help}", self.reason))
    }
}

/// One address at which a peer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateStatus {
    /// The address.
    pub address: SocketAddr,
    /// Who named it.
    pub origin: Origin,
    /// When it was last pinged.
    pub pinged: Option<Instant>,
    /// Time there and back of its last answer.
    pub latency: Option<Duration>,
}

/// How an address of a peer became known; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The server lists it.
    Netmap,
    /// The peer named it over the relay.
    CallMeMaybe,
    /// Only traffic with it tells of it.
    Ping,
}

/// Why a peer's path is as it is; its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The direct path's address answers pings.
    Answered,
    /// Relayed: no packet was sent to the peer yet.
    Untried,
    /// Relayed: the peer has no disco key.
    NoDiscoKey,
    /// Relayed: no address of the peer is known.
    NoAddress,
    /// Relayed: no address of the peer answers.
    NoAnswer,
    /// Relayed: the direct path stopped answering.
    Lost,
    /// Relayed: this machine has no route to the direct path's address.
    Unreachable,
    /// Relayed: the direct path's address is no longer the peer's.
    Withdrawn,
    /// Relayed: the network of this machine changed.
    NetworkChanged,
    /// Relayed: the peer restarted.
    PeerRestarted,
    /// Over all ways at once: the direct path is silent although an answer is due.
    Doubted,
    /// Over all ways at once: the peer relay is silent although an answer is due.
    RelayDoubted,
    /// Over a peer relay: pings through it are answered.
    RelayAnswered,
    /// Relayed: the path over a peer relay stopped answering.
    RelayLost,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "the address answers",
            Self::Untried => "nothing was sent to the peer yet",
            Self::NoDiscoKey => "the peer has no disco key",
            Self::NoAddress => "no address of the peer is known",
            Self::NoAnswer => "no address of the peer answers",
            Self::Lost => "the direct path stopped answering",
            Self::Unreachable => "this machine has no route to the peer's address",
            Self::Withdrawn => "the peer no longer has the address of the direct path",
            Self::NetworkChanged => "the network of this machine changed",
            Self::PeerRestarted => "the peer restarted",
            Self::Doubted => "the direct path is silent",
            Self::RelayDoubted => "the peer relay is silent",
            Self::RelayAnswered => "the peer answers over a peer relay",
            Self::RelayLost => "the peer relay stopped answering",
        })
    }
}
