//! How this node looks from outside: STUN to the regions of the relay map.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_wire::control::{DerpMap, RegionId};

use home::HomeChooser;
use plan::Regions;
use run::Run;

mod home;
mod plan;
mod portal;
mod report;
mod run;

pub use plan::{Families, RelayAddress};
pub use portal::{MAX_ANSWER, PortalProbe};
pub use report::{Latencies, Report};

/// Time after which a measurement is a full one again.
const FULL_INTERVAL: Duration = Duration::from_secs(300);
/// Most regions that are measured over HTTPS.
const MAX_HTTPS: usize = 32;

/// How thorough a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Every region.
    Full,
    /// The nearest regions as of the last time, and the home; full if nothing is known of the last time.
    Incremental,
    /// Full if the last full one is more than five minutes old, the map changed, or a captive portal was in the way; else
    /// incremental.
    #[default]
    Auto,
}

/// A STUN request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where to.
    pub server: RelayAddress,
    /// The whole datagram.
    pub bytes: Vec<u8>,
}

/// Measures the network, again and again: remembers five minutes of reports and keeps the home relay steady. After each
/// call drain [`Self::poll_transmit`], [`Self::poll_relay_request`], [`Self::poll_portal_probe`] and [`Self::poll_report`]
/// and look at [`Self::poll_timeout`].
pub struct Netcheck {
    regions: Regions,
    chooser: HomeChooser,
    run: Option<Run>,
    last: Option<Arc<Report>>,
    last_full: Option<Instant>,
    transmits: VecDeque<Probe>,
    relay_requests: VecDeque<RegionId>,
    portal_probes: VecDeque<PortalProbe>,
    finished: Option<Arc<Report>>,
    rng: StdRng,
}

