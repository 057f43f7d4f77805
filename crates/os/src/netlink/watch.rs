//! Learning that the machine's network changed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long the network must be quiet after a change before it is reported, to report a storm of changes once.
///
/// Tailscale's `net/netmon` waits for a second. Connections stand still meanwhile, and looking twice costs little.
const QUIET: Duration = Duration::from_millis(150);

/// The longest that a never-ending storm can hold back a report.
const PATIENCE: Duration = Duration::from_secs(1);

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_IFADDR`,
/// `RTMGRP_IPV6_ROUTE`, and the group `RTNLGRP_IPV6_RULE` (19), which has no such name.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;

/// Watches interfaces, addresses, routes and routing rules of this network namespace for change.
///
/// It says only *that* something changed; list the interfaces again and compare. Our own changes are reported, too.
#[derive(Debug)]
pub struct LinkWatch {
    socket: AsyncFd<OwnedFd>,
}

impl LinkWatch {
    /// Starts to watch; changes from now on are reported.
    ///
    /// # Errors
    /// Returns the kernel's error when no route socket can be had.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is protocol 0, NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // SAFETY: `OwnedFd` owns an open descriptor, answers `as_raw_fd` with it always, and is never taken out of or
        // replaced inside the `AsyncFd`, so that the descriptor stays open and the same until both are dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self { socket })
    }

    /// Waits for a change, then until the network has been quiet for a moment, but not longer than a second.
    ///
    /// Cancelling the call loses no change that it has not begun to wait out.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.drain().await?;
        let storm = async {
            while let Ok(result) = tokio::time::timeout(QUIET, self.drain()).await {
                result?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, storm).await.unwrap_or(Ok(()))
    }

    /// Waits for messages and throws away all that are there.
    async fn drain(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut any = false;
            loop {
                // Messages are cut to one byte: that one came is all we want to know.
                let read = ready.try_io(|socket| {
                    match rustix::net::recv(socket, &mut [0_u8; 1], RecvFlags::TRUNC) {
                        // The kernel lost messages for want of room: something changed.
                        Err(rustix::io::Errno::NOBUFS) => Ok(()),
                        Err(errno) => Err(errno.into()),
                        Ok(_) => Ok(()),
                    }
                });
                match read {
                    Ok(Ok(())) => any = true,
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => break,
                }
            }
            if any {
                return Ok(());
            }
        }
    }
}
