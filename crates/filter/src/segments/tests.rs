use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::packet::Packet;
use model::Shape;

mod model;

fn kind_of(packet: &[u8]) -> SegmentKind {
    if model::protocol(packet) == 6 { SegmentKind::Tcp } else { SegmentKind::Udp }
}

fn split(packet: &[u8], segment: u16) -> Vec<Vec<u8>> {
    let split = Split::new(&Packet::parse(packet).unwrap(), kind_of(packet), segment).unwrap();
    let mut room = vec![0xee; packet.len()];
    let packets = (0..split.count()).map(|number| {
        let length = split.write(number, &mut room).unwrap();
        assert_eq!(length, split.length(number));
        room[..length].to_vec()
    });
    packets.collect()
}

/// What comes out: the packet with its headers, and into what it is to be cut.
type Out = (Option<Joined>, Vec<u8>);

fn join(packets: &[Vec<u8>]) -> Vec<Out> {
    let mut join = Join::new(true, true);
    let mut buffer = packets.concat();
    let mut at = 0;
    for packet in packets {
        assert!(!join.is_full());
        join.push(&buffer, at..at + packet.len());
        at += packet.len();
    }
    let mut out = Vec::new();
    join.flush(&mut buffer, |joined, buffer, parts| {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &buffer[part.clone()]).collect();
        out.push((joined.copied(), parts.concat()));
    });
    out
}

/// Cuts what came out with the slow model.
fn cut_again(out: &[Out]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (joined, bytes) in out {
        match joined {
            None => packets.push(bytes.clone()),
            Some(joined) => {
                assert!(model::is_begun(bytes));
                assert_eq!(usize::from(joined.headers), model::data_at(bytes));
                assert_eq!(usize::from(joined.transport_at), model::transport_at(bytes));
                let at = model::transport_at(bytes);
                assert_eq!(joined.cwr, joined.kind == SegmentKind::Tcp && bytes[at + 13] & CWR != 0);
                assert_eq!((joined.kind, joined.is_v6), (kind_of(bytes), model::is_v6(bytes)));
                packets.extend(model::cut(bytes, joined.segment.into()));
            }
        }
    }
    packets
}

/// Packets by flow, in their order. Identifications that mean nothing are made equal.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        let mut packet = packet.clone();
        let at = model::transport_at(&packet);
        let flow = [&[packet[0] >> 4, model::protocol(&packet)], &packet[at..at + 4]].concat();
        if !model::is_v6(&packet) && packet[6] & 0x40 != 0 {
            model::set_short(&mut packet, 4, 0);
            model::set_short(&mut packet, 10, 0);
        }
        flows.entry(flow).or_default().push(packet);
    }
    flows
}

prop_compose! {
    fn a_super_packet()(
        v6: bool, tcp: bool, sequence: u32, id: u16, dont_fragment: bool, class: u8,
        flags in prop_oneof![Just(ACK), Just(ACK | PSH), Just(ACK | FIN | PSH), Just(ACK | CWR | ECE), Just(ACK | ECE), Just(ACK | CWR | PSH)],
        options in 0_u8..=10, fill: u8,
        segment in 1_u16..1400, count in 1_usize..=64, last in 0_u16..1400,
    ) -> (Vec<u8>, u16) {
        let full = (65_535 - 120) / usize::from(segment);
        let data = usize::from(segment) * (count.min(full) - 1) + usize::from(last % segment + 1);
        let window = fill;
        let shape = Shape { v6, tcp, flow: 1, sequence, id, dont_fragment, flags, window, class, options, data, fill };
        (shape.packet(), segment)
    }
}

