//! Disco: how nodes find paths to each other. Messages are sealed from disco key to disco key.
//!
//! | offset | bytes | envelope |
//! | --- | --- | --- |
//! | 0 | 6 | magic |
//! | 6 | 32 | sender's disco key |
//! | 38 | 24 | nonce |
//! | 62 | 16 + n | box of the message: type, version 0, body |
//!
//! Source: Tailscale `disco/disco.go`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::key::{DiscoKey, NodeKey};
use crate::nacl::{NONCE_BYTES, SharedBox};

/// First bytes of every envelope: `TS` and a speech bubble.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xF0, 0x9F, 0x92, 0xAC];
/// Bytes of an envelope before the box.
pub const HEADER_BYTES: usize = MAGIC.len() + 32 + NONCE_BYTES;
/// Most endpoints that are read from one message.
pub const MAX_ENDPOINTS: usize = 64;
/// Bytes of an address: 16 of IP, IPv4 mapped, and 2 of port.
const ADDRESS_BYTES: usize = 18;

/// Names a ping; its pong repeats it.
pub type TransactionId = [u8; 12];

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Asks for a pong on the same path.
    Ping(Ping),
    /// Answers a ping.
    Pong(Pong),
    /// Over the relay alone: ping me at these addresses now.
    CallMeMaybe(Vec<SocketAddr>),
    /// To a peer relay: bind my side of an endpoint.
    BindEndpoint(Bind),
    /// From a peer relay: prove your address.
    BindChallenge(Bind),
    /// To a peer relay: the proof.
    BindAnswer(Bind),
    /// Over the relay alone: reach me at this endpoint of a peer relay.
    CallMeMaybeVia(RelayEndpoint),
    /// Over the relay alone: give two nodes an endpoint.
    AllocateRequest(AllocateRequest),
    /// Over the relay alone: the endpoint.
    AllocateResponse {
        /// Generation of the request.
        generation: u32,
        /// The endpoint.
        endpoint: RelayEndpoint,
    },
    /// Over the relay alone, among warren nodes: let us open holes through NATs that give each peer its own port.
    Punch(Punch),
}

/// Arranges that two nodes send to each other at the same time, from and to many ports.
///
/// Of type 0xF7, which no other implementation knows: they drop what they do not know in silence (paths.md 4.1). The body
/// is 8 bytes `warren\0\x01` (so that another use of the type is not mistaken for this), a byte of flags (1: an answer,
/// 2: [`Self::hard`]), and 18 bytes of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Punch {
    /// Whether this answers the peer's message; an answer is never answered.
    pub answer: bool,
    /// Whether the sender's NAT gives each destination its own port.
    pub hard: bool,
    /// Where the sender's packets will come from; port 0 if that cannot be said.
    pub address: SocketAddr,
}

/// Type of [`Message::Punch`].
const PUNCH: u8 = 0xF7;
/// What a punch message begins with.
const PUNCH_MAGIC: [u8; 8] = *b"warren\0\x01";

/// Asks for a pong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// Its name.
    pub id: TransactionId,
    /// Sender's node key; old senders leave it out.
    pub node_key: Option<NodeKey>,
    /// Zero bytes at the end, to try a packet size.
    pub padding: usize,
}

/// Answers a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// Name of the ping.
    pub id: TransactionId,
    /// Address that the ping was seen to come from; `127.3.3.40:<region>` if over a relay.
    pub source: SocketAddr,
}

/// The common body of the three bind messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind {
    /// Number of the endpoint at its relay, 24 bits.
    pub vni: u32,
    /// Counts handshakes; not zero.
    pub generation: u32,
    /// Disco key of the other client.
    pub remote_key: DiscoKey,
    /// Proof; any bytes in the first message.
    pub challenge: [u8; 32],
}

/// An endpoint of a peer relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayEndpoint {
    /// Disco key of the relay.
    pub server: DiscoKey,
    /// The two clients.
    pub clients: [DiscoKey; 2],
    /// Orders endpoints of one relay.
    pub lamport_id: u64,
    /// Number of the endpoint at its relay, 24 bits.
    pub vni: u32,
    /// How long it waits for both clients to bind.
    pub bind_lifetime: Duration,
    /// How long it lives without traffic.
    pub steady_lifetime: Duration,
    /// Addresses of the relay, one at least.
    pub addresses: Vec<SocketAddr>,
}

/// Asks a peer relay for an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocateRequest {
    /// The two clients.
    pub clients: [DiscoKey; 2],
    /// Names the request.
    pub generation: u32,
}

