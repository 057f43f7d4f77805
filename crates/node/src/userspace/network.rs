//! The thread of the stack, and what others hold of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use smoltcp::socket::tcp::{RecvError, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};

use super::datagram;
use super::inbound::Inbound;
use super::line::{Arrived, StackEnd};
use super::stack::{Event, Flow, Holder, Holders, PORTS, Stack};

/// Packets that are taken before those that they cause are made.
const BATCH: usize = 64;
/// Datagrams of programs that may wait for the stack.
const REPLIES: usize = 256;
/// Connections that may wait for a program that listens.
const BACKLOG: usize = 64;
/// Flows of datagrams that began here, and datagrams of each that may wait.
const ASKED: (usize, usize) = (256, 16);
/// How long a peer may take to take a connection.
const CONNECTING: Duration = Duration::from_secs(30);

/// Is the TCP/IP stack of a node without TUN device: dials and listens on the tailnet.
///
/// Clones are the same one. It works as long as the engine does.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Locked for moments, by whoever moves bytes.
    stack: Mutex<Stack>,
    /// Rings when a connection was used, so that packets may be due.
    kick: Notify,
    /// Who takes connections to a port.
    listeners: Mutex<BTreeMap<u16, mpsc::Sender<Stream>>>,
    /// Ports that lead to no program of this machine.
    kept: Mutex<BTreeSet<u16>>,
    /// Whether none does.
    keeps_all: AtomicBool,
    /// Who waits for datagrams of flows that began here.
    asked: Mutex<BTreeMap<Flow, mpsc::Sender<Vec<u8>>>>,
    mtu: usize,
}

impl Network {
    /// Makes a network without addresses; nothing runs yet. `seed` must be random and secret.
    pub(crate) fn new(mtu: u16, seed: [u8; 32]) -> Self {
        let stack = Mutex::new(Stack::new(mtu, seed, now()));
        let inner = Inner {
            stack,
            kick: Notify::new(),
            listeners: Mutex::default(),
            kept: Mutex::default(),
            keeps_all: AtomicBool::new(false),
            asked: Mutex::default(),
            mtu: mtu.into(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts the thread that moves packets; it ends with the packet worker, whom `wake` wakes.
    ///
    /// # Errors
    /// Returns the system's error if it gives no thread.
    pub(crate) fn spawn(&self, end: StackEnd, mtu: u16, wake: impl Fn() + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let network = self.clone();
        let work = move || runtime.block_on(network.drive(end, mtu, wake));
        std::thread::Builder::new().name("userspace".into()).spawn(work).map(drop)
    }

    /// Counts shares by peer from now on.
    pub(crate) fn tell_apart(&self, holders: Holders) {
        self.stack().tell_apart(holders);
    }

    /// Returns for whose share an address counts.
    pub(super) fn holder(&self, address: IpAddr) -> Holder {
        self.stack().holder(address)
    }

    /// Takes these addresses and no others.
    pub(crate) fn set_addresses(&self, addresses: &[IpAddr]) {
        self.stack().set_addresses(addresses);
        self.kick();
    }

    /// Returns the node's own addresses; none while it is off the tailnet.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.stack().addresses().to_vec()
    }

    /// Connects to an address of the tailnet, or to one to which a peer leads.
    ///
    /// # Errors
    /// Says why there is no connection: `ConnectionRefused` if the other end says so, `TimedOut` if nothing is heard.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        let flow = self.stack().connect(to).map_err(io::Error::other)?;
        // From now on dropping it ends the attempt.
        let stream = Stream { network: self.clone(), flow };
        self.kick();
        let opened = std::future::poll_fn(|context| stream.poll_open(context));
        match tokio::time::timeout(CONNECTING, opened).await {
            Ok(opened) => opened.map(|()| stream),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{to} does not answer"))),
        }
    }

    /// Begins a flow of datagrams to an address of the tailnet, or to one to which a peer leads.
    ///
    /// # Errors
    /// Says why there is none: the node has no address of that family, or there are too many flows.
    pub(crate) fn datagrams(&self, to: SocketAddr) -> io::Result<Datagrams> {
        let own = self.addresses().into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).ok_or_else(gone)?;
        let (most, waiting) = ASKED;
        let mut asked = lock(&self.inner.asked);
        let mut flows = (0..64).map(|_| Flow { own: (own, rand::rng().random_range(PORTS)).into(), peer: to });
        let flow = flows.find(|flow| asked.len() < most && !asked.contains_key(flow));
        let flow = flow.ok_or_else(|| io::Error::other(format!("more than {most} questions at a time")))?;
        let (sender, arrived) = mpsc::channel(waiting);
        asked.insert(flow, sender);
        drop(asked);
        Ok(Datagrams { network: self.clone(), flow, arrived })
    }

