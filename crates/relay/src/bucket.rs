//! A token bucket, kept as the one moment at which it would be full again.

use std::time::Duration;

use tokio::time::Instant;

/// How much may pass: `rate` units a second in the long run, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) rate: u64,
    pub(crate) burst: u64,
}

impl Rate {
    /// Returns the time in which so many units come in; longest if none do.
    fn time(self, units: u64) -> Duration {
        let nanos = u128::from(units).saturating_mul(1_000_000_000).checked_div(u128::from(self.rate));
        Duration::from_nanos(nanos.and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or(u64::MAX))
    }
}

/// One bucket, full at first. Its rate may change at any time.
#[derive(Debug)]
pub(crate) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes `cost` units, at most a burst; or says how long to wait for them, and takes nothing.
    pub(crate) fn take(&mut self, cost: u64, rate: Rate, now: Instant) -> Result<(), Duration> {
        let whole = rate.time(rate.burst);
        // A bucket that was emptied at a lower rate owes no more than a whole one at this rate.
        let owed = self.full_at.saturating_duration_since(now).min(whole);
        let owed = owed.saturating_add(rate.time(cost.min(rate.burst)));
        match owed.checked_sub(whole) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.full_at = now.checked_add(owed).unwrap_or(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No more than a burst and what comes in meanwhile, and whoever waits as told gets its units.
        #[test]
        fn never_more_than_burst_and_rate(
            rate in 1_u64..1_000_000, burst in 1_u64..100_000, costs in proptest::collection::vec((1_u64..100_000, 0_u64..3000), 1..60),
        ) {
            let rate = Rate { rate, burst };
            let start = crate::server::now();
            let (mut now, mut passed) = (start, 0_u64);
            let mut bucket = Bucket::new(now);
            for (cost, pause) in costs {
                now += Duration::from_millis(pause);
                if let Err(wait) = bucket.take(cost, rate, now) {
                    now += wait;
                    prop_assert!(bucket.take(cost, rate, now).is_ok());
                }
                passed += cost.min(burst);
                let came = (now - start).as_secs_f64() * rate.rate as f64;
                prop_assert!(passed as f64 <= burst as f64 + came + 1.0);
            }
        }
    }
}
