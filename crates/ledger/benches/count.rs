//! Prints what it costs a packet to be counted, beside the verdict that it gets anyway, with 1,000 rules.
//!
//! `cargo bench -p warren-ledger`; as a test (`cargo test --benches`) it only checks that it runs. Instructions are
//! counted by valgrind, if there is one, and do not depend on the machine's mood.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a program for developers")]

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use warren_filter::{Body, Filter, FilterInput, Firewall, Packet, PeerMode, Shields, Side, Verdict};
use warren_ledger::Direction;
use warren_ledger::recorder::{Conversation, Mark, Passed, Recorder};
use warren_wire::control::{FilterRule, NetPortRange, PortRange};

const US: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 1));
const RULES: u32 = 1_000;
/// Conversations that take turns.
const CONVERSATIONS: u32 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    /// In, of conversations that we opened.
    Ours,
    /// In, of conversations that peers opened.
    Theirs,
    /// Out, of conversations that we opened.
    Out,
    /// In, each the first of a conversation.
    First,
}

const CASES: [Case; 4] = [Case::Ours, Case::Theirs, Case::Out, Case::First];

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--count") {
        let numbers: Vec<usize> = words[at + 1..].iter().map(|word| word.parse().unwrap()).collect();
        let [case, counts, rounds] = numbers[..] else { panic!("--count CASE COUNTS ROUNDS") };
        Bench::new(CASES[case]).run(counts == 1, rounds);
        return;
    }
    let measures = words.iter().any(|word| word == "--bench");
    let has_valgrind = measures && Command::new("valgrind").arg("--version").output().is_ok();
    println!("{:>8} {:>14} {:>14} {:>14}", "packet", "verdict", "and counted", "counting costs");
    for (number, case) in CASES.into_iter().enumerate() {
        let rounds = if measures { 2_000_000 } else { 100 };
        let nanos = [false, true].map(|counts| Bench::new(case).measure(counts, rounds));
        let instructions = [0, 1].map(|counts| if has_valgrind { instructions(number, counts) } else { None });
        let show = |nanos: f64, count: Option<u64>| {
            format!("{nanos:.0} ({})", count.map_or("-".to_owned(), |count| count.to_string()))
        };
        let more = instructions[1].zip(instructions[0]).map(|(with, without)| with.saturating_sub(without));
        println!(
            "{:>8} {:>14} {:>14} {:>14}",
            format!("{case:?}").to_lowercase(),
            show(nanos[0], instructions[0]),
            show(nanos[1], instructions[1]),
            show(nanos[1] - nanos[0], more),
        );
    }
    println!("nanoseconds a packet with Packet::parse, and (instructions)");
}

struct Bench {
    firewall: Firewall,
    recorder: Recorder<Arc<()>>,
    peer: Arc<()>,
    packets: Vec<Vec<u8>>,
    case: Case,
    now: Instant,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
    fn new(case: Case) -> Self {
        let now = Instant::now();
        let mut firewall = Firewall::new(1, now);
        firewall.use_filter(&Arc::new(filter()));
        // `First` needs more than a firewall remembers.
        let number = if case == Case::First { 20 * CONVERSATIONS } else { CONVERSATIONS };
        let packets = (0..number)
            .map(|at| {
                let (peer, port) = (peer(at % RULES), u16::try_from(1024 + at % 60_000).unwrap());
                match case {
                    Case::Ours => {
                        let bytes = ipv4(US, peer, 17, &[port, 443]);
                        firewall.check_outbound(&Packet::parse(&bytes).unwrap(), now);
                        ipv4(peer, US, 17, &[443, port])
                    }
                    Case::Out => ipv4(US, peer, 17, &[port, 443]),
                    Case::Theirs | Case::First => ipv4(peer, US, 6, &[port, 443]),
                }
            })
            .collect();
        Self { firewall, recorder: Recorder::new(now), peer: Arc::new(()), packets, case, now }
    }

