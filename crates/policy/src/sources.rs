//! Lists of sources, shared between rules, nodes and versions.
//!
//! A list is a set, sorted, in chunks. Where a chunk ends is decided by what stands there (content-defined chunking), so
//! that equal lists have equal chunks however they came to be, and one more source changes one chunk of a long list.

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// How many sources a chunk has, on average.
const CHUNK_AVERAGE: u64 = 64;
/// How many sources a chunk has at most, whatever they are.
const CHUNK_MAX: usize = 512;

/// A source as a filter rule names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Every address.
    Everywhere,
    /// From the first to the last.
    Range(IpAddr, IpAddr),
    /// More than one address.
    Prefix(IpNet),
    Address(IpAddr),
}

impl From<IpNet> for Source {
    fn from(prefix: IpNet) -> Self {
        if prefix.prefix_len() == prefix.max_prefix_len() { Self::Address(prefix.addr()) } else { Self::Prefix(prefix) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => to.write_str("*"),
            Self::Range(first, last) => write!(to, "{first}-{last}"),
            Self::Prefix(prefix) => prefix.fmt(to),
            Self::Address(address) => address.fmt(to),
        }
    }
}

impl Source {
    /// Returns the source as bytes, different for different sources.
    fn bytes(&self) -> [u8; 34] {
        let mut bytes = [0; 34];
        let (kind, first, second) = match self {
            Self::Everywhere => (0, 0, 0),
            Self::Range(first, last) => (1 + u8::from(first.is_ipv6()), bits(*first), bits(*last)),
            Self::Prefix(prefix) => {
                (3 + u8::from(prefix.addr().is_ipv6()), bits(prefix.network()), prefix.prefix_len().into())
            }
            Self::Address(address) => (5 + u8::from(address.is_ipv6()), bits(*address), 0),
        };
        let parts = [kind].into_iter().chain(first.to_be_bytes()).chain(second.to_be_bytes());
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        bytes
    }

    /// Tells whether both are addresses, this one the next after `other`.
    fn follows(&self, other: &Self) -> bool {
        match (other, self) {
            (Self::Address(one), Self::Address(next)) => {
                one.is_ipv4() == next.is_ipv4() && bits(*one).checked_add(1) == Some(bits(*next))
            }
            _ => false,
        }
    }

    /// Tells whether a chunk ends here.
    fn ends_chunk(&self) -> bool {
        // FNV-1a; its low bits alone are poor.
        let hash = self
            .bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        (hash ^ hash >> 32).is_multiple_of(CHUNK_AVERAGE)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// A list of sources: each once, in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    chunks: Vec<Arc<SourceChunk>>,
    id: u128,
}

/// Some sources that stand together in a list.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceChunk {
    /// Sorted, never empty.
    sources: Box<[Source]>,
    id: u128,
}

impl Default for Sources {
    fn default() -> Self {
        Builder::default().finish()
    }
}

impl Sources {
    /// Makes a list.
    pub(crate) fn new(sources: impl IntoIterator<Item = Source>) -> Self {
        let mut builder = Builder::default();
        sources.into_iter().collect::<BTreeSet<Source>>().into_iter().for_each(|source| builder.push(source));
        builder.finish()
    }

    /// Returns a number for what the list holds; equal for equal lists only, and the same in every process.
    #[must_use]
    pub const fn id(&self) -> u128 {
        self.id
    }

    /// Returns the chunks in order.
    #[must_use]
    pub fn chunks(&self) -> &[Arc<SourceChunk>] {
        &self.chunks
    }

    /// Returns how many sources there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// Tells whether there is no source.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Writes the sources as the wire names them: an address, a prefix, a range `a-b`, or `*`. Fewer texts than sources
    /// may say the same.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.texts())
    }

    /// Returns the list with some sources more and some less; `None` if that is the same. What is in both stays.
    pub(crate) fn edited(&self, more: &BTreeSet<Source>, less: &BTreeSet<Source>) -> Option<Self> {
        let mut builder = Builder::default();
        let mut changed = false;
        let mut chunks = self.chunks.iter().peekable();
        let mut start = None;
        if chunks.peek().is_none() {
            more.iter().for_each(|source| builder.push(*source));
            changed = !more.is_empty();
        }
        while let Some(chunk) = chunks.next() {
            // What comes before the first chunk belongs to it; what comes after one, before the next, too.
            let end = chunks.peek().and_then(|next| next.sources.first().copied());
            let within = (
                start.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Included),
                end.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
            );
            start = end;
            let more: Vec<Source> = more.range(within).copied().collect();
            let less = less.range(within).any(|source| chunk.sources.binary_search(source).is_ok()).then_some(less);
            if more.is_empty() && less.is_none() && builder.push_chunk(chunk) {
                continue;
            }
            let kept = chunk.sources.iter().filter(|source| less.is_none_or(|less| !less.contains(source)));
            let sources: BTreeSet<Source> = kept.copied().chain(more).collect();
            changed |= *chunk.sources != *sources.iter().copied().collect::<Vec<_>>();
            sources.into_iter().for_each(|source| builder.push(source));
        }
        changed.then(|| builder.finish())
    }
}

