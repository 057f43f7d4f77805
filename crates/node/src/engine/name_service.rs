//! Names of the tailnet, for the programs of this machine: DNS on 100.100.100.100 and fd7a:115c:a1e0::53, port 53.
//!
//! The two addresses are local routes of the tunnel's interface, so the kernel keeps queries on this machine and forgets the
//! addresses with the interface. What is answered and whom to ask otherwise is `warren_dns`'s business; here are its sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout};
use warren_dns::{
    AttemptId, ClientId, Config, Kind, Name, Output, Question, Resolver, SERVICE_V4, SERVICE_V6, Transport, Zone,
};

use crate::look_up::system_resolvers;
use crate::userspace::Network;
use crate::userspace::dialer::Way;
use crate::userspace::line::loopback;

use super::ways::Ways;

/// Port of the service.
const PORT: u16 = 53;
/// Longest message over UDP that is read.
const DATAGRAM_MAX: usize = 4096;
/// Longest query over TCP. Source: node.md, section 20.1.
const REQUEST_MAX: usize = 4096;
/// Connections at a time; others wait.
const CONNECTIONS: usize = 64;
/// How long a connection may be idle. Source: node.md, section 20.1.
const IDLE: Duration = Duration::from_secs(45);
/// How long an upstream may take over TCP. Source: node.md, section 20.2.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a connection is taken again after an error, such as too many open files: it lasts, and would be busy work.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a question within this process may take: as long as all attempts at upstreams.
const ANSWERING: Duration = Duration::from_secs(10);
/// What connections and upstreams said that may wait.
const HEARD: usize = 256;

/// Answers while it is kept.
#[derive(Debug)]
pub(super) struct NameService {
    zone: watch::Sender<Config>,
    heard: mpsc::Sender<Heard>,
    task: AbortHandle,
}

impl NameService {
    /// Opens the sockets on the service's addresses and starts to answer.
    ///
    /// # Errors
    /// Returns a text for people if neither address can be had.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub(super) fn start(seed: [u8; 32], config: Config) -> Result<Self, String> {
        let mut sockets = Vec::new();
        let mut failed = None;
        for address in [IpAddr::V4(SERVICE_V4), IpAddr::V6(SERVICE_V6)] {
            match open(SocketAddr::new(address, PORT)) {
                Ok(pair) => sockets.push(pair),
                Err(error) => {
                    tracing::debug!(%error, %address, "no name service on this address");
                    failed.get_or_insert((address, error));
                }
            }
        }
        match failed {
            Some((address, error)) if sockets.is_empty() => Err(format!(
                "names of the tailnet are not answered on {address}: {error}; does another program answer on port 53 of all addresses?"
            )),
            _ => Ok(Self::run(seed, config, sockets, None)),
        }
    }

    fn run(seed: [u8; 32], config: Config, sockets: Vec<(UdpSocket, TcpListener)>, reach: Option<Reach>) -> Self {
        let (zone, zones) = watch::channel(config);
        let (heard, hearing) = mpsc::channel(HEARD);
        let mut datagrams = [None, None];
        for (index, (socket, listener)) in sockets.into_iter().enumerate() {
            tokio::spawn(accept(listener, heard.clone(), zones.clone()));
            if let Some(slot) = datagrams.get_mut(index) {
                *slot = Some(socket);
            }
        }
        let server = Server {
            resolver: Resolver::new(seed),
            datagrams,
            askers: BTreeMap::new(),
            attempts: BTreeMap::new(),
            next: 0,
            heard: heard.clone(),
            reach,
        };
        let task = tokio::spawn(server.run(zones, hearing)).abort_handle();
        Self { zone, heard, task }
    }

    /// Starts to answer for programs that do not ask over sockets; see [`Self::inquirer`]. Upstreams are asked by `reach`.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub(super) fn start_without_sockets(seed: [u8; 32], config: Config, reach: Reach) -> Self {
        Self::run(seed, config, Vec::new(), Some(reach))
    }

    /// Returns whom to ask within this process. `search` are the domains of short names.
    pub(super) fn inquirer(&self, search: Vec<String>) -> Inquirer {
        let zone = self.zone.borrow();
        let system = system_resolvers();
        // Where the server names resolvers nobody else is asked; the root is theirs only if they are not this machine's own.
        let is_named = |(name, upstreams): &&(Name, Vec<SocketAddr>)| !is_root(name) || *upstreams != system;
        let routed = zone.routes.iter().filter(is_named).map(|(name, _)| name);
        let kept = zone.local.iter().chain(routed).cloned().collect();
        Inquirer { heard: self.heard.clone(), search, kept }
    }

    /// Takes over other names.
    pub(super) fn set(&self, config: Config) {
        self.zone.send_if_modified(|old| {
            let differs = *old != config;
            *old = config;
            differs
        });
    }
}

