//! `warren status` and `ip`.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::SystemTime;

use clap::Args;
use warren_node::local_api::types::{PeerStatus, State};
use warren_wire::control::Time;

use super::{Socket, clean, peers};
use crate::exit::{Exit, Failure};
use crate::output;

type Document = warren_node::local_api::types::Status;

/// Arguments of `warren status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    /// Leave the peers out.
    #[arg(long)]
    no_peers: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Status {
    /// Asks and prints.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let path = if self.no_peers { "status?peers=false" } else { "status" };
        let client = self.socket.client();
        if self.json {
            return output::json(&client.get::<serde_json::Value>(path).await?);
        }
        let status: Document = client.get(path).await?;
        if status.backend_state != State::Running.name() && status.backend_state != State::Starting.name() {
            return Err(not_running(&status));
        }
        output::text(&table(&status, now()))
    }
}

/// Says in one line why the node does not run, and what to do.
pub(super) fn not_running(status: &Document) -> Failure {
    let state = status.backend_state.as_str();
    let trouble = status.trouble.as_ref().map(|trouble| format!(" ({})", trouble.text)).unwrap_or_default();
    let text = if state == State::Stopped.name() {
        "the node is stopped; start it with: warren up".to_owned()
    } else if state == State::NeedsLogin.name() && !status.auth_url.is_empty() {
        format!("logged out; log in at {}", status.auth_url)
    } else if state == State::NeedsLogin.name() {
        format!("logged out; log in with: warren up{trouble}")
    } else if state == State::NeedsMachineAuth.name() {
        "this machine waits for an administrator's approval (warren admin node approve)".to_owned()
    } else {
        format!("the node is not connected yet{trouble}")
    };
    Failure::new(Exit::General, text)
}

fn table(status: &Document, now: Time) -> String {
    let mut sorted: Vec<&PeerStatus> = status.peer.values().collect();
    sorted.sort_by(|a, b| (&a.dns_name, &a.public_key).cmp(&(&b.dns_name, &b.public_key)));
    let mut rows = vec![row(status, &status.self_, "-".to_owned())];
    rows.extend(sorted.iter().map(|peer| row(status, peer, path(peer, now))));
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for [address, name, owner, os, path] in &rows {
        let [a, n, o, s] = widths;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address:<a$}  {name:<n$}  {owner:<o$}  {os:<s$}  {path}");
    }
    if let Some(kept) = &status.kept_map {
        let minutes = kept.age_seconds / 60;
        let _ = writeln!(text, "\n# The server is away: this is the map kept on disk, as of {} ago.", span(minutes));
    }
    if !status.health.is_empty() {
        text.push_str("\n# Health check:\n");
        for line in &status.health {
            let _ = writeln!(text, "#     - {}", clean(line));
        }
    }
    text
}

fn row(status: &Document, node: &PeerStatus, path: String) -> [String; 5] {
    let address = node.tailscale_ips.iter().find(|address| address.is_ipv4()).or_else(|| node.tailscale_ips.first());
    let name = match peers::short_name(node) {
        "" => format!("({})", node.host_name),
        name => name.to_owned(),
    };
    let owner = if node.tags.is_empty() {
        let login = status.user.get(&node.user_id.to_string()).map_or("-", |user| user.login_name.as_str());
        login.find('@').and_then(|at| login.get(..=at)).unwrap_or(login).to_owned()
    } else {
        "tagged-devices".to_owned()
    };
    let address = address.map(ToString::to_string).unwrap_or_default();
    [address, name, owner, node.os.clone(), path].map(|cell| clean(&cell))
}

/// Describes the path to a peer, in the words of the official command.
fn path(peer: &PeerStatus, now: Time) -> String {
    let mut text = if peer.expired {
        "key expired".to_owned()
    } else if peer.active && !peer.cur_addr.is_empty() {
        format!("active; direct {}", peer.cur_addr)
    } else if peer.active && !peer.peer_relay.is_empty() {
        format!("active; peer-relay {}", peer.peer_relay)
    } else if peer.active && !peer.relay.is_empty() {
        format!("active; relay \"{}\"", peer.relay)
    } else if peer.rx_bytes + peer.tx_bytes > 0 {
        "idle".to_owned()
    } else if peer.online {
        "-".to_owned()
    } else {
        String::new()
    };
    // In the words of the official command, before how it is reached.
    let exit = if peer.exit_node {
        "exit node"
    } else if peer.exit_node_option {
        "offers exit node"
    } else {
        ""
    };
    if !exit.is_empty() {
        text = match text.strip_prefix("active; ") {
            Some(rest) => format!("active; {exit}; {rest}"),
            None if text.is_empty() || text == "-" => exit.to_owned(),
            None => format!("{text}; {exit}"),
        };
    }
    if !peer.online {
        text.push_str(if text.is_empty() { "offline" } else { "; offline" });
        if let Ok(seen) = peer.last_seen.parse::<Time>() {
            let minutes = (now.saturating_since(seen).as_secs() / 60).max(1);
            let _ = write!(text, ", last seen {} ago", span(minutes));
        }
    }
    if peer.rx_bytes + peer.tx_bytes > 0 {
        let _ = write!(text, ", tx {} rx {}", peer.tx_bytes, peer.rx_bytes);
    }
    text
}

