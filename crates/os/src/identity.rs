//! Who is at the other end of a unix socket.

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt;

/// Identifies the process at the other end of a unix socket as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process. Only for messages: the number can belong to another process by now.
    pub pid: i32,
}

/// Asks the kernel who connected to `stream`, a connected unix socket of the standard library or of tokio.
///
/// # Errors
/// Returns the kernel's error when the descriptor is no connected unix socket.
pub fn peer_credentials(stream: &impl AsFd) -> io::Result<PeerCredentials> {
    let credentials = sockopt::socket_peercred(stream)?;
    Ok(PeerCredentials {
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
        pid: credentials.pid.as_raw_nonzero().get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_our_own_pair_is_us() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = peer_credentials(&a).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn what_is_no_unix_socket_has_no_identity() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(peer_credentials(&socket).is_err() || peer_credentials(&socket).unwrap().uid == u32::MAX);
    }
}
