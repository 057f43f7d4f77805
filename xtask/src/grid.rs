//! The grid: two machines in every pair of places, and how they reach each other.

use crate::fleet::{GoClient, Node, PATIENCE, Server, address_of};
use crate::lab::{Lab, Place, Placed, Process, wait_for};
use crate::run::{build_warren, require_root, root, target};
use crate::{fuzz, packages};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often each pair is tried; the table shows medians.
const RUNS: usize = 3;
/// How long a pair may take to become direct before it counts as relayed: longer than the quick tries of a search and two
/// slow ones.
const GIVE_UP: Duration = Duration::from_secs(12);
/// Time between two echo requests, in seconds.
const EVERY: f64 = 0.05;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// Our own node.
    Warren,
    /// The official Go client.
    Go,
}

impl Peer {
    fn word(self) -> &'static str {
        match self {
            Self::Warren => "warren",
            Self::Go => "go",
        }
    }
}

/// One cell of the table: our node in place `a`, its peer in place `b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    a: Place,
    b: Place,
    peer: Peer,
}

/// What one try showed, in milliseconds from the first echo request.
#[derive(Debug, Clone, Copy)]
struct Try {
    first: f64,
    /// Until both ends send directly; none if they never did.
    direct: Option<f64>,
}

/// What all tries of a pair showed.
#[derive(Debug, Clone)]
struct Cell {
    pair: Pair,
    tries: Vec<Try>,
}

/// Cells that continuous integration looks at: each stands for a technique.
const FEW: [Pair; 6] = [
    Pair { a: Place::Double, b: Place::Easy, peer: Peer::Warren },
    Pair { a: Place::Firewall, b: Place::Easy, peer: Peer::Go },
    Pair { a: Place::Hard, b: Place::Cone, peer: Peer::Warren },
    Pair { a: Place::V6Only, b: Place::Dual, peer: Peer::Go },
    Pair { a: Place::V6Only, b: Place::Easy, peer: Peer::Warren },
    Pair { a: Place::Proxy, b: Place::Easy, peer: Peer::Warren },
];

/// Measures the pairs whose places have these names, in either order, and prints a table, or one JSON object a cell.
pub(crate) fn command(peer: Option<Peer>, places: &[String], json: bool) -> Result<()> {
    let warren = prepare()?;
    for place in places {
        ensure!(Place::ALL.iter().any(|known| known.word() == place), "there is no place {place:?}");
    }
    let wanted = |pair: &Pair| match places {
        [] => true,
        [one] => pair.a.word() == one || pair.b.word() == one,
        [a, b, ..] => {
            let (one, two) = (pair.a.word(), pair.b.word());
            (one == a && two == b) || (pair.peer == Peer::Warren && one == b && two == a)
        }
    };
    let mut cells = Vec::new();
    for pair in all().into_iter().filter(|pair| peer.is_none_or(|peer| peer == pair.peer)).filter(wanted) {
        let cell = Cell::measure(&warren, pair, RUNS)?;
        if json {
            println!("{}", cell.json());
        } else {
            println!("{cell}");
        }
        cells.push(cell);
    }
    if !json && places.is_empty() {
        print!("{}", table(&cells));
    }
    Ok(())
}

/// Measures the six cells of continuous integration once each, and fails if one is not what it must be.
pub(crate) fn few() -> Result<()> {
    let warren = prepare()?;
    for pair in FEW {
        let cell = Cell::measure(&warren, pair, 1)?;
        println!("grid    {cell}");
        ensure!(cell.is_direct() == pair.can_be_direct(), "{cell}: not what this pair can reach");
    }
    Ok(())
}