/// Says why a box that opened holds no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoError {
    /// Not an envelope.
    #[error("not a disco envelope")]
    Envelope,
    /// Sealed for another key, by another key, or changed on the way: routine after a peer's restart.
    #[error("the disco box does not open")]
    Sealed,
    /// A type that we do not know.
    #[error("disco message of unknown type {0}")]
    Type(u8),
    /// Too short for its type, or a list that does not divide evenly.
    #[error("malformed disco message")]
    Malformed,
}

/// Returns the sender's key if the datagram has the form of an envelope (38 bytes at least), before any cryptography.
#[must_use]
pub fn peek(datagram: &[u8]) -> Option<DiscoKey> {
    let rest = datagram.strip_prefix(&MAGIC)?;
    rest.first_chunk().copied().map(DiscoKey::from_bytes)
}

/// Tells whether a relay should treat a packet as disco: the whole envelope header is there.
#[must_use]
pub fn looks_like_disco(packet: &[u8]) -> bool {
    packet.len() >= HEADER_BYTES && packet.starts_with(&MAGIC)
}

/// Builds an envelope. `nonce` must be fresh randomness.
#[must_use]
pub fn seal(shared: &SharedBox, sender: &DiscoKey, nonce: &[u8; NONCE_BYTES], message: &Message) -> Vec<u8> {
    let mut envelope = MAGIC.to_vec();
    envelope.extend_from_slice(sender.as_bytes());
    envelope.extend_from_slice(nonce);
    envelope.extend(shared.seal(nonce, &message.encode()));
    envelope
}

/// Opens an envelope whose sender is known (see [`peek`]).
///
/// # Errors
/// [`DiscoError`]; drop the datagram silently then.
pub fn open(shared: &SharedBox, datagram: &[u8]) -> Result<Message, DiscoError> {
    let (header, sealed) = datagram.split_at_checked(HEADER_BYTES).ok_or(DiscoError::Envelope)?;
    if !header.starts_with(&MAGIC) {
        return Err(DiscoError::Envelope);
    }
    let nonce = header.last_chunk::<NONCE_BYTES>().ok_or(DiscoError::Envelope)?;
    let message = shared.open(nonce, sealed).ok_or(DiscoError::Sealed)?;
    Message::decode(&message)
}

impl Message {
    /// Writes type, version and body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Ping(ping) => {
                out.extend_from_slice(&[1, 0]);
                out.extend_from_slice(&ping.id);
                if let Some(key) = &ping.node_key {
                    out.extend_from_slice(key.as_bytes());
                }
                out.resize(out.len() + ping.padding, 0);
            }
            Self::Pong(pong) => {
                out.extend_from_slice(&[2, 0]);
                out.extend_from_slice(&pong.id);
                put_address(&mut out, pong.source);
            }
            Self::CallMeMaybe(endpoints) => {
                out.extend_from_slice(&[3, 0]);
                endpoints.iter().for_each(|endpoint| put_address(&mut out, *endpoint));
            }
            Self::BindEndpoint(bind) => bind.put(&mut out, 4),
            Self::BindChallenge(bind) => bind.put(&mut out, 5),
            Self::BindAnswer(bind) => bind.put(&mut out, 6),
            Self::CallMeMaybeVia(endpoint) => {
                out.extend_from_slice(&[7, 0]);
                endpoint.put(&mut out);
            }
            Self::AllocateRequest(request) => {
                out.extend_from_slice(&[8, 0]);
                request.clients.iter().for_each(|client| out.extend_from_slice(client.as_bytes()));
                out.extend_from_slice(&request.generation.to_be_bytes());
            }
            Self::AllocateResponse { generation, endpoint } => {
                out.extend_from_slice(&[9, 0]);
                out.extend_from_slice(&generation.to_be_bytes());
                endpoint.put(&mut out);
            }
            Self::Punch(Punch { answer, hard, address }) => {
                out.extend_from_slice(&[PUNCH, 0]);
                out.extend_from_slice(&PUNCH_MAGIC);
                out.push(u8::from(*answer) | u8::from(*hard) << 1);
                put_address(&mut out, *address);
            }
        }
        out
    }

    /// Reads type, version and body; bytes behind a body of fixed size are ignored.
    ///
    /// # Errors
    /// [`DiscoError::Type`] and [`DiscoError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DiscoError> {
        let (&[kind, version], body) = bytes.split_first_chunk().ok_or(DiscoError::Malformed)?;
        let mut body = Reader(body);
        Ok(match kind {
            1 => {
                let id = body.take()?;
                let node_key = body.take().ok().map(NodeKey::from_bytes);
                let padding = if node_key.is_some() { body.0.len() } else { 0 };
                Self::Ping(Ping { id, node_key, padding })
            }
            2 => Self::Pong(Pong { id: body.take()?, source: body.address()? }),
            // A list that is not understood counts as empty: the sender is still asking to be pinged.
            3 if version != 0 || !body.0.len().is_multiple_of(ADDRESS_BYTES) => Self::CallMeMaybe(Vec::new()),
            3 => Self::CallMeMaybe(body.addresses()?),
            4 => Self::BindEndpoint(Bind::read(&mut body)?),
            5 => Self::BindChallenge(Bind::read(&mut body)?),
            6 => Self::BindAnswer(Bind::read(&mut body)?),
            7 => Self::CallMeMaybeVia(RelayEndpoint::read(&mut body)?),
            8 => Self::AllocateRequest(AllocateRequest {
                clients: [DiscoKey::from_bytes(body.take()?), DiscoKey::from_bytes(body.take()?)],
                generation: u32::from_be_bytes(body.take()?),
            }),
            9 => Self::AllocateResponse {
                generation: u32::from_be_bytes(body.take()?),
                endpoint: RelayEndpoint::read(&mut body)?,
            },
            PUNCH => {
                if body.take()? != PUNCH_MAGIC {
                    return Err(DiscoError::Type(PUNCH));
                }
                let [flags] = body.take()?;
                Self::Punch(Punch { answer: flags & 1 != 0, hard: flags & 2 != 0, address: body.address()? })
            }
            other => return Err(DiscoError::Type(other)),
        })
    }
}

