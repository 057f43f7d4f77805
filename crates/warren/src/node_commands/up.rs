//! `warren up` and `login`: change settings, log in, and wait until the node runs.

use std::io::{IsTerminal, Read as _};
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::json;
use warren_node::control_client::ServerUrl;
use warren_node::local_api::Client;
use warren_node::local_api::types::{Notify, StartOptions, State, Status, TroubleKind};
use warren_node::prefs::Prefs;

use super::settings::{Changes, Router, defaults};
use super::{Socket, clean, parse_duration};
use crate::exit::{Exit, Failure, OrExit};
use crate::output;

/// After so many failures in a row to reach the server the command gives up (the node itself goes on trying).
const PATIENCE: u32 = 5;

/// The environment variable that may hold the auth key, so that it is in no list of processes.
const AUTH_KEY: &str = "WARREN_AUTH_KEY";

/// Arguments of `warren up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    options: Options,
    /// Auth key, or file:PATH to read it from a file; else it may be in the environment variable WARREN_AUTH_KEY.
    ///
    /// Other users of this machine can read the arguments of a running program; a file or the environment is safer.
    #[arg(long, value_name = "KEY|file:PATH", alias = "authkey")]
    auth_key: Option<Secret>,
    /// Put hostname, accept-routes, the advertise-… and exit-node… options, snat-subnet-routes, accept-dns and shields-up back to their
    /// defaults unless they are named here.
    #[arg(long)]
    reset: bool,
}

/// Is a text that must not be printed.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// Arguments of `warren login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    #[command(flatten)]
    options: Options,
}

/// Arguments that `up` and `login` share.
#[derive(Debug, Args)]
struct Options {
    /// Address of the coordination server.
    #[arg(long, value_name = "URL")]
    login_server: Option<String>,
    /// Key that the server must have; needed without TLS.
    #[arg(long, value_name = "mkey:…")]
    server_key: Option<String>,
    /// Name to show instead of this machine's own.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Use routes that peers offer.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    accept_routes: Option<bool>,
    #[command(flatten)]
    router: Router,
    #[command(flatten)]
    exit: super::settings::Exit,
    /// Make programs of this machine find names as the tailnet says (true unless it was turned off).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    accept_dns: Option<bool>,
    /// Refuse every connection that a peer opens.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    shields_up: Option<bool>,
    /// Give up after this time (30, 30s, 5m); without it wait as long as a login takes.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Print what happens as JSON objects.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// Says how the login begins.
enum Begin {
    /// With what is there, and an auth key if given.
    Start(Option<Secret>),
    /// With a new key and a person.
    Interactive,
}

impl Up {
    /// Brings the node up.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let given = self.auth_key.or_else(|| std::env::var(AUTH_KEY).ok().filter(|key| !key.is_empty()).map(Secret));
        let auth_key = given.as_ref().map(read_auth_key).transpose()?;
        let changes = if self.reset { defaults() } else { Changes::default() };
        self.options.run(changes, Begin::Start(auth_key)).await
    }
}

impl Login {
    /// Logs in.
    pub(super) async fn run(self) -> Result<(), Failure> {
        self.options.run(Changes::default(), Begin::Interactive).await
    }
}

fn read_auth_key(given: &Secret) -> Result<Secret, Failure> {
    let key = match given.0.strip_prefix("file:") {
        None => given.0.trim().to_owned(),
        Some(path) => {
            let mut text = String::new();
            let read = std::fs::File::open(path).and_then(|file| file.take(MAX_AUTH_KEY + 1).read_to_string(&mut text));
            read.or_exit(Exit::General, format_args!("cannot read the auth key from {path}"))?;
            text.trim().to_owned()
        }
    };
    let length = u64::try_from(key.len()).unwrap_or(u64::MAX);
    if key.is_empty() || length > MAX_AUTH_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(Exit::Usage, "the auth key is empty or has characters that no key has"));
    }
    Ok(Secret(key))
}

/// Longest auth key.
const MAX_AUTH_KEY: u64 = 4096;

impl Options {
    async fn run(self, mut changes: Changes, begin: Begin) -> Result<(), Failure> {
        let client = self.socket.client();
        let before: Prefs = client.get("prefs").await?;
        // Of what `--reset` takes back nothing is carried on.
        let offered = if changes.is_empty() { before.advertise_routes.clone() } else { Vec::new() };
        if before.control_url.is_empty() && self.login_server.is_none() {
            let text =
                "which server? Say: warren up --login-server URL (warren admin auth-key create prints the whole line)";
            return Err(Failure::new(Exit::Usage, text));
        }
        if let Some(url) = &self.login_server {
            let url = url.parse::<ServerUrl>().or_exit(Exit::Usage, format_args!("--login-server {}", clean(url)))?;
            let url = url.to_string();
            if url != before.control_url && self.server_key.is_none() && !before.server_key.is_empty() {
                // A pin belongs to the server that it was given for.
                changes.add("ServerKey", Some(""));
            }
            changes.add("ControlURL", Some(url));
        }
        changes.add("ServerKey", self.server_key.clone());
        changes.add("Hostname", self.hostname.clone());
        changes.add("RouteAll", self.accept_routes);
        self.router.add_to(&mut changes, &offered);
        self.exit.add_to(&mut changes, &client).await?;
        changes.add("CorpDNS", self.accept_dns);
        changes.add("ShieldsUp", self.shields_up);
        let goal = match begin {
            Begin::Interactive => {
                if !changes.is_empty() {
                    changes.apply(&client).await?;
                }
                client.request(Method::POST, "login-interactive", "".into()).await?;
                Goal::LoggedInAgain
            }
            Begin::Start(key) => {
                let update_prefs = (!changes.is_empty()).then(|| changes.into_value());
                let auth_key = key.map(|key| key.0).unwrap_or_default();
                let body = serde_json::to_vec(&StartOptions { auth_key, update_prefs }).map_err(anyhow::Error::from)?;
                client.request(Method::POST, "start", body.into()).await?;
                Goal::Running
            }
        };
        let mut report = Report { json: self.json, said_something: false, last_trouble: None };
        let waited = wait(&client, goal, &mut report);
        let in_time = match self.timeout {
            None => Ok(waited.await),
            Some(limit) => tokio::time::timeout(limit, waited).await,
        };
        let Ok(outcome) = in_time else {
            let trouble = report.last_trouble.map(|text| format!(": {text}")).unwrap_or_default();
            let text = format!(
                "not connected in time{trouble}; the node goes on trying (see: warren status; to stop it: warren down)"
            );
            return Err(Failure::new(Exit::Timeout, text));
        };
        outcome?;
        report.done(&client).await
    }
}

