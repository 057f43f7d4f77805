//! DERP: frames between a relay and its clients.
//!
//! Frame = type u8, length u32 (big-endian), payload. Source: Tailscale `derp/derp.go`.

mod mesh;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::key::{NodeKey, NodeSecret};
use crate::nacl::{NONCE_BYTES, SharedBox};

pub use mesh::MeshKey;

/// Version of the protocol.
pub const VERSION: u8 = 2;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 5;
/// Most bytes of a relayed packet.
pub const PACKET_MAX: usize = 64 << 10;
/// Most bytes of any payload that a client reads.
pub const CLIENT_PAYLOAD_MAX: usize = 1 << 20;
/// Most bytes of a client's introduction that a server reads; official clients send a few hundred.
pub const CLIENT_INFO_MAX: usize = 4 << 10;
/// Most bytes of a ping that a server takes.
pub const PING_MAX: usize = 1000;
/// Eight bytes in front of the server's key.
pub const MAGIC: [u8; 8] = *b"DERP\xF0\x9F\x94\x91";

const SERVER_KEY: u8 = 0x01;
const CLIENT_INFO: u8 = 0x02;
const SERVER_INFO: u8 = 0x03;
/// Type byte of [`Frame::SendPacket`], which a server reads piece by piece.
pub const SEND_PACKET: u8 = 0x04;
const RECV_PACKET: u8 = 0x05;
const KEEP_ALIVE: u8 = 0x06;
const NOTE_PREFERRED: u8 = 0x07;
const PEER_GONE: u8 = 0x08;
const PEER_PRESENT: u8 = 0x09;
const FORWARD_PACKET: u8 = 0x0A;
const WATCH_CONNS: u8 = 0x10;
const CLOSE_PEER: u8 = 0x11;
const PING: u8 = 0x12;
const PONG: u8 = 0x13;
const HEALTH: u8 = 0x14;
const RESTARTING: u8 = 0x15;

/// A frame, its payload borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame<'a> {
    /// Server's first word: its key.
    ServerKey(NodeKey),
    /// Client's introduction: its key and a sealed [`ClientInfo`].
    ClientInfo {
        /// The client.
        key: NodeKey,
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// Server's answer: a sealed [`ServerInfo`].
    ServerInfo {
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// Client to server: deliver.
    SendPacket {
        /// To whom.
        to: NodeKey,
        /// What.
        packet: &'a [u8],
    },
    /// Server to client: delivered.
    RecvPacket {
        /// From whom.
        from: NodeKey,
        /// What.
        packet: &'a [u8],
    },
    /// Server's sign of life.
    KeepAlive,
    /// Whether this is the client's home.
    NotePreferred(bool),
    /// A peer is not there.
    PeerGone {
        /// Who.
        key: NodeKey,
        /// Why.
        reason: GoneReason,
    },
    /// Server to another one that watches: a client is here.
    PeerPresent {
        /// Who.
        key: NodeKey,
        /// Where it connects from; old servers do not say.
        source: Option<SocketAddr>,
        /// Sum of [`present`]'s numbers; 0 from old servers.
        flags: u8,
    },
    /// Server to another one of its region: deliver to a client of yours.
    ForwardPacket {
        /// From whom.
        from: NodeKey,
        /// To whom.
        to: NodeKey,
        /// What.
        packet: &'a [u8],
    },
    /// Server to another one of its region: tell me who is here.
    WatchConns,
    /// Server to another one of its region: end all connections of that key.
    ClosePeer(NodeKey),
    /// Asks for a pong.
    Ping([u8; 8]),
    /// Answers a ping.
    Pong([u8; 8]),
    /// A trouble with this connection; empty: it is over.
    Health(&'a str),
    /// The server restarts.
    Restarting {
        /// Reconnect after this many milliseconds.
        reconnect_in_millis: u32,
        /// Keep trying for this many milliseconds.
        try_for_millis: u32,
    },
    /// A type that we do not know, to be skipped.
    Unknown(u8),
}

/// What a client is that is announced to other servers: numbers that are added up.
pub mod present {
    /// None of the others.
    pub const REGULAR: u8 = 1;
    /// A server of the region.
    pub const MESH_PEER: u8 = 2;
    /// It only probes.
    pub const PROBER: u8 = 4;
    /// It would rather be on another server of the region.
    pub const NOT_IDEAL: u8 = 8;
}

/// Why a peer is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// It left the region.
    Disconnected,
    /// The region has not heard of it.
    NotHere,
    /// Another number.
    Other(u8),
}

impl GoneReason {
    const fn number(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::NotHere => 1,
            Self::Other(number) => number,
        }
    }

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }
}

