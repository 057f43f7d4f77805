//! Instants as the control protocol writes them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An instant in UTC, to the nanosecond, between the years 1 and 9999.
///
/// Written as RFC 3339 with `Z` and without trailing zeros of the fraction. Go's zero time
/// (`0001-01-01T00:00:00Z`) means "absent" and cannot be held: optional fields read it as `None`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

/// Says that a text is not an RFC 3339 instant between the years 1 and 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time")]
pub struct TimeError;

/// Text of Go's zero time.
pub const GO_ZERO: &str = "0001-01-01T00:00:00Z";

/// Unix seconds of Go's zero time.
const GO_ZERO_SECONDS: i64 = -62_135_596_800;
/// Unix seconds of 9999-12-31T23:59:59Z.
const LAST_SECOND: i64 = 253_402_300_799;

impl Time {
    /// Makes an instant from seconds since 1970 and nanoseconds below 1,000,000,000.
    ///
    /// Returns `None` outside the years 1 to 9999, and for Go's zero time.
    #[must_use]
    pub const fn from_unix(seconds: i64, nanos: u32) -> Option<Self> {
        let zero = seconds == GO_ZERO_SECONDS && nanos == 0;
        if seconds < GO_ZERO_SECONDS || seconds > LAST_SECOND || nanos > 999_999_999 || zero {
            return None;
        }
        Some(Self { seconds, nanos })
    }

    /// Returns whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn unix_seconds(self) -> i64 {
        self.seconds
    }

    /// Returns the nanoseconds within the second.
    #[must_use]
    pub const fn nanos(self) -> u32 {
        self.nanos
    }

    /// Returns the instant `span` later, or the last one that can be written.
    #[must_use]
    pub fn saturating_add(self, span: Duration) -> Self {
        let nanos = self.nanos.saturating_add(span.subsec_nanos());
        let carry = i64::from(nanos / 1_000_000_000);
        let seconds = i64::try_from(span.as_secs())
            .ok()
            .and_then(|seconds| self.seconds.checked_add(seconds))
            .and_then(|seconds| seconds.checked_add(carry));
        seconds
            .and_then(|seconds| Self::from_unix(seconds, nanos % 1_000_000_000))
            .unwrap_or(Self { seconds: LAST_SECOND, nanos: 999_999_999 })
    }

    /// Returns how much later this is than `earlier`; zero if it is not.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        if self <= earlier {
            return Duration::ZERO;
        }
        let seconds = self.seconds.abs_diff(earlier.seconds);
        let whole = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(u64::from(self.nanos)));
        whole.saturating_sub(Duration::from_nanos(u64::from(earlier.nanos)))
    }
}

