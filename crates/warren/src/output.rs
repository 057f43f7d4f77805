//! Results on standard output.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::exit::{Exit, Failure, OrExit};

/// Writes `text` as it is. A reader that closed the pipe is no failure.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.or_exit(Exit::General, "cannot write to standard output"),
    }
}

/// Writes `text` and the end of the line.
pub(crate) fn line(line: impl std::fmt::Display) -> Result<(), Failure> {
    text(&format!("{line}\n"))
}

/// Writes `value` as indented JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).or_exit(Exit::General, "cannot write JSON")?;
    line(json)
}

/// Writes rows below headings, columns aligned; control characters are replaced.
#[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only lists of the server are tables so far"))]
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> Result<(), Failure> {
    let clean = |cell: &str| -> String { cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect() };
    let mut lines = vec![headings.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| row.each_ref().map(|cell| clean(cell))));
    let mut widths = [0; N];
    for row in &lines {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &lines {
        let mut written = String::new();
        for (width, cell) in widths.iter().zip(row) {
            written.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(written.trim_end());
        out.push('\n');
    }
    text(&out)
}
