//! The judge of packets.

mod conversation;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::flow::{FRAGMENT, Flow, FlowKey, FragmentKey, Side};
use crate::packet::{Body, Icmp, PROTO_SCTP, PROTO_TCP, PROTO_UDP, Packet, Ports, TcpFlags, quoted};
use crate::recent::RecentMap;
use crate::rules::{Filter, Want};
use conversation::{Forgotten, Touched};

pub use conversation::{Conversation, MAX_STATELESS, Parting};

/// The most conversations remembered that this node opened; the one idle longest is forgotten for a new one.
pub const MAX_OWN_FLOWS: u32 = 65_536;

/// The most conversations remembered that others opened; the one idle longest is forgotten for a new one.
///
/// Apart from [`MAX_OWN_FLOWS`], so that no peer can make us forget our own. A forgotten one is judged by the rules anew.
pub const MAX_PEER_FLOWS: u32 = 16_384;

/// The most packets in pieces remembered at a time.
pub const MAX_FRAGMENTED: u32 = 1_024;

/// How long after its start a firewall takes TCP packets of ours in the middle of a connection as proof that we opened
/// it: connections that outlive a restart of the daemon would break otherwise.
pub const ADOPTION: Duration = Duration::from_secs(120);

/// Judges packets by a [`Filter`] and by what was said before.
///
/// # What passes inbound
/// | packet | passes if |
/// |---|---|
/// | any | well-formed, to a local net; neither end is a group, link-local, loopback or an IPv4 address within IPv6 |
/// | TCP, no pure SYN | on a connection we opened (by SYN), or a rule allows it |
/// | TCP, pure SYN | a rule allows it |
/// | UDP, SCTP | in a conversation we opened, or a rule allows it |
/// | ping | any rule leads from source to destination, ports and protocols aside |
/// | ping's answer | we asked, with that identifier |
/// | ICMP error | it quotes a packet of ours in a conversation that would pass itself |
/// | other ICMP | never (redirects, router advertisements, timestamps …) |
/// | later fragment | the first fragment passed in the last 30 s, under the same filter |
/// | TSMP | never to the host: [`Verdict::Tsmp`], for the caller to answer |
/// | other protocols | a rule lists the protocol with all ports |
///
/// No rule holds for a packet that claims to come from an address of our own.
///
/// This is stricter than upstream, which lets in any TCP packet without SYN, any later fragment, any echo reply and any
/// ICMP error, and any ICMP for which there is a rule.
///
/// # A new filter
/// [`Self::use_filter`] judges no flow at once: each is judged at its next packet. A conversation that a peer opened must
/// be allowed by the new rules; one that we opened goes on. A refused one is remembered as refused, so that an answer
/// of ours does not open it again. Only a peer that may open [`MAX_PEER_FLOWS`] others can make us forget that.
///
/// # Cost
/// One hash lookup for a packet of a conversation we opened, two for one that a peer opened; the first packet of each
/// conversation, and packets that are refused, cost a rule lookup on top (see [`Filter`]). Nothing is allocated but the tables'
/// growth up to their bounds (about 120 bytes a conversation).
///
/// One value serves one worker. All calls take the time; it must not run backwards by more than a second.
#[derive(Debug)]
pub struct Firewall {
    filter: Arc<Filter>,
    /// Counts the filters; a flow that was judged by an earlier one is judged again.
    generation: u32,
    start: Instant,
    /// Seconds after `start` until which TCP packets of ours open a flow without SYN.
    adopts_until: u32,
    own: RecentMap<FlowKey, Flow>,
    peers: RecentMap<FlowKey, Flow>,
    fragmented: RecentMap<FragmentKey, FirstPiece>,
    /// Marks of conversations that are judged packet by packet.
    stateless: RecentMap<FlowKey, u64>,
    /// Where the conversation of the packet judged last is remembered.
    touched: Touched,
    forgotten: Forgotten,
}

/// Says what a packet's peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerMode {
    /// What the rules allow.
    #[default]
    Normal,
    /// Answer only.
    Jailed,
}

/// Says what to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Hand it to the tunnel's own control protocol (inbound only); the host must not see it.
    Tsmp,
    /// Drop it.
    Drop(DropReason),
}

/// Says why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// To a group of hosts.
    Multicast,
    /// To an address that is valid on one link only.
    LinkLocal,
    /// From or to an address that no packet between nodes can have: loopback, broadcast, unspecified, or an IPv4 address
    /// written as an IPv6 one; or TSMP from an address of our own.
    BadAddress,
    /// To an address that is not ours to take packets for.
    NotLocal,
    /// No rule allows to open this conversation.
    NoRule,
    /// Not the start of a conversation, nor part of a known one, nor allowed by a rule.
    NoFlow,
    /// The peer may only answer.
    Jailed,
    /// A piece of a packet whose first piece did not pass.
    Fragment,
    /// An ICMP message that is neither a ping, nor an answer to ours, nor about a known conversation.
    Icmp,
    /// A protocol that only the daemon itself may speak.
    Reserved,
}

