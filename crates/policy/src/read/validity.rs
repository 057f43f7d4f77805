//! The times of a grant: `from`, `until`, `schedule`.

use super::json::{Fields, Shape, noted};
use crate::hujson::Kind;
use crate::problem::{Errors, Problem};
use crate::schedule::{Validity, WeeklyTime, end_after, parse_clock, parse_days, parse_moment, parse_zone};
use jiff::tz::TimeZone;

const TIME: Shape = Shape::new("a time of \"schedule\"", &["days", "start", "end", "zone"]);

/// Reads when a grant holds.
pub(super) fn read(grant: &Fields<'_>, errors: &mut Errors<'_>) -> Validity {
    let mut moment = |field: &str| {
        let (at, text) = grant.text(field, errors)?;
        let moment = parse_moment(text).ok_or_else(|| Problem::Moment { text: text.to_owned() });
        noted(moment, at, errors).map(|moment| (at, moment))
    };
    let (from, until) = (moment("from"), moment("until"));
    if let (Some((_, from)), Some((at, until))) = (from, until)
        && until <= from
    {
        errors.note(at, Problem::EndBeforeBegin);
    }
    let mut schedule = Vec::new();
    for time in grant.list("schedule", errors) {
        schedule.extend(Fields::read(time, &TIME, errors).and_then(|time| weekly_time(&time, errors)));
    }
    not_empty(grant, "schedule", errors);
    Validity { from: from.map(|(_, from)| from), until: until.map(|(_, until)| until), schedule }
}

fn weekly_time(time: &Fields<'_>, errors: &mut Errors<'_>) -> Option<WeeklyTime> {
    let mut days = [time.get("days").is_none(); 7];
    for (at, text) in time.texts("days", errors) {
        let read = parse_days(text, &mut days).ok_or_else(|| Problem::Days { text: text.to_owned() });
        noted(read, at, errors);
    }
    not_empty(time, "days", errors);
    let mut clock = |field: &str, absent: u32| match time.text(field, errors) {
        None => Some(absent),
        Some((at, text)) => {
            noted(parse_clock(text).ok_or_else(|| Problem::Clock { text: text.to_owned() }), at, errors)
        }
    };
    let (start, end) = (clock("start", 0), clock("end", 24 * 60));
    let zone = match time.text("zone", errors) {
        None => TimeZone::UTC,
        Some((at, name)) => noted(parse_zone(name).ok_or_else(|| Problem::Zone { text: name.to_owned() }), at, errors)?,
    };
    let start = start?;
    Some(WeeklyTime { days, start, end: end_after(start, end?), zone })
}

/// Demands that a list, if it is there, has an entry: nobody can tell whether an empty one means always or never.
fn not_empty(fields: &Fields<'_>, field: &str, errors: &mut Errors<'_>) {
    if let Some(list) = fields.get(field)
        && matches!(&list.kind, Kind::List(elements) if elements.is_empty())
    {
        errors.note(list.at, Problem::EmptyDefinition { name: field.to_owned() });
    }
}
