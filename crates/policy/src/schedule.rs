//! When a rule holds: warren's extension of grants by `from`, `until` and `schedule`.
//!
//! `from` and `until` are moments (RFC 3339), the first second and the first second after. `schedule` is a list of
//! times, of which one must be: `{"days": ["mon-fri"], "start": "08:00", "end": "18:00", "zone": "Europe/Berlin"}`.
//! Without `days` that is every day, without `start` from 00:00, without `end` until 24:00, without `zone` in UTC. An
//! end at or before the start is on the next day. Where clocks are put forward, a time that is skipped is as much later;
//! where they are put back, the first of two equal times counts.

use jiff::civil::{Date, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp};
use std::sync::LazyLock;

/// Rules of the time zones of the world, from the program itself.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Names of the days as a policy writes them.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Minutes of a day.
const DAY_MINUTES: u32 = 24 * 60;

/// How many days are searched for the next change: a week, and what the change of clocks may skip.
const DAYS_AHEAD: i64 = 16;

/// When a rule holds; by default always.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Validity {
    /// First second, in Unix seconds.
    pub(crate) from: Option<i64>,
    /// First second after, in Unix seconds.
    pub(crate) until: Option<i64>,
    /// Times of which one must be; none is always.
    pub(crate) schedule: Vec<WeeklyTime>,
}

/// A time of some days of the week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeeklyTime {
    /// On which days it begins, from Monday.
    pub(crate) days: [bool; 7],
    /// When it begins, in minutes of the day.
    pub(crate) start: u32,
    /// When it ends, in minutes since the day began on which it begins; more than [`Self::start`].
    pub(crate) end: u32,
    /// Whose clock that is.
    pub(crate) zone: TimeZone,
}

impl Validity {
    /// Tells whether the rule holds at a moment in Unix seconds.
    pub(crate) fn holds(&self, now: i64) -> bool {
        self.from.is_none_or(|from| from <= now)
            && self.until.is_none_or(|until| now < until)
            && (self.schedule.is_empty() || self.schedule.iter().any(|time| time.holds(now)))
    }

    /// Returns the next moment after `now` from which it is otherwise than at `now`; `None` if it stays so.
    pub(crate) fn next_edge(&self, now: i64) -> Option<i64> {
        let (from, until) = (self.from.unwrap_or(i64::MIN), self.until.unwrap_or(i64::MAX));
        if from >= until || now >= until {
            return None;
        }
        if self.schedule.is_empty() {
            return if now < from { self.from } else { self.until };
        }
        let begin = now.max(from);
        let times = self.schedule.iter().flat_map(|time| time.around(begin));
        let mut times: Vec<(i64, i64)> =
            times.filter(|(start, end)| start < end && *end > begin && *start < until).collect();
        times.sort_unstable();
        let (start, mut end) = *times.first()?;
        if start > now && start > from {
            return Some(start);
        }
        if now < from {
            return self.from;
        }
        // It holds now: until the first gap between the times.
        for (next_start, next_end) in times {
            if next_start > end {
                break;
            }
            end = end.max(next_end);
        }
        // Times that cover all the days that were looked at cover all days.
        let searched = begin.saturating_add(DAYS_AHEAD.saturating_sub(2).saturating_mul(86_400));
        if end >= until.min(searched) { self.until } else { Some(end) }
    }
}

impl WeeklyTime {
    fn holds(&self, now: i64) -> bool {
        self.around(now).any(|(start, end)| (start..end).contains(&now))
    }

    /// Returns when it begins and ends, from the day before a moment on.
    fn around(&self, now: i64) -> impl Iterator<Item = (i64, i64)> + '_ {
        let today = Timestamp::from_second(now).ok().map(|now| self.zone.to_datetime(now).date());
        let days = today.into_iter().flat_map(|today| {
            // It lasts less than two days, so that what began earlier is over.
            (-2..DAYS_AHEAD).filter_map(move |days| today.checked_add(Span::new().try_days(days).ok()?).ok())
        });
        days.filter(|day| {
            let number = usize::try_from(day.weekday().to_monday_zero_offset()).unwrap_or_default();
            self.days.get(number).copied().unwrap_or_default()
        })
        .filter_map(|day| Some((self.moment(day, self.start)?, self.moment(day, self.end)?)))
    }

    /// Returns the moment so many minutes after a day began, by the clock on the wall.
    fn moment(&self, day: Date, minutes: u32) -> Option<i64> {
        let day = day.checked_add(Span::new().try_days(minutes / DAY_MINUTES).ok()?).ok()?;
        let minutes = minutes % DAY_MINUTES;
        let time = Time::new(i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?, 0, 0).ok()?;
        Some(self.zone.to_timestamp(day.to_datetime(time)).ok()?.as_second())
    }
}

