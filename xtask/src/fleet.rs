//! The programs of a tailnet running in a [`Lab`](crate::lab::Lab): one server, nodes, official clients.

mod go_client;

pub(crate) use go_client::{GoClient, address_of, fetch, last_lines};

use crate::lab::{Host, Process, wait_for};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that a start, a join or an answer may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A `warren server` on a host of the lab.
pub(crate) struct Server {
    warren: PathBuf,
    host: Host,
    process: Process,
    socket: String,
    arguments: Vec<String>,
    /// The URL that clients use.
    pub(crate) url: String,
}

/// What `warren admin auth-key create` prints for the other machine.
#[derive(Clone, Debug)]
pub(crate) struct Invitation {
    /// The auth key.
    pub(crate) key: String,
    /// The whole line's arguments after `warren`.
    pub(crate) arguments: Vec<String>,
}

impl Invitation {
    /// Returns the value of an option of the line, `--server-key` for instance.
    pub(crate) fn value(&self, option: &str) -> Result<String> {
        let at = self.arguments.iter().position(|word| word == option);
        let value = at.and_then(|index| self.arguments.get(index + 1));
        value.cloned().with_context(|| format!("no {option} in {:?}", self.arguments))
    }
}

impl Server {
    /// Starts a server on `host`, reachable for all hosts of the lab, and waits until it serves.
    pub(crate) fn start(warren: &Path, host: &Host, further: &[&str]) -> Result<Self> {
        Self::start_on(warren, host, &host.address, further)
    }

    /// Starts a server on `host` that listens on `address`, and waits until it serves.
    pub(crate) fn start_on(warren: &Path, host: &Host, address: &str, further: &[&str]) -> Result<Self> {
        Self::start_at(warren, host, address, address, further)
    }

    /// Starts a server on `host` that listens on `address` and is known by a name, and waits until it serves.
    pub(crate) fn start_at(warren: &Path, host: &Host, address: &str, name: &str, further: &[&str]) -> Result<Self> {
        let url = format!("http://{name}:8080");
        let socket = path_text(&host.dir().join("server.sock"));
        let state = path_text(&host.dir().join("server-state"));
        let listen = format!("{address}:8080");
        let mut arguments: Vec<String> =
            ["server", "--state-dir", &state, "--socket", &socket, "--listen", &listen, "--url", &url]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(further.iter().map(|&word| word.to_owned()));
        let process = spawn(host, "server", warren, &arguments)?;
        let server = Self { warren: warren.to_owned(), host: host.clone(), process, socket, arguments, url };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&self) -> Result<()> {
        wait_for("the server to answer its administrator", PATIENCE, || self.admin(&["tailnet", "list"]).ok())
            .map(drop)
            .with_context(|| format!("the server's log says:\n{}", self.process.log()))
    }

    /// Runs `warren admin …` beside the server and returns what it prints.
    pub(crate) fn admin(&self, words: &[&str]) -> Result<String> {
        self.command("admin", words)
    }

    fn command(&self, family: &str, words: &[&str]) -> Result<String> {
        let mut run = self.host.run(&self.warren).arg(family).arg("--socket").arg(&self.socket);
        for word in words {
            run = run.arg(word);
        }
        run.output()
    }

    /// Makes an auth key with these further options.
    pub(crate) fn invite(&self, options: &[&str]) -> Result<Invitation> {
        let words: Vec<&str> = ["auth-key", "create"].iter().chain(options).copied().collect();
        let text = self.admin(&words)?;
        let line = text
            .lines()
            .find_map(|line| line.trim().split_once("warren up "))
            .with_context(|| format!("no `warren up …` line in {text:?}"))?
            .1;
        let mut arguments = vec!["up".to_owned()];
        arguments.extend(line.split_whitespace().map(str::to_owned));
        let mut invitation = Invitation { key: String::new(), arguments };
        invitation.key = invitation.value("--auth-key")?;
        Ok(invitation)
    }

    /// Runs `warren policy …` beside the server and returns what it prints.
    pub(crate) fn policy(&self, words: &[&str]) -> Result<String> {
        self.command("policy", words)
    }

