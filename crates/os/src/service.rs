//! Sockets on addresses of this machine that no interface has, and whether somebody is a program of this machine.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be taken.
const BACKLOG: i32 = 16;

/// Opens sockets for datagrams and connections on an address that [`crate::Netlink::add_local`] makes this machine's own,
/// now or later. Whoever can send packets to this machine can send to them: see [`is_own_address`].
///
/// Both are non-blocking.
///
/// # Errors
/// Returns the kernel's answer, for instance that another program has the port.
pub fn bind_service(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let datagrams = open(address, Type::DGRAM, Protocol::UDP)?;
    datagrams.bind(&address.into())?;
    let connections = open(address, Type::STREAM, Protocol::TCP)?;
    // Connections of an earlier process that are being forgotten are in nobody's way.
    connections.set_reuse_address(true)?;
    connections.bind(&address.into())?;
    connections.listen(BACKLOG)?;
    Ok((datagrams.into(), connections.into()))
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    Ok(socket)
}

/// Tells whether an address is one of this machine in this network namespace; what is sent there does not leave it.
pub fn is_own_address(address: IpAddr) -> bool {
    // The kernel binds to nothing else; there is no list that could be out of date.
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_told_from_others() {
        assert!(is_own_address([127, 0, 0, 1].into()));
        assert!(!is_own_address([192, 0, 2, 1].into()), "a documentation address");
    }
}
