//! Networks that several peers lead into: who is in use, and the questions that decide it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ipnet::IpNet;
use warren_path::{Router, RouterProbe, SwitchReason, Use};
use warren_wire::key::NodeKey;

use super::routes::prefixes;
use super::tailnet::Tailnet;
use crate::engine::owner::{Owner, Watch};
use crate::engine::shared::Question;

impl Tailnet {
    /// Takes over who leads into networks with several routers.
    pub(super) fn set_routers(&mut self, now: Instant) {
        let mut networks: BTreeMap<IpNet, Vec<Router>> = BTreeMap::new();
        if self.local.settings.accept_routes {
            let router = |key: &NodeKey, is_away| Router { key: *key, is_away };
            let away = |online: Option<bool>| online == Some(false);
            let peers = || self.peers.iter().map(|(key, known)| (key, &known.config));
            for (key, peer) in peers() {
                for net in peer.standby() {
                    networks.entry(*net).or_default().push(router(key, away(peer.node().online)));
                }
            }
            // The server's choice goes first. Without others there is nothing to choose.
            let is_needed = !networks.is_empty();
            for (key, peer) in peers().filter(|_| is_needed) {
                for net in prefixes(peer, true, false).filter(|net| !peer.addresses().contains(net)) {
                    if let Some(routers) = networks.get_mut(&net) {
                        routers.insert(0, router(key, away(peer.node().online)));
                    }
                }
            }
            networks.retain(|_, routers| routers.len() > 1);
        }
        let slots = |routers: &Vec<Router>| {
            routers.iter().filter_map(|router| Some(Arc::clone(&self.peers.get(&router.key)?.slot))).collect::<Vec<_>>()
        };
        let mut watches = BTreeMap::new();
        for (net, routers) in &networks {
            let routers = slots(routers);
            let is_same = |watch: &&Arc<Watch>| {
                watch.routers.len() == routers.len()
                    && routers.iter().all(|slot| watch.routers.iter().any(|known| Arc::ptr_eq(known, slot)))
            };
            let kept = self.watches.get(net).filter(is_same).cloned();
            watches.insert(*net, kept.unwrap_or_else(|| Arc::new(Watch::new(*net, routers))));
        }
        self.watches = watches;
        self.routers.set(networks, now);
        self.drain_routers();
    }

    /// Returns the routers in use of networks that have several.
    pub(super) fn chosen_routers(&self) -> impl Iterator<Item = (IpNet, Owner)> {
        self.routers.networks().filter_map(|(net, in_use, _)| {
            let slot = Arc::clone(&self.peers.get(&in_use)?.slot);
            Some((net, Owner { slot, watch: self.watches.get(&net).cloned() }))
        })
    }

    /// Looks at the packets of networks in use.
    pub(super) fn look_at_routers(&mut self, now: Instant) {
        for net in self.routers.due(now) {
            let Some(watch) = self.watches.get(&net) else { continue };
            let read = |time: &std::sync::atomic::AtomicU64| self.shared.instant(time.load(Ordering::Relaxed));
            let packets =
                Use { sent: read(&watch.sent), waiting: read(&watch.waiting), answered: read(&watch.answered) };
            if !self.routers.handle_use(&net, packets, now) {
                watch.is_awake.store(false, Ordering::Release);
            }
        }
        self.routers.handle_timeout(now);
        self.drain_routers();
    }

    /// Asks what is to be asked, and takes over what was decided.
    pub(super) fn drain_routers(&mut self) {
        while let Some(RouterProbe { network, router, number }) = self.routers.poll_probe() {
            let (Some(known), Some(watch)) = (self.peers.get(&router), self.watches.get(&network)) else { continue };
            let own = |to: IpAddr| {
                let mut own = self.local.node.addresses.iter().map(IpNet::addr);
                own.find(|from| from.is_ipv4() == to.is_ipv4()).map(|from| (from, to))
            };
            let itself = known.config.addresses().iter().find_map(|address| own(address.addr()));
            let slot = Arc::clone(&known.slot);
            self.shared.ask_router(Question { slot, number, host: watch.host().and_then(own), router: itself });
        }
        while let Some(change) = self.routers.poll_switched() {
            let name = |key: &NodeKey| self.peers.get(key).map(|known| known.config.short_name()).unwrap_or_default();
            let why = match change.reason {
                SwitchReason::Closed => "it passes nothing on",
                SwitchReason::Silent => "it does not answer",
                SwitchReason::Server => "the server would have it so",
            };
            tracing::info!(network = %change.network, from = name(&change.from), to = name(&change.to), why, "another router");
            self.dirty.prefixes = true;
        }
    }

    /// Says which routers failed that the server still sends packets to, for people.
    pub(super) fn router_troubles(&self) -> impl Iterator<Item = String> {
        let name = |key: &NodeKey| self.peers.get(key).map(|known| known.config.short_name()).unwrap_or_default();
        let other = self.routers.networks().filter(|(_, in_use, first)| in_use != first).take(4);
        other.map(move |(net, in_use, first)| {
            format!(
                "packets for {net} go over {}, which works; the server would have them go over {}",
                name(&in_use),
                name(&first)
            )
        })
    }
}
