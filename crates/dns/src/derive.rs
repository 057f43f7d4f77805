//! From what the server says to what the resolver knows. Source: Tailscale `ipn/ipnlocal`, `dnsConfigForNetmap`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_wire::control::DnsConfig;

use crate::name::Name;
use crate::zone::{Config, Host, SERVICE_V4, SERVICE_V6};

/// Port of resolvers.
const PORT: u16 = 53;
/// Name under which programs find the resolver itself.
const SERVICE_NAME: &str = "magicdns.localhost-tailscale-daemon";

/// Describes a node of the tailnet.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Full name.
    pub name: &'a str,
    /// Own addresses.
    pub addresses: &'a [IpNet],
    /// IPv6 addresses are told too.
    pub aaaa: bool,
    /// Names below its name have its addresses.
    pub wildcard: bool,
}

impl Config {
    /// Puts together what a resolver needs. Names that are none are left out, since one bad record must not spoil the rest.
    #[must_use]
    pub fn derive<'a>(dns: &DnsConfig, members: impl Iterator<Item = Member<'a>>) -> Self {
        let mut config = Self::default();
        if dns.proxied {
            config.hosts.extend(members.filter_map(|member| {
                let named: Vec<IpAddr> = member.addresses.iter().map(IpNet::addr).collect();
                let told = |address: &IpAddr| member.aaaa || address.is_ipv4();
                let addresses = named.iter().copied().filter(told).collect();
                Some(Host { name: name(member.name)?, addresses, named, wildcard: member.wildcard })
            }));
            config.local = reverse_zones().filter_map(|zone| Name::parse(&zone).ok()).collect();
            let own = dns.domains.first().and_then(|domain| name(domain));
            config.local.extend(own);
        }
        let service = vec![IpAddr::V4(SERVICE_V4), IpAddr::V6(SERVICE_V6)];
        config.hosts.extend(name(SERVICE_NAME).map(|name| Host {
            name,
            addresses: service,
            named: vec![],
            wildcard: false,
        }));
        config.hosts.extend(dns.extra_records.iter().filter_map(|record| {
            let address: IpAddr = record.value.parse().ok()?;
            let fits = match record.r#type.as_str() {
                "" => true,
                "A" => address.is_ipv4(),
                "AAAA" => address.is_ipv6(),
                _ => false,
            };
            let name = name(&record.name)?;
            fits.then(|| Host { name, addresses: vec![address], named: vec![], wildcard: false })
        }));
        for (suffix, resolvers) in &dns.routes {
            let Some(suffix) = name(suffix) else { continue };
            if resolvers.is_empty() {
                config.local.push(suffix);
            } else {
                let upstreams = resolvers.iter().filter_map(|resolver| upstream(&resolver.addr)).collect();
                config.routes.push((suffix, upstreams));
            }
        }
        let plain: Vec<SocketAddr> = if dns.resolvers.is_empty() && dns.nameservers.is_empty() {
            dns.fallback_resolvers.iter().filter_map(|resolver| upstream(&resolver.addr)).collect()
        } else {
            let old = dns.nameservers.iter().filter(|_| dns.resolvers.is_empty());
            let old = old.filter_map(|address| upstream(&address.to_string()));
            dns.resolvers.iter().filter_map(|resolver| upstream(&resolver.addr)).chain(old).collect()
        };
        config.routes.extend(name(".").map(|root| (root, plain)));
        config
    }
}

/// Returns the address of a resolver that is asked in plain DNS; `None` for other forms, and for ourselves.
#[must_use]
pub fn upstream(text: &str) -> Option<SocketAddr> {
    let address = match text.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, PORT),
        Err(_) => text.parse().ok()?,
    };
    let ip = address.ip().to_canonical();
    let usable = address.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && ip != IpAddr::V4(SERVICE_V4)
        && ip != IpAddr::V6(SERVICE_V6);
    usable.then(|| SocketAddr::new(ip, address.port()))
}

fn name(text: &str) -> Option<Name> {
    Name::parse(text.strip_prefix("*.").unwrap_or(text)).ok()
}

/// Returns the zones in which names of the tailnet's addresses lie: 100.64.0.0/10 and fd7a:115c:a1e0::/48.
pub fn reverse_zones() -> impl Iterator<Item = String> {
    let v4 = (64..128).map(|second| format!("{second}.100.in-addr.arpa"));
    v4.chain(["0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Kind;
    use crate::reply::tests::query;
    use crate::zone::{Verdict, Zone};
    use warren_wire::control::{DnsRecord, Resolver};

    fn resolver(addr: &str) -> Resolver {
        Resolver { addr: addr.to_owned(), ..Resolver::default() }
    }

    #[test]
    fn what_the_server_says_becomes_names_and_routes() {
        let dns = DnsConfig {
            resolvers: vec![
                resolver("192.0.2.1"),
                resolver("https://dns.example/dns-query"),
                resolver("100.100.100.100"),
            ],
            routes: [
                ("t.example".to_owned(), vec![]),
                ("corp.example.".to_owned(), vec![resolver("[2001:db8::1]:5353")]),
                ("doh.example".to_owned(), vec![resolver("https://dns.example/dns-query")]),
            ]
            .into(),
            domains: vec!["t.example".to_owned(), "corp.example".to_owned()],
            proxied: true,
            extra_records: vec![
                DnsRecord { name: "db.corp.example".into(), value: "10.0.0.7".into(), ..DnsRecord::default() },
                DnsRecord { name: "bad name".into(), value: "10.0.0.8".into(), ..DnsRecord::default() },
                DnsRecord { name: "x.example".into(), r#type: "AAAA".into(), value: "10.0.0.9".into() },
            ],
            ..DnsConfig::default()
        };
        let addresses = ["100.64.0.1/32".parse().unwrap(), "fd7a:115c:a1e0::1/128".parse().unwrap()];
        let member = |name, aaaa| Member { name, addresses: &addresses, aaaa, wildcard: false };
        let config = Config::derive(&dns, [member("alpha.t.example.", false)].into_iter());
        let names: Vec<String> = config.hosts.iter().map(|host| host.name.to_string()).collect();
        assert_eq!(names, ["alpha.t.example.", "magicdns.localhost-tailscale-daemon.", "db.corp.example."]);
        let zone = Zone::new(config);
        let forwarded = |text| match zone.answer(&query(text, Kind::A, false), 512) {
            Verdict::Forward(upstreams) => upstreams.iter().map(ToString::to_string).collect(),
            Verdict::Answer(_) => vec!["answered".to_owned()],
        };
        assert_eq!(forwarded("example.com"), ["192.0.2.1:53"]);
        assert_eq!(forwarded("www.corp.example"), ["[2001:db8::1]:5353"]);
        assert_eq!(forwarded("www.doh.example"), Vec::<String>::new(), "never to the others");
        assert_eq!(forwarded("nobody.t.example"), ["answered"]);
        let answers = |kind| match zone.answer(&query("alpha.t.example", kind, false), 512) {
            Verdict::Answer(answer) => answer[7],
            Verdict::Forward(_) => panic!("it leaves"),
        };
        assert_eq!((answers(Kind::A), answers(Kind::AAAA)), (1, 0));
    }

    #[test]
    fn without_magicdns_only_further_records_are_known() {
        let addresses = ["100.64.0.1/32".parse().unwrap()];
        let member = Member { name: "alpha.t.example", addresses: &addresses, aaaa: true, wildcard: false };
        let config = Config::derive(&DnsConfig::default(), [member].into_iter());
        assert_eq!((config.hosts.len(), config.local), (1, vec![]));
    }
}
