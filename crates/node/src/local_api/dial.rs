//! The verb `dial`, both ends: a connection through the tailnet over the local socket.
//!
//! Source: node.md, section 8.1.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::body::Answer;
use super::serve::plain;
use crate::userspace::{Dialed, Dialer, proxy};

/// The protocol to which the connection is upgraded.
pub(super) const PROTOCOL: &str = "ts-dial";
/// Headers of the request.
pub(super) const HOST: &str = "Dial-Host";
pub(super) const PORT: &str = "Dial-Port";
const NETWORK: &str = "Dial-Network";
/// Headers of an answer that leaves the rest to the caller.
const SELF: &str = "Dial-Self";
pub(super) const ADDRESS: &str = "Dial-Addr";

/// Connects, or says to which address the caller can connect by itself.
pub(super) async fn serve(mut request: http::Request<Incoming>, dialer: Option<&Dialer>) -> Response<Answer> {
    let (host, port) = match target(request.headers()) {
        Ok(target) => target,
        Err(text) => return plain(StatusCode::BAD_REQUEST, text),
    };
    let Some(dialer) = dialer else {
        return plain(StatusCode::NOT_IMPLEMENTED, "this node does not dial");
    };
    match dialer.dial(&host, port).await {
        Ok(Dialed::Tailnet(mut stream)) => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let carried = match upgraded.await {
                    Ok(caller) => proxy::carry(&mut stream, &mut TokioIo::new(caller)).await,
                    Err(error) => Err(std::io::Error::other(error)),
                };
                if carried.is_err() {
                    stream.abort();
                }
            });
            let mut response = Response::new(Answer::text(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response
        }
        Ok(Dialed::Outside(addresses)) => {
            let address = addresses.first().and_then(|address| HeaderValue::from_str(&address.to_string()).ok());
            let Some(address) = address else { return plain(StatusCode::BAD_GATEWAY, "no address") };
            let mut response = plain(StatusCode::OK, "");
            response.headers_mut().insert(SELF, HeaderValue::from_static("true"));
            response.headers_mut().insert(ADDRESS, address);
            response
        }
        Err(error) => plain(StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

/// Reads where a caller wants to go.
fn target(headers: &HeaderMap) -> Result<(String, u16), &'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !text("Upgrade").eq_ignore_ascii_case(PROTOCOL) {
        return Err("bad ts-dial upgrade");
    }
    let port = text(PORT).parse().ok().filter(|port| *port != 0);
    match (text(HOST), port) {
        (host, Some(port)) if !host.is_empty() && matches!(text(NETWORK), "" | "tcp") => Ok((host.to_owned(), port)),
        (_, Some(_)) if !matches!(text(NETWORK), "" | "tcp") => Err("this node dials only Dial-Network: tcp"),
        _ => Err("missing or invalid Dial-Host or Dial-Port header"),
    }
}

/// Is what a caller gets.
#[derive(Debug)]
pub enum Dialling {
    /// The connection.
    Stream(TokioIo<hyper::upgrade::Upgraded>),
    /// The address to connect to: nobody in between is needed.
    Address(SocketAddr),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&'static str, &'static str)]) -> Result<(String, u16), &'static str> {
        target(&headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn a_target_has_a_host_and_a_port() {
        let upgrade = ("upgrade", "ts-dial");
        assert_eq!(of(&[upgrade, ("dial-host", "beta"), ("dial-port", "80")]), Ok(("beta".to_owned(), 80)));
        assert!(of(&[upgrade, ("dial-host", "b"), ("dial-port", "80"), ("dial-network", "tcp")]).is_ok());
        for bad in [
            &[("dial-host", "beta"), ("dial-port", "80")][..],
            &[upgrade, ("dial-host", "beta")],
            &[upgrade, ("dial-port", "80")],
            &[upgrade, ("dial-host", "beta"), ("dial-port", "0")],
            &[upgrade, ("dial-host", "beta"), ("dial-port", "65536")],
            &[upgrade, ("dial-host", "beta"), ("dial-port", "80"), ("dial-network", "udp")],
        ] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
