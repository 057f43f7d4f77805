//! One measurement under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;
use warren_wire::stun::{self, TransactionId};

use super::Probe;
use super::plan::{Families, Family, Set, Try};
use super::report::{Report, Sightings};

/// How long STUN servers are asked.
const STUN_PHASE: Duration = Duration::from_secs(3);
/// Time without an answer after which a captive portal is looked for, and how long its answer is waited for.
///
/// Source: Tailscale `net/netcheck`, `captivePortalDelay`; `net/captivedetection`, `Timeout`.
const PORTAL_DELAY: Duration = Duration::from_millis(200);
const PORTAL_PHASE: Duration = Duration::from_secs(3);
/// How long the whole measurement may last.
const WHOLE: Duration = Duration::from_secs(5);
/// Regions whose answers are enough.
const ENOUGH: usize = 3;
/// Least time for the other family, or another server, of a map with fewer regions than that: every try of a full
/// measurement is sent.
const GRACE: Duration = Duration::from_millis(300);

/// A measurement under way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) began: Instant,
    pub(super) is_full: bool,
    families: Families,
    sets: Vec<State>,
    /// Tries that are not sent yet: when, which set, which try.
    planned: BTreeSet<(Instant, usize, usize)>,
    sent: BTreeMap<TransactionId, Sent>,
    /// When enough is known.
    stop_at: Option<Instant>,
    phase: Phase,
    portal: Portal,
    report: Report,
    sightings: Sightings,
}

#[derive(Debug)]
struct State {
    set: Set,
    /// It was answered, or its answer would teach nothing.
    is_done: bool,
}

#[derive(Debug)]
struct Sent {
    set: usize,
    server: Arc<str>,
    at: Instant,
}

/// How far the search for a captive portal is.
#[derive(Debug, PartialEq)]
enum Portal {
    /// It begins if no STUN server answers soon.
    Planned,
    /// So many relays have not answered yet.
    Waiting(usize),
    /// It is over, or not wanted.
    Done,
}

#[derive(Debug, PartialEq)]
enum Phase {
    Stun,
    /// No STUN server answers: these regions are measured over HTTPS.
    Https(BTreeSet<RegionId>),
}

impl Run {
    pub(super) fn new(sets: Vec<Set>, is_full: bool, families: Families, now: Instant) -> Self {
        let tries = |(at, set): (usize, &Set)| {
            set.tries.iter().enumerate().map(|(number, a_try)| (now + a_try.after, at, number)).collect::<Vec<_>>()
        };
        Self {
            began: now,
            is_full,
            families,
            planned: sets.iter().enumerate().flat_map(tries).collect(),
            sets: sets.into_iter().map(|set| State { set, is_done: false }).collect(),
            sent: BTreeMap::new(),
            stop_at: None,
            phase: Phase::Stun,
            portal: if is_full && families.v4 { Portal::Planned } else { Portal::Done },
            report: Report { has_v6: families.v6, ..Report::default() },
            sightings: Sightings::default(),
        }
    }

    /// Returns the probes that are due.
    pub(super) fn due_probes(&mut self, now: Instant, mut random: impl FnMut() -> TransactionId) -> Vec<Probe> {
        let mut probes = Vec::new();
        while let Some(&(at, set, number)) = self.planned.first() {
            if at > now || self.phase != Phase::Stun {
                break;
            }
            self.planned.pop_first();
            if !self.teaches(set) {
                self.finish_set(set);
                continue;
            }
            let Some(Try { server, address, .. }) = self.sets.get(set).and_then(|state| state.set.tries.get(number))
            else {
                continue;
            };
            let id = random();
            self.sent.insert(id, Sent { set, server: Arc::clone(server), at: now });
            probes.push(Probe { server: address.clone(), bytes: stun::request(&id).to_vec() });
        }
        probes
    }

    /// Takes over an answer if it is to one of our probes.
    pub(super) fn handle_answer(&mut self, datagram: &[u8], now: Instant) {
        let Ok((id, address)) = stun::parse_response(datagram) else { return };
        let Some(sent) = self.sent.remove(&id) else { return };
        let Some(Set { region, family, .. }) = self.sets.get(sent.set).map(|state| &state.set) else { return };
        let (region, family) = (*region, *family);
        self.report.udp = true;
        let latency = now.saturating_duration_since(sent.at);
        let least = self.report.latencies.entry(region).or_default().of(family);
        *least = Some(least.map_or(latency, |least| least.min(latency)));
        self.sightings.add(sent.server, address, family);
        self.finish_set(sent.set);
        self.arm_stop(now);
    }

