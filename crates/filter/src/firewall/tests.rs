use super::*;
use crate::rules::{FilterInput, Shields};
use crate::testing::*;
use warren_wire::control::{FilterRule, NetPortRange, PortRange};

mod model;
mod random;

const US: &str = "100.64.0.1";
const PEER: &str = "100.64.0.2";
const OTHER: &str = "100.64.0.3";

const ACCEPT: Verdict = Verdict::Accept;

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// A firewall and its clock.
struct Bench {
    firewall: Firewall,
    now: Instant,
}

impl Bench {
    /// Starts with rules, each "source destination first last protocols…".
    fn new(rules: &[&str]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary start, moved by hand from here")]
        let now = Instant::now();
        let mut bench = Self { firewall: Firewall::new(1, now), now };
        bench.replace(rules);
        bench
    }

    fn replace(&mut self, rules: &[&str]) {
        self.firewall.use_filter(&Arc::new(filter(rules, Shields::Down)));
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn inbound(&mut self, bytes: &[u8]) -> Verdict {
        self.firewall.check_inbound(&Packet::parse(bytes).unwrap(), PeerMode::Normal, self.now)
    }

    fn jailed(&mut self, bytes: &[u8]) -> Verdict {
        self.firewall.check_inbound(&Packet::parse(bytes).unwrap(), PeerMode::Jailed, self.now)
    }

    fn outbound(&mut self, bytes: &[u8]) -> Verdict {
        self.firewall.check_outbound(&Packet::parse(bytes).unwrap(), self.now)
    }

    fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.outbound(bytes), ACCEPT);
    }
}

fn rule(text: &str) -> FilterRule {
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap();
    let (source, destination, first, last) = (word(), word(), word(), word());
    FilterRule {
        src_ips: vec![source.to_owned()],
        dst_ports: vec![NetPortRange {
            ip: destination.to_owned(),
            bits: None,
            ports: PortRange { first: first.parse().unwrap(), last: last.parse().unwrap() },
        }],
        ip_proto: words.map(|word| word.parse().unwrap()).collect(),
        ..FilterRule::default()
    }
}

fn filter(rules: &[&str], shields: Shields) -> Filter {
    let rules: Vec<FilterRule> = rules.iter().map(|text| rule(text)).collect();
    let local = ["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "169.254.0.0/16", "224.0.0.0/4"];
    let local = local.map(|net| net.parse().unwrap());
    let input = FilterInput { rules: &rules, local: &local, shields, holders: &|_| vec![] };
    Filter::compile(&input).unwrap().0
}

#[test]
fn without_rules_nothing_comes_in_but_answers() {
    let mut bench = Bench::new(&[]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), SYN)), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), ACK)), dropped(DropReason::NoFlow));
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 22))), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&echo_request(PEER, US, 1)), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&echo_reply(PEER, US, 1)), dropped(DropReason::Icmp));

    bench.send(&tcp((US, 5000), (PEER, 22), SYN));
    assert_eq!(bench.inbound(&tcp((PEER, 22), (US, 5000), SYN | ACK)), ACCEPT);
    assert_eq!(bench.inbound(&tcp((PEER, 22), (US, 5000), ACK)), ACCEPT);
    assert_eq!(bench.inbound(&tcp((PEER, 22), (US, 5001), ACK)), dropped(DropReason::NoFlow));
    assert_eq!(bench.inbound(&tcp((OTHER, 22), (US, 5000), ACK)), dropped(DropReason::NoFlow));
    bench.send(&udp((US, 5000), (PEER, 53)));
    assert_eq!(bench.inbound(&udp((PEER, 53), (US, 5000))), ACCEPT);
    assert_eq!(bench.inbound(&udp((PEER, 54), (US, 5000))), dropped(DropReason::NoRule));
    bench.send(&sctp((US, 5000), (PEER, 53)));
    assert_eq!(bench.inbound(&sctp((PEER, 53), (US, 5000))), ACCEPT);
    bench.send(&echo_request(US, PEER, 7));
    assert_eq!(bench.inbound(&echo_reply(PEER, US, 7)), ACCEPT);
    assert_eq!(bench.inbound(&echo_reply(PEER, US, 8)), dropped(DropReason::Icmp));
    assert_eq!(bench.inbound(&echo_reply(OTHER, US, 7)), dropped(DropReason::Icmp));
    assert_eq!(bench.inbound(&echo_request(PEER, US, 7)), dropped(DropReason::NoRule));
}

