//! How this node looks from outside: STUN to the regions of the relay map.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::control::{DerpMap, NetInfo, RegionId};

/// How thorough a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Every region.
    Full,
    /// The nearest regions as of the last time, and the home.
    Incremental,
    /// Full if the last full one is more than five minutes old, or nothing answered; else incremental.
    #[default]
    Auto,
}

/// Address families in which this machine has a usable address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// A STUN request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where to.
    pub server: RelayAddress,
    /// The whole datagram.
    pub bytes: Vec<u8>,
}

/// Address of a STUN server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayAddress {
    /// As it stands.
    Literal(SocketAddr),
    /// By name, to be looked up; a failed look-up is like a lost packet.
    Name {
        /// Host name.
        host: Arc<str>,
        /// Port.
        port: u16,
        /// Whether an IPv6 address is wanted, else an IPv4 address.
        v6: bool,
    },
}

/// What one measurement found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Whether any STUN server answered.
    pub udp: bool,
    /// Whether this machine has a usable IPv6 address.
    pub has_v6: bool,
    /// Address as IPv4 servers see it.
    pub global_v4: Option<SocketAddr>,
    /// Address as IPv6 servers see it.
    pub global_v6: Option<SocketAddr>,
    /// Global addresses that peers should try, IPv4 first.
    pub advertised: Vec<SocketAddr>,
    /// Whether the address differs by destination (a hard NAT); needs answers of two servers.
    pub mapping_varies: Option<bool>,
    /// Latencies of the regions that answered.
    pub latencies: BTreeMap<RegionId, Latencies>,
    /// Home relay that this node should have; the shell adopts a change only while the server listens, unless it has
    /// no home.
    pub home: Option<RegionId>,
}

/// Least times there and back of one region, by way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// Over UDP and IPv4.
    pub v4: Option<Duration>,
    /// Over UDP and IPv6.
    pub v6: Option<Duration>,
    /// Over HTTPS, measured only when there is no UDP.
    pub relay: Option<Duration>,
}

impl Report {
    /// Returns what the server is told.
    #[must_use]
    pub fn net_info(&self) -> NetInfo {
        NetInfo::default()
    }
}

/// Measures the network, again and again: remembers five minutes of reports and keeps the home relay steady. After each
/// call drain [`Self::poll_transmit`], [`Self::poll_relay_request`] and [`Self::poll_report`] and look at
/// [`Self::poll_timeout`].
#[derive(Default)]
pub struct Netcheck {}

impl Netcheck {
    /// Makes one without a map. `seed` must be fresh randomness.
    #[must_use]
    pub fn new(_seed: [u8; 32]) -> Self {
        Self {}
    }

    /// Takes over a relay map; the next measurement is a full one if it differs from the last.
    pub fn set_map(&mut self, _map: &DerpMap) {}

    /// Starts a measurement, which ends with a report within 5 s; does nothing while one runs.
    pub fn start(&mut self, _kind: Kind, _families: Families, _now: Instant) {}

    /// Tells whether a measurement runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        false
    }

    /// Handles a STUN answer.
    pub fn handle_stun(&mut self, _from: SocketAddr, _datagram: &[u8], _now: Instant) {}

    /// Tells that a frame came from a relay of the region, which speaks for keeping it as home. Cheap; once in 5 s
    /// per region is enough.
    pub fn handle_relay_frame(&mut self, _region: RegionId, _now: Instant) {}

    /// Takes over how long an HTTPS request to a region took; see [`Self::poll_relay_request`].
    pub fn handle_relay_latency(&mut self, _region: RegionId, _latency: Duration, _now: Instant) {}

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// Returns when to call [`Self::handle_timeout`] next; never while no measurement runs.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Returns the next request to send.
    pub fn poll_transmit(&mut self) -> Option<Probe> {
        None
    }

    /// Returns the next region whose latency should be measured over HTTPS because no STUN server answers; the result,
    /// if any within 2 s, goes to [`Self::handle_relay_latency`].
    pub fn poll_relay_request(&mut self) -> Option<RegionId> {
        None
    }

    /// Returns the report of a measurement that has ended, once.
    pub fn poll_report(&mut self) -> Option<Arc<Report>> {
        None
    }

    /// Returns the last report.
    #[must_use]
    pub fn last_report(&self) -> Option<&Arc<Report>> {
        None
    }
}

impl fmt::Debug for Netcheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netcheck").finish_non_exhaustive()
    }
}
