//! Fuzzing with libFuzzer through cargo-fuzz, on the one stable toolchain.

use crate::packages;
use crate::run::{Run, root, target};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::path::PathBuf;

/// CPU seconds of all targets together in the long lane.
const HOUR: u64 = 60 * 60;

/// Searches every target whose name contains `name` for `seconds`.
pub(crate) fn search(seconds: u64, name: Option<&str>) -> Result<()> {
    let program = cargo_fuzz()?;
    for target in targets()?.iter().filter(|target| name.is_none_or(|part| target.contains(part))) {
        one(&program, target, seconds)?;
    }
    Ok(())
}

/// Gives every target its share of an hour of CPU time; skips those that the report lists already.
pub(crate) fn hour() -> Result<()> {
    let program = cargo_fuzz()?;
    let targets = targets()?;
    let share = HOUR / u64::try_from(targets.len().max(1))? + 1;
    let file = root().join("docs/reports/fuzz.md");
    std::fs::create_dir_all(file.parent().context("the report has a folder")?)?;
    let commit = Run::new("git").args("rev-parse --short HEAD").output()?;
    let title = format!("# Fuzzing at {}\n\n| target | CPU seconds | finding |\n| --- | --- | --- |\n", commit.trim());
    let mut report =
        std::fs::read_to_string(&file).ok().filter(|text| text.starts_with(title.trim_end())).unwrap_or(title);
    for target in &targets {
        if report.contains(&format!("| {target} |")) {
            continue;
        }
        one(&program, target, share)?;
        writeln!(report, "| {target} | {share} | none |")?;
        std::fs::write(&file, &report)?;
    }
    Ok(())
}

fn one(program: &PathBuf, name: &str, seconds: u64) -> Result<()> {
    // Instrumentation by sanitizer coverage is not a stable option of the compiler, but works in a stable one.
    Run::new(program)
        .args("fuzz run --fuzz-dir fuzz --sanitizer none --target x86_64-unknown-linux-gnu")
        .arg(name)
        .args("-- -verbosity=0 -rss_limit_mb=2048 -timeout=10")
        .arg(format!("-max_total_time={seconds}"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target().join("fuzz"))
        .go()
        .with_context(|| format!("target {name}; the input is in fuzz/artifacts/{name}"))
}

/// Returns the installed cargo-fuzz, building it first if it is missing.
fn cargo_fuzz() -> Result<PathBuf> {
    let dir = target().join("tools");
    let program = dir.join("bin/cargo-fuzz");
    if !program.exists() {
        packages::debian(&[("c++", "g++")])?;
        Run::cargo().args("install --quiet --locked cargo-fuzz --version 0.13.2 --root").arg(&dir).go()?;
    }
    Ok(program)
}

fn targets() -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "rs")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        bail!("no fuzz targets in {}", dir.display());
    }
    Ok(names)
}