    /// Takes over how long an HTTPS request took.
    pub(super) fn handle_relay_latency(&mut self, region: RegionId, latency: Duration) {
        if let Phase::Https(waiting) = &mut self.phase
            && waiting.remove(&region)
        {
            self.report.latencies.entry(region).or_default().relay = Some(latency.min(WHOLE));
        }
    }

    /// Tells whether no STUN server has answered for so long that a captive portal may be in the way.
    pub(super) fn wants_portal_check(&self, now: Instant) -> bool {
        self.portal == Portal::Planned && !self.report.udp && now >= self.began + PORTAL_DELAY
    }

    pub(super) fn start_portal_check(&mut self, relays: usize) {
        self.portal = if relays > 0 { Portal::Waiting(relays) } else { Portal::Done };
    }

    /// Takes over whether a portal answered for a relay. One is enough.
    pub(super) fn handle_portal_answer(&mut self, is_portal: bool) {
        let Portal::Waiting(others) = &mut self.portal else { return };
        *others = others.saturating_sub(1);
        if is_portal || *others == 0 {
            self.report.captive_portal = Some(is_portal);
            self.portal = Portal::Done;
        }
    }

    /// Tells whether nobody answers and it is time to measure over HTTPS.
    pub(super) fn wants_https(&self, now: Instant) -> bool {
        let has_network = self.families.v4 || self.families.v6;
        self.phase == Phase::Stun && !self.report.udp && has_network && now >= self.stun_end()
    }

    pub(super) fn start_https(&mut self, regions: BTreeSet<RegionId>) {
        self.phase = Phase::Https(regions);
    }

    /// Tells whether the measurement is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.end()
    }

    /// Returns when there is something to do.
    pub(super) fn next_timeout(&self) -> Instant {
        let probe = self.planned.first().map(|(at, ..)| *at).filter(|_| self.phase == Phase::Stun);
        let portal = (self.portal == Portal::Planned && !self.report.udp).then(|| self.began + PORTAL_DELAY);
        probe.into_iter().chain(portal).fold(self.end(), Instant::min)
    }

    /// Ends the measurement; the home is for somebody else to fill in.
    pub(super) fn conclude(mut self) -> Report {
        self.sightings.conclude(&mut self.report);
        self.report
    }

    fn end(&self) -> Instant {
        match &self.phase {
            Phase::Stun => self.stun_end(),
            Phase::Https(waiting) if waiting.is_empty() => match self.portal {
                Portal::Waiting(_) => self.began + PORTAL_DELAY + PORTAL_PHASE,
                Portal::Planned | Portal::Done => self.began,
            },
            Phase::Https(_) => self.began + WHOLE,
        }
    }

    fn stun_end(&self) -> Instant {
        if self.sets.iter().all(|state| state.is_done) {
            return self.began;
        }
        let latest = self.began + STUN_PHASE;
        self.stop_at.map_or(latest, |at| at.min(latest))
    }

    /// Tells whether an answer to this set would be news.
    fn teaches(&self, set: usize) -> bool {
        let Some(State { set, is_done: false }) = self.sets.get(set) else { return false };
        !self.report.latencies.contains_key(&set.region)
            || match set.family {
                Family::V4 => self.sightings.mapping_varies().is_none(),
                Family::V6 => !self.report.answered(Family::V6),
            }
    }

    fn finish_set(&mut self, set: usize) {
        if let Some(state) = self.sets.get_mut(set) {
            state.is_done = true;
        }
    }

    /// Sets the end when enough regions have answered: a little later, for those that are about as near.
    fn arm_stop(&mut self, now: Instant) {
        let regions: BTreeSet<_> = self.sets.iter().map(|state| state.set.region).collect();
        if self.stop_at.is_some() || self.report.latencies.len() < regions.len().min(ENOUGH) {
            return;
        }
        let farthest = self.report.best_latencies().into_values().max().unwrap_or_default();
        let wait = if self.is_full { farthest * 2 } else { farthest };
        let is_small = regions.len() < ENOUGH;
        self.stop_at = Some(now + if is_small { wait.max(GRACE) } else { wait });
    }
}
