//! Loads a relay that admits anybody: `load HOST:PORT PIN flows PAIRS SECONDS BYTES`, `… idle CLIENTS`,
//! `… latency PAIRS SECONDS` or `… slow SECONDS`. Prints one JSON object; for `cargo xtask bench relay`.

#![expect(clippy::print_stdout, reason = "a program of its own: its figures are its output")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use warren_relay::{ClientReader, ClientWriter, Received, connect};
use warren_wire::control::DerpNode;
use warren_wire::key::{NodeKey, NodeSecret};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Done<T> = Result<T, Failure>;

/// Packets that a sender has on the way: fewer than a relay's queue holds, as TCP within a tunnel would settle.
const WINDOW: u64 = 24;
/// Connections that are made at a time.
const AT_ONCE: usize = 64;
/// Time after which packets on the way are taken for lost.
const LOST: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Done<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [relay, pin, "flows", pairs, seconds, bytes] => {
            flows(&node(relay, pin)?, pairs.parse()?, seconds.parse()?, bytes.parse()?).await
        }
        [relay, pin, "idle", clients] => idle(&node(relay, pin)?, clients.parse()?).await,
        [relay, pin, "latency", pairs, seconds] => {
            latency(&node(relay, pin)?, pairs.parse()?, seconds.parse()?, false).await
        }
        [relay, pin, "slow", seconds] => latency(&node(relay, pin)?, 0, seconds.parse()?, true).await,
        _ => Err("see the head of this file".into()),
    }
}

fn node(relay: &str, pin: &str) -> Done<DerpNode> {
    let (host, port) = relay.rsplit_once(':').ok_or("HOST:PORT")?;
    Ok(DerpNode {
        host_name: host.to_owned(),
        cert_name: format!("sha256-raw:{pin}"),
        ipv4: host.to_owned(),
        ipv6: "none".to_owned(),
        derp_port: port.parse()?,
        ..DerpNode::default()
    })
}

struct Client {
    key: NodeKey,
    reader: ClientReader,
    writer: ClientWriter,
}

async fn client(node: &DerpNode) -> Done<Client> {
    let secret = NodeSecret::generate()?;
    let (reader, writer) = connect(node, &secret).await?;
    Ok(Client { key: secret.public(), reader, writer })
}

/// What a pair has done.
#[derive(Default)]
struct Flow {
    received: AtomicU64,
    lost: AtomicU64,
    moved: Notify,
}

/// Sends from one client to another until `over`, with a window of packets on the way.
async fn flow(node: DerpNode, bytes: usize, over: Arc<AtomicBool>) -> Done<Arc<Flow>> {
    let (mut from, mut to) = (client(&node).await?, client(&node).await?);
    let flow = Arc::new(Flow::default());
    let counting = Arc::clone(&flow);
    tokio::spawn(async move {
        while let Ok(received) = to.reader.next().await {
            if matches!(received, Received::Packet { .. }) {
                counting.received.fetch_add(1, Ordering::Relaxed);
                counting.moved.notify_one();
            }
        }
        drop(to.writer);
    });
    let (sending, to) = (Arc::clone(&flow), to.key);
    tokio::spawn(async move {
        let packet = vec![4; bytes];
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            let gone = sending.received.load(Ordering::Relaxed) + sending.lost.load(Ordering::Relaxed);
            // What was taken for lost may arrive after all.
            let on_the_way = u64::saturating_sub(sent, gone);
            if on_the_way >= WINDOW {
                if timeout(LOST, sending.moved.notified()).await.is_err() {
                    sending.lost.fetch_add(on_the_way, Ordering::Relaxed);
                }
                continue;
            }
            if from.writer.send_packet(&to, &packet).await.is_err() {
                return;
            }
            sent += 1;
        }
        drop(from.reader);
    });
    Ok(flow)
}

async fn start(node: &DerpNode, pairs: usize, bytes: usize, over: &Arc<AtomicBool>) -> Done<Vec<Arc<Flow>>> {
    let mut flows = Vec::new();
    for _ in 0..pairs {
        flows.push(flow(node.clone(), bytes, Arc::clone(over)).await?);
    }
    Ok(flows)
}

