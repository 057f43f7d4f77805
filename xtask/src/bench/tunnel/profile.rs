//! Where the time goes: a flame graph of our two nodes under load.

use super::Programs;
use super::figure::Stream;
use super::subject::Subject;
use crate::packages;
use crate::run::{Run, require_root, target};
use anyhow::{Context, Result};

/// Samples a second, of no common measure with timers.
const RATE: &str = "997";

/// What is looked at.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds of load.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=300))]
    seconds: u32,
    /// How many TCP streams.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    streams: u32,
}

/// Writes the flame graph and says where it is.
pub(crate) fn flame(options: &Options) -> Result<()> {
    require_root("the profile")?;
    packages::debian(&[("ip", "iproute2"), ("ping", "iputils-ping"), ("iperf3", "iperf3"), ("perf", "linux-perf")])?;
    let collapse = packages::cargo("inferno", "0.12.4", "inferno-collapse-perf")?;
    let draw = collapse.with_file_name("inferno-flamegraph");
    let dir = target().join("profile");
    // As people get it, with names and frame pointers; in a folder of its own, so that no other build is thrown away.
    Run::cargo()
        .args("build --quiet --locked --release --package warren --target-dir")
        .arg(&dir)
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only")
        .env("RUSTFLAGS", "-C force-frame-pointers=yes")
        .go()?;
    let programs = Programs { warren: dir.join("release/warren"), ..Programs::default() };
    let pair = Subject::Warren(None).set_up(&programs)?;
    let mut stream = Stream::start(&pair, &format!("-P {} -t {}", options.streams, options.seconds))?;
    let data = dir.join("perf.data");
    let pids: Vec<String> = pair.pids.iter().map(u32::to_string).collect();
    let seconds = options.seconds.to_string();
    Run::new("perf")
        .args("record --quiet --call-graph fp -F")
        .arg(RATE)
        .arg("-o")
        .arg(&data)
        .arg("-p")
        .arg(pids.join(","))
        .args("-- sleep")
        .arg(&seconds)
        .go()?;
    let speed = stream.finish()?;
    let script = dir.join("perf.script");
    Run::new("perf").args("script -i").arg(&data).output_to(&script)?;
    let folded = dir.join("perf.folded");
    Run::new(collapse).arg(&script).output_to(&folded)?;
    let picture = dir.join("flame.svg");
    Run::new(draw).args("--title").arg(format!("two nodes, {speed:.0} Mbit/s")).arg(&folded).output_to(&picture)?;
    println!("{speed:.0} Mbit/s while it was looked at; the most of the time, without what was called:");
    for (name, share) in leaves(&std::fs::read_to_string(&folded).context("no samples")?).into_iter().take(15) {
        println!("  {:5.1} %  {name}", share * 100.0);
    }
    println!("flame graph: {}", picture.display());
    Ok(())
}

/// Returns the functions in which time was spent, and their part of it, the greatest first.
fn leaves(folded: &str) -> Vec<(String, f64)> {
    let mut counts = std::collections::BTreeMap::<&str, f64>::new();
    let lines = folded.lines().filter_map(|line| line.rsplit_once(' '));
    for (stack, count) in lines {
        *counts.entry(stack.rsplit(';').next().unwrap_or(stack)).or_default() +=
            count.parse::<f64>().unwrap_or_default();
    }
    let all: f64 = counts.values().sum();
    let mut counts: Vec<_> = counts.into_iter().map(|(name, count)| (name.to_owned(), count / all.max(1.0))).collect();
    counts.sort_by(|one, other| other.1.total_cmp(&one.1));
    counts
}

#[cfg(test)]
mod tests {
    #[test]
    fn leaves_are_summed_over_stacks() {
        let found = super::leaves("a;b 1\nc;b 2\na;c 1\n");
        assert_eq!(found, [("b".to_owned(), 0.75), ("c".to_owned(), 0.25)]);
    }
}
