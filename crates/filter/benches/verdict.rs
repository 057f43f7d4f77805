//! Prints what a verdict costs, in nanoseconds and instructions, for filters of 10, 100 and 10,000 rules.
//!
//! `cargo bench -p warren-filter`; as a test (`cargo test --benches`) it only checks that it runs. Instructions are
//! counted by valgrind, if there is one, and do not depend on the machine's mood.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a program for developers")]

use std::hint::black_box;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_filter::{Filter, FilterInput, Firewall, Packet, PeerMode, Shields, Verdict};
use warren_wire::control::{FilterRule, NetPortRange, PortRange};

const US: &str = "100.64.0.1";

/// Says what the rules' sources have to do with each other.
#[derive(Debug, Clone, Copy)]
enum Sources {
    /// Each rule has sources of its own.
    Apart,
    /// Each rule has one that all have, too.
    Common,
    /// Each rule has 20 of 2,000 peers, so that with many rules each peer is in many, and no two alike.
    Mixed,
}

const SHAPES: [Sources; 3] = [Sources::Apart, Sources::Common, Sources::Mixed];
const COUNTS: [u32; 3] = [10, 100, 10_000];

/// A kind of packet, as it comes in.
#[derive(Debug, Clone, Copy)]
enum Case {
    /// Of a conversation that we opened.
    Ours,
    /// Of a conversation that a peer opened.
    Theirs,
    /// The first of a conversation that a rule allows.
    First,
    Ping,
    /// To a port that no rule opens.
    Denied,
    /// To a port that rules open, but not for this peer (where there is such a port).
    Others,
}

const CASES: [Case; 6] = [Case::Ours, Case::Theirs, Case::First, Case::Ping, Case::Denied, Case::Others];

/// Packets that take turns.
const PACKETS: usize = 1_000;

/// Slices of a measurement; on a busy machine the best is nearest to the truth.
const SLICES: usize = 20;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--count") {
        let numbers: Vec<usize> = words[at + 1..].iter().map(|word| word.parse().unwrap()).collect();
        let [shape, count, case, rounds] = numbers[..] else { panic!("--count SHAPE RULES CASE ROUNDS") };
        Bench::new(SHAPES[shape], COUNTS[count], CASES[case]).run(rounds);
        return;
    }
    let measures = words.iter().any(|word| word == "--bench");
    let counts = measures && Command::new("valgrind").arg("--version").output().is_ok();
    print!("{:>6} {:>7} {:>12}", "rules", "sources", "compile, ms");
    CASES.iter().for_each(|case| print!(" {:>14}", format!("{case:?}").to_lowercase()));
    println!();
    for (shape, sources) in SHAPES.into_iter().enumerate() {
        for (count, rules) in COUNTS.into_iter().enumerate() {
            let compile = compile_time(sources, rules, if measures { 5 } else { 1 });
            let name = format!("{sources:?}").to_lowercase();
            print!("{rules:>6} {name:>7} {:>12.2}", compile.as_secs_f64() * 1000.0);
            for (number, case) in CASES.into_iter().enumerate() {
                let nanos = Bench::new(sources, rules, case).measure(if measures { 2_000_000 } else { 100 });
                let instructions = if counts { instructions(shape, count, number) } else { "-".to_owned() };
                print!(" {:>14}", format!("{nanos:.0} ({instructions})"));
            }
            println!();
        }
    }
    println!("nanoseconds a packet with Packet::parse, best of {SLICES} slices, and (instructions)");
}

/// A filter in use, and packets that all get the same verdict.
struct Bench {
    firewall: Firewall,
    packets: Vec<Vec<u8>>,
    accepted: bool,
    now: Instant,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
    fn new(sources: Sources, count: u32, case: Case) -> Self {
        let now = Instant::now();
        let mut firewall = Firewall::new(1, now);
        firewall.use_filter(&Arc::new(compile(&rules(sources, count))));
        let mut judge = Firewall::new(1, now);
        judge.use_filter(firewall.filter());
        let us: IpAddr = US.parse().unwrap();
        // `First` needs more packets than a firewall remembers conversations, so that none of them is known.
        let number = if matches!(case, Case::First) { 20 * PACKETS } else { PACKETS };
        let packets = (0..number)
            .map(|at| {
                let (peer, port) = (peer(sources, count, at), 1024 + u16::try_from(at % 60_000).unwrap());
                match case {
                    Case::Ours => {
                        let bytes = ipv4(us, peer, 17, &[port, 443]);
                        firewall.check_outbound(&Packet::parse(&bytes).unwrap(), now);
                        ipv4(peer, us, 17, &[443, port])
                    }
                    Case::Theirs | Case::First => ipv4(peer, us, 6, &[port, 443]),
                    Case::Ping => ipv4(peer, us, 1, &[0x0800]),
                    Case::Denied => ipv4(peer, us, 6, &[port, 25]),
                    Case::Others => {
                        let all = (8000..8000 + u16::try_from(count.min(1000)).unwrap()).chain([25]);
                        let mut packets = all.map(|to| ipv4(peer, us, 6, &[port, to]));
                        let is_denied = |bytes: &Vec<u8>| {
                            let packet = Packet::parse(bytes).unwrap();
                            judge.check_inbound(&packet, PeerMode::Normal, now) != Verdict::Accept
                        };
                        packets.find(is_denied).unwrap()
                    }
                }
            })
            .collect();
        Self { firewall, packets, accepted: !matches!(case, Case::Denied | Case::Others), now }
    }