#[derive(Debug, Clone, Copy)]
struct FirstPiece {
    at: u32,
    judged_by: u32,
}

impl Firewall {
    /// Makes a firewall that lets nothing in until [`Self::use_filter`].
    ///
    /// `seed` must be random and secret: it keeps peers from choosing packets that are slow to look up.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            filter: Arc::new(Filter::deny_all()),
            generation: 0,
            start: now,
            adopts_until: u32::try_from(ADOPTION.as_secs()).unwrap_or(u32::MAX),
            own: RecentMap::new(MAX_OWN_FLOWS, seed),
            peers: RecentMap::new(MAX_PEER_FLOWS, seed),
            fragmented: RecentMap::new(MAX_FRAGMENTED, seed),
            stateless: RecentMap::new(MAX_STATELESS, seed),
            touched: Touched::Nothing,
            forgotten: Forgotten::default(),
        }
    }

    /// Judges by `filter` from now on; does nothing if it is the one in use.
    pub fn use_filter(&mut self, filter: &Arc<Filter>) {
        if !Arc::ptr_eq(&self.filter, filter) {
            self.filter = Arc::clone(filter);
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Returns the filter in use.
    pub fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// Returns the number of conversations remembered.
    pub fn flows(&self) -> usize {
        self.own.len() + self.peers.len()
    }

    /// Judges a packet that came out of the tunnel; its source must have been checked to belong to the peer.
    pub fn check_inbound(&mut self, packet: &Packet<'_>, peer: PeerMode, now: Instant) -> Verdict {
        let now = self.seconds(now);
        self.touched = Touched::Nothing;
        let verdict = self.judge_inbound(packet, peer, now);
        if verdict != Verdict::Accept {
            self.touched = Touched::Nothing;
        }
        if verdict == Verdict::Accept
            && let Some(fragment) = packet.fragment()
            && fragment.is_first
        {
            let key = fragment_key(packet, fragment.id, peer);
            self.fragmented.insert(key, FirstPiece { at: now, judged_by: self.generation });
        }
        verdict
    }

    /// Judges a packet that the host wants to send into the tunnel, and remembers the conversation.
    pub fn check_outbound(&mut self, packet: &Packet<'_>, now: Instant) -> Verdict {
        self.touched = Touched::Nothing;
        if let Some(reason) = unfit(packet.destination()) {
            return Verdict::Drop(reason);
        }
        if packet.body() == Body::Tsmp {
            return Verdict::Drop(DropReason::Reserved);
        }
        self.note_outbound(packet, now);
        Verdict::Accept
    }

    /// Remembers the conversation of a packet that the daemon itself sends, so that the answer passes.
    pub fn note_outbound(&mut self, packet: &Packet<'_>, now: Instant) {
        let now = self.seconds(now);
        self.touched = Touched::Nothing;
        let (protocol, ports, flags) = match packet.body() {
            Body::Tcp { ports, flags } => (PROTO_TCP, ports, Some(flags)),
            Body::Udp { ports } => (PROTO_UDP, ports, None),
            Body::Sctp { ports } => (PROTO_SCTP, ports, None),
            Body::Icmp(Icmp::EchoRequest { id }) => (packet.protocol(), Ports { source: id, destination: 0 }, None),
            Body::Icmp(Icmp::EchoReply { .. }) | Body::Other => {
                self.touched = Touched::Stateless(Side::Us);
                return;
            }
            Body::Icmp(Icmp::Error | Icmp::Other) | Body::Tsmp | Body::LaterFragment => return,
        };
        let key = FlowKey::new(protocol, (packet.source(), ports.source), (packet.destination(), ports.destination));
        if let Some(flow) = live(&mut self.own, &key, now) {
            flow.saw(Side::Us, flags, now);
            self.touched = Touched::Own(Side::Us);
            return;
        }
        let opens = flags.is_some_and(TcpFlags::is_opening);
        if opens {
            let replaced = self.peers.remove(&key);
            self.forgotten.add(replaced, Parting::Replaced);
        } else if let Some(flow) = live(&mut self.peers, &key, now) {
            flow.saw(Side::Us, flags, now);
            // What is refused is counted where it comes from.
            self.touched = if flow.allowed { Touched::Peers(Side::Us) } else { Touched::Nothing };
            return;
        }
        let adopts = || {
            let amid = |flags: TcpFlags| !flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::RST);
            now < self.adopts_until && flags.is_some_and(amid)
        };
        if flags.is_none() || opens || adopts() {
            let mut flow = Flow::new(protocol, now, self.generation);
            flow.saw(Side::Us, flags, now);
            insert(&mut self.own, &mut self.forgotten, key, flow, now);
            self.touched = Touched::Own(Side::Us);
        }
    }

    fn judge_inbound(&mut self, packet: &Packet<'_>, peer: PeerMode, now: u32) -> Verdict {
        let (source, destination) = (packet.source(), packet.destination());
        if let Some(reason) = unfit(destination) {
            return Verdict::Drop(reason);
        }
        if !self.filter.is_local(destination) {
            return Verdict::Drop(DropReason::NotLocal);
        }
        if let Some(reason) = unfit(source) {
            return Verdict::Drop(reason);
        }
        match packet.body() {
            Body::Tcp { ports, flags } => {
                let want = Want::Tcp(ports.destination);
                self.judge_flow(packet, Opening { protocol: PROTO_TCP, ports, flags: Some(flags), want }, peer, now)
            }
            Body::Udp { ports } => {
                let want = Want::Udp(ports.destination);
                self.judge_flow(packet, Opening { protocol: PROTO_UDP, ports, flags: None, want }, peer, now)
            }
            Body::Sctp { ports } => {
                let want = Want::Sctp(ports.destination);
                self.judge_flow(packet, Opening { protocol: PROTO_SCTP, ports, flags: None, want }, peer, now)
            }
            Body::Icmp(Icmp::EchoRequest { .. }) => {
                self.touched = Touched::Stateless(Side::Them);
                self.judge_rules(packet, Want::Icmp, peer)
            }
            Body::Icmp(Icmp::EchoReply { id }) => {
                let key = FlowKey::new(packet.protocol(), (destination, id), (source, 0));
                match live(&mut self.own, &key, now) {
                    Some(flow) => {
                        flow.saw(Side::Them, None, now);
                        self.touched = Touched::Own(Side::Them);
                        Verdict::Accept
                    }
                    None => Verdict::Drop(DropReason::Icmp),
                }
            }
            Body::Icmp(Icmp::Error) => self.judge_icmp_error(packet, peer, now),
            Body::Icmp(Icmp::Other) => Verdict::Drop(DropReason::Icmp),
            Body::Tsmp if self.filter.is_own(source) => Verdict::Drop(DropReason::BadAddress),
            Body::Tsmp => Verdict::Tsmp,
            Body::Other => {
                self.touched = Touched::Stateless(Side::Them);
                self.judge_rules(packet, Want::Protocol(packet.protocol()), peer)
            }
            Body::LaterFragment => {
                let id = packet.fragment().map_or(0, |fragment| fragment.id);
                let passed = self.fragmented.peek(&fragment_key(packet, id, peer)).is_some_and(|first| {
                    first.judged_by == self.generation && u64::from(now.saturating_sub(first.at)) <= FRAGMENT.as_secs()
                });
                if passed { Verdict::Accept } else { Verdict::Drop(DropReason::Fragment) }
            }
        }
    }

    /// Judges a packet by the rules alone.
    fn judge_rules(&self, packet: &Packet<'_>, want: Want, peer: PeerMode) -> Verdict {
        if peer == PeerMode::Jailed {
            Verdict::Drop(DropReason::Jailed)
        } else if self.filter.allows(packet.source(), packet.destination(), want) {
            Verdict::Accept
        } else {
            Verdict::Drop(DropReason::NoRule)
        }
    }

    /// Judges a packet of a protocol with ports.
    fn judge_flow(&mut self, packet: &Packet<'_>, opening: Opening, peer: PeerMode, now: u32) -> Verdict {
        let Opening { protocol, ports, flags, want } = opening;
        let opens = flags.is_some_and(TcpFlags::is_opening);
        let key = FlowKey::new(protocol, (packet.destination(), ports.destination), (packet.source(), ports.source));
        // A pure SYN never answers us: it opens something, even on ports that we used ourselves.
        if !opens && let Some(flow) = live(&mut self.own, &key, now) {
            flow.saw(Side::Them, flags, now);
            self.touched = Touched::Own(Side::Them);
            return Verdict::Accept;
        }
        if peer == PeerMode::Jailed {
            return Verdict::Drop(DropReason::Jailed);
        }
        let refused = match flags {
            Some(flags) if !flags.is_opening() => Verdict::Drop(DropReason::NoFlow),
            _ => Verdict::Drop(DropReason::NoRule),
        };
        let (filter, generation) = (&self.filter, self.generation);
        let allows = || filter.allows(packet.source(), packet.destination(), want);
        if let Some(flow) = live(&mut self.peers, &key, now) {
            if flow.judged_by != generation {
                flow.allowed = allows();
                flow.judged_by = generation;
            }
            if !flow.allowed {
                // Kept alive, so that our own packets do not pass for the opening of something new.
                flow.last = now;
                self.adopts_until = 0;
                self.forgotten.add_mark(std::mem::take(&mut flow.mark), Parting::Refused);
                return refused;
            }
            flow.saw(Side::Them, flags, now);
            self.touched = Touched::Peers(Side::Them);
            return Verdict::Accept;
        }
        if !allows() {
            return refused;
        }
        if opens {
            let replaced = self.own.remove(&key);
            self.forgotten.add(replaced, Parting::Replaced);
        }
        let mut flow = Flow::new(protocol, now, generation);
        flow.saw(Side::Them, flags, now);
        insert(&mut self.peers, &mut self.forgotten, key, flow, now);
        self.touched = Touched::Peers(Side::Them);
        Verdict::Accept
    }

    /// Lets an ICMP error pass that quotes a packet of ours, if an answer to that packet would pass.
    fn judge_icmp_error(&mut self, packet: &Packet<'_>, peer: PeerMode, now: u32) -> Verdict {
        let refused = Verdict::Drop(DropReason::Icmp);
        let Some(quoted) = quoted(packet.source().is_ipv6(), packet.transport()) else {
            return refused;
        };
        if quoted.source != packet.destination() {
            return refused;
        }
        let local = (quoted.source, quoted.ports.source);
        let remote = (quoted.destination, quoted.ports.destination);
        let key = FlowKey::new(quoted.protocol, local, remote);
        if live(&mut self.own, &key, now).is_some() {
            return Verdict::Accept;
        }
        let want = match quoted.protocol {
            PROTO_TCP => Want::Tcp(local.1),
            PROTO_UDP => Want::Udp(local.1),
            PROTO_SCTP => Want::Sctp(local.1),
            _ => return refused,
        };
        let Some(flow) = live(&mut self.peers, &key, now) else {
            return refused;
        };
        if flow.judged_by != self.generation {
            flow.allowed = self.filter.allows(remote.0, local.0, want);
            flow.judged_by = self.generation;
        }
        if flow.allowed && peer == PeerMode::Normal { Verdict::Accept } else { refused }
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }
}

