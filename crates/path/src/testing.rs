//! What tests share.

use std::sync::OnceLock;
use std::time::Instant;

/// Returns an instant at which virtual time begins; always the same.
pub(crate) fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "an instant can only be made by reading the clock; none passes")]
    *EPOCH.get_or_init(Instant::now)
}
