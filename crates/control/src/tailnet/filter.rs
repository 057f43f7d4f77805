//! The packet filter of a node in chunks, so that one more source does not resend thousands.
//!
//! Clients replace chunks of the filter by name. Rules with few sources are the chunk `base`. A rule with many becomes
//! several chunks with some of its sources each, cut where the sources themselves say so and named by what they hold:
//! a source that comes or goes changes the chunk around it, and all others keep their names.

use std::ops::Range;

use sha2::{Digest, Sha256};
use warren_wire::control::{FilterRule, to_json};

/// How many sources a rule may have to stay in one piece. (Tests have fewer nodes.)
const WHOLE_MAX: usize = if cfg!(test) { 4 } else { 128 };
/// How many sources a chunk has, on average.
const AVERAGE: u64 = if cfg!(test) { 2 } else { 64 };
/// How many a chunk has at most, whatever the sources say.
const CHUNK_MAX: usize = 512;

/// Name of the chunk of rules in one piece.
const BASE: &str = "base";

/// Says what a chunk holds; equal for equal rules only.
type Id = u128;

/// The rules of a node, ready to be written.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Rules with few sources.
    base: Vec<FilterRule>,
    /// Rules with many, as they are.
    long: Vec<FilterRule>,
    /// Which sources of which long rule each further chunk holds; sorted by ID.
    pieces: Vec<(Id, usize, Range<usize>)>,
    outline: Outline,
}

/// What a client has of a filter: the IDs of its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Outline {
    base: Id,
    /// The further chunks, sorted.
    pieces: Box<[Id]>,
}

impl Outline {
    /// Returns a number that two equal steps share, and no others.
    pub(crate) fn step_to(&self, new: &Self) -> u128 {
        let mut hash = Sha256::new();
        for outline in [self, new] {
            hash.update(outline.base.to_be_bytes());
            hash.update((outline.pieces.len() as u64).to_be_bytes());
            outline.pieces.iter().for_each(|id| hash.update(id.to_be_bytes()));
        }
        id_of(hash)
    }
}

impl Filter {
    /// Cuts rules into chunks.
    pub(crate) fn new(rules: Vec<FilterRule>) -> Self {
        let (long, base): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.src_ips.len() > WHOLE_MAX);
        let mut pieces = Vec::new();
        for (number, rule) in long.iter().enumerate() {
            let bare = FilterRule {
                src_ips: Vec::new(),
                dst_ports: rule.dst_ports.clone(),
                ip_proto: rule.ip_proto.clone(),
                ..FilterRule::default()
            };
            let bare = Sha256::digest(json(&bare));
            for range in cuts(&rule.src_ips) {
                let mut hash = Sha256::new_with_prefix(bare);
                for source in rule.src_ips.get(range.clone()).unwrap_or_default() {
                    hash.update((source.len() as u64).to_be_bytes());
                    hash.update(source);
                }
                pieces.push((id_of(hash), number, range));
            }
        }
        pieces.sort_by_key(|(id, _, _)| *id);
        // A rule that is there twice says nothing more than once.
        pieces.dedup_by_key(|(id, _, _)| *id);
        let outline = Outline {
            base: id_of(Sha256::new_with_prefix(json(&base))),
            pieces: pieces.iter().map(|(id, _, _)| *id).collect(),
        };
        Self { base, long, pieces, outline }
    }

    /// Returns what a client has that got all of it.
    pub(crate) fn outline(&self) -> &Outline {
        &self.outline
    }

    /// Writes the JSON object of chunks that leads a client there from `old`; from nothing if that is `None`.
    pub(crate) fn write(&self, old: Option<&Outline>, to: &mut Vec<u8>) {
        to.push(b'{');
        let mut first = true;
        let mut name = |name: &str, to: &mut Vec<u8>| {
            if !std::mem::take(&mut first) {
                to.push(b',');
            }
            to.extend_from_slice(format!("\"{name}\":").as_bytes());
        };
        if old.is_none_or(|old| old.base != self.outline.base) {
            name(BASE, to);
            to.extend_from_slice(&json(&self.base));
        }
        let known = old.map(|old| &*old.pieces).unwrap_or_default();
        for gone in known.iter().filter(|id| self.outline.pieces.binary_search(id).is_err()) {
            name(&piece_name(*gone), to);
            to.extend_from_slice(b"null");
        }
        for (id, number, range) in self.pieces.iter().filter(|(id, _, _)| known.binary_search(id).is_err()) {
            let Some(rule) = self.long.get(*number) else { continue };
            let sources = rule.src_ips.get(range.clone()).unwrap_or_default().to_vec();
            let piece = FilterRule {
                src_ips: sources,
                dst_ports: rule.dst_ports.clone(),
                ip_proto: rule.ip_proto.clone(),
                ..FilterRule::default()
            };
            name(&piece_name(*id), to);
            to.extend_from_slice(&json(&[piece]));
        }
        to.push(b'}');
    }
}

