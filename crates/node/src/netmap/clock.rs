//! The server's clock, as far as it is known here.

use std::time::Duration;

use warren_wire::control::Time;

/// Differences between the clocks up to this are not worth a word.
///
/// Source: Tailscale `ipn/ipnlocal/expiry.go`.
const TOLERANCE: Duration = Duration::from_secs(60);

/// How far the server's clock may seem to go back without being taken for set back.
///
/// A message takes time to arrive, and the date in an answer's head has no fractions: of two readings the one that is
/// further ahead is nearer to the truth.
const DELAY: Duration = Duration::from_secs(2);

/// Seconds since 1970 of 1 January 2023: a server that claims an earlier time has no clock.
const EARLIEST: i64 = 1_672_531_200;

/// One reading of this machine's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Time since some fixed moment, sleep included. Nobody can set it.
    pub steady: Duration,
    /// The time of day. It may be wrong, and may jump.
    pub wall: Time,
}

/// Tells the server's time: what it said last, carried on by this machine's steady clock, so that a wrong time of day
/// here makes no difference. Until it has said anything, the time of day here is believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerClock {
    seen: Option<(Time, Duration)>,
}

impl ServerClock {
    /// Takes note of what the server's clock said at `now`.
    pub fn observe(&mut self, server: Time, now: Moment) {
        if server.unix_seconds() < EARLIEST {
            return;
        }
        let known = self.seen.map(|_| self.server_time(now));
        if known.is_none_or(|known| server > known || known.saturating_since(server) > DELAY) {
            self.seen = Some((server, now.steady));
        }
    }

    /// Tells whether the server's clock has been seen at all.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.seen.is_some()
    }

    /// Returns the server's time at `now`.
    #[must_use]
    pub fn server_time(self, now: Moment) -> Time {
        match self.seen {
            Some((server, steady)) => server.saturating_add(now.steady.saturating_sub(steady)),
            None => now.wall,
        }
    }

    /// Returns how long it is from `now` to the server's time `at`; zero if that is past.
    #[must_use]
    pub fn until(self, at: Time, now: Moment) -> Duration {
        at.saturating_since(self.server_time(now))
    }

    /// Returns by how many seconds the server is ahead of this machine's time of day (negative: behind); zero if they
    /// agree to a minute.
    #[must_use]
    pub fn seconds_ahead(self, now: Moment) -> i64 {
        let ahead = self.server_time(now).unix_seconds().saturating_sub(now.wall.unix_seconds());
        if ahead.unsigned_abs() <= TOLERANCE.as_secs() { 0 } else { ahead }
    }

    /// Returns a sentence for the user if the clocks differ.
    #[must_use]
    pub fn warning(self, now: Moment) -> Option<String> {
        let ahead = self.seconds_ahead(now);
        if ahead == 0 {
            return None;
        }
        let minutes = ahead.unsigned_abs().div_ceil(60);
        let side = if ahead > 0 { "behind" } else { "ahead of" };
        Some(format!(
            "this machine's clock is {minutes} min {side} the server's; set it right (timedatectl set-ntp true)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Time {
        Time::from_unix(seconds, 0).unwrap()
    }

    fn moment(steady: u64, wall: i64) -> Moment {
        Moment { steady: Duration::from_secs(steady), wall: at(wall) }
    }

    #[test]
    fn delay_on_the_way_is_no_skew() {
        let mut clock = ServerClock::default();
        clock.observe(at(NOW + 60), moment(5, NOW));
        assert_eq!(clock.seconds_ahead(moment(5, NOW)), 0);
        assert_eq!(clock.warning(moment(5, NOW)), None);
    }

    #[test]
    fn an_hour_off_is_told_and_corrected() {
        let mut clock = ServerClock::default();
        clock.observe(at(NOW + 3600), moment(5, NOW));
        assert_eq!(clock.server_time(moment(15, NOW + 10)), at(NOW + 3610));
        assert_eq!(clock.until(at(NOW + 3610), moment(5, NOW)).as_secs(), 10);
        assert!(clock.warning(moment(5, NOW)).unwrap().contains("60 min behind"));
        // Set right: the server's time is as before, and there is nothing to tell any more.
        assert_eq!(clock.server_time(moment(15, NOW + 3610)), at(NOW + 3610));
        assert_eq!(clock.warning(moment(15, NOW + 3610)), None);
        clock.observe(at(NOW - 3600), moment(20, NOW));
        assert!(clock.warning(moment(20, NOW)).unwrap().contains("60 min ahead of"));
    }

    #[test]
    fn a_server_without_a_clock_is_ignored() {
        let mut clock = ServerClock::default();
        clock.observe(at(0), moment(5, NOW));
        assert_eq!(clock, ServerClock::default());
        assert_eq!(clock.server_time(moment(5, NOW)), at(NOW));
    }

    proptest! {
        /// Readings that are late by up to two seconds, while the time of day jumps about: the server's time is known
        /// as well as the best of the readings shows it.
        #[test]
        fn the_quickest_reading_counts(readings in proptest::collection::vec((0_u64..600, 0_u64..2000, any::<u32>()), 1..20)) {
            let mut clock = ServerClock::default();
            let (mut steady, mut least) = (Duration::from_secs(7), u64::MAX);
            for (wait, delay, wall) in readings {
                steady += Duration::from_secs(wait);
                let said = at(NOW).saturating_add(steady).saturating_since(at(0)) - Duration::from_millis(delay);
                let now = Moment { steady, wall: at(wall.into()) };
                clock.observe(at(0).saturating_add(said), now);
                least = least.min(delay);
                prop_assert_eq!(clock.until(at(NOW).saturating_add(steady), now).as_millis(), u128::from(least));
            }
        }
    }
}
