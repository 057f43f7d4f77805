//! The STUN server.

use std::io;

use tokio::net::UdpSocket;
use warren_wire::stun;

/// Answers the binding requests of tailnet nodes on `socket` for ever; everything else stays unanswered.
///
/// # Errors
/// Returns when the socket is broken for good.
pub async fn serve_stun(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer was refused by its receiver; the next request is not affected.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        if let Ok(id) = stun::parse_request(buffer.get(..length).unwrap_or_default())
            && let Err(error) = socket.send_to(&stun::response(&id, from), from).await
        {
            tracing::debug!(%from, %error, "a STUN answer was not sent");
        }
    }
}
