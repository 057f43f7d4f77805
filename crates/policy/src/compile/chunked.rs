//! Sorted maps whose versions share what they have in common.
//!
//! A map is a list of chunks of some dozen entries each. A new version copies the list and the chunks in which something
//! changes; two versions are compared by walking over the chunks that they do not share.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Most entries of a chunk.
const CHUNK_MAX: usize = 128;
/// A changed chunk with fewer entries is joined with the next.
const CHUNK_MIN: usize = 32;

/// A sorted map that is cheap to clone and to change in few places.
#[derive(Debug)]
pub(super) struct ChunkedMap<K, V> {
    chunks: Arc<[Chunk<K, V>]>,
}

/// Entries in order, never none.
type Chunk<K, V> = Arc<[(K, V)]>;

impl<K, V> Clone for ChunkedMap<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks) }
    }
}

impl<K, V> Default for ChunkedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::new([]) }
    }
}

impl<K: Ord + Clone, V: Clone> ChunkedMap<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Tells whether two versions are the same one; `false` says nothing.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entry(key).map(|(_, value)| value)
    }

    pub(super) fn entry<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key).checked_sub(1)?)?;
        let at = chunk.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
        chunk.get(at).map(|(key, value)| (key, value))
    }

    /// Returns how many chunks begin at or before a key.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.chunks.partition_point(|chunk| chunk.first().is_some_and(|(first, _)| first.borrow() <= key))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().map(|(key, value)| (key, value)))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Returns the entries from a key on, in order.
    pub(super) fn from<'a, Q: Ord + ?Sized + 'a>(
        &'a self,
        start: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, Q, K, V>
    where
        K: Borrow<Q>,
    {
        let first = self.chunk_of(start).saturating_sub(1);
        let mut skip = self.chunks.get(first).map_or(0, |chunk| chunk.partition_point(|(key, _)| key.borrow() < start));
        self.chunks.get(first..).unwrap_or_default().iter().flat_map(move |chunk| {
            let entries = chunk.get(std::mem::take(&mut skip)..).unwrap_or_default();
            entries.iter().map(|(key, value)| (key, value))
        })
    }

    /// Returns the map with entries set, or removed where the change is `None`.
    pub(super) fn with(&self, changes: BTreeMap<K, Option<V>>) -> Self {
        if changes.is_empty() {
            return self.clone();
        }
        let mut builder = Builder { chunks: Vec::with_capacity(self.chunks.len().saturating_add(2)), open: Vec::new() };
        let mut start = Bound::Unbounded;
        let mut chunks = self.chunks.iter().peekable();
        if chunks.peek().is_none() {
            builder.open.extend(changes.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        }
        while let Some(chunk) = chunks.next() {
            // What comes before the first chunk belongs to it; what comes after one, before the next, too.
            let next = chunks.peek().and_then(|next| next.first()).map(|(key, _)| key);
            let mut edits = changes.range((start, next.map_or(Bound::Unbounded, Bound::Excluded))).peekable();
            start = next.map_or(Bound::Unbounded, Bound::Included);
            if edits.peek().is_none() {
                builder.chunk(chunk);
                continue;
            }
            for entry in chunk.iter() {
                while let Some((key, value)) = edits.next_if(|(key, _)| **key < entry.0) {
                    builder.open.extend(value.clone().map(|value| (key.clone(), value)));
                }
                match edits.next_if(|(key, _)| **key == entry.0) {
                    Some((key, value)) => builder.open.extend(value.clone().map(|value| (key.clone(), value))),
                    None => builder.open.push(entry.clone()),
                }
            }
            builder.open.extend(edits.filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
            if builder.open.len() >= CHUNK_MIN {
                builder.cut();
            }
        }
        builder.cut();
        Self { chunks: builder.chunks.into() }
    }

    /// Calls with each key whose entry is in one map only or not the same in both, as `same` judges.
    pub(super) fn differences<'a>(
        old: &'a Self,
        new: &'a Self,
        same: impl Fn(&V, &V) -> bool,
        mut report: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>),
    ) {
        let (mut left, mut right) = (Cursor::new(old), Cursor::new(new));
        loop {
            if left.skip_shared(&mut right) {
                continue;
            }
            match (left.entry(), right.entry()) {
                (None, None) => return,
                (Some((key, value)), None) => {
                    report(key, Some(value), None);
                    left.step();
                }
                (None, Some((key, value))) => {
                    report(key, None, Some(value));
                    right.step();
                }
                (Some((one, before)), Some((two, after))) => match one.cmp(two) {
                    std::cmp::Ordering::Less => {
                        report(one, Some(before), None);
                        left.step();
                    }
                    std::cmp::Ordering::Greater => {
                        report(two, None, Some(after));
                        right.step();
                    }
                    std::cmp::Ordering::Equal => {
                        if !same(before, after) {
                            report(one, Some(before), Some(after));
                        }
                        left.step();
                        right.step();
                    }
                },
            }
        }
    }
}

