//! What a node writes down, and its bytes.
//!
//! # Format
//! The records of a batch follow each other. Numbers without a size are LEB128 in the shortest form, others big-endian.
//!
//! | field | bytes |
//! |---|---|
//! | kind | 1: start 1, update 2, end 3, drops 4, missed 5 |
//! | number | 1: the lowest byte of the record's number in the node's stream, so that an edit can be named |
//! | time | number: zigzag difference in µs from the record before, of the first from the batch's time |
//! | rest | by kind |
//!
//! | kind | rest |
//! |---|---|
//! | start | flow; flags (1); protocol (1); local address (4 or 16) and port (2); remote ones; peer (32); if a rule: its number and the filter (8); path |
//! | update | flow; flags (1); four counts; path if bit 0 |
//! | end | flow; reason (1); four counts |
//! | drops | flags (1); reason (1); packets; bytes; span in µs; peer (32) if bit 1; target if bit 2: protocol (1), source, destination (4 or 16 each), port (2) |
//! | missed | number of records |
//!
//! Flags: bit 0 inbound (update: there is a path), bit 1 there is a peer (drops), bit 2 there is a target (drops), bit 3 IPv6,
//! bits 4 and 5 what let it pass (start), bits 6 and 7 the kind of path. A direct path and one over a peer relay are a byte 4
//! or 6, the address and the port (2); one over a relay is the region's number.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_wire::key::NodeKey;

use crate::codec::{DecodeError, Reader, put_ip, put_socket, put_varint, unzigzag, zigzag};
use crate::time::Time;

/// The most bytes that a record takes.
pub const RECORD_BYTES_MAX: usize = 160;

/// Is one entry of a node's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When, by the node's clock.
    pub at: Time,
    /// What.
    pub event: Event,
}

/// Says what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A conversation was first seen.
    Start(Start),
    /// A conversation goes on.
    Update(Update),
    /// A conversation is over.
    End(End),
    /// Packets were dropped.
    Drops(Drops),
    /// The node could not write down this many records.
    Missed {
        /// How many.
        records: u64,
    },
}

/// Numbers the conversations of a node since its daemon started, in the order of their starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow(pub u64);

/// Describes a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Its number.
    pub flow: Flow,
    /// Who began.
    pub direction: Direction,
    /// IP protocol number.
    pub protocol: u8,
    /// The end on this node's side, which may be behind it (subnet router). For a ping the port is its identifier, for
    /// protocols without ports it is 0.
    pub local: SocketAddr,
    /// The end on the peer's side, of the same address family.
    pub remote: SocketAddr,
    /// The node at the other end of the tunnel.
    pub peer: NodeKey,
    /// Why it was let through.
    pub pass: Pass,
    /// How its packets go to the peer.
    pub path: Path,
}

/// Tells which way something goes, as seen by the node that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Into the tunnel; of a conversation: this side began it.
    Outbound,
    /// Out of the tunnel; of a conversation: the peer began it.
    Inbound,
}

/// Says why a conversation was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// This side opened it; the peer's filter decides.
    Opened,
    /// A rule allows it.
    Rule {
        /// The number of the first rule that does, from 0, in the order in which coordination sent them.
        rule: u32,
        /// The first bytes of a digest of these rules.
        filter: [u8; 8],
    },
    /// The node does not say.
    Unknown,
}

/// Says how packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// None is known yet.
    None,
    /// To this address of the peer.
    Direct(SocketAddr),
    /// Over the relay of this region.
    Relay(u16),
    /// Over another node that relays, at this address.
    PeerRelay(SocketAddr),
}

/// Says what has passed since a conversation began. It never becomes less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets into the tunnel.
    pub tx_packets: u64,
    /// Bytes of them, with their IP headers.
    pub tx_bytes: u64,
    /// Packets out of the tunnel.
    pub rx_packets: u64,
    /// Bytes of them, with their IP headers.
    pub rx_bytes: u64,
}

impl Counts {
    /// Tells whether none of these is less than in `before`.
    #[must_use]
    pub const fn is_at_least(&self, before: &Self) -> bool {
        self.tx_packets >= before.tx_packets
            && self.tx_bytes >= before.tx_bytes
            && self.rx_packets >= before.rx_packets
            && self.rx_bytes >= before.rx_bytes
    }
}

/// Says how far a conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// Which one.
    pub flow: Flow,
    /// What has passed.
    pub counts: Counts,
    /// The path, if it is another than was written last.
    pub path: Option<Path>,
}

/// Says that a conversation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Which one.
    pub flow: Flow,
    /// Why.
    pub reason: EndReason,
    /// What has passed in all.
    pub counts: Counts,
}

