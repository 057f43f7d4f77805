//! What peers open to this node's own addresses goes to the same port of 127.0.0.1 or `::1`.
//!
//! Source: node.md, section 22.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::line::loopback;
use super::network::{Network, Stream};
use super::stack::{Event, Flow, Holder};
use super::{datagram, proxy};

/// How long a program of this machine may take to take a connection.
const CONNECTING: Duration = Duration::from_secs(10);
/// Flows of datagrams at a time; the datagrams of others are lost.
const MAX_FLOWS: usize = 256;
/// The same of one peer.
const MAX_FLOWS_OF_PEER: usize = 128;
/// Datagrams of a flow that may wait for its program.
const QUEUE: usize = 64;
/// How long a flow of datagrams may rest, in general and for DNS. Source: node.md, section 22.
const IDLE: [Duration; 2] = [Duration::from_secs(120), Duration::from_secs(30)];
/// Longest datagram of a program.
const DATAGRAM_MAX: usize = 9000;

/// Connects peers with programs of this machine.
pub(super) struct Inbound {
    network: Network,
    flows: BTreeMap<Flow, (Holder, mpsc::Sender<Vec<u8>>)>,
    /// Packets for the stack to send.
    replies: mpsc::Sender<Vec<u8>>,
    mtu: usize,
}

impl Inbound {
    pub(super) fn new(network: Network, replies: mpsc::Sender<Vec<u8>>, mtu: usize) -> Self {
        Self { network, flows: BTreeMap::new(), replies, mtu }
    }

    /// Acts on what a peer did; must be called within a runtime.
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Asked(flow) => {
                let network = self.network.clone();
                match network.listener(flow.own.port()) {
                    // Who does not keep up gets no more.
                    Some(listener) => match listener.try_reserve() {
                        Ok(place) => drop(network.accept(flow).map(|stream| place.send(stream))),
                        Err(_) => network.refuse(flow),
                    },
                    None if network.leads_to_program(flow.own.port()) => drop(tokio::spawn(connect(network, flow))),
                    None => network.refuse(flow),
                }
            }
            Event::Datagram(flow, bytes) => match self.network.take_answer(&flow, bytes) {
                Some(bytes) if self.network.leads_to_program(flow.own.port()) => self.pass_on(flow, bytes),
                Some(_) | None => {}
            },
        }
    }

    fn pass_on(&mut self, flow: Flow, bytes: Vec<u8>) {
        let known = self.flows.get(&flow).filter(|(_, sender)| !sender.is_closed());
        if let Some((_, sender)) = known {
            // A full queue loses the newest.
            let _ = sender.try_send(bytes);
            return;
        }
        let holder = self.network.holder(flow.peer.ip());
        let held = |flows: &BTreeMap<Flow, (Holder, _)>| flows.values().filter(|(other, _)| *other == holder).count();
        if self.flows.len() >= MAX_FLOWS || held(&self.flows) >= MAX_FLOWS_OF_PEER {
            self.flows.retain(|_, (_, sender)| !sender.is_closed());
        }
        if self.flows.len() >= MAX_FLOWS || held(&self.flows) >= MAX_FLOWS_OF_PEER {
            return;
        }
        let (sender, datagrams) = mpsc::channel(QUEUE);
        let _ = sender.try_send(bytes);
        self.flows.insert(flow, (holder, sender));
        let (replies, mtu) = (self.replies.clone(), self.mtu);
        tokio::spawn(async move {
            if let Err(error) = exchange(flow, datagrams, &replies, mtu).await {
                tracing::debug!(%error, port = flow.own.port(), "datagrams of a peer reach no program");
            }
        });
    }
}

/// Connects a peer that asked with the program on that port.
async fn connect(network: Network, flow: Flow) {
    let to = SocketAddr::new(loopback(flow.own.ip()), flow.own.port());
    match timeout(CONNECTING, TcpStream::connect(to)).await {
        Ok(Ok(program)) => {
            let _ = program.set_nodelay(true);
            if let Some(peer) = network.accept(flow) {
                relay(peer, program).await;
            }
        }
        // Nobody is there, for the peer as for programs of this machine.
        Ok(Err(_)) | Err(_) => network.refuse(flow),
    }
}

/// Carries bytes both ways until both ends are done; breaks the peer's off if the other fails.
async fn relay(mut peer: Stream, mut program: TcpStream) {
    if proxy::carry(&mut peer, &mut program).await.is_err() {
        peer.abort();
    }
}

/// Carries the datagrams of a flow until it rests.
async fn exchange(
    flow: Flow,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    replies: &mpsc::Sender<Vec<u8>>,
    mtu: usize,
) -> std::io::Result<()> {
    let local = loopback(flow.own.ip());
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect((local, flow.own.port())).await?;
    let [usual, short] = IDLE;
    let idle = if flow.own.port() == 53 { short } else { usual };
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let moved = timeout(idle, async {
            tokio::select! {
                bytes = datagrams.recv() => match bytes {
                    Some(bytes) => {
                        // Errors are those of a program that is not there yet.
                        let _ = socket.send(&bytes).await;
                        true
                    }
                    None => false,
                },
                received = socket.recv(&mut buffer) => {
                    if let Ok(length) = received {
                        let payload = buffer.get(..length).unwrap_or_default();
                        if let Some(packet) = datagram::packet(flow.own, flow.peer, payload, mtu) {
                            // A full queue loses the newest.
                            let _ = replies.try_send(packet);
                        }
                    }
                    true
                }
            }
        });
        if !matches!(moved.await, Ok(true)) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use warren_wire::key::NodeKey;

    use super::*;

    /// Each flow is a socket here, before a program has said a word.
    #[tokio::test]
    async fn no_peer_takes_all_flows_of_datagrams() {
        let own: IpAddr = [100, 64, 0, 1].into();
        let (four, six): (IpAddr, IpAddr) = ([100, 64, 0, 2].into(), [0xfd7a, 0, 0, 0, 0, 0, 0, 2].into());
        let network = Network::new(1280, [1; 32]);
        network
            .tell_apart(Arc::new(move |address| [four, six].contains(&address).then(|| NodeKey::from_bytes([2; 32]))));
        // Of a program that is there, so that no flow ends.
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = program.local_addr().unwrap().port();
        let (replies, _kept) = mpsc::channel(1);
        let mut inbound = Inbound::new(network, replies, 1280);
        for number in 0..200 {
            for peer in [four, six] {
                let flow = Flow { own: (own, port).into(), peer: (peer, 1000 + number).into() };
                inbound.handle(Event::Datagram(flow, b"x".to_vec()));
            }
        }
        assert_eq!(inbound.flows.len(), MAX_FLOWS_OF_PEER);
        let other = Flow { own: (own, port).into(), peer: (IpAddr::from([100, 64, 0, 3]), 1000).into() };
        inbound.handle(Event::Datagram(other, b"x".to_vec()));
        assert!(inbound.flows.contains_key(&other), "others have their share");
    }
}
