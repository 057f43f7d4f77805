//! How long to wait before the next attempt.

use std::time::Duration;

use warren_wire::control::Time;

/// Longest wait between two attempts that the server did not ask for.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(30);

/// Longest `Retry-After` that is honoured; beyond it the header is taken for nonsense.
///
/// Source: Tailscale `control/controlclient`, registration rate limiting (capability version 137).
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// Counts failures in a row and answers how long to wait: n² · 10 ms, times 0.5 to 1.5, at most [`MAX_DELAY`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Forgets all failures.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Returns how many attempts failed in a row.
    #[must_use]
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts one more failure and returns how long to wait. `random` is uniform in 0.0 to 1.0.
    pub(super) fn failed(&mut self, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let square = u64::from(self.failures).saturating_mul(u64::from(self.failures));
        let base = Duration::from_millis(square.saturating_mul(10)).min(MAX_DELAY);
        base.mul_f64(0.5 + random.clamp(0.0, 1.0)).min(MAX_DELAY)
    }
}

/// Returns how long an answer makes us wait that says "later" (429, 503): its `Retry-After`, in seconds or as a date, if
/// that is between 1 s and [`MAX_RETRY_AFTER`], and up to a quarter more, so that those who were told the same do not
/// come at the same moment; else 5 to 10 s. `server_now` is the answer's `Date`, by which a date counts. `random` is
/// uniform in 0.0 to 1.0.
#[must_use]
pub(super) fn retry_after(header: Option<&str>, server_now: Option<Time>, random: f64) -> Duration {
    let random = random.clamp(0.0, 1.0);
    let said = header.map(str::trim).and_then(|text| {
        let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
        let until = || Some(Time::from(httpdate::parse_http_date(text).ok()?).saturating_since(server_now?));
        seconds.or_else(until)
    });
    match said.filter(|wait| !wait.is_zero() && *wait <= MAX_RETRY_AFTER) {
        Some(wait) => wait.mul_f64(1.0 + random / 4.0),
        None => Duration::from_secs(5).mul_f64(1.0 + random),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_with_the_square_and_stop_at_the_cap() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..80).map(|_| backoff.failed(0.5).as_millis()).collect();
        assert_eq!(delays[..4], [10, 40, 90, 160]);
        assert_eq!(delays[79], 30_000);
        backoff.succeeded();
        assert_eq!(backoff.failed(0.0), Duration::from_millis(5));
    }

    #[test]
    fn jitter_never_exceeds_the_cap() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.failed(1.0), MAX_DELAY);
        assert_eq!(backoff.failed(9.0), MAX_DELAY);
    }

    #[test]
    fn absurd_retry_after_is_replaced() {
        let after = |header, random| retry_after(header, None, random);
        assert_eq!(after(Some("17"), 0.0), Duration::from_secs(17));
        assert_eq!(after(Some(" 16 "), 1.0), Duration::from_secs(20));
        assert_eq!(after(Some("0"), 0.0), Duration::from_secs(5));
        assert_eq!(after(Some("99999999999999999999"), 1.0), Duration::from_secs(10));
        assert_eq!(after(Some("3601"), 1.0), Duration::from_secs(10));
        assert_eq!(after(None, 0.5), Duration::from_millis(7_500));
    }

    #[test]
    fn a_date_counts_by_the_servers_clock() {
        let header = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        let at = |seconds: i64| Time::from_unix(784_111_777 + seconds, 0);
        assert_eq!(retry_after(header, at(-30), 0.0), Duration::from_secs(30));
        for useless in [None, at(0), at(30), at(-3601)] {
            assert_eq!(retry_after(header, useless, 0.0), Duration::from_secs(5));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_us_wait_forever_or_not_at_all(header: String, number: i64, random in 0.0..1.0_f64) {
            for text in [header, number.to_string()] {
                let wait = retry_after(Some(&text), Time::from_unix(number, 0), random);
                assert!(wait >= Duration::from_secs(1) && wait <= MAX_RETRY_AFTER.mul_f64(1.25), "{wait:?}");
            }
        }
    }
}
