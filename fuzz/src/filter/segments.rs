//! Super-packets, against the slow model of the tests beside the code.

use std::collections::BTreeMap;

use warren_filter::Packet;
use warren_filter::segments::{Join, SegmentKind, Split, finish_checksum};

use crate::input::Input;
use model::Shape;

#[path = "../../../crates/filter/src/segments/tests/model.rs"]
mod model;

/// Reads `data`, behind four bytes that say how, as a super-packet of the host and cuts it.
pub fn split(data: &[u8]) {
    let mut input = Input::new(data);
    let segment = u16::from_be_bytes([input.byte(), input.byte()]);
    let (start, offset) = (input.byte(), input.byte());
    let bytes = input.rest();
    let mut begun = bytes.to_vec();
    if finish_checksum(&mut begun, start.into(), offset.into()) {
        assert_eq!(begun.len(), bytes.len());
    }
    let Ok(packet) = Packet::parse(bytes) else { return };
    for kind in [SegmentKind::Tcp, SegmentKind::Udp] {
        let Ok(split) = Split::new(&packet, kind, segment) else { continue };
        let expected = model::cut(packet.bytes(), segment.into());
        assert_eq!(split.count(), expected.len());
        let mut room = vec![0; bytes.len()];
        for (number, expected) in expected.iter().enumerate() {
            let length = split.write(number, &mut room).expect("a piece is no longer than the whole");
            assert_eq!(&room[..length], expected);
            assert!(model::is_sound(expected));
        }
    }
}

/// Takes packets from `data`, most of which nearly go on where another ends, joins them, and demands that the slow model
/// cuts the same packets out again, in the same order for each flow.
pub fn join(data: &[u8]) {
    let mut input = Input::new(data);
    let mut packets = Vec::new();
    let mut state = BTreeMap::<_, (u32, u16)>::new();
    while !input.is_empty() && packets.len() < 200 {
        let ends = input.byte();
        let (v6, tcp, flow) = (ends & 1 != 0, ends & 2 == 0, ends >> 2 & 1);
        let (sequence, id) = state.entry((v6, tcp, flow)).or_default();
        let odd = input.byte();
        let shape = Shape {
            v6,
            tcp,
            flow,
            sequence: if odd & 1 != 0 { sequence.wrapping_add(u32::from(input.byte())) } else { *sequence },
            id: if odd & 2 != 0 { input.byte().into() } else { *id },
            dont_fragment: ends & 8 == 0,
            flags: if odd & 4 != 0 { input.byte() } else { 0x10 },
            window: if odd & 8 != 0 { input.byte() } else { 1 },
            class: if odd & 16 != 0 { input.byte() } else { 0 },
            options: if odd & 32 != 0 { input.byte() % 11 } else { 0 },
            data: if odd & 64 != 0 { input.byte().into() } else { 40 },
            fill: 1,
        };
        *sequence = shape.sequence.wrapping_add(u32::try_from(shape.data).expect("small"));
        *id = shape.id.wrapping_add(1);
        let mut packet = shape.packet();
        if odd & 128 != 0 {
            let (from, length) = (model::transport_at(&packet) + 4, packet.len());
            packet[from + usize::from(input.byte()) % (length - from)] ^= input.byte();
        }
        packets.push(packet);
    }

    let mut join = Join::new(true, true);
    let mut buffer = packets.concat();
    let mut at = 0;
    for packet in &packets {
        join.push(&buffer, at..at + packet.len());
        at += packet.len();
    }
    let mut again = Vec::new();
    join.flush(&mut buffer, |joined, buffer, parts| {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &buffer[part.clone()]).collect();
        let bytes = parts.concat();
        match joined {
            None => again.push(bytes),
            Some(joined) => {
                assert!(model::is_begun(&bytes));
                again.extend(model::cut(&bytes, joined.segment.into()));
            }
        }
    });
    assert_eq!(by_flow(&again), by_flow(&packets));
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
