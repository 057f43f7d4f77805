//! Tests that change the network run in a network namespace of their own.

use std::future::Future;

/// Runs `test` on a thread in a fresh network namespace with a single-threaded runtime.
///
/// Says why and returns without running when this process may not make namespaces.
pub(crate) fn in_own_network<F, T>(test: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        // SAFETY: only this new thread, which owns no descriptor or mapping that depends on it, moves to another
        // network namespace; `NEWNET` alone changes neither files, memory nor user.
        let moved = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
        if let Err(errno) = moved {
            println!("skipped: making a network namespace needs root: {errno}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
