//! The relay that this node is for its peers: a UDP port and a thread of its own.
//!
//! [`PeerRelayServer`] decides; this moves the datagrams. Its lock is held for one batch of datagrams by the thread, and for one
//! allocation by the decision task: neither waits longer than that for the other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use warren_os::{Offload, Outgoing, RecvBatch, UdpSocket, Waker, Watched, poll};
use warren_path::{Allocation, PeerRelayServer, Verdict};
use warren_wire::disco::RelayEndpoint;
use warren_wire::key::{DiscoSecret, NodeKey};
use warren_wire::stun::{self, TransactionId};

use super::shared::Sockets;

/// Most STUN servers whose answers are waited for.
const MAX_ASKED: usize = 64;

/// Takes what a STUN server answered to the relay's port; called by its thread.
pub(super) type OnAnswer = Box<dyn Fn(Vec<u8>) + Send>;

/// A relay at work. Dropping it ends the thread and closes the port.
pub(super) struct PeerRelayThread {
    inside: Arc<Inside>,
    ports: [u16; 2],
}

struct Inside {
    server: Mutex<PeerRelayServer>,
    sockets: Sockets,
    /// STUN requests that are not answered yet: nothing else is taken for an answer, however much of it comes.
    asked: Mutex<BTreeSet<TransactionId>>,
    waker: Waker,
    stop: AtomicBool,
}

impl PeerRelayThread {
    /// Opens a UDP port, any if it is 0, and starts to serve.
    ///
    /// # Errors
    /// Says in words what the system refuses; the port may be taken.
    pub(super) fn start(port: u16, on_answer: OnAnswer, now: Instant) -> Result<Self, String> {
        let sockets =
            Sockets::bind(port, Offload::Probe).map_err(|error| format!("no UDP port for the peer relay: {error}"))?;
        let ports = [&sockets.v4, &sockets.v6].map(|socket| socket.as_ref().map_or(0, UdpSocket::port));
        if port != 0 && ports.iter().any(|bound| ![0, port].contains(bound)) {
            return Err(format!("UDP port {port} for the peer relay is in use; choose another"));
        }
        let no_randomness = |error| format!("the system gives no randomness for the peer relay: {error}");
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(no_randomness)?;
        let secret = DiscoSecret::generate().map_err(no_randomness)?;
        let waker = Waker::new().map_err(|error| format!("no event descriptor for the peer relay: {error}"))?;
        let server = Mutex::new(PeerRelayServer::new(secret, seed, now));
        let (asked, stop) = (Mutex::default(), AtomicBool::new(false));
        let inside = Arc::new(Inside { server, sockets, asked, waker, stop });
        let thread = Arc::clone(&inside);
        std::thread::Builder::new()
            .name("peer-relay".into())
            .spawn(move || thread.run(&on_answer))
            .map_err(|error| format!("no thread for the peer relay: {error}"))?;
        tracing::info!(?ports, "relaying for peers");
        Ok(Self { inside, ports })
    }

    /// The UDP ports for IPv4 and IPv6; 0 without that family.
    pub(super) fn ports(&self) -> [u16; 2] {
        self.ports
    }

    /// Asks a STUN server how it sees the relay's port.
    pub(super) fn ask(&self, server: SocketAddr, request: &[u8]) {
        let Ok(id) = stun::parse_request(request) else { return };
        let mut asked = self.inside.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= MAX_ASKED {
            asked.pop_first();
        }
        asked.insert(id);
        drop(asked);
        let _ = self.inside.sockets.send(server, request);
    }

    /// Makes an endpoint at these addresses; `None` if it cannot be.
    pub(super) fn allocate(
        &self,
        asked_by: &NodeKey,
        wanted: &Allocation,
        addresses: &[SocketAddr],
        now: Instant,
    ) -> Option<RelayEndpoint> {
        let result = self.inside.lock().allocate(asked_by, wanted.clients, addresses, now);
        // The thread sleeps as long as the relay had nothing to do.
        self.inside.waker.wake();
        match result {
            Ok(endpoint) => {
                tracing::debug!(peer = %asked_by.short(), vni = endpoint.vni, "endpoint of the peer relay");
                Some(endpoint)
            }
            Err(error) => {
                tracing::debug!(peer = %asked_by.short(), %error, "no endpoint of the peer relay");
                None
            }
        }
    }
}

impl Drop for PeerRelayThread {
    fn drop(&mut self) {
        self.inside.stop.store(true, Ordering::Release);
        self.inside.waker.wake();
    }
}

impl Inside {
    fn lock(&self) -> std::sync::MutexGuard<'_, PeerRelayServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, on_answer: &OnAnswer) {
        let sockets = &self.sockets;
        let mut received = RecvBatch::new();
        loop {
            let timeout = self.lock().poll_timeout().map(|at| at.saturating_duration_since(now()));
            let watched = [
                Some(Watched::readable(&self.waker)),
                sockets.v4.as_ref().map(Watched::readable),
                sockets.v6.as_ref().map(Watched::readable),
            ];
            let [woken, v4, v6] = match poll(watched, timeout) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::warn!(%error, "the peer relay cannot wait for packets and ends");
                    return;
                }
            };
            if woken.readable {
                self.waker.clear();
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
            }
            let now = now();
            self.lock().handle_timeout(now);
            for (ready, socket) in [(v4, &sockets.v4), (v6, &sockets.v6)] {
                if let Some(socket) = socket
                    && (ready.readable || ready.failed)
                    // An error that waits was about a datagram that is gone.
                    && socket.recv_batch(&mut received).is_ok()
                {
                    self.pass_on(on_answer, &mut received, now);
                }
            }
        }
    }

    /// Passes on a batch, a system call for each run of datagrams of one family.
    fn pass_on(&self, on_answer: &OnAnswer, received: &mut RecvBatch, now: Instant) {
        let sockets = &self.sockets;
        for datagram in received.datagrams().filter(|datagram| stun::is_stun(datagram.bytes)) {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if stun::parse_response(datagram.bytes).is_ok_and(|(id, _)| asked.remove(&id)) {
                on_answer(datagram.bytes.to_vec());
            }
        }
        let mut answers = Vec::new();
        let mut forwarded = Vec::new();
        {
            let mut server = self.lock();
            for datagram in received.datagrams() {
                match server.handle(datagram.from, datagram.bytes, now) {
                    Verdict::Drop => {}
                    Verdict::Forward(to) => forwarded.push(Outgoing { to, bytes: datagram.bytes }),
                    Verdict::Answer(bytes) => answers.push((datagram.from, bytes)),
                }
            }
        }
        for (to, bytes) in answers {
            let _ = sockets.send(to, &bytes);
        }
        for run in forwarded.chunk_by(|one, next| one.to.is_ipv4() == next.to.is_ipv4()) {
            if let Some(socket) = run.first().and_then(|first| sockets.towards(first.to)) {
                // What the kernel does not take is lost, as on any other way.
                let _ = socket.send_batch(run);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread is a shell: this is where it reads the clock")]
fn now() -> Instant {
    Instant::now()
}
