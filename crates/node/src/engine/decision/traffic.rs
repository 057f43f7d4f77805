//! What comes in, what goes out, and what the cores decide in between.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use warren_os::{IfIndex, Interface};
use warren_path::{
    Destination, Event as PathEvent, Kind as Measurement, PeerRelay, Report, Transmit as PathTransmit, Via as PathVia,
};
use warren_wg::{Event as TunnelEvent, MessageType, Origin, Transmit};
use warren_wire::control::RegionId;
use warren_wire::datagram::{Class, classify};
use warren_wire::disco;
use warren_wire::geneve::{Header, Protocol};
use warren_wire::key::NodeKey;

use super::measure::{AddressChange, Found, Rebind, WayOut};
use super::ping_error;
use super::tailnet::Tailnet;
use crate::engine::relay_link::{Kind, LinkEvent, News};
use crate::engine::shared::{Datagram, Signal, Stray, ToRelay, Whole};
use crate::engine::{Event, Netcheck, PingError, Pong, Via};

/// How long a ping waits until the server says where the peer is.
const HOLD: Duration = Duration::from_secs(2);
/// Most pings that wait so.
const MAX_HELD: usize = 64;
/// For how long after a handshake another one is not begun at the worker's wish.
const FRESH_SESSION: Duration = Duration::from_secs(1);

/// How often a handshake is begun because packets of a peer came in a session that is not there. They prove nothing: somebody
/// may send such ones in the peer's name.
const STRAY_SPACING: Duration = Duration::from_secs(60);

/// A ping to a peer to which no way is known yet.
pub(super) struct HeldPing {
    peer: NodeKey,
    reply: oneshot::Sender<Result<Pong, PingError>>,
    until: Instant,
}

impl Tailnet {
    // What comes in.

    /// Takes over what the worker saw.
    pub(super) fn handle_signal(&mut self, signal: Signal, now: Instant) {
        match signal {
            Signal::HandshakeWanted(peer) => {
                let Some(known) = self.peers.get(&peer) else { return };
                // The worker may have looked just before a session was there; what waited for it has gone out since.
                let is_fresh = |at: Instant| now.saturating_duration_since(at) < FRESH_SESSION;
                let has_fresh = known.slot.session().is_some()
                    && known.met().and_then(|met| met.last_handshake).is_some_and(is_fresh);
                if has_fresh || self.tunnels.start_handshake(&peer, now).is_err() {
                    known.slot.handshake_failed();
                }
            }
            Signal::Sent(peer) => {
                self.tunnels.note_activity(&peer, now);
                self.paths.handle_activity(&peer, now);
                self.measure.wake(now);
            }
            Signal::Received(peer, via) => {
                self.tunnels.note_activity(&peer, now);
                self.paths.handle_received(&peer, via, now);
            }
            Signal::Confirmed(session) => self.tunnels.confirm(&session, now),
            Signal::Stray(stray) => self.handle_stray(stray, now),
            Signal::InUse(network) => self.routers.wake(&network, now),
            Signal::Answered(peer, number, answerer) => self.routers.handle_answer(number, answerer, peer, now),
            Signal::Unreachable(peer, to) => self.paths.handle_unreachable(&peer, to, now),
            Signal::Rebound => {
                self.ports_changed();
                self.measure.map_port(&self.shared.sockets.load());
                self.paths.handle_rebind(now);
                self.measure.restart(now);
            }
            // These are not about a tailnet.
            Signal::Vacated(_) | Signal::SocketFailed(_) | Signal::Fatal(_) => {}
        }
        self.drain(now);
    }

    /// Begins a handshake with a peer that sends in a session which this node has lost, by a restart say: it would go on so for
    /// 15 s. What is sent goes to the peer by its path, nothing to where the packet came from.
    fn handle_stray(&mut self, stray: Stray, now: Instant) {
        let peer = match stray {
            Stray::Straight(from) => self.paths.peer_at(from),
            Stray::Relayed(key) => Some(key),
        };
        let Some((key, known)) = peer.and_then(|key| Some((key, self.peers.get_mut(&key)?))) else { return };
        let is_early = |at: Instant| now.saturating_duration_since(at) < STRAY_SPACING;
        // A late packet of an older session.
        if self.tunnels.has_session(&key) || known.met().and_then(|met| met.strayed).is_some_and(is_early) {
            return;
        }
        known.meet().strayed = Some(now);
        tracing::debug!(peer = %key.short(), "the peer uses a session that is not there");
        let _ = self.tunnels.start_handshake(&key, now);
    }