    /// Runs `warren logs …` beside the server and returns what it prints.
    pub(crate) fn logs(&self, words: &[&str]) -> Result<String> {
        self.command("logs", words)
    }

    /// Returns the line that runs `warren policy …` beside the server.
    pub(crate) fn policy_line(&self, words: &[&str]) -> Vec<String> {
        let line = [&*self.warren.to_string_lossy(), "policy", "--socket", &self.socket];
        line.iter().chain(words).map(|&word| word.to_owned()).collect()
    }

    /// The server's process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Kills the server with SIGKILL and starts it again over the same state.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.restart()
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.signal("KILL")?;
        self.process.wait_end(PATIENCE).map(drop)
    }

    /// Starts the server again over the same state.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.host, "server", &self.warren, &self.arguments)?;
        self.wait_ready()
    }
}

/// How a daemon of the lab is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setting {
    /// How far its time of day is off, in the words of `faketime`: `+1h` or `-90m`; empty if not at all.
    pub(crate) clock: String,
    /// Further environment variables.
    pub(crate) environment: Vec<(String, String)>,
    /// Further arguments of `warren node`.
    pub(crate) arguments: Vec<String>,
    /// Number of the user for whom it runs, with a home of its own; empty for root.
    pub(crate) user: String,
}

/// A `warren node` on a host of the lab.
pub(crate) struct Node {
    warren: PathBuf,
    name: String,
    /// The host it runs on.
    pub(crate) host: Host,
    process: Process,
    socket: String,
    state: String,
    setting: Setting,
}

impl Node {
    /// Starts the daemon on `host` and waits until its socket answers.
    pub(crate) fn start(warren: &Path, host: &Host) -> Result<Self> {
        Self::start_named(warren, host, &host.name)
    }

    /// Starts the daemon on `host` with a time of day that is off by `clock`: `+1h` or `-90m` for instance.
    pub(crate) fn start_with_clock(warren: &Path, host: &Host, clock: &str) -> Result<Self> {
        Self::start_as(warren, host, &host.name, Setting { clock: clock.to_owned(), ..Setting::default() })
    }

    /// Starts the daemon on `host` as the node `name`, with a state of its own.
    pub(crate) fn start_named(warren: &Path, host: &Host, name: &str) -> Result<Self> {
        Self::start_as(warren, host, name, Setting::default())
    }

    /// Starts the daemon on `host` with further environment variables.
    pub(crate) fn start_with(warren: &Path, host: &Host, environment: &[(String, String)]) -> Result<Self> {
        let environment = environment.to_vec();
        Self::start_as(warren, host, &host.name, Setting { environment, ..Setting::default() })
    }

    /// Starts the daemon on `host` as the node `name`, as `setting` says.
    pub(crate) fn start_as(warren: &Path, host: &Host, name: &str, setting: Setting) -> Result<Self> {
        let home = if setting.user.is_empty() { host.dir().to_owned() } else { home(host, name, &setting.user)? };
        let socket = path_text(&home.join(format!("{name}.sock")));
        let state = path_text(&home.join(format!("{name}-state")));
        let process = Self::daemon(warren, host, name, [&state, &socket], &setting)?;
        let (warren, name) = (warren.to_owned(), name.to_owned());
        let node = Self { warren, name, host: host.clone(), process, socket, state, setting };
        node.wait_ready()?;
        Ok(node)
    }

