//! Many nodes in one process against one server: the real control protocol, without packets.
//!
//! `cargo xtask bench streams` starts it beside a server and measures that. Conversation on standard input and output,
//! one line each: it prints `joined …` when every node has its first map, then obeys until its input ends:
//!
//! - `change ROUNDS`: endpoint changes of one node, timed until all others know; prints `changed …`.
//! - `edit ROUNDS FILE COMMAND…`: writes FILE with another port in the place of `PORT` and runs COMMAND, which makes it the
//!   policy; timed from there until all nodes have the port in their filters; prints `edited …`.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, watch};
use warren_node::control_client::{AuthKey, Event, Login, Network, Report, Session, Target};
use warren_node::engine::Endpoint;
use warren_node::hostinfo;
use warren_node::prefs::Prefs;
use warren_node::state::NodeKeys;
use warren_wire::control::NetInfo;
use warren_wire::control::{EndpointType, MapResponse, RegionId};
use warren_wire::key::{DiscoKey, MachineKey, MachineSecret};

/// How many nodes join at the same time.
const JOINING: usize = 64;
/// How long everything together may take to join, and one change to arrive.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long a node may be deaf before it counts as lost.
const ARRIVAL: Duration = Duration::from_secs(60);
/// Ports of edited policies begin here, above the rounds of changes.
const FIRST_PORT: u16 = 10_000;
/// The address whose port tells the round; reserved for documentation by RFC 5737.
const MARK: [u8; 4] = [198, 51, 100, 1];

/// What every simulated node shares.
struct Common {
    target_url: String,
    pin: MachineKey,
    auth_key: String,
    joining: Semaphore,
    joined: mpsc::Sender<Duration>,
    /// The round that is under way; 0: none.
    round: AtomicU16,
    arrived: mpsc::Sender<Instant>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: VecDeque<String> = std::env::args().skip(1).collect();
    let mut next = |name: &str| {
        arguments.pop_front().ok_or_else(|| format!("usage: fleet URL SERVER-KEY AUTH-KEY COUNT: {name} is missing"))
    };
    let target_url = next("URL")?;
    let pin = next("SERVER-KEY")?.parse()?;
    let auth_key = next("AUTH-KEY")?;
    let count: usize = next("COUNT")?.parse()?;

    let (joined, mut joins) = mpsc::channel(1024);
    let (arrived, mut arrivals) = mpsc::channel(1024);
    let common = Arc::new(Common {
        target_url,
        pin,
        auth_key,
        joining: Semaphore::new(JOINING),
        joined,
        round: AtomicU16::new(0),
        arrived,
    });
    let began = Instant::now();
    let mut reports = Vec::with_capacity(count);
    for number in 0..count {
        let (report, reader) = watch::channel(first_report(number));
        reports.push(report);
        tokio::spawn(live(Arc::clone(&common), reader));
    }
    let mut waits = Vec::with_capacity(count);
    while waits.len() < count {
        let wait = tokio::time::timeout(PATIENCE, joins.recv())
            .await
            .map_err(|_| format!("only {} of {count} nodes joined", waits.len()))?;
        waits.extend(wait);
    }
    println!(
        "joined {count} in {:.1} s; register to first map {}",
        began.elapsed().as_secs_f64(),
        quantiles(&mut waits)
    );

    // Blocks this thread alone: the nodes run on the runtime's workers.
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(rounds) = words.get(1).and_then(|rounds| rounds.parse::<u16>().ok()) else {
            return Err(format!("unknown command {line:?}").into());
        };
        let (mut all, mut last) = (Vec::new(), Vec::new());
        match words.as_slice() {
            ["change", _] => {
                for round in 1..=rounds {
                    let changer = usize::from(round) * 7919 % count;
                    let Some(report) = reports.get(changer) else { continue };
                    common.round.store(round, Ordering::SeqCst);
                    let start = Instant::now();
                    report.send_modify(|report| report.endpoints = vec![mark(round)]);
                    let mut times = gather(&mut arrivals, start, count - 1).await?;
                    last.extend(times.iter().max());
                    all.append(&mut times);
                }
                print!("changed");
            }
            ["edit", _, file, program, arguments @ ..] => {
                let template = std::fs::read_to_string(file)?;
                for round in (1..=rounds).map(|round| FIRST_PORT + round) {
                    std::fs::write(file, template.replace("PORT", &round.to_string()))?;
                    common.round.store(round, Ordering::SeqCst);
                    let start = Instant::now();
                    let mut command = std::process::Command::new(program);
                    let mut child = command.args(arguments).stdout(std::process::Stdio::null()).spawn()?;
                    let mut times = gather(&mut arrivals, start, count).await?;
                    last.extend(times.iter().max());
                    all.append(&mut times);
                    child.wait()?;
                }
                print!("edited");
            }
            _ => return Err(format!("unknown command {line:?}").into()),
        }
        println!(" {rounds} times; one node {}; the last node {}", quantiles(&mut all), quantiles(&mut last));
    }
    Ok(())
}

