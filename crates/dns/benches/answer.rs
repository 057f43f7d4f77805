//! Prints how many answers a second one core gives: for names of a tailnet of 10,000 nodes, and from memory.
//!
//! `cargo bench -p warren-dns`; as a test (`cargo test --benches`) it only checks that it runs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a program for developers")]

use std::hint::black_box;
use std::time::Instant;

use warren_dns::{ClientId, Config, Host, Name, Output, Resolver, Transport, Zone};

const NODES: u32 = 10_000;

#[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
fn main() {
    let measures = std::env::args().any(|word| word == "--bench");
    let rounds = if measures { 1_000_000 } else { 1_000 };
    let name = |text: &str| Name::parse(text).unwrap();
    let hosts = (0..NODES).map(|at| Host {
        name: name(&format!("node-{at}.tail.example")),
        addresses: vec![std::net::Ipv4Addr::from(0x6440_0000 + at).into()],
        named: vec![std::net::Ipv4Addr::from(0x6440_0000 + at).into()],
        wildcard: false,
    });
    let config = Config {
        hosts: hosts.collect(),
        local: vec![name("tail.example"), name("64.100.in-addr.arpa")],
        routes: vec![(name("."), vec!["192.0.2.1:53".parse().unwrap()])],
    };
    let now = Instant::now();
    let mut resolver = Resolver::new([1; 32]);
    let start = Instant::now();
    resolver.set_zone(Zone::new(config));
    println!("table of {NODES} nodes: {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);

    // One reply to remember.
    let cached = query("www.example.com", 1);
    resolver.handle_query(ClientId(0), Transport::Udp, &cached, now);
    if let Some(Output::Ask { attempt, message, .. }) = resolver.poll_output() {
        let mut reply = message.clone();
        reply[2] |= 0x80;
        reply[7] = 1;
        reply[11] = 0;
        reply.truncate(message.len() - 11);
        reply.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xc0\x00\x02\x01");
        resolver.handle_reply(attempt, &reply, now);
        while resolver.poll_output().is_some() {}
    }
    let reverse = |at: u32| format!("{}.{}.64.100.in-addr.arpa", at & 0xff, at >> 8 & 0xff);
    let kinds: [(&str, Vec<Vec<u8>>); 4] = [
        ("address", (0..NODES).map(|at| query(&format!("node-{at}.tail.example"), 1)).collect()),
        ("no such node", (0..NODES).map(|at| query(&format!("nobody-{at}.tail.example"), 1)).collect()),
        ("reverse", (0..NODES).map(|at| query(&reverse(at), 12)).collect()),
        ("from memory", vec![cached]),
    ];
    for (what, queries) in kinds {
        let mut times = Vec::with_capacity(rounds);
        let start = Instant::now();
        for message in queries.iter().cycle().take(rounds) {
            let one = Instant::now();
            resolver.handle_query(ClientId(1), Transport::Udp, black_box(message), now);
            match resolver.poll_output() {
                Some(Output::Answer { message, .. }) => drop(black_box(message)),
                other => panic!("{what}: {other:?}"),
            }
            times.push(one.elapsed());
        }
        let rate = rounds as f64 / start.elapsed().as_secs_f64();
        times.sort_unstable();
        let p99 = times[times.len() * 99 / 100];
        println!("{what:>14}: {rate:>10.0} a second, p99 {p99:?}");
    }
}

fn query(text: &str, kind: u16) -> Vec<u8> {
    let mut message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01".to_vec();
    message.extend(Name::parse(text).unwrap().as_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(b"\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
    message
}