    fn daemon(
        warren: &Path,
        host: &Host,
        name: &str,
        [state, socket]: [&str; 2],
        Setting { clock, environment: further, arguments, user }: &Setting,
    ) -> Result<Process> {
        let warren_text = path_text(warren);
        let (reuid, regid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let (program, before): (_, &[&str]) = match (clock.is_empty(), user.is_empty()) {
            (true, true) => (warren, &[]),
            (true, false) => {
                (Path::new("setpriv"), &[&reuid, &regid, "--clear-groups", "--no-new-privs", &warren_text])
            }
            (false, _) => (Path::new("faketime"), &["-m", "-f", clock, &warren_text]),
        };
        let mut words = before.to_vec();
        words.extend(["node", "--state-dir", state, "--socket", socket]);
        words.extend(arguments.iter().map(String::as_str));
        // The decisions are worth having when a test fails, and no packet writes a line at this level.
        let mut environment = vec![("WARREN_LOG", "info,warren_node=debug"), ("DONT_FAKE_MONOTONIC", "1")];
        environment.extend(further.iter().map(|(name, value)| (&**name, &**value)));
        host.spawn_env(&format!("node-{name}"), program, &words, &environment)
    }

    fn wait_ready(&self) -> Result<()> {
        wait_for("the node to answer its local socket", PATIENCE, || self.status().ok())
            .map(drop)
            .with_context(|| format!("the node's log says:\n{}", self.process.log()))
    }

    /// Joins with an invitation and these further options; returns when the node is up.
    pub(crate) fn up(&self, invitation: &Invitation, further: &[&str]) -> Result<()> {
        let mut words: Vec<&str> = invitation.arguments.iter().map(String::as_str).collect();
        words.extend(["--hostname", &self.name, "--timeout", "30"]);
        words.extend(further);
        self.cli(&words).map(drop).with_context(|| format!("the node's log says:\n{}", self.process.log()))
    }

    /// Runs `warren …` against this node and returns what it prints.
    pub(crate) fn cli(&self, words: &[&str]) -> Result<String> {
        let (first, rest) = words.split_first().context("a command needs a word")?;
        // Whoever runs the tests over SSH loses nothing by what happens in the lab.
        let mut run =
            self.host.run(&self.warren).env("SSH_CONNECTION", "").arg(first).arg("--socket").arg(&self.socket);
        for word in rest {
            run = run.arg(word);
        }
        run.output()
    }

    /// Returns `warren status --json`.
    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.cli(&["status", "--json"])?)?)
    }

    /// Returns the addresses of this node in the tailnet: IPv4, then IPv6.
    pub(crate) fn addresses(&self) -> Result<(String, String)> {
        let text = self.cli(&["ip"])?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        match (lines.next(), lines.next()) {
            (Some(four), Some(six)) => Ok((four.to_owned(), six.to_owned())),
            _ => bail!("`warren ip` printed {text:?}, not two addresses"),
        }
    }

    /// Returns the direct address that packets to the peer with host name `name` take; none if relayed or unknown.
    pub(crate) fn direct_path(&self, name: &str) -> Result<Option<String>> {
        Ok(peer_text(&self.status()?, name, "CurAddr"))
    }

    /// Returns a field of the peer with host name `name` in `warren status --json`, if it is a text that says something.
    pub(crate) fn peer_field(&self, name: &str, field: &str) -> Option<String> {
        peer_text(&self.status().ok()?, name, field)
    }

    /// Returns the networks that the peer with host name `name` leads into.
    pub(crate) fn peer_routes(&self, name: &str) -> Vec<String> {
        let Ok(status) = self.status() else { return Vec::new() };
        let is_it = |peer: &&Value| peer.get("HostName").and_then(Value::as_str) == Some(name);
        let peer = status.get("Peer").and_then(Value::as_object).and_then(|peers| peers.values().find(is_it));
        let routes = peer.and_then(|peer| peer.get("AllowedIPs")).and_then(Value::as_array);
        routes.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Tells whether the server says that the peer with host name `name` is connected to it.
    pub(crate) fn is_online(&self, name: &str) -> bool {
        let Ok(status) = self.status() else { return false };
        let is_it = |peer: &&Value| peer.get("HostName").and_then(Value::as_str) == Some(name);
        let peer = status.get("Peer").and_then(Value::as_object).and_then(|peers| peers.values().find(is_it));
        peer.and_then(|peer| peer.get("Online")).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Returns how many bytes went to the peer with host name `name`.
    pub(crate) fn sent_to(&self, name: &str) -> Option<u64> {
        let status = self.status().ok()?;
        let peers = status.get("Peer")?.as_object()?;
        let is_it = |peer: &&Value| peer.get("HostName").and_then(Value::as_str) == Some(name);
        peers.values().find(is_it)?.get("TxBytes")?.as_u64()
    }

    /// Waits until packets to `name` go directly; returns the address.
    pub(crate) fn wait_direct(&self, name: &str) -> Result<String> {
        wait_for(&format!("a direct path from {} to {name}", self.host.name), PATIENCE, || {
            drop(self.cli(&["ping", name, "--count", "1"]));
            self.direct_path(name).ok().flatten()
        })
    }

    /// Kills the daemon with SIGKILL, and waits until it is gone with all that it holds.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.signal("KILL")?;
        self.process.wait_end(PATIENCE).map(drop)
    }

    /// Waits until the daemon, which was killed, is gone.
    pub(crate) fn wait_killed(&mut self) -> Result<()> {
        self.process.wait_end(PATIENCE).map(drop)
    }

    /// Kills the daemon with SIGKILL and starts it again over the same state.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }

    /// Starts the daemon, which has ended, again over the same state.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let words = [&*self.state, &*self.socket];
        self.process = Self::daemon(&self.warren, &self.host, &self.name, words, &self.setting)?;
        self.wait_ready()
    }

    /// Stops the daemon politely and waits for its end.
    pub(crate) fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.process.signal("TERM")?;
        self.process.wait_end(PATIENCE)
    }

    /// The daemon's process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// The program.
    pub(crate) fn program(&self) -> &Path {
        &self.warren
    }

    /// Where `warren …` reaches the daemon.
    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// The directory with the node's state.
    pub(crate) fn state_dir(&self) -> &Path {
        Path::new(&self.state)
    }
}