    /// Takes over a datagram that is not data.
    pub(super) fn handle_datagram(&mut self, datagram: &Datagram, now: Instant) {
        let Datagram { socket, from, bytes } = datagram;
        match classify(bytes) {
            Class::Stun => self.measure.netcheck.handle_stun(*from, bytes, now),
            Class::Disco => self.paths.handle_udp_at(*socket, *from, bytes, now),
            Class::WireGuard => self.tunnels.handle_datagram(bytes, Origin::Udp(*from), now),
            Class::GeneveDisco => self.paths.handle_peer_relayed(*from, bytes, now),
            Class::GeneveWireGuard => {
                if let Some((Header { control: false, vni, .. }, bytes)) = Header::decode(bytes) {
                    self.tunnels.handle_datagram(bytes, Origin::PeerRelay { address: *from, vni }, now);
                }
            }
        }
        self.drain(now);
    }

    /// Takes over what a relay connection tells.
    pub(super) fn handle_link(&mut self, event: LinkEvent, now: Instant) {
        let LinkEvent { region, link, news } = event;
        if !self.relays.is_known(region, link) {
            return;
        }
        match news {
            News::Up(relay) => {
                self.relays.handle_up(region, link, relay);
                self.tell_home();
                self.measure.netcheck.handle_relay_frame(region, now);
                self.paths.handle_relay_up(region, now);
            }
            News::Down(reason) => {
                if self.relays.handle_down(region, link, reason, now) {
                    self.measure.want(Measurement::Auto, now);
                }
            }
            News::Alive { has_packet } => {
                if has_packet {
                    self.relays.handle_packets(region, link, now);
                }
                self.measure.netcheck.handle_relay_frame(region, now);
            }
            News::Pong(data) => {
                if let Some(latency) = self.relays.handle_pong(region, link, data, now) {
                    self.measure.netcheck.handle_relay_latency(region, latency, now);
                }
            }
            News::Heard(peer) => {
                if self.peers.contains_key(&peer) {
                    self.relays.handle_heard(region, peer);
                    self.send_initiation_again(&peer, now);
                }
            }
            News::Gone(peer) => self.relays.handle_gone(region, &peer),
            News::Datagram(from, bytes) => self.handle_relayed(region, from, &bytes, now),
            News::Health(text) => self.relays.handle_health(region, link, text),
        }
        self.drain(now);
    }

    fn handle_relayed(&mut self, region: RegionId, from: NodeKey, bytes: &[u8], now: Instant) {
        match classify(bytes) {
            Class::Disco => {
                // With another key than the server told, the peer has restarted, and the news of that are still to come.
                if self.paths.disco_key_of(&from).is_some_and(|known| disco::peek(bytes) != Some(known)) {
                    self.tunnels.doubt_session(&from, now);
                }
                self.paths.handle_relayed(region, &from, bytes, now);
            }
            Class::WireGuard => {
                self.tunnels.handle_datagram(bytes, Origin::Relay { region: region.0, peer: from }, now);
            }
            Class::Stun | Class::GeneveDisco | Class::GeneveWireGuard => {}
        }
    }

    /// Takes over what a measurement's task found.
    pub(super) fn handle_found(&mut self, found: Found, now: Instant) {
        match found {
            Found::ForRelay(found) => self.peer_relays.handle_found(found, now),
            Found::Server { .. } | Found::RelayLatency(..) | Found::Portal(_) | Found::Mapping(_) => {
                self.measure.handle_found(found, &self.shared.sockets.load(), now);
            }
        }
        self.drain(now);
    }

    /// Takes over the machine's interfaces; tells whether the sockets must be opened anew, and how.
    pub(super) fn handle_interfaces(
        &mut self,
        interfaces: &[Interface],
        gateway: Option<Ipv4Addr>,
        own_tun: IfIndex,
        now: Instant,
    ) -> Rebind {
        let change = self.measure.set_interfaces(interfaces, own_tun);
        let way_out = self.measure.set_gateway(gateway, interfaces);
        self.measure.map_port(&self.shared.sockets.load());
        match change {
            AddressChange::None if way_out == WayOut::Same => {}
            // What was begun before there was a way out has failed, or will.
            AddressChange::None | AddressChange::Gained => {
                self.peer_relays.handle_link_change(now);
                self.relays.retry(now);
                self.paths.handle_link_gained(now);
                self.measure.restart(now);
            }
            AddressChange::Lost => {
                self.peer_relays.handle_link_change(now);
                self.relays.reconnect(now);
                self.paths.handle_rebind(now);
                self.measure.restart(now);
            }
        }
        self.drain(now);
        match (way_out, change) {
            // To the NAT we are another host, and it may hold our port for the one that we were before: then it gives us
            // other ports, for each peer a different one.
            (WayOut::OtherAddress, _) => Rebind::OtherPort,
            (_, AddressChange::Lost) => Rebind::SamePort,
            (_, AddressChange::None | AddressChange::Gained) => Rebind::No,
        }
    }

