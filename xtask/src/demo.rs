//! `cargo xtask demo`: the main job, shown step by step on this machine.

use crate::fleet::{Node, PATIENCE, Server, Setting, icmp, transfer};
use crate::lab::{Host, Lab};
use crate::{packages, run};
use anyhow::{Result, ensure};
use std::time::Instant;

/// Builds, then shows two machines joining a tailnet and reaching each other; leaves nothing behind.
pub(crate) fn show(keep: bool, without_root: bool) -> Result<()> {
    if without_root || !run::is_root()? {
        return show_without_root(keep);
    }
    run::require_root("the demo")?;
    packages::debian(&[("ip", "iproute2"), ("ping", "iputils-ping"), ("nft", "nftables")])?;
    println!("Building warren …");
    let warren = run::build_warren()?;
    let start = Instant::now();
    let step = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());

    let lab = Lab::new("demo", &["server", "alpha", "beta"])?;
    step("three machines on one switch: server, alpha, beta (network namespaces)");

    let server = Server::start(&warren, &lab.host("server"), &[])?;
    step(&format!("server: `warren server` serves {}", server.url));

    let invitation = server.invite(&["--reusable"])?;
    step("server: `warren admin auth-key create --reusable` printed the line to paste on the others");

    let mut alpha = Node::start(&warren, &lab.host("alpha"))?;
    let mut beta = Node::start(&warren, &lab.host("beta"))?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let (alpha4, alpha6) = alpha.addresses()?;
    let (beta4, beta6) = beta.addresses()?;
    step(&format!("alpha is {alpha4} {alpha6}"));
    step(&format!("beta  is {beta4} {beta6}"));

    for line in alpha.cli(&["ping", "beta", "--count", "3"])?.lines() {
        step(&format!("alpha: warren ping beta: {line}"));
    }
    for (from, to) in [(&alpha, &beta4), (&alpha, &beta6), (&beta, &alpha4), (&beta, &alpha6)] {
        let text = icmp(&from.host, to, 3)?;
        let line = text.lines().rev().find(|line| line.starts_with("rtt")).unwrap_or_default();
        step(&format!("{}: ping {to}: {line}", from.host.name));
    }
    let path = alpha.wait_direct("beta")?;
    step(&format!("alpha: `warren status` says beta is reached directly at {path}"));
    for line in alpha.cli(&["status"])?.lines() {
        step(&format!("    {line}"));
    }
    let text = transfer(&alpha.host, &beta.host, &beta4, 100_000_000)?;
    step(&format!("100 MB over TCP through the tunnel: {text}"));

    alpha.stop()?;
    beta.stop()?;
    drop((alpha, beta, server));
    let dir = lab.dir().to_path_buf();
    drop(lab);
    if keep {
        step(&format!("logs are in {}", dir.display()));
    } else {
        std::fs::remove_dir_all(&dir)?;
    }
    step("cleaned up: no namespace, interface, route or process is left");
    Ok(())
}

/// Shows the same with two nodes on this machine that have no TUN device, for whoever is not root.
fn show_without_root(keep: bool) -> Result<()> {
    println!("Building warren …");
    let warren = run::build_warren()?;
    let start = Instant::now();
    let step = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());
    let dir = run::target().join("lab/demo-without-root");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    step("you are not root: server, alpha and beta are programs of this machine, without network interfaces");

    let server = Server::start(&warren, &Host::here("server", &dir), &[])?;
    step(&format!("server: `warren server` serves {}", server.url));
    let invitation = server.invite(&["--reusable"])?;
    step("server: `warren admin auth-key create --reusable` printed the line to paste on the others");
    let arguments = ["--tun=userspace-networking", "--port=0"].map(str::to_owned).to_vec();
    let node = |name: &str| -> Result<Node> {
        let setting = Setting { arguments: arguments.clone(), ..Setting::default() };
        let node = Node::start_as(&warren, &Host::here(name, &dir), name, setting)?;
        node.up(&invitation, &[])?;
        Ok(node)
    };
    let (mut alpha, mut beta) = (node("alpha")?, node("beta")?);
    for node in [&alpha, &beta] {
        let (four, six) = node.addresses()?;
        step(&format!("{} is {four} {six}: `warren node --tun=userspace-networking`", node.host.name));
    }
    for line in alpha.cli(&["ping", "beta", "--count", "3"])?.lines() {
        step(&format!("alpha: warren ping beta: {line}"));
    }
    let me = std::env::current_exe()?;
    let port = free_port()?;
    let listen = format!("127.0.0.1:{port}");
    let mut page = beta.host.spawn("page", &me, &["traffic", "http", &listen, "hello from beta"])?;
    page.wait_log("listening", PATIENCE)?;
    let nc = |port: u16, text: &str| {
        let run = alpha.host.run(&warren).args("nc --socket").arg(alpha.socket()).arg("beta").arg(port.to_string());
        run.input(text)
    };
    let answer = nc(port, "GET / HTTP/1.0\r\n\r\n")?;
    step(&format!("alpha: `warren nc beta {port}` fetched a page from a program behind beta: {}", last_line(&answer)));
    let port = free_port()?;
    let mut receiver = beta.host.spawn("receive", &me, &["traffic", "receive", &format!("127.0.0.1:{port}")])?;
    receiver.wait_log("listening", PATIENCE)?;
    nc(port, &"0123456789abcdef".repeat(20_000_000 / 16))?;
    receiver.wait_end(PATIENCE)?;
    let log = receiver.log();
    ensure!(log.contains("20000000 bytes"), "not all bytes arrived: {log}");
    step(&format!("20 MB over TCP through the tunnel: {}", last_line(&log)));
    for line in alpha.cli(&["status"])?.lines() {
        step(&format!("    {line}"));
    }
    alpha.stop()?;
    beta.stop()?;
    drop((page, alpha, beta, server));
    if keep {
        step(&format!("logs are in {}", dir.display()));
    } else {
        std::fs::remove_dir_all(&dir)?;
    }
    step("cleaned up: no process is left");
    Ok(())
}

/// Returns a TCP port of this machine that nobody uses now.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or_default()
}
