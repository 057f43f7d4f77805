//! How often somebody may call, or try a password: buckets that fill up again by time.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::TailnetId;
use crate::server::limits::prefix;

/// Calls from one source, whoever it is.
const SOURCE: Rate = Rate { burst: 2000.0, per_second: 100.0 };
/// Credentials from one source that are none: guessing 256 bits is hopeless, and costs us little this way.
const FAILURES: Rate = Rate { burst: 30.0, per_second: 0.5 };
/// Calls with one credential.
const CREDENTIAL: Rate = Rate { burst: 1000.0, per_second: 50.0 };
/// Refusals of one credential that the audit log notes.
const REFUSALS: Rate = Rate { burst: 20.0, per_second: 0.1 };
/// Policies of one tailnet that are set, tried or looked through: each keeps a processor busy, or is stored.
const POLICIES: Rate = Rate { burst: 60.0, per_second: 0.5 };
/// Passwords for one account. Whoever tries more is told to wait, as is its owner meanwhile: no more than 2,900 a day are
/// looked at, each with a code of six digits.
const PASSWORDS: Rate = Rate { burst: 20.0, per_second: 1.0 / 30.0 };
/// Passwords from one source, whatever the accounts.
const PASSWORDS_OF_SOURCE: Rate = Rate { burst: 30.0, per_second: 0.1 };
/// How many sources, or credentials, are remembered at a time.
const REMEMBERED: usize = 8192;

/// The limits of the API.
#[derive(Debug)]
pub(crate) struct ApiLimits {
    sources: Mutex<Buckets<IpAddr>>,
    failures: Mutex<Buckets<IpAddr>>,
    credentials: Mutex<Buckets<String>>,
    refusals: Mutex<Buckets<String>>,
    policies: Mutex<Buckets<TailnetId>>,
    passwords: Mutex<Buckets<[u8; 32]>>,
    passwords_of_source: Mutex<Buckets<IpAddr>>,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            sources: Mutex::new(Buckets::new(SOURCE)),
            failures: Mutex::new(Buckets::new(FAILURES)),
            credentials: Mutex::new(Buckets::new(CREDENTIAL)),
            refusals: Mutex::new(Buckets::new(REFUSALS)),
            policies: Mutex::new(Buckets::new(POLICIES)),
            passwords: Mutex::new(Buckets::new(PASSWORDS)),
            passwords_of_source: Mutex::new(Buckets::new(PASSWORDS_OF_SOURCE)),
        }
    }
}

impl ApiLimits {
    /// Admits a call from a source, which loopback is not, or says how long to wait.
    pub(crate) fn admit_source(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        if from.to_canonical().is_loopback() {
            return Ok(());
        }
        locked(&self.sources).take(&prefix(from), now)
    }

    /// Notes that what a source showed is no credential. A good one from the same source, which many may share, is heard
    /// all the same.
    pub(crate) fn note_failure(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        if from.to_canonical().is_loopback() {
            return Ok(());
        }
        locked(&self.failures).take(&prefix(from), now)
    }

    /// Admits a call with a credential.
    pub(crate) fn admit_credential(&self, id: &str, now: Instant) -> Result<(), Duration> {
        locked(&self.credentials).take(&id.to_owned(), now)
    }

    /// Admits work on a policy of a tailnet.
    pub(crate) fn admit_policy(&self, tailnet: TailnetId, now: Instant) -> Result<(), Duration> {
        locked(&self.policies).take(&tailnet, now)
    }

    /// Admits a password for an account, which a digest of its name stands for, from a source; loopback is one, too.
    pub(crate) fn admit_password(&self, account: &[u8; 32], from: IpAddr, now: Instant) -> Result<(), Duration> {
        // A source that has none left takes nothing away from the account.
        locked(&self.passwords_of_source).take(&prefix(from), now)?;
        locked(&self.passwords).take(account, now)
    }

    /// Tells whether a refusal shall be noted.
    pub(crate) fn admit_refusal(&self, id: &str, now: Instant) -> Result<(), Duration> {
        locked(&self.refusals).take(&id.to_owned(), now)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// What each still has.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    levels: HashMap<K, (f64, Instant)>,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, levels: HashMap::new() }
    }

    fn level(&self, key: &K, now: Instant) -> f64 {
        let Rate { burst, per_second } = self.rate;
        let known = self.levels.get(key);
        known.map_or(burst, |(level, at)| {
            (level + now.saturating_duration_since(*at).as_secs_f64() * per_second).min(burst)
        })
    }

    /// Tells whether there is one left, or how long to wait.
    fn check(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let level = self.level(key, now);
        if level >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - level) / self.rate.per_second))
    }

    /// Takes one.
    fn take(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        self.check(key, now)?;
        if self.levels.len() >= REMEMBERED && !self.levels.contains_key(key) {
            self.make_room(now);
        }
        let level = self.level(key, now) - 1.0;
        self.levels.insert(key.clone(), (level, now));
        Ok(())
    }

    /// Forgets who is as good as new, or else the fullest half: who has least left is remembered.
    fn make_room(&mut self, now: Instant) {
        let mut levels: Vec<_> = self.levels.keys().map(|key| self.level(key, now)).collect();
        levels.sort_by(f64::total_cmp);
        let middle = levels.get(levels.len() / 2).copied().unwrap_or_default();
        let kept: Vec<_> = self.levels.keys().filter(|key| self.level(key, now) < middle).cloned().collect();
        let kept = kept.into_iter().map(|key| (key.clone(), (self.level(&key, now), now))).collect();
        self.levels = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_fills_up_again_by_time() {
        let now = crate::Clock::system().instant();
        let mut buckets = Buckets::new(Rate { burst: 3.0, per_second: 2.0 });
        assert!((0..3).all(|_| buckets.take(&1, now).is_ok()));
        assert_eq!(buckets.take(&1, now), Err(Duration::from_millis(500)));
        assert!(buckets.take(&2, now).is_ok(), "another is not concerned");
        assert!(buckets.take(&1, now + Duration::from_millis(500)).is_ok());
        assert!(buckets.take(&1, now + Duration::from_millis(500)).is_err());
        let later = now + Duration::from_secs(3600);
        assert!((0..3).all(|_| buckets.take(&1, later).is_ok()) && buckets.take(&1, later).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_cannot_make_it_forget_the_one_that_has_nothing_left() {
        let now = crate::Clock::system().instant();
        let mut buckets = Buckets::new(Rate { burst: 3.0, per_second: 0.1 });
        assert!((0..3).all(|_| buckets.take(&u32::MAX, now).is_ok()));
        for source in 0..50_000 {
            buckets.take(&source, now).unwrap();
        }
        assert!(buckets.levels.len() <= REMEMBERED);
        assert!(buckets.take(&u32::MAX, now).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_told_to_wait_and_others_of_the_source_are_heard() {
        let (limits, now) = (ApiLimits::default(), crate::Clock::system().instant());
        let from = "192.0.2.7".parse().unwrap();
        while limits.note_failure(from, now).is_ok() {}
        assert!(limits.admit_source(from, now).is_ok());
        assert!(limits.note_failure("192.0.2.8".parse().unwrap(), now).is_ok());
        assert!(limits.note_failure(from, now + Duration::from_secs(3)).is_ok());
        assert!(limits.note_failure("127.0.0.1".parse().unwrap(), now).is_ok());
    }
}
