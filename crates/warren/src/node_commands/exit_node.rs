//! `warren exit-node`: which peers pass packets on to the Internet.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde_json::json;
use warren_node::local_api::types::{PeerStatus, Status};

use super::{Socket, clean, peers};
use crate::exit::Failure;
use crate::output;

/// Arguments of `warren exit-node`.
#[derive(Debug, Args)]
pub(crate) struct ExitNode {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the peers that can be the exit node of this machine.
    List(List),
}

#[derive(Debug, Args)]
struct List {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl ExitNode {
    /// Runs the command.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let Command::List(list) = self.command;
        let status: Status = self.socket.client().get("status").await?;
        let nodes = exit_nodes(&status);
        if list.json {
            let node = |peer: &&PeerStatus| {
                json!({
                    "ID": peer.id, "DNSName": peer.dns_name, "TailscaleIPs": peer.tailscale_ips,
                    "Online": peer.online, "InUse": peer.exit_node,
                })
            };
            return output::json(&json!(nodes.iter().map(node).collect::<Vec<_>>()));
        }
        if nodes.is_empty() {
            eprintln!(
                "There is no exit node for this machine. One offers itself with: warren set --advertise-exit-node"
            );
            return Ok(());
        }
        output::text(&table(&nodes))
    }
}

/// Returns the peers that can be the exit node, by name.
fn exit_nodes(status: &Status) -> Vec<&PeerStatus> {
    let mut nodes: Vec<&PeerStatus> = status.peer.values().filter(|peer| peer.exit_node_option).collect();
    nodes.sort_by(|a, b| (&a.dns_name, &a.id).cmp(&(&b.dns_name, &b.id)));
    nodes
}

fn table(nodes: &[&PeerStatus]) -> String {
    let address = |peer: &PeerStatus| peer.tailscale_ips.first().map(ToString::to_string).unwrap_or_default();
    let wide = nodes.iter().map(|peer| address(peer).chars().count()).max().unwrap_or_default();
    let long = nodes.iter().map(|peer| peers::short_name(peer).chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for peer in nodes {
        let state = match (peer.exit_node, peer.online) {
            (true, true) => "selected",
            (true, false) => "selected; offline",
            (false, true) => "-",
            (false, false) => "offline",
        };
        let (address, name) = (address(peer), clean(peers::short_name(peer)));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address:<wide$}  {name:<long$}  {state}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_can_be_one_is_listed() {
        let mut status = peers::tests::status();
        assert!(exit_nodes(&status).is_empty());
        status.peer.values_mut().for_each(|peer| {
            peer.exit_node_option = true;
            peer.exit_node = true;
        });
        assert_eq!(table(&exit_nodes(&status)), "100.64.0.2  beta  selected; offline\n");
    }
}
