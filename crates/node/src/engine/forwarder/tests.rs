#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_filter::tsmp::Message;
use warren_filter::{Filter, FilterInput, PrefixTable, Shields};
use warren_ledger::EndReason;
use warren_ledger::recorder::What;
use warren_wg::{Event, Origin, Tunnels};
use warren_wire::control::{FilterRule, NetPortRange, PortRange};
use warren_wire::key::{NodeKey, NodeSecret};

use super::waiting::PER_PEER;
use super::*;

const ALPHA: [u8; 4] = [100, 64, 0, 1];
const BETA: [u8; 4] = [100, 64, 0, 2];
const GAMMA: [u8; 4] = [100, 64, 0, 3];
/// Behind beta.
const SUBNET: &str = "10.7.0.0/16";

/// One node: its worker's side and its decision side.
struct Side {
    forwarder: Forwarder,
    snapshot: Snapshot,
    table: Arc<SessionTable>,
    tunnels: Tunnels,
    slots: Vec<Arc<PeerSlot>>,
}

fn secret(number: u8) -> NodeSecret {
    NodeSecret::from_bytes([number; 32])
}

fn key(number: u8) -> NodeKey {
    secret(number).public()
}

/// Lets the hosts of `from` open TCP to port 80 of `to`, and speak UDP to all its ports.
fn rules(from: &[&str], to: [u8; 4]) -> Vec<FilterRule> {
    let destination = |first, last| NetPortRange {
        ip: IpAddr::from(to).to_string(),
        ports: PortRange { first, last },
        ..NetPortRange::default()
    };
    let rule = |protocol, ports| FilterRule {
        src_ips: from.iter().map(|&text| text.to_owned()).collect(),
        dst_ports: vec![ports],
        ip_proto: vec![protocol],
        ..FilterRule::default()
    };
    vec![rule(6, destination(80, 80)), rule(17, destination(0, 65535))]
}

impl Side {
    /// Makes the node with key `number` and address `own` that knows these peers and the prefixes they own.
    fn new(number: u8, own: [u8; 4], peers: &[(u8, &[&str])], rules: &[FilterRule], now: Instant) -> Self {
        let table = Arc::new(SessionTable::new());
        let wall = Duration::from_secs(1_795_000_000);
        let mut tunnels = Tunnels::new(secret(number), Arc::clone(&table), [number; 32], now, wall);
        let mut prefixes = PrefixTable::new();
        let mut slots = Vec::new();
        for (peer, owned) in peers {
            assert!(tunnels.add_peer(key(*peer)));
            let slot = Arc::new(PeerSlot::new(key(*peer)));
            for net in *owned {
                prefixes.insert(net.parse::<IpNet>().unwrap(), Arc::clone(&slot).into());
            }
            slots.push(slot);
        }
        let snapshot = Snapshot {
            peers: Arc::new(prefixes),
            filter: Arc::default(),
            own: Arc::from([IpAddr::from(own)]),
            ports: [41641, 41641],
            shields_up: false,
            rules_id: [0; 8],
            ..Snapshot::default()
        };
        let mut side = Self {
            forwarder: Forwarder::new(crate::engine::USUAL_MTU, u64::from(number), now),
            snapshot,
            table,
            tunnels,
            slots,
        };
        side.judge_by(&[IpNet::from(IpAddr::from(own))], rules, now);
        side
    }

    /// Takes over rules for packets to these addresses of the node and of networks behind it.
    fn judge_by(&mut self, local: &[IpNet], rules: &[FilterRule], now: Instant) {
        let input = FilterInput { rules, local, shields: Shields::Down, holders: &|_| Vec::new() };
        self.snapshot.filter = Arc::new(Filter::compile(&input).unwrap().0);
        self.forwarder.begin(&self.snapshot, now);
    }

    fn send(&mut self, packet: &[u8], now: Instant) -> Sent {
        let mut bytes = packet.to_vec();
        let (slot, length, translation) = match self.forwarder.outbound(&self.snapshot, &mut bytes, now) {
            Outbound::Send { slot, length, translation, .. } => (slot, length, translation),
            Outbound::Answer { .. } => return Sent::Answered,
            Outbound::Drop(refusal) => return Sent::Dropped(refusal),
        };
        self.forwarder.note_cut(1, length);
        let mut burst = Burst::new(1280);
        let growth = translation.map_or(0, |_| via::GROWTH);
        burst.add(length + growth, |room| {
            room[growth..].copy_from_slice(&packet[..length]);
            if let Some(ToV6 { source, destination }) = translation {
                via::to_v6(room, source, destination)?;
            }
            Some(length + growth)
        });
        if self.forwarder.seal(slot, &mut burst, now) {
            assert!(burst.is_empty());
            return Sent::Waits(slot.key());
        }
        let datagrams: Vec<Vec<u8>> = burst.runs().flat_map(Run::datagrams).map(<[u8]>::to_vec).collect();
        let [datagram] = &datagrams[..] else { panic!("{} datagrams", datagrams.len()) };
        Sent::Datagram(slot.key(), datagram.clone())
    }

    /// Takes a datagram in; returns what the host gets.
    fn receive(&mut self, datagram: &[u8], now: Instant) -> Got {
        let mut bytes = datagram.to_vec();
        let Inbound { confirmed, action } = self.forwarder.inbound(&self.snapshot, &self.table, &mut bytes, now);
        let got = match action {
            Action::Deliver { slot, length, translation, .. } => {
                let packet = &mut bytes[HEADROOM..HEADROOM + length];
                let start = translation.map_or(0, |ToV4 { source, id }| {
                    via::to_v4(packet, source, id).unwrap();
                    via::GROWTH
                });
                Got::Packet(slot.key(), packet[start..].to_vec())
            }
            Action::Reply { packet, .. } => Got::Reply(packet),
            Action::Answered { slot, number, answerer } => Got::Answered(slot.key(), number, answerer),
            Action::Done => Got::Nothing,
            Action::Decide => Got::Message,
            Action::Drop(refusal) => Got::Dropped(refusal),
        };
        if let Some(session) = confirmed {
            self.tunnels.confirm(&session, now);
        }
        got
    }