#[test]
fn rules_open_what_they_say_in_both_families() {
    let mut bench = Bench::new(&["100.64.0.2 100.64.0.1 22 22 6", "fd7a:115c:a1e0::2 * 53 53 17"]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), SYN)), ACCEPT);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), ACK)), ACCEPT);
    assert_eq!(bench.inbound(&tcp((PEER, 6), (US, 22), ACK)), ACCEPT, "in the middle, but allowed");
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 23), SYN)), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 22))), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&echo_request(PEER, US, 7)), ACCEPT);
    let (us, peer) = ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2");
    assert_eq!(bench.inbound(&udp((peer, 5), (us, 53))), ACCEPT);
    assert_eq!(bench.inbound(&echo_request(peer, us, 7)), ACCEPT);
    assert_eq!(bench.inbound(&udp((peer, 5), (us, 54))), dropped(DropReason::NoRule));
}

#[test]
fn some_destinations_are_never_right() {
    let mut bench = Bench::new(&["* * 0 65535"]);
    assert_eq!(bench.inbound(&udp((PEER, 5), ("224.0.0.1", 5))), dropped(DropReason::Multicast));
    assert_eq!(bench.inbound(&udp((PEER, 5), ("169.254.1.1", 5))), dropped(DropReason::LinkLocal));
    assert_eq!(bench.inbound(&udp((PEER, 5), ("169.254.169.254", 5))), ACCEPT);
    assert_eq!(bench.inbound(&udp(("fd00::1", 5), ("fe80::1", 5))), dropped(DropReason::LinkLocal));
    assert_eq!(bench.inbound(&udp(("fd00::1", 5), ("ff02::1", 5))), dropped(DropReason::Multicast));
    assert_eq!(bench.inbound(&udp((PEER, 5), ("100.64.0.9", 5))), dropped(DropReason::NotLocal));
    assert_eq!(bench.inbound(&udp((PEER, 5), ("127.0.0.1", 5))), dropped(DropReason::BadAddress));
    assert_eq!(bench.inbound(&udp(("fd00::1", 5), ("::ffff:100.64.0.1", 5))), dropped(DropReason::BadAddress));
    assert_eq!(bench.inbound(&udp(("fd00::1", 5), ("::1", 5))), dropped(DropReason::BadAddress));
    assert_eq!(bench.outbound(&udp((US, 5), ("224.0.0.1", 5))), dropped(DropReason::Multicast));
    assert_eq!(bench.outbound(&udp(("fd00::1", 5), ("fe80::1", 5))), dropped(DropReason::LinkLocal));
}

#[test]
fn some_sources_are_never_right() {
    let mut bench = Bench::new(&["* * 0 65535"]);
    for source in ["127.0.0.1", "0.0.0.0", "255.255.255.255"] {
        assert_eq!(bench.inbound(&udp((source, 5), (US, 5))), dropped(DropReason::BadAddress), "{source}");
    }
    let us = "fd7a:115c:a1e0::1";
    for source in ["::", "::1", "::ffff:100.64.0.2", "::100.64.0.2"] {
        assert_eq!(bench.inbound(&udp((source, 5), (us, 5))), dropped(DropReason::BadAddress), "{source}");
    }
    assert_eq!(bench.inbound(&udp(("224.0.0.1", 5), (US, 5))), dropped(DropReason::Multicast));
    assert_eq!(bench.inbound(&udp(("fe80::1", 5), (us, 5))), dropped(DropReason::LinkLocal));
    assert_eq!(bench.inbound(&udp(("169.254.169.254", 5), (US, 5))), ACCEPT);
}