/// Says why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than its type or the receiver allows.
    #[error("frame of type {kind} with {len} bytes, {max} at most")]
    TooLong {
        /// Type byte.
        kind: u8,
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Too short for its type, or otherwise not of its form.
    #[error("malformed frame of type {kind}")]
    Malformed {
        /// Type byte.
        kind: u8,
    },
}

/// Which end reads, which decides the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A server before it knows the client.
    ServerHandshake,
    /// A server of an admitted client.
    Server,
    /// A server of another one that has shown the mesh key.
    Mesh,
    /// A client.
    Client,
}

impl Reader {
    /// Returns the most bytes that a frame of this type may have for this reader. Unknown types are bounded, too.
    #[must_use]
    pub const fn limit(self, kind: u8) -> usize {
        match (self, kind) {
            (Self::ServerHandshake, _) => CLIENT_INFO_MAX,
            (Self::Mesh, FORWARD_PACKET) => 64 + PACKET_MAX,
            (Self::Server | Self::Mesh, SEND_PACKET) => 32 + PACKET_MAX,
            (Self::Server | Self::Mesh, PING) => PING_MAX,
            (Self::Server | Self::Mesh, NOTE_PREFERRED) => 1,
            (Self::Server | Self::Mesh, _) => CLIENT_INFO_MAX,
            (Self::Client, _) => CLIENT_PAYLOAD_MAX,
        }
    }
}

/// Reads a frame's header: its type and the length of its payload.
///
/// # Errors
/// [`FrameError::TooLong`] before a byte of the payload is read.
pub fn parse_header(header: [u8; HEADER_BYTES], reader: Reader) -> Result<(u8, usize), FrameError> {
    let [kind, length @ ..] = header;
    let len = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    let max = reader.limit(kind);
    if len > max { Err(FrameError::TooLong { kind, len, max }) } else { Ok((kind, len)) }
}

