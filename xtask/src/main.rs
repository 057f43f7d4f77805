//! Developer commands of warren: the one door to checking, testing, showing and measuring it.
//!
//! `cargo xtask help` lists them. Continuous integration runs `cargo xtask test` and nothing else.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a developer's tool: it prints, reads clocks, and may stop on a broken invariant"
)]

mod bench;
mod check;
mod demo;
mod e2e;
mod fleet;
mod fuzz;
mod grid;
mod lab;
mod packages;
mod run;
mod sanitize;
mod sim;
mod soak;
mod test;
mod traffic;
mod whole;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Developer commands of warren.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks format, lints, crate arrows, file rules and docs.
    Check,
    /// Runs every test that continuous integration runs.
    Test {
        /// Runs the long lane instead: fuzzing and soak tests, resumable; writes docs/reports/.
        #[arg(long)]
        long: bool,
    },
    /// Shows the main job: a server and two machines that reach each other through a tunnel.
    Demo {
        /// Keeps the logs and prints where they are.
        #[arg(long)]
        keep: bool,
        /// Without namespaces and TUN devices, as it is for whoever is not root.
        #[arg(long)]
        without_root: bool,
    },
    /// Runs the end-to-end tests in network namespaces, or those whose name contains NAME.
    E2e {
        /// Part of a test's name.
        name: Option<String>,
        /// Lists the tests and does nothing else.
        #[arg(long)]
        list: bool,
        /// Repeats more often what is repeated.
        #[arg(long)]
        long: bool,
    },
    /// Puts two machines in every pair of places, behind NATs for instance, and prints how they reach each other.
    Grid {
        /// Only with this at the other end.
        #[arg(long)]
        peer: Option<grid::Peer>,
        /// Prints one JSON object a cell.
        #[arg(long)]
        json: bool,
        /// Every pair that was not measured at this commit; writes docs/reports/grid.md.
        #[arg(long, conflicts_with_all = ["json", "places"])]
        long: bool,
        /// Only pairs with this place in them, or with these two.
        #[arg(num_args = 0..=2)]
        places: Vec<String>,
    },
    /// Runs seeds of the simulated Internet, or one seed again; prints node-hours per CPU second.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 20)]
        seeds: u64,
        /// The first of them.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Runs this seed alone and prints all that is wrong.
        #[arg(long)]
        seed: Option<u64>,
        /// With --seed: prints every event.
        #[arg(long)]
        trace: bool,
        /// Prints what an idle node with 100 peers does in an hour.
        #[arg(long)]
        idle: bool,
        /// Runs the 10,000 seeds of the long lane, from where it was interrupted, and writes docs/reports/sim.md.
        #[arg(long)]
        long: bool,
        /// Nodes of a run; another number is another run.
        #[arg(long, default_value_t = sim::NODES)]
        nodes: u64,
    },
    /// Sends 10 GB through tunnels over a bad line with new keys each second and compares every byte, from where it was
    /// interrupted; writes docs/reports/whole.md.
    Whole,
    /// Measures and prints figures and ratios: one thing, or all.
    Bench {
        #[command(subcommand)]
        what: Option<bench::Bench>,
    },
    /// Draws a flame graph of two nodes between which TCP streams flow.
    Profile(bench::tunnel::profile::Options),
    /// Sends or receives inside a host of the lab.
    #[command(subcommand, hide = true)]
    Traffic(traffic::Traffic),
    /// Fuzzes every target for SECONDS of CPU time each.
    Fuzz {
        /// CPU seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only targets whose name contains this.
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => check::all(),
        Command::Test { long: false } => test::all(),
        Command::Test { long: true } => test::long(),
        Command::Demo { keep, without_root } => demo::show(keep, without_root),
        Command::E2e { name, list, long } => e2e::command(name.as_deref(), list, long),
        Command::Grid { peer, long: true, .. } => grid::whole(peer),
        Command::Grid { peer, json, places, long: false } => grid::command(peer, &places, json),
        Command::Sim { long: true, .. } => sim::many(),
        Command::Sim { seeds, from, seed, trace, idle, nodes, long: false } => {
            sim::command(&sim::Wish { seeds, from, seed, trace, idle, nodes })
        }
        Command::Whole => whole::long(),
        Command::Bench { what } => bench::command(what.as_ref()),
        Command::Profile(options) => bench::tunnel::profile::flame(&options),
        Command::Traffic(traffic) => traffic::run(&traffic),
        Command::Fuzz { seconds, name } => fuzz::search(seconds, name.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
