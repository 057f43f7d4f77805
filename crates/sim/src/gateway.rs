//! The port mapping services of routers, as far as a node asks: NAT-PMP (RFC 6886) and PCP (RFC 6887), or UPnP (Device
//! Architecture 1.1 and WANIPConnection:1).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use rand::rngs::StdRng;

use crate::nat::Nat;

/// Port of the service.
pub const PORT: u16 = 5351;

/// Port of UPnP's searches.
pub const SEARCH_PORT: u16 = 1900;
/// Port of UPnP's calls.
pub const HTTP_PORT: u16 = 49_152;

/// Answers a search for gateways, of the router with this address inside.
#[must_use]
pub fn found(inner: Ipv4Addr, search: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(search).ok().filter(|text| text.starts_with("M-SEARCH * HTTP/1.1\r\n"))?;
    text.contains(":InternetGatewayDevice:").then(|| {
        format!(
            "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
             LOCATION: http://{inner}:{HTTP_PORT}/root.xml\r\n\r\n"
        )
        .into_bytes()
    })
}

/// Answers an HTTP request of UPnP.
pub fn serve(nat: &mut Nat, from: Ipv4Addr, request: &[u8], now: Instant) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&*text, ""));
    let value = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0)
    };
    let number = |name: &str| value(name)?.parse::<u16>().ok().filter(|number| *number != 0);
    let fine = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}");
    let fault = |code: u16| format!("HTTP/1.1 500 Internal Server Error\r\n\r\n<errorCode>{code}</errorCode>");
    let answer = if head.starts_with("GET /root.xml ") {
        fine(
            "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL>/ctl</controlURL></service>",
        )
    } else if head.contains("#GetExternalIPAddress\"") {
        fine(&format!("<NewExternalIPAddress>{}</NewExternalIPAddress>", nat.outer))
    } else if head.contains("#AddPortMapping\"") {
        // In secure mode whoever asks can have ports for himself alone.
        let is_own = value("NewInternalClient").and_then(|client| client.parse().ok()) == Some(from);
        match (number("NewExternalPort"), number("NewInternalPort")) {
            (Some(outside), Some(inside)) if is_own => {
                let inside = SocketAddr::from((from, inside));
                if nat.forward_at(inside, outside, now) { fine("") } else { fault(718) }
            }
            _ => fault(402),
        }
    } else if head.contains("#DeletePortMapping\"") {
        if let Some(outside) = number("NewExternalPort") {
            nat.close(SocketAddr::from((from, 0)), outside);
        }
        fine("")
    } else {
        fault(401)
    };
    answer.into_bytes()
}

/// Answers a request of an inside host; `None` if it is none, or nothing to answer.
pub fn answer(
    nat: &mut Nat,
    from: SocketAddr,
    request: &[u8],
    since: Instant,
    now: Instant,
    rng: &mut StdRng,
) -> Option<Vec<u8>> {
    let epoch = u32::try_from((now - since).as_secs()).unwrap_or(u32::MAX).to_be_bytes();
    let number = |at: usize| Some(u16::from_be_bytes(*request.get(at..)?.first_chunk()?));
    match request {
        [0, 0, ..] => Some([&[0, 0x80, 0, 0], &epoch[..], &nat.outer.octets()].concat()),
        [0, 1, ..] => {
            let (inside, lifetime) = (number(4)?, request.get(8..12)?);
            let port = map(nat, from, inside, number(6)?, lifetime, now, rng);
            Some([&[0, 0x81, 0, 0], &epoch[..], &inside.to_be_bytes(), &port.to_be_bytes(), lifetime].concat())
        }
        // Announcement.
        [2, 0, ..] => Some([&[2, 0x80, 0, 0, 0, 0, 0, 0], &epoch[..], &[0; 12]].concat()),
        [2, 1, ..] => {
            let lifetime = request.get(4..8)?;
            let port = map(nat, from, number(40)?, number(42)?, lifetime, now, rng);
            let outer = nat.outer.to_ipv6_mapped().octets();
            let (kept, port) = (request.get(24..42)?, port.to_be_bytes());
            Some([&[2, 0x81, 0, 0], lifetime, &epoch, &[0; 12], kept, &port, &outer].concat())
        }
        _ => None,
    }
}

