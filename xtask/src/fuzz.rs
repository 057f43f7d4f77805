//! Fuzzing with libFuzzer, on the one stable toolchain.
//!
//! The targets and their programs are described in fuzz/README.md. What a search collects lies in cargo's target folder
//! under `fuzz/`: `corpus/` (inputs that reached something new), `artifacts/` (findings), `logs/`, and `progress.tsv`, from
//! which the long lane goes on after it was interrupted.

use crate::packages;
use crate::run::{Run, root, target};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// CPU time of all targets together in the long lane, in milliseconds.
const HOUR: u64 = 60 * 60 * 1000;
/// Longest run of a program, in seconds; no more than this is lost when we are interrupted.
const SLICE: u64 = 60;
/// Shortest run of a program, in seconds, unless its whole share is shorter.
const SLICE_MIN: u64 = 10;
/// Length of a tick of the kernel's clock for processes, in milliseconds (`USER_HZ`).
const TICK: u64 = 10;

/// Makes the compiler count edges and report comparisons, as libFuzzer wants it; these are stable options.
const INSTRUMENT: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// Searches every target whose name contains `name` for `seconds` of CPU time.
pub(crate) fn search(seconds: u64, name: Option<&str>) -> Result<()> {
    let chosen: Vec<String> =
        targets()?.into_iter().filter(|target| name.is_none_or(|part| target.contains(part))).collect();
    if chosen.is_empty() {
        bail!("no fuzz target has {:?} in its name", name.unwrap_or_default());
    }
    let programs = build(&chosen)?;
    let mut progress = Progress::default();
    for target in &chosen {
        progress.advance(&programs, target, seconds * 1000, |_| Ok(()))?;
        println!("{}", progress.row(target));
    }
    progress.verdict()
}

/// Gives every target its share of an hour of CPU time, going on where the last call was interrupted, and writes the report.
pub(crate) fn hour() -> Result<()> {
    let targets = targets()?;
    let programs = build(&targets)?;
    let share = HOUR.div_ceil(u64::try_from(targets.len())?);
    let mut progress = Progress::load()?;
    if targets.iter().all(|target| progress.is_done(target, share)) && !progress.is_of(&commit()?) {
        println!("the last hour is complete; beginning another");
        progress = Progress::default();
    }
    for target in &targets {
        progress.advance(&programs, target, share, |progress| {
            progress.save()?;
            progress.report(&targets, share)
        })?;
        println!("{}", progress.row(target));
    }
    progress.report(&targets, share)?;
    progress.verdict()
}

/// What was done so far, by target.
#[derive(Default)]
struct Progress(BTreeMap<String, Entry>);

#[derive(Default)]
struct Entry {
    cpu_millis: u64,
    executions: u64,
    /// Commit at the last slice.
    commit: String,
    /// Names of the inputs that fail.
    findings: Vec<String>,
}

impl Progress {
    /// Runs a target until it has had `share` milliseconds of CPU time or found something.
    fn advance(
        &mut self,
        programs: &Path,
        target: &str,
        share: u64,
        saved: impl Fn(&Self) -> Result<()>,
    ) -> Result<()> {
        let program = Program { path: programs.join(target), name: target };
        if let Some(entry) = self.0.get_mut(target) {
            // What was mended since is no finding any more.
            entry.findings.retain(|input| !program.passes(input));
        }
        while !self.is_done(target, share) {
            let had = self.0.get(target).map_or(0, |entry| entry.cpu_millis);
            // Not ever shorter towards the end of a share: reading the corpus costs time, too.
            let slice = (share - had).div_ceil(1000).clamp(SLICE_MIN.min(share.div_ceil(1000)), SLICE);
            let done = program.run(slice)?;
            let entry = self.0.entry(target.to_owned()).or_default();
            entry.cpu_millis += done.cpu_millis;
            entry.executions += done.executions;
            entry.commit = commit()?;
            entry.findings.extend(done.findings);
            saved(self)?;
        }
        Ok(())
    }

    fn is_done(&self, target: &str, share: u64) -> bool {
        self.0.get(target).is_some_and(|entry| entry.cpu_millis >= share || !entry.findings.is_empty())
    }

    /// Tells whether everything was done at this commit.
    fn is_of(&self, commit: &str) -> bool {
        self.0.values().all(|entry| entry.commit == commit)
    }

    /// Fails if anything was found.
    fn verdict(&self) -> Result<()> {
        let found: Vec<String> = self
            .0
            .iter()
            .flat_map(|(target, entry)| entry.findings.iter().map(move |input| artifacts(target).join(input)))
            .map(|path| path.display().to_string())
            .collect();
        if found.is_empty() {
            return Ok(());
        }
        bail!("these inputs make their targets fail:\n{}", found.join("\n"))
    }

    fn row(&self, target: &str) -> String {
        let nothing = Entry::default();
        let entry = self.0.get(target).unwrap_or(&nothing);
        let findings = if entry.findings.is_empty() { "none".to_owned() } else { entry.findings.join(", ") };
        format!(
            "| {target} | {:.0} | {} | {} | {findings} |",
            entry.cpu_millis as f64 / 1000.0,
            entry.executions,
            entry.commit
        )
    }

