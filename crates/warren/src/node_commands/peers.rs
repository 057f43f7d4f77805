//! Finds a node by what people call it.

use std::net::IpAddr;

use warren_node::local_api::types::{PeerStatus, Status};

use crate::exit::{Exit, Failure};

/// Returns the node that `name` means: a tailnet address, a full name, a first label or a host name. Full names win.
pub(super) fn find<'a>(status: &'a Status, name: &str) -> Result<&'a PeerStatus, Failure> {
    let all = || std::iter::once(&status.self_).chain(status.peer.values());
    if let Ok(address) = name.parse::<IpAddr>() {
        return all().find(|node| node.tailscale_ips.contains(&address)).ok_or_else(|| {
            Failure::new(Exit::NotFound, format_args!("no node has the address {address}; see: warren status"))
        });
    }
    let wanted = name.trim_end_matches('.');
    let full = |node: &&PeerStatus| node.dns_name.trim_end_matches('.').eq_ignore_ascii_case(wanted);
    let short = |node: &&PeerStatus| short_name(node).eq_ignore_ascii_case(wanted);
    let host = |node: &&PeerStatus| node.host_name.eq_ignore_ascii_case(wanted);
    let found = all().find(full).or_else(|| all().find(short)).or_else(|| all().find(host));
    found.ok_or_else(|| Failure::new(Exit::NotFound, format_args!("no node is called {name}; see: warren status")))
}

/// Returns the first label of a node's name.
pub(super) fn short_name(node: &PeerStatus) -> &str {
    node.dns_name.split('.').next().unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A status with this node `alpha` and a peer `beta`.
    pub(in super::super) fn status() -> Status {
        let node = |name: &str, address: &str| PeerStatus {
            dns_name: format!("{name}.t.example."),
            host_name: format!("{name}-host"),
            tailscale_ips: vec![address.parse().unwrap()],
            ..PeerStatus::default()
        };
        Status {
            version: String::new(),
            tun: true,
            backend_state: "Running".into(),
            have_node_key: true,
            auth_url: String::new(),
            tailscale_ips: Vec::new(),
            self_: node("alpha", "100.64.0.1"),
            health: Vec::new(),
            magic_dns_suffix: "t.example".into(),
            current_tailnet: None,
            cert_domains: None,
            peer: [("k".to_owned(), node("beta", "100.64.0.2"))].into(),
            user: [].into(),
            client_version: None,
            exit_node_status: None,
            trouble: None,
            control_url: String::new(),
            kept_map: None,
        }
    }

    #[test]
    fn a_node_is_found_by_every_name() {
        let status = status();
        for name in ["beta", "BETA", "beta.t.example", "beta.t.example.", "beta-host", "100.64.0.2"] {
            assert_eq!(find(&status, name).unwrap().dns_name, "beta.t.example.", "{name}");
        }
        assert_eq!(find(&status, "alpha").unwrap().dns_name, "alpha.t.example.");
    }

    #[test]
    fn what_does_not_exist_has_its_own_code() {
        for name in ["gamma", "100.64.0.3", ""] {
            assert_eq!(find(&status(), name).unwrap_err().exit(), Exit::NotFound);
        }
    }
}
