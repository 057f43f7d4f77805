//! Asks a relay over plain HTTP whether a captive portal is in the way.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use warren_path::{MAX_PORTAL_ANSWER, PortalProbe};

/// Time for connecting and the answer.
///
/// Source: Tailscale `net/captivedetection`, `Timeout`.
const DEADLINE: Duration = Duration::from_secs(3);

/// Asks, and tells whether a portal answered. It takes the way that the system's routes say, as the relay's connection does,
/// and no proxy.
pub(super) async fn ask(probe: PortalProbe, unix_seconds: u64) -> bool {
    let answered = timeout(DEADLINE, exchange(&probe, unix_seconds)).await;
    answered.ok().and_then(Result::ok).and_then(|answer| probe.is_portal(&answer)).unwrap_or(false)
}

async fn exchange(probe: &PortalProbe, unix_seconds: u64) -> std::io::Result<Vec<u8>> {
    let mut stream = warren_relay::dial::connect(probe.server).await?;
    stream.write_all(&probe.request(unix_seconds)).await?;
    let mut answer = Vec::new();
    let mut stream = stream.take(u64::try_from(MAX_PORTAL_ANSWER).unwrap_or(u64::MAX));
    // Portals may leave the connection open.
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") && stream.read_buf(&mut answer).await? > 0 {}
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Serves one connection with an answer, which it leaves open, and returns what was asked.
    async fn served(answer: &'static str) -> (bool, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = PortalProbe { server: listener.local_addr().unwrap() };
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            (stream, String::from_utf8_lossy(&request[..length]).into_owned())
        };
        let (found, (_stream, request)) = tokio::join!(ask(probe, 7), serving);
        (found, request)
    }

    #[tokio::test]
    async fn a_portal_is_told_from_a_relay() {
        let (found, request) = served("HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n").await;
        assert!(found && request.contains("X-Tailscale-Challenge: ts_127.0.0.1\r\n"), "{request}");
        let (found, _) = served("HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response ts_127.0.0.1\r\n\r\n").await;
        assert!(!found);
        let (found, _) = served("220 mail.example ESMTP\r\n\r\n").await;
        assert!(!found, "something else than HTTP is no portal");
    }

    #[tokio::test]
    async fn a_refused_connection_is_no_portal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = PortalProbe { server: listener.local_addr().unwrap() };
        drop(listener);
        assert!(!ask(probe, 7).await);
    }
}