impl<'a> Frame<'a> {
    /// Reads a payload of the given type.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        Self::decode_known(kind, payload).ok_or(FrameError::Malformed { kind })
    }

    fn decode_known(kind: u8, payload: &'a [u8]) -> Option<Self> {
        let key = |bytes: &'a [u8]| {
            let (key, rest) = bytes.split_first_chunk::<32>()?;
            Some((NodeKey::from_bytes(*key), rest))
        };
        Some(match kind {
            SERVER_KEY => Self::ServerKey(key(payload.strip_prefix(&MAGIC)?)?.0),
            CLIENT_INFO => {
                let (key, sealed) = key(payload)?;
                Self::ClientInfo { key, sealed }
            }
            SERVER_INFO => Self::ServerInfo { sealed: payload },
            SEND_PACKET => {
                let (to, packet) = key(payload)?;
                Self::SendPacket { to, packet }
            }
            RECV_PACKET => {
                let (from, packet) = key(payload)?;
                Self::RecvPacket { from, packet }
            }
            KEEP_ALIVE => Self::KeepAlive,
            NOTE_PREFERRED => match payload {
                [value] => Self::NotePreferred(*value != 0),
                _ => return None,
            },
            PEER_GONE => {
                let (key, rest) = key(payload)?;
                Self::PeerGone { key, reason: GoneReason::of(rest.first().copied().unwrap_or_default()) }
            }
            PEER_PRESENT => {
                let (key, rest) = key(payload)?;
                let source = rest.split_first_chunk::<18>();
                let flags = source.and_then(|(_, rest)| rest.first()).copied().unwrap_or_default();
                Self::PeerPresent { key, source: source.map(|(address, _)| mesh::address(*address)), flags }
            }
            FORWARD_PACKET => {
                let (from, rest) = key(payload)?;
                let (to, packet) = key(rest)?;
                Self::ForwardPacket { from, to, packet }
            }
            WATCH_CONNS => Self::WatchConns,
            CLOSE_PEER => match key(payload)? {
                (key, []) => Self::ClosePeer(key),
                _ => return None,
            },
            PING => Self::Ping(*payload.first_chunk()?),
            PONG => Self::Pong(*payload.first_chunk()?),
            HEALTH => Self::Health(std::str::from_utf8(payload).ok()?),
            RESTARTING => {
                let (reconnect, rest) = payload.split_first_chunk()?;
                Self::Restarting {
                    reconnect_in_millis: u32::from_be_bytes(*reconnect),
                    try_for_millis: u32::from_be_bytes(*rest.first_chunk()?),
                }
            }
            other => Self::Unknown(other),
        })
    }

    /// Appends header and payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::ServerKey(key) => put(out, SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Self::ClientInfo { key, sealed } => put(out, CLIENT_INFO, &[key.as_bytes(), sealed]),
            Self::ServerInfo { sealed } => put(out, SERVER_INFO, &[sealed]),
            Self::SendPacket { to, packet } => put(out, SEND_PACKET, &[to.as_bytes(), packet]),
            Self::RecvPacket { from, packet } => put(out, RECV_PACKET, &[from.as_bytes(), packet]),
            Self::KeepAlive => put(out, KEEP_ALIVE, &[]),
            Self::NotePreferred(home) => put(out, NOTE_PREFERRED, &[&[u8::from(*home)]]),
            Self::PeerGone { key, reason } => put(out, PEER_GONE, &[key.as_bytes(), &[reason.number()]]),
            Self::PeerPresent { key, source: None, .. } => put(out, PEER_PRESENT, &[key.as_bytes()]),
            Self::PeerPresent { key, source: Some(source), flags } => {
                let ip = match source.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                let parts = [key.as_bytes().as_slice(), &ip.octets(), &source.port().to_be_bytes(), &[*flags]];
                put(out, PEER_PRESENT, &parts);
            }
            Self::ForwardPacket { from, to, packet } => {
                put(out, FORWARD_PACKET, &[from.as_bytes(), to.as_bytes(), packet]);
            }
            Self::WatchConns => put(out, WATCH_CONNS, &[]),
            Self::ClosePeer(key) => put(out, CLOSE_PEER, &[key.as_bytes()]),
            Self::Ping(data) => put(out, PING, &[data]),
            Self::Pong(data) => put(out, PONG, &[data]),
            Self::Health(text) => put(out, HEALTH, &[text.as_bytes()]),
            Self::Restarting { reconnect_in_millis, try_for_millis } => {
                put(out, RESTARTING, &[&reconnect_in_millis.to_be_bytes(), &try_for_millis.to_be_bytes()]);
            }
            Self::Unknown(kind) => put(out, *kind, &[]),
        }
    }
}

/// Appends a frame of these parts.
fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(kind);
    // Payloads are bounded far below 4 GiB by whoever made them.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// What a client says of itself. Nothing is required.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// Version of the protocol.
    pub version: u32,
    /// It answers pings, and skips frames that it does not know. The official Rust client, which does not, says
    /// `can_ack_pings` instead; that is not read.
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// It only probes the relay.
    #[serde(rename = "IsProber", alias = "is_prober", skip_serializing_if = "std::ops::Not::not")]
    pub is_prober: bool,
    /// What servers of one region show each other. Anything but 64 hex digits makes the introduction unreadable.
    #[serde(rename = "meshKey", with = "mesh::text", skip_serializing_if = "Option::is_none")]
    pub mesh_key: Option<MeshKey>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Version of the protocol.
    pub version: u32,
    /// The client should send no more than this.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// … but this much at once.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<u64>,
}

