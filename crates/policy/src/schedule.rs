//! When a rule holds: warren's extension of grants by `from`, `until` and `schedule`.

/// When a rule holds; by default always.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Validity {
    /// First second, in Unix seconds.
    pub(crate) from: Option<i64>,
    /// First second after, in Unix seconds.
    pub(crate) until: Option<i64>,
    /// Times of the week; `None` is all.
    pub(crate) schedule: Option<Schedule>,
}

/// Times of the week in one offset from UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Spans in seconds since Monday, 00:00 local time: first second, first second after; sorted and apart. A span that
    /// passes the end of the week is two.
    pub(crate) spans: Vec<(u32, u32)>,
    /// What the local clock is ahead of UTC, in seconds.
    pub(crate) offset: i32,
}

impl Validity {
    pub(crate) fn holds(&self, now: i64) -> bool {
        self.from.is_none_or(|from| from <= now) && self.until.is_none_or(|until| now < until)
    }
    pub(crate) fn next_edge(&self, now: i64) -> Option<i64> {
        [self.from, self.until].into_iter().flatten().filter(|edge| *edge > now).min()
    }
}