    fn run(&mut self, counts: bool, rounds: usize) {
        for (number, bytes) in self.packets.iter().cycle().take(rounds).enumerate() {
            let packet = Packet::parse(black_box(bytes)).unwrap();
            let (verdict, direction) = if self.case == Case::Out {
                (self.firewall.check_outbound(&packet, self.now), Direction::Outbound)
            } else {
                (self.firewall.check_inbound(&packet, PeerMode::Normal, self.now), Direction::Inbound)
            };
            assert_eq!(verdict, Verdict::Accept);
            if counts {
                let passed = Passed {
                    direction,
                    packets: 1,
                    bytes: packet.bytes().len() as u64,
                    flags: if let Body::Tcp { flags, .. } = packet.body() { Some(flags.0) } else { None },
                };
                count(&mut self.firewall, &mut self.recorder, &self.peer, &packet, passed);
                // As after a turn.
                while number % 64 == 0 && self.recorder.poll_note().is_some() {}
            }
        }
    }

    /// Returns nanoseconds a packet.
    #[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
    fn measure(&mut self, counts: bool, rounds: usize) -> f64 {
        let slice = rounds / 20;
        self.run(counts, slice);
        let slices = (0..20).map(|_| {
            let start = Instant::now();
            self.run(counts, slice);
            start.elapsed().as_nanos() as f64 / slice as f64
        });
        slices.fold(f64::INFINITY, f64::min)
    }
}

/// Does what a node's forwarder does with a packet that passes.
fn count(
    firewall: &mut Firewall,
    recorder: &mut Recorder<Arc<()>>,
    peer: &Arc<()>,
    packet: &Packet<'_>,
    passed: Passed,
) {
    let Some(mark) = firewall.mark(packet) else { return };
    if !recorder.count(Mark::from_number(*mark), passed) {
        let Some(known) = firewall.conversation(packet) else { return };
        let direction = if known.opener == Side::Us { Direction::Outbound } else { Direction::Inbound };
        let conversation = Conversation {
            direction,
            protocol: known.protocol,
            local: SocketAddr::from(known.local),
            remote: SocketAddr::from(known.remote),
            rule: None,
            rest: known.rest,
            rest_unanswered: known.rest_unanswered,
        };
        let rule = if direction == Direction::Inbound { firewall.rule_for(packet) } else { None };
        let mark = recorder.open(Conversation { rule, ..conversation }, Arc::clone(peer), passed);
        if let Some(number) = firewall.mark(packet) {
            *number = mark.to_number();
        }
    }
    while let Some((mark, _)) = firewall.take_forgotten() {
        recorder.forget(Mark::from_number(mark), warren_ledger::EndReason::Forgotten);
    }
}

/// Returns instructions a packet: the difference between two runs of different length, in which the start cancels out.
fn instructions(case: usize, counts: usize) -> Option<u64> {
    let run = |rounds: usize| -> Option<u64> {
        let program = std::env::current_exe().ok()?;
        let words = [case, counts, rounds].map(|number| number.to_string());
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program).arg("--count").args(words);
        let output = valgrind.output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok())
    };
    let (few, many) = (20_000, 25_000);
    let (short, long) = run(few).zip(run(many))?;
    Some(long.saturating_sub(short) / (many - few) as u64)
}

/// Makes rules of the shape that a policy gives: many sources, few ports of our own address.
fn filter() -> Filter {
    let rules: Vec<FilterRule> = (0..RULES)
        .map(|at| FilterRule {
            src_ips: vec![peer(at).to_string(), format!("10.{}.{}.0/24", at >> 8, at & 0xff)],
            dst_ports: [22, 443, 8000 + u16::try_from(at).unwrap()]
                .map(|port| NetPortRange { ip: US.to_string(), bits: None, ports: PortRange::single(port) })
                .to_vec(),
            ..FilterRule::default()
        })
        .collect();
    let local = [IpNet::from(US)];
    let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| vec![] };
    Filter::compile(&input).unwrap().0
}

fn peer(number: u32) -> IpAddr {
    IpAddr::V4((0x6440_0100 + number).into())
}

/// Makes a packet whose transport header starts with `words`.
fn ipv4(from: IpAddr, to: IpAddr, protocol: u8, words: &[u16]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { return vec![] };
    let mut bytes = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, protocol, 0, 0];
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    bytes.resize(48, 0x10);
    bytes
}
