//! What the daemon says, in the order in which it says it.

use super::tailnet::{Setup, Tailnet};
use super::{Decision, now, wall};
use crate::engine::{Local, LocalUpdate, Update};
use rand::RngExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

impl Decision {
    /// Takes over a change.
    pub(super) fn apply(&mut self, update: Update) {
        if self.dead {
            return;
        }
        tracing::debug!(
            local = update.local.is_some(),
            relays = update.relays.is_some(),
            filter = update.filter.as_ref().map(|rules| rules.len()),
            removed = update.removed.len(),
            peers = update.peers.len(),
            "update"
        );
        if let Some(listens) = update.server_listens {
            self.server_listens = listens;
            if let Some(tailnet) = &mut self.tailnet {
                tailnet.measure.netcheck.set_server_listens(listens);
            }
        }
        if let Some(wants_exit) = update.wants_exit {
            self.shared.wants_exit.store(wants_exit, Ordering::Release);
        }
        match update.local {
            Some(LocalUpdate::Down) => self.leave(),
            Some(LocalUpdate::Restart(local)) => {
                self.leave();
                self.join(local);
            }
            Some(LocalUpdate::Up(local)) => self.take_local(local),
            None => {}
        }
        let now = now();
        let Some(tailnet) = &mut self.tailnet else { return };
        if let Some(map) = update.relays {
            tailnet.set_map(map, now);
        }
        if let Some(rules) = update.filter {
            tailnet.set_rules(rules, now);
        }
        for key in &update.removed {
            tailnet.remove_peer(key, now);
        }
        for peer in update.peers {
            tailnet.set_peer(peer, now);
        }
    }

    fn leave(&mut self) {
        self.tailnet = None;
        self.outlet.forget();
    }

    fn join(&mut self, local: Local) {
        self.outlet.forget();
        let since_1970 = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let setup = Setup {
            shared: Arc::clone(&self.shared),
            links: self.link_setup.clone(),
            found: self.found_sender.clone(),
            traits: self.traits.clone(),
            rng: &mut self.rng,
        };
        let mut tailnet = Tailnet::new(local, setup, now(), since_1970);
        tailnet.measure.netcheck.set_server_listens(self.server_listens);
        tailnet.start_names(self.rng.random());
        self.tailnet = Some(tailnet);
        // The machine's addresses are not known yet.
        self.links_changed.notify_one();
    }

    fn take_local(&mut self, local: Local) {
        let Some(tailnet) = &mut self.tailnet else {
            self.join(local);
            return;
        };
        if tailnet.local().secret.public() == local.secret.public() {
            tailnet.set_local(local, now());
            return;
        }
        // All sessions belong to the old key: the same tailnet, from the beginning.
        let (map, rules, peers) = tailnet.parts();
        self.tailnet = None;
        self.join(local);
        if let Some(tailnet) = &mut self.tailnet {
            let now = now();
            tailnet.set_map(map, now);
            tailnet.set_rules(rules, now);
            peers.into_iter().for_each(|peer| tailnet.set_peer(peer, now));
        }
    }
}