/// The land attack: a packet that seems to come from the address, even the port, that it goes to.
#[test]
fn nobody_else_is_us() {
    let mut bench = Bench::new(&["* * 0 65535", "* * 0 65535 47"]);
    let no_rule = dropped(DropReason::NoRule);
    for us in [US, "fd7a:115c:a1e0::1"] {
        assert_eq!(bench.inbound(&tcp((us, 22), (us, 22), SYN)), no_rule);
        assert_eq!(bench.inbound(&tcp((us, 22), (us, 22), ACK)), dropped(DropReason::NoFlow));
        assert_eq!(bench.inbound(&udp((us, 53), (us, 53))), no_rule);
        assert_eq!(bench.inbound(&echo_request(us, us, 1)), no_rule);
        assert_eq!(bench.inbound(&packet(ip(us), ip(us), 47, None, &[0; 4])), no_rule);
        let ping = crate::tsmp::Message::Ping { data: [1; 8] };
        let ping = ping.packet(ip(us), ip(us)).unwrap();
        assert_eq!(bench.inbound(&ping), dropped(DropReason::BadAddress));
    }
}

#[test]
fn control_packets_pass_neither_to_nor_from_the_host() {
    let mut bench = Bench::new(&["* * 0 65535 99"]);
    let ping = crate::tsmp::Message::Ping { data: [1; 8] };
    assert_eq!(bench.inbound(&ping.packet(ip(PEER), ip(US)).unwrap()), Verdict::Tsmp);
    assert_eq!(bench.outbound(&ping.packet(ip(US), ip(PEER)).unwrap()), dropped(DropReason::Reserved));
    assert_eq!(bench.inbound(&ping.packet(ip(PEER), ip("100.64.0.9")).unwrap()), dropped(DropReason::NotLocal));
}

#[test]
fn other_protocols_need_a_rule_of_their_own() {
    let mut bench = Bench::new(&["100.64.0.2 * 0 65535 47", "100.64.0.3 * 0 65535"]);
    let gre = |from| packet(ip(from), ip(US), 47, None, &[0; 8]);
    assert_eq!(bench.inbound(&gre(PEER)), ACCEPT);
    assert_eq!(bench.inbound(&gre(OTHER)), dropped(DropReason::NoRule));
    assert_eq!(bench.jailed(&gre(PEER)), dropped(DropReason::Jailed));
}

#[test]
fn jailed_peers_answer_but_do_not_open() {
    let mut bench = Bench::new(&["* * 0 65535"]);
    assert_eq!(bench.jailed(&tcp((PEER, 5), (US, 22), SYN)), dropped(DropReason::Jailed));
    assert_eq!(bench.jailed(&udp((PEER, 5), (US, 22))), dropped(DropReason::Jailed));
    assert_eq!(bench.jailed(&echo_request(PEER, US, 1)), dropped(DropReason::Jailed));
    bench.send(&tcp((US, 5000), (PEER, 22), SYN));
    bench.send(&udp((US, 5000), (PEER, 53)));
    bench.send(&echo_request(US, PEER, 1));
    assert_eq!(bench.jailed(&tcp((PEER, 22), (US, 5000), SYN | ACK)), ACCEPT);
    assert_eq!(bench.jailed(&udp((PEER, 53), (US, 5000))), ACCEPT);
    assert_eq!(bench.jailed(&echo_reply(PEER, US, 1)), ACCEPT);
    assert_eq!(bench.jailed(&tcp((PEER, 22), (US, 5000), SYN)), dropped(DropReason::Jailed));
    // What was open before the peer was jailed ends, though our side goes on talking.
    assert_eq!(bench.inbound(&udp((OTHER, 5), (US, 80))), ACCEPT);
    bench.send(&udp((US, 80), (OTHER, 5)));
    assert_eq!(bench.jailed(&udp((OTHER, 5), (US, 80))), dropped(DropReason::Jailed));
    assert_eq!(bench.jailed(&unreachable(OTHER, US, &udp((US, 80), (OTHER, 5)))), dropped(DropReason::Icmp));
}