impl SourceChunk {
    fn new(sources: Vec<Source>) -> Self {
        let mut hash = Sha256::new();
        sources.iter().for_each(|source| hash.update(source.bytes()));
        Self { sources: sources.into(), id: id(hash) }
    }

    /// Returns a number for what the chunk holds; equal for equal chunks only, and the same in every process.
    #[must_use]
    pub const fn id(&self) -> u128 {
        self.id
    }

    /// Returns how many sources there are; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no chunk is empty")]
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Writes the sources, as [`Sources::texts`] does; addresses that follow each other as one range, since a tailnet
    /// gives them in order and thousands of them go to every node.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        self.sources.chunk_by(|one, next| next.follows(one)).filter_map(|run| match run {
            [Source::Address(first), .., Source::Address(last)] => Some(Source::Range(*first, *last).to_string()),
            run => run.first().map(Source::to_string),
        })
    }
}

/// Cuts sources, which come in order, into chunks.
#[derive(Default)]
struct Builder {
    chunks: Vec<Arc<SourceChunk>>,
    open: Vec<Source>,
}

impl Builder {
    fn push(&mut self, source: Source) {
        self.open.push(source);
        if source.ends_chunk() || self.open.len() >= CHUNK_MAX {
            self.cut();
        }
    }

    /// Takes a chunk over if it would come out the same.
    fn push_chunk(&mut self, chunk: &Arc<SourceChunk>) -> bool {
        let fits = self.open.is_empty();
        if fits {
            self.chunks.push(Arc::clone(chunk));
        }
        fits
    }

    fn cut(&mut self) {
        if !self.open.is_empty() {
            self.chunks.push(Arc::new(SourceChunk::new(std::mem::take(&mut self.open))));
        }
    }

    fn finish(mut self) -> Sources {
        self.cut();
        let mut hash = Sha256::new();
        self.chunks.iter().for_each(|chunk| hash.update(chunk.id.to_be_bytes()));
        Sources { chunks: self.chunks, id: id(hash) }
    }
}

fn id(hash: Sha256) -> u128 {
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(number: u32) -> Source {
        Source::Address(IpAddr::V4(number.into()))
    }

    proptest! {
        #[test]
        fn edits_lead_where_a_new_list_leads(
            start in prop::collection::btree_set(0..3_000_u32, 0..600),
            edits in prop::collection::vec(
                (prop::collection::btree_set(0..3_000_u32, 0..30), prop::collection::btree_set(0..3_000_u32, 0..200)),
                1..5,
            ),
        ) {
            let mut numbers = start;
            let mut list = Sources::new(numbers.iter().copied().map(address));
            for (more, less) in edits {
                let before = numbers.clone();
                numbers.retain(|number| !less.contains(number));
                numbers.extend(&more);
                let set = |numbers: BTreeSet<u32>| numbers.into_iter().map(address).collect::<BTreeSet<_>>();
                let edited = list.edited(&set(more), &set(less));
                prop_assert_eq!(edited.is_none(), before == numbers);
                list = edited.unwrap_or(list);
                prop_assert_eq!(&list, &Sources::new(numbers.iter().copied().map(address)));
                let number = |text: &str| u32::from(text.parse::<std::net::Ipv4Addr>().unwrap());
                let named: Vec<u32> = list
                    .texts()
                    .flat_map(|text| {
                        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
                        number(first)..=number(last)
                    })
                    .collect();
                prop_assert_eq!(named, numbers.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn one_more_source_changes_one_chunk() {
        let list = Sources::new((0..10_000).map(|number| address(number * 2)));
        assert!((80..400).contains(&list.chunks().len()), "{}", list.chunks().len());
        let more = list.edited(&[address(7_777)].into(), &BTreeSet::new()).unwrap();
        let kept = more.chunks().iter().filter(|chunk| list.chunks().iter().any(|old| Arc::ptr_eq(old, chunk))).count();
        assert!(kept + 2 >= more.chunks().len(), "{kept} of {} chunks were kept", more.chunks().len());
        assert_ne!(more.id(), list.id());
    }

    #[test]
    fn sources_are_written_as_the_wire_names_them() {
        let texts = |text: &str| Source::from(crate::selector::parse_prefix(text).unwrap()).to_string();
        assert_eq!(texts("10.0.0.1"), "10.0.0.1");
        assert_eq!(texts("10.0.0.1/8"), "10.0.0.0/8");
        assert_eq!(texts("fd7a::1/128"), "fd7a::1");
        assert_eq!(Source::Everywhere.to_string(), "*");
        assert_eq!(Source::Range([1, 0, 0, 0].into(), [2, 0, 0, 9].into()).to_string(), "1.0.0.0-2.0.0.9");
    }
}