impl Bind {
    fn put(&self, out: &mut Vec<u8>, kind: u8) {
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&self.vni.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(self.remote_key.as_bytes());
        out.extend_from_slice(&self.challenge);
    }

    fn read(body: &mut Reader<'_>) -> Result<Self, DiscoError> {
        Ok(Self {
            vni: u32::from_be_bytes(body.take()?),
            generation: u32::from_be_bytes(body.take()?),
            remote_key: DiscoKey::from_bytes(body.take()?),
            challenge: body.take()?,
        })
    }
}

impl RelayEndpoint {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.server.as_bytes());
        self.clients.iter().for_each(|client| out.extend_from_slice(client.as_bytes()));
        out.extend_from_slice(&self.lamport_id.to_be_bytes());
        out.extend_from_slice(&self.vni.to_be_bytes());
        for lifetime in [self.bind_lifetime, self.steady_lifetime] {
            out.extend_from_slice(&u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX).to_be_bytes());
        }
        self.addresses.iter().for_each(|address| put_address(out, *address));
    }

    fn read(body: &mut Reader<'_>) -> Result<Self, DiscoError> {
        let endpoint = Self {
            server: DiscoKey::from_bytes(body.take()?),
            clients: [DiscoKey::from_bytes(body.take()?), DiscoKey::from_bytes(body.take()?)],
            lamport_id: u64::from_be_bytes(body.take()?),
            vni: u32::from_be_bytes(body.take()?),
            bind_lifetime: Duration::from_nanos(u64::from_be_bytes(body.take()?)),
            steady_lifetime: Duration::from_nanos(u64::from_be_bytes(body.take()?)),
            addresses: body.addresses()?,
        };
        if endpoint.addresses.is_empty() { Err(DiscoError::Malformed) } else { Ok(endpoint) }
    }
}