fn map(
    nat: &mut Nat,
    from: SocketAddr,
    inside: u16,
    suggested: u16,
    lifetime: &[u8],
    now: Instant,
    rng: &mut StdRng,
) -> u16 {
    let inside = SocketAddr::new(from.ip(), inside);
    if lifetime == [0; 4] {
        nat.stop_forwarding(inside);
        return 0;
    }
    nat.forward(inside, suggested, now, rng).unwrap_or_default()
}

/// Tells whether an address can be reached from the whole Internet.
#[must_use]
pub fn is_public(ip: Ipv4Addr) -> bool {
    !ip.is_private() && !matches!(ip.octets(), [100, 64..=127, ..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::epoch;
    use crate::nat::{Dependence, NatKind, Ports};
    use std::net::SocketAddrV4;
    use std::time::Duration;
    use warren_path::{MapTarget, PortMapper};

    const INNER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

    fn nat() -> Nat {
        let kind = NatKind {
            mapping: Dependence::AddressAndPort,
            filtering: Dependence::AddressAndPort,
            ports: Ports::Random,
            timeout: Duration::from_secs(30),
            hairpin: false,
        };
        Nat::new(kind, Ipv4Addr::new(198, 51, 100, 1))
    }

    /// Lets a node's mapper and a gateway that speaks UPnP alone talk until both are silent for a while.
    fn run(mapper: &mut PortMapper, nat: &mut Nat) {
        let (mut now, end) = (epoch(), epoch() + Duration::from_secs(10));
        loop {
            if let Some(search) = mapper.poll_transmit() {
                let answer = found(INNER, &search.bytes).filter(|_| search.to == SocketAddrV4::new(INNER, SEARCH_PORT));
                if let Some(answer) = answer {
                    mapper.handle_datagram(SocketAddrV4::new(INNER, SEARCH_PORT), &answer, now);
                }
            } else if let Some(request) = mapper.poll_request() {
                assert_eq!(request.to, SocketAddrV4::new(INNER, HTTP_PORT));
                let response = serve(nat, OWN, &request.bytes, now);
                mapper.handle_response(Some(&response), now);
            } else if let Some(at) = mapper.poll_timeout().filter(|at| *at <= end) {
                now = now.max(at);
                mapper.handle_timeout(now);
            } else {
                return;
            }
        }
    }

    #[test]
    fn a_node_maps_its_port_by_upnp_and_gives_it_back() {
        let (mut mapper, mut nat) = (PortMapper::new([5; 32]), nat());
        mapper.set_target(Some(MapTarget { gateway: INNER, own: OWN, port: 41_641, upnp: true }), epoch());
        run(&mut mapper, &mut nat);
        let mapped = mapper.mapping().unwrap();
        assert_eq!(*mapped.ip(), nat.outer);
        let stranger = SocketAddr::from(([203, 0, 113, 1], 1));
        let inside = Some(SocketAddr::from((OWN, 41_641)));
        assert_eq!(nat.inwards(stranger, mapped.port(), epoch()), inside);
        mapper.set_target(None, epoch());
        run(&mut mapper, &mut nat);
        assert_eq!(nat.inwards(stranger, mapped.port(), epoch()), None);
    }

    #[test]
    fn ports_of_others_are_not_given() {
        let mut nat = nat();
        let (one, other) = (SocketAddr::from((OWN, 1)), SocketAddr::from(([192, 168, 0, 3], 1)));
        assert!(nat.forward_at(one, 5000, epoch()) && nat.forward_at(one, 5000, epoch()));
        assert!(!nat.forward_at(other, 5000, epoch()));
        nat.close(other, 5000);
        assert_eq!(nat.inwards(SocketAddr::from(([203, 0, 113, 1], 1)), 5000, epoch()), Some(one));
    }
}
