//! Everything about the code that can be checked without running it.

use crate::run::{Run, root};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which crates each crate may use: the arrows of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("warren-wire", &[]),
    ("warren-aead", &[]),
    ("warren-wg", &["warren-wire", "warren-aead"]),
    ("warren-filter", &["warren-wire"]),
    ("warren-path", &["warren-wire"]),
    ("warren-dns", &["warren-wire"]),
    ("warren-ledger", &["warren-wire"]),
    ("warren-policy", &["warren-wire", "warren-filter"]),
    ("warren-sim", &["warren-wire", "warren-path"]),
    ("warren-os", &[]),
    ("warren-relay", &["warren-wire"]),
    ("warren-control", &["warren-wire", "warren-ledger", "warren-policy", "warren-relay"]),
    (
        "warren-node",
        &[
            "warren-wire",
            "warren-wg",
            "warren-filter",
            "warren-path",
            "warren-dns",
            "warren-ledger",
            "warren-os",
            "warren-relay",
        ],
    ),
    ("warren", &["warren-wire", "warren-os", "warren-policy", "warren-relay", "warren-control", "warren-node"]),
    (
        "warren-fuzz",
        &[
            "warren-aead",
            "warren-wire",
            "warren-wg",
            "warren-filter",
            "warren-path",
            "warren-dns",
            "warren-ledger",
            "warren-policy",
            "warren-relay",
            "warren-control",
            "warren-node",
        ],
    ),
    ("xtask", &["warren-wire", "warren-wg", "warren-os"]),
];

/// Folders of the crates that may use `unsafe`.
const UNSAFE: &[&str] = &["crates/os/", "crates/aead/"];

/// Crates that must not know an asynchronous runtime: the cores.
const CORES: &[&str] =
    &["warren-wire", "warren-wg", "warren-filter", "warren-path", "warren-dns", "warren-ledger", "warren-policy"];

/// Crates that the product must not contain: one TLS provider, and none that is not Rust or AWS-LC.
const BANNED: &[&str] = &["ring", "openssl", "openssl-sys", "native-tls"];

/// The longest source file that may be merged, in lines.
const FILE_LINES: usize = 1200;

/// Runs all checks, cheapest first.
pub(crate) fn all() -> Result<()> {
    sources()?;
    arrows()?;
    Run::cargo().args("fmt --all --check").go()?;
    Run::cargo().args("clippy --quiet --workspace --all-targets --locked -- -D warnings").go()?;
    Run::cargo()
        .args("clippy --quiet --locked --package warren --no-default-features --features node -- -D warnings")
        .go()?;
    Run::cargo()
        .args("doc --quiet --workspace --no-deps --locked --document-private-items")
        .env("RUSTDOCFLAGS", "-D warnings")
        .go()
}

/// Reads every source file of ours and applies the rules that no lint knows.
fn sources() -> Result<()> {
    let mut faults = Vec::new();
    for folder in ["crates", "xtask", "fuzz", "interop"] {
        for file in rust_files(&root().join(folder))? {
            let text = std::fs::read_to_string(&file)?;
            let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
            let lines = text.lines().count();
            let table = name.ends_with("tests.rs") || name.contains("/tests/");
            if lines > FILE_LINES && !table {
                faults.push(format!("{name}: {lines} lines, {FILE_LINES} at most: split it by concept"));
            }
            // Spelled apart, so that this file passes its own rule.
            let shell = format!("\"{}\"", ["s", "h"].concat());
            if text.contains(&format!("Command::new({shell})")) {
                faults.push(format!("{name}: starts a shell; run the program itself"));
            }
        }
    }
    for manifest in manifests()? {
        let text = std::fs::read_to_string(&manifest)?;
        let name = manifest.strip_prefix(root()).unwrap_or(&manifest).display().to_string();
        if !text.contains("[lints]\nworkspace = true") {
            faults.push(format!("{name}: does not take the workspace's lints"));
        }
        let library = manifest.with_file_name("src/lib.rs");
        if library.exists()
            && !UNSAFE.iter().any(|folder| name.starts_with(folder))
            && !std::fs::read_to_string(&library)?.contains("#![forbid(unsafe_code)]")
        {
            faults.push(format!("{name}: its lib.rs does not forbid unsafe code"));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("source rules are broken:\n{}", faults.join("\n"))
}

/// Compares the dependencies that cargo sees with the arrows that we drew.
fn arrows() -> Result<()> {
    let text = Run::cargo().args("metadata --format-version 1 --locked --no-deps").output()?;
    let metadata: Value = serde_json::from_str(&text)?;
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            faults.push(format!("{name}: no arrows drawn for it in xtask/src/check.rs"));
            continue;
        };
        let used: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .collect();
        for dependency in &used {
            if dependency.starts_with("warren-") && !allowed.contains(dependency) {
                faults.push(format!("{name} may not use {dependency}"));
            }
        }
        if CORES.contains(&name) && used.contains("tokio") {
            faults.push(format!("{name} is a core and may not use tokio"));
        }
    }
    let tree = Run::cargo().args("tree --locked --package warren --edges normal,build --prefix none").output()?;
    for line in tree.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if BANNED.contains(&name) {
            faults.push(format!("the product contains {name}, which is banned"));
        }
    }
    faults.dedup();
    if faults.is_empty() {
        return Ok(());
    }
    bail!("dependency rules are broken:\n{}", faults.join("\n"))
}

fn manifests() -> Result<Vec<PathBuf>> {
    let mut found = vec![root().join("xtask/Cargo.toml"), root().join("fuzz/Cargo.toml")];
    for entry in std::fs::read_dir(root().join("crates"))? {
        found.push(entry?.path().join("Cargo.toml"));
    }
    found.sort();
    Ok(found)
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target" && name != "corpus") {
                found.extend(rust_files(&path)?);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