    fn run(&mut self, rounds: usize) {
        for bytes in self.packets.iter().cycle().take(rounds) {
            let packet = Packet::parse(black_box(bytes)).unwrap();
            let verdict = self.firewall.check_inbound(&packet, PeerMode::Normal, self.now);
            assert_eq!(verdict == Verdict::Accept, self.accepted);
        }
    }

    /// Returns nanoseconds a packet.
    #[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
    fn measure(&mut self, rounds: usize) -> f64 {
        let slice = rounds / SLICES;
        self.run(slice);
        let slices = (0..SLICES).map(|_| {
            let start = Instant::now();
            self.run(slice);
            start.elapsed().as_nanos() as f64 / slice as f64
        });
        slices.fold(f64::INFINITY, f64::min)
    }
}

/// Returns instructions a packet: the difference between two runs of different length, in which the start cancels out.
fn instructions(shape: usize, count: usize, case: usize) -> String {
    let run = |rounds: usize| -> Option<u64> {
        let program = std::env::current_exe().ok()?;
        let words = [shape, count, case, rounds].map(|number| number.to_string());
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program).arg("--count").args(words);
        let output = valgrind.output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok())
    };
    // Beyond what fills the tables, so that their growth is in both.
    let (few, many) = (20 * PACKETS, 25 * PACKETS);
    match run(few).zip(run(many)) {
        Some((short, long)) => (long.saturating_sub(short) / (many - few) as u64).to_string(),
        None => "-".to_owned(),
    }
}

/// Makes `count` rules of the shapes a policy gives: many sources, few ports of our own address.
fn rules(sources: Sources, count: u32) -> Vec<FilterRule> {
    let from = |at: u32| match sources {
        Sources::Apart => vec![host(at), format!("10.{}.{}.0/24", at >> 8 & 0xff, at & 0xff)],
        Sources::Common => vec![host(at), "100.64.0.0/10".to_owned()],
        Sources::Mixed => (0..20).map(|member| host(mixed(at, member))).collect(),
    };
    (0..count)
        .map(|at| FilterRule {
            src_ips: from(at),
            dst_ports: [22, 443, 8000 + u16::try_from(at % 1000).unwrap()]
                .map(|port| NetPortRange { ip: US.to_owned(), bits: None, ports: PortRange::single(port) })
                .to_vec(),
            ..FilterRule::default()
        })
        .collect()
}

/// Returns which peer is the `member`th of rule `at`, by a number without pattern.
fn mixed(at: u32, member: u32) -> u32 {
    (at * 20 + member).wrapping_mul(0x9e37_79b1).rotate_left(15) % 2_000
}

/// Returns the source of packet `at`.
fn peer(sources: Sources, count: u32, at: usize) -> IpAddr {
    let at = u32::try_from(at).unwrap();
    let number = match sources {
        Sources::Apart | Sources::Common => at % count,
        Sources::Mixed => mixed(at % count, 0),
    };
    host(number).parse().unwrap()
}

fn host(number: u32) -> String {
    IpAddr::V4((0x6440_0100 + number).into()).to_string()
}

fn compile(rules: &[FilterRule]) -> Filter {
    let local: [IpNet; 1] = [format!("{US}/32").parse().unwrap()];
    let input = FilterInput { rules, local: &local, shields: Shields::Down, holders: &|_| vec![] };
    Filter::compile(&input).unwrap().0
}

#[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
fn compile_time(sources: Sources, count: u32, rounds: u32) -> Duration {
    let rules = rules(sources, count);
    let time = || {
        let start = Instant::now();
        black_box(compile(&rules));
        start.elapsed()
    };
    (0..rounds).map(|_| time()).min().unwrap_or_default()
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
