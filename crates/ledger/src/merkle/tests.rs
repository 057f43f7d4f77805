//! Published vectors, and a tree that is computed as the RFC defines it.

use super::*;
use crate::testing::bytes;
use proptest::prelude::*;

/// All final nodes, by level.
#[derive(Default)]
struct Stored(Vec<Vec<Hash>>);

impl Nodes for Stored {
    type Error = std::convert::Infallible;

    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error> {
        Ok(self.0[usize::from(level)][usize::try_from(index).unwrap()])
    }
}

impl Stored {
    fn of(leaves: &[Hash]) -> (Self, Frontier) {
        let (mut stored, mut frontier) = (Self::default(), Frontier::new());
        for leaf in leaves {
            frontier.push(*leaf, |level, index, hash| {
                let level = usize::from(level);
                if stored.0.len() <= level {
                    stored.0.push(Vec::new());
                }
                assert_eq!(stored.0[level].len() as u64, index, "in order");
                stored.0[level].push(*hash);
            });
        }
        (stored, frontier)
    }
}

/// MTH of RFC 6962, section 2.1, word by word.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

/// PATH of RFC 6962, section 2.1.1.
fn naive_path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return vec![];
    }
    let half = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(half);
    let (mut path, sibling) = if index < half {
        (naive_path(index, left), naive_root(right))
    } else {
        (naive_path(index - half, right), naive_root(left))
    };
    path.push(sibling);
    path
}

/// SUBPROOF of RFC 6962, section 2.1.2.
fn naive_subproof(old: usize, leaves: &[Hash], is_whole: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if is_whole { vec![] } else { vec![naive_root(leaves)] };
    }
    let half = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(half);
    let (mut proof, sibling) = if old <= half {
        (naive_subproof(old, left, is_whole), naive_root(right))
    } else {
        (naive_subproof(old - half, right, false), naive_root(left))
    };
    proof.push(sibling);
    proof
}

fn leaves(count: usize) -> Vec<Hash> {
    (0..count).map(|number| leaf_hash(&number.to_be_bytes())).collect()
}

/// The leaves of the reference test data of Certificate Transparency.
fn published() -> Vec<Hash> {
    [
        b"".as_slice(),
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ]
    .map(leaf_hash)
    .to_vec()
}

/// Source: google/certificate-transparency, `merkle_tree_test`.
#[test]
fn published_roots_come_out() {
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    for (size, root) in roots.into_iter().enumerate() {
        assert_eq!(Stored::of(&published()[..size]).1.root(), bytes(root), "{size} leaves");
    }
}

