//! The URL by which clients reach the server.

use std::net::{IpAddr, SocketAddr};

use http::Uri;

/// Says why a URL cannot be the server's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// It is none, or has more than scheme, host and port.
    #[error("{0:?} cannot be the server's URL: write --url http://HOST[:PORT] or --url https://HOST[:PORT]")]
    Malformed(String),
    /// The server listens on all addresses, so that its own does not follow.
    #[error(
        "with --listen {0} the server cannot know the address that clients use: say it with --url http://HOST:PORT"
    )]
    Needed(SocketAddr),
}

/// A server's URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    /// Scheme, host and port, without a slash at the end.
    pub(crate) text: String,
    /// Host: a name or an address without brackets.
    pub(crate) host: String,
    /// Port, given or usual.
    pub(crate) port: u16,
}

impl ServerUrl {
    /// Takes the URL that the operator gave, or makes one of the address that clients connect to.
    pub(crate) fn new(given: Option<&str>, listen: SocketAddr, tls: bool) -> Result<Self, UrlError> {
        match given {
            Some(text) => Self::parse(text),
            None if listen.ip().is_unspecified() => Err(UrlError::Needed(listen)),
            None => {
                let scheme = if tls { "https" } else { "http" };
                Self::parse(&format!("{scheme}://{listen}"))
            }
        }
    }

    fn parse(text: &str) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed(text.to_owned());
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let uri: Uri = trimmed.parse().map_err(|_| malformed())?;
        let usual_port = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err(malformed()),
        };
        let authority = uri.authority().ok_or_else(malformed)?;
        let host = authority.host();
        let bare = uri.path().trim_start_matches('/').is_empty() && uri.query().is_none() && !text.contains('#');
        if host.is_empty() || authority.as_str().contains('@') || !bare {
            return Err(malformed());
        }
        // What the library cannot read as a port it calls none, so the text itself decides.
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => usual_port,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|&port| port != 0)
                .ok_or_else(malformed)?,
            None => return Err(malformed()),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        Ok(Self { text: trimmed.to_owned(), host, port })
    }

    /// Returns the host if it is an address.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(given: Option<&str>) -> Result<(String, String, u16), UrlError> {
        let url = ServerUrl::new(given, "192.0.2.1:8080".parse().unwrap(), false)?;
        Ok((url.text, url.host, url.port))
    }

    fn parts(text: &str, host: &str, port: u16) -> Result<(String, String, u16), UrlError> {
        Ok((text.to_owned(), host.to_owned(), port))
    }

    #[test]
    fn the_url_follows_from_the_listener_unless_it_is_given() {
        assert_eq!(url(None), parts("http://192.0.2.1:8080", "192.0.2.1", 8080));
        assert_eq!(url(Some("https://VPN.example.com/")), parts("https://VPN.example.com", "vpn.example.com", 443));
        assert_eq!(url(Some("http://[2001:db8::1]:8080")), parts("http://[2001:db8::1]:8080", "2001:db8::1", 8080));
    }

    #[test]
    fn a_listener_on_all_addresses_needs_a_url() {
        let listen = "0.0.0.0:8080".parse().unwrap();
        assert_eq!(ServerUrl::new(None, listen, false), Err(UrlError::Needed(listen)));
        assert!(ServerUrl::new(Some("http://a"), listen, false).is_ok());
    }

    #[test]
    fn what_is_more_or_less_than_a_server_is_refused() {
        for wrong in [
            "",
            "a.example",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://u@a",
            "http://a:0",
            "http://a:99999",
        ] {
            assert!(matches!(url(Some(wrong)), Err(UrlError::Malformed(_))), "{wrong}");
        }
    }
}
