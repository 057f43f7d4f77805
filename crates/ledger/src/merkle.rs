//! A tree of hashes over a list that only grows, and proofs about it.
//!
//! Source: RFC 6962, section 2.1 (the tree), and RFC 9162, section 2.1.3 and 2.1.4 (how proofs are checked).

use aws_lc_rs::digest::{Context, SHA256};

/// Is a SHA-256.
pub type Hash = [u8; 32];

/// The most hashes in a proof of a tree with less than 2^64 leaves.
pub const PROOF_HASHES_MAX: usize = 65;

const LEAF: u8 = 0;
const NODE: u8 = 1;

/// Returns the hash of a leaf.
#[must_use]
pub fn leaf_hash(data: &[u8]) -> Hash {
    hash(&[&[LEAF], data])
}

/// Returns the hash of two subtrees' common parent.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[NODE], left, right])
}

/// Returns the root of the tree without leaves.
#[must_use]
pub fn empty_root() -> Hash {
    hash(&[])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

/// Holds the right edge of a tree: enough to append leaves and to tell the root, and no more than 64 hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// The roots of the full subtrees that the tree is made of, the largest first; one for each bit of `size`.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Makes the frontier of the tree without leaves.
    #[must_use]
    pub const fn new() -> Self {
        Self { size: 0, peaks: Vec::new() }
    }

    /// Makes the frontier of a tree of `size` leaves whose nodes are stored.
    ///
    /// # Errors
    /// Those of the store.
    pub fn of<N: Nodes>(nodes: &N, size: u64) -> Result<Self, N::Error> {
        let peaks = peaks(0, size).map(|(level, index)| nodes.node(level, index)).collect::<Result<_, _>>()?;
        Ok(Self { size, peaks })
    }

    /// Makes a frontier of its parts; `None` if the number of peaks does not fit the size.
    #[must_use]
    pub fn from_parts(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (size.count_ones() as usize == peaks.len()).then_some(Self { size, peaks })
    }

    /// Returns the number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the roots of the full subtrees that the tree is made of, the largest first.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Returns the root of one of the full subtrees that the tree is made of; `None` if this node is not one of them.
    #[must_use]
    pub fn peak(&self, level: u8, index: u64) -> Option<Hash> {
        let at = peaks(0, self.size).position(|peak| peak == (level, index))?;
        self.peaks.get(at).copied()
    }

    /// Appends the hash of a leaf; hands every node that is final now to `store`, with its level and index.
    ///
    /// The leaf itself is on level 0. Nodes of one level come in the order of their indices.
    pub fn push(&mut self, leaf: Hash, mut store: impl FnMut(u8, u64, &Hash)) {
        let (mut hash, mut index, mut level) = (leaf, self.size, 0);
        store(level, index, &hash);
        while index % 2 == 1 {
            // As many peaks as bits are set: there is one on this level.
            let Some(left) = self.peaks.pop() else { break };
            hash = node_hash(&left, &hash);
            index /= 2;
            level += 1;
            store(level, index, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Returns the root.
    #[must_use]
    pub fn root(&self) -> Hash {
        fold(self.peaks.iter().copied())
    }
}

/// Gives the nodes of a tree that are final: those over 2^level leaves that are all there.
pub trait Nodes {
    /// Says why one cannot be had.
    type Error;

    /// Returns the node over the leaves from `index` · 2^`level` on, 2^`level` of them.
    ///
    /// # Errors
    /// It cannot be read, or is not there.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// Returns the full subtrees that the leaves from `start` to `end` fall into, from the left, if `start` is a multiple of a
/// power of two that is not below their number.
fn peaks(start: u64, end: u64) -> impl Iterator<Item = (u8, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let level = (end - at).checked_ilog2()?;
        let index = at >> level;
        at += 1 << level;
        Some((u8::try_from(level).unwrap_or(u8::MAX), index))
    })
}

/// Puts the roots of full subtrees, the largest first, together.
fn fold(peaks: impl DoubleEndedIterator<Item = Hash>) -> Hash {
    peaks.rev().reduce(|right, left| node_hash(&left, &right)).unwrap_or_else(empty_root)
}

/// Returns the root over the leaves from `start` to `end`.
fn range<N: Nodes>(nodes: &N, start: u64, end: u64) -> Result<Hash, N::Error> {
    let peaks: Vec<Hash> =
        peaks(start, end).map(|(level, index)| nodes.node(level, index)).collect::<Result<_, _>>()?;
    Ok(fold(peaks.into_iter()))
}

/// Returns the root of the tree of the first `size` leaves.
///
/// # Errors
/// Those of the store.
pub fn root_of<N: Nodes>(nodes: &N, size: u64) -> Result<Hash, N::Error> {
    range(nodes, 0, size)
}

/// Returns the largest power of two below `size`, which is at least 2.
const fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// Proves that the leaf `index` is in the tree of the first `size` leaves; `None` if it is not.
///
/// Source: RFC 6962, section 2.1.1.
///
/// # Errors
/// Those of the store.
pub fn prove_inclusion<N: Nodes>(nodes: &N, index: u64, size: u64) -> Result<Option<Vec<Hash>>, N::Error> {
    if index >= size {
        return Ok(None);
    }
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            proof.push(range(nodes, middle, end)?);
            end = middle;
        } else {
            proof.push(range(nodes, start, middle)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(Some(proof))
}

/// Proves that the tree of the first `old` leaves is the beginning of that of the first `new`; `None` if it cannot be.
///
/// Between a tree and itself, and from the one without leaves, there is nothing to prove.
/// Source: RFC 6962, section 2.1.2.
///
/// # Errors
/// Those of the store.
pub fn prove_consistency<N: Nodes>(nodes: &N, old: u64, new: u64) -> Result<Option<Vec<Hash>>, N::Error> {
    if old > new {
        return Ok(None);
    }
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(Some(proof));
    }
    let (mut start, mut end) = (0, new);
    // Down to the subtree that ends where the old tree does.
    while end != old {
        let middle = start + split(end - start);
        if old <= middle {
            proof.push(range(nodes, middle, end)?);
            end = middle;
        } else {
            proof.push(range(nodes, start, middle)?);
            start = middle;
        }
    }
    if start > 0 {
        proof.push(range(nodes, start, end)?);
    }
    proof.reverse();
    Ok(Some(proof))
}

/// Tells whether `proof` shows that `leaf` is number `index` in a tree of `size` leaves with this root.
///
/// Source: RFC 9162, section 2.1.3.2.
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node % 2 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            // Levels on which the node at the right edge has no sibling.
            while node % 2 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Tells whether `proof` shows that a tree of `old` leaves is the beginning of one of `new`, by their roots.
///
/// Source: RFC 9162, section 2.1.4.2. Every tree begins with the one without leaves.
#[must_use]
pub fn verify_consistency((old, old_root): (u64, &Hash), (new, new_root): (u64, &Hash), proof: &[Hash]) -> bool {
    if old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    // An old tree that is a full subtree is a node of the new one, and not repeated in the proof.
    let mut rest = proof.iter();
    let first = if old.is_power_of_two() { Some(old_root) } else { rest.next() };
    let Some(first) = first else { return false };
    let (mut node, mut last) = (old - 1, new - 1);
    while node % 2 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut from_old, mut from_new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node % 2 == 1 || node == last {
            from_old = node_hash(sibling, &from_old);
            from_new = node_hash(sibling, &from_new);
            while node % 2 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == *old_root && from_new == *new_root
}

#[cfg(test)]
mod tests;
