//! The time of records.

use std::fmt;
use std::time::Duration;

/// Is a moment in UTC: microseconds since 1970, until the year 586,000.
///
/// It is what the writing machine's clock said, which may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// Makes a moment of microseconds since 1970.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Makes a moment of the time since 1970, the latest there is if that is beyond all bounds.
    #[must_use]
    pub fn since_epoch(time: Duration) -> Self {
        Self(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    /// Returns the moment that comes `wait` later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Returns how far apart two moments are.
    #[must_use]
    pub const fn distance(self, other: Self) -> Duration {
        Duration::from_micros(self.0.abs_diff(other.0))
    }
}

impl Time {
    /// Writes the moment as RFC 3339 has it, in UTC with microseconds. Years beyond 9999 have more digits.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Eras of 400 years from 1 March 0 on: a leap day is the last of its year. Source: H. Hinnant, "chrono-compatible
        // low-level date algorithms", civil_from_days.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, over) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = 400 * era + year + over;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `date -u -d @SECONDS` has them.
    #[test]
    fn dates_come_out() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (1_795_000_000, "2026-11-18T11:06:40.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(Time::from_micros(seconds * 1_000_000).to_rfc3339(), expected);
        }
        assert_eq!(Time::from_micros(1_000_007).to_rfc3339(), "1970-01-01T00:00:01.000007Z");
    }
}
