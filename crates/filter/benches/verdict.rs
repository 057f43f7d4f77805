//! Prints nanoseconds per verdict for filters of 10, 1,000 and 10,000 rules.
//!
//! `cargo bench -p warren-filter`; as a test (`cargo test --benches`) it only checks that it runs.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use warren_filter::{Filter, FilterInput, Firewall, Packet, PeerMode, Shields, Verdict};
use warren_wire::control::{FilterRule, NetPortRange, PortRange};

const US: &str = "100.64.0.1";

fn main() {
    let rounds = if std::env::args().any(|word| word == "--bench") { 2_000_000 } else { 100 };
    println!(
        "{:>7}  {:>8}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}",
        "rules", "sources", "ours", "theirs", "pings", "refused", "compile"
    );
    for (count, sources) in
        [(10, Sources::Apart), (1_000, Sources::Apart), (10_000, Sources::Apart), (1_000, Sources::Common)]
    {
        run(count, sources, rounds);
    }
    println!(
        "ns per verdict including Packet::parse, best of {SLICES} slices (1,000 flows, round robin); compile in µs"
    );
}

/// Slices of a measurement; on a busy machine the best is nearest to the truth.
const SLICES: usize = 20;

#[derive(Debug, Clone, Copy)]
enum Sources {
    /// Each rule has sources of its own.
    Apart,
    /// Each rule has one that all have, too.
    Common,
}

/// Makes `count` rules of the shapes a policy gives: many sources, few ports of our own address.
fn rules(count: u32, sources: Sources) -> Vec<FilterRule> {
    let second = |at: u32| match sources {
        Sources::Apart => format!("10.{}.{}.0/24", at >> 8 & 0xff, at & 0xff),
        Sources::Common => "100.64.0.0/10".to_owned(),
    };
    (0..count)
        .map(|at| FilterRule {
            src_ips: vec![peer(at).to_string(), second(at)],
            dst_ports: [22, 443, 8000 + u16::try_from(at % 1000).unwrap()]
                .map(|port| NetPortRange { ip: US.to_owned(), bits: None, ports: PortRange::single(port) })
                .to_vec(),
            ..FilterRule::default()
        })
        .collect()
}

fn peer(at: u32) -> IpAddr {
    IpAddr::V4((0x6440_0100 + at).into())
}

#[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
fn run(count: u32, sources: Sources, rounds: usize) {
    let rules = rules(count, sources);
    let local: [IpNet; 1] = [format!("{US}/32").parse().unwrap()];
    let start = Instant::now();
    let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| vec![] };
    let filter = Arc::new(Filter::compile(&input).unwrap().0);
    let compile = start.elapsed().as_micros();
    let now = Instant::now();
    let mut firewall = Firewall::new(1, now);
    firewall.use_filter(&filter);
    let us: IpAddr = US.parse().unwrap();

    let flows = || (0..1000).map(|at| (peer(at % count), 1024 + u16::try_from(at).unwrap()));
    let own: Vec<_> = flows().map(|(peer, port)| ipv4(peer, us, 17, &[443, port])).collect();
    for (peer, port) in flows() {
        let bytes = ipv4(us, peer, 17, &[port, 443]);
        firewall.check_outbound(&Packet::parse(&bytes).unwrap(), now);
    }
    let theirs: Vec<_> = flows().map(|(peer, port)| ipv4(peer, us, 6, &[port, 443])).collect();
    let pings: Vec<_> = flows().map(|(peer, _)| ipv4(peer, us, 1, &[0x0800])).collect();
    let refused: Vec<_> = flows().map(|(peer, port)| ipv4(peer, us, 6, &[port, 25])).collect();

    let figures = [(&own, true), (&theirs, true), (&pings, true), (&refused, false)].map(|(packets, accepted)| {
        let slice = rounds / SLICES;
        let slices = (0..SLICES).map(|_| {
            let start = Instant::now();
            for bytes in packets.iter().cycle().take(slice) {
                let packet = Packet::parse(black_box(bytes)).unwrap();
                let verdict = firewall.check_inbound(&packet, PeerMode::Normal, now);
                assert_eq!(verdict == Verdict::Accept, accepted);
            }
            start.elapsed().as_nanos() as f64 / slice as f64
        });
        slices.fold(f64::INFINITY, f64::min)
    });
    let [own, theirs, pings, refused] = figures;
    let sources = format!("{sources:?}").to_lowercase();
    println!("{count:>7}  {sources:>8}  {own:>9.1}  {theirs:>9.1}  {pings:>9.1}  {refused:>9.1}  {compile:>9}");
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