/// Gathers what a packet would open.
#[derive(Debug, Clone, Copy)]
struct Opening {
    protocol: u8,
    ports: Ports,
    flags: Option<TcpFlags>,
    want: Want,
}

/// Says why nothing may come from or go to `address`, whatever the rules.
fn unfit(address: IpAddr) -> Option<DropReason> {
    let (link_local, bad) = match address {
        IpAddr::V4(ip) => {
            (ip.is_link_local() && ip != METADATA, ip.is_loopback() || ip.is_unspecified() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            // All but the last 32 bits of `::`, `::1` and `::a.b.c.d` are zero, of `::ffff:a.b.c.d` all but 16 more.
            let bad = matches!(ip.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, ..]);
            (ip.is_unicast_link_local(), bad)
        }
    };
    if address.is_multicast() {
        Some(DropReason::Multicast)
    } else if link_local {
        Some(DropReason::LinkLocal)
    } else {
        bad.then_some(DropReason::BadAddress)
    }
}

/// The address at which clouds serve machine data; a subnet router may offer it.
const METADATA: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 169, 254);

fn fragment_key(packet: &Packet<'_>, id: u32, peer: PeerMode) -> FragmentKey {
    FragmentKey::new(packet.source(), packet.destination(), packet.protocol(), id, peer == PeerMode::Jailed)
}

/// Finds a flow that has not expired and makes it the most recent.
fn live<'a>(flows: &'a mut RecentMap<FlowKey, Flow>, key: &FlowKey, now: u32) -> Option<&'a mut Flow> {
    flows.touch(key).filter(|flow| !flow.is_expired(now))
}

/// Adds a flow, and clears away up to two that have expired, so that idle tables shrink as fast as they grew.
fn insert(flows: &mut RecentMap<FlowKey, Flow>, forgotten: &mut Forgotten, key: FlowKey, flow: Flow, now: u32) {
    for _ in 0..2 {
        let Some(expired) = flows.remove_oldest_if(|flow| flow.is_expired(now)) else { break };
        forgotten.add(Some(expired), Parting::Idle);
    }
    let gone = flows.insert(key, flow);
    let parting =
        gone.map_or(Parting::Idle, |gone| if gone.is_expired(now) { Parting::Idle } else { Parting::Crowded });
    forgotten.add(gone, parting);
}

#[cfg(test)]
mod tests;