/// Sums up packets that were dropped for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drops {
    /// Why.
    pub reason: DropReason,
    /// Which way they went.
    pub direction: Direction,
    /// The peer that they came from or should go to, if there is one.
    pub peer: Option<NodeKey>,
    /// What they were about; none if they were about too much to list.
    pub target: Option<Target>,
    /// How many.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How long before the record's time the first came; whole microseconds.
    pub span: Duration,
}

/// Says what a dropped packet wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// IP protocol number.
    pub protocol: u8,
    /// The sender.
    pub source: IpAddr,
    /// The receiver, of the same address family.
    pub destination: IpAddr,
    /// The receiver's port; 0 without ports.
    pub port: u16,
}

/// Makes an enum whose variants have numbers that never change, and the way back.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All there are, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the number that stands for it in records.
            #[must_use]
            pub const fn number(self) -> u8 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }

            /// Returns the word for it.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// Says why a conversation is over.
    EndReason {
        /// Both sides, or one with a reset, have ended it.
        Closed = 1, "closed";
        /// Nothing passed for as long as its protocol lets it rest.
        Idle = 2, "idle";
        /// The node had to forget it for another.
        Forgotten = 3, "forgotten";
        /// New rules do not allow it any more.
        Refused = 4, "refused";
        /// Its ports are used for another now.
        Replaced = 5, "replaced";
        /// The node stops.
        Shutdown = 6, "shutdown";
    }
}

numbered! {
    /// Says why packets were dropped.
    DropReason {
        /// No rule allows it.
        NoRule = 1, "no-rule";
        /// Part of a conversation that is not known.
        NoFlow = 2, "no-flow";
        /// The peer may only answer.
        Jailed = 3, "jailed";
        /// To an address that is not this node's to take packets for.
        NotLocal = 4, "not-local";
        /// From or to an address that no packet between nodes can have.
        BadAddress = 5, "bad-address";
        /// To a group of hosts.
        Multicast = 6, "multicast";
        /// To an address that is valid on one link only.
        LinkLocal = 7, "link-local";
        /// A piece of a packet whose first piece did not pass.
        Fragment = 8, "fragment";
        /// An ICMP message about nothing known.
        Icmp = 9, "icmp";
        /// A protocol that only the daemon may speak.
        Reserved = 10, "reserved";
        /// Not a sound IP packet.
        Malformed = 11, "malformed";
        /// No peer has the destination.
        NoPeer = 12, "no-peer";
        /// The source is not an address of the peer that sent it.
        WrongSource = 13, "wrong-source";
        /// For want of room, or of a way to the peer.
        Undelivered = 14, "undelivered";
        /// Anything else.
        Other = 15, "other";
    }
}

const START: u8 = 1;
const UPDATE: u8 = 2;
const END: u8 = 3;
const DROPS: u8 = 4;
const MISSED: u8 = 5;

/// Of start and drops: inbound. Of update: there is a path.
const FIRST: u8 = 0x01;
const HAS_PEER: u8 = 0x02;
const HAS_TARGET: u8 = 0x04;
const V6: u8 = 0x08;
const PASS: u32 = 4;
const PATH: u32 = 6;

impl Record {
    /// Tells whether the record can be written: pairs of addresses are of one family.
    pub(crate) fn is_sound(&self) -> bool {
        match self.event {
            Event::Start(start) => start.local.is_ipv4() == start.remote.is_ipv4(),
            Event::Drops(Drops { target: Some(target), .. }) => target.source.is_ipv4() == target.destination.is_ipv4(),
            Event::Drops(_) | Event::Update(_) | Event::End(_) | Event::Missed { .. } => true,
        }
    }