/// Appends an address: IPv4 mapped into IPv6, then the port.
fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// What is left of a body.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DiscoError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(DiscoError::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn address(&mut self) -> Result<SocketAddr, DiscoError> {
        let ip = Ipv6Addr::from(self.take::<16>()?);
        let port = u16::from_be_bytes(self.take()?);
        Ok(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port))
    }

    /// Reads addresses to the end of the body, the first [`MAX_ENDPOINTS`] of them.
    fn addresses(&mut self) -> Result<Vec<SocketAddr>, DiscoError> {
        if !self.0.len().is_multiple_of(ADDRESS_BYTES) {
            return Err(DiscoError::Malformed);
        }
        (0..(self.0.len() / ADDRESS_BYTES).min(MAX_ENDPOINTS)).map(|_| self.address()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::DiscoSecret;
    use proptest::prelude::*;

    fn shared() -> (DiscoKey, SharedBox, SharedBox) {
        let (alice, bob) = (DiscoSecret::from_bytes([1; 32]), DiscoSecret::from_bytes([2; 32]));
        let ours = SharedBox::new(&alice.diffie_hellman(bob.public().as_bytes()).unwrap());
        let theirs = SharedBox::new(&bob.diffie_hellman(alice.public().as_bytes()).unwrap());
        (alice.public(), ours, theirs)
    }

    /// Sizes that the protocol page gives for the official client's messages.
    #[test]
    fn ping_has_124_bytes_and_pong_110() {
        let (key, shared, _) = shared();
        let ping = Message::Ping(Ping { id: [1; 12], node_key: Some(NodeKey::from_bytes([2; 32])), padding: 0 });
        assert_eq!(seal(&shared, &key, &[0; 24], &ping).len(), 124);
        let pong = Message::Pong(Pong { id: [1; 12], source: "1.2.3.4:5".parse().unwrap() });
        assert_eq!(seal(&shared, &key, &[0; 24], &pong).len(), 110);
    }

    #[test]
    fn ping_without_node_key_is_read() {
        let ping = Message::decode(&[&[1, 0][..], &[7; 12], &[0; 5]].concat());
        assert_eq!(ping, Ok(Message::Ping(Ping { id: [7; 12], node_key: None, padding: 0 })));
    }

    #[test]
    fn odd_call_me_maybe_counts_as_empty() {
        assert_eq!(Message::decode(&[3, 0, 1]), Ok(Message::CallMeMaybe(Vec::new())));
        assert_eq!(Message::decode(&[&[3, 1][..], &[0; 18]].concat()), Ok(Message::CallMeMaybe(Vec::new())));
    }

    #[test]
    fn unknown_type_is_named() {
        assert_eq!(Message::decode(&[200, 0]), Err(DiscoError::Type(200)));
        assert_eq!(Message::decode(&[2, 0, 1]), Err(DiscoError::Malformed));
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let four = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
        let six =
            any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip).to_canonical(), port));
        prop_oneof![four, six]
    }

    prop_compose! {
        fn endpoint()(server: [u8; 32], clients: [[u8; 32]; 2], lamport_id: u64, vni: u32, lifetimes: [u64; 2],
                      addresses in proptest::collection::vec(address(), 1..5)) -> RelayEndpoint {
            RelayEndpoint {
                server: DiscoKey::from_bytes(server),
                clients: clients.map(DiscoKey::from_bytes),
                lamport_id, vni,
                bind_lifetime: Duration::from_nanos(lifetimes[0]),
                steady_lifetime: Duration::from_nanos(lifetimes[1]),
                addresses,
            }
        }
    }

    prop_compose! {
        fn bind()(vni: u32, generation: u32, key: [u8; 32], challenge: [u8; 32]) -> Bind {
            Bind { vni, generation, remote_key: DiscoKey::from_bytes(key), challenge }
        }
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<[u8; 12]>(), any::<[u8; 32]>(), 0_usize..50).prop_map(|(id, key, padding)| {
                Message::Ping(Ping { id, node_key: Some(NodeKey::from_bytes(key)), padding })
            }),
            (any::<[u8; 12]>(), address()).prop_map(|(id, source)| Message::Pong(Pong { id, source })),
            proptest::collection::vec(address(), 0..8).prop_map(Message::CallMeMaybe),
            bind().prop_map(Message::BindEndpoint),
            bind().prop_map(Message::BindChallenge),
            bind().prop_map(Message::BindAnswer),
            endpoint().prop_map(Message::CallMeMaybeVia),
            (any::<[[u8; 32]; 2]>(), any::<u32>()).prop_map(|(clients, generation)| {
                Message::AllocateRequest(AllocateRequest { clients: clients.map(DiscoKey::from_bytes), generation })
            }),
            (any::<u32>(), endpoint())
                .prop_map(|(generation, endpoint)| { Message::AllocateResponse { generation, endpoint } }),
            (any::<bool>(), any::<bool>(), address()).prop_map(|(answer, hard, address)| Message::Punch(Punch {
                answer,
                hard,
                address
            })),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip_sealed(message in message(), nonce: [u8; 24]) {
            let (key, ours, theirs) = shared();
            let datagram = seal(&ours, &key, &nonce, &message);
            prop_assert_eq!(peek(&datagram), Some(key));
            prop_assert!(looks_like_disco(&datagram));
            prop_assert_eq!(open(&theirs, &datagram), Ok(message));
        }

        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..12) {
            let _ = Message::decode(&bytes);
            let _ = Message::decode(&[&[kind, 0][..], &bytes].concat());
            let _ = open(&shared().1, &bytes);
            let _ = peek(&bytes);
        }
    }
}
