//! What a firewall knows of the conversations of packets that pass, for whoever counts them.

use std::net::IpAddr;
use std::time::Duration;

use super::Firewall;
use crate::flow::{ECHO, Flow, FlowKey, SCTP, Side, TCP_OPEN, TCP_TRANSITORY, UDP};
use crate::packet::{Body, Icmp, PROTO_SCTP, PROTO_TCP, PROTO_UDP, Packet, Ports};
use crate::rules::Want;

/// The most conversations with marks among those that are judged packet by packet: pings of peers, and protocols without
/// ports. The one idle longest is forgotten for a new one.
pub const MAX_STATELESS: u32 = 1_024;

/// The most marks that wait for [`Firewall::take_forgotten`]: what one packet can push out.
const FORGOTTEN_MAX: usize = 8;

/// Describes the conversation of the packet that was judged last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversation {
    /// Who began.
    pub opener: Side,
    /// The end on this node's side. A ping's identifier counts as the port of who began, 0 as the other's; without ports
    /// both are 0.
    pub local: (IpAddr, u16),
    /// The end on the peer's side.
    pub remote: (IpAddr, u16),
    /// The protocol number.
    pub protocol: u8,
    /// How long it is remembered while it rests.
    pub rest: Duration,
    /// The same while only one side has spoken.
    pub rest_unanswered: Duration,
}

/// Says why a conversation with a mark was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// It rested for too long.
    Idle,
    /// Another needed its place.
    Crowded,
    /// The filter does not allow it any more.
    Refused,
    /// Its ports are used for another.
    Replaced,
}

/// Says where the conversation of the packet judged last is, and who sent the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    Nothing,
    /// The newest of those that we opened.
    Own(Side),
    /// The newest of those that peers opened.
    Peers(Side),
    /// Not remembered for the verdict.
    Stateless(Side),
}

/// Holds marks of conversations that are gone.
#[derive(Debug, Default)]
pub(super) struct Forgotten(Vec<(u64, Parting)>);

impl Forgotten {
    pub(super) fn add(&mut self, flow: Option<Flow>, parting: Parting) {
        self.add_mark(flow.map_or(0, |flow| flow.mark), parting);
    }

    /// Keeps a mark, unless it is none, or nobody takes them.
    pub(super) fn add_mark(&mut self, mark: u64, parting: Parting) {
        if mark != 0 && self.0.len() < FORGOTTEN_MAX {
            self.0.push((mark, parting));
        }
    }
}

impl Firewall {
    /// Returns the mark of the conversation of `packet`, which was judged last: a number that the caller may keep with it, 0 at
    /// first. `None` if the packet was dropped or belongs to none: ICMP messages about others, TSMP, and later fragments,
    /// which nobody counts.
    #[inline]
    pub fn mark(&mut self, packet: &Packet<'_>) -> Option<&mut u64> {
        match self.touched {
            Touched::Nothing => None,
            Touched::Own(_) => self.own.newest().map(|flow| &mut flow.mark),
            Touched::Peers(_) => self.peers.newest().map(|flow| &mut flow.mark),
            Touched::Stateless(sender) => self.stateless_mark(packet, sender),
        }
    }

    /// Describes that conversation; `None` as for [`Self::mark`].
    pub fn conversation(&self, packet: &Packet<'_>) -> Option<Conversation> {
        let (opener, sender) = match self.touched {
            Touched::Nothing => return None,
            Touched::Own(sender) => (Side::Us, sender),
            Touched::Peers(sender) => (Side::Them, sender),
            Touched::Stateless(sender) => return Some(stateless(packet, sender)),
        };
        let (protocol, ports) = match packet.body() {
            Body::Tcp { ports, .. } => (PROTO_TCP, ports),
            Body::Udp { ports } => (PROTO_UDP, ports),
            Body::Sctp { ports } => (PROTO_SCTP, ports),
            Body::Icmp(Icmp::EchoRequest { id }) => (packet.protocol(), Ports { source: id, destination: 0 }),
            Body::Icmp(Icmp::EchoReply { id }) => (packet.protocol(), Ports { source: 0, destination: id }),
            Body::Icmp(Icmp::Error | Icmp::Other) | Body::Tsmp | Body::Other | Body::LaterFragment => return None,
        };
        let (rest, rest_unanswered) = match protocol {
            PROTO_TCP => (TCP_OPEN, TCP_TRANSITORY),
            PROTO_UDP => (UDP, UDP),
            PROTO_SCTP => (SCTP, SCTP),
            _ => (ECHO, ECHO),
        };
        let source = (packet.source(), ports.source);
        let destination = (packet.destination(), ports.destination);
        let (local, remote) = match sender {
            Side::Us => (source, destination),
            Side::Them => (destination, source),
        };
        Some(Conversation { opener, local, remote, protocol, rest, rest_unanswered })
    }

    /// Finds or makes the mark of a conversation without state.
    fn stateless_mark(&mut self, packet: &Packet<'_>, sender: Side) -> Option<&mut u64> {
        let Conversation { protocol, local, remote, .. } = stateless(packet, sender);
        let key = FlowKey::new(protocol, local, remote);
        if self.stateless.touch(&key).is_none()
            && let Some(pushed_out) = self.stateless.insert(key, 0)
        {
            self.forgotten.add_mark(pushed_out, Parting::Crowded);
        }
        self.stateless.newest()
    }

    /// Returns the number of the first rule that lets `packet` in, from 0; `None` if none does. It costs more than a verdict.
    pub fn rule_for(&self, packet: &Packet<'_>) -> Option<u32> {
        let want = match packet.body() {
            Body::Tcp { ports, .. } => Want::Tcp(ports.destination),
            Body::Udp { ports } => Want::Udp(ports.destination),
            Body::Sctp { ports } => Want::Sctp(ports.destination),
            Body::Icmp(Icmp::EchoRequest { .. }) => Want::Icmp,
            Body::Other => Want::Protocol(packet.protocol()),
            Body::Icmp(Icmp::EchoReply { .. } | Icmp::Error | Icmp::Other) | Body::Tsmp | Body::LaterFragment => {
                return None;
            }
        };
        self.filter.first_rule(packet.source(), packet.destination(), want)
    }

    /// Returns the mark of a conversation that was forgotten, and why. Take them after each packet, if marks are given at all.
    pub fn take_forgotten(&mut self) -> Option<(u64, Parting)> {
        self.forgotten.0.pop()
    }
}

/// Describes a conversation that is judged packet by packet.
fn stateless(packet: &Packet<'_>, sender: Side) -> Conversation {
    let (local, remote) = match sender {
        Side::Us => (packet.source(), packet.destination()),
        Side::Them => (packet.destination(), packet.source()),
    };
    // A ping of a peer: we have no port, the identifier is theirs.
    let (remote_port, opener, rest) = match packet.body() {
        Body::Icmp(Icmp::EchoRequest { id } | Icmp::EchoReply { id }) => (id, Side::Them, ECHO),
        Body::Tcp { .. }
        | Body::Udp { .. }
        | Body::Sctp { .. }
        | Body::Icmp(Icmp::Error | Icmp::Other)
        | Body::Tsmp
        | Body::Other
        | Body::LaterFragment => (0, sender, UDP),
    };
    Conversation {
        opener,
        local: (local, 0),
        remote: (remote, remote_port),
        protocol: packet.protocol(),
        rest,
        rest_unanswered: rest,
    }
}
