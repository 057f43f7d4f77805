//! What idle peers cost the engine, in a process of its own.
//!
//! `cargo xtask bench peers` runs it in namespaces: `peers COUNT` starts the engine, gives it COUNT peers that never
//! say anything, and prints what that adds to its memory beyond the records of the map, which are made before; then how
//! long a change of one peer takes, and of how many bytes a record's text is.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::io::{Error, Result};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use tokio::sync::mpsc;
use warren_node::engine::{self, Engine as _, Local, LocalUpdate, Offload, Options, Settings, USUAL_MTU, Update};
use warren_node::netmap::Peer;
use warren_wire::control::Node;
use warren_wire::key::{DiscoSecret, NodeKey, NodeSecret};

/// How often one peer changes.
const CHANGES: u32 = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let count: u32 = std::env::args().nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| Error::other("COUNT"))?;
    let (events, mut unread) = mpsc::channel(64);
    let options = Options {
        interface: "peers0".into(),
        port: 0,
        mtu: USUAL_MTU,
        offload: Offload::Probe,
        keeps_port: false,
        probe_mtu: None,
        static_endpoints: Vec::new(),
    };
    let engine = engine::start(options, events, None).await.map_err(Error::other)?;
    tokio::spawn(async move { while unread.recv().await.is_some() {} });
    let local = Local {
        secret: Arc::new(NodeSecret::from_bytes([1; 32])),
        disco: Arc::new(DiscoSecret::from_bytes([2; 32])),
        node: Arc::new(record(1, 0)?.1),
        dns: None,
        settings: Settings::default(),
    };
    engine.apply(Update { local: Some(LocalUpdate::Up(local)), ..Update::default() });
    engine.status().await;
    let mut text = 0;
    let mut peers = Vec::new();
    for number in 2..count + 2 {
        let (bytes, node) = record(number, 0)?;
        text += bytes;
        peers.push(Arc::new(Peer::admit(node, None).map_err(Error::other)?));
    }
    let before = anonymous()?;
    engine.apply(Update { peers: peers.clone(), ..Update::default() });
    engine.status().await;
    let after = anonymous()?;
    let start = Instant::now();
    for round in 1..=CHANGES {
        let peer = Arc::new(Peer::admit(record(2, round)?.1, None).map_err(Error::other)?);
        engine.apply(Update { peers: vec![peer], ..Update::default() });
        // Answered at once, after the update.
        let _ = engine.ping(NodeKey::from_bytes([9; 32])).await;
    }
    let change = start.elapsed().as_micros() / u128::from(CHANGES);
    let each = |bytes: u64| bytes as f64 / f64::from(count.max(1));
    println!(
        "{count} peers: engine {:.0} bytes each, records {:.0} bytes of text each, {change} us for a change of one",
        each(after.saturating_sub(before)),
        each(text),
    );
    Ok(())
}

/// Makes a record as a server sends it; returns the length of its text, too.
fn record(number: u32, round: u32) -> Result<(u64, Node)> {
    let four = Ipv4Addr::from_bits(0x6440_0000 + number);
    let six = Ipv6Addr::from_bits(0xfd7a_115c_a1e0_0000_0000_0000_0000_0000 + u128::from(number));
    let addresses = [format!("{four}/32"), format!("{six}/128")];
    // As evenly spread as real keys: trees of keys that come in order are emptier. The multiplier is odd, so that no two
    // are alike.
    let spread = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = |kind: &str, filler: u64| format!("{kind}:{spread:016x}{filler:032x}{number:016x}");
    let value = json!({
        "ID": number,
        "StableID": format!("n{number}"),
        "Name": format!("machine-{number}.example.net."),
        "User": 7,
        "Key": key("nodekey", 0x1111),
        "DiscoKey": key("discokey", 0x2222),
        "Addresses": addresses,
        "AllowedIPs": addresses,
        "Endpoints": [format!("192.0.2.{}:{}", number % 250 + 1, 1024 + (number + round) % 60_000)],
        "HomeDERP": 1,
        "Cap": 113,
        "Hostinfo": { "OS": "linux", "Hostname": format!("machine-{number}") },
        "MachineAuthorized": true,
        "Online": true,
    });
    let text = value.to_string();
    Ok((text.len() as u64, serde_json::from_str(&text)?))
}

/// Returns the bytes of this process's own memory.
fn anonymous() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::other("no RssAnon in /proc/self/status"))
}
