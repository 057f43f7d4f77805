//! What peers send: pings, pongs, call-me-maybe.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use warren_wire::control::RegionId;
use warren_wire::disco::{self, Message, Ping, Pong};
use warren_wire::key::{DiscoKey, NodeKey};

use super::Paths;
use super::candidates::Heard;
use super::outbox::{PING_TIMEOUT, Timer};
use super::output::{Destination, Event, SocketId, Via};
use super::peer::Which;
use super::peer_relays::PeerRelay;
use crate::address::{RELAY_IP, is_answerable, is_usable, plain};

impl Paths {
    /// Handles a disco datagram that came straight from `from` to the main socket.
    pub fn handle_udp(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        self.handle_udp_at(0, from, datagram, now);
    }

    /// The same, to any socket.
    pub fn handle_udp_at(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Instant) {
        if !is_answerable(from) {
            return;
        }
        match self.outbox.keys.open(datagram) {
            Some((sender, Message::Ping(ping))) => self.handle_ping(&sender, &ping, from, socket, now),
            Some((sender, Message::Pong(pong))) => self.handle_pong(&sender, &pong, Via::Direct(from), now),
            // Everything else needs a relay that vouches for the sender.
            Some(_) | None => {}
        }
    }

    /// Handles a disco datagram that came through a relay from the holder of key `from`, as the relay says.
    pub fn handle_relayed(&mut self, region: RegionId, from: &NodeKey, datagram: &[u8], now: Instant) {
        let Some(disco) = self.peers.get(from).and_then(|peer| peer.disco) else { return };
        if disco::peek(datagram) != Some(disco) {
            return;
        }
        let Some((sender, message)) = self.outbox.keys.open(datagram) else { return };
        if let Some(peer) = self.peers.get_mut(from) {
            peer.heard_region = region.known();
            self.publish(from);
        }
        match message {
            Message::Ping(ping) => {
                let source = SocketAddr::new(IpAddr::V4(RELAY_IP), region.0);
                let to = Destination::Relay { region, peer: *from };
                self.outbox.send(to, &sender, &Message::Pong(Pong { id: ping.id, source }));
                self.heed_hint(from, now);
                self.heed_relay_hint(from, now);
                self.publish(from);
            }
            Message::Pong(pong) => self.handle_pong(&sender, &pong, Via::Relay(region), now),
            Message::CallMeMaybe(endpoints) => self.handle_call(from, &endpoints, now),
            Message::Punch(punch) => self.handle_punch(from, punch, now),
            Message::CallMeMaybeVia(endpoint) => self.handle_call_via(from, endpoint, now),
            Message::AllocateRequest(request) => self.handle_request(region, from, &sender, request),
            Message::AllocateResponse { generation, endpoint } => {
                self.handle_allocated(Some(*from), generation, endpoint, now);
            }
            // What only goes straight between a peer relay and its client, and types that are not known yet.
            Message::BindEndpoint(_) | Message::BindChallenge(_) | Message::BindAnswer(_) | _ => {}
        }
    }

    /// Tells that an authentic WireGuard packet of a peer came this way; workers do so at most ten times a second. From a
    /// relay a peer's home is learned while it is not known. A direct path, or one over a peer relay, is proved by pings alone,
    /// but this shows whether a proved one lives.
    pub fn handle_received(&mut self, key: &NodeKey, via: Via, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        match via {
            Via::Direct(from) if self.is_silent && peer.best_address() == Some(plain(from)) => {
                peer.touch(plain(from), now);
                peer.renew_trust(now);
                self.publish(key);
            }
            Via::Direct(from) => match peer.trusted(now) {
                Some(best) if best == plain(from) => {
                    peer.touch(best, now);
                    peer.watch().note_data(now);
                }
                // It says nothing of the way there, but the peer may have moved.
                Some(_) => self.heed_elsewhere(key, plain(from), now),
                None => {}
            },
            Via::PeerRelay(relay) => {
                let relay = PeerRelay { address: plain(relay.address), ..relay };
                peer.relaying.note_data(relay, now);
            }
            Via::Relay(region) => {
                peer.heard_region = region.known();
                self.heed_hint(key, now);
                self.heed_relay_hint(key, now);
                self.publish(key);
            }
        }
    }

    /// Doubts a direct path that has been silent, since the peer seems to have given it up: it sends over the relay.
    fn heed_hint(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.is_in_use(now) && peer.trusted(now).is_some() && peer.watch().heeds_hint(now) {
            peer.doubt(key, &mut self.outbox, now);
            self.suspect_own(now);
            self.beat_soon(key, now);
        }
    }

    /// Doubts a direct path that has been silent, since the peer is heard from elsewhere.
    fn heed_elsewhere(&mut self, key: &NodeKey, from: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let is_other = peer.trusted(now).is_some_and(|best| best != from && best.is_ipv4() == from.is_ipv4());
        if is_other && peer.watch().note_elsewhere(from) && peer.watch().heeds_hint(now) {
            peer.doubt(key, &mut self.outbox, now);
            peer.ping_back(key, from, 0, &mut self.outbox, now);
            self.beat_soon(key, now);
            self.publish(key);
        }
    }

