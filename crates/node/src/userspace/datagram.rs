//! UDP packets of a node without TUN.

use std::net::SocketAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, UdpPacket, UdpRepr};

/// Hops that a packet may take. Source: Linux, `net.ipv4.ip_default_ttl`.
const HOPS: u8 = 64;

/// Makes the packet that carries a datagram; `None` if that is larger than `mtu` bytes, which nobody could cut, or the
/// addresses are of two families.
pub(crate) fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8], mtu: usize) -> Option<Vec<u8>> {
    if from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let (own, peer): (IpAddress, IpAddress) = (from.ip().into(), to.ip().into());
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let length = udp.header_len() + payload.len();
    let ip = IpRepr::new(own, peer, IpProtocol::Udp, length, HOPS);
    if ip.buffer_len() > mtu {
        return None;
    }
    let mut bytes = vec![0; ip.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut bytes[..], &checksums);
    let mut packet = UdpPacket::new_unchecked(bytes.get_mut(ip.header_len()..)?);
    udp.emit(&mut packet, &own, &peer, payload.len(), |room| room.copy_from_slice(payload), &checksums);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_filter::{Body, Packet};

    /// The receiver is a kernel, which drops what has a wrong checksum.
    #[test]
    fn packets_are_sound_in_both_families_and_never_larger_than_the_tunnel() {
        for (from, to) in [("100.64.0.1:53", "100.64.0.2:4000"), ("[fd7a::1]:53", "[fd7a::2]:4000")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let bytes = packet(from, to, b"hello", 1280).unwrap();
            let parsed = Packet::parse(&bytes).unwrap();
            assert_eq!((parsed.source(), parsed.destination()), (from.ip(), to.ip()));
            assert!(matches!(parsed.body(), Body::Udp { ports } if (ports.source, ports.destination) == (53, 4000)));
            let udp = UdpPacket::new_checked(parsed.transport()).unwrap();
            assert!(udp.verify_checksum(&from.ip().into(), &to.ip().into()));
            assert_eq!(udp.payload(), b"hello");
            let headers = bytes.len() - 5;
            assert_eq!(packet(from, to, &vec![0; 1280 - headers], 1280).map(|bytes| bytes.len()), Some(1280));
            assert_eq!(packet(from, to, &vec![0; 1281 - headers], 1280), None);
        }
        assert_eq!(packet("1.2.3.4:5".parse().unwrap(), "[::1]:5".parse().unwrap(), b"", 1280), None);
    }
}