impl Drop for NameService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks a name service within this process.
#[derive(Debug, Clone)]
pub(super) struct Inquirer {
    heard: mpsc::Sender<Heard>,
    search: Vec<String>,
    kept: Vec<Name>,
}

impl Inquirer {
    /// Returns the domains of short names.
    pub(super) fn search(&self) -> &[String] {
        &self.search
    }

    /// Tells whether nobody else may be asked for a name: it is one of the tailnet, or the server said whom to ask.
    pub(super) fn keeps(&self, name: &Name) -> bool {
        self.kept.iter().any(|domain| name.is_within(domain))
    }

    /// Returns the addresses of a name; none if it has none, or if nobody answers in time.
    pub(super) async fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        let of = |kind| async move {
            let question = Question::new(name, kind, rand::rng().random());
            let (reply, answer) = oneshot::channel();
            self.heard.send(Heard::Query(question.message().to_vec(), reply)).await.ok()?;
            let answer = timeout(ANSWERING, answer).await.ok()?.ok()?;
            question.addresses(&answer)
        };
        let (four, six) = tokio::join!(of(Kind::A), of(Kind::AAAA));
        [four, six].into_iter().flatten().flatten().collect()
    }
}

fn open(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let (datagrams, connections) = warren_os::bind_service(address)?;
    Ok((UdpSocket::from_std(datagrams)?, TcpListener::from_std(connections)?))
}

/// Is what other tasks found out.
#[derive(Debug)]
pub(super) enum Heard {
    Query(Vec<u8>, oneshot::Sender<Vec<u8>>),
    Reply(AttemptId, Vec<u8>),
    Failed(AttemptId),
}

/// Is whoever waits for an answer.
#[derive(Debug)]
enum Asker {
    /// Of the socket with this number, at this address.
    Udp(usize, SocketAddr),
    Tcp(oneshot::Sender<Vec<u8>>),
}

/// Reaches upstreams where programs' packets do not go into the tailnet by themselves.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// Tells where they are.
    pub(super) ways: Ways,
    /// Leads to those in the tailnet.
    pub(super) network: Network,
}

impl Reach {
    /// Says where packets to an upstream go: what a resolver of this machine asks on would go past the exit node.
    fn way(&self, upstream: SocketAddr) -> Way {
        if upstream.ip().is_loopback() && self.ways.wants_exit() {
            return Way::Nowhere;
        }
        self.ways.way(upstream.ip())
    }
}

struct Server {
    resolver: Resolver,
    datagrams: [Option<UdpSocket>; 2],
    askers: BTreeMap<ClientId, Asker>,
    /// Exchanges with upstreams.
    attempts: BTreeMap<AttemptId, AbortHandle>,
    next: u64,
    heard: mpsc::Sender<Heard>,
    /// `None` if programs' packets go into the tailnet by themselves.
    reach: Option<Reach>,
}

