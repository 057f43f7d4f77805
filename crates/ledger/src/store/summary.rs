//! What may be in a frame: enough to pass over most of those in which nothing is that somebody looks for.

use std::collections::HashSet;
use std::net::IpAddr;

use warren_wire::key::NodeKey;

use crate::batch::Batch;
use crate::key::LogKey;
use crate::query::Kinds;
use crate::record::{Direction, Event, Record};
use crate::time::Time;

/// The most bytes of [`Summary::filter`].
pub(super) const FILTER_BYTES_MAX: usize = 4096;

/// Bits for each thing: with [`PROBES`], one in a hundred is taken for one that is there.
const BITS: usize = 10;
const PROBES: u64 = 7;

/// Is something that a record can be found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// Who wrote it.
    Writer(&'a LogKey),
    /// The node at the other end.
    Peer(&'a NodeKey),
    /// An address of either end.
    Address(IpAddr),
    /// The port to which it was begun.
    Port(u16),
}

/// Sums up the records of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) earliest: Time,
    pub(super) latest: Time,
    pub(super) kinds: Kinds,
    /// A Bloom filter of items.
    pub(super) filter: Vec<u8>,
}

impl Summary {
    /// Sums up batches; of one that cannot be read, that anything may be in it.
    pub(super) fn of(batches: &[Batch]) -> Self {
        let (mut earliest, mut latest, mut kinds) = (Time::from_micros(u64::MAX), Time::default(), Kinds::NONE);
        let mut hashes = HashSet::new();
        for batch in batches {
            hashes.insert(hash(&Item::Writer(&batch.header().key)));
            let Ok(records) = batch.read() else {
                let (earliest, latest) = (Time::default(), Time::from_micros(u64::MAX));
                return Self { earliest, latest, kinds: Kinds::ALL, filter: vec![u8::MAX] };
            };
            for (record, _) in &records {
                earliest = earliest.min(record.at);
                latest = latest.max(record.at);
                kinds = kinds | Kinds::of(&record.event);
                each_item(record, |item| {
                    hashes.insert(hash(&item));
                });
            }
        }
        let mut filter = vec![0; (hashes.len() * BITS).div_ceil(8).clamp(1, FILTER_BYTES_MAX)];
        for hash in hashes {
            for bit in probes(hash, filter.len()) {
                if let Some(byte) = filter.get_mut(bit / 8) {
                    *byte |= 1 << (bit % 8);
                }
            }
        }
        Self { earliest, latest, kinds, filter }
    }
}

/// Tells whether an item may have been put into a filter.
pub(crate) fn may_hold(filter: &[u8], item: &Item<'_>) -> bool {
    probes(hash(item), filter.len()).all(|bit| filter.get(bit / 8).is_none_or(|byte| byte & 1 << (bit % 8) != 0))
}

fn each_item(record: &Record, mut with: impl FnMut(Item<'_>)) {
    match &record.event {
        Event::Start(start) => {
            let to = if start.direction == Direction::Outbound { start.remote } else { start.local };
            with(Item::Peer(&start.peer));
            with(Item::Address(start.local.ip()));
            with(Item::Address(start.remote.ip()));
            with(Item::Port(to.port()));
        }
        Event::Drops(drops) => {
            drops.peer.iter().for_each(|peer| with(Item::Peer(peer)));
            if let Some(target) = &drops.target {
                with(Item::Address(target.source));
                with(Item::Address(target.destination));
                with(Item::Port(target.port));
            }
        }
        Event::Update(_) | Event::End(_) | Event::Missed { .. } => {}
    }
}

/// Returns the bits of an item. One that is made to meet another's costs a look into a frame, and hides nothing.
fn probes(hash: u64, bytes: usize) -> impl Iterator<Item = usize> {
    let bits = (bytes as u64 * 8).max(1);
    let step = (hash >> 32) | 1;
    (0..PROBES).map(move |probe| usize::try_from(hash.wrapping_add(probe.wrapping_mul(step)) % bits).unwrap_or(0))
}

/// Hashes an item: FNV-1a, then the last step of SplitMix64, which moves every bit. It is on disk, so it never changes.
fn hash(item: &Item<'_>) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let of = |kind: u8, bytes: &[u8]| bytes.iter().fold(fnv(0xcbf2_9ce4_8422_2325, &kind), fnv);
    let mut hash = match item {
        Item::Writer(key) => of(1, key.as_bytes()),
        Item::Peer(key) => of(2, key.as_bytes()),
        Item::Address(IpAddr::V4(ip)) => of(3, &ip.octets()),
        Item::Address(IpAddr::V6(ip)) => of(4, &ip.octets()),
        Item::Port(port) => of(5, &port.to_be_bytes()),
    };
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{end, secret, start};
    use crate::{Writer, testing::at};

    /// Of 1,000 that are there all are found; of 10,000 that are not, few.
    #[test]
    fn what_is_there_is_found_and_little_else() {
        let peers = |from: u32, to: u32| {
            (from..to).map(|number| {
                let mut key = [7; 32];
                key[..4].copy_from_slice(&number.to_be_bytes());
                NodeKey::from_bytes(key)
            })
        };
        let mut writer = Writer::new(secret(1), at(0), [0; 32]);
        let batches: Vec<Batch> = peers(0, 1000)
            .zip(0..)
            .map(|(peer, flow)| {
                let mut record = start(flow, 0);
                if let Event::Start(start) = &mut record.event {
                    start.peer = peer;
                }
                writer.seal(&[record], at(0)).unwrap()
            })
            .collect();
        let summary = Summary::of(&batches);
        assert!(peers(0, 1000).all(|peer| may_hold(&summary.filter, &Item::Peer(&peer))));
        let wrong = peers(1000, 11_000).filter(|peer| may_hold(&summary.filter, &Item::Peer(peer))).count();
        assert!(wrong < 300, "{wrong} of 10,000");
        assert!(may_hold(&summary.filter, &Item::Writer(&secret(1).public())));
        assert!(may_hold(&summary.filter, &Item::Port(443)) && !may_hold(&summary.filter, &Item::Port(50_000)));
    }

    #[test]
    fn times_and_kinds_are_those_of_the_records() {
        let mut writer = Writer::new(secret(1), at(0), [0; 32]);
        let batch = writer.seal(&[start(0, 50), end(0, 20, 1)], at(100)).unwrap();
        let summary = Summary::of(&[batch]);
        assert_eq!((summary.earliest, summary.latest, summary.kinds), (at(20), at(50), Kinds::START | Kinds::END));
    }
}