    /// Does what the decision task does with events.
    fn publish(&mut self) {
        while let Some(event) = self.tunnels.poll_event() {
            if let Event::Ready { peer, session } = event {
                let slot = self.slots.iter().find(|slot| slot.key() == peer).unwrap();
                slot.set_session(Some(session));
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Sent {
    Datagram(NodeKey, Vec<u8>),
    Waits(NodeKey),
    Answered,
    Dropped(Refusal),
}

#[derive(Debug, PartialEq)]
enum Got {
    Packet(NodeKey, Vec<u8>),
    Reply(Vec<u8>),
    Answered(NodeKey, u16, Answerer),
    Nothing,
    Message,
    Dropped(Refusal),
}

/// Makes `one` shake hands with `other`.
fn connect(one: &mut Side, other: &mut Side, peer: NodeKey, now: Instant) {
    let origin = Origin::Udp(SocketAddr::from(([192, 0, 2, 1], 1)));
    one.tunnels.start_handshake(&peer, now).unwrap();
    loop {
        let there: Vec<_> = std::iter::from_fn(|| one.tunnels.poll_transmit()).collect();
        let mut quiet = there.is_empty();
        for transmit in there {
            if other.receive(&transmit.bytes, now) == Got::Message {
                other.tunnels.handle_datagram(&transmit.bytes, origin, now);
            }
        }
        while let Some(transmit) = other.tunnels.poll_transmit() {
            quiet = false;
            if one.receive(&transmit.bytes, now) == Got::Message {
                one.tunnels.handle_datagram(&transmit.bytes, origin, now);
            }
        }
        one.publish();
        other.publish();
        if quiet {
            return;
        }
    }
}

/// Alpha knows beta and gamma, beta knows alpha, gamma knows alpha; all have sessions.
struct Net {
    alpha: Side,
    beta: Side,
    gamma: Side,
    now: Instant,
}

impl Net {
    fn without_sessions() -> Self {
        let now = Instant::now();
        let beta = ["100.64.0.2/32", SUBNET];
        let peers: [(u8, &[&str]); 2] = [(2, &beta), (3, &["100.64.0.3/32"])];
        let alpha = Side::new(1, ALPHA, &peers, &rules(&["100.64.0.2", SUBNET], ALPHA), now);
        let from_alpha = rules(&["100.64.0.1"], BETA);
        let beta = Side::new(2, BETA, &[(1, &["100.64.0.1/32"])], &from_alpha, now);
        let gamma = Side::new(3, GAMMA, &[(1, &["100.64.0.1/32"])], &[], now);
        Self { alpha, beta, gamma, now }
    }

    fn new() -> Self {
        let mut net = Self::without_sessions();
        connect(&mut net.alpha, &mut net.beta, key(2), net.now);
        connect(&mut net.gamma, &mut net.alpha, key(1), net.now);
        net
    }
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    bytes.extend([from, to].concat());
    bytes.extend(payload);
    bytes
}

fn udp(from: [u8; 4], source: u16, to: [u8; 4], destination: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let header = [source, destination, length, 0].map(u16::to_be_bytes).concat();
    ipv4(from, to, 17, &[&header, data].concat())
}

fn tcp(from: [u8; 4], source: u16, to: [u8; 4], destination: u16, flags: u8) -> Vec<u8> {
    let mut header = [source, destination].map(u16::to_be_bytes).concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    ipv4(from, to, 6, &header)
}

fn datagram(sent: Sent) -> Vec<u8> {
    let Sent::Datagram(_, bytes) = sent else { panic!("not sent: {sent:?}") };
    bytes
}

#[test]
fn packets_arrive_as_they_were_whatever_their_length() {
    let mut net = Net::new();
    for length in 0..1252 {
        let packet = udp(ALPHA, 5000, BETA, 6000, &vec![7; length]);
        let sent = net.alpha.send(&packet, net.now);
        let Sent::Datagram(to, bytes) = sent else { panic!("{sent:?}") };
        assert_eq!(to, key(2));
        assert_eq!(net.beta.receive(&bytes, net.now), Got::Packet(key(1), packet));
        assert_eq!(net.beta.receive(&bytes, net.now), Got::Dropped(Refusal::NotAuthentic), "a replay");
    }
}

/// `warren down` and `warren up` at the peer: it has forgotten the session that we still send with, begins another, and its
/// first packet comes right behind the handshake. The answer went out in the old session, and nobody could read it.
#[test]
fn answer_to_the_first_packet_of_a_session_goes_back_in_that_session() {
    let mut net = Net::new();
    let from_beta = rules(&["100.64.0.2"], ALPHA);
    let mut alpha = Side::new(1, ALPHA, &[(2, &["100.64.0.2/32"])], &from_beta, net.now);
    let now = net.now + Duration::from_secs(1);
    let origin = Origin::Udp(SocketAddr::from(([192, 0, 2, 1], 1)));
    alpha.tunnels.start_handshake(&key(2), now).unwrap();
    let initiation = alpha.tunnels.poll_transmit().unwrap();
    net.beta.tunnels.handle_datagram(&initiation.bytes, origin, now);
    let response = net.beta.tunnels.poll_transmit().unwrap();
    alpha.tunnels.handle_datagram(&response.bytes, origin, now);
    alpha.publish();
    let confirmation = alpha.tunnels.poll_transmit().unwrap().bytes;
    let question = datagram(alpha.send(&udp(ALPHA, 5000, BETA, 6000, b"?"), now));
    // Beta's decision task is late: its worker alone sees both, and the host's answer.
    let mut told = Vec::new();
    for mut bytes in [confirmation, question] {
        let Inbound { confirmed, action } =
            net.beta.forwarder.inbound(&net.beta.snapshot, &net.beta.table, &mut bytes, now);
        assert!(matches!(action, Action::Done | Action::Deliver { .. }), "{action:?}");
        told.extend(confirmed);
    }
    let answer = udp(BETA, 6000, ALPHA, 5000, b"!");
    let sealed = datagram(net.beta.send(&answer, now));
    assert_eq!(alpha.receive(&sealed, now), Got::Packet(key(2), answer.clone()));
    // The decision task comes to the same.
    net.beta.tunnels.confirm(&told[0], now);
    net.beta.publish();
    let sealed = datagram(net.beta.send(&answer, now));
    assert_eq!(alpha.receive(&sealed, now), Got::Packet(key(2), answer));
}

/// A packet of an older session that comes late does not bring that back.
#[test]
fn a_session_gives_way_to_a_younger_one_alone() {
    let net = Net::new();
    let slot = Arc::clone(&net.beta.slots[0]);
    let young = slot.session().as_ref().map(Arc::clone).unwrap();
    let mut elder = Net::without_sessions();
    elder.now = net.now.checked_sub(Duration::from_secs(1)).unwrap_or(net.now);
    let start = elder.now;
    connect(&mut elder.alpha, &mut elder.beta, key(2), start);
    let old = elder.beta.slots[0].session().as_ref().map(Arc::clone).unwrap();
    slot.adopt_session(&old);
    assert!(Arc::ptr_eq(slot.session().as_ref().unwrap(), &young));
    slot.set_session(Some(old));
    slot.adopt_session(&young);
    assert!(Arc::ptr_eq(slot.session().as_ref().unwrap(), &young));
}

/// Datagrams of one size lie side by side, a shorter one at the end, and all arrive.
#[test]
fn a_burst_is_sealed_in_order_and_falls_into_runs() {
    let mut net = Net::new();
    let lengths = [100_usize, 100, 100, 60, 60, 90, 1252, 1252, 3];
    let packets: Vec<Vec<u8>> = lengths.iter().map(|length| udp(ALPHA, 5000, BETA, 6000, &vec![7; *length])).collect();
    let mut burst = Burst::new(1280);
    for packet in &packets {
        burst.add(packet.len(), |room| {
            room.copy_from_slice(packet);
            Some(packet.len())
        });
    }
    let slot = Arc::clone(&net.alpha.slots[0]);
    assert!(!net.alpha.forwarder.seal(&slot, &mut burst, net.now));
    // 28 bytes of inner headers, filled up to 16, and 32 around it.
    let shapes: Vec<_> = burst.runs().map(|run| (run.segment, run.bytes.len())).collect();
    assert_eq!(shapes, [(160, 3 * 160 + 128), (128, 128), (160, 160), (1312, 2 * 1312 + 64)]);
    let datagrams: Vec<&[u8]> = burst.runs().flat_map(Run::datagrams).collect();
    assert_eq!(datagrams.len(), packets.len());
    for (datagram, packet) in datagrams.into_iter().zip(packets) {
        assert_eq!(net.beta.receive(datagram, net.now), Got::Packet(key(1), packet));
    }
}

/// A packet of the full size is not padded, whatever the tunnel's MTU: nothing may lie between it and the next.
#[test]
fn full_packets_lie_side_by_side_at_every_mtu() {
    for mtu in [1280, 1281, 1420, 1495, 8000] {
        let net = Net::new();
        let mut burst = Burst::new(mtu);
        for _ in 0..3 {
            burst.add(mtu, |_| Some(mtu));
        }
        let session = net.alpha.slots[0].session();
        let sealed = burst.seal(session.as_ref().unwrap(), net.now);
        assert_eq!(sealed, (3, None));
        let shapes: Vec<_> = burst.runs().map(|run| (run.segment, run.bytes.len())).collect();
        assert_eq!(shapes, [(mtu + 32, 3 * (mtu + 32))]);
    }
}

#[test]
fn a_burst_takes_what_one_read_may_bring_until_it_is_full() {
    let mut burst = Burst::new(1280);
    let mut count = 0;
    while !burst.is_full() {
        burst.add(1280, |_| Some(1280));
        count += 1;
    }
    assert_eq!(count, 50, "50 datagrams of 1312 bytes are the first beyond 64 KiB");
    burst.clear();
    burst.add(100, |_| None);
    assert!(burst.is_empty(), "nothing was written");
    for _ in 0..49 {
        burst.add(1280, |_| Some(1280));
    }
    assert!(!burst.is_full());
    burst.add(65_535, |_| Some(65_535));
    assert_eq!(burst.split_off(49).map(<[u8]>::len).collect::<Vec<_>>(), [65_535]);
}

#[test]
fn a_peer_cannot_speak_for_another() {
    let mut net = Net::new();
    // Gamma's own host would not send this, but gamma's owner may change the program.
    let forged = udp(BETA, 5000, ALPHA, 6000, b"I am beta");
    let mut buffer = vec![0; 2048];
    let slot = Arc::clone(&net.gamma.slots[0]);
    let length = net.alpha.forwarder.seal_own(&slot, &forged, &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Dropped(Refusal::WrongSource));
    // Neither for addresses of nobody.
    let forged = udp([8, 8, 8, 8], 5000, ALPHA, 6000, b"I am the Internet");
    let length = net.alpha.forwarder.seal_own(&slot, &forged, &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Dropped(Refusal::WrongSource));
    // Beta may speak for its subnet.
    let slot = Arc::clone(&net.beta.slots[0]);
    let packet = udp([10, 7, 1, 1], 5000, ALPHA, 6000, b"from the subnet");
    let length = net.alpha.forwarder.seal_own(&slot, &packet, &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Packet(key(2), packet));
}

#[test]
fn what_no_rule_allows_stays_out_and_answers_come_in() {
    let mut net = Net::new();
    let unasked = udp(GAMMA, 53, ALPHA, 5353, b"unasked");
    let bytes = datagram(net.gamma.send(&unasked, net.now));
    assert_eq!(net.alpha.receive(&bytes, net.now), Got::Dropped(Refusal::Filtered(DropReason::NoRule)));
    let question = udp(ALPHA, 5353, GAMMA, 53, b"question");
    datagram(net.alpha.send(&question, net.now));
    let bytes = datagram(net.gamma.send(&unasked, net.now));
    assert_eq!(net.alpha.receive(&bytes, net.now), Got::Packet(key(3), unasked));
}

#[test]
fn a_jailed_peer_may_only_answer() {
    let mut net = Net::new();
    net.alpha.slots[0].set_jailed(true);
    let packet = udp(BETA, 5000, ALPHA, 6000, b"hello");
    let bytes = datagram(net.beta.send(&packet, net.now));
    assert_eq!(net.alpha.receive(&bytes, net.now), Got::Dropped(Refusal::Filtered(DropReason::Jailed)));
    net.alpha.slots[0].set_jailed(false);
    let bytes = datagram(net.beta.send(&packet, net.now));
    assert_eq!(net.alpha.receive(&bytes, net.now), Got::Packet(key(2), packet));
}

#[test]
fn a_running_transfer_ends_with_its_rule_and_with_its_peer() {
    let mut net = Net::new();
    let own = [IpNet::from(IpAddr::from(ALPHA))];
    let allowed = rules(&["100.64.0.2"], ALPHA);
    let (syn, data) = (tcp(BETA, 4000, ALPHA, 80, 0x02), tcp(BETA, 4000, ALPHA, 80, 0x10));
    let (answer, stream) = (tcp(ALPHA, 80, BETA, 4000, 0x12), udp(BETA, 4000, ALPHA, 6000, b"stream"));
    let receive = |net: &mut Net, packet: &[u8]| {
        let bytes = datagram(net.beta.send(packet, net.now));
        net.alpha.receive(&bytes, net.now)
    };
    let passes = |packet: &[u8]| Got::Packet(key(2), packet.to_vec());
    let refused = |reason| Got::Dropped(Refusal::Filtered(reason));
    assert_eq!(receive(&mut net, &syn), passes(&syn));
    datagram(net.alpha.send(&answer, net.now));
    for packet in [&data, &stream] {
        assert_eq!(receive(&mut net, packet), passes(packet));
    }

    net.alpha.judge_by(&own, &[], net.now);
    assert_eq!(receive(&mut net, &data), refused(DropReason::NoFlow));
    assert_eq!(receive(&mut net, &stream), refused(DropReason::NoRule));
    // Not even if our own side goes on.
    datagram(net.alpha.send(&answer, net.now));
    assert_eq!(receive(&mut net, &data), refused(DropReason::NoFlow));

    net.alpha.judge_by(&own, &allowed, net.now);
    assert_eq!(receive(&mut net, &data), passes(&data));
    // The peer is removed, or its key expires; the rule is still there.
    net.alpha.tunnels.remove_peer(&key(2));
    assert_eq!(receive(&mut net, &data), Got::Dropped(Refusal::NoSession));
}

#[test]
fn both_directions_of_a_subnets_traffic_are_judged_where_they_are_opened() {
    let mut net = Net::new();
    let host = [10, 7, 0, 9];
    let behind_beta = [IpNet::from(IpAddr::from(BETA)), SUBNET.parse().unwrap()];
    let exchange = |net: &mut Net, packet: &[u8], to_beta: bool| {
        let Net { alpha, beta, now, .. } = net;
        let (from, to) = if to_beta { (alpha, beta) } else { (beta, alpha) };
        // Whoever owns the other node may send what he likes.
        let slot = Arc::clone(&from.slots[0]);
        let mut buffer = vec![0; 2048];
        let length = from.forwarder.seal_own(&slot, packet, &mut buffer, *now).unwrap();
        to.receive(&buffer[..length], *now)
    };
    let refused = |reason| Got::Dropped(Refusal::Filtered(reason));
    // Into the subnet: by the router's rules, host by host and port by port.
    net.beta.judge_by(&behind_beta, &rules(&["100.64.0.1"], host), net.now);
    let allowed = tcp(ALPHA, 4000, host, 80, 0x02);
    assert_eq!(exchange(&mut net, &allowed, true), Got::Packet(key(1), allowed));
    for (to, port) in [(host, 22), ([10, 7, 0, 8], 80), (BETA, 80)] {
        let packet = tcp(ALPHA, 4000, to, port, 0x10);
        assert_eq!(exchange(&mut net, &packet, true), refused(DropReason::NoFlow), "{to:?}:{port}");
    }
    let elsewhere = tcp(ALPHA, 4000, [10, 8, 0, 1], 80, 0x02);
    assert_eq!(exchange(&mut net, &elsewhere, true), refused(DropReason::NotLocal));
    // Out of the subnet: by the rules of the node that it goes to, unless that asked.
    net.alpha.judge_by(&[IpNet::from(IpAddr::from(ALPHA))], &rules(&["10.7.0.8"], ALPHA), net.now);
    let unasked = udp(host, 53, ALPHA, 5353, b"unasked");
    assert_eq!(exchange(&mut net, &unasked, false), refused(DropReason::NoRule));
    let from_another = udp([10, 7, 0, 8], 53, ALPHA, 5353, b"by a rule");
    assert_eq!(exchange(&mut net, &from_another, false), Got::Packet(key(2), from_another));
    datagram(net.alpha.send(&udp(ALPHA, 5353, host, 53, b"question"), net.now));
    assert_eq!(exchange(&mut net, &unasked, false), Got::Packet(key(2), unasked));
    // When the router's rule ends, so does what runs through it, though the host behind it goes on.
    net.beta.judge_by(&behind_beta, &[], net.now);
    datagram(net.beta.send(&tcp(host, 80, ALPHA, 4000, 0x10), net.now));
    let data = tcp(ALPHA, 4000, host, 80, 0x10);
    assert_eq!(exchange(&mut net, &data, true), refused(DropReason::NoFlow));
}

#[test]
fn a_refused_tcp_connection_is_told_at_once() {
    let mut net = Net::new();
    let bytes = datagram(net.alpha.send(&tcp(ALPHA, 4000, BETA, 22, 0x02), net.now));
    let Got::Reply(reply) = net.beta.receive(&bytes, net.now) else { panic!("no reply") };
    let reply = Packet::parse(&reply).unwrap();
    assert_eq!((reply.source(), reply.destination()), (IpAddr::from(BETA), IpAddr::from(ALPHA)));
    let Some(Message::Reject(reject)) = Message::parse(&reply) else { panic!("not a reject") };
    assert_eq!((reject.source_port, reject.destination_port, reject.reason), (4000, 22, Reason::Acl));
    // The reject itself ends in the tunnel.
    let slot = Arc::clone(&net.beta.slots[0]);
    let mut buffer = vec![0; 2048];
    let length = net.alpha.forwarder.seal_own(&slot, reply.bytes(), &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Nothing);
    let allowed = tcp(ALPHA, 4000, BETA, 80, 0x02);
    let bytes = datagram(net.alpha.send(&allowed, net.now));
    assert_eq!(net.beta.receive(&bytes, net.now), Got::Packet(key(1), allowed));
}

#[test]
fn pings_inside_the_tunnel_are_answered_by_the_node_itself() {
    let mut net = Net::new();
    let ping = Message::Ping { data: *b"12345678" }.packet(ALPHA.into(), BETA.into()).unwrap();
    // The host must not send such packets.
    assert_eq!(net.alpha.send(&ping, net.now), Sent::Dropped(Refusal::Filtered(DropReason::Reserved)));
    let slot = Arc::clone(&net.alpha.slots[0]);
    let mut buffer = vec![0; 2048];
    let length = net.alpha.forwarder.seal_own(&slot, &ping, &mut buffer, net.now).unwrap();
    let Got::Reply(pong) = net.beta.receive(&buffer[..length], net.now) else { panic!("no reply") };
    let pong = Message::parse(&Packet::parse(&pong).unwrap());
    assert_eq!(pong, Some(Message::Pong { data: *b"12345678", peer_api_port: 0 }));
}

#[test]
fn packets_wait_for_the_session_and_leave_in_order() {
    let mut net = Net::without_sessions();
    let packet = |number: u8| udp(ALPHA, 5000, BETA, 6000, &[number]);
    for number in 0..40 {
        assert_eq!(net.alpha.send(&packet(number), net.now), Sent::Waits(key(2)));
    }
    assert_eq!(net.alpha.forwarder.take_pushed_out(), 40 - PER_PEER);
    let mut buffer = vec![0; 2048];
    assert!(net.alpha.forwarder.take_ready(&mut buffer, net.now).is_none());
    connect(&mut net.alpha, &mut net.beta, key(2), net.now);
    for number in 40 - u8::try_from(PER_PEER).unwrap()..40 {
        let (slot, length) = net.alpha.forwarder.take_ready(&mut buffer, net.now).unwrap();
        assert_eq!(slot.key(), key(2));
        assert_eq!(net.beta.receive(&buffer[..length], net.now), Got::Packet(key(1), packet(number)));
    }
    assert!(net.alpha.forwarder.take_ready(&mut buffer, net.now).is_none());
}

#[test]
fn one_handshake_is_asked_for_until_it_is_decided() {
    let slot = PeerSlot::new(key(2));
    assert!(slot.ask(1));
    assert!(!slot.ask(4_999));
    assert!(slot.ask(5_001), "what was asked may have got lost");
    slot.handshake_failed();
    assert!(slot.ask(5_002));
    slot.set_session(None);
    assert!(slot.ask(5_003));
}

#[test]
fn the_tunnels_own_datagrams_do_not_enter_it() {
    let mut net = Net::new();
    let own = udp(ALPHA, 41641, [10, 7, 0, 1], 41641, b"sealed");
    assert_eq!(net.alpha.send(&own, net.now), Sent::Dropped(Refusal::Loop));
    let other = udp(ALPHA, 41642, [10, 7, 0, 1], 41641, b"plain");
    assert!(matches!(net.alpha.send(&other, net.now), Sent::Datagram(..)));
}

#[test]
fn destinations_of_nobody_and_groups_go_nowhere() {
    let mut net = Net::new();
    for to in [[100, 64, 0, 9], [224, 0, 0, 1], [255, 255, 255, 255], ALPHA] {
        let packet = udp(ALPHA, 5000, to, 6000, b"hello");
        assert_eq!(net.alpha.send(&packet, net.now), Sent::Dropped(Refusal::NoPeer));
    }
}

#[test]
fn an_old_session_makes_packets_wait_for_a_new_one() {
    let mut net = Net::new();
    let later = net.now + Duration::from_secs(181);
    let packet = udp(ALPHA, 5000, BETA, 6000, b"hello");
    assert_eq!(net.alpha.send(&packet, later), Sent::Waits(key(2)));
    connect(&mut net.alpha, &mut net.beta, key(2), later);
    let mut buffer = vec![0; 2048];
    let (_, length) = net.alpha.forwarder.take_ready(&mut buffer, later).unwrap();
    assert_eq!(net.beta.receive(&buffer[..length], later), Got::Packet(key(1), packet));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing that is not sealed by a peer reaches the host, and nothing panics.
    #[test]
    fn no_bytes_of_strangers_reach_the_host(
        mut junk in proptest::collection::vec(any::<u8>(), 0..200),
        head in 0_u8..6,
        flip in any::<(u16, u8)>(),
    ) {
        let mut net = Net::new();
        prop_assert!(!matches!(net.alpha.receive(&junk, net.now), Got::Packet(..) | Got::Reply(_)));
        if let Some(start) = junk.first_chunk_mut() {
            *start = [head, 0, 0, 0];
        }
        prop_assert!(!matches!(net.alpha.receive(&junk, net.now), Got::Packet(..) | Got::Reply(_)));
        // One changed bit anywhere in a real datagram.
        let packet = udp(BETA, 5000, ALPHA, 6000, &junk);
        let mut bytes = datagram(net.beta.send(&packet, net.now));
        let at = usize::from(flip.0) % bytes.len();
        bytes[at] ^= 1 << (flip.1 % 8);
        let got = net.alpha.receive(&bytes, net.now);
        prop_assert!(!matches!(got, Got::Packet(..) | Got::Reply(_)), "changed at {}: {:?}", at, got);
    }

    /// Whatever the host writes into the tunnel, what comes out at the other end is that packet or nothing.
    #[test]
    fn no_packet_of_the_host_panics_or_changes(
        first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
        addressed: bool,
    ) {
        let mut net = Net::new();
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        if addressed && bytes.len() >= 20 {
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            bytes[2..4].copy_from_slice(&length);
            bytes[12..16].copy_from_slice(&ALPHA);
            bytes[16..20].copy_from_slice(&BETA);
        }
        if let Sent::Datagram(_, sealed) = net.alpha.send(&bytes, net.now)
            && let Got::Packet(_, packet) = net.beta.receive(&sealed, net.now)
        {
            prop_assert_eq!(&packet, &bytes[..packet.len()]);
        }
    }
}

/// What the flow log of a side has noted since it was last asked.
fn notes(side: &mut Side) -> Vec<What<Arc<PeerSlot>>> {
    std::iter::from_fn(|| side.forwarder.poll_note()).map(|note| note.what).collect()
}

impl Net {
    fn with_flow_logs() -> Self {
        let mut net = Self::new();
        for side in [&mut net.alpha, &mut net.beta] {
            side.forwarder.begin_count(net.now);
        }
        net
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        for side in [&mut self.alpha, &mut self.beta] {
            side.forwarder.begin(&side.snapshot, self.now);
        }
    }

    /// Sends a packet of alpha to beta, or the other way.
    fn deliver(&mut self, packet: &[u8]) {
        let (from, to) =
            if packet[12..16] == ALPHA { (&mut self.alpha, &mut self.beta) } else { (&mut self.beta, &mut self.alpha) };
        let bytes = datagram(from.send(packet, self.now));
        assert!(matches!(to.receive(&bytes, self.now), Got::Packet(_, got) if got == packet));
    }
}

#[test]
fn both_ends_note_the_same_connection() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    const FIN: u8 = 1;
    let mut net = Net::with_flow_logs();
    net.deliver(&tcp(ALPHA, 5000, BETA, 80, SYN));
    let [What::Start { conversation: at_alpha, peer, .. }] = &notes(&mut net.alpha)[..] else { panic!("no start") };
    assert_eq!((at_alpha.direction, at_alpha.rule, peer.key()), (Direction::Outbound, None, key(2)));
    let [What::Start { conversation: at_beta, peer, .. }] = &notes(&mut net.beta)[..] else { panic!("no start") };
    assert_eq!((at_beta.direction, at_beta.rule, peer.key()), (Direction::Inbound, Some(0), key(1)));
    assert_eq!((at_alpha.local, at_alpha.remote), (at_beta.remote, at_beta.local));
    assert_eq!(at_alpha.local, SocketAddr::from((ALPHA, 5000)));
    net.deliver(&tcp(BETA, 80, ALPHA, 5000, SYN | ACK));
    net.deliver(&tcp(ALPHA, 5000, BETA, 80, ACK));
    net.deliver(&tcp(ALPHA, 5000, BETA, 80, FIN | ACK));
    net.deliver(&tcp(BETA, 80, ALPHA, 5000, FIN | ACK));
    net.deliver(&tcp(ALPHA, 5000, BETA, 80, ACK));
    net.wait(Duration::from_secs(2));
    let [What::End { reason, counts: at_alpha, .. }] = notes(&mut net.alpha)[..] else { panic!("no end") };
    assert_eq!(reason, EndReason::Closed);
    let [What::End { counts: at_beta, .. }] = notes(&mut net.beta)[..] else { panic!("no end") };
    assert_eq!((at_alpha.tx_packets, at_alpha.rx_packets, at_alpha.tx_bytes), (4, 2, 160));
    assert_eq!((at_alpha.tx_packets, at_alpha.tx_bytes), (at_beta.rx_packets, at_beta.rx_bytes));
    assert_eq!((at_alpha.rx_packets, at_alpha.rx_bytes), (at_beta.tx_packets, at_beta.tx_bytes));
    // The last segments sent again.
    net.deliver(&tcp(BETA, 80, ALPHA, 5000, FIN | ACK));
    assert!(notes(&mut net.alpha).is_empty() && notes(&mut net.beta).is_empty());
}

/// A super-packet counts as what travels.
#[test]
fn a_packet_that_is_cut_counts_as_its_pieces() {
    let mut net = Net::with_flow_logs();
    let mut bytes = udp(ALPHA, 5000, BETA, 6000, &[7; 3000]);
    let sent = net.alpha.forwarder.outbound(&net.alpha.snapshot, &mut bytes, net.now);
    assert!(matches!(sent, Outbound::Send { .. }));
    net.alpha.forwarder.note_cut(3, 3 * 28 + 3000);
    net.wait(Duration::from_secs(6));
    let noted = notes(&mut net.alpha);
    let [What::Start { .. }, What::Update { counts, .. }] = &noted[..] else { panic!("{noted:?}") };
    assert_eq!((counts.tx_packets, counts.tx_bytes), (3, 3084));
}

#[test]
fn dropped_packets_are_noted_with_their_reasons() {
    let mut net = Net::with_flow_logs();
    let sent = datagram(net.alpha.send(&tcp(ALPHA, 5000, BETA, 81, 2), net.now));
    assert!(matches!(net.beta.receive(&sent, net.now), Got::Reply(_)));
    assert!(matches!(net.alpha.send(&udp(ALPHA, 5000, [100, 64, 0, 9], 53, b""), net.now), Sent::Dropped(_)));
    net.wait(Duration::from_secs(6));
    let noted = notes(&mut net.beta);
    let [What::Drops { reason, direction, peer, target, packets, .. }] = &noted[..] else { panic!("{noted:?}") };
    assert_eq!((*reason, *direction, *packets), (warren_ledger::DropReason::NoRule, Direction::Inbound, 1));
    assert_eq!((peer.as_ref().unwrap().key(), target.unwrap().port), (key(1), 81));
    let drops = notes(&mut net.alpha).into_iter().find(|what| matches!(what, What::Drops { .. }));
    let Some(What::Drops { reason, peer: None, .. }) = drops else { panic!("{drops:?}") };
    assert_eq!(reason, warren_ledger::DropReason::NoPeer);
}

#[test]
fn a_conversation_that_new_rules_refuse_ends() {
    let mut net = Net::with_flow_logs();
    net.deliver(&udp(ALPHA, 5000, BETA, 6000, b"hello"));
    net.beta.judge_by(&[IpNet::from(IpAddr::from(BETA))], &[], net.now);
    let sent = datagram(net.alpha.send(&udp(ALPHA, 5000, BETA, 6000, b"still there?"), net.now));
    assert!(matches!(net.beta.receive(&sent, net.now), Got::Dropped(_)));
    net.deliver(&udp(BETA, 7000, ALPHA, 6000, b"another"));
    let ends = |what: &What<_>| matches!(what, What::End { reason: EndReason::Refused, .. });
    assert_eq!(notes(&mut net.beta).iter().filter(|what| ends(what)).count(), 1);
}

/// Lets gamma stand in for beta as the way into its network.
fn with_standby() -> Net {
    let mut net = Net::new();
    let slots = net.alpha.slots.clone();
    let watch = Arc::new(Watch::new(SUBNET.parse().unwrap(), slots.clone()));
    let mut table = PrefixTable::clone(&net.alpha.snapshot.peers);
    table.insert(watch.network, Owner { slot: Arc::clone(&slots[0]), watch: Some(watch) });
    net.alpha.snapshot.peers = Arc::new(table);
    net
}

#[test]
fn out_of_a_network_packets_come_by_any_of_its_routers() {
    let mut net = with_standby();
    let inside = [10, 7, 0, 9];
    net.alpha.judge_by(&[IpNet::from(IpAddr::from(ALPHA))], &rules(&[SUBNET, "100.64.0.2"], ALPHA), net.now);
    let mut by_gamma = |from| {
        let packet = udp(from, 5000, ALPHA, 6000, b"hello");
        let mut buffer = vec![0; 2048];
        let slot = Arc::clone(&net.gamma.slots[0]);
        let length = net.gamma.forwarder.seal_own(&slot, &packet, &mut buffer, net.now).unwrap();
        (net.alpha.receive(&buffer[..length], net.now), packet)
    };
    let (got, packet) = by_gamma(inside);
    assert_eq!(got, Got::Packet(key(3), packet));
    // It stands in for the network, not for the router.
    assert_eq!(by_gamma(BETA).0, Got::Dropped(Refusal::WrongSource));
    assert_eq!(by_gamma([10, 8, 0, 9]).0, Got::Dropped(Refusal::WrongSource));
}

/// A question to a router: the router answers by itself, a host behind it by an echo; neither reaches the host here.
#[test]
fn answers_to_questions_are_for_the_decision_task() {
    let mut net = with_standby();
    let inside = [10, 7, 0, 9];
    let question = Question {
        slot: Arc::clone(&net.alpha.slots[0]),
        number: 0x0a0b,
        host: Some((ALPHA.into(), inside.into())),
        router: Some((ALPHA.into(), BETA.into())),
    };
    let packets = net.alpha.forwarder.question(&question, net.now);
    let [echo, ping] = &packets[..] else { panic!("{} packets", packets.len()) };
    let mut buffer = vec![0; 2048];
    let length = net.alpha.forwarder.seal_or_keep(&question.slot, ping, &mut buffer, net.now).unwrap();
    let Got::Reply(pong) = net.beta.receive(&buffer[..length], net.now) else { panic!("no pong") };
    let to_alpha = Arc::clone(&net.beta.slots[0]);
    let length = net.beta.forwarder.seal_own(&to_alpha, &pong, &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Answered(key(2), 0x0a0b, Answerer::Router));
    // The host's answer comes by the other router.
    let mut reply = echo.clone();
    reply[12..20].copy_from_slice(&[inside, ALPHA].concat());
    reply[20] = 0;
    let to_alpha = Arc::clone(&net.gamma.slots[0]);
    let length = net.gamma.forwarder.seal_own(&to_alpha, &reply, &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Answered(key(3), 0x0a0b, Answerer::Host));
    // An answer to the host's own ping is the host's.
    let mut own = echo.clone();
    own[24..26].copy_from_slice(&[7, 7]);
    let packet = Packet::parse(&own).unwrap();
    net.alpha.forwarder.firewall.note_outbound(&packet, net.now);
    let mut reply = own.clone();
    reply[12..20].copy_from_slice(&[inside, ALPHA].concat());
    reply[20] = 0;
    let length = net.gamma.forwarder.seal_own(&to_alpha, &reply, &mut buffer, net.now).unwrap();
    assert_eq!(net.alpha.receive(&buffer[..length], net.now), Got::Packet(key(3), reply));
}

/// Lets everybody reach everything.
fn open() -> FilterRule {
    let everything =
        NetPortRange { ip: "*".into(), ports: PortRange { first: 0, last: 65535 }, ..NetPortRange::default() };
    FilterRule { src_ips: vec!["*".into()], dst_ports: vec![everything], ..FilterRule::default() }
}

fn udp6(from: Ipv6Addr, source: u16, to: Ipv6Addr, destination: u16) -> Vec<u8> {
    let body = [source, destination, 8, 0].map(u16::to_be_bytes).concat();
    [&[0x60, 0, 0, 0, 0, 8, 17, 64], &from.octets()[..], &to.octets(), &body].concat()
}

/// A peer speaks to a host of a site, whose network may be another site's, too.
#[test]
fn hosts_of_a_site_are_spoken_to_in_ipv4() {
    let mut net = Net::new();
    let (alpha6, now): (Ipv6Addr, _) = ("fd7a:115c:a1e0::1".parse().unwrap(), net.now);
    let (sites, own): (IpNet, IpNet) =
        ("fd7a:115c:a1e0:b1a::/64".parse().unwrap(), "fd7a:115c:a1e0::1/128".parse().unwrap());
    for (side, prefix) in [(&mut net.alpha, sites), (&mut net.beta, own)] {
        let mut table = PrefixTable::clone(&side.snapshot.peers);
        table.insert(prefix, Arc::clone(&side.slots[0]).into());
        side.snapshot.peers = Arc::new(table);
    }
    net.alpha.judge_by(&[own], &[], net.now);
    net.beta.judge_by(&["fd7a:115c:a1e0:b1a:0:7::/96".parse().unwrap()], &[open()], net.now);
    let host = via::address(7, Ipv4Addr::new(10, 0, 0, 9));
    let sent = datagram(net.alpha.send(&udp6(alpha6, 5000, host, 53), now));
    assert_eq!(net.beta.receive(&sent, now), Got::Dropped(Refusal::NotTranslated), "what the kernel knows from before");
    stand_ins().for_each(|address| net.beta.forwarder.cleared(address));
    let sent = datagram(net.alpha.send(&udp6(alpha6, 5000, host, 53), now));
    let Got::Packet(_, four) = net.beta.receive(&sent, now) else { panic!("not delivered") };
    let packet = Packet::parse(&four).unwrap();
    let IpAddr::V4(stand_in) = packet.source() else { panic!("not IPv4") };
    assert!(via::POOL.contains(&stand_in) && packet.destination() == IpAddr::from([10, 0, 0, 9]));
    // The answer passes alpha's filter, since alpha asked.
    let answer = udp([10, 0, 0, 9], 53, stand_in.octets(), 5000, b"");
    let sent = datagram(net.beta.send(&answer, now));
    let Got::Packet(from, six) = net.alpha.receive(&sent, now) else { panic!("no answer") };
    let packet = Packet::parse(&six).unwrap();
    assert_eq!((from, packet.source(), packet.destination()), (key(2), host.into(), alpha6.into()));
    // What stands for nobody goes nowhere, nobody is led to the router's own loopback, nor to another site.
    let nobody = udp([10, 0, 0, 9], 53, [100, 115, 93, 7], 5000, b"");
    assert_eq!(net.beta.send(&nobody, now), Sent::Dropped(Refusal::NotTranslated));
    let loopback = via::address(7, Ipv4Addr::LOCALHOST);
    let sent = datagram(net.alpha.send(&udp6(alpha6, 5000, loopback, 53), now));
    assert_eq!(net.beta.receive(&sent, now), Got::Dropped(Refusal::NotTranslated));
    let elsewhere = via::address(8, Ipv4Addr::new(10, 0, 0, 9));
    let sent = datagram(net.alpha.send(&udp6(alpha6, 5000, elsewhere, 53), now));
    assert!(matches!(net.beta.receive(&sent, now), Got::Dropped(Refusal::Filtered(_))));
}
