//! `cargo xtask sim`: the simulated Internet of `crates/sim`, seed by seed.

use crate::run::{Run, root, target};
use crate::{fuzz, run};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Nodes of a run, unless told otherwise.
pub(crate) const NODES: u64 = 50;
/// Seeds that continuous integration runs.
const FEW: u64 = 200;
/// Seeds of the long lane.
const MANY: u64 = 10_000;
/// Seeds between two entries of the progress.
const PORTION: u64 = 250;

/// What is to be run.
pub(crate) struct Wish {
    /// How many seeds.
    pub(crate) seeds: u64,
    /// The first of them.
    pub(crate) from: u64,
    /// One seed alone, with all that it says.
    pub(crate) seed: Option<u64>,
    /// And every event.
    pub(crate) trace: bool,
    /// The idle figure instead.
    pub(crate) idle: bool,
    /// Nodes of a run.
    pub(crate) nodes: u64,
}

/// Runs what is wished.
pub(crate) fn command(wish: &Wish) -> Result<()> {
    let program = build()?;
    if wish.idle {
        return Run::new(program).arg("idle").go();
    }
    if let Some(seed) = wish.seed {
        let run = Run::new(program).arg("replay").arg(seed.to_string()).arg(wish.nodes.to_string());
        return if wish.trace { run.arg("trace") } else { run }.go();
    }
    let done = portion(&program, wish.from, wish.seeds, wish.nodes)?;
    print!("{}", done.text);
    println!("{}", done.total.summary());
    done.total.verdict()
}

/// Runs the seeds of continuous integration.
pub(crate) fn few() -> Result<()> {
    command(&Wish { seeds: FEW, from: 0, seed: None, trace: false, idle: false, nodes: NODES })
}

/// Runs the seeds of the long lane that are not done at this commit, and writes docs/reports/sim.md.
pub(crate) fn many() -> Result<()> {
    let program = build()?;
    let commit = fuzz::commit()?;
    let mut total = load(&commit)?;
    if total.seeds >= MANY {
        println!("the last simulation at this commit is complete; beginning another");
        total = Total::default();
    }
    while total.seeds < MANY {
        let done = portion(&program, total.seeds, PORTION.min(MANY - total.seeds), NODES)?;
        print!("{}", done.text);
        total.add(&done.total);
        println!("{}", total.summary());
        save(&commit, &total)?;
        report(&commit, &total)?;
    }
    total.verdict()
}

/// Sums over seeds.
#[derive(Default)]
struct Total {
    seeds: u64,
    failed: u64,
    node_hours: f64,
    cpu_seconds: f64,
    /// Packets judged, events, pairs, pairs that had to be direct, pairs that were.
    counts: [u64; 5],
}

struct Portion {
    text: String,
    total: Total,
}

impl Total {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.failed += other.failed;
        self.node_hours += other.node_hours;
        self.cpu_seconds += other.cpu_seconds;
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, one)| *sum += one);
    }

    fn summary(&self) -> String {
        let [packets, events, pairs, must, direct] = self.counts;
        format!(
            "{} seeds, {} failed; {:.0} node-hours in {:.1} CPU seconds: {:.1} node-hours a second; {events} events, \
            {packets} packets judged; {pairs} pairs judged, {must} had to be direct, {direct} were",
            self.seeds,
            self.failed,
            self.node_hours,
            self.cpu_seconds,
            self.node_hours / self.cpu_seconds.max(0.01),
        )
    }

    fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} seeds failed; each is named above with the command that replays it", self.failed);
        }
        Ok(())
    }

    fn write(&self) -> String {
        let [packets, events, pairs, must, direct] = self.counts;
        let Self { seeds, failed, node_hours, cpu_seconds, .. } = self;
        format!("total\t{seeds}\t{failed}\t{node_hours}\t{cpu_seconds}\t{packets}\t{events}\t{pairs}\t{must}\t{direct}")
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("total\t")?.split('\t');
        let (seeds, failed) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (node_hours, cpu_seconds) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let counts: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { seeds, failed, node_hours, cpu_seconds, counts: counts.try_into().ok()? })
    }
}

fn build() -> Result<PathBuf> {
    Run::cargo().args("build --quiet --locked --profile sim --package warren-sim").go()?;
    Ok(target().join("sim/warren-sim"))
}

/// Runs some seeds in one process. A seed that fails is in the text, and no error yet.
fn portion(program: &PathBuf, from: u64, count: u64, nodes: u64) -> Result<Portion> {
    let words = [from, count, nodes].map(|number| number.to_string());
    let output = Command::new(program).arg("run").args(&words).current_dir(run::root()).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some((line, total)) = text.lines().last().and_then(|line| Some((line, Total::read(line)?))) else {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("the simulation of seeds {from} to {} broke off ({}): {error}", from + count - 1, output.status);
    };
    Ok(Portion { text: text.trim_end().strip_suffix(line).unwrap_or_default().to_owned(), total })
}

fn progress_file() -> PathBuf {
    target().join("sim.tsv")
}

fn load(commit: &str) -> Result<Total> {
    let file = progress_file();
    if !file.exists() {
        return Ok(Total::default());
    }
    let text = std::fs::read_to_string(&file)?;
    let Some((of, line)) = text.trim_end().split_once('\n') else { bail!("{} is damaged: remove it", file.display()) };
    if of != commit {
        return Ok(Total::default());
    }
    Total::read(line).with_context(|| format!("{} is damaged: remove it to begin again", file.display()))
}

fn save(commit: &str, total: &Total) -> Result<()> {
    let (file, new) = (progress_file(), progress_file().with_extension("new"));
    std::fs::write(&new, format!("{commit}\n{}\n", total.write()))?;
    std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
}

fn report(commit: &str, total: &Total) -> Result<()> {
    let date = Run::new("date").args("-u +%Y-%m-%d").output()?;
    let [packets, events, pairs, must, direct] = total.counts;
    let text = format!(
        "# Simulation\n\n\
        Written by `cargo xtask test --long`, last on {} at {commit}. Each seed makes {NODES} nodes in a random network\n\
        of homes, carriers and firewalls, lets them talk through three storms of faults, and judges what follows each.\n\n\
        | | |\n| --- | --- |\n\
        | seeds | {} of {MANY} |\n| seeds that failed | {} |\n| node-hours | {:.0} |\n\
        | node-hours per CPU second | {:.1} |\n| events | {events} |\n| data packets judged, all arrived unless a seed failed | {packets} |\n\
        | conversations judged | {pairs} |\n| of these had to be direct | {must} |\n| were direct | {direct} |\n",
        date.trim(),
        total.seeds,
        total.failed,
        total.node_hours,
        total.node_hours / total.cpu_seconds.max(0.01),
    );
    let file = root().join("docs/reports/sim.md");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