impl Server {
    async fn run(mut self, mut zones: watch::Receiver<Config>, mut hearing: mpsc::Receiver<Heard>) {
        let mut buffers = [vec![0; DATAGRAM_MAX], vec![0; DATAGRAM_MAX]];
        // Before the first question, which may be here already.
        let zone = Zone::new(zones.borrow_and_update().clone());
        self.resolver.set_zone(zone);
        loop {
            self.do_outputs();
            let deadline = self.resolver.poll_timeout();
            let timer = async {
                match deadline {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let [first, second] = &mut buffers;
            tokio::select! {
                changed = zones.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let zone = Zone::new(zones.borrow_and_update().clone());
                    self.resolver.set_zone(zone);
                }
                (length, from) = receive(self.datagrams[0].as_ref(), first) => {
                    self.ask(Asker::Udp(0, from), first.get(..length).unwrap_or_default());
                }
                (length, from) = receive(self.datagrams[1].as_ref(), second) => {
                    self.ask(Asker::Udp(1, from), second.get(..length).unwrap_or_default());
                }
                // This task holds a sender, so the channel does not end.
                Some(heard) = hearing.recv() => match heard {
                    Heard::Query(message, reply) => self.ask(Asker::Tcp(reply), &message),
                    Heard::Reply(attempt, message) => self.resolver.handle_reply(attempt, &message, now()),
                    Heard::Failed(attempt) => self.resolver.handle_failure(attempt, now()),
                },
                () = timer => self.resolver.handle_timeout(now()),
            }
        }
    }

    fn ask(&mut self, asker: Asker, message: &[u8]) {
        let client = ClientId(self.next);
        self.next += 1;
        let transport = match asker {
            Asker::Udp(..) => Transport::Udp,
            Asker::Tcp(_) => Transport::Tcp,
        };
        self.askers.insert(client, asker);
        let dropped = self.resolver.counters().dropped;
        self.resolver.handle_query(client, transport, message, now());
        if self.resolver.counters().dropped != dropped {
            self.askers.remove(&client);
        }
    }

    fn do_outputs(&mut self) {
        while let Some(output) = self.resolver.poll_output() {
            match output {
                Output::Answer { client, message } => match self.askers.remove(&client) {
                    Some(Asker::Udp(index, to)) => {
                        // A program that does not take its answer asks again.
                        let socket = self.datagrams.get(index).and_then(Option::as_ref);
                        let _ = socket.map(|socket| socket.try_send_to(&message, to));
                    }
                    Some(Asker::Tcp(reply)) => drop(reply.send(message)),
                    None => {}
                },
                Output::Ask { attempt, upstream, transport, message } => {
                    let (heard, reach) = (self.heard.clone(), self.reach.clone());
                    let task = tokio::spawn(async move {
                        let errand = Errand { attempt, upstream, transport, message };
                        if let Err(error) = errand.run(reach.as_ref(), &heard).await {
                            tracing::debug!(%error, %upstream, "a resolver was asked in vain");
                            let _ = heard.send(Heard::Failed(attempt)).await;
                        }
                    });
                    self.attempts.insert(attempt, task.abort_handle());
                }
                Output::Close(attempt) => {
                    if let Some(task) = self.attempts.remove(&attempt) {
                        task.abort();
                    }
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.attempts.values().for_each(AbortHandle::abort);
    }
}

/// Tells whether it is a program of this machine.
fn is_program(from: SocketAddr) -> bool {
    let address = from.ip();
    address == IpAddr::V4(SERVICE_V4) || address == IpAddr::V6(SERVICE_V6) || warren_os::is_own_address(address)
}

/// Waits for a datagram of a program; for ever without a socket. Errors are those of answers that found nobody.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    let Some(socket) = socket else { return std::future::pending().await };
    loop {
        // Others could get at what this machine's resolvers know, or make it send answers to third parties.
        if let Ok(received) = socket.recv_from(buffer).await
            && is_program(received.1)
        {
            return received;
        }
        tokio::task::yield_now().await;
    }
}

/// Is a question to an upstream.
struct Errand {
    attempt: AttemptId,
    upstream: SocketAddr,
    transport: Transport,
    message: Vec<u8>,
}

impl Errand {
    /// Asks from a socket of its own. Over UDP it listens until it is aborted, since others may have answered first.
    async fn run(mut self, reach: Option<&Reach>, heard: &mpsc::Sender<Heard>) -> io::Result<()> {
        let Some(reach) = reach else { return self.over_sockets(heard).await };
        match reach.way(self.upstream) {
            Way::Tailnet => self.over_stack(&reach.network, heard).await,
            Way::Own => {
                self.upstream.set_ip(loopback(self.upstream.ip()));
                self.over_sockets(heard).await
            }
            Way::Outside => self.over_sockets(heard).await,
            Way::Nowhere => Err(io::Error::new(
                io::ErrorKind::HostUnreachable,
                "no peer leads to this resolver, and past the exit node nobody is asked",
            )),
        }
    }

    async fn over_stack(&self, network: &Network, heard: &mpsc::Sender<Heard>) -> io::Result<()> {
        match self.transport {
            Transport::Udp => {
                let mut flow = network.datagrams(self.upstream)?;
                flow.send(&self.message)?;
                while let Some(reply) = flow.receive().await {
                    let _ = heard.send(Heard::Reply(self.attempt, reply)).await;
                }
                Ok(())
            }
            Transport::Tcp => self.over_connection(network.connect(self.upstream), heard).await,
        }
    }

    /// A resolver of the machine itself is reached as it was without the tunnel. One that the server names may be inside, and
    /// is reached as the program that asks would reach it.
    async fn over_sockets(&self, heard: &mpsc::Sender<Heard>) -> io::Result<()> {
        let upstream = self.upstream;
        match self.transport {
            Transport::Udp => {
                let any: IpAddr = if upstream.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                let socket = UdpSocket::bind((any, 0)).await?;
                if system_resolvers().contains(&upstream) {
                    warren_os::mark(&socket);
                }
                socket.connect(upstream).await?;
                socket.send(&self.message).await?;
                let mut buffer = vec![0; DATAGRAM_MAX];
                loop {
                    let length = socket.recv(&mut buffer).await?;
                    let reply = buffer.get(..length).unwrap_or_default().to_vec();
                    let _ = heard.send(Heard::Reply(self.attempt, reply)).await;
                }
            }
            Transport::Tcp if system_resolvers().contains(&upstream) => {
                self.over_connection(warren_relay::dial::connect(upstream), heard).await
            }
            Transport::Tcp => self.over_connection(TcpStream::connect(upstream), heard).await,
        }
    }

    async fn over_connection<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connect: impl Future<Output = io::Result<S>>,
        heard: &mpsc::Sender<Heard>,
    ) -> io::Result<()> {
        let reply = timeout(TCP_TIMEOUT, async {
            let mut stream = connect.await?;
            write_message(&mut stream, &self.message).await?;
            read_message(&mut stream, usize::from(u16::MAX)).await
        });
        let reply = reply.await??;
        let _ = heard.send(Heard::Reply(self.attempt, reply)).await;
        Ok(())
    }
}

/// Takes connections until the service ends.
async fn accept(listener: TcpListener, heard: mpsc::Sender<Heard>, mut zones: watch::Receiver<Config>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let ended = async move { while zones.changed().await.is_ok() {} };
    let taken = async {
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, from)) if is_program(from) => stream,
                Ok(_) => continue,
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let heard = heard.clone();
            tokio::spawn(async move {
                let _place = place;
                // Whatever ends it, it is the program's to ask again.
                let _ = serve(stream, &heard).await;
            });
        }
    };
    tokio::select! {
        () = ended => {}
        () = taken => {}
    }
}