/// Cuts a list behind every element that says so by its hash.
fn cuts(sources: &[String]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for (at, source) in sources.iter().enumerate() {
        let end = at + 1;
        if fnv(source.as_bytes()).is_multiple_of(AVERAGE) || end - start >= CHUNK_MAX || end == sources.len() {
            ranges.push(start..end);
            start = end;
        }
    }
    ranges
}

/// Returns the FNV-1a hash: only where lists are cut depends on it.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    // The low bits alone are poor.
    hash ^ (hash >> 32)
}

fn piece_name(id: Id) -> String {
    format!("sources-{id:032x}")
}

fn id_of(hash: Sha256) -> Id {
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    to_json(value).unwrap_or_else(|error| {
        // Plain fields cannot fail; if they did, nothing would be allowed.
        tracing::error!(%error, "a packet filter cannot be encoded");
        b"[]".to_vec()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use warren_wire::control::{MapResponse, NetPortRange, PortRange, from_json};

    use super::*;

    fn rule(sources: &[u16], to: &str) -> FilterRule {
        let mut dst_ports = vec![NetPortRange { ip: to.to_owned(), bits: None, ports: PortRange::ALL }];
        dst_ports[0].ports = PortRange::single(22);
        FilterRule {
            src_ips: sources.iter().map(|number| format!("100.64.{}.{}", number / 256, number % 256)).collect(),
            dst_ports,
            ip_proto: vec![6],
            ..FilterRule::default()
        }
    }

    type Chunks = BTreeMap<String, Vec<FilterRule>>;

    /// Does what a client does; returns how many chunks came or went.
    fn apply(chunks: &mut Chunks, filter: &Filter, old: Option<&Outline>) -> usize {
        let mut text = b"{\"PacketFilters\":".to_vec();
        filter.write(old, &mut text);
        text.push(b'}');
        let message: MapResponse = from_json(&text).unwrap();
        let count = message.packet_filters.len();
        for (name, rules) in message.packet_filters {
            match rules {
                Some(rules) => drop(chunks.insert(name, rules)),
                None => assert!(chunks.remove(&name).is_some(), "{name} was not there"),
            }
        }
        count
    }

    /// What a filter means: which source may send where.
    fn meaning(rules: impl IntoIterator<Item = FilterRule>) -> BTreeSet<(String, String, Vec<i64>)> {
        rules
            .into_iter()
            .flat_map(|rule| {
                let to = format!("{:?}", rule.dst_ports);
                rule.src_ips.into_iter().map(move |source| (source, to.clone(), rule.ip_proto.clone()))
            })
            .collect()
    }

    #[test]
    fn short_rules_are_the_base_alone() {
        let rules = vec![rule(&[1, 2, 3], "*"), rule(&[4], "100.64.0.1")];
        let mut chunks = Chunks::new();
        apply(&mut chunks, &Filter::new(rules.clone()), None);
        assert_eq!(chunks, Chunks::from([("base".to_owned(), rules)]));
        apply(&mut chunks, &Filter::new(Vec::new()), None);
        assert_eq!(chunks["base"], [], "nothing allowed is said, not left out");
    }

    #[test]
    fn one_more_source_changes_little() {
        let mut sources: Vec<u16> = (0..1000).map(|number| number * 3).collect();
        let mut chunks = Chunks::new();
        let mut filter = Filter::new(vec![rule(&sources, "100.64.0.1")]);
        assert!(apply(&mut chunks, &filter, None) > 100);
        for new in [1, 1500, 2999] {
            sources.push(new);
            sources.sort_unstable();
            let next = Filter::new(vec![rule(&sources, "100.64.0.1")]);
            let changed = apply(&mut chunks, &next, Some(filter.outline()));
            assert!((1..=3).contains(&changed), "{changed}");
            filter = next;
        }
    }

    proptest! {
        #[test]
        fn steps_lead_where_the_whole_leads(
            versions in prop::collection::vec(
                prop::collection::vec((prop::collection::btree_set(0..40_u16, 0..30), 0..3_u8), 0..4),
                1..6,
            )
        ) {
            let mut chunks = Chunks::new();
            let mut old: Option<Outline> = None;
            for version in versions {
                let rules: Vec<FilterRule> = version
                    .into_iter()
                    .map(|(sources, to)| rule(&sources.into_iter().collect::<Vec<_>>(), &format!("100.64.0.{to}")))
                    .collect();
                let filter = Filter::new(rules.clone());
                let changed = apply(&mut chunks, &filter, old.as_ref());
                prop_assert_eq!(changed == 0, old.as_ref() == Some(filter.outline()));
                let mut whole = Chunks::new();
                apply(&mut whole, &filter, None);
                prop_assert_eq!(&chunks, &whole);
                prop_assert_eq!(meaning(chunks.values().flatten().cloned()), meaning(rules));
                old = Some(filter.outline().clone());
            }
        }
    }
}
