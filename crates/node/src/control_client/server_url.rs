//! The address of a coordination server.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Names a coordination server: scheme, host and port, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    host: String,
    port: u16,
}

/// Says how the bytes below Noise travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP: only Noise protects, so the server's key must be pinned.
    Http,
    /// TLS with a certificate that this machine trusts.
    Https,
}

/// Says why a text is not the address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not a URL at all.
    #[error("not a URL; write it like https://warren.example.com or http://127.0.0.1:8080")]
    Syntax,
    /// Neither `http` nor `https`.
    #[error("the URL must begin with http:// or https://")]
    Scheme,
    /// More than scheme, host and port.
    #[error("the URL may have only a host and a port")]
    Extra,
}

impl ServerUrl {
    /// Returns how the bytes travel.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the host name or address, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns `host` or `host:port` as it stands in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let bracketed = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.scheme, self.port) {
            (Scheme::Http, 80) | (Scheme::Https, 443) => bracketed,
            (_, port) => format!("{bracketed}:{port}"),
        }
    }

    /// Returns the address to try when this one gives no answer: a server that is spoken to in plain HTTP over the
    /// Internet may be behind something that lets only TLS pass. Nothing for TLS addresses and private networks.
    ///
    /// Source: Tailscale `control/controlhttp/client.go`; we leave out its other half, plain HTTP first for an address
    /// that says `https`: it saves a little arithmetic, and breaks what the address promises.
    #[must_use]
    pub fn tls_fallback(&self) -> Option<Self> {
        let public = self.scheme == Scheme::Http && !self.is_private();
        public.then(|| Self { scheme: Scheme::Https, host: self.host.clone(), port: 443 })
    }

    fn is_private(&self) -> bool {
        let private = |address: IpAddr| match address {
            IpAddr::V4(address) => address.is_private() || address.is_link_local(),
            IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
        };
        self.is_loopback() || self.host.parse().is_ok_and(private)
    }

    /// Tells whether nobody but this machine can be on the way to the server.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for ServerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: http::Uri = text.trim().parse().map_err(|_| UrlError::Syntax)?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(_) => return Err(UrlError::Scheme),
            None => return Err(UrlError::Syntax),
        };
        let authority = uri.authority().ok_or(UrlError::Syntax)?;
        if authority.as_str().contains('@') || uri.query().is_some() || !matches!(uri.path(), "" | "/") {
            return Err(UrlError::Extra);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let known = host.parse::<IpAddr>().is_ok()
            || (!host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')));
        if !known {
            return Err(UrlError::Syntax);
        }
        let port = match (authority.port(), scheme) {
            (Some(port), _) => port.as_str().parse().ok().filter(|port| *port != 0).ok_or(UrlError::Syntax)?,
            (None, Scheme::Http) => 80,
            (None, Scheme::Https) => 443,
        };
        Ok(Self { scheme, host, port })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_addresses_survive_a_round_trip() {
        for text in ["https://warren.example.com", "http://127.0.0.1:8080", "http://[::1]:8080", "https://a.b:8443"] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().to_string(), text);
        }
        assert_eq!("http://Host/".parse::<ServerUrl>().unwrap().to_string(), "http://host");
        assert_eq!("https://host:443".parse::<ServerUrl>().unwrap().port(), 443);
    }

    #[test]
    fn everything_but_scheme_host_and_port_is_refused() {
        for text in [
            "",
            "host",
            "ftp://host",
            "http://u:p@host",
            "http://host/path",
            "http://host/?q",
            "http://host:0",
            "http://",
        ] {
            assert!(text.parse::<ServerUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_plain_addresses_on_the_internet_have_a_second_way() {
        for (text, expected) in [
            ("http://host.example:8080", Some("https://host.example")),
            ("http://192.0.2.1", Some("https://192.0.2.1")),
            ("http://[2001:db8::1]:80", Some("https://[2001:db8::1]")),
            ("https://host.example:8443", None),
            ("http://localhost:8080", None),
            ("http://127.0.0.1:8080", None),
            ("http://10.1.2.3", None),
            ("http://[fd00::1]", None),
            ("http://[fe80::1]", None),
        ] {
            let fallback = text.parse::<ServerUrl>().unwrap().tls_fallback();
            assert_eq!(fallback.map(|url| url.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn loopback_is_recognised_in_every_form() {
        for (text, expected) in [
            ("http://localhost:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().is_loopback(), expected, "{text}");
        }
    }
}