#[test]
fn a_new_filter_ends_what_peers_opened_and_keeps_what_we_opened() {
    let mut bench = Bench::new(&["100.64.0.2 * 22 53"]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), SYN)), ACCEPT);
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 53))), ACCEPT);
    bench.send(&tcp((US, 22), (PEER, 5), SYN | ACK));
    bench.send(&udp((US, 53), (PEER, 5)));
    bench.send(&tcp((US, 6000), (PEER, 443), SYN));

    bench.replace(&["100.64.0.2 * 53 53"]);
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 53))), ACCEPT);
    // Even though our side speaks first after the change, and again after the refusal.
    for _ in 0..2 {
        bench.send(&tcp((US, 22), (PEER, 5), ACK));
        assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), ACK)), dropped(DropReason::NoFlow));
    }
    assert_eq!(bench.inbound(&tcp((PEER, 443), (US, 6000), ACK)), ACCEPT);

    bench.replace(&[]);
    for _ in 0..2 {
        bench.send(&udp((US, 53), (PEER, 5)));
        assert_eq!(bench.inbound(&udp((PEER, 5), (US, 53))), dropped(DropReason::NoRule));
    }
    assert_eq!(bench.inbound(&tcp((PEER, 443), (US, 6000), ACK)), ACCEPT);

    bench.replace(&["100.64.0.2 * 22 53"]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), ACK)), ACCEPT, "allowed again");
}

#[test]
fn the_same_filter_again_is_no_change() {
    let mut bench = Bench::new(&["100.64.0.2 * 22 22"]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), SYN)), ACCEPT);
    let same = Arc::clone(bench.firewall.filter());
    bench.firewall.use_filter(&same);
    assert_eq!(bench.firewall.generation, 1);
}

#[test]
fn a_syn_opens_even_on_ports_that_we_used_ourselves() {
    let mut bench = Bench::new(&["100.64.0.3 * 5000 5000"]);
    for peer in [PEER, OTHER] {
        bench.send(&tcp((US, 5000), (peer, 22), SYN));
        assert_eq!(bench.inbound(&tcp((peer, 22), (US, 5000), SYN | ACK)), ACCEPT);
    }
    assert_eq!(bench.inbound(&tcp((PEER, 22), (US, 5000), SYN)), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&tcp((PEER, 22), (US, 5000), ACK)), ACCEPT, "our own connection is unharmed");
    assert_eq!(bench.inbound(&tcp((OTHER, 22), (US, 5000), SYN)), ACCEPT);
    bench.replace(&[]);
    assert_eq!(bench.inbound(&tcp((OTHER, 22), (US, 5000), ACK)), dropped(DropReason::NoFlow), "it is theirs now");
    bench.send(&tcp((US, 5000), (OTHER, 22), SYN));
    assert_eq!(bench.inbound(&tcp((OTHER, 22), (US, 5000), SYN | ACK)), ACCEPT, "and ours again");
}

#[test]
fn who_opened_last_owns_the_connection() {
    let mut bench = Bench::new(&["100.64.0.2 * 22 22"]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), SYN)), ACCEPT);
    bench.send(&tcp((US, 22), (PEER, 5), SYN));
    assert_eq!(bench.firewall.flows(), 1, "ours alone");
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), SYN)), ACCEPT);
    assert_eq!(bench.firewall.flows(), 1, "theirs alone");
    bench.replace(&[]);
    assert_eq!(bench.inbound(&tcp((PEER, 5), (US, 22), ACK)), dropped(DropReason::NoFlow));
}

#[test]
fn a_refused_conversation_stays_refused_while_anybody_speaks() {
    let mut bench = Bench::new(&["100.64.0.2 * 53 53"]);
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 53))), ACCEPT);
    bench.replace(&[]);
    for _ in 0..5 {
        bench.wait(crate::flow::UDP);
        assert_eq!(bench.inbound(&udp((PEER, 5), (US, 53))), dropped(DropReason::NoRule));
    }
    bench.send(&udp((US, 53), (PEER, 5)));
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 53))), dropped(DropReason::NoRule));
}

