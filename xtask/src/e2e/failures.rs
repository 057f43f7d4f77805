//! What can go wrong for a user: each case one line that says what to do, and a documented exit code.

use super::Context;
use crate::fleet::{Invitation, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, Process, wait_for};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The user and group that are nobody on every Linux.
const NOBODY: u32 = 65_534;

/// Wrong, used, expired and revoked keys, servers that are not there or not themselves, clocks, strangers, second
/// daemons, and machines that lack something.
pub(super) fn messages(context: &Context) -> Result<()> {
    let lab = Lab::new("failures", &["server", "alpha", "beta", "gamma"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let alpha = Daemon::start(context, &lab.host("alpha"), &[], &[("RES_OPTIONS", "timeout:1 attempts:1")])?;
    auth_keys(&server, &alpha, &lab.host("beta"), context)?;
    servers(&server, &alpha)?;
    alpha.up(&server.invite(&[])?)?;
    clocks(&server, context, &alpha, &[lab.host("beta"), lab.host("gamma")])?;
    callers(context, &alpha)?;
    daemons(context, &alpha)?;
    machines(context, &lab.host("gamma"))
}

/// Keys that let nobody in, and one that still does.
fn auth_keys(server: &Server, alpha: &Daemon, beta: &Host, context: &Context) -> Result<()> {
    let good = server.invite(&[])?;
    let wrong = with(&good, "--auth-key", "wkey-000000000000-0000000000000000000000000000000000000000000");
    alpha.refused("auth key that does not exist", &wrong, 5, &["auth key"])?;

    let expired = server.invite(&["--expires", "1s"])?;
    wait_for("the key to expire", PATIENCE, || (!is_valid(server, &expired)?).then_some(()))?;
    alpha.refused("expired auth key", &expired.arguments, 5, &["expired"])?;

    let revoked = server.invite(&[])?;
    server.admin(&["auth-key", "revoke", key_id(&revoked)])?;
    alpha.refused("revoked auth key", &revoked.arguments, 5, &["revoked"])?;

    let used = server.invite(&[])?;
    let talkative = Daemon::start(context, beta, &[], &[("WARREN_LOG", "trace")])?;
    talkative.up(&used)?;
    no_secret_in(&talkative, &used)?;
    drop(talkative);
    alpha.refused("one-off auth key that was used", &used.arguments, 5, &["used"])?;

    let empty = lines(&alpha.file("key"), "\n")?;
    let from_file = with(&good, "--auth-key", &format!("file:{empty}"));
    alpha.refused("empty file of an auth key", &from_file, 2, &["auth key"])?;
    let from_nowhere = with(&good, "--auth-key", "file:/nonexistent/key");
    alpha.refused("missing file of an auth key", &from_nowhere, 1, &["/nonexistent/key"])
}

/// The most talkative log has neither the auth key nor a private key in it.
fn no_secret_in(node: &Daemon, used: &Invitation) -> Result<()> {
    let log = node.process.log();
    ensure!(log.contains("TRACE"), "the log is not as talkative as it can be");
    let state: Value = serde_json::from_str(&std::fs::read_to_string(Path::new(&node.state).join("node.json"))?)?;
    let secret = |name: &str| state.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    for secret in [used.key.clone(), secret("machine_key"), secret("node_key")] {
        let digits = secret.rsplit([':', '-']).next().unwrap_or_default();
        ensure!(digits.len() >= 32, "a secret has another form than this test expects");
        ensure!(!log.contains(digits), "a secret is in the log");
    }
    Ok(())
}

/// Servers that are not there, are somebody else, or are no servers.
fn servers(server: &Server, alpha: &Daemon) -> Result<()> {
    let good = server.invite(&[])?;
    let address = server.url.trim_start_matches("http://").trim_end_matches(":8080");
    let at = |url: &str| with(&good, "--login-server", url);
    alpha.refused(
        "login server that refuses connections",
        &at(&format!("http://{address}:9")),
        3,
        &[address, "refused"],
    )?;
    alpha.refused(
        "login server that has no address",
        &at("http://no-such-host.invalid"),
        3,
        &["no-such-host.invalid"],
    )?;
    alpha.refused("login server that is no URL", &at("warren"), 2, &["https://"])?;
    let other = with(&good, "--server-key", &format!("mkey:{}", "ab".repeat(32)));
    alpha.refused("server with another key", &other, 5, &["not the server whose key was given", "--server-key"])?;
    let mut unpinned = at("http://10.91.0.77:8080");
    drop_option(&mut unpinned, "--server-key");
    alpha.refused("plain HTTP without a server key", &unpinned, 5, &["--server-key", "not encrypted"])?;
    // The relay's port: TLS with a certificate of its own making.
    let relay = at(&format!("https://{address}:8443"));
    alpha.refused("certificate of an unknown authority", &relay, 1, &["trusted roots", "SSL_CERT_FILE"])?;
    alpha.refused("TLS to a plain port", &at(&format!("https://{address}:8080")), 1, &["TLS"])?;
    alpha.refused("plain HTTP to a TLS port", &at(&format!("http://{address}:8443")), 1, &["coordination server"])
}

/// Clocks that are an hour off: the node joins, talks, and says so.
fn clocks(server: &Server, context: &Context, alpha: &Daemon, hosts: &[Host; 2]) -> Result<()> {
    for (host, offset, words) in [(&hosts[0], "+1h", "60 min ahead"), (&hosts[1], "-1h", "60 min behind")] {
        let clock = ["-m", "-f", offset];
        let node = Daemon::start(context, host, &clock, &[("DONT_FAKE_MONOTONIC", "1")])?;
        let output = node.up(&server.invite(&[])?)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains(words), "clock {offset}: `up` does not mention it: {said:?}");
        println!("        clock {offset}: joined, and says: {}", said.trim());
        let address = alpha.text(&["ip", "-4"])?;
        wait_for("an echo in spite of the clock", PATIENCE, || icmp(host, address.trim(), 1).ok())?;
        // What tells a server that somebody left would be in the way of the next host's name.
        node.text(&["logout"])?;
    }
    Ok(())
}

/// Users who may not.
fn callers(context: &Context, alpha: &Daemon) -> Result<()> {
    // The build directory may be closed to others.
    let open = std::env::temp_dir().join(format!("wrn-{}", std::process::id()));
    std::fs::create_dir_all(&open)?;
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755))?;
    let copy = open.join("warren");
    std::fs::copy(&context.warren, &copy)?;
    let outcome = as_nobody(&copy, &open, alpha);
    std::fs::remove_dir_all(&open)?;
    outcome
}

