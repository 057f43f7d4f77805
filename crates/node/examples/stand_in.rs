//! Puts a plain WireGuard program into a tailnet: joins in its place, and answers disco for it.
//!
//! `cargo xtask e2e` lets wireguard-go be the other end of our node that way. Datagrams of WireGuard pass between the
//! network and the program as they are; the program has the node's key, so all sealing is its own.
//!
//! `stand_in URL SERVER-KEY AUTH-KEY NAME OUTSIDE INSIDE PROGRAM KEY-FILE`: OUTSIDE is the address and port that peers are
//! told, INSIDE those from which the program hears them, PROGRAM those at which it listens. Writes the node's private key,
//! as `wg` reads it, into KEY-FILE, and prints `joined ADDRESS…` when it is on the tailnet.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::VecDeque;
use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::{mpsc, watch};
use warren_node::control_client::{AuthKey, Event, Login, Network, Report, Session, Target};
use warren_node::engine::Endpoint;
use warren_node::hostinfo;
use warren_node::prefs::Prefs;
use warren_node::state::NodeKeys;
use warren_wire::control::{EndpointType, NetInfo, RegionId};
use warren_wire::disco::{self, Message, Pong};
use warren_wire::key::{DiscoSecret, MachineSecret};
use warren_wire::nacl::{NONCE_BYTES, SharedBox};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The server's own relay, as its first start makes it. What is sent there for the program is lost.
const HOME: RegionId = RegionId(900);

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments: VecDeque<String> = std::env::args().skip(1).collect();
    let mut next =
        |name: &str| arguments.pop_front().ok_or_else(|| format!("{name} is missing; see the file's first lines"));
    let url = next("URL")?.parse()?;
    let pin = next("SERVER-KEY")?.parse()?;
    let login = Login::AuthKey(AuthKey::new(&next("AUTH-KEY")?));
    let hostname = next("NAME")?;
    let address: SocketAddr = next("OUTSIDE")?.parse()?;
    let (outside, inside) = (UdpSocket::bind(address)?, UdpSocket::bind(next("INSIDE")?)?);
    inside.connect(next("PROGRAM")?)?;
    let key_file = next("KEY-FILE")?;

    let disco = DiscoSecret::generate()?;
    let (_report, reader) = watch::channel(Report {
        hostinfo: hostinfo::collect(&Prefs { hostname, ..Prefs::default() }),
        net_info: Some(NetInfo { preferred_derp: HOME, ..NetInfo::default() }),
        endpoints: vec![Endpoint { address, kind: EndpointType::Local }],
        disco_key: disco.public(),
    });
    let (sender, mut events) = mpsc::channel(4);
    let session = Session {
        connector: Network,
        target: Target { url, pin: Some(pin), machine: Arc::new(MachineSecret::generate()?), certificate: None },
        keys: NodeKeys::default(),
        login,
        report: reader,
        flows: None,
        events: sender,
    };
    tokio::spawn(session.run());
    let passing = Arc::new(Passing { outside, inside, disco, peer: Mutex::new(None) });
    for way in [Passing::inwards, Passing::outwards] {
        let passing = Arc::clone(&passing);
        std::thread::spawn(move || {
            if let Err(error) = way(&passing) {
                eprintln!("stand_in: {error}");
            }
        });
    }
    let mut joined = false;
    while let Some(event) = events.recv().await {
        match event {
            Event::Keys(keys, saved) => {
                if let Some(secret) = keys.pending.or(keys.current) {
                    std::fs::write(&key_file, BASE64_STANDARD.encode(secret.expose_bytes()))?;
                }
                // Nobody waits for it once the session has ended.
                let _ = saved.send(true);
            }
            Event::Map(map) => {
                if let Some(node) = map.node.as_ref().filter(|_| !std::mem::replace(&mut joined, true)) {
                    let addresses: Vec<String> = node.addresses.iter().map(|net| net.addr().to_string()).collect();
                    println!("joined {}", addresses.join(" "));
                }
            }
            Event::Trouble(trouble) | Event::Refused(trouble) => eprintln!("{}", trouble.text),
            Event::ServerTime(_) | Event::Visit(_) | Event::Registered(_) | Event::PollStarted(_) => {}
        }
    }
    Ok(())
}

/// What passes datagrams between the one peer and the program.
struct Passing {
    outside: UdpSocket,
    inside: UdpSocket,
    disco: DiscoSecret,
    /// Where the peer's last packet of WireGuard came from.
    peer: Mutex<Option<SocketAddr>>,
}

impl Passing {
    fn inwards(&self) -> Outcome<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = self.outside.recv_from(&mut buffer)?;
            let datagram = buffer.get(..length).unwrap_or_default();
            if disco::looks_like_disco(datagram) {
                if let Some(answer) = self.answer(datagram, from) {
                    self.outside.send_to(&answer, from)?;
                }
                continue;
            }
            *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
            // Refused while the program starts; WireGuard tries again.
            drop(self.inside.send(datagram));
        }
    }

    fn outwards(&self) -> Outcome<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            // Fails once for each datagram that was refused.
            let Ok(length) = self.inside.recv(&mut buffer) else { continue };
            let peer = *self.peer.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(peer) = peer {
                self.outside.send_to(buffer.get(..length).unwrap_or_default(), peer)?;
            }
        }
    }

    /// Answers a ping; other messages need no answer to keep a path.
    fn answer(&self, datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let sender = disco::peek(datagram)?;
        let shared = SharedBox::new(&self.disco.diffie_hellman(sender.as_bytes())?);
        let Ok(Message::Ping(ping)) = disco::open(&shared, datagram) else { return None };
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).ok()?;
        let pong = Message::Pong(Pong { id: ping.id, source: from });
        Some(disco::seal(&shared, &self.disco.public(), &nonce, &pong))
    }
}