/// Puts entries, which come in order, into chunks.
struct Builder<K, V> {
    chunks: Vec<Chunk<K, V>>,
    open: Vec<(K, V)>,
}

impl<K: Clone, V: Clone> Builder<K, V> {
    /// Takes a chunk over as it is, or joins it with what is left of the one before.
    fn chunk(&mut self, chunk: &Chunk<K, V>) {
        if self.open.is_empty() {
            self.chunks.push(Arc::clone(chunk));
        } else {
            self.open.extend(chunk.iter().cloned());
            self.cut();
        }
    }

    /// Makes chunks of equal size.
    fn cut(&mut self) {
        let open = std::mem::take(&mut self.open);
        let pieces = open.len().div_ceil(CHUNK_MAX).max(1);
        let size = open.len().div_ceil(pieces).max(1);
        let mut entries = open.into_iter().peekable();
        while entries.peek().is_some() {
            self.chunks.push(entries.by_ref().take(size).collect());
        }
    }
}

/// A place in a map.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    chunk: usize,
    entry: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(map: &'a ChunkedMap<K, V>) -> Self {
        Self { chunks: &map.chunks, chunk: 0, entry: 0 }
    }

    fn entry(&self) -> Option<(&'a K, &'a V)> {
        self.chunks.get(self.chunk)?.get(self.entry).map(|(key, value)| (key, value))
    }

    fn step(&mut self) {
        self.entry = self.entry.saturating_add(1);
        if self.chunks.get(self.chunk).is_some_and(|chunk| self.entry >= chunk.len()) {
            self.chunk = self.chunk.saturating_add(1);
            self.entry = 0;
        }
    }

    /// Passes over a chunk that both have, if both stand at its beginning.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let shared = self.entry == 0
            && other.entry == 0
            && match (self.chunks.get(self.chunk), other.chunks.get(other.chunk)) {
                (Some(one), Some(two)) => Arc::ptr_eq(one, two),
                (Some(_) | None, _) => false,
            };
        if shared {
            self.chunk = self.chunk.saturating_add(1);
            other.chunk = other.chunk.saturating_add(1);
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_map_and_reports_what_differs(
            versions in prop::collection::vec(
                prop::collection::btree_map(0..600_u16, prop::option::of(0..3_u8), 0..250),
                1..6,
            ),
            probe in 0..600_u16,
        ) {
            let mut model: BTreeMap<u16, u8> = BTreeMap::new();
            let mut map = ChunkedMap::default();
            for changes in versions {
                let (before, old) = (model.clone(), map.clone());
                for (key, value) in &changes {
                    match value {
                        Some(value) => drop(model.insert(*key, *value)),
                        None => drop(model.remove(key)),
                    }
                }
                map = map.with(changes);
                prop_assert_eq!(map.is_empty(), model.is_empty());
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert!(map.from(&probe).eq(model.range(probe..)));
                prop_assert_eq!(map.get(&probe), model.get(&probe));
                let mut reported = BTreeMap::new();
                ChunkedMap::differences(&old, &map, |one, two| one == two, |key, one, two| {
                    reported.insert(*key, (one.copied(), two.copied()));
                });
                let expected: BTreeMap<_, _> = (0..600)
                    .map(|key| (key, (before.get(&key).copied(), model.get(&key).copied())))
                    .filter(|(_, (one, two))| one != two)
                    .collect();
                prop_assert_eq!(reported, expected);
            }
        }
    }

    #[test]
    fn versions_share_all_but_the_changed_chunk() {
        let map = ChunkedMap::default().with((0..10_000_u32).map(|key| (key, Some(0))).collect());
        let mut next = map.clone();
        for key in [5, 5_000, 20_000] {
            next = next.with([(key, Some(1))].into());
        }
        let kept = next.chunks.iter().filter(|chunk| map.chunks.iter().any(|old| Arc::ptr_eq(old, chunk))).count();
        assert!(kept + 4 >= next.chunks.len(), "{kept} of {}", next.chunks.len());
    }
}