    /// Appends the record, whose number in the stream is `number`, and which follows one of time `before`.
    pub(crate) fn encode(&self, number: u64, before: Time, out: &mut Vec<u8>) {
        let (kind, mut flags) = match &self.event {
            Event::Start(start) => {
                let pass = match start.pass {
                    Pass::Opened => 0,
                    Pass::Rule { .. } => 1,
                    Pass::Unknown => 2,
                };
                let v6 = if start.local.is_ipv6() { V6 } else { 0 };
                (START, pass << PASS | start.path.kind() << PATH | v6)
            }
            Event::Update(update) => (UPDATE, update.path.map_or(0, |path| FIRST | path.kind() << PATH)),
            Event::End(_) => (END, 0),
            Event::Drops(drops) => {
                let peer = if drops.peer.is_some() { HAS_PEER } else { 0 };
                let v6 = |target: Target| if target.source.is_ipv6() { V6 } else { 0 };
                (DROPS, peer | drops.target.map_or(0, |target| HAS_TARGET | v6(target)))
            }
            Event::Missed { .. } => (MISSED, 0),
        };
        if let Event::Start(Start { direction: Direction::Inbound, .. })
        | Event::Drops(Drops { direction: Direction::Inbound, .. }) = self.event
        {
            flags |= FIRST;
        }
        let [low, ..] = number.to_le_bytes();
        out.extend([kind, low]);
        put_varint(out, zigzag(self.at.as_micros().wrapping_sub(before.as_micros()).cast_signed()));
        match &self.event {
            Event::Start(start) => start.encode(flags, out),
            Event::Update(update) => {
                put_varint(out, update.flow.0);
                out.push(flags);
                update.counts.encode(out);
                update.path.iter().for_each(|path| path.encode(out));
            }
            Event::End(end) => {
                put_varint(out, end.flow.0);
                out.push(end.reason.number());
                end.counts.encode(out);
            }
            Event::Drops(drops) => drops.encode(flags, out),
            Event::Missed { records } => put_varint(out, *records),
        }
    }

    /// Reads a record behind one of time `before`, and the lowest byte of its number.
    pub(crate) fn decode(reader: &mut Reader<'_>, before: Time) -> Result<(Self, u8), DecodeError> {
        let kind = reader.byte("kind")?;
        let number = reader.byte("number")?;
        let difference = unzigzag(reader.varint("time")?).cast_unsigned();
        let at = Time::from_micros(before.as_micros().wrapping_add(difference));
        let event = match kind {
            START => Event::Start(Start::decode(reader)?),
            UPDATE => {
                let flow = Flow(reader.varint("flow")?);
                let flags = flags(reader, FIRST, PATH)?;
                let counts = Counts::decode(reader)?;
                let path = match (flags & FIRST != 0, flags >> PATH) {
                    (true, kind) => Some(Path::decode(kind, reader)?),
                    (false, 0) => None,
                    (false, _) => return Err(DecodeError::Value { field: "flags", value: flags.into() }),
                };
                Event::Update(Update { flow, counts, path })
            }
            END => {
                let flow = Flow(reader.varint("flow")?);
                let number = reader.byte("reason")?;
                let reason = EndReason::from_number(number)
                    .ok_or(DecodeError::Value { field: "reason", value: number.into() })?;
                Event::End(End { flow, reason, counts: Counts::decode(reader)? })
            }
            DROPS => Event::Drops(Drops::decode(reader)?),
            MISSED => Event::Missed { records: reader.varint("records")? },
            other => return Err(DecodeError::Value { field: "kind", value: other.into() }),
        };
        Ok((Self { at, event }, number))
    }
}

/// Reads flags of which those in `known`, and all from bit `from` on, may be set.
fn flags(reader: &mut Reader<'_>, known: u8, from: u32) -> Result<u8, DecodeError> {
    let flags = reader.byte("flags")?;
    let known = known | u8::MAX.checked_shl(from).unwrap_or(0);
    if flags & !known == 0 { Ok(flags) } else { Err(DecodeError::Value { field: "flags", value: flags.into() }) }
}

const fn direction(flags: u8) -> Direction {
    if flags & FIRST == 0 { Direction::Outbound } else { Direction::Inbound }
}

impl Start {
    fn encode(&self, flags: u8, out: &mut Vec<u8>) {
        put_varint(out, self.flow.0);
        out.extend([flags, self.protocol]);
        // Both ends have the family that the flags tell, see `Record::is_sound`.
        for end in [self.local, self.remote] {
            put_ip(out, end.ip());
            out.extend(end.port().to_be_bytes());
        }
        out.extend(self.peer.as_bytes());
        if let Pass::Rule { rule, filter } = self.pass {
            put_varint(out, rule.into());
            out.extend(filter);
        }
        self.path.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flow = Flow(reader.varint("flow")?);
        let flags = flags(reader, FIRST | V6, PASS)?;
        let protocol = reader.byte("protocol")?;
        let is_v6 = flags & V6 != 0;
        let local = SocketAddr::new(reader.ip(is_v6, "local address")?, reader.u16("local port")?);
        let remote = SocketAddr::new(reader.ip(is_v6, "remote address")?, reader.u16("remote port")?);
        let peer = NodeKey::from_bytes(reader.array("peer")?);
        let pass = match flags >> PASS & 3 {
            0 => Pass::Opened,
            1 => Pass::Rule { rule: reader.small("rule")?, filter: reader.array("filter")? },
            2 => Pass::Unknown,
            _ => return Err(DecodeError::Value { field: "flags", value: flags.into() }),
        };
        let path = Path::decode(flags >> PATH, reader)?;
        Ok(Self { flow, direction: direction(flags), protocol, local, remote, peer, pass, path })
    }
}

