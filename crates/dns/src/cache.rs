//! What upstreams said, for as long as they say that it holds, and longer for when they are silent.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::name::Name;
use crate::query::{FLAG_CD, Kind, Query};
use crate::reply::Reply;

/// Most replies that are remembered.
const MAX_REPLIES: usize = 4096;
/// Most memory for replies, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Longest time for which an answer holds, and one that there is none. Source: RFC 2308, section 5; RFC 8767, section 4.
const MAX_LIFETIME: [u32; 2] = [86_400, 3_600];
/// How long a reply may serve after its time, when nobody can be asked. Source: RFC 8767, section 5.
const MAX_STALE: Duration = Duration::from_secs(86_400);

/// Is what makes two questions the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    name: Name,
    kind: Kind,
    /// Signatures are wanted.
    dnssec: bool,
    /// Signatures are not to be checked.
    unchecked: bool,
}

impl Key {
    /// Returns the key of a query.
    pub(crate) fn of(query: &Query) -> Self {
        Self {
            name: query.name.clone(),
            kind: query.kind,
            dnssec: query.dnssec(),
            unchecked: query.flags & FLAG_CD != 0,
        }
    }
}

/// Remembers replies; when it is full, the one that was used least recently goes.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    /// Which entry was used when, by a counter.
    used: BTreeMap<u64, Key>,
    counter: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    reply: Arc<Reply>,
    since: Instant,
    until: Instant,
    used: u64,
}

/// Is a remembered reply.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) reply: Arc<Reply>,
    /// How old it is, in seconds.
    pub(crate) age: u32,
    /// Its time has passed.
    pub(crate) stale: bool,
}

impl Cache {
    /// Looks a reply up.
    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Option<Hit> {
        let entry = self.entries.get_mut(key)?;
        if now.saturating_duration_since(entry.until) > MAX_STALE {
            self.remove(key);
            return None;
        }
        self.counter += 1;
        if let Some(key) = self.used.remove(&entry.used) {
            self.used.insert(self.counter, key);
        }
        entry.used = self.counter;
        let age = u32::try_from(now.saturating_duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        Some(Hit { reply: Arc::clone(&entry.reply), age, stale: now >= entry.until })
    }

    /// Remembers a reply if it says that it may be.
    pub(crate) fn insert(&mut self, key: &Key, reply: &Arc<Reply>, now: Instant) {
        let Some(seconds) = reply.lifetime().filter(|seconds| *seconds > 0) else {
            // What was said before does not hold any more.
            self.remove(key);
            return;
        };
        let [positive, negative] = MAX_LIFETIME;
        let seconds = seconds.min(if reply.has_answers() { positive } else { negative });
        self.remove(key);
        self.counter += 1;
        self.bytes += cost(key, reply);
        let until = now + Duration::from_secs(seconds.into());
        self.entries.insert(key.clone(), Entry { reply: Arc::clone(reply), since: now, until, used: self.counter });
        self.used.insert(self.counter, key.clone());
        while self.entries.len() > MAX_REPLIES || self.bytes > MAX_BYTES {
            let Some((_, oldest)) = self.used.pop_first() else { return };
            self.remove(&oldest);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.used.remove(&entry.used);
            self.bytes -= cost(key, &entry.reply);
        }
    }
}

/// Returns about how much memory an entry takes, in bytes.
fn cost(key: &Key, reply: &Reply) -> usize {
    reply.size() + 2 * key.name.as_bytes().len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::tests::{query, reply};

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn start() -> Instant {
        Instant::now()
    }

    fn said(text: &str, ttl: u32) -> (Key, Arc<Reply>) {
        let asked = query(text, Kind::A, true);
        (Key::of(&asked), Arc::new(Reply::decode(&reply(&asked, 7, 0, &[ttl], None), &asked, 7).unwrap()))
    }

    #[test]
    fn replies_hold_as_long_as_they_say_and_serve_a_day_more() {
        let (mut cache, start) = (Cache::default(), start());
        let (key, said) = said("a.example", 60);
        cache.insert(&key, &said, start);
        let at = |cache: &mut Cache, seconds| {
            cache.get(&key, start + Duration::from_secs(seconds)).map(|hit| (hit.age, hit.stale))
        };
        assert_eq!(at(&mut cache, 59), Some((59, false)));
        assert_eq!(at(&mut cache, 60), Some((60, true)));
        assert_eq!(at(&mut cache, 60 + 86_400), Some((86_460, true)));
        assert_eq!(at(&mut cache, 60 + 86_402), None);
        assert_eq!((cache.bytes, cache.used.len()), (0, 0));
    }

    #[test]
    fn no_reply_holds_longer_than_a_day_and_none_of_zero_is_kept() {
        let (mut cache, start) = (Cache::default(), start());
        let (key, long) = said("a.example", 10_000_000);
        cache.insert(&key, &long, start);
        assert!(cache.get(&key, start + Duration::from_secs(86_400)).unwrap().stale);
        let (key, zero) = said("a.example", 0);
        cache.insert(&key, &zero, start);
        assert!(cache.get(&key, start).is_none());
    }

    #[test]
    fn the_least_recently_used_goes_when_there_are_too_many() {
        let (mut cache, start) = (Cache::default(), start());
        for number in 0..MAX_REPLIES {
            let (key, said) = said(&format!("n{number}.example"), 60);
            cache.insert(&key, &said, start);
        }
        let (first, _) = said("n0.example", 60);
        assert!(cache.get(&first, start).is_some());
        let (key, said_last) = said("last.example", 60);
        cache.insert(&key, &said_last, start);
        let (second, _) = said("n1.example", 60);
        assert!(cache.get(&first, start).is_some() && cache.get(&key, start).is_some());
        assert!(cache.get(&second, start).is_none());
        assert!(cache.entries.len() == MAX_REPLIES && cache.used.len() == MAX_REPLIES && cache.bytes <= MAX_BYTES);
    }
}