    fn handle_ping(&mut self, sender: &DiscoKey, ping: &Ping, from: SocketAddr, socket: SocketId, now: Instant) {
        let address = plain(from);
        let pinger = self.pinger(sender, ping).filter(|key| is_usable(address) && self.peers.contains_key(key));
        let heard = pinger.and_then(|key| {
            let peer = self.peers.get_mut(&key)?;
            Some((key, peer.candidates.hear(address, ping.id, peer.best_address(), now)))
        });
        if !matches!(heard, Some((_, Heard::Duplicate))) {
            // Before a ping of our own: it proves the path to the peer, which then need not prove it by another ping.
            let pong = Message::Pong(Pong { id: ping.id, source: address });
            self.outbox.send_from(socket, Destination::Udp(from), sender, &pong);
        }
        if let Some((key, heard)) = heard {
            self.heed_ping(&key, heard, address, socket, now);
        }
    }

    /// Acts on what a peer's ping tells besides its question.
    fn heed_ping(&mut self, key: &NodeKey, heard: Heard, address: SocketAddr, socket: SocketId, now: Instant) {
        let proves = socket != 0 && self.punch.hit(socket, *key, now);
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.touch(address, now);
        match heard {
            Heard::Duplicate => return,
            // By its ping the peer opened its firewall for us: no need to wait until our next ping is due. If we
            // believe it to be elsewhere, it may have moved.
            Heard::Awake if peer.is_in_use(now) => {
                let trusted = peer.trusted(now);
                let has_moved = trusted.is_some_and(|best| best != address && best.is_ipv4() == address.is_ipv4());
                if has_moved {
                    peer.doubt(key, &mut self.outbox, now);
                }
                if has_moved || trusted.is_none() {
                    peer.ping_back(key, address, socket, &mut self.outbox, now);
                }
                self.publish(key);
            }
            // It hit one of many sockets, of which each has its own hole.
            Heard::Known if proves && peer.is_in_use(now) && peer.trusted(now).is_none() => {
                peer.ping_back(key, address, socket, &mut self.outbox, now);
            }
            // It may have come back to where it was a moment ago.
            Heard::Known if socket == 0 && peer.is_in_use(now) => self.heed_elsewhere(key, address, now),
            Heard::Awake | Heard::Known => {}
        }
        self.settle(key, now);
    }

    /// Tells which holder of a disco key sent a ping, if that is certain.
    pub(super) fn pinger(&self, sender: &DiscoKey, ping: &Ping) -> Option<NodeKey> {
        let keys = &self.outbox.keys;
        let named = ping.node_key.filter(|key| keys.is_held(sender, key));
        named.or_else(|| {
            let mut holders = keys.holders(sender);
            let first = holders.next();
            first.filter(|_| holders.next().is_none())
        })
    }

    pub(super) fn handle_pong(&mut self, sender: &DiscoKey, pong: &Pong, via: Via, now: Instant) {
        let Some(sent) = self.outbox.pings.get(&pong.id).copied() else { return };
        let Some(peer) = self.peers.get_mut(&sent.peer) else { return };
        if peer.disco != Some(*sender) {
            return;
        }
        // The address that we pinged is the proved one, wherever the pong came from; but it must have come the same way.
        let pinged = match (sent.to, via) {
            (Destination::Udp(address), Via::Direct(_)) => Via::Direct(address),
            (Destination::PeerRelay(relay), Via::PeerRelay(_)) => Via::PeerRelay(relay),
            (Destination::Relay { region, .. }, Via::Relay(_)) => Via::Relay(region),
            (Destination::Udp(_) | Destination::PeerRelay(_) | Destination::Relay { .. }, _) => return,
        };
        let latency = now.saturating_duration_since(sent.at);
        match pinged {
            Via::Direct(address) => {
                peer.answered(address, sent.socket, latency, now);
                self.learn_mtu(&sent, address, now);
                self.learn_lifetime(&sent, true, now);
            }
            Via::PeerRelay(relay) => self.relay_answered(&sent.peer, relay, latency, now),
            Via::Relay(_) => {}
        }
        self.outbox.timers.remove(&(sent.at + PING_TIMEOUT, Timer::Ping(pong.id)));
        if let Some(id) = self.outbox.pings.answer(&pong.id) {
            self.events.push_back(Event::Pong { id, via: pinged, latency });
            self.forget_asked(&sent.peer, id);
        }
        self.settle(&sent.peer, now);
        self.release_sockets();
        self.publish(&sent.peer);
    }

    /// A peer asks us, over the relay, to ping it at these addresses. Never answered with another call.
    fn handle_call(&mut self, from: &NodeKey, endpoints: &[SocketAddr], now: Instant) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        // A peer that asks and does not name where we believe it to be has probably moved: without this it would be
        // sent to its old address alone for as long as that was trusted.
        if peer.best_address().is_some_and(|best| !endpoints.iter().any(|address| plain(*address) == best)) {
            peer.doubt(from, &mut self.outbox, now);
        }
        self.heed_hint(from, now);
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.candidates.call(endpoints, peer.best_address(), now);
        peer.check_best(now);
        peer.ping_candidates(from, Which::Due, &mut self.outbox, now);
        self.settle(from, now);
        self.publish(from);
    }
}