prop_compose! {
    /// Near to each other, so that many go on where another ends, and many nearly do.
    fn a_packet()(
        v6 in prop::bool::weighted(0.2), tcp in prop::bool::weighted(0.8), flow in 0_u8..2,
        step in 0_u32..5, id in 0_u16..5, dont_fragment in prop::bool::weighted(0.8),
        flags in prop_oneof![8 => Just(ACK), 1 => Just(ACK | PSH), 1 => any::<u8>()],
        window in prop_oneof![8 => Just(0_u8), 1 => Just(1)], class in prop_oneof![8 => Just(0_u8), 1 => Just(3)],
        options in prop_oneof![8 => Just(3_u8), 1 => Just(0)],
        data in prop_oneof![8 => Just(100_usize), 1 => Just(99), 1 => Just(0), 1 => Just(200)],
        break_at in prop_oneof![9 => Just(None), 1 => any::<u16>().prop_map(Some)],
    ) -> (Shape, Option<u16>) {
        let shape = Shape {
            v6, tcp, flow, sequence: step, id, dont_fragment, flags, window, class, options, data, fill: 7,
        };
        (shape, break_at)
    }
}

proptest! {
    #[test]
    fn a_super_packet_is_cut_as_by_the_book((packet, segment) in a_super_packet()) {
        prop_assert_eq!(split(&packet, segment), model::cut(&packet, segment.into()));
    }

    /// Cut and joined again it is what it was, in one piece.
    #[test]
    fn what_was_cut_is_joined_again((packet, segment) in a_super_packet()) {
        let pieces = split(&packet, segment);
        let out = join(&pieces);
        prop_assert_eq!(out.len(), 1);
        let (joined, bytes) = &out[0];
        if pieces.len() == 1 {
            prop_assert_eq!(joined, &None);
            prop_assert_eq!(bytes, &packet);
        } else {
            prop_assert_eq!(joined.unwrap().segment, segment);
            prop_assert!(model::is_begun(bytes));
            let mut bytes = bytes.clone();
            model::seal(&mut bytes);
            prop_assert_eq!(bytes, packet);
        }
    }

    /// Whatever comes in which order, what the host cuts out is for each flow what came.
    #[test]
    fn joining_changes_nothing_that_a_receiver_can_see(
        steps in proptest::collection::vec(a_packet(), 1..60),
        mixed: bool,
    ) {
        let mut sequences = BTreeMap::<_, (u32, u16)>::new();
        let mut packets = Vec::new();
        for (mut shape, break_at) in steps {
            // Most go on where the flow stands; a step of 4 is a gap, one of 3 a repetition.
            let (sequence, id) = sequences.entry((shape.v6, shape.tcp, shape.flow)).or_default();
            let there = match shape.sequence {
                4 => sequence.wrapping_add(1),
                3 => sequence.wrapping_sub(100),
                _ => *sequence,
            };
            shape.sequence = there;
            *sequence = there.wrapping_add(u32::try_from(shape.data).unwrap());
            shape.id = if shape.id == 4 { *id + 7 } else { *id };
            *id += 1;
            if !mixed {
                (shape.v6, shape.tcp, shape.flow) = (false, true, 0);
            }
            let mut packet = shape.packet();
            if let Some(at) = break_at {
                // Somewhere behind the ports: the flow stays what it is.
                let from = model::transport_at(&packet) + 4;
                let length = packet.len();
                packet[from + usize::from(at) % (length - from)] ^= 0x10;
            }
            packets.push(packet);
        }
        let again = cut_again(&join(&packets));
        prop_assert_eq!(by_flow(&again), by_flow(&packets));
    }

    #[test]
    fn nothing_panics_and_nothing_is_lost(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..90), 0..40),
        segment: u16, start: u16, offset: u16,
    ) {
        let lengths: usize = packets.iter().map(Vec::len).sum();
        let out = join(&packets);
        prop_assert_eq!(out.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), lengths);
        for mut packet in packets {
            finish_checksum(&mut packet, start, offset);
            finish_checksum(&mut packet, start % 60, offset % 20);
            if let Ok(parsed) = Packet::parse(&packet) {
                for kind in [SegmentKind::Tcp, SegmentKind::Udp] {
                    if let Ok(split) = Split::new(&parsed, kind, segment) {
                        prop_assert!((0..split.count()).all(|number| split.write(number, &mut [0; 90]).is_some()));
                        prop_assert_eq!(split.write(0, &mut []), None);
                    }
                }
            }
        }
    }

    #[test]
    fn a_checksum_that_was_begun_is_finished(v6: bool, tcp: bool, data in 0_usize..300, fill: u8) {
        let shape = Shape {
            v6, tcp, flow: 1, sequence: 9, id: 9, dont_fragment: true, flags: ACK, window: 0, class: 0, options: 0, data, fill,
        };
        let sound = shape.packet();
        let mut packet = sound.clone();
        let at = model::transport_at(&packet);
        let offset = if tcp { 16 } else { 6 };
        model::set_short(&mut packet, at + offset, 0);
        let sum = model::sum(&[&packet[at..]]);
        // Sound is: pseudo header + the rest = 0xffff − checksum. So the pseudo header's sum follows.
        let pseudo = (0xffff - model::short(&sound, at + offset) + 0xffff - sum) % 0xffff;
        model::set_short(&mut packet, at + offset, pseudo);
        prop_assert!(finish_checksum(&mut packet, at.try_into().unwrap(), offset.try_into().unwrap()));
        prop_assert!(model::is_sound(&packet));
    }
}

