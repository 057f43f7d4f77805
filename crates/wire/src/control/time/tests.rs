use super::*;
use proptest::prelude::*;

fn time(text: &str) -> Result<Time, TimeError> {
    text.parse()
}

#[test]
fn known_instants() {
    for (text, seconds, nanos) in [
        ("1970-01-01T00:00:00Z", 0, 0),
        ("2000-02-29T12:00:00Z", 951_825_600, 0),
        ("2026-11-22T12:00:00.5Z", 1_795_348_800, 500_000_000),
        ("1969-12-31T23:59:59.000000001Z", -1, 1),
        ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
        ("0001-01-01T00:00:01Z", -62_135_596_799, 0),
    ] {
        let time = time(text).unwrap();
        assert_eq!((time.unix_seconds(), time.nanos()), (seconds, nanos), "{text}");
        assert_eq!(time.to_string(), text);
    }
}

#[test]
fn offsets_are_converted_to_utc() {
    assert_eq!(time("2026-01-01T01:30:00+01:30"), time("2026-01-01T00:00:00Z"));
    assert_eq!(time("2025-12-31T19:00:00-05:00"), time("2026-01-01T00:00:00Z"));
}

#[test]
fn what_is_no_time_is_refused() {
    for text in [
        "",
        "2026-01-01",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00Zx",
        "2026-01-01T00:00:00+24:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "+026-01-01T00:00:00Z",
    ] {
        assert_eq!(time(text), Err(TimeError), "{text}");
    }
}

#[test]
fn fractions_keep_nine_digits() {
    assert_eq!(time("2026-01-01T00:00:00.1234567899Z").unwrap().nanos(), 123_456_789);
}

#[test]
fn system_time_before_and_after_1970() {
    for (seconds, nanos) in [(-2, 250_000_000), (-1, 0), (0, 0), (5, 999_999_999)] {
        let time = Time::from_unix(seconds, nanos).unwrap();
        assert_eq!(Time::from(SystemTime::from(time)), time);
    }
}

proptest! {
    #[test]
    fn text_round_trips(seconds in GO_ZERO_SECONDS + 1..=LAST_SECOND, nanos in 0_u32..1_000_000_000) {
        let time = Time::from_unix(seconds, nanos).unwrap();
        prop_assert_eq!(time.to_string().parse(), Ok(time));
    }

    #[test]
    fn differences_undo_sums(seconds in -1_000_000_000_i64..1_000_000_000, nanos in 0_u32..1_000_000_000, span in 0_u64..1_000_000_000_000_000_000) {
        let time = Time::from_unix(seconds, nanos).unwrap();
        let span = Duration::from_nanos(span);
        prop_assert_eq!(time.saturating_add(span).saturating_since(time), span);
    }

    #[test]
    fn reading_never_panics(text in "[0-9TZ:.+-]{0,40}") {
        let _ = time(&text);
    }
}