    /// Acts on every deadline at or before `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.tunnels.handle_timeout(now);
        self.drain(now);
        self.paths.handle_timeout(now);
        self.drain(now);
        self.look_at_routers(now);
        let resting = self.peers.is_empty() || !self.paths.in_use();
        self.measure.handle_timeout(resting, now);
        self.peer_relays.handle_timeout(self.measure.families(), now);
        self.relays.handle_timeout(now);
        for held in self.held_pings.extract_if(.., |held| held.until <= now) {
            let _ = held.reply.send(Err(PingError::NoPath));
        }
        self.drain(now);
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let all = [
            self.tunnels.poll_timeout(),
            self.paths.poll_timeout(),
            self.routers.poll_timeout(),
            self.measure.poll_timeout(),
            self.peer_relays.poll_timeout(),
            self.relays.poll_timeout(),
            self.held_pings.iter().map(|held| held.until).min(),
        ];
        all.into_iter().flatten().min()
    }

    // What people ask.

    /// Pings a peer and answers when the pong or nothing has come.
    pub(super) fn ping(&mut self, peer: NodeKey, reply: oneshot::Sender<Result<Pong, PingError>>, now: Instant) {
        match self.paths.ping(&peer, now) {
            Ok(id) => drop(self.pings.insert(id, reply)),
            Err(error) => {
                let error = ping_error(error);
                // The server tells of a peer first, and of the ways to it some 50 ms later.
                if error == PingError::NoPath && self.held_pings.len() < MAX_HELD {
                    self.held_pings.push(HeldPing { peer, reply, until: now + HOLD });
                } else {
                    let _ = reply.send(Err(error));
                }
            }
        }
        self.drain(now);
    }

    /// Tries again what was asked before the server said where the peer is.
    pub(super) fn try_held_pings(&mut self, peer: &NodeKey, now: Instant) {
        for held in self.held_pings.extract_if(.., |held| held.peer == *peer).collect::<Vec<_>>() {
            match self.paths.ping(peer, now) {
                Ok(id) => drop(self.pings.insert(id, held.reply)),
                Err(_) => self.held_pings.push(held),
            }
        }
    }

    /// Measures the network and answers with the report.
    pub(super) fn netcheck(&mut self, reply: oneshot::Sender<Netcheck>, now: Instant) {
        self.measure.wait(reply, now);
        self.handle_timeout(now);
    }

    // What goes out.

    /// Does all that the cores want done. Called after each input to one of them.
    pub(super) fn drain(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.tunnels.poll_transmit() {
                quiet = false;
                self.send_wireguard(transmit, now);
            }
            while let Some(event) = self.tunnels.poll_event() {
                quiet = false;
                self.handle_tunnel_event(event, now);
            }
            while let Some(transmit) = self.paths.poll_transmit() {
                quiet = false;
                self.send_disco(transmit, now);
            }
            while let Some(event) = self.paths.poll_event() {
                quiet = false;
                self.handle_path_event(event, now);
            }
            self.drain_routers();
            let secret = Arc::clone(&self.local().secret);
            self.measure.drain(&self.shared.sockets.load(), &mut self.relays, &secret, now);
            self.peer_relays.drain(now);
            while let Some(report) = self.measure.take_report(&self.relays, now) {
                quiet = false;
                self.handle_report(&report, now);
            }
            if quiet {
                return;
            }
        }
    }

    fn handle_tunnel_event(&mut self, event: TunnelEvent, now: Instant) {
        match event {
            TunnelEvent::Ready { peer, session } => {
                let Some(known) = self.peers.get_mut(&peer) else { return };
                known.slot.set_session(Some(session));
                let met = known.meet();
                met.last_handshake = Some(now);
                met.initiation = None;
                let had_session = std::mem::replace(&mut met.has_session, true);
                tracing::debug!(peer = %peer.short(), "session");
                self.sessions += usize::from(!had_session);
                self.shared.ask(&self.shared.requests.flush);
            }
            TunnelEvent::Closed { peer } => {
                let Some(known) = self.peers.get_mut(&peer) else { return };
                known.slot.set_session(None);
                tracing::debug!(peer = %peer.short(), "session ended");
                self.sessions -= usize::from(std::mem::take(&mut known.meet().has_session));
            }
            TunnelEvent::Failed { peer } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.slot.handshake_failed();
                    known.meet().initiation = None;
                }
            }
        }
    }

    fn handle_path_event(&mut self, event: PathEvent, now: Instant) {
        match event {
            PathEvent::Path { peer, path } => {
                if let Some(known) = self.peers.get(&peer) {
                    let old = **known.slot.path();
                    let is_new = path.direct.is_some() && old.direct.is_none()
                        || path.peer_relay.is_some() && old.peer_relay.is_none();
                    known.slot.set_path(path);
                    if is_new {
                        tracing::debug!(peer = %peer.short(), ?path, "new path");
                        self.send_initiation_again(&peer, now);
                    }
                }
            }
            PathEvent::Sockets { wanted } => {
                let extras = self.shared.extras.load().renew(&wanted);
                tracing::debug!(count = wanted.len(), "extra UDP sockets");
                self.shared.extras.store(Arc::new(extras));
                self.shared.waker.wake();
                self.paths.handle_sockets(now);
            }
            PathEvent::AllocationWanted(wanted) => self.allocate(&wanted, now),
            PathEvent::EndpointsWanted => self.measure.want(Measurement::Auto, now),
            PathEvent::Pong { id, via, latency } => {
                let via = match via {
                    PathVia::Direct(address) => Via::Direct(address),
                    PathVia::PeerRelay(relay) => Via::PeerRelay(relay),
                    PathVia::Relay(region) => Via::Relay(region),
                };
                self.answer_ping(id, Ok(Pong { latency, via }));
            }
            PathEvent::PingTimeout { id } => self.answer_ping(id, Err(PingError::Timeout)),
        }
    }

    fn answer_ping(&mut self, id: warren_path::PingId, answer: Result<Pong, PingError>) {
        if let Some(reply) = self.pings.remove(&id) {
            // Whoever asked may be gone.
            let _ = reply.send(answer);
        }
    }

    /// Acts on what a measurement found.
    fn handle_report(&mut self, report: &Report, now: Instant) {
        if let Some(home) = report.home {
            self.relays.set_home(home, now);
        }
        self.paths.set_own_nat(self.measure.nat(report));
        let endpoints = self.measure.endpoints(&self.shared.sockets.load());
        let addresses = endpoints.iter().map(|endpoint| endpoint.address).collect();
        self.paths.set_own_endpoints(addresses, self.measure.started().unwrap_or(now), now);
        self.news.push(Event::Endpoints(endpoints));
        let told = self.net_info.preferred_derp;
        self.net_info = report.net_info();
        self.net_info.preferred_derp = told;
        self.measure.add_mapping(&mut self.net_info);
        self.news.push(Event::NetInfo(Box::new(self.net_info.clone())));
        self.tell_home();
    }

    /// Tells the server of the home, once it can be reached: peers that hear of it sooner send into the void.
    fn tell_home(&mut self) {
        if let Some(home) = self.relays.home().filter(|home| self.relays.is_up(*home))
            && home != self.net_info.preferred_derp
        {
            self.net_info.preferred_derp = home;
            self.news.push(Event::NetInfo(Box::new(self.net_info.clone())));
        }
    }

    /// Sends a handshake message or keep-alive.
    fn send_wireguard(&mut self, transmit: Transmit, now: Instant) {
        let Transmit { peer, origin, bytes } = transmit;
        let Some(key) = peer.filter(|peer| self.peers.contains_key(peer)) else {
            self.send_back(origin, bytes, now);
            return;
        };
        // Whatever WireGuard sends keeps the path alive. Source: paths.md 5.5.
        self.paths.handle_activity(&key, now);
        if let Some(known) = self.peers.get_mut(&key)
            && MessageType::of(&bytes) == Some(MessageType::Initiation)
        {
            known.meet().initiation = Some(bytes.clone());
        }
        self.send_to_peer(key, origin, bytes, now);
    }

    /// Sends the message that began a handshake again, if that is under way.
    pub(super) fn send_initiation_again(&mut self, key: &NodeKey, now: Instant) {
        if let Some(bytes) = self.peers.get(key).and_then(|known| known.met()?.initiation.clone()) {
            self.send_to_peer(*key, None, bytes, now);
        }
    }

    /// Sends a message by the peer's path. An answer goes back to where it was asked for, too, unless that is the path:
    /// whoever asked us straight may have lost the relay by which we would answer, and the next attempt is seconds away.
    fn send_to_peer(&mut self, key: NodeKey, origin: Option<Origin>, bytes: Vec<u8>, now: Instant) {
        let Some(known) = self.peers.get_mut(&key) else { return };
        if let Some(Origin::Udp(address)) = origin {
            known.meet().shook_hands_at = Some(address);
        }
        let home = known.home;
        let path = **known.slot.path();
        if let Some(direct) = path.direct {
            self.shared.send(direct.socket, direct.address, &bytes);
            if now <= direct.trusted_until {
                return;
            }
        }
        if let Some(relayed) = path.peer_relay {
            self.shared.send(0, relayed.to.address, &relayed.to.header(Protocol::WireGuard).wrap(&bytes));
            if now <= relayed.trusted_until {
                return;
            }
        }
        if let Some(second) = path.second {
            self.shared.send(0, second, &bytes);
        }
        if let Some(Origin::Udp(address)) = origin
            && path.direct.is_none_or(|direct| direct.address != address)
        {
            let _ = self.shared.sockets.load().send(address, &bytes);
        }
        match self.relays.way_to(&key, home) {
            Some(region) => {
                let is_data = MessageType::of(&bytes) == Some(MessageType::Transport);
                let kind = if is_data { Kind::Data } else { Kind::Urgent };
                self.relays.send(region, kind, key, bytes, now);
            }
            None if path.direct.is_none() => {
                self.send_back(origin.filter(|origin| !matches!(origin, Origin::Udp(_))), bytes, now);
            }
            None => {}
        }
    }

    /// Answers where a message came from.
    fn send_back(&mut self, origin: Option<Origin>, bytes: Vec<u8>, now: Instant) {
        match origin {
            Some(Origin::Udp(address)) => {
                let _ = self.shared.sockets.load().send(address, &bytes);
            }
            Some(Origin::PeerRelay { address, vni }) => {
                let header = PeerRelay { address, vni }.header(Protocol::WireGuard);
                let _ = self.shared.sockets.load().send(address, &header.wrap(&bytes));
            }
            Some(Origin::Relay { region, peer }) => {
                self.relays.send(RegionId(region), Kind::Urgent, peer, bytes, now);
            }
            None => {}
        }
    }

    fn send_disco(&mut self, transmit: PathTransmit, now: Instant) {
        let PathTransmit { to, socket, bytes, whole } = transmit;
        match to {
            Destination::Udp(to) if whole => self.shared.send_whole(Whole { socket, to, bytes }),
            Destination::Udp(address) | Destination::PeerRelay(PeerRelay { address, .. }) => {
                self.shared.send(socket, address, &bytes);
            }
            Destination::Relay { region, peer } => {
                let region = self.relays.way_to(&peer, Some(region)).unwrap_or(region);
                self.relays.send(region, Kind::Urgent, peer, bytes, now);
            }
        }
    }

    /// Sends a packet of the worker over a relay.
    pub(super) fn relay(&mut self, packet: ToRelay, now: Instant) {
        let ToRelay { peer, bytes } = packet;
        let Some(known) = self.peers.get(&peer) else { return };
        let home = known.home;
        let region = self.relays.way_to(&peer, home);
        // Without a relay the peer has found us before the server told where it is, or the relay is gone.
        let address = match known.slot.path().direct {
            _ if region.is_some_and(|region| self.relays.is_up(region)) => None,
            // Proved while the packet was on its way here.
            Some(direct) if now <= direct.trusted_until => Some(direct.address),
            // The worker has sent it there already.
            Some(_) => None,
            None => known.met().and_then(|met| met.shook_hands_at),
        };
        if let Some(address) = address {
            let _ = self.shared.sockets.load().send(address, &bytes);
        }
        if let Some(region) = region {
            self.relays.approach(home, now);
            self.relays.send(region, Kind::Data, peer, bytes, now);
        }
    }
}

#[cfg(test)]
mod tests;
