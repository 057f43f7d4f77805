//! `warren up` and `login`: change settings, log in, and wait until the node runs.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::json;
use warren_node::local_api::types::{Notify, StartOptions, State, Status, TroubleKind};
use warren_node::local_api::{Client, ClientError};
use warren_node::prefs::Prefs;

use super::settings::{Changes, defaults};
use super::{Socket, clean, parse_duration};
use crate::exit::{Exit, Failure, OrExit};
use crate::output;

/// After so many failures in a row to reach the server the command gives up (the node itself goes on trying).
const PATIENCE: u32 = 5;

/// Arguments of `warren up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    options: Options,
    /// Auth key, or file:PATH to read it from a file.
    #[arg(long, value_name = "KEY|file:PATH", alias = "authkey")]
    auth_key: Option<String>,
    /// Put every setting that is not named here back to its default.
    #[arg(long)]
    reset: bool,
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
    Start(Option<String>),
    /// With a new key and a person.
    Interactive,
}

impl Up {
    /// Brings the node up.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let auth_key = self.auth_key.as_deref().map(read_auth_key).transpose()?;
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

fn read_auth_key(text: &str) -> Result<String, Failure> {
    let key = match text.strip_prefix("file:") {
        None => text.trim().to_owned(),
        Some(path) => {
            let key = std::fs::read_to_string(path).or_exit(Exit::General, format_args!("cannot read {path}"))?;
            key.trim().to_owned()
        }
    };
    if key.is_empty() || key.len() > 4096 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(Exit::Usage, "the auth key is empty or has characters that no key has"));
    }
    Ok(key)
}

impl Options {
    async fn run(self, mut changes: Changes, begin: Begin) -> Result<(), Failure> {
        let client = self.socket.client();
        let before: Prefs = client.get("prefs").await?;
        if before.control_url.is_empty() && self.login_server.is_none() {
            let text =
                "which server? Say: warren up --login-server URL (warren admin auth-key create prints the whole line)";
            return Err(Failure::new(Exit::Usage, text));
        }
        let other_server = self.login_server.as_ref().is_some_and(|url| *url != before.control_url);
        changes.add("ControlURL", self.login_server.clone());
        match &self.server_key {
            Some(key) => changes.add("ServerKey", Some(key.clone())),
            // A pin belongs to the server that it was given for.
            None if other_server => changes.add("ServerKey", Some("")),
            None => {}
        }
        changes.add("Hostname", self.hostname.clone());
        changes.add("RouteAll", self.accept_routes);
        changes.add("ShieldsUp", self.shields_up);
        if let Begin::Interactive = begin {
            if !changes.is_empty() {
                changes.apply(&client).await?;
            }
            client.request(Method::POST, "login-interactive", "".into()).await.map_err(usage)?;
        } else {
            let update_prefs = (!changes.is_empty()).then(|| changes.into_value());
            let auth_key = if let Begin::Start(Some(key)) = begin { key } else { String::new() };
            let body = serde_json::to_vec(&StartOptions { auth_key, update_prefs }).map_err(anyhow::Error::from)?;
            client.request(Method::POST, "start", body.into()).await.map_err(usage)?;
        }
        let mut report = Report { json: self.json, said_something: false };
        let waited = wait(&client, &mut report);
        match self.timeout {
            None => waited.await?,
            Some(limit) => tokio::time::timeout(limit, waited).await.unwrap_or_else(|_| {
                let text =
                    "not connected in time; the node goes on trying (see: warren status, stop it with: warren down)";
                Err(Failure::new(Exit::Timeout, text))
            })?,
        }
        report.done(&client).await
    }
}

/// Gives what the daemon refuses to start with the code of a wrong command line.
fn usage(error: ClientError) -> Failure {
    if let ClientError::Refused(text) = error { Failure::new(Exit::Usage, text) } else { error.into() }
}

/// Waits until the node runs or cannot.
async fn wait(client: &Client, report: &mut Report) -> Result<(), Failure> {
    let mut bus = client.watch().await?;
    loop {
        let notify = bus.next().await?;
        report.tell(&notify)?;
        if notify.state.and_then(State::from_number) == Some(State::Running) {
            return Ok(());
        }
        if let Some(trouble) = notify.trouble {
            let exit = match trouble.kind {
                TroubleKind::Unreachable if trouble.attempts >= PATIENCE => Exit::Unreachable,
                TroubleKind::Server if trouble.attempts >= PATIENCE => Exit::General,
                TroubleKind::ServerKey | TroubleKind::Refused => Exit::Refused,
                TroubleKind::Clock | TroubleKind::Local => Exit::General,
                _ => continue,
            };
            return Err(Failure::new(exit, trouble.text));
        }
    }
}

/// Prints what happens.
struct Report {
    json: bool,
    said_something: bool,
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

    #[test]
    fn auth_keys_come_from_the_line_or_a_file() {
        assert_eq!(read_auth_key("wkey-abc").unwrap(), "wkey-abc");
        let path = std::env::temp_dir().join(format!("warren-auth-key-{}", std::process::id()));
        std::fs::write(&path, "wkey-from-file\n").unwrap();
        assert_eq!(read_auth_key(&format!("file:{}", path.display())).unwrap(), "wkey-from-file");
        std::fs::remove_file(&path).unwrap();
        let missing = read_auth_key("file:/nonexistent/key").unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/key"));
    }

    #[test]
    fn what_is_no_key_is_not_sent_and_not_repeated() {
        for text in ["", "  ", "a b", "wkey-\u{1b}[31m"] {
            let failure = read_auth_key(text).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(!failure.to_string().contains("wkey-"));
        }
    }
}
