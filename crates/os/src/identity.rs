//! Who is at the other end of a unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::net::{AddressFamily, sockopt};

/// Identifies the process at the other end of a unix socket as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, 0 if it is not visible from here (another container, say). Only for messages: the number can belong to
    /// another process by now.
    pub pid: i32,
}

/// Asks the kernel who connected to `stream`, a connected unix socket of the standard library or of tokio.
///
/// # Errors
/// Returns an error when the descriptor is no connected unix socket.
pub fn peer_credentials(stream: &impl AsFd) -> io::Result<PeerCredentials> {
    let fd = stream.as_fd();
    // Sockets of other families answer, too, with a nobody.
    if sockopt::socket_domain(fd)? != AddressFamily::UNIX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only unix sockets know who is at the other end"));
    }
    let mut found = libc::ucred { pid: 0, uid: NOBODY, gid: NOBODY };
    let mut length = UCRED_BYTES;
    // The safe wrapper of rustix holds the process number in a type that cannot be zero, which it can be.
    // SAFETY: `found` is a `struct ucred` of `length` bytes, the answer that this option gives; both outlive the call,
    // nobody else looks at them during it, and every value that the kernel may write is valid for their integers.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut found).cast(),
            ptr::from_mut(&mut length),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if length != UCRED_BYTES || found.uid == NOBODY {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "nobody is at the other end of the socket"));
    }
    Ok(PeerCredentials { uid: found.uid, gid: found.gid, pid: found.pid })
}

/// The number that stands for no user and no group.
const NOBODY: u32 = u32::MAX;

const UCRED_BYTES: libc::socklen_t = 12;
const _: () = assert!(size_of::<libc::ucred>() == UCRED_BYTES as usize, "the length that the kernel is told");

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
        assert_eq!(peer_credentials(&socket).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let alone = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert_eq!(peer_credentials(&alone).unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    /// A caller on the other side of a container's wall has a user, but no number of a process that we could see.
    #[test]
    fn a_caller_from_another_pid_namespace_has_no_pid() {
        use std::os::unix::net::{UnixListener, UnixStream};
        use std::process::{Command, Stdio};

        let path = std::env::temp_dir().join(format!("warren-os-{}-caller", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let caller = UnixStream::connect(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        std::fs::remove_file(&path).unwrap();
        drop(caller);
        // This test's own program runs again in a namespace of its own, where `stream` is its input.
        let again = ["--pid", "--fork"].map(std::ffi::OsString::from);
        let test = Command::new("unshare")
            .args(again)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "identity::tests::seen_from_another_pid_namespace", "--ignored", "--nocapture"])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(stream)))
            .output();
        match test {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let denied = String::from_utf8_lossy(&output.stderr).contains("unshare");
                if !output.status.success() && denied {
                    println!("skipped: making a pid namespace needs root");
                } else {
                    assert!(output.status.success() && text.contains("1 passed"), "{text}");
                }
            }
            Err(error) => println!("skipped: no unshare: {error}"),
        }
    }

    #[test]
    #[ignore = "runs inside a_caller_from_another_pid_namespace_has_no_pid"]
    fn seen_from_another_pid_namespace() {
        let peer = peer_credentials(&std::io::stdin()).unwrap();
        assert_eq!((peer.uid, peer.pid), (rustix::process::geteuid().as_raw(), 0));
    }
}
