//! Waiting for several descriptors at once, and waking a waiting thread from another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::io::Errno;

/// Names a descriptor to wait for and what to wait for on it.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'fd> {
    fd: BorrowedFd<'fd>,
    flags: PollFlags,
}

impl<'fd> Watched<'fd> {
    /// Waits until the descriptor can be read.
    pub fn readable(fd: &'fd impl AsFd) -> Self {
        Self { fd: fd.as_fd(), flags: PollFlags::IN }
    }

    /// Waits until the descriptor can be written.
    pub fn writable(fd: &'fd impl AsFd) -> Self {
        Self { fd: fd.as_fd(), flags: PollFlags::OUT }
    }

    /// Waits until the descriptor can be read or written.
    pub fn both(fd: &'fd impl AsFd) -> Self {
        Self { fd: fd.as_fd(), flags: PollFlags::IN | PollFlags::OUT }
    }
}

/// Tells what became possible on one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// A read will not block.
    pub readable: bool,
    /// A write will not block.
    pub writable: bool,
    /// An error or hang-up is pending; the next read or write tells which.
    pub failed: bool,
}

/// Waits until at least one descriptor is ready, `timeout` has passed, or a signal arrived.
///
/// `None` in `watched` is an absent descriptor (a machine without IPv6, say) and never becomes ready. Without a
/// timeout the call waits for ever. It allocates nothing.
///
/// # Errors
/// Returns the kernel's error other than `EINTR`, which counts as "nothing ready".
pub fn poll<const N: usize>(watched: [Option<Watched<'_>>; N], timeout: Option<Duration>) -> io::Result<[Ready; N]> {
    let mut fds = with_stand_ins(watched)?;
    let mut ready = [Ready::default(); N];
    if wait(&mut fds, timeout)? {
        ready = answers(watched, &fds);
    }
    Ok(ready)
}

/// Waits likewise for any number of descriptors more, which it tells in the order of `more`. Allocates for those.
///
/// # Errors
/// As [`poll`].
pub fn poll_many<const N: usize>(
    watched: [Option<Watched<'_>>; N],
    more: &[Watched<'_>],
    timeout: Option<Duration>,
) -> io::Result<([Ready; N], Vec<Ready>)> {
    if more.is_empty() {
        return Ok((poll(watched, timeout)?, Vec::new()));
    }
    let mut fds = with_stand_ins(watched)?.to_vec();
    fds.extend(more.iter().map(|Watched { fd, flags }| PollFd::from_borrowed_fd(*fd, *flags)));
    if !wait(&mut fds, timeout)? {
        return Ok(([Ready::default(); N], vec![Ready::default(); more.len()]));
    }
    Ok((answers(watched, &fds), fds.get(N..).unwrap_or_default().iter().map(Ready::of).collect()))
}

/// Makes an absent descriptor another one with no events; its answer is ignored later.
fn with_stand_ins<'fd, const N: usize>(watched: [Option<Watched<'fd>>; N]) -> io::Result<[PollFd<'fd>; N]> {
    let Some(stand_in) = watched.iter().flatten().next().copied() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no descriptor to wait for"));
    };
    Ok(watched.map(|watched| match watched {
        Some(Watched { fd, flags }) => PollFd::from_borrowed_fd(fd, flags),
        None => PollFd::from_borrowed_fd(stand_in.fd, PollFlags::empty()),
    }))
}

/// Waits; false if a signal came first.
fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
    // A wait too long for the kernel's clock is as good as for ever.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) => Ok(true),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn answers<const N: usize>(watched: [Option<Watched<'_>>; N], fds: &[PollFd<'_>]) -> [Ready; N] {
    let mut ready = [Ready::default(); N];
    for ((ready, fd), watched) in ready.iter_mut().zip(fds).zip(&watched) {
        if watched.is_some() {
            *ready = Ready::of(fd);
        }
    }
    ready
}

impl Ready {
    fn of(fd: &PollFd<'_>) -> Self {
        let flags = fd.revents();
        Self {
            readable: flags.intersects(PollFlags::IN),
            writable: flags.intersects(PollFlags::OUT),
            failed: flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        }
    }
}

/// Wakes a thread that waits in [`poll`] on it.
///
/// Share it by reference or `Arc`. Several wake-ups before the thread looks are one.
#[derive(Debug)]
pub struct Waker {
    fd: OwnedFd,
}

impl Waker {
    /// Makes a waker that is not set.
    ///
    /// # Errors
    /// Returns the kernel's error when descriptors run out.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Makes the waker readable until the next [`Self::clear`].
    pub fn wake(&self) {
        // The only possible failure is a full counter, and then the waker is already set.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Takes back all wake-ups so far.
    ///
    /// Call it before looking for work: a wake-up that arrives in between is then seen by the next [`poll`].
    pub fn clear(&self) {
        // The only possible failure is that nothing is set.
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_waker_is_readable_from_wake_to_clear() {
        let waker = Waker::new().unwrap();
        assert!(!poll([Some(Watched::readable(&waker))], AT_ONCE).unwrap()[0].readable);
        waker.wake();
        waker.wake();
        assert!(poll([Some(Watched::readable(&waker))], AT_ONCE).unwrap()[0].readable);
        waker.clear();
        assert!(!poll([Some(Watched::readable(&waker))], AT_ONCE).unwrap()[0].readable);
    }

    #[test]
    fn a_waker_wakes_a_thread_that_waits_without_timeout() {
        let waker = Waker::new().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| poll([None, Some(Watched::readable(&waker))], None).unwrap());
            waker.wake();
            let [absent, ready] = waiting.join().unwrap();
            assert!(ready.readable);
            assert_eq!(absent, Ready::default());
        });
    }

    #[test]
    fn a_timeout_beyond_the_clock_waits_instead_of_failing() {
        let waker = Waker::new().unwrap();
        waker.wake();
        let ready = poll([Some(Watched::both(&waker))], Some(Duration::MAX)).unwrap();
        assert!(ready[0].readable && ready[0].writable);
    }

    #[test]
    fn waiting_for_nothing_is_an_error() {
        assert_eq!(poll([None], None).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