/// Writes a number of minutes in its largest unit.
fn span(minutes: u64) -> String {
    match minutes {
        0..60 => format!("{minutes}m"),
        60..1440 => format!("{}h", minutes / 60),
        _ => format!("{}d", minutes / 1440),
    }
}

fn now() -> Time {
    #[expect(clippy::disallowed_methods, reason = "a command reads the clock once")]
    let now = SystemTime::now();
    now.into()
}

/// Arguments of `warren ip`.
#[derive(Debug, Args)]
pub(crate) struct Ip {
    /// Peer whose addresses to show; this machine without it.
    #[arg(value_name = "NAME")]
    peer: Option<String>,
    /// Only IPv4.
    #[arg(short = '4', conflicts_with = "v6")]
    v4: bool,
    /// Only IPv6.
    #[arg(short = '6')]
    v6: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Ip {
    /// Asks and prints.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let status: Document = self.socket.client().get("status").await?;
        let node = match &self.peer {
            Some(name) => peers::find(&status, name)?,
            None => &status.self_,
        };
        let wanted = |address: &&IpAddr| match (self.v4, self.v6) {
            (true, _) => address.is_ipv4(),
            (_, true) => address.is_ipv6(),
            (false, false) => true,
        };
        let lines: String = node.tailscale_ips.iter().filter(wanted).map(|address| format!("{address}\n")).collect();
        if lines.is_empty() && self.peer.is_none() {
            return Err(not_running(&status));
        }
        if lines.is_empty() {
            return Err(Failure::new(Exit::NotFound, "it has no address of this family"));
        }
        output::text(&lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_unix(seconds, 0).unwrap()
    }

    #[test]
    fn the_path_is_told_in_the_usual_words() {
        let peer = PeerStatus { online: true, last_seen: "0001-01-01T00:00:00Z".into(), ..PeerStatus::default() };
        let now = at(1_800_000_000);
        assert_eq!(path(&peer, now), "-");
        let direct = PeerStatus {
            active: true,
            cur_addr: "192.0.2.1:1".into(),
            relay: "home".into(),
            tx_bytes: 1,
            rx_bytes: 2,
            ..peer.clone()
        };
        assert_eq!(path(&direct, now), "active; direct 192.0.2.1:1, tx 1 rx 2");
        let relayed = PeerStatus { cur_addr: String::new(), ..direct.clone() };
        assert_eq!(path(&relayed, now), "active; relay \"home\", tx 1 rx 2");
        let by_peer = PeerStatus { peer_relay: "192.0.2.9:7:vni:3".into(), ..relayed.clone() };
        assert_eq!(path(&by_peer, now), "active; peer-relay 192.0.2.9:7:vni:3, tx 1 rx 2");
        let gone = PeerStatus { online: false, last_seen: at(1_800_000_000 - 7300).to_string(), ..peer };
        assert_eq!(path(&gone, now), "offline, last seen 2h ago");
        assert_eq!(path(&PeerStatus { active: false, ..direct }, now), "idle, tx 1 rx 2");
    }

    #[test]
    fn hostile_names_do_not_reach_the_terminal() {
        let mut status = peers::tests::status();
        status.self_.dns_name = "evil\u{1b}[2J.t.example.".into();
        status.health = vec!["a\u{7}b".into()];
        let text = table(&status, at(0));
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        assert!(text.contains("# Health check:\n#     - a?b\n"));
    }

    #[test]
    fn each_state_says_what_to_do() {
        let mut status = peers::tests::status();
        for (state, advice) in [
            ("Stopped", "warren up"),
            ("NeedsLogin", "warren up"),
            ("NeedsMachineAuth", "approve"),
            ("NoState", "not connected"),
        ] {
            status.backend_state = state.into();
            assert!(not_running(&status).to_string().contains(advice), "{state}");
        }
        status.backend_state = "NeedsLogin".into();
        status.auth_url = "https://a/b".into();
        assert!(not_running(&status).to_string().contains("https://a/b"));
    }
}
