//! The same verdicts from the slowest possible program: lists, searched from end to end, and rules read as text.
//!
//! The fuzz package compiles this file, too. It takes what it needs from the module around it.

use super::{
    ACCEPT, ACK, Body, DropReason, FIN, Icmp, OTHER, PEER, Packet, Piece, Ports, RST, SYN, US, Verdict, dropped,
    echo_reply, echo_request, icmp_packet, ip, packet, sctp, tcp, tcp_header, udp, udp_header, unreachable,
};
use ipnet::IpNet;
use std::net::IpAddr;

type End = (IpAddr, u16);

/// Names a conversation: protocol, our end, their end, and whether we opened it.
type Talk = (u8, End, End, bool);

#[derive(Debug)]
struct Known {
    talk: Talk,
    last: u64,
    /// Everything seen, as (from us, flags).
    seen: Vec<(bool, u8)>,
    /// Version of the rules that judged it last, and what they said.
    judged: (usize, bool),
}

impl Known {
    fn lifetime(&self) -> u64 {
        match self.talk.0 {
            6 => {}
            17 => return 300,
            132 => return 900,
            _ => return 60,
        }
        // What counts is what came since the last pure SYN.
        let from = self.seen.iter().rposition(|(_, flags)| flags & (SYN | ACK) == SYN).unwrap_or(0);
        let any =
            |side: bool, mask: u8| self.seen[from..].iter().any(|&(us, flags)| us == side && flags & mask == mask);
        let answered = any(true, 0) && any(false, 0);
        let ended = any(true, FIN) && any(false, FIN) || any(true, RST) || any(false, RST);
        if answered && !ended { 24 * 3600 } else { 240 }
    }
}

/// A first piece that was let in.
#[derive(Debug)]
struct Let {
    what: (IpAddr, IpAddr, u8, u32, bool),
    at: u64,
    version: usize,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    rules: Vec<String>,
    version: usize,
    known: Vec<Known>,
    pieces: Vec<Let>,
    adopting: bool,
}

impl Model {
    /// Starts with rules, each "source destination first last protocols…".
    pub(super) fn new(rules: Vec<String>) -> Self {
        Self { rules, adopting: true, ..Self::default() }
    }

    /// Judges by other rules from now on.
    pub(super) fn replace(&mut self, rules: Vec<String>) {
        self.rules = rules;
        self.version += 1;
    }

    fn rule_allows(&self, from: IpAddr, to: IpAddr, port: Option<u16>, protocol: u8) -> bool {
        let ours = from == ip(ADDRESSES[0]) || from == ip(ADDRESSES6[0]);
        !ours
            && self.rules.iter().any(|rule| {
                let words: Vec<&str> = rule.split(' ').collect();
                let holds = |text: &str, ip: IpAddr| {
                    text == "*"
                        || text.parse::<IpAddr>().is_ok_and(|one| one == ip)
                        || text.parse::<IpNet>().is_ok_and(|net| net.contains(&ip))
                };
                let (first, last): (u16, u16) = (words[2].parse().unwrap(), words[3].parse().unwrap());
                let listed: Vec<u8> = match &words[4..] {
                    [] => vec![1, 6, 17, 58],
                    listed => listed.iter().filter_map(|word| word.parse().ok()).collect(),
                };
                let wanted = match (protocol, port) {
                    (1 | 58, _) => true,
                    (_, Some(port)) => listed.contains(&protocol) && (first..=last).contains(&port),
                    (_, None) => listed.contains(&protocol) && (first, last) == (0, 65_535),
                };
                holds(words[0], from) && holds(words[1], to) && wanted
            })
    }

    fn find(&mut self, talk: Talk, now: u64) -> Option<&mut Known> {
        self.known.iter_mut().find(|one| one.talk == talk && now - one.last <= one.lifetime())
    }

    fn forget(&mut self, talk: Talk) {
        self.known.retain(|one| one.talk != talk);
    }

    fn add(&mut self, talk: Talk, flags: Option<u8>, now: u64) {
        self.forget(talk);
        let judged = (self.version, true);
        self.known.push(Known { talk, last: now, seen: vec![(talk.3, flags.unwrap_or(0))], judged });
    }

    /// Judges a conversation that they opened by today's rules; `None` if there is none.
    fn still_allowed(&mut self, talk: Talk, now: u64) -> Option<bool> {
        let (version, said) = self.find(talk, now)?.judged;
        if version == self.version {
            return Some(said);
        }
        let (protocol, us, them, _) = talk;
        let said = self.rule_allows(them.0, us.0, Some(us.1), protocol);
        let version = self.version;
        self.find(talk, now)?.judged = (version, said);
        Some(said)
    }

    pub(super) fn inbound(&mut self, bytes: &[u8], jailed: bool, now: u64) -> Verdict {
        let packet = Packet::parse(bytes).unwrap();
        let verdict = self.judge(&packet, jailed, now);
        if let (ACCEPT, Some(fragment)) = (verdict, packet.fragment())
            && fragment.is_first
        {
            let what = (packet.source(), packet.destination(), packet.protocol(), fragment.id, jailed);
            self.pieces.push(Let { what, at: now, version: self.version });
        }
        verdict
    }

