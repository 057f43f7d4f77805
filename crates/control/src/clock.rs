//! The one place where the server reads the time of day.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Tells the time of day and the matching monotonic instant.
///
/// Both advance together, so that a test that pauses tokio's time also stops the time of day.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    System,
    #[cfg(test)]
    Tokio {
        start: Timestamp,
        origin: Instant,
    },
}

impl Clock {
    /// Returns the clock of the operating system.
    #[must_use]
    pub const fn system() -> Self {
        Self { kind: Kind::System }
    }

    /// Returns a clock that stands at `start` now and follows tokio's time, which tests pause.
    #[cfg(test)]
    pub(crate) fn following_tokio(start: Timestamp) -> Self {
        let origin = Self::system().instant();
        Self { kind: Kind::Tokio { start, origin } }
    }

    /// Returns the time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self.kind {
            Kind::System => Timestamp::now(),
            #[cfg(test)]
            Kind::Tokio { start, origin } => {
                start.checked_add(self.instant().saturating_duration_since(origin)).unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// Returns the monotonic instant.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this shell reads the clock here and nowhere else")]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// Returns the instant at which the time of day will be `at`; now if that is past.
    #[must_use]
    pub fn instant_of(&self, at: Timestamp) -> Instant {
        let wait = at.duration_since(self.now()).max(SignedDuration::ZERO);
        let wait = std::time::Duration::try_from(wait).unwrap_or_default().min(FURTHEST);
        self.instant() + wait
    }
}

/// Longest wait that [`Clock::instant_of`] answers; whoever waits looks again afterwards.
const FURTHEST: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
