//! The crates with `unsafe`, tested under a sanitizer.

use crate::run::{Run, target};
use anyhow::Result;

/// The only crates that have any. `cargo xtask check` sees to that.
const CRATES: &str = "--package warren-os --package warren-aead";

/// Runs their tests with AddressSanitizer, which ends the program at the first access outside of what was allocated.
///
/// The standard library is the usual one, not instrumented: its own accesses are trusted. The flag is not stable, hence the
/// variable; the runtime comes with the toolchain.
pub(crate) fn all() -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        println!("skipped: AddressSanitizer, whose runtime is there for x86_64-unknown-linux-gnu alone");
        return Ok(());
    }
    // With a target named, what runs while building is built without it.
    Run::cargo()
        .args("test --quiet --locked --target x86_64-unknown-linux-gnu --lib --tests")
        .args(CRATES)
        .arg("--target-dir")
        .arg(target().join("sanitized"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .go()
}