#[test]
fn connections_are_adopted_only_just_after_the_start() {
    let ours = tcp((US, 5000), (PEER, 22), ACK);
    let theirs = tcp((PEER, 22), (US, 5000), ACK);
    let mut bench = Bench::new(&[]);
    assert_eq!(bench.inbound(&theirs), dropped(DropReason::NoFlow));
    bench.send(&tcp((US, 5000), (PEER, 22), RST));
    assert_eq!(bench.inbound(&theirs), dropped(DropReason::NoFlow));
    bench.send(&ours);
    assert_eq!(bench.inbound(&theirs), ACCEPT);

    let mut bench = Bench::new(&[]);
    bench.wait(ADOPTION);
    bench.send(&ours);
    assert_eq!(bench.inbound(&theirs), dropped(DropReason::NoFlow));

    // Nor after something was taken back.
    let mut bench = Bench::new(&["100.64.0.3 * 80 80"]);
    assert_eq!(bench.inbound(&tcp((OTHER, 5), (US, 80), SYN)), ACCEPT);
    bench.replace(&[]);
    assert_eq!(bench.inbound(&tcp((OTHER, 5), (US, 80), ACK)), dropped(DropReason::NoFlow));
    bench.send(&ours);
    assert_eq!(bench.inbound(&theirs), dropped(DropReason::NoFlow));
}

#[test]
fn idle_conversations_are_forgotten_each_in_its_time() {
    let second = Duration::from_secs(1);
    let cases: [(Vec<u8>, Vec<u8>, Duration); 3] = [
        (udp((US, 5000), (PEER, 53)), udp((PEER, 53), (US, 5000)), crate::flow::UDP),
        (sctp((US, 5000), (PEER, 53)), sctp((PEER, 53), (US, 5000)), crate::flow::SCTP),
        (echo_request(US, PEER, 7), echo_reply(PEER, US, 7), crate::flow::ECHO),
    ];
    for (ours, theirs, timeout) in cases {
        let mut bench = Bench::new(&[]);
        bench.send(&ours);
        for _ in 0..3 {
            bench.wait(timeout);
            assert_eq!(bench.inbound(&theirs), ACCEPT, "each packet starts the time anew");
        }
        bench.wait(timeout + second);
        assert_ne!(bench.inbound(&theirs), ACCEPT);
    }
}

#[test]
fn tcp_is_remembered_long_while_open_and_briefly_before_and_after() {
    let second = Duration::from_secs(1);
    let (long, brief) = (crate::flow::TCP_OPEN, crate::flow::TCP_TRANSITORY);
    let ours = |flags| tcp((US, 5000), (PEER, 22), flags);
    let theirs = |flags| tcp((PEER, 22), (US, 5000), flags);
    // Each case: packets after the SYN (true: ours), and how long the connection lasts then.
    let cases: [(&[(bool, u8)], Duration); 6] = [
        (&[], brief),
        (&[(false, SYN | ACK)], long),
        (&[(false, SYN | ACK), (true, FIN | ACK)], long),
        (&[(false, SYN | ACK), (true, FIN | ACK), (false, FIN | ACK)], brief),
        (&[(false, RST)], brief),
        (&[(false, SYN | ACK), (false, RST), (true, SYN), (false, SYN | ACK)], long),
    ];
    for (packets, timeout) in cases {
        for (wait, expected) in [(timeout, ACCEPT), (timeout + second, dropped(DropReason::NoFlow))] {
            let mut bench = Bench::new(&[]);
            bench.send(&ours(SYN));
            for &(is_ours, flags) in packets {
                let verdict = if is_ours { bench.outbound(&ours(flags)) } else { bench.inbound(&theirs(flags)) };
                assert_eq!(verdict, ACCEPT);
            }
            bench.wait(wait);
            assert_eq!(bench.inbound(&theirs(ACK)), expected, "{packets:?}");
        }
    }
}