/// Measures what was not measured at this commit, of all pairs or those with this peer, and writes docs/reports/grid.md.
///
/// A pair that cannot be measured is said and left out of the table; the others are still measured.
///
/// # Errors
/// If a pair could not be measured, at the end.
pub(crate) fn whole(peer: Option<Peer>) -> Result<()> {
    let warren = prepare()?;
    let commit = fuzz::commit()?;
    let file = target().join(format!("grid-{commit}.tsv"));
    let mut cells = Vec::new();
    let mut failed = Vec::new();
    for pair in all().into_iter().filter(|pair| peer.is_none_or(|peer| peer == pair.peer)) {
        let known = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some(cell) = known.lines().find_map(|line| Cell::read(line, pair)) {
            cells.push(cell);
            continue;
        }
        match Cell::measure(&warren, pair, RUNS) {
            Ok(cell) => {
                println!("{cell}");
                // Appended: the two peers may be measured side by side.
                let mut lines = std::fs::OpenOptions::new().create(true).append(true).open(&file)?;
                lines.write_all(cell.write().as_bytes())?;
                cells.push(cell);
            }
            Err(error) => {
                println!("{error:#}");
                failed.push(format!("{error:#}"));
            }
        }
    }
    let path = root().join("docs/reports/grid.md");
    std::fs::write(&path, format!("{}\nCommit {commit}.\n", table(&cells)))
        .with_context(|| format!("cannot write {}", path.display()))?;
    ensure!(failed.is_empty(), "{} pairs could not be measured:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

fn prepare() -> Result<PathBuf> {
    require_root("the grid")?;
    packages::debian(&[
        ("ip", "iproute2"),
        ("ping", "iputils-ping"),
        ("nft", "nftables"),
        ("curl", "curl"),
        ("miniupnpd", "miniupnpd-nftables"),
        ("tinyproxy", "tinyproxy-bin"),
    ])?;
    build_warren()
}

/// Returns every pair: with a node at both ends each combination once, with a Go client both ways round.
fn all() -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (at, &a) in Place::ALL.iter().enumerate() {
        pairs.extend(Place::ALL.iter().skip(at).map(|&b| Pair { a, b, peer: Peer::Warren }));
    }
    // Through a proxy that client speaks only with servers that have a certificate of the public authorities.
    for &a in &Place::ALL {
        let far = Place::ALL.iter().filter(|place| **place != Place::Proxy);
        pairs.extend(far.map(|&b| Pair { a, b, peer: Peer::Go }));
    }
    pairs
}

impl Pair {
    /// Tells whether hole punching and port mapping lead to a direct path, by what stands between the two.
    fn can_be_direct(self) -> bool {
        let either = |place| self.a == place || self.b == place;
        let has = |place: Place, family: u8| match place {
            Place::NoUdp | Place::Proxy => false,
            Place::Dual => true,
            Place::V6Only => family == 6,
            Place::Open | Place::Easy | Place::Hard | Place::Cone | Place::Double | Place::Firewall | Place::Mapped => {
                family == 4
            }
        };
        let shares = |family| has(self.a, family) && has(self.b, family);
        if shares(6) {
            return true;
        }
        // Who has another port for everybody meets only those who let everybody in.
        let is_open = |place| matches!(place, Place::Open | Place::Dual | Place::Cone | Place::Mapped);
        shares(4) && (!either(Place::Hard) || is_open(self.a) || is_open(self.b))
    }
}

impl Cell {
    fn measure(warren: &Path, pair: Pair, runs: usize) -> Result<Self> {
        let mut tries = Vec::new();
        for run in 0..runs {
            let tried = try_once(warren, pair);
            tries.push(tried.with_context(|| {
                format!("{} and {} ({}), run {run}", pair.a.word(), pair.b.word(), pair.peer.word())
            })?);
        }
        Ok(Self { pair, tries })
    }

    /// Tells whether all tries became direct.
    fn is_direct(&self) -> bool {
        self.tries.iter().all(|one| one.direct.is_some())
    }

    fn first(&self) -> f64 {
        median(self.tries.iter().map(|one| one.first))
    }

    /// Returns the median time until direct, of those tries that became so, and how many they were.
    fn direct(&self) -> (Option<f64>, usize) {
        let times: Vec<f64> = self.tries.iter().filter_map(|one| one.direct).collect();
        ((!times.is_empty()).then(|| median(times.iter().copied())), times.len())
    }

    fn json(&self) -> String {
        let (direct, count) = self.direct();
        serde_json::json!({
            "a": self.pair.a.word(),
            "b": self.pair.b.word(),
            "peer": self.pair.peer.word(),
            "tries": self.tries.len(),
            "direct": count,
            "first_ms": self.first(),
            "direct_ms": direct,
            "can_be_direct": self.pair.can_be_direct(),
        })
        .to_string()
    }

    /// What the table shows: `d` and the milliseconds to first byte and direct path, or `r` and those to first byte.
    fn short(&self) -> String {
        let first = self.first();
        match self.direct() {
            (Some(direct), count) if count == self.tries.len() => format!("d {first:.0} / {direct:.0}"),
            (Some(direct), count) => format!("{count}/{} d {first:.0} / {direct:.0}", self.tries.len()),
            (None, _) => format!("r {first:.0}"),
        }
    }

    fn write(&self) -> String {
        let mut line = format!("{}\t{}\t{}", self.pair.peer.word(), self.pair.a.word(), self.pair.b.word());
        for one in &self.tries {
            // Writing to a string cannot fail.
            let _ = write!(line, "\t{}={}", one.first, one.direct.unwrap_or(-1.0));
        }
        line + "\n"
    }

    fn read(line: &str, pair: Pair) -> Option<Self> {
        let rest = line.strip_prefix(&format!("{}\t{}\t{}\t", pair.peer.word(), pair.a.word(), pair.b.word()))?;
        let tried = |word: &str| {
            let (first, direct) = word.split_once('=')?;
            let direct = direct.parse().ok().filter(|ms: &f64| *ms >= 0.0);
            Some(Try { first: first.parse().ok()?, direct })
        };
        Some(Self { pair, tries: rest.split('\t').map(tried).collect::<Option<_>>()? })
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pair { a, b, peer } = self.pair;
        write!(f, "{:8} {:8} {:8} {}", a.word(), b.word(), peer.word(), self.short())?;
        if self.is_direct() != self.pair.can_be_direct() {
            let other = if self.pair.can_be_direct() { "direct" } else { "relayed" };
            write!(f, "  (by hole punching alone: {other})")?;
        }
        Ok(())
    }
}

/// Puts the two machines in their places, lets them settle, and sends echo requests until the path is direct.
fn try_once(warren: &Path, pair: Pair) -> Result<Try> {
    let mut lab = Lab::new(&format!("grid-{}", pair.peer.word()), &["server"])?;
    let (a, b) = (lab.place("alpha", pair.a)?, lab.place("beta", pair.b)?);
    let server = Server::start_at(warren, &lab.host("server"), "[::]", "server.lab", &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start_with(warren, &a.host, &a.environment)?;
    alpha.up(&invitation, &[])?;
    let far = Far::start(warren, &server, &invitation, (pair, &b), &alpha)?;
    wait_for("the home relays of both ends", PATIENCE, || alpha.peer_field("beta", "Relay")).context("alpha")?;
    if let Far::Warren(beta) = &far {
        wait_for("the home relays of both ends", PATIENCE, || beta.peer_field("alpha", "Relay")).context("beta")?;
    }
    let to = address_of(&server, "beta")?;
    let start = Instant::now();
    let count = (GIVE_UP.as_secs_f64() / EVERY).to_string();
    let words = ["-n", "-i", &EVERY.to_string(), "-c", &count, &to];
    let pings = a.host.spawn("ping", Path::new("ping"), &words)?;
    let mut direct = None;
    while direct.is_none() && start.elapsed() < GIVE_UP {
        if alpha.direct_path("beta")?.is_some() && far.is_direct()? {
            direct = Some(start.elapsed().as_secs_f64() * 1000.0);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let first = wait_for("a first answer", PATIENCE, || first_answer(&pings))?;
    drop(pings.signal("TERM"));
    // The path is right only if packets pass on it.
    let before = answers(&pings);
    if direct.is_some() {
        let mut more = a.host.spawn("more", Path::new("ping"), &["-n", "-i", "0.05", "-c", "5", &to])?;
        more.wait_end(PATIENCE)?;
        ensure!(answers(&more) == 5, "packets are lost on the direct path: {} of 5 came back", answers(&more));
    }
    ensure!(before > 0, "no echo came back");
    Ok(Try { first, direct })
}

/// The other end.
enum Far {
    Warren(Node),
    Go(GoClient),
}

impl Far {
    fn start(
        warren: &Path,
        server: &Server,
        invitation: &crate::fleet::Invitation,
        (pair, place): (Pair, &Placed),
        alpha: &Node,
    ) -> Result<Self> {
        match pair.peer {
            Peer::Warren => {
                let beta = Node::start_with(warren, &place.host, &place.environment)?;
                beta.up(invitation, &[])?;
                Ok(Self::Warren(beta))
            }
            Peer::Go => {
                let caddy = packages::caddy()?;
                // It goes to another port for names and public addresses.
                let url = if pair.b == Place::V6Only { "http://[fd91::2]:8080" } else { "http://10.91.0.2:8080" };
                let (alpha4, _) = alpha.addresses()?;
                let key = &invitation.key;
                let gopher =
                    GoClient::start_with(&place.host, &caddy, (url, key), ("page", &alpha4), &place.environment)?;
                address_of(server, "beta").with_context(|| gopher.log_end())?;
                Ok(Self::Go(gopher))
            }
        }
    }

    fn is_direct(&self) -> Result<bool> {
        match self {
            Self::Warren(node) => Ok(node.direct_path("alpha")?.is_some()),
            Self::Go(client) => Ok(client.has_been_direct()),
        }
    }
}

/// Returns when the first answer came, in milliseconds from the first request, by what `ping` prints.
fn first_answer(pings: &Process) -> Option<f64> {
    let log = pings.log();
    let line = log.lines().find(|line| line.contains(" time="))?;
    let number = |name: &str| line.split_once(name)?.1.split_whitespace().next()?.parse::<f64>().ok();
    Some((number("icmp_seq=")? - 1.0) * EVERY * 1000.0 + number("time=")?)
}

fn answers(pings: &Process) -> usize {
    pings.log().lines().filter(|line| line.contains(" time=")).count()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Writes the two tables.
fn table(cells: &[Cell]) -> String {
    let mut text = String::from(
        "# Who reaches whom\n\n\
        Written by `cargo xtask grid`. Two machines in namespaces, each in its place; `d` direct, `r` relayed; milliseconds\n\
        from the first echo request to its answer, then until both ends send directly; medians.\n\n\
        open, dual, v6only: nothing in between, on IPv4, both families, IPv6. easy, hard: a NAT with one outside port for all\n\
        destinations, or another for each; cone: one that lets everybody in; double: two easy ones in a row; fw: a stateful\n\
        firewall; mapped: a hard NAT that maps ports on request; noudp: UDP dropped; proxy: only an HTTP proxy, through which\n\
        the Go client goes to servers with TLS on port 443 alone: not measured.\n",
    );
    for (peer, title) in [(Peer::Warren, "Node to node"), (Peer::Go, "Node (rows) to the official Go client (columns)")]
    {
        let of_peer: Vec<&Cell> = cells.iter().filter(|cell| cell.pair.peer == peer).collect();
        if of_peer.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let words: Vec<&str> = Place::ALL.iter().map(|place| place.word()).collect();
        let _ = writeln!(text, "\n## {title}\n\n| | {} |\n|{}", words.join(" | "), " --- |".repeat(words.len() + 1));
        for a in Place::ALL {
            let row = Place::ALL.map(|b| {
                let cell = of_peer.iter().find(|cell| cell.pair.a == a && cell.pair.b == b);
                cell.map(|cell| cell.short()).unwrap_or_default()
            });
            let _ = writeln!(text, "| {} | {} |", a.word(), row.join(" | "));
        }
    }
    text
}
