//! Spans of time as typed, `90s`, `30m`, `24h`, `7d`, and times as shown.

use std::time::Duration;

/// Reads a span: a whole number and one of `s`, `m`, `h`, `d`; at most ten years.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    const MOST: u64 = 10 * 366 * 86_400;
    let wrong = || "write a number and a unit: 90s, 30m, 24h or 7d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| wrong())?;
    match number.checked_mul(factor) {
        Some(0) => Err("the span must be longer than nothing".to_owned()),
        Some(seconds) if seconds <= MOST => Ok(Duration::from_secs(seconds)),
        _ => Err("the span must be ten years at most".to_owned()),
    }
}

/// Leaves the fraction of a second out of a time, for people.
pub(crate) fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_with_a_unit() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("24h"), span("1d"));
        for wrong in ["", "s", "10", "-1h", "1.5h", "10w", "0s", "99999999999999999999d", "4000d", "1é"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }
}