#[test]
fn pieces_follow_their_first_piece_only() {
    let pieces = |from: &str, to: &str, id: u16| {
        let header = udp_header(5, 53);
        let first = packet(ip(from), ip(to), 17, Some(Piece { id, offset: 0, more: true }), &header);
        let later = packet(ip(from), ip(to), 17, Some(Piece { id, offset: 20, more: false }), &[0; 8]);
        (first, later)
    };
    for (us, peer, other) in [(US, PEER, OTHER), ("fd7a:115c:a1e0::1", "fd00::2", "fd00::3")] {
        let open = format!("{peer} * 53 53");
        let mut bench = Bench::new(&[&open]);
        let refused = dropped(DropReason::Fragment);
        let (first, later) = pieces(peer, us, 1);
        assert_eq!(bench.inbound(&later), refused, "no first piece yet");
        assert_eq!(bench.inbound(&first), ACCEPT);
        assert_eq!(bench.inbound(&later), ACCEPT);
        assert_eq!(bench.inbound(&later), ACCEPT);
        assert_eq!(bench.jailed(&later), refused);
        assert_eq!(bench.inbound(&pieces(peer, us, 2).1), refused, "of another packet");
        let (bad, bad_later) = pieces(other, us, 1);
        assert_eq!(bench.inbound(&bad), dropped(DropReason::NoRule));
        assert_eq!(bench.inbound(&bad_later), refused);
        bench.wait(FRAGMENT);
        assert_eq!(bench.inbound(&later), ACCEPT);
        bench.wait(Duration::from_secs(1));
        assert_eq!(bench.inbound(&later), refused, "too late");
        assert_eq!(bench.inbound(&first), ACCEPT);
        bench.replace(&[&open]);
        assert_eq!(bench.inbound(&later), refused, "let in by another filter");
        bench.send(&pieces(us, peer, 9).1);
    }
}

#[test]
fn icmp_errors_pass_only_about_packets_of_ours() {
    let mut bench = Bench::new(&["100.64.0.3 * 80 80"]);
    let refused = dropped(DropReason::Icmp);
    let sent = udp((US, 5000), (PEER, 53));
    assert_eq!(bench.inbound(&unreachable(PEER, US, &sent)), refused, "nothing sent yet");
    bench.send(&sent);
    assert_eq!(bench.inbound(&unreachable(PEER, US, &sent)), ACCEPT);
    assert_eq!(bench.inbound(&unreachable(OTHER, US, &sent)), ACCEPT, "a router on the way may report");
    assert_eq!(bench.inbound(&unreachable(PEER, US, &udp((US, 5000), (PEER, 54)))), refused);
    assert_eq!(bench.inbound(&unreachable(PEER, US, &udp((PEER, 53), (US, 5000)))), refused, "not ours");
    assert_eq!(bench.inbound(&icmp_packet(PEER, US, 3, 1, &[0; 4])), refused, "quotes nothing");
    assert_eq!(bench.inbound(&icmp_packet(OTHER, US, 5, 1, &[0; 4])), refused, "a redirect, though pings are allowed");
    let elsewhere = udp(("169.254.169.254", 5000), (PEER, 53));
    bench.send(&elsewhere);
    assert_eq!(bench.inbound(&unreachable(PEER, US, &elsewhere)), refused, "sent from another address");
    bench.send(&echo_request(US, PEER, 7));
    assert_eq!(bench.inbound(&unreachable(PEER, US, &echo_request(US, PEER, 7))), ACCEPT);
    assert_eq!(bench.inbound(&unreachable(PEER, US, &echo_request(US, PEER, 8))), refused);
    // About an answer of ours in a conversation that a peer opened, while that is allowed.
    assert_eq!(bench.inbound(&tcp((OTHER, 5), (US, 80), SYN)), ACCEPT);
    let answer = tcp((US, 80), (OTHER, 5), SYN | ACK);
    assert_eq!(bench.inbound(&unreachable(OTHER, US, &answer)), ACCEPT);
    bench.replace(&[]);
    assert_eq!(bench.inbound(&unreachable(OTHER, US, &answer)), refused);
    let (us, peer) = ("fd7a:115c:a1e0::1", "fd00::2");
    let sent = tcp((us, 1), (peer, 2), SYN);
    assert_eq!(bench.inbound(&unreachable(peer, us, &sent)), refused);
    bench.send(&sent);
    assert_eq!(bench.inbound(&unreachable(peer, us, &sent)), ACCEPT);
}