impl Netcheck {
    /// Makes one without a map. `seed` must be fresh randomness.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        Self {
            regions: Regions::default(),
            chooser: HomeChooser::new(rng.random()),
            run: None,
            last: None,
            last_full: None,
            transmits: VecDeque::new(),
            relay_requests: VecDeque::new(),
            portal_probes: VecDeque::new(),
            finished: None,
            rng,
        }
    }

    /// Takes over a relay map. If it differs from the last, a measurement under way is dropped without a report, and
    /// the next one is full.
    pub fn set_map(&mut self, map: &DerpMap) {
        let regions = Regions::new(map);
        if regions == self.regions {
            return;
        }
        self.regions = regions;
        self.chooser.retain(|region| self.regions.contains(region));
        self.last_full = None;
        self.cancel();
    }

    /// Starts a measurement, which ends with a report within 5 s; does nothing while one runs.
    pub fn start(&mut self, kind: Kind, families: Families, now: Instant) {
        if self.run.is_some() {
            return;
        }
        let is_recent = |at: Instant| now.saturating_duration_since(at) <= FULL_INTERVAL;
        let wants_full = match kind {
            Kind::Full => true,
            Kind::Incremental => false,
            Kind::Auto => {
                !self.last_full.is_some_and(is_recent) || self.last.as_ref().is_some_and(|last| last.is_captive())
            }
        };
        let last = self.last.as_ref().filter(|last| !wants_full && !last.latencies.is_empty());
        let sets = match last {
            Some(last) => self.regions.plan_incremental(families, last, self.chooser.home()),
            None => self.regions.plan_full(families),
        };
        let is_full = last.is_none();
        self.run = Some(Run::new(sets, is_full, families, now));
        self.handle_timeout(now);
    }

    /// Drops a measurement under way without a report, because the network has changed.
    pub fn cancel(&mut self) {
        self.run = None;
        self.transmits.clear();
        self.relay_requests.clear();
        self.portal_probes.clear();
    }

    /// Says whether the server can be told of another home; until it can, the home stays, since peers would go on sending to
    /// the old one. Source: paths.md 9.5, no. 5.
    pub fn set_server_listens(&mut self, listens: bool) {
        self.chooser.is_held = !listens;
    }

    /// Tells whether a measurement runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.run.is_some()
    }

    /// Handles a STUN answer. Where it came from does not matter: only the server knows the probe's 96 random bits.
    pub fn handle_stun(&mut self, _from: SocketAddr, datagram: &[u8], now: Instant) {
        if let Some(run) = &mut self.run {
            run.handle_answer(datagram, now);
            self.handle_timeout(now);
        }
    }

    /// Tells that a frame came from a relay of the region, which speaks for keeping it as home. Cheap; once in 5 s
    /// per region is enough.
    pub fn handle_relay_frame(&mut self, region: RegionId, now: Instant) {
        if self.regions.contains(region) {
            self.chooser.hear(region, now);
        }
    }

    /// Takes over how long an HTTPS request to a region took; see [`Self::poll_relay_request`].
    pub fn handle_relay_latency(&mut self, region: RegionId, latency: Duration, now: Instant) {
        if let Some(run) = &mut self.run {
            run.handle_relay_latency(region, latency);
            self.handle_timeout(now);
        }
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        self.transmits.extend(run.due_probes(now, || self.rng.random()));
        if run.wants_portal_check(now) {
            let servers = self.regions.port80(self.chooser.home());
            run.start_portal_check(servers.len());
            self.portal_probes.extend(servers.into_iter().map(PortalProbe::new));
        }
        if run.wants_https(now) {
            let regions: BTreeSet<_> = self.regions.relays().take(MAX_HTTPS).collect();
            self.relay_requests.extend(&regions);
            run.start_https(regions);
        }
        if run.is_over(now) {
            self.finish(now);
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next; never while no measurement runs.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.run.as_ref().map(Run::next_timeout)
    }

    /// Returns the next request to send.
    pub fn poll_transmit(&mut self) -> Option<Probe> {
        self.transmits.pop_front()
    }

    /// Returns the next region whose latency should be measured over HTTPS because no STUN server answers; the result,
    /// if any within 2 s, goes to [`Self::handle_relay_latency`].
    pub fn poll_relay_request(&mut self) -> Option<RegionId> {
        self.relay_requests.pop_front()
    }

    /// Returns the next relay to ask whether a captive portal is in the way; what it is, after 3 s at most, goes to
    /// [`Self::handle_portal_answer`].
    pub fn poll_portal_probe(&mut self) -> Option<PortalProbe> {
        self.portal_probes.pop_front()
    }

    /// Takes over what came of a probe: whether a portal answered. An error, or no answer, is that none did.
    pub fn handle_portal_answer(&mut self, is_portal: bool, now: Instant) {
        if let Some(run) = &mut self.run {
            run.handle_portal_answer(is_portal);
            self.handle_timeout(now);
        }
    }

    /// Returns the report of a measurement that has ended, once.
    pub fn poll_report(&mut self) -> Option<Arc<Report>> {
        self.finished.take()
    }

    /// Returns the last report.
    #[must_use]
    pub fn last_report(&self) -> Option<&Arc<Report>> {
        self.last.as_ref()
    }

    fn finish(&mut self, now: Instant) {
        let Some(run) = self.run.take() else { return };
        if run.is_full {
            self.last_full = Some(run.began);
        }
        self.relay_requests.clear();
        self.portal_probes.clear();
        let mut report = run.conclude();
        let all: Vec<_> = self.regions.relays().collect();
        // A region without a relay can be measured, but not be a home.
        let mut latencies = report.best_latencies();
        latencies.retain(|region, _| all.contains(region));
        report.home = self.chooser.choose(latencies, &self.regions.scores, &all, now);
        let report = Arc::new(report);
        self.last = Some(Arc::clone(&report));
        self.finished = Some(report);
    }
}

impl fmt::Debug for Netcheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netcheck").field("running", &self.run).field("last", &self.last).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
