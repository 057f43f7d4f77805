//! Answers pings to the service addresses, which this node itself stands for.
//!
//! Source: Tailscale `net/tstun/wrap.go`, `handleLocalPackets`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_filter::{Body, Icmp, Packet};

/// Address in every tailnet that stands for the node itself, IPv4.
pub(super) const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
/// Address in every tailnet that stands for the node itself, IPv6.
pub(super) const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// Turns a ping to a service address into its answer and returns the answer's length; `None` leaves `bytes` as it is.
pub(super) fn answer(bytes: &mut [u8]) -> Option<usize> {
    let packet = Packet::parse(bytes).ok()?;
    let asked = packet.destination();
    if asked != IpAddr::V4(SERVICE_V4) && asked != IpAddr::V6(SERVICE_V6)
        || !matches!(packet.body(), Body::Icmp(Icmp::EchoRequest { .. }))
        || packet.fragment().is_some()
    {
        return None;
    }
    let length = packet.bytes().len();
    let transport = length - packet.transport().len();
    let (addresses, reply): (_, u8) = if asked.is_ipv4() { (12..20, 0) } else { (8..40, 129) };
    let addresses = bytes.get_mut(addresses)?;
    let (source, destination) = addresses.split_at_mut(addresses.len() / 2);
    source.swap_with_slice(destination);
    let [kind, _, sum0, sum1] = bytes.get_mut(transport..)?.first_chunk_mut()?;
    // RFC 1624, equation 3: the checksum changes by what the first word, kind and code, changes. The swap of the
    // addresses does not change a sum.
    let (before, after) = (u16::from(*kind) << 8, u16::from(reply) << 8);
    let sum = u32::from(!u16::from_be_bytes([*sum0, *sum1])) + u32::from(!before) + u32::from(after);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    *kind = reply;
    [*sum0, *sum1] = (!u16::try_from(folded).unwrap_or(0)).to_be_bytes();
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 over a pseudo header and what it covers.
    fn sum(parts: &[&[u8]]) -> u16 {
        let mut total = 0_u32;
        for part in parts {
            for pair in part.chunks(2) {
                total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        !u16::try_from(total).unwrap()
    }

    fn ping4(from: [u8; 4], to: [u8; 4], data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(28 + data.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 1, 0, 0];
        bytes.extend([from, to].concat());
        let mut icmp = vec![8, 0, 0, 0, 1, 2, 3, 4];
        icmp.extend(data);
        let check = sum(&[&icmp]).to_be_bytes();
        icmp[2..4].copy_from_slice(&check);
        bytes.extend(icmp);
        bytes
    }

    fn ping6(from: [u8; 16], data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + data.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], 58, 64];
        bytes.extend(from);
        bytes.extend(SERVICE_V6.octets());
        let mut icmp = vec![128, 0, 0, 0, 1, 2, 3, 4];
        icmp.extend(data);
        let check = sum(&[&bytes[8..40], &[0, 0, length[0], length[1], 0, 0, 0, 58], &icmp]).to_be_bytes();
        icmp[2..4].copy_from_slice(&check);
        bytes.extend(icmp);
        bytes
    }

    proptest! {
        #[test]
        fn answers_have_right_checksums(from4: [u8; 4], from6: [u8; 16], data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut four = ping4(from4, SERVICE_V4.octets(), &data);
            prop_assert_eq!(answer(&mut four), Some(28 + data.len()));
            prop_assert_eq!(&four[12..20], [SERVICE_V4.octets(), from4].concat());
            prop_assert_eq!((four[20], sum(&[&four[20..]])), (0, 0));
            let mut six = ping6(from6, &data);
            prop_assert_eq!(answer(&mut six), Some(48 + data.len()));
            prop_assert_eq!(&six[24..40], from6);
            prop_assert_eq!(six[40], 129);
            prop_assert_eq!(sum(&[&six[8..40], &[0, 0, six[4], six[5], 0, 0, 0, 58], &six[40..]]), 0);
        }
    }

    #[test]
    fn nothing_else_is_answered() {
        let other = ping4([100, 64, 0, 1], [100, 64, 0, 2], b"hello");
        let mut bytes = other.clone();
        assert_eq!(answer(&mut bytes), None);
        assert_eq!(bytes, other);
        let mut reply = ping4([100, 64, 0, 1], SERVICE_V4.octets(), b"hello");
        reply[20] = 0;
        assert_eq!(answer(&mut reply), None);
    }
}