/// Answers the queries of one connection, one after another.
async fn serve(mut stream: TcpStream, heard: &mpsc::Sender<Heard>) -> io::Result<()> {
    loop {
        let message = timeout(IDLE, read_message(&mut stream, REQUEST_MAX)).await??;
        let (reply, answer) = oneshot::channel();
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        heard.send(Heard::Query(message, reply)).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        let answer = answer.await.map_err(gone)?;
        timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
}

async fn read_message<S: AsyncRead + Unpin>(stream: &mut S, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

/// Gives names of others to the machine's own resolvers if the server names none.
pub(super) fn with_system(mut config: Config) -> Config {
    if let Some((_, upstreams)) = config.routes.iter_mut().find(|(name, _)| is_root(name))
        && upstreams.is_empty()
    {
        *upstreams = system_resolvers();
    }
    config
}

fn is_root(name: &Name) -> bool {
    name.labels().next().is_none()
}

#[expect(clippy::disallowed_methods, reason = "a shell: this is where the resolver's clock is read")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_dns::Host;

    /// Asks for the address of a name; the message is written by hand, RFC 1035, section 4.
    fn query(id: u8, name: &str) -> Vec<u8> {
        let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        message
    }

    /// Answers a query with one address.
    fn reply(query: &[u8], address: [u8; 4]) -> Vec<u8> {
        let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
        let mut message = query[..end].to_vec();
        message[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend_from_slice(&address);
        message
    }

    struct World {
        upstream: UdpSocket,
        program: UdpSocket,
        tcp: SocketAddr,
        _service: NameService,
    }

    async fn world() -> World {
        let local = || UdpSocket::bind("127.0.0.1:0");
        let (upstream, program, service) = (local().await.unwrap(), local().await.unwrap(), local().await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = |text| Name::parse(text).unwrap();
        let address: IpAddr = [100, 64, 0, 7].into();
        let config = Config {
            hosts: vec![Host {
                name: name("alpha.t.example"),
                addresses: vec![address],
                named: vec![address],
                wildcard: false,
            }],
            local: vec![name("t.example")],
            routes: vec![(name("."), vec![upstream.local_addr().unwrap()])],
        };
        program.connect(service.local_addr().unwrap()).await.unwrap();
        let tcp = listener.local_addr().unwrap();
        let service = NameService::run([7; 32], config, vec![(service, listener)], None);
        World { upstream, program, tcp, _service: service }
    }

    #[tokio::test]
    async fn names_of_the_tailnet_are_answered_here_and_others_elsewhere() {
        let world = world().await;
        let mut buffer = [0; 512];
        world.program.send(&query(1, "alpha.t.example")).await.unwrap();
        let length = world.program.recv(&mut buffer).await.unwrap();
        assert_eq!(buffer[length - 4..length], [100, 64, 0, 7]);
        // Nobody of the tailnet by that name: that is an answer, too, and the upstream hears nothing of it.
        world.program.send(&query(2, "nobody.t.example")).await.unwrap();
        world.program.recv(&mut buffer).await.unwrap();
        assert_eq!(buffer[3] & 15, 3);
        world.program.send(&query(3, "example.com")).await.unwrap();
        let (length, from) = world.upstream.recv_from(&mut buffer).await.unwrap();
        let asked = buffer[..length].to_vec();
        assert!(asked.windows(7).any(|part| part.eq_ignore_ascii_case(b"example")), "the first that it hears of");
        world.upstream.send_to(&reply(&asked, [192, 0, 2, 9]), from).await.unwrap();
        let length = world.program.recv(&mut buffer).await.unwrap();
        assert_eq!((buffer[1], &buffer[length - 4..length]), (3, &[192, 0, 2, 9][..]));
    }

    #[tokio::test]
    async fn connections_ask_one_after_another() {
        let world = world().await;
        let mut stream = TcpStream::connect(world.tcp).await.unwrap();
        for id in [1, 2] {
            write_message(&mut stream, &query(id, "alpha.t.example")).await.unwrap();
            let answer = read_message(&mut stream, 512).await.unwrap();
            assert_eq!((answer[1], &answer[answer.len() - 4..]), (id, &[100, 64, 0, 7][..]));
        }
        stream.write_all(&[0xff, 0xff]).await.unwrap();
        assert!(stream.read_u16().await.is_err(), "too long a query ends the connection");
    }

    /// A node without TUN device next to a peer on which a resolver runs, at 100.64.0.2.
    struct Inside {
        world: crate::userspace::network::tests::World,
        reach: Reach,
        shared: Arc<crate::engine::shared::Shared>,
        upstream: SocketAddr,
        program: UdpSocket,
    }

    async fn inside() -> Inside {
        use crate::engine::shared::{PeerSlot, Shared, Snapshot, Sockets};
        let world = crate::userspace::network::tests::world();
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = ([100, 64, 0, 2], program.local_addr().unwrap().port()).into();
        let (shared, ..) = Shared::new(warren_os::Waker::new().unwrap(), Sockets::default(), now());
        let slot = Arc::new(PeerSlot::new(warren_wire::key::NodeKey::from_bytes([2; 32])));
        let peers = std::iter::once(("100.64.0.2/32".parse().unwrap(), slot.into())).collect();
        let own = [IpAddr::from([100, 64, 0, 1])].into();
        shared.snapshot.store(Arc::new(Snapshot { peers: Arc::new(peers), own, ..Snapshot::default() }));
        shared.wants_exit.store(false, std::sync::atomic::Ordering::Release);
        let reach = Reach { ways: Ways::new(Arc::clone(&shared)), network: world.nodes[0].clone() };
        Inside { world, reach, shared, upstream, program }
    }

    /// The machine's own network knows no such resolver, or another one, which would hear the names of the tailnet.
    #[tokio::test]
    async fn without_a_tun_device_resolvers_of_the_tailnet_are_asked_through_the_stack() {
        let Inside { world: _world, reach, upstream, program, .. } = inside().await;
        let name = |text| Name::parse(text).unwrap();
        let config = Config {
            local: vec![name("t.example")],
            routes: vec![(name("corp.example"), vec![upstream])],
            ..Config::default()
        };
        let service = NameService::start_without_sockets([7; 32], config, reach.clone());
        let inquirer = service.inquirer(Vec::new());
        let answering = async {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = program.recv_from(&mut buffer).await.unwrap();
                let mut answer = reply(&buffer[..length], [192, 0, 2, 9]);
                let end = 12 + buffer[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
                if buffer[end - 3] == 28 {
                    // It has none in IPv6.
                    answer.truncate(end);
                    answer[7] = 0;
                }
                program.send_to(&answer, from).await.unwrap();
            }
        };
        let host = name("host.corp.example");
        let found = tokio::select! {
            found = inquirer.addresses(&host) => found,
            () = answering => unreachable!("it answers for ever"),
        };
        assert_eq!(found, [IpAddr::from([192, 0, 2, 9])]);
        for (text, kept) in [("host.corp.example", true), ("a.t.example", true), ("example.com", false)] {
            assert_eq!(inquirer.keeps(&name(text)), kept, "{text}");
        }
        // And over TCP.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = SocketAddr::new(upstream.ip(), listener.local_addr().unwrap().port());
        let message = query(9, "host.corp.example");
        let errand = Errand { attempt: attempt(), upstream, transport: Transport::Tcp, message: message.clone() };
        let (heard, mut hearing) = mpsc::channel(1);
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = read_message(&mut stream, 512).await.unwrap();
            write_message(&mut stream, &asked).await.unwrap();
            asked
        };
        let (ran, asked) = tokio::join!(errand.run(Some(&reach), &heard), answering);
        ran.unwrap();
        assert_eq!(asked, message);
        assert!(matches!(hearing.recv().await, Some(Heard::Reply(_, reply)) if reply == message));
    }

    /// While an exit node is away, or nobody leads to a resolver, nobody else hears the question.
    #[tokio::test]
    async fn without_a_tun_device_nobody_is_asked_past_the_exit_node() {
        let Inside { world: _world, reach, shared, program, .. } = inside().await;
        let own = program.local_addr().unwrap();
        shared.wants_exit.store(true, std::sync::atomic::Ordering::Release);
        for upstream in [own, "192.0.2.1:53".parse().unwrap(), "100.64.0.9:53".parse().unwrap()] {
            for transport in [Transport::Udp, Transport::Tcp] {
                let errand = Errand { attempt: attempt(), upstream, transport, message: query(1, "secret.example") };
                let (heard, _hearing) = mpsc::channel(1);
                let error = errand.run(Some(&reach), &heard).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{upstream}");
            }
        }
        assert!(program.try_recv(&mut [0; 512]).is_err(), "something was asked");
    }

    /// Names an attempt, as a resolver does.
    fn attempt() -> AttemptId {
        let mut resolver = Resolver::new([1; 32]);
        let routes = vec![(Name::parse(".").unwrap(), vec!["192.0.2.1:53".parse().unwrap()])];
        resolver.set_zone(Zone::new(Config { routes, ..Config::default() }));
        resolver.handle_query(ClientId(0), Transport::Udp, &query(1, "example.com"), now());
        loop {
            match resolver.poll_output() {
                Some(Output::Ask { attempt, .. }) => return attempt,
                Some(_) => {}
                None => panic!("nobody is asked"),
            }
        }
    }
}