    fn report(&self, targets: &[String], share: u64) -> Result<()> {
        let date = Run::new("date").args("-u +%Y-%m-%d").output()?;
        let done = targets.iter().filter(|target| self.is_done(target, share)).count();
        let cpu: u64 = self.0.values().map(|entry| entry.cpu_millis).sum();
        let executions: u64 = self.0.values().map(|entry| entry.executions).sum();
        let findings: usize = self.0.values().map(|entry| entry.findings.len()).sum();
        let mut text = format!(
            "# Fuzzing\n\n\
            Written by `cargo xtask test --long`, last on {}, with libFuzzer and debug assertions. {done} of {} targets had\n\
            their share of 60 CPU-minutes ({:.0} s each): {:.1} CPU-minutes, {executions} inputs, {findings} findings.\n\n\
            | target | CPU seconds | inputs | commit | findings |\n| --- | --- | --- | --- | --- |\n",
            date.trim(),
            targets.len(),
            share as f64 / 1000.0,
            cpu as f64 / 60_000.0,
        );
        for target in targets {
            writeln!(text, "{}", self.row(target))?;
        }
        let file = root().join("docs/reports/fuzz.md");
        std::fs::create_dir_all(file.parent().context("the report has a folder")?)?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn load() -> Result<Self> {
        let file = progress_file();
        let mut progress = Self::default();
        if !file.exists() {
            return Ok(progress);
        }
        for line in std::fs::read_to_string(&file)?.lines() {
            let [target, cpu, executions, commit, findings] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("{} is damaged: remove it to begin again", file.display());
            };
            let findings = findings.split(' ').filter(|input| !input.is_empty()).map(str::to_owned).collect();
            let (cpu_millis, executions) = (cpu.parse()?, executions.parse()?);
            progress.0.insert(target.to_owned(), Entry { cpu_millis, executions, commit: commit.to_owned(), findings });
        }
        Ok(progress)
    }

    fn save(&self) -> Result<()> {
        let mut text = String::new();
        for (target, Entry { cpu_millis, executions, commit, findings }) in &self.0 {
            writeln!(text, "{target}\t{cpu_millis}\t{executions}\t{commit}\t{}", findings.join(" "))?;
        }
        // Replaced in one step, so that an interruption leaves the old one.
        let file = progress_file();
        let new = file.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// A target's program.
struct Program<'a> {
    path: PathBuf,
    name: &'a str,
}

struct Slice {
    cpu_millis: u64,
    executions: u64,
    findings: Vec<String>,
}

impl Program<'_> {
    /// Searches for `seconds`.
    fn run(&self, seconds: u64) -> Result<Slice> {
        let corpus = folder().join("corpus").join(self.name);
        let artifacts = artifacts(self.name);
        let log = folder().join("logs").join(format!("{}.log", self.name));
        for dir in [&corpus, &artifacts, &folder().join("logs")] {
            std::fs::create_dir_all(dir)?;
        }
        let before = inputs(&artifacts)?;
        let cpu_before = cpu_of_children()?;
        let status = Command::new(&self.path)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=30", "-max_len=8192"])
            .args([&corpus, &root().join("fuzz/corpus").join(self.name)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .status()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        let findings: Vec<String> = inputs(&artifacts)?.into_iter().filter(|input| !before.contains(input)).collect();
        if !status.success() && findings.is_empty() {
            bail!("{} failed without leaving an input ({status}); see {}", self.name, log.display());
        }
        let executions = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        Ok(Slice {
            cpu_millis: cpu_of_children()?.saturating_sub(cpu_before),
            executions: executions.and_then(|number| number.trim().parse().ok()).unwrap_or(0),
            findings,
        })
    }

    /// Tells whether an input that once failed passes now.
    fn passes(&self, input: &str) -> bool {
        let mut command = Command::new(&self.path);
        command.arg(artifacts(self.name).join(input)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

/// Builds the programs of these targets and returns their folder.
fn build(targets: &[String]) -> Result<PathBuf> {
    packages::debian(&[("cc", "build-essential"), ("c++", "g++")])?;
    let version = Run::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).args("-vV").output()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    // Not locked: that lock file follows the workspace's, and nobody ships what is built from it.
    let mut cargo = Run::cargo().args("build --quiet --release --manifest-path fuzz/libfuzzer/Cargo.toml");
    for name in targets {
        cargo = cargo.arg("--bin").arg(name);
    }
    // Naming the host keeps the instrumentation away from build scripts and macros.
    cargo
        .arg("--target")
        .arg(host)
        .env("RUSTFLAGS", INSTRUMENT)
        .env("CARGO_TARGET_DIR", folder().join("build"))
        .go()?;
    Ok(folder().join("build").join(host).join("release"))
}

/// Returns all targets by name.
fn targets() -> Result<Vec<String>> {
    let names = inputs(&root().join("fuzz/libfuzzer/src/bin"))?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".rs")).map(str::to_owned).collect())
}

/// Returns the names of the files in a folder, sorted.
fn inputs(dir: &Path) -> Result<Vec<String>> {
    let listed = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = listed
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    target().join("fuzz")
}

fn artifacts(target: &str) -> PathBuf {
    folder().join("artifacts").join(target)
}

fn progress_file() -> PathBuf {
    folder().join("progress.tsv")
}

pub(crate) fn commit() -> Result<String> {
    Ok(Run::new("git").args("rev-parse --short=10 HEAD").output()?.trim().to_owned())
}

/// Returns the CPU time of all our children that ended, in milliseconds (proc(5), `cutime` and `cstime`).
fn cpu_of_children() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat has another form")?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<u64>() * TICK)
}
