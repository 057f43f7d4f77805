//! `cargo xtask bench`: what is measured, not tested. Prints figures and ratios; nothing here fails for being slow.

mod dns;
mod failover;
mod first_reply;
mod gaps;
mod join;
mod peers;
mod punch;
mod relay;
mod routes;
mod streams;
pub(crate) mod tunnel;
mod userspace;

use crate::packages;
use crate::run::{Run, require_root, target};
use anyhow::Result;
use clap::Subcommand;
use std::path::PathBuf;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// From `warren up` to the first answered ping, and to a direct path; medians over RUNS joins.
    Join {
        /// How many joins.
        #[arg(long, default_value_t = 20)]
        runs: u32,
    },
    /// A server under COUNT map streams: memory, time until a change has reached all, CPU at rest.
    Streams {
        /// How many simulated nodes.
        #[arg(long, default_value_t = 1000)]
        count: u32,
        /// How many changes are timed.
        #[arg(long, default_value_t = 50)]
        rounds: u16,
        /// Seconds for which the server's CPU time is taken at rest.
        #[arg(long, default_value_t = 60)]
        rest: u64,
        /// Every node in a tailnet policy of its own tag, seeing only one hub, instead of all seeing all.
        #[arg(long)]
        hub: bool,
    },
    /// What idle peers cost a node: memory of its engine and of the whole process, and the time when one of them changes.
    Peers {
        /// How many runs of each.
        #[arg(long, default_value_t = 3)]
        runs: u32,
    },
    /// The tunnel of two nodes beside other programs and the bare minimum, in turns: speed, packets, CPU, pings, memory.
    Tunnel(tunnel::Options),
    /// The first reply between two nodes without a direct path, beside two round trips over the relay; from a cold start,
    /// too.
    FirstReply(first_reply::Options),
    /// How long data stands still when the network changes under a connection.
    Gaps {
        /// How often each change happens.
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
    /// Answers a second for names of the tailnet, and how soon one comes that the node remembers.
    Dns {
        /// How many runs of each.
        #[arg(long, default_value_t = 3)]
        runs: u32,
    },
    /// How long data stands still when one of two routers of a network fails, or the server does.
    Failover {
        /// How often each fault happens.
        #[arg(long, default_value_t = 5)]
        runs: u32,
        /// Only faults whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// How surely, how soon and with how many packets a hard NAT is met from an easy one, and from another.
    Punch {
        /// How many pairs of fresh nodes of each kind.
        #[arg(long, default_value_t = 20)]
        runs: u32,
    },
    /// A relay under load: throughput of 1 and 100 flows, latency, a client that does not read, idle clients.
    Relay {
        /// How many idle clients; a process may often have no more than 20,000 descriptors.
        #[arg(long, default_value_t = 19_500)]
        idle: u32,
        /// Seconds for which flows are counted.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// The way through a subnet router and an exit node beside the plain tunnel, in turns, in both families.
    Routes(routes::Options),
    /// A node without TUN device beside the official Go client, both with a node with one: a file of 200 MB out and in.
    Userspace(userspace::Options),
    /// A collector's store: to fill, on disk, to open, to ask, to prove and to verify.
    Ledger {
        /// How many records; 10 million take some 500 MB in the folder for temporary files.
        #[arg(long, default_value_t = 1_000_000)]
        records: u64,
    },
    /// What a policy costs: to compile for up to 100,000 nodes, and when one node, one tag or one group changes.
    Policy,
    /// The benchmarks beside the code (`cargo bench`), that one included.
    Code,
}

/// Measures one thing, or all of them one after another.
pub(crate) fn command(what: Option<&Bench>) -> Result<()> {
    match what {
        Some(Bench::Join { runs }) => join::measure(*runs),
        Some(Bench::Streams { count, rounds, rest, hub }) => streams::measure(*count, *rounds, *rest, *hub),
        Some(Bench::Peers { runs }) => peers::measure(*runs),
        Some(Bench::Tunnel(options)) => tunnel::measure(options),
        Some(Bench::FirstReply(options)) => first_reply::measure(options),
        Some(Bench::Gaps { runs }) => gaps::measure(*runs),
        Some(Bench::Dns { runs }) => dns::measure(*runs),
        Some(Bench::Failover { runs, only }) => failover::measure(*runs, only.as_deref()),
        Some(Bench::Punch { runs }) => punch::measure(*runs),
        Some(Bench::Relay { idle, seconds }) => relay::measure(*idle, *seconds),
        Some(Bench::Routes(options)) => routes::measure(options),
        Some(Bench::Userspace(options)) => userspace::measure(options),
        Some(Bench::Ledger { records }) => Run::cargo()
            .args("bench --quiet --locked --package warren-ledger --bench ledger -- --records")
            .arg(records.to_string())
            .go(),
        Some(Bench::Policy) => Run::cargo().args("bench --quiet --locked --package warren-policy --bench compile").go(),
        Some(Bench::Code) => Run::cargo().args("bench --quiet --workspace --locked --benches").go(),
        None => {
            join::measure(20)?;
            streams::measure(1000, 50, 60, false)?;
            tunnel::measure(&tunnel::Options::default())?;
            first_reply::measure(&first_reply::Options::default())?;
            gaps::measure(5)?;
            failover::measure(5, None)?;
            dns::measure(3)?;
            punch::measure(20)?;
            relay::measure(19_500, 10)?;
            routes::measure(&routes::Options::default())?;
            userspace::measure(&userspace::Options::default())?;
            Run::cargo().args("bench --quiet --workspace --locked --benches").go()
        }
    }
}

/// Builds the program in the release profile and returns its path.
fn release_warren() -> Result<PathBuf> {
    require_root("the benchmark")?;
    packages::debian(&[("ip", "iproute2"), ("ping", "iputils-ping"), ("nft", "nftables")])?;
    Run::cargo().args("build --quiet --locked --release --package warren").go()?;
    Ok(target().join("release/warren"))
}

/// Returns the value in the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
