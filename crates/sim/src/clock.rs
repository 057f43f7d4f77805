//! The one clock: events in order of time, and of their making where the time is the same.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Returns the instant at which virtual time begins.
#[must_use]
pub fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "an instant can only be made by reading the clock; none passes")]
    *EPOCH.get_or_init(Instant::now)
}

/// What is to happen, and the time.
#[derive(Debug)]
pub struct Clock<E> {
    now: Instant,
    count: u64,
    events: BTreeMap<(Instant, u64), E>,
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self { now: epoch(), count: 0, events: BTreeMap::new() }
    }
}

impl<E> Clock<E> {
    /// Returns the time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns how much time has passed.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now - epoch()
    }

    /// Lets an event happen at `at`, or now if that is past.
    pub fn at(&mut self, at: Instant, event: E) {
        self.count += 1;
        self.events.insert((at.max(self.now), self.count), event);
    }

    /// Lets an event happen after a while.
    pub fn after(&mut self, wait: Duration, event: E) {
        self.at(self.now + wait, event);
    }

    /// Goes to the next event that happens until `end`; to `end` if there is none.
    pub fn next(&mut self, end: Instant) -> Option<E> {
        match self.events.first_entry().filter(|entry| entry.key().0 <= end) {
            Some(entry) => {
                let ((at, _), event) = entry.remove_entry();
                self.now = at;
                Some(event)
            }
            None => {
                self.now = self.now.max(end);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_they_were_made() {
        let mut clock = Clock::default();
        let second = Duration::from_secs(1);
        clock.after(second * 2, 'c');
        clock.after(second, 'a');
        clock.after(second, 'b');
        clock.after(second * 9, 'd');
        let end = epoch() + second * 5;
        assert_eq!(std::iter::from_fn(|| clock.next(end)).collect::<String>(), "abc");
        assert_eq!(clock.elapsed(), second * 5);
        assert_eq!(clock.next(epoch() + second * 20), Some('d'));
    }
}
