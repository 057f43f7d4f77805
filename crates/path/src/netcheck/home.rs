//! The choice of a home relay, made so that it stays where it is unless there is a reason to move.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;

/// How far back reports count.
const HISTORY: Duration = Duration::from_secs(305);
/// Most reports that are kept.
const MAX_HISTORY: usize = 64;
/// Least gain for which the home moves.
///
/// Source: Tailscale `net/netcheck`, `preferredDERPAbsoluteDiff`.
const LEAST_GAIN: Duration = Duration::from_millis(10);
/// How recent a frame must be to show that a relay can be reached; longer than a measurement takes.
///
/// Source: Tailscale `net/netcheck`, `PreferredDERPFrameTime`.
const HEARD_RECENTLY: Duration = Duration::from_secs(8);

/// Remembers reports and frames, and the home.
#[derive(Debug)]
pub(super) struct HomeChooser {
    /// Latencies of past reports, weighted with the regions' scores.
    history: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
    /// When each region was last heard.
    heard: BTreeMap<RegionId, Instant>,
    home: Option<RegionId>,
    /// Nobody would learn of another home.
    pub(super) is_held: bool,
    /// Chooses among the regions while nothing is known.
    lot: u64,
}

impl HomeChooser {
    pub(super) fn new(lot: u64) -> Self {
        Self { history: VecDeque::new(), heard: BTreeMap::new(), home: None, is_held: false, lot }
    }

    pub(super) fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Forgets regions that are no more.
    pub(super) fn retain(&mut self, exists: impl Fn(RegionId) -> bool) {
        self.home = self.home.filter(|home| exists(*home));
        self.heard.retain(|region, _| exists(*region));
        for (_, latencies) in &mut self.history {
            latencies.retain(|region, _| exists(*region));
        }
    }

    pub(super) fn hear(&mut self, region: RegionId, now: Instant) {
        self.heard.insert(region, now);
    }

    /// Takes over the latencies of a report that ends now, and chooses. Without any latency the home stays; if there is
    /// none yet, it is drawn by lot from `all`.
    pub(super) fn choose(
        &mut self,
        latencies: BTreeMap<RegionId, Duration>,
        scores: &BTreeMap<RegionId, f64>,
        all: &[RegionId],
        now: Instant,
    ) -> Option<RegionId> {
        let weighted: BTreeMap<_, _> =
            latencies.into_iter().map(|(region, latency)| (region, weigh(latency, scores.get(&region)))).collect();
        self.history.push_back((now, weighted.clone()));
        while self.history.len() > MAX_HISTORY
            || self.history.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > HISTORY)
        {
            self.history.pop_front();
        }
        let nearest = weighted.keys().filter_map(|region| Some((self.best(*region)?, *region))).min();
        self.home = match (nearest, self.home) {
            (_, Some(home)) if self.is_held => Some(home),
            (Some((best, region)), Some(home)) if region != home => {
                let latency = weighted.get(&home).copied();
                let is_accessible = latency.is_some() || self.is_heard(home, now);
                let is_worth_it = !is_accessible || is_much_better(best, latency.unwrap_or_default());
                Some(if is_worth_it { region } else { home })
            }
            (Some((_, region)), _) => Some(region),
            (None, Some(home)) => Some(home),
            (None, None) => {
                let count = u64::try_from(all.len()).unwrap_or(u64::MAX);
                let at = self.lot.checked_rem(count).and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| all.get(at)).copied()
            }
        };
        self.home
    }

    /// Returns the least latency of a region in the history.
    fn best(&self, region: RegionId) -> Option<Duration> {
        self.history.iter().filter_map(|(_, latencies)| latencies.get(&region).copied()).min()
    }

    fn is_heard(&self, region: RegionId, now: Instant) -> bool {
        self.heard.get(&region).is_some_and(|at| now.saturating_duration_since(*at) <= HEARD_RECENTLY)
    }
}

/// Tells whether a region is worth leaving the home for: 10 ms and a third of its latency nearer.
fn is_much_better(best: Duration, home: Duration) -> bool {
    home.saturating_sub(best) >= LEAST_GAIN && best * 3 <= home * 2
}

/// Applies a region's score; the result is at most an hour, for a factor may be anything positive.
fn weigh(latency: Duration, score: Option<&f64>) -> Duration {
    let factor = score.copied().unwrap_or(1.0);
    let seconds = (latency.as_secs_f64() * factor).min(3600.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(latency)
}

#[cfg(test)]
mod tests;
