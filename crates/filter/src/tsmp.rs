//! TSMP: what tailnet nodes tell each other inside the tunnel, IP protocol 99.
//!
//! | first byte | message | after it |
//! |---|---|---|
//! | `!` | reject | u8 protocol, u8 reason, u16 source port, u16 destination port, optional u8 flags (bit 0: may heal) |
//! | `p` | ping | 8 bytes |
//! | `o` | pong | the 8 bytes, u16 peer API port (absent from old nodes) |
//! | `a` | disco key | 32 bytes |
//!
//! Source: Tailscale `net/packet`, `tsmp.go`.

use std::net::IpAddr;

use crate::packet::{Body, PROTO_TSMP, Packet};

/// Holds a TSMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The sender of the packet refuses a connection that the receiver tried to open.
    Reject(Reject),
    /// Asks for a pong.
    Ping {
        /// Comes back in the pong.
        data: [u8; 8],
    },
    /// Answers a ping.
    Pong {
        /// The ping's data.
        data: [u8; 8],
        /// The answering node's peer API port; 0 for none.
        peer_api_port: u16,
    },
    /// Tells the disco key of the node that owns the packet's source address.
    DiscoKey([u8; 32]),
}

/// Says which connection is refused and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Protocol of the refused packet.
    pub protocol: u8,
    /// Why.
    pub reason: Reason,
    /// The opener's port, on the receiver of this message.
    pub source_port: u16,
    /// The port on the sender of this message.
    pub destination_port: u16,
    /// Whether a later try may succeed without a change of policy.
    pub maybe_broken: bool,
}

/// Says why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// No rule allows it.
    Acl,
    /// The node takes no connections at the moment.
    ShieldsUp,
    /// The node does not forward.
    ForwardingOff,
    /// A firewall of the host is in the way.
    HostFirewall,
    /// A code that this program does not know.
    Other(u8),
}

impl Message {
    /// Reads the TSMP message in `packet`; `None` if it is none or not whole.
    pub fn parse(packet: &Packet<'_>) -> Option<Self> {
        if packet.body() != Body::Tsmp {
            return None;
        }
        let (&kind, rest) = packet.transport().split_first()?;
        match kind {
            b'!' => {
                let &[protocol, reason, s0, s1, d0, d1] = rest.first_chunk()?;
                Some(Self::Reject(Reject {
                    protocol,
                    reason: Reason::from_code(reason),
                    source_port: u16::from_be_bytes([s0, s1]),
                    destination_port: u16::from_be_bytes([d0, d1]),
                    maybe_broken: rest.get(6).is_some_and(|flags| flags & 1 != 0),
                }))
            }
            b'p' => Some(Self::Ping { data: *rest.first_chunk()? }),
            b'o' => {
                let (data, rest) = rest.split_first_chunk()?;
                let peer_api_port = rest.first_chunk().map_or(0, |port| u16::from_be_bytes(*port));
                Some(Self::Pong { data: *data, peer_api_port })
            }
            // The all-zero key stands for none.
            b'a' => rest.first_chunk().filter(|key| **key != [0; 32]).map(|key| Self::DiscoKey(*key)),
            _ => None,
        }
    }

    /// Makes the whole IP packet that carries this message; `None` if the addresses are of different families.
    pub fn packet(&self, source: IpAddr, destination: IpAddr) -> Option<Vec<u8>> {
        let mut payload = Vec::with_capacity(33);
        match self {
            Self::Reject(reject) => {
                payload.extend([b'!', reject.protocol, reject.reason.code()]);
                payload.extend(reject.source_port.to_be_bytes());
                payload.extend(reject.destination_port.to_be_bytes());
                payload.push(u8::from(reject.maybe_broken));
            }
            Self::Ping { data } => {
                payload.push(b'p');
                payload.extend(data);
            }
            Self::Pong { data, peer_api_port } => {
                payload.push(b'o');
                payload.extend(data);
                payload.extend(peer_api_port.to_be_bytes());
            }
            Self::DiscoKey(key) => {
                payload.push(b'a');
                payload.extend(key);
            }
        }
        let payload_len = u16::try_from(payload.len()).ok()?;
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [len0, len1] = (20 + payload_len).to_be_bytes();
                let mut header = vec![0x45, 0, len0, len1, 0, 0, 0, 0, HOP_LIMIT, PROTO_TSMP, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                let [sum0, sum1] = checksum(&header).to_be_bytes();
                if let Some(field) = header.get_mut(10..12) {
                    field.copy_from_slice(&[sum0, sum1]);
                }
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [len0, len1] = payload_len.to_be_bytes();
                let mut header = vec![0x60, 0, 0, 0, len0, len1, PROTO_TSMP, HOP_LIMIT];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => return None,
        };
        packet.extend(payload);
        Some(packet)
    }
}