/// Waits until so many nodes have heard of a change and returns after how long each did.
async fn gather(
    arrivals: &mut mpsc::Receiver<Instant>,
    start: Instant,
    count: usize,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let mut times = Vec::with_capacity(count);
    while times.len() < count {
        let at = tokio::time::timeout(ARRIVAL, arrivals.recv()).await;
        let at = at.map_err(|_| format!("only {} of {count} nodes heard of the change", times.len()))?;
        times.extend(at.map(|at| at - start));
    }
    Ok(times)
}

fn mark(round: u16) -> Endpoint {
    Endpoint { address: SocketAddr::from((MARK, round)), kind: EndpointType::Local }
}

fn first_report(number: usize) -> Report {
    let mut disco = [0xd1; 32];
    disco.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    Report {
        hostinfo: hostinfo::collect(&Prefs { hostname: format!("node{number}"), ..Prefs::default() }),
        net_info: Some(NetInfo { preferred_derp: RegionId(900), ..NetInfo::default() }),
        endpoints: vec![Endpoint { address: SocketAddr::from(([192, 0, 2, 1], 41641)), kind: EndpointType::Local }],
        disco_key: DiscoKey::from_bytes(disco),
    }
}

/// One node's life.
async fn live(common: Arc<Common>, report: watch::Receiver<Report>) {
    // The semaphore is never closed.
    let Ok(permit) = common.joining.acquire().await else { return };
    let mut permit = Some(permit);
    let (Ok(url), Ok(machine)) = (common.target_url.parse(), MachineSecret::generate()) else { return };
    let (sender, mut events) = mpsc::channel(4);
    let session = Session {
        connector: Network,
        target: Target { url, pin: Some(common.pin), machine: Arc::new(machine), certificate: None },
        keys: NodeKeys::default(),
        login: Login::AuthKey(AuthKey::new(&common.auth_key)),
        report,
        flows: None,
        events: sender,
    };
    let start = Instant::now();
    tokio::spawn(session.run());
    let mut seen = 0;
    while let Some(event) = events.recv().await {
        match event {
            Event::Keys(_, saved) => drop(saved.send(true)),
            Event::Map(map) => {
                if permit.take().is_some() && common.joined.send(start.elapsed()).await.is_err() {
                    return;
                }
                let round = common.round.load(Ordering::SeqCst);
                if round != seen && tells(&map, round) {
                    seen = round;
                    if common.arrived.send(Instant::now()).await.is_err() {
                        return;
                    }
                }
            }
            Event::Trouble(trouble) | Event::Refused(trouble) => eprintln!("{}", trouble.text),
            Event::ServerTime(_) | Event::Visit(_) | Event::Registered(_) | Event::PollStarted(_) => {}
        }
    }
}

/// Tells whether a map brings the endpoint or the port of this round.
fn tells(map: &MapResponse, round: u16) -> bool {
    let wanted = mark(round).address;
    let rules = map.packet_filters.values().flatten().flatten();
    if rules.flat_map(|rule| &rule.dst_ports).any(|to| to.ports.first == round) {
        return true;
    }
    map.peers_changed_patch.iter().filter_map(|patch| patch.endpoints.as_ref()).any(|list| list.contains(&wanted))
        || map.peers_changed.iter().chain(&map.peers).any(|peer| peer.endpoints.contains(&wanted))
}

/// Shows median, 99th percentile and maximum in milliseconds.
fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |hundredths: usize| {
        let index = (times.len() * hundredths / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", at(50), at(99), at(100))
}