fn as_nobody(warren: &Path, open: &Path, alpha: &Daemon) -> Result<()> {
    let run = |words: &[&str]| -> Result<Output> {
        let nobody = NOBODY.to_string();
        let mut command = alpha.host.command("setpriv");
        command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "--no-new-privs"]);
        Ok(command.arg(warren).args(words).output()?)
    };
    let socket = alpha.socket.as_str();
    let allowed = run(&["ip", "--socket", socket])?;
    ensure!(allowed.status.success(), "a stranger may not even read: {}", said(&allowed));
    expect("write by a stranger", &run(&["down", "--socket", socket])?, 4, &["sudo", "--operator"])?;
    let closed = alpha.file("alpha-state/x.sock");
    expect("socket in a closed directory", &run(&["status", "--socket", &closed])?, 4, &["no permission"])?;
    let theirs = open.join("state");
    std::fs::create_dir(&theirs)?;
    std::os::unix::fs::chown(&theirs, Some(NOBODY), Some(NOBODY))?;
    let (state, own_socket) = (path_text(&theirs), path_text(&theirs.join("node.sock")));
    let daemon = run(&["node", "--state-dir", &state, "--socket", &own_socket, "--port", "0"])?;
    expect("daemon without the right to make interfaces", &daemon, 4, &["CAP_NET_ADMIN"])?;
    let ours = alpha.file("alpha-state");
    let daemon = run(&["node", "--state-dir", &ours, "--socket", &own_socket])?;
    expect("state directory of somebody else", &daemon, 4, &[&ours])
}