impl Reject {
    /// Makes the reject for a refused TCP `packet`, to be sent back to its source; `None` for anything else.
    pub fn of(packet: &Packet<'_>, reason: Reason) -> Option<Self> {
        let Body::Tcp { ports, .. } = packet.body() else {
            return None;
        };
        Some(Self {
            protocol: packet.protocol(),
            reason,
            source_port: ports.source,
            destination_port: ports.destination,
            maybe_broken: false,
        })
    }
}

impl Reason {
    fn from_code(code: u8) -> Self {
        match code {
            b'A' => Self::Acl,
            b'S' => Self::ShieldsUp,
            b'F' => Self::ForwardingOff,
            b'W' => Self::HostFirewall,
            code => Self::Other(code),
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Acl => b'A',
            Self::ShieldsUp => b'S',
            Self::ForwardingOff => b'F',
            Self::HostFirewall => b'W',
            Self::Other(code) => code,
        }
    }
}

const HOP_LIMIT: u8 = 64;

/// Computes the Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(header: &[u8]) -> u16 {
    let (pairs, _) = header.as_chunks::<2>();
    let mut sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Message; 5] = [
        Message::Reject(Reject {
            protocol: 6,
            reason: Reason::Acl,
            source_port: 40_000,
            destination_port: 22,
            maybe_broken: true,
        }),
        Message::Ping { data: *b"12345678" },
        Message::Pong { data: *b"12345678", peer_api_port: 0 },
        Message::Pong { data: *b"12345678", peer_api_port: 4242 },
        Message::DiscoKey([7; 32]),
    ];

    #[test]
    fn messages_survive_the_way_over_both_families() {
        for (source, destination) in [("100.64.0.1", "100.64.0.2"), ("fd7a::1", "fd7a::2")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            for message in ALL {
                let bytes = message.packet(source, destination).unwrap();
                let packet = Packet::parse(&bytes).unwrap();
                assert_eq!((packet.source(), packet.destination()), (source, destination));
                assert_eq!(Message::parse(&packet), Some(message));
                for cut in 1..9 {
                    // Shorter messages are refused or, where a field is optional, read without it; never worse.
                    let mut short = bytes[..bytes.len() - cut].to_vec();
                    match source {
                        IpAddr::V4(_) => short[3] -= u8::try_from(cut).unwrap(),
                        IpAddr::V6(_) => short[5] -= u8::try_from(cut).unwrap(),
                    }
                    let _ = Message::parse(&Packet::parse(&short).unwrap());
                }
            }
        }
        assert_eq!(ALL[1].packet("1.2.3.4".parse().unwrap(), "::1".parse().unwrap()), None);
        let zero = Message::DiscoKey([0; 32]).packet("1.2.3.4".parse().unwrap(), "1.2.3.5".parse().unwrap()).unwrap();
        assert_eq!(Message::parse(&Packet::parse(&zero).unwrap()), None, "a zero key is no key");
    }

    #[test]
    fn a_disco_key_packet_has_the_documented_sizes() {
        let message = ALL[4];
        assert_eq!(message.packet("1.2.3.4".parse().unwrap(), "1.2.3.5".parse().unwrap()).unwrap().len(), 53);
        assert_eq!(message.packet("::1".parse().unwrap(), "::2".parse().unwrap()).unwrap().len(), 73);
    }

    #[test]
    fn the_header_checksum_is_the_published_one() {
        // The worked example of the Wikipedia article on the IPv4 header checksum.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
            0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }
}
