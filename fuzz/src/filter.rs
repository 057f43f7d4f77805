//! The packet filter: headers, rules, verdicts, and TSMP.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_filter::tsmp::{Message, Reason, Reject};
use warren_filter::{Body, Filter, FilterError, FilterInput, Firewall, Packet, PeerMode, Shields, Verdict};
use warren_wire::control::{FilterRule, NetPortRange, PortRange, from_json};

use crate::input::Input;

mod conversation;
mod naive;
mod segments;

pub use conversation::firewall;
pub use segments::{join, split};

/// An arbitrary moment, the same for a whole run.
static START: LazyLock<Instant> = LazyLock::new(|| {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary start, moved by hand from here")]
    Instant::now()
});

/// Reads `data` as a packet and lets firewalls judge it that have no rules, and a rule for everything.
pub fn packet(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else { return };
    assert!(data.starts_with(packet.bytes()) && packet.bytes().ends_with(packet.transport()));
    let again = Packet::parse(packet.bytes()).expect("a packet without what follows it");
    assert_eq!(
        (again.body(), again.fragment(), again.transport()),
        (packet.body(), packet.fragment(), packet.transport())
    );

    let mut closed = Firewall::new(1, *START);
    assert!(!matches!(closed.check_inbound(&packet, PeerMode::Normal, *START), Verdict::Accept));

    let open = filter(&[everything()], &["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
    let mut firewall = Firewall::new(1, *START);
    firewall.use_filter(&Arc::new(open));
    let verdict = firewall.check_inbound(&packet, PeerMode::Normal, *START);
    if packet.body() == Body::Tsmp {
        assert_ne!(verdict, Verdict::Accept, "the host sees a control packet");
    }
    // A later fragment and an error follow something; nothing was there to follow.
    if packet.body() == Body::LaterFragment {
        assert_ne!(verdict, Verdict::Accept, "a later fragment passes without a first one");
    }
    let sent = firewall.check_outbound(&packet, *START);
    assert!(packet.body() != Body::Tsmp || sent != Verdict::Accept, "the host sends a control packet");
    if let Some(reject) = Reject::of(&packet, Reason::Acl) {
        assert_eq!(reject.protocol, packet.protocol());
    }
}

fn everything() -> FilterRule {
    let all = |ip: &str| NetPortRange { ip: ip.to_owned(), bits: None, ports: PortRange::ALL };
    FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![all("*")],
        ip_proto: (0..=255).collect(),
        ..FilterRule::default()
    }
}

fn filter(rules: &[FilterRule], local: &[IpNet]) -> Filter {
    let input = FilterInput { rules, local, shields: Shields::Down, holders: &|_| Vec::new() };
    Filter::compile(&input).expect("rules without the obsolete form").0
}

/// Reads `data` as the rules of a map response and asks both the compiled filter and the naive reading of the same
/// texts about packets between addresses that stand in the rules.
pub fn rules(data: &[u8]) {
    let Ok(rules) = from_json::<Vec<FilterRule>>(data) else { return };
    let texts = rules.iter().flat_map(|rule| rule.src_ips.iter().chain(rule.dst_ports.iter().map(|entry| &entry.ip)));
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| naive::some_address(text)).take(8).collect();
    addresses.extend(["100.64.0.1", "100.64.0.2", "fd7a:115c:a1e0::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    let local: Vec<IpNet> = addresses.iter().step_by(2).copied().map(IpNet::from).collect();

    let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| Vec::new() };
    let obsolete =
        rules.iter().any(|rule| !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|dst| dst.bits.is_some()));
    let filter = match Filter::compile(&input) {
        Ok((filter, _)) => filter,
        Err(error) => {
            assert_eq!(obsolete, error != FilterError::TooLarge);
            return;
        }
    };
    assert!(!obsolete);
    let mut ports: Vec<u16> =
        rules.iter().flat_map(|rule| &rule.dst_ports).map(|entry| entry.ports.first).take(3).collect();
    ports.extend([22, 65_535]);
    let filter = Arc::new(filter);
    for source in &addresses {
        for destination in addresses.iter().filter(|other| other.is_ipv4() == source.is_ipv4()) {
            for port in &ports {
                for protocol in [6, 17, 132, 47] {
                    let bytes = naive::packet(*source, *destination, protocol, *port);
                    let packet = Packet::parse(&bytes).expect("a packet that we made");
                    let mut firewall = Firewall::new(1, *START);
                    firewall.use_filter(&filter);
                    let ours = firewall.check_inbound(&packet, PeerMode::Normal, *START) == Verdict::Accept;
                    let theirs = naive::is_routable(*source)
                        && naive::is_routable(*destination)
                        && !local.contains(&IpNet::from(*source))
                        && local.iter().any(|net| net.contains(destination))
                        && rules.iter().any(|rule| naive::allows(rule, *source, *destination, protocol, *port));
                    assert_eq!(ours, theirs, "{source} > {destination} port {port} protocol {protocol}");
                }
            }
        }
    }
}

/// Reads `data`, behind a byte that chooses the family, as a TSMP message; what is read must round-trip.
pub fn tsmp(data: &[u8]) {
    let mut input = Input::new(data);
    let (from, to): (IpAddr, IpAddr) = match input.byte() % 2 {
        0 => ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap()),
        _ => ("fd7a:115c:a1e0::1".parse().unwrap(), "fd7a:115c:a1e0::2".parse().unwrap()),
    };
    let payload = input.rest();
    if payload.len() > 1_000 {
        return;
    }
    let bytes = naive::ip_packet(from, to, 99, payload);
    let Ok(packet) = Packet::parse(&bytes) else { return };
    let Some(message) = Message::parse(&packet) else { return };
    let again = message.packet(from, to).expect("one family");
    let packet = Packet::parse(&again).expect("a packet that we made");
    assert_eq!((packet.source(), packet.destination()), (from, to));
    assert_eq!(Message::parse(&packet), Some(message));
}

/// Waits that the conversation may make.
fn seconds(time: u64) -> Duration {
    Duration::from_secs(time)
}