async fn flows(node: &DerpNode, pairs: usize, seconds: u64, bytes: usize) -> Done<()> {
    let over = Arc::new(AtomicBool::new(false));
    let flows = start(node, pairs, bytes, &over).await?;
    sleep(Duration::from_secs(1)).await;
    let total = || flows.iter().map(|flow| flow.received.load(Ordering::Relaxed)).collect::<Vec<_>>();
    println!("{{\"ready\":{pairs}}}");
    let (before, start) = (total(), now());
    sleep(Duration::from_secs(seconds)).await;
    let (after, took) = (total(), start.elapsed().as_secs_f64());
    over.store(true, Ordering::Relaxed);
    let each: Vec<f64> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| (after - before) as f64 * bytes as f64 * 8.0 / took / 1e6)
        .collect();
    let (least, most) = each.iter().fold((f64::MAX, 0_f64), |(least, most), one| (least.min(*one), most.max(*one)));
    let lost: u64 = flows.iter().map(|flow| flow.lost.load(Ordering::Relaxed)).sum();
    let mbit: f64 = each.iter().sum();
    println!("{{\"mbit\":{mbit:.1},\"least\":{least:.1},\"most\":{most:.1},\"lost\":{lost},\"seconds\":{took:.3}}}");
    Ok(())
}

async fn idle(node: &DerpNode, clients: usize) -> Done<()> {
    let mut kept = Vec::with_capacity(clients);
    while kept.len() < clients {
        let batch: Vec<_> = (0..AT_ONCE.min(clients - kept.len()))
            .map(|_| {
                let node = node.clone();
                tokio::spawn(async move { client(&node).await })
            })
            .collect();
        for one in batch {
            kept.push(one.await??);
        }
    }
    println!("{{\"connected\":{}}}", kept.len());
    // Until whoever started this closes the input.
    tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await??;
    Ok(())
}

/// Times single packets between two clients, first alone, then beside `pairs` flows or beside a client that is sent much
/// and reads nothing.
async fn latency(node: &DerpNode, pairs: usize, seconds: u64, slow: bool) -> Done<()> {
    let alone = probe(node, seconds).await?;
    let over = Arc::new(AtomicBool::new(false));
    let flows = start(node, pairs, 1280, &over).await?;
    if slow {
        let (mut from, to) = (client(node).await?, client(node).await?);
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            let packet = vec![4; 1280];
            while !over.load(Ordering::Relaxed) && from.writer.send_packet(&to.key, &packet).await.is_ok() {
                tokio::task::yield_now().await;
            }
            drop(to);
        });
    }
    sleep(Duration::from_secs(1)).await;
    let beside = probe(node, seconds).await?;
    over.store(true, Ordering::Relaxed);
    drop(flows);
    println!("{{\"alone\":{alone},\"beside\":{beside}}}");
    Ok(())
}

async fn probe(node: &DerpNode, seconds: u64) -> Done<String> {
    let (mut from, mut to) = (client(node).await?, client(node).await?);
    let (mut times, mut lost) = (Vec::new(), 0);
    let end = now() + Duration::from_secs(seconds);
    while now() < end {
        let start = now();
        from.writer.send_packet(&to.key, &[4; 200]).await?;
        let arrived = async {
            loop {
                if let Received::Packet { .. } = to.reader.next().await? {
                    return Ok::<_, warren_relay::ClientError>(());
                }
            }
        };
        match timeout(Duration::from_secs(2), arrived).await {
            Ok(arrived) => {
                arrived?;
                times.push(start.elapsed());
            }
            Err(_) => {
                lost += 1;
                to = client(node).await?;
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable();
    let at = |percent: usize| {
        let index = times.len() * percent / 100;
        times.get(index.min(times.len().saturating_sub(1))).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    };
    let (median, high, count) = (at(50), at(99), times.len());
    Ok(format!("{{\"median_ms\":{median:.2},\"p99_ms\":{high:.2},\"packets\":{count},\"lost\":{lost}}}"))
}

#[expect(clippy::disallowed_methods, reason = "a load program measures time")]
fn now() -> Instant {
    Instant::now()
}
