//! The same verdicts from the slowest possible program: lists, searched from end to end, and rules read as text.

use super::*;
use crate::packet::Body;
use ipnet::IpNet;
use proptest::prelude::*;

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
struct Model {
    rules: Vec<String>,
    version: usize,
    known: Vec<Known>,
    pieces: Vec<Let>,
    adopting: bool,
}

impl Model {
    fn rule_allows(&self, from: IpAddr, to: IpAddr, port: Option<u16>, protocol: u8) -> bool {
        self.rules.iter().any(|rule| {
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

    fn inbound(&mut self, bytes: &[u8], jailed: bool, now: u64) -> Verdict {
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
        if to != ip(ADDRESSES[0]) && to != ip(ADDRESSES6[0]) {
            return dropped(DropReason::NotLocal);
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

    fn outbound(&mut self, bytes: &[u8], now: u64) -> Verdict {
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

#[derive(Debug, Clone)]
enum Step {
    Inbound(Vec<u8>, bool),
    Outbound(Vec<u8>),
    Wait(u64),
    Rules(Vec<String>),
}

/// Us, two peers, and an address that is none of ours.
const ADDRESSES: [&str; 4] = [US, PEER, OTHER, "100.64.0.99"];
const ADDRESSES6: [&str; 4] = ["fd7a:115c:a1e0::1", "fd00::2", "fd00::3", "fd00::99"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    In,
    Out,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: u8,
    v6: bool,
    peer: usize,
    wrong_local: bool,
    ports: (u16, u16),
    flags: u8,
    id: u16,
    variant: u8,
}

fn any_shape() -> impl Strategy<Value = Shape> {
    // SYN and ACK must be frequent for connections to come about.
    let flags = proptest::sample::select(vec![SYN, SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST, FIN | SYN, 0]);
    let first = (0_u8..9, proptest::bool::weighted(0.2), 1_usize..3, proptest::bool::weighted(0.02));
    (first, (20_u16..22, 50_u16..51), flags, 0_u16..2, 0_u8..3).prop_map(
        |((kind, v6, peer, wrong_local), ports, flags, id, variant)| Shape {
            kind,
            v6,
            peer,
            wrong_local,
            ports,
            flags,
            id,
            variant,
        },
    )
}

impl Shape {
    fn bytes(self, way: Way) -> Vec<u8> {
        let all = if self.v6 { ADDRESSES6 } else { ADDRESSES };
        let us = (if self.wrong_local { all[3] } else { all[0] }, self.ports.0);
        let them = (all[self.peer], self.ports.1);
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
                packet(ip(from.0), ip(to.0), 17, Some(piece), &udp_header(from.1, to.1))
            }
        }
    }
}

fn any_rule() -> impl Strategy<Value = String> {
    let source = proptest::sample::select(vec!["*", PEER, OTHER, "100.64.0.0/30", "fd00::2", "fd00::/64"]);
    let destination = proptest::sample::select(vec!["*", US, "100.64.0.0/16", "fd7a:115c:a1e0::1", "fd7a::/16"]);
    let ports = proptest::sample::select(vec!["20 20", "21 22", "0 65535", "22 20", "0 20"]);
    let protocols = proptest::sample::select(vec!["", "", " 6", " 17", " 132 6", " 47", " 300"]);
    (source, destination, ports, protocols).prop_map(|(a, b, c, d)| format!("{a} {b} {c}{d}"))
}

fn any_step() -> impl Strategy<Value = Step> {
    let seconds = proptest::sample::select(vec![1, 29, 31, 61, 119, 239, 301, 901, 86_399, 86_401]);
    prop_oneof![
        10 => (any_shape(), proptest::bool::weighted(0.1))
            .prop_map(|(shape, jailed)| Step::Inbound(shape.bytes(Way::In), jailed)),
        7 => any_shape().prop_map(|shape| Step::Outbound(shape.bytes(Way::Out))),
        1 => seconds.prop_map(Step::Wait),
        1 => proptest::collection::vec(any_rule(), 0..4).prop_map(Step::Rules),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn verdicts_are_those_of_the_model(
        first in proptest::collection::vec(any_rule(), 0..4),
        steps in proptest::collection::vec(any_step(), 1..120),
    ) {
        let rules: Vec<&str> = first.iter().map(String::as_str).collect();
        let mut bench = Bench::new(&rules);
        let mut model = Model { rules: first, adopting: true, ..Model::default() };
        let mut now = 0;
        for step in steps {
            match step {
                Step::Inbound(bytes, jailed) => {
                    let verdict = if jailed { bench.jailed(&bytes) } else { bench.inbound(&bytes) };
                    let expected = model.inbound(&bytes, jailed, now);
                    prop_assert_eq!(verdict, expected, "{:?} at {}", Packet::parse(&bytes), now);
                }
                Step::Outbound(bytes) => prop_assert_eq!(bench.outbound(&bytes), model.outbound(&bytes, now)),
                Step::Wait(seconds) => {
                    now += seconds;
                    bench.wait(Duration::from_secs(seconds));
                }
                Step::Rules(rules) => {
                    bench.replace(&rules.iter().map(String::as_str).collect::<Vec<_>>());
                    model.rules = rules;
                    model.version += 1;
                }
            }
        }
    }
}