    /// Gives a datagram to whoever began its flow here; returns it if nobody did. A full queue loses the newest.
    pub(super) fn take_answer(&self, flow: &Flow, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let asked = lock(&self.inner.asked);
        let Some(sender) = asked.get(flow) else { return Some(bytes) };
        let _ = sender.try_send(bytes);
        None
    }

    /// Takes connections of peers to `port` of this node from now on, instead of the program of this machine on that port.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens on it already.
    pub fn listen(&self, port: u16) -> io::Result<Listener> {
        let mut listeners = lock(&self.inner.listeners);
        if listeners.get(&port).is_some_and(|one| !one.is_closed()) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("port {port} of the node is in use")));
        }
        let (sender, connections) = mpsc::channel(BACKLOG);
        listeners.insert(port, sender);
        Ok(Listener { connections })
    }

    /// Leads peers to no program of this machine on that port: a proxy there would let them speak as this node.
    pub fn keep_port(&self, port: u16) {
        lock(&self.inner.kept).insert(port);
    }

    /// Leads peers to no program of this machine at all, for who has the node inside chose nothing but what it listens on.
    pub fn keep_all_ports(&self) {
        self.inner.keeps_all.store(true, Ordering::Relaxed);
    }

    /// Tells whether a port of this node leads to the program of this machine on the same port.
    pub(super) fn leads_to_program(&self, port: u16) -> bool {
        !self.inner.keeps_all.load(Ordering::Relaxed) && !lock(&self.inner.kept).contains(&port)
    }

    /// Returns who takes connections to a port, if a program of this machine does not.
    pub(super) fn listener(&self, port: u16) -> Option<mpsc::Sender<Stream>> {
        let mut listeners = lock(&self.inner.listeners);
        let found = listeners.get(&port)?.clone();
        if found.is_closed() {
            listeners.remove(&port);
            return None;
        }
        Some(found)
    }

    /// Opens a connection that was asked for; `None` if that is no longer wanted.
    pub(super) fn accept(&self, flow: Flow) -> Option<Stream> {
        let is_open = self.stack().accept(flow, now());
        self.kick();
        is_open.then(|| Stream { network: self.clone(), flow })
    }

    /// Answers a connection that was asked for with RST.
    pub(super) fn refuse(&self, flow: Flow) {
        self.stack().refuse(flow, now());
        self.kick();
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        lock(&self.inner.stack)
    }

    fn kick(&self) {
        self.inner.kick.notify_one();
    }

    /// Moves packets until the worker is gone.
    async fn drive(self, end: StackEnd, mtu: u16, wake: impl Fn()) {
        let StackEnd { mut arrived, waiting, departing, room } = end;
        let (replies, mut replied) = mpsc::channel(REPLIES);
        let mut inbound = Inbound::new(self.clone(), replies, mtu.into());
        let mut batch: Vec<Arrived> = Vec::with_capacity(BATCH);
        let mut answers: Vec<Vec<u8>> = Vec::with_capacity(BATCH);
        let mut events: Vec<Event> = Vec::new();
        loop {
            let deadline = {
                let mut stack = self.stack();
                let now = now();
                for Arrived { bytes, is_joined } in batch.drain(..) {
                    waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                    events.extend(stack.handle_packet(bytes, is_joined, now));
                }
                answers.drain(..).for_each(|packet| stack.push(packet));
                let mut has_sent = false;
                loop {
                    stack.flush(now);
                    let Some(packet) = stack.poll_outgoing() else { break };
                    if let Err(error) = departing.try_send(packet) {
                        match error {
                            std::sync::mpsc::TrySendError::Full(packet) => stack.put_back(packet),
                            std::sync::mpsc::TrySendError::Disconnected(_) => return,
                        }
                        break;
                    }
                    has_sent = true;
                }
                if has_sent {
                    wake();
                }
                stack.poll_timeout(now)
            };
            events.drain(..).for_each(|event| inbound.handle(event));
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = arrived.recv_many(&mut batch, BATCH) => if count == 0 {
                    return;
                },
                _ = replied.recv_many(&mut answers, BATCH) => {}
                () = self.inner.kick.notified() => {}
                () = room.notified() => {}
                () = timer => {}
            }
        }
    }
}