#[test]
fn raised_shields_keep_our_own_conversations_only() {
    let mut bench = Bench::new(&["* * 0 65535"]);
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 22))), ACCEPT);
    bench.send(&udp((US, 5000), (PEER, 53)));
    bench.firewall.use_filter(&Arc::new(filter(&["* * 0 65535"], Shields::Up)));
    assert_eq!(bench.inbound(&udp((PEER, 5), (US, 22))), dropped(DropReason::NoRule));
    assert_eq!(bench.inbound(&udp((PEER, 53), (US, 5000))), ACCEPT);
}

#[test]
fn tables_stay_bounded_and_peers_cannot_push_out_our_flows() {
    let mut bench = Bench::new(&["* * 0 65535"]);
    bench.send(&udp((US, 5000), (PEER, 53)));
    for at in 0..MAX_PEER_FLOWS + 100 {
        let [.., high, low] = at.to_be_bytes();
        let from = format!("10.0.{high}.{low}");
        assert_eq!(bench.inbound(&udp((&from, 5), (US, 22))), ACCEPT);
    }
    assert_eq!(bench.firewall.peers.len(), MAX_PEER_FLOWS as usize);
    assert_eq!(bench.inbound(&udp((PEER, 53), (US, 5000))), ACCEPT);
    assert_eq!(bench.firewall.flows(), MAX_PEER_FLOWS as usize + 1);
    // Expired ones go two at a time as new ones come.
    bench.wait(crate::flow::UDP + Duration::from_secs(1));
    assert_eq!(bench.inbound(&udp((OTHER, 1), (US, 22))), ACCEPT);
    assert_eq!(bench.firewall.peers.len(), MAX_PEER_FLOWS as usize - 1);
}

/// What the firewall knows of a conversation: mark, opener, ends.
type Known = (u64, Side, (IpAddr, u16), (IpAddr, u16));

impl Bench {
    /// Returns the conversation of the packet judged last, and gives it a mark.
    fn mark(&mut self, bytes: &[u8], mark: u64) -> Option<Known> {
        let packet = Packet::parse(bytes).unwrap();
        let known = self.firewall.conversation(&packet);
        let place = self.firewall.mark(&packet);
        assert_eq!(known.is_some(), place.is_some());
        let (known, place) = known.zip(place)?;
        Some((std::mem::replace(place, mark), known.opener, known.local, known.remote))
    }

    fn forgotten(&mut self) -> Vec<(u64, Parting)> {
        std::iter::from_fn(|| self.firewall.take_forgotten()).collect()
    }
}

#[test]
fn packets_of_one_conversation_find_its_mark_in_both_directions() {
    let mut bench = Bench::new(&["100.64.0.2 100.64.0.1 22 22"]);
    let (us, peer) = (ip(US), ip(PEER));
    let syn = tcp((US, 5000), (PEER, 80), SYN);
    bench.send(&syn);
    assert_eq!(bench.mark(&syn, 1), Some((0, Side::Us, (us, 5000), (peer, 80))));
    let answer = tcp((PEER, 80), (US, 5000), SYN | ACK);
    assert_eq!(bench.inbound(&answer), ACCEPT);
    assert_eq!(bench.mark(&answer, 1), Some((1, Side::Us, (us, 5000), (peer, 80))));
    let theirs = tcp((PEER, 7000), (US, 22), SYN);
    assert_eq!(bench.inbound(&theirs), ACCEPT);
    assert_eq!(bench.mark(&theirs, 2), Some((0, Side::Them, (us, 22), (peer, 7000))));
    let ours = tcp((US, 22), (PEER, 7000), SYN | ACK);
    bench.send(&ours);
    assert_eq!(bench.mark(&ours, 2), Some((2, Side::Them, (us, 22), (peer, 7000))));
    let refused = tcp((PEER, 7000), (US, 23), SYN);
    assert_eq!(bench.inbound(&refused), dropped(DropReason::NoRule));
    assert_eq!(bench.mark(&refused, 3), None);
}