/// Says what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// The node runs.
    Running,
    /// The node runs, and the login that was asked for is over: a node may run while a person logs in anew.
    LoggedInAgain,
}

/// Waits until the node has reached the goal or cannot.
#[expect(clippy::wildcard_enum_match_arm, reason = "every other trouble may pass")]
async fn wait(client: &Client, goal: Goal, report: &mut Report) -> Result<(), Failure> {
    let mut bus = client.watch().await?;
    let (mut state, mut logging_in) = (None, false);
    loop {
        let notify = bus.next().await?;
        report.tell(&notify)?;
        state = notify.state.and_then(State::from_number).or(state);
        logging_in = notify.logging_in.unwrap_or(logging_in);
        if state == Some(State::Running) && (goal == Goal::Running || !logging_in) {
            return Ok(());
        }
        if let Some(trouble) = notify.trouble {
            let exit = match trouble.kind {
                TroubleKind::Unreachable if trouble.attempts >= PATIENCE => Exit::Unreachable,
                TroubleKind::Server if trouble.attempts >= PATIENCE => Exit::General,
                TroubleKind::ServerKey | TroubleKind::Refused => Exit::Refused,
                TroubleKind::Clock | TroubleKind::Local => Exit::General,
                _ => {
                    report.last_trouble = Some(trouble.text);
                    continue;
                }
            };
            return Err(Failure::new(exit, trouble.text));
        }
    }
}

/// Prints what happens.
struct Report {
    json: bool,
    said_something: bool,
    last_trouble: Option<String>,
}

impl Report {
    fn tell(&mut self, notify: &Notify) -> Result<(), Failure> {
        if let Some(url) = &notify.browse_to_url {
            self.said_something = true;
            if self.json {
                output::json(&json!({ "AuthURL": url, "BackendState": State::NeedsLogin.name() }))?;
            } else {
                eprintln!("\nTo log in, visit:\n\n\t{}\n", clean(url));
                if let Some(code) = qr_code(url) {
                    eprintln!("{code}");
                }
            }
        }
        if notify.state.and_then(State::from_number) == Some(State::NeedsMachineAuth) {
            self.said_something = true;
            if self.json {
                output::json(&json!({ "BackendState": State::NeedsMachineAuth.name() }))?;
            } else {
                eprintln!("\nAn administrator must approve this machine first (warren admin node approve).\n");
            }
        }
        Ok(())
    }

    async fn done(&self, client: &Client) -> Result<(), Failure> {
        if self.json {
            return output::json(&json!({ "BackendState": State::Running.name() }));
        }
        if self.said_something {
            eprintln!("Success.");
        }
        let status: Status = client.get("status?peers=false").await?;
        for text in &status.health {
            eprintln!("Note: {}", clean(text));
        }
        Ok(())
    }
}

/// Returns the page's address as a code for a phone's camera, if a person looks at the terminal.
fn qr_code(url: &str) -> Option<String> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    fast_qr::QRBuilder::new(url).build().ok().map(|code| code.to_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, Failure> {
        read_auth_key(&Secret(text.to_owned())).map(|key| key.0)
    }

    #[test]
    fn auth_keys_come_from_the_line_or_a_file() {
        assert_eq!(read("wkey-abc").unwrap(), "wkey-abc");
        let path = std::env::temp_dir().join(format!("warren-auth-key-{}", std::process::id()));
        std::fs::write(&path, "wkey-from-file\n").unwrap();
        assert_eq!(read(&format!("file:{}", path.display())).unwrap(), "wkey-from-file");
        std::fs::remove_file(&path).unwrap();
        let missing = read("file:/nonexistent/key").unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/key"));
    }

    #[test]
    fn what_is_no_key_is_not_sent_and_not_repeated() {
        for text in ["", "  ", "a b", "wkey-\u{1b}[31m", "file:/dev/zero"] {
            let failure = read(text).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(!failure.to_string().contains("wkey-"));
        }
        assert!(!format!("{:?}", Secret("wkey-abc".into())).contains("abc"));
    }
}