/// Yields the connections of peers to a port of the node.
#[derive(Debug)]
pub struct Listener {
    connections: mpsc::Receiver<Stream>,
}

impl Listener {
    /// Waits for the next connection; `None` when the engine has ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.connections.recv().await
    }
}

/// Is a flow of datagrams that began here. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Datagrams {
    network: Network,
    flow: Flow,
    arrived: mpsc::Receiver<Vec<u8>>,
}

impl Datagrams {
    /// Sends a datagram; it may be lost, as any.
    ///
    /// # Errors
    /// `InvalidInput` if it is larger than the tunnel's packets.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let packet = datagram::packet(self.flow.own, self.flow.peer, bytes, self.network.inner.mtu);
        self.network.stack().push(packet.ok_or(io::ErrorKind::InvalidInput)?);
        self.network.kick();
        Ok(())
    }

    /// Waits for the next datagram of the other end.
    pub(crate) async fn receive(&mut self) -> Option<Vec<u8>> {
        self.arrived.recv().await
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        lock(&self.network.inner.asked).remove(&self.flow);
    }
}

/// Is a TCP connection of the stack. Dropping it ends it: in order if all that came was read, else at once.
#[derive(Debug)]
pub struct Stream {
    network: Network,
    flow: Flow,
}

impl Stream {
    /// Returns this node's address and port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.flow.own
    }

    /// Returns the other end's address and port.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.flow.peer
    }

    /// Breaks the connection off, so that the other end does not take what came for the whole.
    pub fn abort(&self) {
        if let Some(socket) = self.network.stack().socket(&self.flow) {
            socket.abort();
        }
        self.network.kick();
    }

    /// Is ready when the connection is there.
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other state comes after the connection was there")]
    fn poll_open(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stack = self.network.stack();
        let Some(socket) = stack.socket(&self.flow) else { return Poll::Ready(Err(gone())) };
        match socket.state() {
            State::SynSent | State::SynReceived => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            State::Closed | State::Listen => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("{} refuses the connection", self.flow.peer),
            ))),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stack = self.network.stack();
        let Some(socket) = stack.socket(&self.flow) else { return Poll::Ready(Err(gone())) };
        match socket.recv_slice(buffer.initialize_unfilled()) {
            Ok(0) => {
                if matches!(socket.state(), State::SynReceived | State::SynSent) || socket.may_recv() {
                    socket.register_recv_waker(context.waker());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(()))
            }
            Ok(count) => {
                drop(stack);
                buffer.advance(count);
                // The peer may be waiting for room.
                self.network.kick();
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) if matches!(socket.state(), State::SynReceived | State::SynSent) => {
                socket.register_recv_waker(context.waker());
                Poll::Pending
            }
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?;
        let mut stack = self.network.stack();
        let Some(socket) = stack.socket(&self.flow) else { return Poll::Ready(Err(gone())) };
        match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            Ok(count) => {
                drop(stack);
                self.network.kick();
                Poll::Ready(Ok(count))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(socket) = self.network.stack().socket(&self.flow) {
            socket.close();
        }
        self.network.kick();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.stack().release(&self.flow, now());
        self.network.kick();
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the node has left its tailnet")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in it panics half way; and if, the stack is as good as before.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "a shell: this is where the stack's clock is read")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
pub(crate) mod tests;
