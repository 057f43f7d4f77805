//! What the engine knows of names and addresses, for whoever dials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_dns::Name;
use warren_wire::key::NodeKey;

use crate::look_up;
use crate::userspace::dialer::Way;

use super::shared::{Shared, Snapshot};

/// Addresses of nodes. Nobody else is looked for there.
const RANGES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48)),
];

/// Answers by the newest snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    shared: Arc<Shared>,
}

impl Ways {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Says where packets to an address go.
    pub(crate) fn way(&self, to: IpAddr) -> Way {
        way(&self.shared.snapshot.load(), self.wants_exit(), to)
    }

    /// Returns the peer that has an address, or leads to it.
    pub(crate) fn peer(&self, address: IpAddr) -> Option<NodeKey> {
        self.shared.snapshot.load().peers.lookup(address).map(|owner| owner.slot.key())
    }

    /// Tells whether nothing may leave but through an exit node, whether the node is on the tailnet or not.
    pub(crate) fn wants_exit(&self) -> bool {
        self.shared.wants_exit.load(Ordering::Acquire)
    }

    /// Returns the addresses of a name: of the tailnet, or by those whom the server says are to be asked; else those that this
    /// machine knows. Names of one label are the tailnet's, if it has a domain.
    pub(crate) async fn find(&self, host: &str) -> Vec<IpAddr> {
        let mut is_kept = self.wants_exit();
        if let Some(names) = self.shared.names.load_full() {
            let is_short = !host.trim_end_matches('.').contains('.');
            let full = if is_short {
                names.search().iter().filter_map(|domain| Name::parse(&format!("{host}.{domain}")).ok()).collect()
            } else {
                Name::parse(host).ok().into_iter().collect::<Vec<_>>()
            };
            for name in &full {
                let found = names.addresses(name).await;
                if !found.is_empty() {
                    return found;
                }
            }
            is_kept |= full.iter().any(|name| names.keeps(name));
        }
        // Whoever else might know it shall not hear of it: neither of names of the tailnet nor, past an exit node, of any.
        if is_kept { look_up::in_hosts_file(host) } else { look_up::outside(host.to_owned()).await.unwrap_or_default() }
    }
}

/// Without a snapshot, which is while the node is not on the tailnet, only `wants_exit` says what its user chose.
fn way(snapshot: &Snapshot, wants_exit: bool, to: IpAddr) -> Way {
    if to.is_loopback() || snapshot.lan.iter().any(|net| net.contains(&to)) && !is_nodes(to) {
        Way::Outside
    } else if snapshot.own.contains(&to) {
        Way::Own
    } else if snapshot.peers.lookup(to).is_some() {
        Way::Tailnet
    } else if wants_exit || snapshot.wants_exit || is_nodes(to) && !snapshot.own.is_empty() {
        Way::Nowhere
    } else {
        Way::Outside
    }
}

fn is_nodes(address: IpAddr) -> bool {
    RANGES.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::owner::Owner;
    use crate::engine::shared::PeerSlot;

    fn snapshot(prefixes: &[&str]) -> Snapshot {
        let slot = Arc::new(PeerSlot::new(NodeKey::from_bytes([7; 32])));
        let peers = prefixes.iter().map(|net| (net.parse().unwrap(), Owner::from(Arc::clone(&slot)))).collect();
        Snapshot { peers: Arc::new(peers), own: [IpAddr::from([100, 64, 0, 1])].into(), ..Snapshot::default() }
    }

    fn of(snapshot: &Snapshot, to: &str) -> Way {
        way(snapshot, false, to.parse().unwrap())
    }

    #[test]
    fn peers_and_what_they_lead_to_are_in_the_tailnet_and_the_rest_is_not() {
        let plain = snapshot(&["100.64.0.2/32", "192.168.7.0/24"]);
        for (to, expected) in [
            ("100.64.0.1", Way::Own),
            ("100.64.0.2", Way::Tailnet),
            ("192.168.7.9", Way::Tailnet),
            ("100.64.0.3", Way::Nowhere),
            ("fd7a:115c:a1e0::9", Way::Nowhere),
            ("192.0.2.1", Way::Outside),
            ("2001:db8::1", Way::Outside),
            ("127.0.0.1", Way::Outside),
            ("::1", Way::Outside),
        ] {
            assert_eq!(of(&plain, to), expected, "{to}");
        }
        assert_eq!(of(&Snapshot::default(), "100.64.0.3"), Way::Outside, "while the node is off the tailnet");
        let closed = |to: &str| way(&Snapshot::default(), true, to.parse().unwrap());
        assert_eq!(closed("192.0.2.1"), Way::Nowhere, "an exit node was chosen, and nobody knows it yet");
        assert_eq!(closed("127.0.0.1"), Way::Outside);
    }

    #[test]
    fn an_exit_node_takes_the_internet_and_without_it_nothing_leaves() {
        let mut exit = snapshot(&["100.64.0.2/32", "0.0.0.0/0", "::/0"]);
        exit.wants_exit = true;
        assert_eq!(of(&exit, "192.0.2.1"), Way::Tailnet);
        assert_eq!(of(&exit, "127.0.0.1"), Way::Outside);
        exit.lan = ["10.0.0.0/8".parse().unwrap(), "100.64.0.0/10".parse().unwrap()].into();
        assert_eq!((of(&exit, "10.1.1.1"), of(&exit, "100.64.0.2")), (Way::Outside, Way::Tailnet));
        let mut away = snapshot(&["100.64.0.2/32"]);
        away.wants_exit = true;
        assert_eq!((of(&away, "192.0.2.1"), of(&away, "100.64.0.2")), (Way::Nowhere, Way::Tailnet));
    }
}