fn peer_text(status: &Value, name: &str, field: &str) -> Option<String> {
    let peers = status.get("Peer")?.as_object()?;
    let is_it = |peer: &&Value| {
        peer.get("HostName").and_then(Value::as_str).is_some_and(|host| host.eq_ignore_ascii_case(name))
    };
    let text = peers.values().find(is_it)?.get(field)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// Sends `count` echo requests from `host` to `to` and fails unless at least one answer came.
pub(crate) fn icmp(host: &Host, to: &str, count: u32) -> Result<String> {
    host.run("ping")
        .args("-n -i 0.2 -W 3 -c")
        .arg(count.to_string())
        .arg(to)
        .output()
        .with_context(|| format!("{} got no echo from {to}", host.name))
}

/// Sends `bytes` over TCP from one host to an address on another and checks both ends' hashes.
pub(crate) fn transfer(from: &Host, to: &Host, address: &str, bytes: u64) -> Result<String> {
    let target = if address.contains(':') { format!("[{address}]:7001") } else { format!("{address}:7001") };
    transfer_to((from, address), (to, &target), bytes)
}

/// Does so to port 7001 of an address, where another host takes it at `listen`.
pub(crate) fn transfer_to((from, address): (&Host, &str), (to, listen): (&Host, &str), bytes: u64) -> Result<String> {
    let me = std::env::current_exe()?;
    let target = if address.contains(':') { format!("[{address}]:7001") } else { format!("{address}:7001") };
    let mut receiver = to.spawn(&format!("receive-{}", from.name), &me, &["traffic", "receive", listen])?;
    receiver.wait_log("listening", PATIENCE)?;
    let sent = from.run(&me).args("traffic send").arg(&target).arg(bytes.to_string()).output()?;
    receiver.wait_end(PATIENCE)?;
    let log = receiver.log();
    let received = log.lines().rev().find(|line| line.starts_with("received")).unwrap_or_default();
    let digest = sent.trim().strip_prefix("sent ").unwrap_or("nothing");
    if !received.ends_with(digest) {
        bail!("the ends disagree: sent {digest}, {received}");
    }
    Ok(received.to_owned())
}

/// Makes a folder on a host that belongs to a user.
fn home(host: &Host, name: &str, user: &str) -> Result<PathBuf> {
    let home = host.dir().join(format!("{name}-home"));
    std::fs::create_dir_all(&home)?;
    let number = user.parse()?;
    std::os::unix::fs::chown(&home, Some(number), Some(number))?;
    Ok(home)
}

fn spawn(host: &Host, title: &str, program: &Path, arguments: &[String]) -> Result<Process> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    host.spawn(title, program, &words)
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