impl Path {
    const fn kind(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Direct(_) => 1,
            Self::Relay(_) => 2,
            Self::PeerRelay(_) => 3,
        }
    }

    fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Direct(address) | Self::PeerRelay(address) => put_socket(out, address),
            Self::Relay(region) => put_varint(out, region.into()),
        }
    }

    fn decode(kind: u8, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            0 => Self::None,
            1 => Self::Direct(reader.socket("path")?),
            2 => Self::Relay(reader.small("region")?),
            _ => Self::PeerRelay(reader.socket("path")?),
        })
    }
}

impl Counts {
    fn encode(&self, out: &mut Vec<u8>) {
        [self.tx_packets, self.tx_bytes, self.rx_packets, self.rx_bytes]
            .into_iter()
            .for_each(|count| put_varint(out, count));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut next = || reader.varint("count");
        Ok(Self { tx_packets: next()?, tx_bytes: next()?, rx_packets: next()?, rx_bytes: next()? })
    }
}

impl Drops {
    fn encode(&self, flags: u8, out: &mut Vec<u8>) {
        out.extend([flags, self.reason.number()]);
        put_varint(out, self.packets);
        put_varint(out, self.bytes);
        put_varint(out, u64::try_from(self.span.as_micros()).unwrap_or(u64::MAX));
        self.peer.iter().for_each(|peer| out.extend(peer.as_bytes()));
        if let Some(target) = self.target {
            out.push(target.protocol);
            put_ip(out, target.source);
            put_ip(out, target.destination);
            out.extend(target.port.to_be_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = flags(reader, FIRST | HAS_PEER | HAS_TARGET | V6, u8::BITS)?;
        let is_v6 = flags & V6 != 0;
        if is_v6 && flags & HAS_TARGET == 0 {
            return Err(DecodeError::Value { field: "flags", value: flags.into() });
        }
        let number = reader.byte("reason")?;
        let reason =
            DropReason::from_number(number).ok_or(DecodeError::Value { field: "reason", value: number.into() })?;
        let (packets, bytes) = (reader.varint("packets")?, reader.varint("bytes")?);
        let span = Duration::from_micros(reader.varint("span")?);
        let peer = if flags & HAS_PEER == 0 { None } else { Some(NodeKey::from_bytes(reader.array("peer")?)) };
        let target = if flags & HAS_TARGET == 0 {
            None
        } else {
            Some(Target {
                protocol: reader.byte("protocol")?,
                source: reader.ip(is_v6, "source")?,
                destination: reader.ip(is_v6, "destination")?,
                port: reader.u16("port")?,
            })
        };
        Ok(Self { reason, direction: direction(flags), peer, target, packets, bytes, span })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::record;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_reasons_lead_back() {
        assert!(EndReason::ALL.iter().all(|one| EndReason::from_number(one.number()) == Some(*one)));
        assert!(DropReason::ALL.iter().all(|one| DropReason::from_number(one.number()) == Some(*one)));
    }

    proptest! {
        #[test]
        fn records_come_back(record in record(), number in any::<u64>(), before in any::<u64>()) {
            let before = Time::from_micros(before);
            let mut out = Vec::new();
            record.encode(number, before, &mut out);
            prop_assert!(out.len() <= RECORD_BYTES_MAX, "{} bytes", out.len());
            let mut reader = Reader(&out);
            prop_assert_eq!(Record::decode(&mut reader, before), Ok((record, number.to_le_bytes()[0])));
            prop_assert_eq!(reader.end(), Ok(()));
            for length in 0..out.len() {
                let cut = Record::decode(&mut Reader(&out[..length]), before);
                prop_assert!(matches!(cut, Err(DecodeError::Truncated { .. })), "{:?}", cut);
            }
        }

        /// One form for each record: no two bytes strings read the same.
        #[test]
        fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 1_u8..6) {
            let bytes = [&[kind], bytes.as_slice()].concat();
            let before = Time::from_micros(5);
            let mut reader = Reader(&bytes);
            if let Ok((record, number)) = Record::decode(&mut reader, before) {
                let mut out = Vec::new();
                record.encode(number.into(), before, &mut out);
                prop_assert_eq!(&bytes[..bytes.len() - reader.0.len()], &out);
            }
        }
    }
}