/// Reads a moment; `None` if it is none.
pub(crate) fn parse_moment(text: &str) -> Option<i64> {
    text.parse::<warren_wire::control::Time>().ok().map(warren_wire::control::Time::unix_seconds)
}

/// Reads a day or several, `mon` or `fri-sun`, into `days`; `None` if they are none.
pub(crate) fn parse_days(text: &str, days: &mut [bool; 7]) -> Option<()> {
    let number = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name.trim()));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    for (number, day) in days.iter_mut().enumerate() {
        *day |= match first <= last {
            true => (first..=last).contains(&number),
            false => number >= first || number <= last,
        };
    }
    Some(())
}

/// Reads a time of the day, `00:00` to `24:00`, into minutes; `None` if it is none.
pub(crate) fn parse_clock(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let total = hours.checked_mul(60)?.checked_add(minutes)?;
    (minutes < 60 && total <= DAY_MINUTES).then_some(total)
}

/// Makes the end of a time that begins at `start` minutes of the day: at or before the start, it is on the next day.
pub(crate) fn end_after(start: u32, end: u32) -> u32 {
    if end > start { end } else { end.saturating_add(DAY_MINUTES) }
}

/// Finds a time zone by its name, like `Europe/Berlin`.
pub(crate) fn parse_zone(name: &str) -> Option<TimeZone> {
    ZONES.get(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> i64 {
        parse_moment(text).unwrap()
    }

    fn weekly(days: &str, start: &str, end: &str, zone: &str) -> WeeklyTime {
        let mut of_week = [false; 7];
        parse_days(days, &mut of_week).unwrap();
        let start = parse_clock(start).unwrap();
        let end = end_after(start, parse_clock(end).unwrap());
        WeeklyTime { days: of_week, start, end, zone: parse_zone(zone).unwrap() }
    }

    fn scheduled(times: Vec<WeeklyTime>) -> Validity {
        Validity { schedule: times, ..Validity::default() }
    }

    #[test]
    fn a_rule_without_times_always_holds() {
        assert!(Validity::default().holds(i64::MIN) && Validity::default().holds(i64::MAX));
        assert_eq!(Validity::default().next_edge(0), None);
    }

    #[test]
    fn from_is_the_first_second_and_until_the_first_after() {
        let validity = Validity { from: Some(10), until: Some(20), ..Validity::default() };
        for (now, holds, edge) in [(9, false, Some(10)), (10, true, Some(20)), (19, true, Some(20)), (20, false, None)]
        {
            assert_eq!((validity.holds(now), validity.next_edge(now)), (holds, edge), "{now}");
        }
    }

    /// Berlin is an hour ahead of UTC in winter and two in summer; 2026-11-25 is a Wednesday.
    #[test]
    fn office_hours_follow_the_clock_of_their_zone() {
        let office = scheduled(vec![weekly("mon-fri", "08:00", "18:00", "Europe/Berlin")]);
        assert!(!office.holds(at("2026-11-25T06:59:59Z")) && office.holds(at("2026-11-25T07:00:00Z")));
        assert!(office.holds(at("2026-11-25T16:59:59Z")) && !office.holds(at("2026-11-25T17:00:00Z")));
        assert!(office.holds(at("2026-07-01T06:00:00Z")) && !office.holds(at("2026-07-01T16:00:00Z")));
        assert_eq!(office.next_edge(at("2026-11-27T12:00:00Z")), Some(at("2026-11-27T17:00:00Z")));
        assert_eq!(office.next_edge(at("2026-11-27T17:00:00Z")), Some(at("2026-11-30T07:00:00Z")));
    }

    #[test]
    fn an_end_before_the_start_is_on_the_next_day() {
        let nights = scheduled(vec![weekly("sun", "22:00", "06:00", "UTC")]);
        assert!(nights.holds(at("2026-11-29T23:00:00Z")) && nights.holds(at("2026-11-30T05:59:59Z")));
        assert!(!nights.holds(at("2026-11-29T05:00:00Z")) && !nights.holds(at("2026-11-30T06:00:00Z")));
    }

    #[test]
    fn times_that_meet_have_no_edge_between_them() {
        assert_eq!(scheduled(vec![weekly("mon-sun", "00:00", "24:00", "Asia/Tokyo")]).next_edge(0), None);
        let halves = vec![weekly("fri-thu", "00:00", "12:00", "UTC"), weekly("mon-sun", "12:00", "24:00", "UTC")];
        assert_eq!(scheduled(halves).next_edge(0), None);
    }

    #[test]
    fn a_schedule_begins_with_its_rule() {
        let from = at("2030-01-05T12:00:00Z");
        let mut validity = scheduled(vec![weekly("mon", "08:00", "09:00", "UTC")]);
        validity.from = Some(from);
        // A Saturday: the next Monday comes two days later.
        assert_eq!(validity.next_edge(0), Some(at("2030-01-07T08:00:00Z")));
        assert!(!validity.holds(at("2029-12-31T08:30:00Z")) && validity.holds(at("2030-01-07T08:30:00Z")));
    }

    #[test]
    fn malformed_times_are_refused() {
        for text in ["", "8:00", "08", "08:60", "24:01", "-1:00", "08:00:00", "0é:00"] {
            assert_eq!(parse_clock(text), None, "{text}");
        }
        for text in ["", "monday", "mon-", "mon-fri-sun", "mon,tue"] {
            assert_eq!(parse_days(text, &mut [false; 7]), None, "{text}");
        }
        for text in ["", "Europe/Nowhere", "CEST"] {
            assert_eq!(parse_zone(text), None, "{text}");
        }
        for text in ["", "2026-11-25", "2026-11-25T10:00:00", "tomorrow"] {
            assert_eq!(parse_moment(text), None, "{text}");
        }
        assert_eq!(parse_moment("2026-11-25T10:00:00+01:00"), parse_moment("2026-11-25T09:00:00Z"));
    }

    proptest! {
        /// Walking from edge to edge, nothing changes in between.
        #[test]
        fn edges_are_where_it_changes(
            now in 1_700_000_000_i64..1_900_000_000,
            step in 1_i64..400_000,
            day in 0_usize..7,
            start in 0_u32..1440,
            end in 0_u32..=1440,
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
            all_days: bool,
            from in proptest::option::of(-1_000_000_i64..3_000_000),
            until in proptest::option::of(-1_000_000_i64..3_000_000),
        ) {
            let mut days = [false; 7];
            days[day] = true;
            days[(day + 3) % 7] = true;
            days = if all_days { [true; 7] } else { days };
            let zone = parse_zone(zone).unwrap();
            let half = WeeklyTime { days, start: end % 1_440, end: end_after(end % 1_440, start), zone: zone.clone() };
            let mut validity = scheduled(vec![WeeklyTime { days, start, end: end_after(start, end), zone }]);
            if step % 3 == 0 {
                validity.schedule.push(half);
            }
            (validity.from, validity.until) = (from.map(|from| now + from), until.map(|until| now + until));
            let later = now + step;
            if validity.holds(now) != validity.holds(later) {
                prop_assert!(validity.next_edge(now).is_some_and(|edge| edge <= later));
            }
            if let Some(edge) = validity.next_edge(now) {
                prop_assert!(edge > now && validity.holds(edge) != validity.holds(now));
                prop_assert_eq!(validity.holds(edge - 1), validity.holds(now));
            }
        }

        #[test]
        fn no_moment_panics(now: i64, from: Option<i64>, until: Option<i64>) {
            let validity = Validity { from, until, schedule: vec![weekly("sat", "01:00", "24:00", "Europe/Berlin")] };
            prop_assert!(validity.next_edge(now).is_none_or(|edge| edge > now));
        }
    }
}