/// Source: google/certificate-transparency, `merkle_tree_test` (paths, with indices from 0).
#[test]
fn published_inclusion_proofs_come_out() {
    let vectors: [(u64, u64, &[&str]); 4] = [
        (
            0,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (
            1,
            5,
            &[
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    let (stored, _) = Stored::of(&published());
    for (index, size, proof) in vectors {
        let proof: Vec<Hash> = proof.iter().map(|hash| bytes(hash)).collect();
        assert_eq!(prove_inclusion(&stored, index, size), Ok(Some(proof)), "{index} of {size}");
    }
}

/// Source: google/certificate-transparency, `merkle_tree_test` (snapshot consistency).
#[test]
fn published_consistency_proofs_come_out() {
    let vectors: [(u64, u64, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    let (stored, _) = Stored::of(&published());
    for (old, new, proof) in vectors {
        let proof: Vec<Hash> = proof.iter().map(|hash| bytes(hash)).collect();
        assert_eq!(prove_consistency(&stored, old, new), Ok(Some(proof)), "{old} to {new}");
    }
}

#[test]
fn all_proofs_of_small_trees_are_those_of_the_rfc_and_are_believed() {
    let all = leaves(40);
    let (stored, _) = Stored::of(&all);
    for size in 0..=all.len() {
        let root = naive_root(&all[..size]);
        let frontier = Frontier::of(&stored, size as u64).unwrap();
        assert_eq!((frontier.root(), frontier.size()), (root, size as u64));
        assert_eq!(frontier, Stored::of(&all[..size]).1, "made of stored nodes or leaf by leaf");
        for index in 0..size {
            let proof = prove_inclusion(&stored, index as u64, size as u64).unwrap().unwrap();
            assert_eq!(proof, naive_path(index, &all[..size]), "{index} of {size}");
            assert!(verify_inclusion(&all[index], index as u64, size as u64, &proof, &root));
        }
        assert_eq!(prove_inclusion(&stored, size as u64, size as u64), Ok(None));
        for old in 1..=size {
            let proof = prove_consistency(&stored, old as u64, size as u64).unwrap().unwrap();
            assert_eq!(proof, naive_subproof(old, &all[..size], true), "{old} to {size}");
            let old_root = naive_root(&all[..old]);
            assert!(verify_consistency((old as u64, &old_root), (size as u64, &root), &proof));
        }
    }
}

proptest! {
    /// No proof holds for another leaf, place, size or root, nor if any of it is changed, missing or added.
    #[test]
    fn no_other_claim_is_proved(
        size in 2_usize..200,
        choice in any::<(prop::sample::Index, prop::sample::Index, prop::sample::Index)>(),
        other in 0_u64..220,
    ) {
        let all = leaves(size);
        let (stored, frontier) = Stored::of(&all);
        let (root, index, old) = (frontier.root(), choice.0.index(size), 1 + choice.1.index(size - 1));
        let proof = prove_inclusion(&stored, index as u64, size as u64).unwrap().unwrap();
        let (leaf, at) = (&all[index], index as u64);
        prop_assert!(proof.len() <= PROOF_HASHES_MAX);
        prop_assert!(verify_inclusion(leaf, at, size as u64, &proof, &root));
        prop_assert!(!verify_inclusion(&leaf_hash(b"other"), at, size as u64, &proof, &root));
        prop_assert!(other == at || !verify_inclusion(leaf, other, size as u64, &proof, &root));
        prop_assert!(!verify_inclusion(leaf, at, size as u64, &proof, &leaf_hash(b"other")));
        prop_assert!(!verify_inclusion(leaf, at, size as u64, &proof[1..], &root));
        prop_assert!(!verify_inclusion(leaf, at, size as u64, &[proof.as_slice(), &[root]].concat(), &root));
        let mut changed = proof.clone();
        changed[choice.2.index(proof.len())][7] ^= 1;
        prop_assert!(!verify_inclusion(leaf, at, size as u64, &changed, &root));

        let old_root = naive_root(&all[..old]);
        let proof = prove_consistency(&stored, old as u64, size as u64).unwrap().unwrap();
        let (from, to) = ((old as u64, &old_root), (size as u64, &root));
        prop_assert!(proof.len() <= PROOF_HASHES_MAX);
        prop_assert!(verify_consistency(from, to, &proof));
        let mut rewritten = all.clone();
        rewritten[choice.2.index(old)] = leaf_hash(b"other");
        let (forged, forged_frontier) = Stored::of(&rewritten);
        let forged_proof = prove_consistency(&forged, old as u64, size as u64).unwrap().unwrap();
        prop_assert!(!verify_consistency(from, (size as u64, &forged_frontier.root()), &forged_proof));
        prop_assert!(!verify_consistency(from, to, &proof[1..]));
        prop_assert!(!verify_consistency(from, to, &[proof.as_slice(), &[root]].concat()));
        let mut changed = proof.clone();
        changed[choice.2.index(proof.len())][7] ^= 1;
        prop_assert!(!verify_consistency(from, to, &changed));
        prop_assert!(!verify_consistency(to, from, &proof));
    }

    /// Whatever comes as a proof, the check ends and says no.
    #[test]
    fn invented_proofs_prove_nothing(
        numbers in any::<[u64; 3]>(),
        shift in 0_u32..64,
        proof in prop::collection::vec(any::<Hash>(), 0..70),
        roots in any::<[Hash; 3]>(),
    ) {
        let [index, size, old] = numbers.map(|number| number >> shift);
        prop_assert!(!verify_inclusion(&roots[0], index, size, &proof, &roots[1]));
        prop_assert!(!verify_consistency((old, &roots[1]), (size, &roots[2]), &proof));
    }
}
