//! Spans of time as Go writes them, like `1h30m`, since policies are full of them.
//!
//! Source: Go `time.ParseDuration` and `Duration.String`.

/// Units, longer signs before those that they begin with, in nanoseconds.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a span in nanoseconds; `None` if it is none, or longer than 292 years.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes() {
        [b'-', ..] => (-1, text.get(1..)?),
        [b'+', ..] => (1, text.get(1..)?),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_i64;
    while !rest.is_empty() {
        let end = rest.find(|sign: char| !sign.is_ascii_digit() && sign != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let (unit, length) = UNITS.iter().find_map(|(name, unit)| {
            let next = after.strip_prefix(name)?;
            (!next.starts_with(char::is_alphabetic)).then_some((*unit, name.len()))
        })?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            total = total.checked_add(scale.checked_mul(i64::from(digit.saturating_sub(b'0')))?)?;
        }
        rest = after.get(length..)?;
    }
    Some(total.saturating_mul(sign))
}

/// Writes a span of nanoseconds, like `1h30m0s`.
pub(super) fn write(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let fraction = |whole: u64, rest: u64, width: usize| {
        let digits = format!("{rest:0width$}");
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() { whole.to_string() } else { format!("{whole}.{digits}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(nanos / 1_000, nanos % 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(nanos / 1_000_000, nanos % 1_000_000, 6)),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
            let seconds = fraction(seconds % 60, nanos % 1_000_000_000, 9);
            match (hours, minutes) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, _) => format!("{sign}{minutes}m{seconds}s"),
                _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_are_read_and_written_as_go_does() {
        for (text, nanos, written) in [
            ("0", 0, "0s"),
            ("-1m", -60_000_000_000, "-1m0s"),
            ("200h", 720_000_000_000_000, "200h0m0s"),
            ("168h0m1s", 604_801_000_000_000, "168h0m1s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            (".5s", 500_000_000, "500ms"),
            ("1.25ms", 1_250_000, "1.25ms"),
            ("2us3ns", 2_003, "2.003µs"),
        ] {
            assert_eq!(parse(text), Some(nanos), "{text}");
            assert_eq!(write(nanos), written);
        }
        for text in ["", "abc", "5", "-", "1d", "1hm", "h", ".s", "1..5s", "9999999h", "1 h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nanos in -i64::MAX..i64::MAX) {
            prop_assert_eq!(parse(&write(nanos)), Some(nanos));
        }
    }
}
