//! Protocols and ports as a policy writes them.

use crate::problem::Problem;
use warren_wire::control::PortRange;

/// Which traffic a rule lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// IP protocol; `None` is TCP, UDP and both ICMPs.
    pub(crate) protocol: Option<u8>,
    pub(crate) ports: Vec<PortRange>,
}

/// Names of protocols and their numbers (IANA protocol numbers).
const PROTOCOLS: [(&str, u8); 14] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("fc", 133),
];

/// Protocols that have ports: TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// Reads a protocol; the empty text is none.
pub(crate) fn parse_protocol(text: &str) -> Result<Option<u8>, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let unknown = || Problem::Protocol { text: text.to_owned() };
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        if text.starts_with('0') {
            return Err(Problem::ProtocolLeadingZero { text: text.to_owned() });
        }
        return text.parse().map(Some).map_err(|_| Problem::ProtocolRange { text: text.to_owned() });
    }
    PROTOCOLS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text))
        .map(|(_, number)| Some(*number))
        .ok_or_else(unknown)
}

impl Service {
    /// Reads an entry of a grant's `ip`: `*`, ports, or a protocol with ports.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let (protocol, ports) = match text.split_once(':') {
            None => (None, text),
            Some((_, ports)) if ports.contains(':') => return Err(Problem::GrantColons { text: text.to_owned() }),
            Some((protocol, _)) if protocol.trim().is_empty() => {
                return Err(Problem::Protocol { text: protocol.to_owned() });
            }
            Some((protocol, ports)) => (parse_protocol(protocol)?, ports),
        };
        let service = Self { protocol, ports: parse_ports(ports, "")? };
        service.check().map(|()| service)
    }

    /// Demands that only protocols with ports have some.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if has_ports(self.protocol) || self.ports.iter().all(|ports| *ports == PortRange::ALL) {
            return Ok(());
        }
        let protocol = self.protocol.map(|number| number.to_string()).unwrap_or_default();
        Err(Problem::PortsWithoutPortProtocol { protocol })
    }
}

/// Tells whether a rule for this protocol may name ports.
fn has_ports(protocol: Option<u8>) -> bool {
    protocol.is_none_or(|number| WITH_PORTS.contains(&number))
}

/// Reads ports: `*`, a number, a range, or several with commas. `context` stands before the message.
pub(crate) fn parse_ports(text: &str, context: &str) -> Result<Vec<PortRange>, Problem> {
    text.split(',')
        .map(|part| {
            let part = part.trim();
            parse_range(part).map_err(|what| Problem::Ports {
                context: context.to_owned(),
                text: part.to_owned(),
                what,
            })
        })
        .collect()
}

fn parse_range(text: &str) -> Result<PortRange, &'static str> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first = parse_port(first).ok_or("invalid first integer")?;
    let last = parse_port(last).ok_or("invalid last integer")?;
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else {
        return Err("port number out of range");
    };
    if first == 0 {
        return Err("first port must be >0, or use '*' for wildcard");
    }
    if first > last {
        return Err("first port is greater than last port");
    }
    Ok(PortRange { first, last })
}

/// Longest text of a port: zeros before a number would let a short rule have a text of any length.
const PORT_DIGITS: usize = 5;

/// Reads a number without sign; `None` if it is none. What has too many digits is too large, also if they are zeros.
fn parse_port(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| if text.len() > PORT_DIGITS { u64::MAX } else { text.parse().unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let range = |first, last| PortRange { first, last };
        assert_eq!(parse_ports("*", ""), Ok(vec![PortRange::ALL]));
        assert_eq!(parse_ports("22,80-90, 443", ""), Ok(vec![range(22, 22), range(80, 90), range(443, 443)]));
        assert_eq!(parse_ports("1-65535", ""), Ok(vec![range(1, 65535)]));
    }

    #[test]
    fn wrong_ports_are_refused() {
        for (text, wanted) in [
            ("", "invalid first integer"),
            ("ssh", "invalid first integer"),
            ("0", "first port must be >0, or use '*' for wildcard"),
            ("5-", "invalid last integer"),
            ("9-5", "first port is greater than last port"),
            ("65536", "port number out of range"),
            ("99999999999999999999999", "port number out of range"),
            ("000022", "port number out of range"),
            ("+5", "invalid first integer"),
        ] {
            let Err(Problem::Ports { what, .. }) = parse_ports(text, "") else {
                panic!("{text} was accepted");
            };
            assert_eq!(what, wanted, "{text}");
        }
    }

    #[test]
    fn protocols_are_read() {
        assert_eq!(parse_protocol(""), Ok(None));
        assert_eq!(parse_protocol("TCP"), Ok(Some(6)));
        assert_eq!(parse_protocol("47"), Ok(Some(47)));
        assert_eq!(
            Service::parse("47"),
            Ok(Service { protocol: None, ports: vec![PortRange { first: 47, last: 47 }] })
        );
        assert_eq!(Service::parse("icmp:*"), Ok(Service { protocol: Some(1), ports: vec![PortRange::ALL] }));
        for text in ["icmp", "tcp:0", "tcp:80:1", ":80", "*:80", "icmp:80", ""] {
            assert!(Service::parse(text).is_err(), "{text}");
        }
        assert!(parse_protocol("06").is_err() && parse_protocol("256").is_err() && parse_protocol("*").is_err());
    }
}