#[test]
fn what_must_not_be_cut_is_not() {
    let shape = Shape {
        v6: false,
        tcp: true,
        flow: 1,
        sequence: 1,
        id: 1,
        dont_fragment: true,
        flags: ACK,
        window: 1,
        class: 0,
        options: 0,
        data: 100,
        fill: 0,
    };
    let refused = |packet: &[u8], kind, segment| Split::new(&Packet::parse(packet).unwrap(), kind, segment).err();
    assert_eq!(refused(&shape.packet(), SegmentKind::Tcp, 10), None);
    assert_eq!(refused(&shape.packet(), SegmentKind::Udp, 10), Some(SplitError::Protocol));
    assert_eq!(refused(&shape.packet(), SegmentKind::Tcp, 0), Some(SplitError::Size));
    let opening = Shape { flags: SYN, ..shape.clone() };
    assert_eq!(refused(&opening.packet(), SegmentKind::Tcp, 10), Some(SplitError::Header));
    let mut fragment = shape.packet();
    fragment[6] = 0x20;
    assert_eq!(refused(&fragment, SegmentKind::Tcp, 10), Some(SplitError::Protocol));
    let mut headless = shape.packet();
    headless[32] = 0xf0;
    headless.truncate(50);
    model::set_short(&mut headless, 2, 50);
    assert_eq!(refused(&headless, SegmentKind::Tcp, 10), Some(SplitError::Header));
}

/// A fragment of a flow, or what hides behind options, may be followed by what continues the flow.
#[test]
fn what_belongs_to_an_unknown_flow_is_overtaken_by_none() {
    let packet = |sequence| {
        let (v6, tcp, dont_fragment, flags) = (false, true, true, ACK);
        Shape {
            v6,
            tcp,
            flow: 1,
            sequence,
            id: 1,
            dont_fragment,
            flags,
            window: 1,
            class: 0,
            options: 0,
            data: 100,
            fill: 0,
        }
        .packet()
    };
    let mut fragment = packet(1);
    fragment[6] = 0x20;
    let out = join(&[packet(1), fragment.clone(), packet(101), packet(201)]);
    let shapes: Vec<_> = out.iter().map(|(joined, bytes)| (joined.is_some(), bytes.len())).collect();
    assert_eq!(shapes, [(false, 140), (false, 140), (true, 240)]);
    assert_eq!(out[1].1, fragment);
}

#[test]
fn a_host_that_takes_no_super_packets_gets_none() {
    let shape = Shape {
        v6: false,
        tcp: true,
        flow: 1,
        sequence: 1,
        id: 1,
        dont_fragment: true,
        flags: ACK,
        window: 1,
        class: 0,
        options: 0,
        data: 1000,
        fill: 0,
    };
    let packets = model::cut(&shape.packet(), 100);
    let mut buffer = packets.concat();
    for stopped in [true, false] {
        let mut join = Join::new(stopped, true);
        if stopped {
            join.stop();
        }
        for at in 0..10 {
            join.push(&buffer, at * 140..(at + 1) * 140);
        }
        let mut count = 0;
        join.flush(&mut buffer, |joined, _, parts| {
            assert!(joined.is_none() && parts.len() == 1);
            count += 1;
        });
        assert_eq!(count, 10);
    }
}