/// Seals an introduction for the holder of `to`: nonce and box. `nonce` must be fresh randomness. `None` if `to` is of
/// low order.
#[must_use]
pub fn seal_info<T: Serialize>(info: &T, from: &NodeSecret, to: &NodeKey, nonce: [u8; NONCE_BYTES]) -> Option<Vec<u8>> {
    let shared = SharedBox::new(&from.diffie_hellman(to.as_bytes())?);
    let json = serde_json::to_vec(info).ok()?;
    Some([nonce.as_slice(), &shared.seal(&nonce, &json)].concat())
}

/// Opens an introduction sealed by the holder of `from`; `None` if it is not from there or not of its form.
#[must_use]
pub fn open_info<T: for<'de> Deserialize<'de>>(sealed: &[u8], to: &NodeSecret, from: &NodeKey) -> Option<T> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let shared = SharedBox::new(&to.diffie_hellman(from.as_bytes())?);
    serde_json::from_slice(&shared.open(nonce, sealed)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], reader: Reader) -> Result<Frame<'_>, FrameError> {
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let (kind, length) = parse_header(*header, reader)?;
        assert_eq!(length, payload.len());
        Frame::decode(kind, payload)
    }

    /// Bytes written out by hand from the protocol page.
    #[test]
    fn frames_have_the_documented_bytes() {
        let mut out = Vec::new();
        Frame::ServerKey(NodeKey::from_bytes([7; 32])).encode(&mut out);
        assert_eq!(out, [&b"\x01\0\0\0\x28DERP\xF0\x9F\x94\x91"[..], &[7; 32]].concat());
        out.clear();
        Frame::NotePreferred(true).encode(&mut out);
        assert_eq!(out, b"\x07\0\0\0\x01\x01");
        out.clear();
        Frame::PeerGone { key: NodeKey::from_bytes([9; 32]), reason: GoneReason::NotHere }.encode(&mut out);
        assert_eq!(out, [&b"\x08\0\0\0\x21"[..], &[9; 32], &[1]].concat());
        out.clear();
        Frame::KeepAlive.encode(&mut out);
        assert_eq!(out, b"\x06\0\0\0\0");
    }

    #[test]
    fn lengths_are_refused_before_the_payload() {
        let header = |kind: u8, len: u32| [&[kind][..], &len.to_be_bytes()].concat().try_into().unwrap();
        assert!(parse_header(header(CLIENT_INFO, 100_000), Reader::ServerHandshake).is_err());
        assert!(parse_header(header(SEND_PACKET, 65_568), Reader::Server).is_ok());
        assert!(parse_header(header(SEND_PACKET, 65_569), Reader::Server).is_err());
        assert!(parse_header(header(0x77, u32::MAX), Reader::Client).is_err());
    }

    /// Bytes written out by hand from the protocol page: address as IPv6, port, flags.
    #[test]
    fn frames_among_servers_have_the_documented_bytes() {
        let (key, mut out) = (NodeKey::from_bytes([9; 32]), Vec::new());
        let source = Some("192.0.2.1:258".parse().unwrap());
        Frame::PeerPresent { key, source, flags: present::MESH_PEER | present::NOT_IDEAL }.encode(&mut out);
        let address = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 1, 1, 2]].concat();
        assert_eq!(out, [&b"\x09\0\0\0\x33"[..], &[9; 32], &address, &[10]].concat());
        out.clear();
        Frame::ForwardPacket { from: key, to: NodeKey::from_bytes([8; 32]), packet: b"x" }.encode(&mut out);
        assert_eq!(out, [&b"\x0A\0\0\0\x41"[..], &[9; 32], &[8; 32], b"x"].concat());
        assert_eq!(Frame::decode(CLOSE_PEER, &[9; 33]), Err(FrameError::Malformed { kind: CLOSE_PEER }));
        // Servers of before say less.
        let present = |bytes: &[u8]| {
            Frame::decode(PEER_PRESENT, bytes).map(|frame| frame == Frame::PeerPresent { key, source, flags: 0 })
        };
        assert_eq!(present(&[&[9; 32][..], &address].concat()), Ok(true));
        assert_eq!(Frame::decode(PEER_PRESENT, &[9; 32]), Ok(Frame::PeerPresent { key, source: None, flags: 0 }));
    }

    #[test]
    fn mesh_key_that_is_none_makes_the_introduction_unreadable() {
        let (client, server) = (NodeSecret::from_bytes([1; 32]), NodeSecret::from_bytes([2; 32]));
        let digits = "0123456789abcdef".repeat(4);
        for (json, expected) in [
            (format!(r#"{{"version":2,"meshKey":"{digits}"}}"#), Some(true)),
            (r#"{"version":2,"mesh_key":"none"}"#.to_owned(), Some(false)),
            (format!(r#"{{"version":2,"meshKey":"{digits}00"}}"#), None),
            (r#"{"version":2,"meshKey":""}"#.to_owned(), None),
        ] {
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let sealed = seal_info(&value, &client, &server.public(), [3; 24]).unwrap();
            let info = open_info::<ClientInfo>(&sealed, &server, &client.public());
            assert_eq!(info.as_ref().map(|info| info.mesh_key == MeshKey::from_hex(&digits)), expected, "{json}");
            assert!(!format!("{info:?}").contains("89abcdef"));
        }
    }

    #[test]
    fn peer_gone_of_an_old_server_has_no_reason() {
        let gone = Frame::decode(PEER_GONE, &[3; 32]);
        assert_eq!(gone, Ok(Frame::PeerGone { key: NodeKey::from_bytes([3; 32]), reason: GoneReason::Disconnected }));
    }

    /// Both dialects: the Go client's and the Rust client's names.
    #[test]
    fn introductions_of_both_official_clients_open() {
        let (client, server) = (NodeSecret::from_bytes([1; 32]), NodeSecret::from_bytes([2; 32]));
        for (can_ack_pings, json) in [
            (true, r#"{"version":2,"CanAckPings":true}"#),
            (false, r#"{"mesh_key":"none","version":2,"can_ack_pings":false,"is_prober":false}"#),
        ] {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            let sealed = seal_info(&value, &client, &server.public(), [3; 24]).unwrap();
            let info: ClientInfo = open_info(&sealed, &server, &client.public()).unwrap();
            assert_eq!(info, ClientInfo { version: 2, can_ack_pings, ..ClientInfo::default() });
            assert!(open_info::<ClientInfo>(&sealed, &server, &server.public()).is_none(), "another sender");
        }
        let info = ServerInfo { version: 2, ..ServerInfo::default() };
        assert_eq!(serde_json::to_string(&info).unwrap(), r#"{"version":2}"#);
    }

    proptest! {
        #[test]
        fn packets_round_trip(key: [u8; 32], packet in proptest::collection::vec(any::<u8>(), 0..300), data: [u8; 8]) {
            let key = NodeKey::from_bytes(key);
            for frame in [
                Frame::SendPacket { to: key, packet: &packet },
                Frame::RecvPacket { from: key, packet: &packet },
                Frame::ClientInfo { key, sealed: &packet },
                Frame::Ping(data),
                Frame::Pong(data),
                Frame::PeerGone { key, reason: GoneReason::of(data[0]) },
                Frame::PeerPresent { key, source: None, flags: 0 },
                Frame::PeerPresent { key, source: Some(([data[1]; 4], 7).into()), flags: data[0] },
                Frame::PeerPresent { key, source: Some(([0x2001, 1, 0, 0, 0, 0, 0, 1], 7).into()), flags: data[0] },
                Frame::ForwardPacket { from: NodeKey::from_bytes([data[0]; 32]), to: key, packet: &packet },
                Frame::WatchConns,
                Frame::ClosePeer(key),
                Frame::Health("slow"),
                Frame::Restarting { reconnect_in_millis: 5, try_for_millis: u32::from(data[1]) },
            ] {
                let mut out = Vec::new();
                frame.encode(&mut out);
                prop_assert_eq!(decode(&out, Reader::Client), Ok(frame));
            }
        }

        #[test]
        fn no_payload_panics(kind in 0_u8..0x20, payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Frame::decode(kind, &payload);
            let _ = open_info::<ClientInfo>(&payload, &NodeSecret::from_bytes([1; 32]), &NodeKey::from_bytes([2; 32]));
        }
    }
}
