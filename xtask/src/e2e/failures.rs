//! What can go wrong for a user: each case one line that says what to do, and a documented exit code.

use super::Context;
use crate::fleet::{Invitation, Node, Server};
use crate::lab::{Host, Lab};
use anyhow::{Result, ensure};
use std::process::{Command, Output};

/// Runs `warren` inside a host and returns everything it printed.
fn warren(context: &Context, host: &Host, words: &[&str]) -> Result<Output> {
    Ok(Command::new("ip").args(["netns", "exec", &host.namespace]).arg(&context.warren).args(words).output()?)
}

/// Requires failure with `code`, one line on standard error, and these words in it.
fn expect(case: &str, output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let last = text.lines().last().unwrap_or_default().to_lowercase();
    ensure!(output.status.code() == Some(code), "{case}: exit {:?}, wanted {code}: {text}", output.status.code());
    for word in words {
        ensure!(last.contains(&word.to_lowercase()), "{case}: {word:?} is not in {last:?}");
    }
    ensure!(!text.contains("panicked"), "{case}: {text}");
    Ok(())
}

fn with(invitation: &Invitation, option: &str, value: &str) -> Vec<String> {
    let mut words = invitation.arguments.clone();
    if let Some(index) = words.iter().position(|word| word == option)
        && let Some(slot) = words.get_mut(index + 1)
    {
        value.clone_into(slot);
    }
    words
}

/// Wrong, revoked and expired key, unknown server, wrong server key, second daemon, socket of a stranger.
pub(super) fn messages(context: &Context) -> Result<()> {
    let lab = Lab::new("failures", &["server", "alpha"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&[])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    let host = lab.host("alpha");
    let socket = host.dir().join("alpha.sock").to_string_lossy().into_owned();
    let up = |words: &[String]| {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.extend(["--socket", &socket, "--timeout", "10"]);
        warren(context, &host, &words)
    };

    let wrong = up(&with(&invitation, "--auth-key", "wkey-000000000000-0000000000000000000000000000000000000000000"))?;
    expect("wrong auth key", &wrong, 5, &["auth key"])?;
    let wrong = up(&with(&invitation, "--server-key", &format!("mkey:{}", "ab".repeat(32))))?;
    expect("wrong server key", &wrong, 5, &["server key"])?;
    let wrong = up(&with(&invitation, "--login-server", "http://10.91.0.77:8080"))?;
    expect("unknown login server", &wrong, 6, &["10.91.0.77"])?;

    let state = host.dir().join("alpha-state").to_string_lossy().into_owned();
    let second = warren(context, &host, &["node", "--state-dir", &state, "--socket", &socket])?;
    expect("second daemon", &second, 7, &["already"])?;
    let none = warren(context, &host, &["status", "--socket", "/nonexistent/warren.sock"])?;
    expect("no daemon", &none, 3, &["warren node"])?;
    drop(alpha);
    Ok(())
}
