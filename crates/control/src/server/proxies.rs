//! Who a request comes from when a TLS proxy stands in front.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

/// The proxies whose word about a client's address is taken. Everybody else's forwarded headers are ignored.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustedProxies {
    networks: Vec<IpNet>,
}

impl TrustedProxies {
    pub(crate) fn new(networks: Vec<IpNet>) -> Self {
        Self { networks }
    }

    /// Returns whether `peer` is a listed proxy.
    pub(crate) fn lists(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// Returns the address of the client: the last one that a listed proxy did not add itself.
    ///
    /// Proxies append to `X-Forwarded-For`, so only what stands behind the last unlisted address is their word; what
    /// comes before it may be the client's invention.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().map(|line| line.to_str().unwrap_or_default()).collect();
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            if !self.lists(client) {
                break;
            }
            match entry.trim().parse::<IpAddr>() {
                Ok(address) => client = address.to_canonical(),
                Err(_) => break,
            }
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let proxies = TrustedProxies::new(proxies.iter().map(|network| network.parse().unwrap()).collect());
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn a_stranger_cannot_claim_an_address() {
        assert_eq!(client(&[], "192.0.2.1", &["10.0.0.1"]), "192.0.2.1");
        assert_eq!(client(&["127.0.0.0/8"], "192.0.2.1", &["10.0.0.1"]), "192.0.2.1");
    }

    #[test]
    fn a_listed_proxy_says_who_the_client_is() {
        assert_eq!(client(&["127.0.0.1/32"], "127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client(&["127.0.0.1/32"], "::ffff:127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client(&["127.0.0.1/32"], "127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn what_the_client_invented_in_front_is_not_believed() {
        let proxies = ["127.0.0.1/32", "10.0.0.0/8"];
        assert_eq!(client(&proxies, "127.0.0.1", &["1.1.1.1, 198.51.100.7, 10.0.0.2"]), "198.51.100.7");
        assert_eq!(client(&proxies, "127.0.0.1", &["1.1.1.1", "198.51.100.7", "10.0.0.2"]), "198.51.100.7");
        assert_eq!(client(&proxies, "127.0.0.1", &["198.51.100.7, nonsense"]), "127.0.0.1");
    }
}
