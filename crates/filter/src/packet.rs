//! What the filter needs to know of an IP packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of TSMP, a control protocol between tailnet nodes that never leaves the tunnel.
pub const PROTO_TSMP: u8 = 99;

pub(crate) const PROTO_ICMP4: u8 = 1;
/// Says TCP in an IP header.
pub const PROTO_TCP: u8 = 6;
/// Says UDP in an IP header.
pub const PROTO_UDP: u8 = 17;
pub(crate) const PROTO_FRAGMENT6: u8 = 44;
pub(crate) const PROTO_ICMP6: u8 = 58;
pub(crate) const PROTO_SCTP: u8 = 132;

/// The smallest offset of a later fragment, in bytes: nearer ones could overlap a transport header.
///
/// Source: Tailscale `net/packet`, `minFragBlks`.
const MIN_LATER_OFFSET: u16 = 80;

/// Shows a well-formed IPv4 or IPv6 packet.
///
/// A value of this type is proof that the header lengths agree with the bytes, and that the transport header of
/// everything but a later fragment is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: Option<Fragment>,
    body: Body,
    transport_at: usize,
}

/// Identifies which packet a fragment is a piece of, together with addresses and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The identification field; 16 bits in IPv4.
    pub id: u32,
    /// Whether this is the piece with the transport header.
    pub is_first: bool,
}

/// Holds the fields of the transport header that a filter decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// TCP, first fragment or whole.
    Tcp {
        /// Source and destination port.
        ports: Ports,
        /// The flags.
        flags: TcpFlags,
    },
    /// UDP, first fragment or whole.
    Udp {
        /// Source and destination port.
        ports: Ports,
    },
    /// SCTP, first fragment or whole.
    Sctp {
        /// Source and destination port.
        ports: Ports,
    },
    /// The ICMP of the packet's address family.
    Icmp(Icmp),
    /// TSMP.
    Tsmp,
    /// Any other protocol, including IPv6 extension headers other than a leading Fragment header.
    Other,
    /// A piece of a packet that does not hold the transport header.
    LaterFragment,
}

/// Holds the two ports of a TCP, UDP or SCTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
}

/// Holds the flags of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender is done.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;

    /// Tells whether this asks to open a connection: SYN set, ACK clear.
    pub fn is_opening(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Tells whether all flags of `mask` are set.
    pub fn has(self, mask: u8) -> bool {
        self.0 & mask == mask
    }
}

/// Sorts ICMP messages by what the filter does with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// An echo request.
    EchoRequest {
        /// Identifier, constant for one run of ping.
        id: u16,
    },
    /// An echo reply.
    EchoReply {
        /// Identifier of the request.
        id: u16,
    },
    /// A report about a packet, which it quotes.
    ///
    /// IPv4 types 3 (unreachable), 11 (time exceeded), 12 (parameter problem); IPv6 types 1 to 4.
    Error,
    /// Anything else: redirects, router and neighbour messages, timestamps and so on.
    Other,
}

/// Says why bytes are not a packet that the filter can judge. Such bytes are always dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Shorter than an IP header.
    #[error("too short for an IP header")]
    TooShort,
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0}")]
    Version(u8),
    /// The length fields disagree with each other or with the bytes.
    #[error("length fields that do not fit")]
    Length,
    /// The transport header is not whole.
    #[error("transport header cut short")]
    Transport,
    /// A later fragment that could overlap the transport header.
    #[error("fragment offset below {MIN_LATER_OFFSET} bytes")]
    Overlap,
    /// A fragment of a protocol that must not be fragmented.
    #[error("fragment of a control packet")]
    FragmentedControl,
    /// A protocol number that stands for nothing (0 and 255) or the ICMP of the other address family.
    #[error("protocol {0}")]
    Protocol(u8),
}

