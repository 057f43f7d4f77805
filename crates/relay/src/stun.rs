//! The STUN server.

use std::io;

use tokio::net::UdpSocket;
use warren_wire::stun;

/// Errors in a row after which a socket is broken for good.
const ERRORS: u32 = 32;

/// Answers the binding requests of tailnet nodes on `socket` for ever; everything else stays unanswered, so that the
/// server is no use to those who send in the name of others.
///
/// # Errors
/// Returns when the socket is broken for good.
pub async fn serve_stun(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 512];
    let mut errors = 0;
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Mostly about an earlier answer; the next request is not affected.
            Err(error) if errors < ERRORS => {
                tracing::debug!(%error, "an error on the STUN socket");
                errors += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        errors = 0;
        if let Ok(id) = stun::parse_request(buffer.get(..length).unwrap_or_default())
            && let Err(error) = socket.send_to(&stun::response(&id, from), from).await
        {
            tracing::debug!(%from, %error, "a STUN answer was not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// Starts a server on `listen` and returns its address as clients at `host` see it, and a client there.
    async fn server(listen: &str, host: &str) -> (SocketAddr, UdpSocket) {
        let socket = UdpSocket::bind(listen).await.unwrap();
        let address = SocketAddr::new(host.parse().unwrap(), socket.local_addr().unwrap().port());
        tokio::spawn(async move { serve_stun(&socket).await });
        (address, UdpSocket::bind((host, 0)).await.unwrap())
    }

    async fn ask(client: &UdpSocket, server: SocketAddr, id: [u8; 12]) -> Vec<u8> {
        client.send_to(&stun::request(&id), server).await.unwrap();
        let mut buffer = [0; 256];
        let (length, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(from, server);
        buffer[..length].to_vec()
    }

    #[tokio::test]
    async fn clients_of_both_families_learn_their_address() {
        // On a socket for both families an IPv4 client must still be told an IPv4 address.
        for (listen, host, bytes) in [
            ("127.0.0.1:0", "127.0.0.1", 32),
            ("[::1]:0", "::1", 44),
            ("[::]:0", "::1", 44),
            ("[::]:0", "127.0.0.1", 32),
        ] {
            let (server, client) = server(listen, host).await;
            let answer = ask(&client, server, [7; 12]).await;
            assert_eq!(stun::parse_response(&answer), Ok(([7; 12], client.local_addr().unwrap())), "{listen} {host}");
            assert_eq!(answer.len(), bytes);
        }
    }

    #[tokio::test]
    async fn only_requests_of_tailnet_nodes_are_answered() {
        let (server, client) = server("127.0.0.1:0", "127.0.0.1").await;
        // A plain binding request as any STUN client sends it, one with another SOFTWARE, and noise.
        let plain = [&b"\0\x01\0\0\x21\x12\xa4\x42"[..], &[3; 12]].concat();
        let mut other = stun::request(&[3; 12]).to_vec();
        other[24] = b'x';
        let mut long = stun::request(&[3; 12]).to_vec();
        long.extend([0; 400]);
        for foreign in [plain, other, long, vec![], vec![0xff; 511], vec![0; 9000]] {
            client.send_to(&foreign, server).await.unwrap();
        }
        // Loopback keeps the order: the first answer would be to one of those.
        let answer = ask(&client, server, [8; 12]).await;
        assert_eq!(stun::parse_response(&answer).unwrap().0, [8; 12]);
    }
}