    fn judge(&mut self, packet: &Packet<'_>, jailed: bool, now: u64) -> Verdict {
        let (from, to, protocol) = (packet.source(), packet.destination(), packet.protocol());
        if within_one_machine(to) {
            return dropped(DropReason::BadAddress);
        }
        if to != ip(ADDRESSES[0]) && to != ip(ADDRESSES6[0]) {
            return dropped(DropReason::NotLocal);
        }
        if within_one_machine(from) {
            return dropped(DropReason::BadAddress);
        }
        match packet.body() {
            Body::Tcp { ports, flags } => self.ported(packet, ports, Some(flags.0), jailed, now),
            Body::Udp { ports } | Body::Sctp { ports } => self.ported(packet, ports, None, jailed, now),
            Body::Icmp(Icmp::EchoReply { id }) => match self.find((protocol, (to, id), (from, 0), true), now) {
                Some(known) => {
                    known.last = now;
                    ACCEPT
                }
                None => dropped(DropReason::Icmp),
            },
            Body::Icmp(Icmp::Other) => dropped(DropReason::Icmp),
            Body::Icmp(Icmp::Error) => {
                let Some((protocol, us, them)) = self.quoted(packet) else { return dropped(DropReason::Icmp) };
                let ours = self.find((protocol, us, them, true), now).is_some();
                let theirs = us.0 == to && !ours && self.still_allowed((protocol, us, them, false), now) == Some(true);
                if us.0 == to && (ours || theirs && !jailed) { ACCEPT } else { dropped(DropReason::Icmp) }
            }
            Body::Tsmp => Verdict::Tsmp,
            Body::LaterFragment => {
                let what = (from, to, protocol, packet.fragment().unwrap().id, jailed);
                let fits = |piece: &Let| piece.what == what && piece.version == self.version && now - piece.at <= 30;
                if self.pieces.iter().any(fits) { ACCEPT } else { dropped(DropReason::Fragment) }
            }
            Body::Icmp(Icmp::EchoRequest { .. }) | Body::Other => {
                if jailed {
                    dropped(DropReason::Jailed)
                } else if self.rule_allows(from, to, None, protocol) {
                    ACCEPT
                } else {
                    dropped(DropReason::NoRule)
                }
            }
        }
    }

    /// Reads a quoted packet as a whole one: the generator quotes true packets, which only lack their end.
    fn quoted(&self, packet: &Packet<'_>) -> Option<(u8, End, End)> {
        let mut quote = packet.transport().get(8..)?.to_vec();
        quote.resize(80, 0);
        let (at, length) = if packet.source().is_ipv4() { (2, 80_u16) } else { (4, 40) };
        quote[at..at + 2].copy_from_slice(&length.to_be_bytes());
        let quote = Packet::parse(&quote).ok()?;
        let ports = match quote.body() {
            Body::Tcp { ports, .. } | Body::Udp { ports } | Body::Sctp { ports } => (ports.source, ports.destination),
            Body::Icmp(Icmp::EchoRequest { id }) => (id, 0),
            Body::Icmp(_) | Body::Tsmp | Body::Other | Body::LaterFragment => return None,
        };
        Some((quote.protocol(), (quote.source(), ports.0), (quote.destination(), ports.1)))
    }

    fn ported(&mut self, packet: &Packet<'_>, ports: Ports, flags: Option<u8>, jailed: bool, now: u64) -> Verdict {
        let (us, them) = ((packet.destination(), ports.destination), (packet.source(), ports.source));
        let (ours, theirs) = ((packet.protocol(), us, them, true), (packet.protocol(), us, them, false));
        let opens = flags.is_some_and(|flags| flags & (SYN | ACK) == SYN);
        if !opens && let Some(known) = self.find(ours, now) {
            known.last = now;
            known.seen.push((false, flags.unwrap_or(0)));
            return ACCEPT;
        }
        if jailed {
            return dropped(DropReason::Jailed);
        }
        let refused = dropped(if flags.is_some() && !opens { DropReason::NoFlow } else { DropReason::NoRule });
        if let Some(allowed) = self.still_allowed(theirs, now) {
            let known = self.find(theirs, now).unwrap();
            known.last = now;
            if allowed {
                known.seen.push((false, flags.unwrap_or(0)));
                return ACCEPT;
            }
            self.adopting = false;
            return refused;
        }
        if !self.rule_allows(them.0, us.0, Some(us.1), packet.protocol()) {
            return refused;
        }
        if opens {
            self.forget(ours);
        }
        self.add(theirs, flags, now);
        ACCEPT
    }

