//! The task that asks the gateway to let the node's UDP port be reached from outside, on a socket of its own.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use warren_path::{MapRequest, MapServices, MapTarget, PortMapper};

/// Longest datagram that is read: those of PCP have at most 1,100 bytes (RFC 6887, section 7), answers to a search one
/// packet.
const MESSAGE_MAX: usize = 1500;
/// Longest HTTP response that is read.
const RESPONSE_MAX: u64 = 64 * 1024;
/// How long an HTTP request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last one may take, when the node ends.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// What is known of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PortMapping {
    /// Where the node's UDP port can be reached from outside.
    pub(super) outside: Option<SocketAddrV4>,
    /// What the gateway answered in.
    pub(super) services: MapServices,
}

/// Keeps a port mapping; dropping it gives the mapping back.
#[derive(Debug)]
pub(super) struct Gateway {
    wish: watch::Sender<Wish>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Wish {
    target: Option<MapTarget>,
    /// Goes up when the gateway should be looked at again.
    checks: u64,
}

impl Gateway {
    /// Starts the task, which tells every change on `events`; it asks nobody before it has a target. `seed` must be
    /// fresh randomness.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub(super) fn start<E, F>(seed: [u8; 32], events: mpsc::Sender<E>, event: F) -> Self
    where
        E: Send + 'static,
        F: Fn(PortMapping) -> E + Send + 'static,
    {
        let (wish, wishes) = watch::channel(Wish::default());
        tokio::spawn(run(PortMapper::new(seed), wishes, events, event));
        Self { wish }
    }

    /// Takes over where the gateway is and which port is to be mapped.
    pub(super) fn set_target(&self, target: Option<MapTarget>) {
        self.wish.send_if_modified(|wish| std::mem::replace(&mut wish.target, target) != target);
    }

    /// Asks whether the mapping is still there, and again for one if the gateway did not answer.
    pub(super) fn check(&self) {
        self.wish.send_modify(|wish| wish.checks = wish.checks.wrapping_add(1));
    }
}

async fn run<E, F>(mut mapper: PortMapper, mut wishes: watch::Receiver<Wish>, events: mpsc::Sender<E>, event: F)
where
    F: Fn(PortMapping) -> E,
{
    let mut socket: Option<UdpSocket> = None;
    let mut target = None;
    let mut told = PortMapping::default();
    let mut buffer = [0; MESSAGE_MAX];
    let mut request: Option<Fetch> = None;
    loop {
        if request.is_none() {
            request = mapper.poll_request().map(|request| Box::pin(fetch(request, REQUEST_TIMEOUT)) as Fetch);
        }
        send(&mut mapper, socket.as_ref()).await;
        let found = PortMapping { outside: mapper.mapping(), services: mapper.services() };
        if found != told {
            told = found;
            tracing::debug!(outside = ?found.outside, services = ?found.services, "port mapping");
            if events.send(event(found)).await.is_err() {
                break;
            }
        }
        let deadline = mapper.poll_timeout();
        let timer = async {
            match deadline {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            wish = wishes.changed() => {
                if wish.is_err() {
                    break;
                }
                let wish = *wishes.borrow_and_update();
                if wish.target != target {
                    // The old mapping goes back by the old socket.
                    mapper.set_target(None, now());
                    send(&mut mapper, socket.as_ref()).await;
                    request = None;
                    while let Some(last) = mapper.poll_request() {
                        // Nobody waits for a gateway that may be out of reach by now.
                        tokio::spawn(fetch(last, REQUEST_TIMEOUT));
                    }
                    target = wish.target;
                    socket = match target {
                        Some(target) => open(target.own).await,
                        None => None,
                    };
                    mapper.set_target(target.filter(|_| socket.is_some()), now());
                } else {
                    mapper.check();
                    mapper.try_again(now());
                }
            }
            Some((len, from)) = receive(socket.as_ref(), &mut buffer) => {
                if let (SocketAddr::V4(from), Some(bytes)) = (from, buffer.get(..len)) {
                    mapper.handle_datagram(from, bytes, now());
                }
            }
            response = respond(request.as_mut()) => {
                request = None;
                mapper.handle_response(response.as_deref(), now());
            }
            () = timer => mapper.handle_timeout(now()),
        }
    }
    mapper.release();
    send(&mut mapper, socket.as_ref()).await;
    while let Some(last) = mapper.poll_request() {
        fetch(last, GOODBYE_TIMEOUT).await;
    }
}

/// An HTTP request on its way.
type Fetch = Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send>>;

async fn respond(request: Option<&mut Fetch>) -> Option<Vec<u8>> {
    match request {
        Some(request) => request.await,
        None => std::future::pending().await,
    }
}

/// Makes a request and returns what came back until the gateway closed the connection, or had its time; `None` without
/// a connection.
async fn fetch(request: MapRequest, limit: Duration) -> Option<Vec<u8>> {
    let mut response = Vec::new();
    let exchange = async {
        let mut stream = warren_relay::dial::connect(request.to.into()).await?;
        stream.write_all(&request.bytes).await?;
        stream.take(RESPONSE_MAX).read_to_end(&mut response).await
    };
    // Some gateways leave the connection open: what they said in their time counts.
    if let Ok(Err(error)) = timeout(limit, exchange).await {
        tracing::debug!(%error, to = %request.to, "the gateway was asked in vain");
    }
    (!response.is_empty()).then_some(response)
}

async fn open(own: Ipv4Addr) -> Option<UdpSocket> {
    match UdpSocket::bind(SocketAddrV4::new(own, 0)).await {
        Ok(socket) => {
            // The way is chosen anew for every packet, so it is early enough.
            warren_os::mark(&socket);
            Some(socket)
        }
        Err(error) => {
            tracing::debug!(%error, %own, "no socket to ask the gateway with");
            None
        }
    }
}

/// Waits for a datagram; for ever without a socket. `None` if the socket reports an error, such as a closed port of
/// the gateway.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await.ok(),
        None => std::future::pending().await,
    }
}

async fn send(mapper: &mut PortMapper, socket: Option<&UdpSocket>) {
    while let Some(transmit) = mapper.poll_transmit() {
        if let Some(socket) = socket {
            // What is lost is asked again.
            let _ = socket.send_to(&transmit.bytes, transmit.to).await;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a shell: this is where the port mapper's clock is read")]
fn now() -> Instant {
    Instant::now()
}
