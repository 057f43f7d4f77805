//! Packets as bytes, and the firewall of a node.

use super::naive::Load;
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use warren_filter::{Filter, FilterInput, Firewall, Packet, PeerMode, Shields, Verdict};
use warren_policy::{Compiled, DirectoryNode, NodeRule};
use warren_wire::control::NodeId;

/// Flags of TCP: a connection begins, goes on, ends.
pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN_ACK: u8 = 17;

/// Makes the first packet of a conversation, or with other flags a later one.
pub(crate) fn packet(source: IpAddr, destination: IpAddr, load: Load, flags: u8) -> Vec<u8> {
    let (protocol, payload) = payload(source, load, flags);
    with_head(source, destination, protocol, 0, &payload)
}

/// Makes a packet in two pieces.
pub(crate) fn fragments(source: IpAddr, destination: IpAddr, load: Load) -> Option<[Vec<u8>; 2]> {
    let (protocol, mut payload) = payload(source, load, SYN);
    payload.resize(128, 0);
    let (first, rest) = payload.split_at(96);
    // In IPv4: more fragments follow; the second is 12 units of 8 bytes on.
    source.is_ipv4().then(|| {
        [(0x2000, first), (12, rest)].map(|(place, piece)| with_head(source, destination, protocol, place, piece))
    })
}

fn payload(source: IpAddr, load: Load, flags: u8) -> (u8, Vec<u8>) {
    let port = |port: u16| [40_000_u16.to_be_bytes(), port.to_be_bytes()].concat();
    match (load, source) {
        (Load::Tcp(to), _) => (6, [port(to), vec![0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]].concat()),
        (Load::Udp(to), _) => (17, [port(to), vec![0, 8, 0, 0]].concat()),
        (Load::Sctp(to), _) => (132, [port(to), vec![0; 8]].concat()),
        (Load::Ping, IpAddr::V4(_)) => (1, vec![8, 0, 0, 0, 0, 1, 0, 1]),
        (Load::Ping, IpAddr::V6(_)) => (58, vec![128, 0, 0, 0, 0, 1, 0, 1]),
        (Load::Gre, _) => (47, vec![0; 8]),
    }
}

fn with_head(source: IpAddr, destination: IpAddr, protocol: u8, place: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let place = place.to_be_bytes();
            let head = [&[0x45, 0][..], &(length + 20).to_be_bytes(), &[0, 7], &place, &[64, protocol, 0, 0]].concat();
            [head, source.octets().to_vec(), destination.octets().to_vec(), payload.to_vec()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64]].concat();
            [head, source.octets().to_vec(), destination.octets().to_vec(), payload.to_vec()].concat()
        }
        _ => panic!("one packet, two families"),
    }
}

/// The firewall of one node with the filter that the compiler made for it.
pub(crate) struct Judge {
    filter: Arc<Filter>,
    now: Instant,
}

impl Judge {
    pub(crate) fn new(compiled: &Compiled, id: NodeId, node: &DirectoryNode) -> Self {
        let local: Vec<IpNet> =
            compiled.addresses(id).into_iter().chain(node.approved_routes.iter().copied()).collect();
        let rules: Vec<_> = compiled.filter(id).iter().map(NodeRule::to_wire).collect();
        let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| Vec::new() };
        let (filter, problems) = Filter::compile(&input).unwrap();
        assert_eq!(problems, []);
        #[expect(clippy::disallowed_methods, reason = "an arbitrary start; time does not pass")]
        let now = Instant::now();
        Self { filter: Arc::new(filter), now }
    }

    pub(crate) fn accepts(&self, packets: &[Vec<u8>]) -> Vec<bool> {
        let mut firewall = Firewall::new(1, self.now);
        firewall.use_filter(&self.filter);
        let verdict = |bytes: &Vec<u8>| {
            firewall.check_inbound(&Packet::parse(bytes).unwrap(), PeerMode::Normal, self.now) == Verdict::Accept
        };
        packets.iter().map(verdict).collect()
    }
}