/// What a second daemon meets beside the first.
fn daemons(context: &Context, alpha: &Daemon) -> Result<()> {
    let none = warren(context, &alpha.host, &["status", "--socket", "/nonexistent/node.sock"])?;
    expect("no daemon", &none, 3, &["warren node"])?;
    let (state, socket) = (alpha.file("second-state"), alpha.file("second.sock"));
    for (case, options, words) in [
        ("second daemon on the same state", [&alpha.state, &socket, "warren1", "0"], &["state directory", "pid"][..]),
        ("second daemon on the same socket", [&state, &alpha.socket, "warren1", "0"], &["--socket"]),
        ("second daemon on the same interface", [&state, &socket, "warren0", "0"], &["warren0", "--tun"]),
        ("second daemon on the same UDP port", [&state, &socket, "warren1", "41641"], &["41641", "--port"]),
    ] {
        let [state, socket, tun, port] = options;
        let words_of_node = ["node", "--state-dir", state, "--socket", socket, "--tun", tun, "--port", port];
        expect(case, &warren(context, &alpha.host, &words_of_node)?, 7, words)?;
    }
    ensure!(alpha.text(&["status"])?.contains("100.64."), "the first daemon suffered");

    let damaged = alpha.file("second-state/node.json");
    lines(&damaged, "{\"version\":")?;
    let output = warren(context, &alpha.host, &["node", "--state-dir", &state, "--socket", &socket])?;
    expect("damaged state", &output, 1, &[&damaged, "backup"])
}

/// Machines that lack something: here `/dev/net/tun`, which a mount of its own hides.
fn machines(context: &Context, host: &Host) -> Result<()> {
    let (state, socket) = (path_text(&host.dir().join("bare-state")), path_text(&host.dir().join("bare.sock")));
    // `ip netns exec` and `unshare` each give a mount namespace; the sleeper keeps one for the commands that follow.
    let sleeper = host.spawn("sleeper", Path::new("unshare"), &["--mount", "sleep", "600"])?;
    let inside = |words: &[&str]| -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &sleeper.id().to_string(), "timeout", "90"]);
        Ok(command.args(words).output()?)
    };
    wait_for("the sleeper's mount namespace", PATIENCE, || {
        let own = std::fs::read_link("/proc/self/ns/mnt").ok()?;
        let theirs = std::fs::read_link(format!("/proc/{}/ns/mnt", sleeper.id())).ok()?;
        let asleep = std::fs::read_to_string(format!("/proc/{}/comm", sleeper.id())).ok()?.trim() == "sleep";
        (own != theirs && asleep).then_some(())
    })?;
    let masked = inside(&["mount", "-t", "tmpfs", "none", "/dev/net"])?;
    ensure!(masked.status.success(), "cannot hide /dev/net: {}", said(&masked));
    ensure!(Path::new("/dev/net/tun").exists(), "the mask reached this machine");
    let program = path_text(&context.warren);
    let output = inside(&[&program, "node", "--state-dir", &state, "--socket", &socket, "--port", "0"])?;
    expect("no TUN device", &output, 8, &["/dev/net/tun", "modprobe tun"])
}

/// A daemon of ours whose paths a test can use for its tricks.
struct Daemon {
    warren: PathBuf,
    host: Host,
    state: String,
    socket: String,
    process: Process,
}

impl Daemon {
    /// Starts a daemon, under `faketime` with the words of `clock` unless there are none.
    fn start(context: &Context, host: &Host, clock: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let socket = path_text(&host.dir().join(format!("{}.sock", host.name)));
        let state = path_text(&host.dir().join(format!("{}-state", host.name)));
        let program = path_text(&context.warren);
        let node = ["node", "--state-dir", &state, "--socket", &socket];
        let process = if clock.is_empty() {
            host.spawn_env("node", &context.warren, &node, environment)?
        } else {
            let words = [clock, &[program.as_str()][..], &node].concat();
            host.spawn_env("node", Path::new("faketime"), &words, environment)?
        };
        let daemon = Self { warren: context.warren.clone(), host: host.clone(), state, socket, process };
        wait_for("the node to answer", PATIENCE, || daemon.text(&["status", "--json"]).ok())
            .with_context(|| format!("the log says:\n{}", daemon.process.log()))?;
        Ok(daemon)
    }

