//! The official Rust client, in a small program of its own workspace under `interop/rust-client`.

use super::Context;
use crate::fleet::{GoClient, address_of};
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Lab, Process};
use crate::packages;
use crate::run::{Run, root, target};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// Longest that all steps of the client may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Builds the program.
fn program() -> Result<PathBuf> {
    let target = target().join("interop");
    let dir = root().join("interop/rust-client");
    Run::cargo().args("build --quiet --locked").env("CARGO_TARGET_DIR", &target).dir(&dir).go()?;
    Ok(target.join("debug/rust-client"))
}

/// Starts a server whose relay the client takes, and a Go client on gopher that serves a page.
fn server_and_go_client(context: &Context, lab: &Lab) -> Result<(Server, GoClient, String, String)> {
    let caddy = packages::caddy()?;
    let server = Server::start(&context.warren, &lab.host("server"), &["--relay-insecure-for-tests"])?;
    let key = server.invite(&["--reusable"])?.key;
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server.url, &key, "page of gopher", "gopher")?;
    let page = format!("page:{}:80=page of gopher", address_of(&server, "gopher")?);
    Ok((server, gopher, key, page))
}

/// Runs the client on crab through these steps.
fn run(lab: &Lab, server: &Server, key: &str, steps: &[&str]) -> Result<()> {
    let words: Vec<&str> = [&*server.url, key].iter().chain(steps).copied().collect();
    let mut crab: Process = lab.host("crab").spawn("rust-client", &program()?, &words)?;
    crab.wait_log("all steps are done", LIMIT)
}

/// It joins and fetches a page from a Go client over our relay.
pub(super) fn with_go_client(context: &Context) -> Result<()> {
    let lab = Lab::new("rust-go", &["server", "gopher", "crab"])?;
    let (server, _gopher, key, page) = server_and_go_client(context, &lab)?;
    run(&lab, &server, &key, &[&page])
}

/// It joins, echoes UDP and TCP with our node over our relay, and fetches a page from a Go client.
pub(super) fn echoes(context: &Context) -> Result<()> {
    let lab = Lab::new("rust-client", &["server", "alpha", "gopher", "crab"])?;
    let (server, _gopher, key, page) = server_and_go_client(context, &lab)?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&server.invite(&[])?, &[])?;
    let (alpha4, _) = alpha.addresses()?;
    let me = std::env::current_exe()?;
    let listen = format!("{alpha4}:7007");
    let mut echo = alpha.host.spawn("echo", &me, &["traffic", "echo", &listen])?;
    echo.wait_log("listening", PATIENCE)?;
    run(&lab, &server, &key, &[&format!("echo:{listen}"), &page])
}
