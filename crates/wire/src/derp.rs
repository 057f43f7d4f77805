//! DERP: frames between a relay and its clients.
//!
//! Frame = type u8, length u32 (big-endian), payload. Source: Tailscale `derp/derp.go`.

use serde::{Deserialize, Serialize};

use crate::key::{NodeKey, NodeSecret};
use crate::nacl::{NONCE_BYTES, SharedBox};

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
    /// A client.
    Client,
}

impl Reader {
    /// Returns the most bytes that a frame of this type may have for this reader. Unknown types are bounded, too.
    #[must_use]
    pub const fn limit(self, kind: u8) -> usize {
        match (self, kind) {
            (Self::ServerHandshake, _) => CLIENT_INFO_MAX,
            (Self::Server, SEND_PACKET) => 32 + PACKET_MAX,
            (Self::Server, PING) => PING_MAX,
            (Self::Server, NOTE_PREFERRED) => 1,
            (Self::Server, _) => CLIENT_INFO_MAX,
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
            assert_eq!(info, ClientInfo { version: 2, can_ack_pings, is_prober: false });
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
