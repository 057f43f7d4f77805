//! Rules read as text, for each packet anew.

use std::net::IpAddr;

use ipnet::IpNet;
use warren_wire::control::FilterRule;

/// Tells whether a rule lets the first packet of a conversation through.
pub(super) fn allows(rule: &FilterRule, source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> bool {
    let listed = |number: u8| match rule.ip_proto.as_slice() {
        [] => [1, 6, 17, 58].contains(&number),
        listed => listed.contains(&i64::from(number)),
    };
    let has_ports = [6, 17, 132].contains(&protocol);
    rule.src_ips.iter().any(|text| !text.starts_with("cap:") && holds(text, source))
        && listed(protocol)
        && rule.dst_ports.iter().any(|entry| {
            let whole = (entry.ports.first, entry.ports.last) == (0, u16::MAX);
            let fits = if has_ports { (entry.ports.first..=entry.ports.last).contains(&port) } else { whole };
            fits && holds(&entry.ip, destination)
        })
}

/// Tells whether an address, a prefix without host bits, a range or `*` holds an address.
fn holds(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Ok(one) = text.parse::<IpAddr>() {
        return one == address;
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return net.trunc() == net && net.contains(&address);
    }
    let Some((first, last)) = text.split_once('-') else { return false };
    let (Ok(first), Ok(last)) = (first.parse::<IpAddr>(), last.parse::<IpAddr>()) else { return false };
    first.is_ipv4() == last.is_ipv4() && first.is_ipv4() == address.is_ipv4() && first <= address && address <= last
}

/// Returns an address out of a text of a rule.
pub(super) fn some_address(text: &str) -> Option<IpAddr> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(net.broadcast());
    }
    text.split('-').next_back()?.parse().ok()
}

/// Tells whether an address can be that of a host on another machine, reached through routers.
pub(super) fn is_routable(address: IpAddr) -> bool {
    let within_one_machine = match address {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_broadcast(),
        // With the old forms that stand for IPv4 addresses.
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.to_ipv4().is_some(),
    };
    let link_local = match address {
        // Clouds serve the machine's data at this one, and a router may offer it.
        IpAddr::V4(ip) => ip.is_link_local() && ip.octets() != [169, 254, 169, 254],
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !address.is_multicast() && !link_local && !within_one_machine
}

/// Makes the first packet of a conversation.
pub(super) fn packet(source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let mut payload = [40_000_u16.to_be_bytes(), port.to_be_bytes()].concat();
    payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]);
    ip_packet(source, destination, protocol, &payload)
}

/// Puts an IP header before `payload`, which is short.
pub(super) fn ip_packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let head = [&[0x45, 0][..], &(length + 20).to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0]].concat();
            [&head, &source.octets()[..], &destination.octets(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64]].concat();
            [&head, &source.octets()[..], &destination.octets(), payload].concat()
        }
        _ => panic!("one packet, two families"),
    }
}
