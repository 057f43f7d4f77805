//! How far this machine's clock is off the server's.

use std::time::Duration;

use warren_wire::control::Time;

/// Differences up to this are taken for delay on the way.
///
/// Source: Tailscale `ipn/ipnlocal/expiry.go`.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Seconds since 1970 of 1 January 2023: a server that claims an earlier time has no clock.
const EARLIEST: i64 = 1_672_531_200;

/// Tracks the difference between the server's clock and this machine's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockSkew {
    /// Seconds that the server is ahead; zero within [`TOLERANCE`].
    ahead: i64,
}

impl ClockSkew {
    /// Takes note of what the server's clock said when ours said `now`.
    pub fn observe(&mut self, server: Time, now: Time) {
        if server.unix_seconds() < EARLIEST {
            return;
        }
        let ahead = server.unix_seconds().saturating_sub(now.unix_seconds());
        self.ahead = if ahead.unsigned_abs() <= TOLERANCE.as_secs() { 0 } else { ahead };
    }

    /// Returns by how many seconds the server is ahead of this machine (negative: behind); zero if they agree.
    #[must_use]
    pub fn seconds_ahead(self) -> i64 {
        self.ahead
    }

    /// Returns the server's time when this machine's clock says `now`.
    #[must_use]
    pub fn server_time(self, now: Time) -> Time {
        shift(now, self.ahead)
    }

    /// Returns what this machine's clock says at the server's time `at`.
    #[must_use]
    pub fn local_time(self, at: Time) -> Time {
        shift(at, self.ahead.saturating_neg())
    }

    /// Returns a sentence for the user if the clocks differ.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        if self.ahead == 0 {
            return None;
        }
        let minutes = self.ahead.unsigned_abs().div_ceil(60);
        let side = if self.ahead > 0 { "behind" } else { "ahead of" };
        Some(format!(
            "this machine's clock is {minutes} min {side} the server's; set it right (timedatectl set-ntp true)"
        ))
    }
}

fn shift(time: Time, seconds: i64) -> Time {
    Time::from_unix(time.unix_seconds().saturating_add(seconds), time.nanos()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_unix(seconds, 0).unwrap()
    }

    #[test]
    fn delay_on_the_way_is_no_skew() {
        let mut clock = ClockSkew::default();
        clock.observe(at(1_800_000_060), at(1_800_000_000));
        assert_eq!(clock.seconds_ahead(), 0);
        assert_eq!(clock.warning(), None);
    }

    #[test]
    fn an_hour_off_is_told_and_corrected() {
        let mut clock = ClockSkew::default();
        clock.observe(at(1_800_003_600), at(1_800_000_000));
        assert_eq!(clock.server_time(at(1_800_000_010)), at(1_800_003_610));
        assert_eq!(clock.local_time(at(1_800_003_610)), at(1_800_000_010));
        assert!(clock.warning().unwrap().contains("60 min behind"));
        clock.observe(at(1_799_996_400), at(1_800_000_000));
        assert!(clock.warning().unwrap().contains("60 min ahead of"));
    }

    #[test]
    fn a_server_without_a_clock_is_ignored() {
        let mut clock = ClockSkew::default();
        clock.observe(at(0), at(1_800_000_000));
        assert_eq!(clock.seconds_ahead(), 0);
    }
}