impl<'a> Packet<'a> {
    /// Reads the headers of the packet at the start of `bytes`; what follows it (padding) is left away.
    ///
    /// # Errors
    /// See [`PacketError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(version) => Err(PacketError::Version(version)),
            None => Err(PacketError::TooShort),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let header: &[u8; 20] = bytes.first_chunk().ok_or(PacketError::TooShort)?;
        let &[first, _, len0, len1, id0, id1, frag0, frag1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
        let bytes = bytes.get(..usize::from(u16::from_be_bytes([len0, len1]))).ok_or(PacketError::Length)?;
        let header_len = usize::from(first & 0x0f) * 4;
        if header_len < 20 || header_len > bytes.len() {
            return Err(PacketError::Length);
        }
        let frag = u16::from_be_bytes([frag0, frag1]);
        let raw = RawFragment {
            id: u32::from(u16::from_be_bytes([id0, id1])),
            offset: (frag & 0x1fff) * 8,
            more: frag & 0x2000 != 0,
        };
        Self::finish(
            bytes,
            (Ipv4Addr::new(s0, s1, s2, s3).into(), Ipv4Addr::new(d0, d1, d2, d3).into()),
            protocol,
            header_len,
            raw,
        )
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (header, rest) = bytes.split_first_chunk::<40>().ok_or(PacketError::TooShort)?;
        let &[_, _, _, _, len0, len1, next, _, ref addresses @ ..] = header;
        let payload_len = usize::from(u16::from_be_bytes([len0, len1]));
        let payload = rest.get(..payload_len).ok_or(PacketError::Length)?;
        let bytes = bytes.get(..40 + payload_len).ok_or(PacketError::Length)?;
        let (source, destination) = addresses.split_first_chunk::<16>().ok_or(PacketError::TooShort)?;
        let destination: &[u8; 16] = destination.first_chunk().ok_or(PacketError::TooShort)?;
        let addresses = (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into());
        if next != PROTO_FRAGMENT6 {
            return Self::finish(bytes, addresses, next, 40, RawFragment::WHOLE);
        }
        let &[next, _, frag0, frag1, i0, i1, i2, i3] = payload.first_chunk().ok_or(PacketError::Transport)?;
        let frag = u16::from_be_bytes([frag0, frag1]);
        let raw = RawFragment { id: u32::from_be_bytes([i0, i1, i2, i3]), offset: frag & 0xfff8, more: frag & 1 != 0 };
        Self::finish(bytes, addresses, next, 48, raw)
    }

    fn finish(
        bytes: &'a [u8],
        (source, destination): (IpAddr, IpAddr),
        protocol: u8,
        transport_at: usize,
        raw: RawFragment,
    ) -> Result<Self, PacketError> {
        let fragment = (raw.more || raw.offset != 0).then_some(Fragment { id: raw.id, is_first: raw.offset == 0 });
        let other_icmp = if source.is_ipv6() { PROTO_ICMP4 } else { PROTO_ICMP6 };
        if matches!(protocol, 0 | 255) || protocol == other_icmp {
            return Err(PacketError::Protocol(protocol));
        }
        if fragment.is_some() && protocol == PROTO_TSMP {
            return Err(PacketError::FragmentedControl);
        }
        let body = if raw.offset == 0 {
            let transport = bytes.get(transport_at..).ok_or(PacketError::Length)?;
            body(protocol, transport).ok_or(PacketError::Transport)?
        } else if raw.offset < MIN_LATER_OFFSET {
            return Err(PacketError::Overlap);
        } else {
            Body::LaterFragment
        };
        Ok(Self { bytes, source, destination, protocol, fragment, body, transport_at })
    }

    /// Returns the packet without whatever followed it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the sender's address.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Returns the receiver's address.
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Returns the protocol number, behind an IPv6 Fragment header if there is one.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Returns what the transport header says.
    pub fn body(&self) -> Body {
        self.body
    }

    /// Returns which packet this is a fragment of, `None` for a whole one.
    pub fn fragment(&self) -> Option<Fragment> {
        self.fragment
    }