    pub(super) fn outbound(&mut self, bytes: &[u8], now: u64) -> Verdict {
        let packet = Packet::parse(bytes).unwrap();
        let (ports, flags) = match packet.body() {
            Body::Tcp { ports, flags } => ((ports.source, ports.destination), Some(flags.0)),
            Body::Udp { ports } | Body::Sctp { ports } => ((ports.source, ports.destination), None),
            Body::Icmp(Icmp::EchoRequest { id }) => ((id, 0), None),
            Body::Icmp(_) | Body::Tsmp | Body::Other | Body::LaterFragment => return ACCEPT,
        };
        let (us, them) = ((packet.source(), ports.0), (packet.destination(), ports.1));
        let (ours, theirs) = ((packet.protocol(), us, them, true), (packet.protocol(), us, them, false));
        let opens = flags.is_some_and(|flags| flags & (SYN | ACK) == SYN);
        let known = if self.find(ours, now).is_some() {
            Some(ours)
        } else if !opens && self.find(theirs, now).is_some() {
            Some(theirs)
        } else {
            None
        };
        if let Some(talk) = known {
            let known = self.find(talk, now).unwrap();
            known.last = now;
            known.seen.push((true, flags.unwrap_or(0)));
            return ACCEPT;
        }
        if opens {
            self.forget(theirs);
        }
        let adopts = self.adopting && now < 120 && flags.is_some_and(|flags| flags & (SYN | RST) == 0);
        if flags.is_none() || opens || adopts {
            self.add(ours, flags, now);
        }
        ACCEPT
    }
}

/// Sources, destinations, ports and protocols that make useful rules together.
pub(super) const SOURCES: [&str; 6] = ["*", PEER, OTHER, "100.64.0.0/30", "fd00::2", "fd00::/64"];
pub(super) const DESTINATIONS: [&str; 5] = ["*", US, "100.64.0.0/16", "fd7a:115c:a1e0::1", "fd7a::/16"];
pub(super) const PORTS: [&str; 5] = ["20 20", "21 22", "0 65535", "22 20", "0 20"];
pub(super) const PROTOCOLS: [&str; 7] = ["", "", " 6", " 17", " 132 6", " 47", " 300"];
/// Flags; SYN and ACK must be frequent for connections to come about.
pub(super) const FLAGS: [u8; 10] = [SYN, SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST, FIN | SYN, 0];
/// Waiting times around the lifetimes of flows, in seconds.
pub(super) const WAITS: [u64; 10] = [1, 29, 31, 61, 119, 239, 301, 901, 86_399, 86_401];

/// Us, two peers, and two addresses that are none of ours.
const ADDRESSES: [&str; 5] = [US, PEER, OTHER, "100.64.0.99", "127.0.0.1"];
const ADDRESSES6: [&str; 5] = ["fd7a:115c:a1e0::1", "fd00::2", "fd00::3", "fd00::99", "::ffff:100.64.0.1"];

/// Goes by the text of the address.
fn within_one_machine(ip: IpAddr) -> bool {
    let text = ip.to_string();
    text.starts_with("127.") || text.starts_with("::") || text == "0.0.0.0" || text == "255.255.255.255"
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Way {
    In,
    Out,
}

/// A packet in a few numbers, so that packets of one conversation are frequent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) kind: u8,
    pub(super) v6: bool,
    /// 1 or 2.
    pub(super) peer: usize,
    pub(super) wrong_local: bool,
    /// Ours and theirs.
    pub(super) ports: (u16, u16),
    pub(super) flags: u8,
    pub(super) id: u16,
    pub(super) variant: u8,
}

impl Shape {
    pub(super) fn bytes(self, way: Way) -> Vec<u8> {
        let all = if self.v6 { ADDRESSES6 } else { ADDRESSES };
        let wrong = all[3 + usize::from(self.id & 1)];
        let (us, them) = match (way, self.wrong_local, self.variant) {
            // Somebody claims to be us, or to be where nobody can be.
            (Way::In, true, 0) => (all[0], all[0]),
            (Way::In, true, 1) => (all[0], wrong),
            (_, true, _) => (wrong, all[self.peer]),
            _ => (all[0], all[self.peer]),
        };
        let (us, them) = ((us, self.ports.0), (them, self.ports.1));
        let (from, to) = if way == Way::In { (them, us) } else { (us, them) };
        match self.kind {
            0..=2 => tcp(from, to, self.flags),
            3 => udp(from, to),
            4 => sctp(from, to),
            5 => echo_request(from.0, to.0, self.id),
            6 => match self.variant {
                0 => echo_reply(from.0, to.0, self.id),
                1 => icmp_packet(from.0, to.0, 5, 0, &[0; 4]),
                _ => packet(ip(from.0), ip(to.0), 47, None, &[0; 4]),
            },
            7 => {
                let about = match self.variant {
                    0 => tcp(to, from, ACK),
                    1 => echo_request(to.0, from.0, self.id),
                    _ => udp(to, from),
                };
                unreachable(from.0, to.0, &about)
            }
            _ => {
                let offset = if self.variant == 0 { 0 } else { 20 };
                let piece = Piece { id: self.id, offset, more: true };
                let (protocol, header) = match self.flags {
                    SYN => (6, tcp_header(from.1, to.1, SYN)),
                    RST => (47, vec![0; 4]),
                    _ => (17, udp_header(from.1, to.1)),
                };
                packet(ip(from.0), ip(to.0), protocol, Some(piece), &header)
            }
        }
    }
}