impl From<SystemTime> for Time {
    /// Converts, clamping to the years that can be written.
    fn from(time: SystemTime) -> Self {
        let epoch = Self { seconds: 0, nanos: 0 };
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => epoch.saturating_add(after),
            Err(before) => {
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                let (seconds, nanos) = match before.subsec_nanos() {
                    0 => (-whole, 0),
                    part => ((-whole).saturating_sub(1), 1_000_000_000_u32.saturating_sub(part)),
                };
                Self::from_unix(seconds, nanos).unwrap_or(Self { seconds: GO_ZERO_SECONDS, nanos: 1 })
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        let part = Duration::from_nanos(u64::from(time.nanos));
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let moved = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        moved.and_then(|whole| whole.checked_add(part)).unwrap_or(UNIX_EPOCH)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.seconds.div_euclid(86_400));
        let second = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanos != 0 {
            let digits = format!("{:09}", self.nanos);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Time {
    type Err = TimeError;

    /// Reads RFC 3339 with any offset; digits beyond nanoseconds are dropped.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let (seconds, nanos) = read(text).ok_or(TimeError)?;
        Self::from_unix(seconds, nanos).ok_or(TimeError)
    }
}

/// Reads an instant as Unix seconds and nanoseconds.
fn read(text: &str) -> Option<(i64, u32)> {
    let mut rest = text.as_bytes();
    let year = number(&mut rest, 4)?;
    literal(&mut rest, b"-")?;
    let month = number(&mut rest, 2)?;
    literal(&mut rest, b"-")?;
    let day = number(&mut rest, 2)?;
    literal(&mut rest, b"Tt")?;
    let hour = number(&mut rest, 2)?;
    literal(&mut rest, b":")?;
    let minute = number(&mut rest, 2)?;
    literal(&mut rest, b":")?;
    let second = number(&mut rest, 2)?;
    let valid = (1..=12).contains(&month) && day >= 1 && day <= days_in(year, month);
    if !valid || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let nanos = if literal(&mut rest, b".").is_some() { fraction(&mut rest)? } else { 0 };
    let offset = if literal(&mut rest, b"Zz").is_some() {
        0
    } else {
        let sign = if literal(&mut rest, b"+").is_some() {
            1
        } else {
            literal(&mut rest, b"-")?;
            -1
        };
        let hours = number(&mut rest, 2)?;
        literal(&mut rest, b":")?;
        let minutes = number(&mut rest, 2)?;
        if hours > 23 || minutes > 59 {
            return None;
        }
        sign * (hours * 3600 + minutes * 60)
    };
    if !rest.is_empty() {
        return None;
    }
    Some((day_number(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset, nanos))
}

/// Takes `digits` decimal digits, at most four.
fn number(rest: &mut &[u8], digits: usize) -> Option<i64> {
    let (head, tail) = rest.split_at_checked(digits)?;
    *rest = tail;
    head.iter().try_fold(0_i64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// Takes one byte of `wanted`.
fn literal(rest: &mut &[u8], wanted: &[u8]) -> Option<()> {
    let (head, tail) = rest.split_first()?;
    if !wanted.contains(head) {
        return None;
    }
    *rest = tail;
    Some(())
}

/// Takes all digits that follow as a fraction of a second; there must be one.
fn fraction(rest: &mut &[u8]) -> Option<u32> {
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    if head.is_empty() {
        return None;
    }
    let digits = head.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    Some(digits.fold(0_u32, |value, byte| value * 10 + u32::from(byte - b'0')))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a day of the proleptic Gregorian calendar, counted in eras of 400 years from March.
fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let in_era = year.rem_euclid(400);
    let in_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + in_era * 365 + in_era / 4 - in_era / 100 + in_year - 719_468
}

/// The inverse of [`day_number`].
fn date_of(day_number: i64) -> (i64, i64, i64) {
    let shifted = day_number + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let in_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let in_year = day_of_era - (365 * in_era + in_era / 4 - in_era / 100);
    let shifted_month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = in_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match from.deserialize_str(Text)? {
            Some(time) => Ok(time),
            None => Err(de::Error::custom("the zero time stands for no time")),
        }
    }
}

/// Reads an instant, Go's zero time and the empty text as `None`.
struct Text;

impl de::Visitor<'_> for Text {
    type Value = Option<Time>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an RFC 3339 time")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<Time>, E> {
        if text.is_empty() {
            return Ok(None);
        }
        match read(text) {
            Some((GO_ZERO_SECONDS, 0)) => Ok(None),
            Some((seconds, nanos)) => Time::from_unix(seconds, nanos).map(Some).ok_or_else(|| E::custom(TimeError)),
            None => Err(E::custom(TimeError)),
        }
    }
}

/// Serde helper for `Option<Time>`: absent, `null`, the empty text and Go's zero time read as `None`.
///
/// `None` is written as Go's zero time; fields that are left out instead say so with `skip_serializing_if`.
pub(super) mod zero_as_none {
    use super::{Deserializer, GO_ZERO, Serialize, Serializer, Text, Time, de, fmt};

    struct Optional;

    impl<'de> de::Visitor<'de> for Optional {
        type Value = Option<Time>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an RFC 3339 time or null")
        }

        fn visit_none<E: de::Error>(self) -> Result<Option<Time>, E> {
            Ok(None)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Option<Time>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<Time>, D::Error> {
            from.deserialize_str(Text)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Time>, D::Error> {
        from.deserialize_option(Optional)
    }

    pub(crate) fn serialize<S: Serializer>(time: &Option<Time>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => time.serialize(to),
            None => to.serialize_str(GO_ZERO),
        }
    }
}

#[cfg(test)]
mod tests;