#[test]
fn pings_are_conversations_with_the_same_ends_on_both_sides() {
    let mut bench = Bench::new(&["100.64.0.2 100.64.0.1 22 22"]);
    let (us, peer) = (ip(US), ip(PEER));
    let request = echo_request(PEER, US, 9);
    assert_eq!(bench.inbound(&request), ACCEPT);
    assert_eq!(bench.mark(&request, 5), Some((0, Side::Them, (us, 0), (peer, 9))));
    let reply = echo_reply(US, PEER, 9);
    bench.send(&reply);
    assert_eq!(bench.mark(&reply, 5), Some((5, Side::Them, (us, 0), (peer, 9))));
    let ours = echo_request(US, PEER, 9);
    bench.send(&ours);
    assert_eq!(bench.mark(&ours, 6), Some((0, Side::Us, (us, 9), (peer, 0))));
    let answer = echo_reply(PEER, US, 9);
    assert_eq!(bench.inbound(&answer), ACCEPT);
    assert_eq!(bench.mark(&answer, 6), Some((6, Side::Us, (us, 9), (peer, 0))));
    let refused = echo_request(OTHER, US, 9);
    assert_eq!(bench.inbound(&refused), dropped(DropReason::NoRule));
    assert_eq!(bench.mark(&refused, 7), None);
}

#[test]
fn marks_of_conversations_that_are_forgotten_come_back() {
    let mut bench = Bench::new(&["100.64.0.2 100.64.0.1 22 22"]);
    let syn = tcp((US, 22), (PEER, 5000), SYN);
    bench.send(&syn);
    bench.mark(&syn, 1);
    let theirs = tcp((PEER, 5000), (US, 22), SYN);
    assert_eq!(bench.inbound(&theirs), ACCEPT);
    assert_eq!(bench.forgotten(), [(1, Parting::Replaced)]);
    bench.mark(&theirs, 2);
    bench.replace(&[]);
    assert_eq!(bench.inbound(&tcp((PEER, 5000), (US, 22), ACK)), dropped(DropReason::NoFlow));
    assert_eq!(bench.forgotten(), [(2, Parting::Refused)]);
    let dns = udp((US, 53), (PEER, 53));
    bench.send(&dns);
    bench.mark(&dns, 3);
    bench.wait(crate::flow::UDP + Duration::from_secs(2));
    bench.send(&udp((US, 54), (PEER, 53)));
    assert_eq!(bench.forgotten(), [(3, Parting::Idle)]);
    bench.firewall.note_outbound(&Packet::parse(&dns).unwrap(), bench.now);
    bench.mark(&dns, 4);
    for port in 0..=u16::MAX {
        bench.send(&udp((US, port), (OTHER, 53)));
    }
    assert_eq!(bench.forgotten(), [(4, Parting::Crowded)]);
}

#[test]
fn the_first_rule_that_allows_it_is_told() {
    let rules = ["100.64.0.3 * 22 22", "100.64.0.0/10 * 20 30 6", "100.64.0.2 100.64.0.1 22 22"];
    let bench = Bench::new(&rules);
    let rule = |bytes: &[u8]| bench.firewall.rule_for(&Packet::parse(bytes).unwrap());
    assert_eq!(rule(&tcp((PEER, 5), (US, 22), SYN)), Some(1));
    assert_eq!(rule(&udp((PEER, 5), (US, 22))), Some(2));
    assert_eq!(rule(&udp((OTHER, 5), (US, 22))), Some(0));
    assert_eq!(rule(&echo_request(PEER, US, 5)), Some(1));
    assert_eq!(rule(&udp((OTHER, 5), (US, 23))), None);
}
