//! The packet filter of a node in chunks, so that one more source does not resend thousands.
//!
//! Clients replace chunks of the filter by name. Rules with few sources are the chunk `base`. A rule with many becomes
//! several chunks with some of its sources each, as the compiler cut them ([`warren_policy::Sources`]), named by what
//! they hold: a source that comes or goes changes the chunk around it, and all others keep their names.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use warren_policy::{NodeRule, SourceChunk};
use warren_wire::control::{FilterRule, Time, to_json};

/// How many sources a rule may have to stay in one piece. (Tests have fewer nodes.)
const WHOLE_MAX: usize = if cfg!(test) { 4 } else { 128 };

/// Name of the chunk of rules in one piece.
const BASE: &str = "base";

/// Says what a chunk holds; equal for equal rules only.
type Id = u128;

/// Whether a client ends rules by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It is told when: it keeps to it even while the server is away.
    Told,
    /// It is not; the server takes the rule back in time.
    Untold,
}

/// The rules of a node, ready to be written.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Rules with few sources.
    base: Vec<FilterRule>,
    /// Rules with many, without them.
    long: Vec<FilterRule>,
    /// Which sources of which long rule each further chunk holds; sorted by ID.
    pieces: Vec<(Id, usize, Arc<SourceChunk>)>,
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
    pub(crate) fn new(rules: Vec<NodeRule>, ends: Ends) -> Self {
        let (mut base, mut long, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
        for rule in rules {
            let mut bare = FilterRule {
                dst_ports: rule.destinations,
                ip_proto: rule.protocols,
                cap_grant: rule.grants,
                until: rule.until.filter(|_| ends == Ends::Told).and_then(|until| Time::from_unix(until, 0)),
                ..FilterRule::default()
            };
            if rule.sources.len() <= WHOLE_MAX {
                bare.src_ips = rule.sources.texts().collect();
                base.push(bare);
                continue;
            }
            let hash = Sha256::new_with_prefix(json(&bare));
            for chunk in rule.sources.chunks() {
                let id = id_of(hash.clone().chain_update(chunk.id().to_be_bytes()));
                pieces.push((id, long.len(), Arc::clone(chunk)));
            }
            long.push(bare);
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

    /// Returns the same as [`Self::outline`], for keeping.
    pub(crate) fn into_outline(self) -> Outline {
        self.outline
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
        for (id, number, chunk) in self.pieces.iter().filter(|(id, _, _)| known.binary_search(id).is_err()) {
            let Some(rule) = self.long.get(*number) else { continue };
            let piece = FilterRule { src_ips: chunk.texts().collect(), ..rule.clone() };
            name(&piece_name(*id), to);
            to.extend_from_slice(&json(&[piece]));
        }
        to.push(b'}');
    }
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
mod tests;