    /// Returns the transport header and what follows it; in a later fragment, its piece of data.
    pub fn transport(&self) -> &'a [u8] {
        self.bytes.get(self.transport_at..).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
struct RawFragment {
    id: u32,
    /// In bytes.
    offset: u16,
    more: bool,
}

impl RawFragment {
    const WHOLE: Self = Self { id: 0, offset: 0, more: false };
}

/// Reads a transport header; `None` if it is not whole.
fn body(protocol: u8, transport: &[u8]) -> Option<Body> {
    let ports = || {
        let &[a, b, c, d] = transport.first_chunk()?;
        Some(Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) })
    };
    let at_least = |len| (transport.len() >= len).then_some(());
    Some(match protocol {
        PROTO_TCP => {
            at_least(20)?;
            Body::Tcp { ports: ports()?, flags: TcpFlags(*transport.get(13)?) }
        }
        PROTO_UDP => {
            at_least(8)?;
            Body::Udp { ports: ports()? }
        }
        PROTO_SCTP => {
            at_least(12)?;
            Body::Sctp { ports: ports()? }
        }
        PROTO_ICMP4 => Body::Icmp(icmp(transport, [8, 0], |kind| matches!(kind, 3 | 11 | 12))?),
        PROTO_ICMP6 => Body::Icmp(icmp(transport, [128, 129], |kind| matches!(kind, 1..=4))?),
        PROTO_TSMP => Body::Tsmp,
        _ => Body::Other,
    })
}

fn icmp(transport: &[u8], [request, reply]: [u8; 2], is_error: impl Fn(u8) -> bool) -> Option<Icmp> {
    let &[kind, code, _, _] = transport.first_chunk()?;
    if code == 0 && (kind == request || kind == reply) {
        let &[_, _, _, _, id0, id1, _, _] = transport.first_chunk()?;
        let id = u16::from_be_bytes([id0, id1]);
        return Some(if kind == request { Icmp::EchoRequest { id } } else { Icmp::EchoReply { id } });
    }
    Some(if is_error(kind) { Icmp::Error } else { Icmp::Other })
}

/// Names the packet that an ICMP error quotes, as far as flows are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quoted {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// Ports; for an echo request its identifier and 0.
    pub(crate) ports: Ports,
}

/// Reads the packet that the ICMP error `transport` quotes: its header and 8 bytes of the next are guaranteed.
///
/// Later fragments, quotes of a quote and anything that has no flow give `None`.
pub(crate) fn quoted(v6: bool, transport: &[u8]) -> Option<Quoted> {
    let quote = transport.get(8..)?;
    let (source, destination, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = if v6 {
        let header: &[u8; 40] = quote.first_chunk()?;
        let &[first, _, _, _, _, _, next, _, ref addresses @ ..] = header;
        let (source, destination) = addresses.split_first_chunk::<16>()?;
        let destination: &[u8; 16] = destination.first_chunk()?;
        let mut rest = quote.get(40..)?;
        let mut protocol = next;
        if next == PROTO_FRAGMENT6 {
            let &[next, _, frag0, frag1, ..] = rest.first_chunk::<8>()?;
            if u16::from_be_bytes([frag0, frag1]) & 0xfff8 != 0 {
                return None;
            }
            protocol = next;
            rest = rest.get(8..)?;
        }
        if first >> 4 != 6 {
            return None;
        }
        (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), protocol, rest)
    } else {
        let header: &[u8; 20] = quote.first_chunk()?;
        let &[first, _, _, _, _, _, frag0, frag1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < 20 || u16::from_be_bytes([frag0, frag1]) & 0x1fff != 0 {
            return None;
        }
        let addresses = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
        (addresses.0.into(), addresses.1.into(), protocol, quote.get(header_len..)?)
    };
    let ports = match protocol {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            let &[a, b, c, d] = rest.first_chunk()?;
            Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) }
        }
        PROTO_ICMP4 | PROTO_ICMP6 if (protocol == PROTO_ICMP6) == v6 => {
            let Body::Icmp(Icmp::EchoRequest { id }) = body(protocol, rest)? else {
                return None;
            };
            Ports { source: id, destination: 0 }
        }
        _ => return None,
    };
    Some(Quoted { source, destination, protocol, ports })
}

#[cfg(test)]
mod tests;
