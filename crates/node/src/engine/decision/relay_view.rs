//! How the UDP port of this node's peer relay looks from outside: STUN from that very port.
//!
//! A NAT gives each port of ours one of its own, and forgets it when it is silent. So the servers are asked all the time while
//! this node relays, though the answer be the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;
use warren_path::{Families, Kind, Netcheck, RelayAddress};
use warren_wire::control::DerpMap;

use super::measure::{Found, PERIOD_MILLIS};
use crate::engine::names::{Names, look_up};
use crate::engine::peer_relay::PeerRelayThread;

/// How soon it is tried again while this machine has no address.
const NO_ADDRESS: Duration = Duration::from_secs(1);

/// What came for it.
#[derive(Debug)]
pub(super) enum RelayFound {
    /// The address of a STUN server, and what to send there.
    Server { host: Arc<str>, v6: bool, address: SocketAddr, bytes: Vec<u8> },
    /// What a STUN server answered.
    Answer(Vec<u8>),
}

/// Asks STUN servers from the port of a peer relay.
pub(super) struct RelayView {
    netcheck: Netcheck,
    names: Names,
    found: mpsc::Sender<Found>,
    rng: StdRng,
    /// When to ask again, while there is a relay and nobody is being asked.
    due: Option<Instant>,
    seen: Vec<SocketAddr>,
}

impl RelayView {
    pub(super) fn new(seed: [u8; 32], found: mpsc::Sender<Found>) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let netcheck = Netcheck::new(rng.random());
        Self { netcheck, names: Names::default(), found, rng, due: None, seen: Vec::new() }
    }

    /// Returns the addresses that servers see, as of the last time.
    pub(super) fn seen(&self) -> &[SocketAddr] {
        &self.seen
    }

    /// Takes over the relay map.
    pub(super) fn set_map(&mut self, map: &DerpMap, now: Instant) {
        let was_running = self.netcheck.is_running();
        self.netcheck.set_map(map);
        if was_running || self.due.is_some() {
            self.due = Some(now);
        }
    }

    /// Begins, or begins anew because the network has changed.
    pub(super) fn begin(&mut self, now: Instant) {
        self.end();
        self.due = Some(now);
    }

    /// Ends: there is no relay any more.
    pub(super) fn end(&mut self) {
        self.netcheck.cancel();
        self.seen.clear();
        self.due = None;
    }

    /// Acts on every deadline at or before `now`.
    pub(super) fn handle_timeout(&mut self, families: Families, now: Instant) {
        self.netcheck.handle_timeout(now);
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        if families == Families::default() {
            self.due = Some(now + NO_ADDRESS);
            return;
        }
        self.due = None;
        self.netcheck.start(Kind::Auto, families, now);
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.netcheck.poll_timeout()).min()
    }

    /// Sends what is to be sent from the relay's port, and takes the report.
    pub(super) fn drain(&mut self, relay: &PeerRelayThread, now: Instant) {
        while let Some(probe) = self.netcheck.poll_transmit() {
            match probe.server {
                RelayAddress::Literal(address) => relay.ask(address, &probe.bytes),
                RelayAddress::Name { host, port, v6 } => match self.names.get(&host, v6, now) {
                    Some(ip) => relay.ask(SocketAddr::new(ip, port), &probe.bytes),
                    None => self.look_up(host, port, v6, probe.bytes),
                },
            }
        }
        // What else a measurement looks at is the main one's business.
        while self.netcheck.poll_relay_request().is_some() || self.netcheck.poll_portal_probe().is_some() {}
        if let Some(report) = self.netcheck.poll_report() {
            if self.seen != report.advertised {
                tracing::debug!(addresses = ?report.advertised, "the peer relay's port as seen from outside");
            }
            self.seen.clone_from(&report.advertised);
            self.due = Some(now + Duration::from_millis(self.rng.random_range(PERIOD_MILLIS)));
        }
    }

    fn look_up(&self, host: Arc<str>, port: u16, v6: bool, bytes: Vec<u8>) {
        let found = self.found.clone();
        tokio::spawn(async move {
            if let Some(address) = look_up(&host, port, v6).await {
                let _ = found.send(Found::ForRelay(RelayFound::Server { host, v6, address, bytes })).await;
            }
        });
    }

    /// Takes over what came for it.
    pub(super) fn handle_found(&mut self, found: RelayFound, relay: &PeerRelayThread, now: Instant) {
        match found {
            RelayFound::Server { host, v6, address, bytes } => {
                self.names.insert(host, v6, address.ip(), now);
                relay.ask(address, &bytes);
            }
            RelayFound::Answer(bytes) => {
                // Where it came from does not matter.
                self.netcheck.handle_stun(SocketAddr::from(([0, 0, 0, 0], 0)), &bytes, now);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "real sockets need the real clock")]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use warren_wire::control::{DerpNode, DerpRegion, RegionId};
    use warren_wire::stun;

    /// A STUN server on this machine says what it sees; what nobody asked for is not believed.
    #[tokio::test]
    async fn the_relays_own_port_is_what_servers_are_asked_about() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let node = DerpNode {
            name: "1a".into(),
            ipv4: "127.0.0.1".into(),
            ipv6: "none".into(),
            stun_port: server.local_addr().unwrap().port().into(),
            ..DerpNode::default()
        };
        let region = DerpRegion { nodes: vec![node], ..DerpRegion::default() };
        let map = DerpMap { regions: Some([(RegionId(1), region)].into()), ..DerpMap::default() };
        let (found, mut came) = mpsc::channel(8);
        let answers = found.clone();
        let on_answer = move |bytes| drop(answers.try_send(Found::ForRelay(RelayFound::Answer(bytes))));
        let relay = PeerRelayThread::start(0, Box::new(on_answer), Instant::now()).unwrap();
        let mut view = RelayView::new([1; 32], found);
        view.set_map(&map, Instant::now());
        assert_eq!(view.poll_timeout(), None, "nothing is asked while there is no relay");
        let families = Families { v4: true, v6: false };
        view.begin(Instant::now());
        view.handle_timeout(Families::default(), Instant::now());
        assert!(view.poll_timeout().is_some(), "it is tried again when there is an address");
        view.begin(Instant::now());
        view.handle_timeout(families, Instant::now());
        view.drain(&relay, Instant::now());
        let mut bytes = [0; 100];
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(from.port(), relay.ports()[0]);
        let id = stun::parse_request(&bytes[..length]).unwrap();
        let outside: SocketAddr = "198.51.100.9:4711".parse().unwrap();
        server.send_to(&stun::response(&[7; 12], "198.51.100.66:1".parse().unwrap()), from).unwrap();
        server.send_to(&stun::response(&id, outside), from).unwrap();
        let Some(Found::ForRelay(answer)) = came.recv().await else { panic!("something else came") };
        view.handle_found(answer, &relay, Instant::now());
        let late = Instant::now() + Duration::from_secs(6);
        view.handle_timeout(families, late);
        view.drain(&relay, late);
        assert_eq!(view.seen(), [outside]);
        assert!(view.poll_timeout().is_some_and(|at| at > late), "and again, so that the NAT does not forget");
        view.end();
        assert_eq!((view.seen(), view.poll_timeout()), (&[][..], None));
    }
}