    /// Runs a command against it.
    fn run(&self, words: &[&str]) -> Result<Output> {
        let words = [words, &["--socket", &self.socket]].concat();
        Ok(self.host.command(&self.warren).args(words).output()?)
    }

    /// Runs a command that must succeed and returns what it prints.
    fn text(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        ensure!(output.status.success(), "{words:?}: {}", said(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Joins.
    fn up(&self, invitation: &Invitation) -> Result<Output> {
        let mut words: Vec<&str> = invitation.arguments.iter().map(String::as_str).collect();
        words.extend(["--hostname", &self.host.name, "--timeout", "30"]);
        let output = self.run(&words)?;
        ensure!(output.status.success(), "{words:?}: {}\nthe log says:\n{}", said(&output), self.process.log());
        Ok(output)
    }

    /// Tries to join, which must fail.
    fn refused(&self, case: &str, words: &[String], code: i32, expected: &[&str]) -> Result<()> {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.extend(["--timeout", "60"]);
        let output = self.run(&words)?;
        let text = said(&output);
        ensure!(text.lines().count() == 1, "{case}: more than one line: {text}");
        expect(case, &output, code, expected)
    }

    /// Returns the path of a file in the lab's directory.
    fn file(&self, name: &str) -> String {
        path_text(&self.host.dir().join(name))
    }
}

impl Host {
    /// Prepares a command inside this host whose failure is no error. A daemon that should not have started is ended.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "timeout", "90"]).arg(program);
        command
    }
}

fn warren(context: &Context, host: &Host, words: &[&str]) -> Result<Output> {
    Ok(host.command(&context.warren).args(words).output()?)
}

/// Requires failure with `code`, and as the last line of standard error one of ours with these words in it.
fn expect(case: &str, output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = said(output);
    let last = text.lines().last().unwrap_or_default();
    ensure!(output.status.code() == Some(code), "{case}: exit {:?}, wanted {code}: {text}", output.status.code());
    ensure!(last.starts_with("warren: "), "{case}: the last line is not ours: {text}");
    for word in words {
        ensure!(last.to_lowercase().contains(&word.to_lowercase()), "{case}: {word:?} is not in {last:?}");
    }
    ensure!(!text.contains("panicked"), "{case}: {text}");
    println!("        {case}: exit {code}: {}", last.trim_start_matches("warren: "));
    Ok(())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Returns the invitation's words with another value for an option.
fn with(invitation: &Invitation, option: &str, value: &str) -> Vec<String> {
    let mut words = invitation.arguments.clone();
    if let Some(index) = words.iter().position(|word| word == option)
        && let Some(slot) = words.get_mut(index + 1)
    {
        value.clone_into(slot);
    }
    words
}

/// Takes an option and its value out.
fn drop_option(words: &mut Vec<String>, option: &str) {
    if let Some(index) = words.iter().position(|word| word == option) {
        words.drain(index..index + 2);
    }
}

/// Returns the part of an auth key that names it.
fn key_id(invitation: &Invitation) -> &str {
    invitation.key.split('-').nth(1).unwrap_or_default()
}

fn is_valid(server: &Server, invitation: &Invitation) -> Option<bool> {
    let list: Value = serde_json::from_str(&server.admin(&["--json", "auth-key", "list"]).ok()?).ok()?;
    let key = list.as_array()?.iter().find(|key| key.get("id").and_then(Value::as_str) == Some(key_id(invitation)))?;
    key.get("valid")?.as_bool()
}

/// Writes a file and returns its path.
fn lines(path: &str, text: &str) -> Result<String> {
    std::fs::write(path, text)?;
    Ok(path.to_owned())
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
