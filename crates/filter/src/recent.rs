//! A bounded map that forgets what was used least recently.

use std::collections::HashMap;
use std::hash::Hash;

use crate::prefix::AddressHash;

/// Maps keys to values, at most a fixed number of them; a new one pushes out the one least recently touched.
///
/// All operations cost O(1). Memory grows with the number of entries up to the bound and is then kept.
#[derive(Debug)]
pub(crate) struct RecentMap<K, V> {
    index: HashMap<K, u32, AddressHash>,
    slots: Vec<Slot<K, V>>,
    capacity: u32,
    /// Most recently touched.
    newest: u32,
    /// Least recently touched.
    oldest: u32,
    /// First of the unused slots, linked by `older`.
    free: u32,
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    newer: u32,
    older: u32,
}

/// Stands for "no slot".
const NONE: u32 = u32::MAX;

impl<K: Copy + Eq + Hash, V: Copy> RecentMap<K, V> {
    /// Makes an empty map for up to `capacity` entries, at least one; `seed` must be secret if others choose the keys.
    pub(crate) fn new(capacity: u32, seed: u64) -> Self {
        Self {
            index: HashMap::with_hasher(AddressHash { seed }),
            slots: Vec::new(),
            capacity: capacity.clamp(1, NONE - 1),
            newest: NONE,
            oldest: NONE,
            free: NONE,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns the value without counting as a use.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.slots.get(*self.index.get(key)? as usize).map(|slot| &slot.value)
    }

    /// Returns the value and makes it the most recent.
    pub(crate) fn touch(&mut self, key: &K) -> Option<&mut V> {
        let at = *self.index.get(key)?;
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
        self.slots.get_mut(at as usize).map(|slot| &mut slot.value)
    }

    /// Returns the value that was touched or set last.
    pub(crate) fn newest(&mut self) -> Option<&mut V> {
        self.slots.get_mut(self.newest as usize).map(|slot| &mut slot.value)
    }

    /// Sets the value of a key as the most recent; returns the one that it had, or that of the key that was pushed out.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(present) = self.touch(&key) {
            return Some(std::mem::replace(present, value));
        }
        let pushed_out = if self.index.len() >= self.capacity as usize { self.remove_oldest() } else { None };
        let slot = Slot { key, value, newer: NONE, older: NONE };
        let at = if let Some(unused) = self.slots.get_mut(self.free as usize) {
            let at = self.free;
            self.free = unused.older;
            *unused = slot;
            at
        } else {
            let Ok(at) = u32::try_from(self.slots.len()) else {
                return pushed_out;
            };
            self.slots.push(slot);
            at
        };
        self.link_newest(at);
        self.index.insert(key, at);
        pushed_out
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.index.remove(key)?;
        self.unlink(at);
        let slot = self.slots.get_mut(at as usize)?;
        slot.older = self.free;
        self.free = at;
        Some(slot.value)
    }

    /// Removes the least recently used entry if `is_stale` says so of its value, and returns that.
    pub(crate) fn remove_oldest_if(&mut self, is_stale: impl FnOnce(&V) -> bool) -> Option<V> {
        let is_stale = self.slots.get(self.oldest as usize).is_some_and(|slot| is_stale(&slot.value));
        if is_stale { self.remove_oldest() } else { None }
    }

    fn remove_oldest(&mut self) -> Option<V> {
        let key = self.slots.get(self.oldest as usize)?.key;
        self.remove(&key)
    }

    fn unlink(&mut self, at: u32) {
        let Some(&Slot { newer, older, .. }) = self.slots.get(at as usize) else {
            return;
        };
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let before = self.newest;
        if let Some(slot) = self.slots.get_mut(at as usize) {
            slot.newer = NONE;
            slot.older = before;
        }
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert(u8, u16),
        Touch(u8),
        Remove(u8),
        RemoveOldest,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..12, any::<u16>()).prop_map(|(key, value)| Step::Insert(key, value)),
            3 => (0_u8..12).prop_map(Step::Touch),
            2 => (0_u8..12).prop_map(Step::Remove),
            1 => Just(Step::RemoveOldest),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_list_in_order_of_use(
            capacity in 1_u32..8,
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            let mut map = RecentMap::new(capacity, 7);
            // Oldest first.
            let mut list: Vec<(u8, u16)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        let gone = map.insert(key, value);
                        let at = list.iter().position(|one| one.0 == key);
                        let at = at.or((list.len() == capacity as usize).then_some(0));
                        prop_assert_eq!(gone, at.map(|at| list.remove(at).1));
                        list.push((key, value));
                        prop_assert_eq!(map.newest().copied(), Some(value));
                    }
                    Step::Touch(key) => {
                        let at = list.iter().position(|one| one.0 == key);
                        prop_assert_eq!(map.touch(&key).copied(), at.map(|at| list[at].1));
                        if let Some(at) = at {
                            let one = list.remove(at);
                            list.push(one);
                        }
                    }
                    Step::Remove(key) => {
                        let at = list.iter().position(|one| one.0 == key);
                        prop_assert_eq!(map.remove(&key), at.map(|at| list.remove(at).1));
                    }
                    Step::RemoveOldest => {
                        let stale = |value: u16| value.is_multiple_of(2);
                        let is_stale = list.first().is_some_and(|one| stale(one.1));
                        let expected = is_stale.then(|| list.remove(0).1);
                        prop_assert_eq!(map.remove_oldest_if(|&value| stale(value)), expected);
                    }
                }
                prop_assert_eq!(map.len(), list.len());
                prop_assert!(map.slots.len() <= capacity as usize);
                for (key, value) in &list {
                    prop_assert_eq!(map.peek(key), Some(value));
                }
            }
        }
    }
}
