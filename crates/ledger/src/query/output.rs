//! What was found, as lines of JSON and as CSV. Fields that the network flow logs of Tailscale's API have, too, have their
//! names and meanings: `proto`, `src` and `dst` as the writing node sees them, `txPkts` from `src` to `dst`.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use warren_wire::key::NodeKey;

use super::Found;
use crate::key::LogKey;
use crate::record::{Counts, Direction, Event, Pass, Path, Start};

/// Knows what people call nodes.
pub trait Names {
    /// Returns the id of the node that signs with this key; `None` lets the key stand.
    fn writer(&self, key: &LogKey) -> Option<String>;

    /// Returns the id of the node with this key; `None` lets the key stand.
    fn node(&self, key: &NodeKey) -> Option<String>;
}

/// Knows nobody: keys stand for themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keys;

impl Names for Keys {
    fn writer(&self, _: &LogKey) -> Option<String> {
        None
    }

    fn node(&self, _: &NodeKey) -> Option<String> {
        None
    }
}

/// The names of all fields, in the order of the columns of [`Line::csv`].
pub const COLUMNS: &[&str] = &[
    "kind",
    "time",
    "logged",
    "nodeId",
    "peerId",
    "direction",
    "proto",
    "src",
    "dst",
    "start",
    "end",
    "txPkts",
    "txBytes",
    "rxPkts",
    "rxBytes",
    "reason",
    "rule",
    "filter",
    "path",
    "pkts",
    "bytes",
    "records",
    "flow",
    "position",
];

/// Is a found record with the names that it goes out with. Fields that do not apply are left out, counts of zero, too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    kind: &'static str,
    time: String,
    logged: String,
    node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proto: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    tx_pkts: u64,
    #[serde(skip_serializing_if = "is_zero")]
    tx_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rx_pkts: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rx_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pkts: u64,
    #[serde(skip_serializing_if = "is_zero")]
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<u64>,
    position: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

fn path(path: Path) -> String {
    match path {
        Path::None => "none".to_owned(),
        Path::Direct(address) => format!("direct {address}"),
        Path::Relay(region) => format!("relay {region}"),
        Path::PeerRelay(address) => format!("peer-relay {address}"),
    }
}

impl Line {
    /// Gives what was found its names.
    #[must_use]
    pub fn of(found: &Found, names: &impl Names) -> Self {
        let record = &found.record;
        let mut line = Self {
            time: record.at.to_rfc3339(),
            logged: found.stored.to_rfc3339(),
            node_id: names.writer(&found.writer).unwrap_or_else(|| found.writer.to_string()),
            position: found.position,
            ..Self::default()
        };
        if let Some(began) = &found.start {
            line.start = Some(began.at.to_rfc3339());
            line.about(&began.start, names);
        }
        match &record.event {
            Event::Start(start) => {
                line.kind = "start";
                line.flow = Some(start.flow.0);
                line.path = Some(path(start.path));
                if let Pass::Rule { rule, filter } = start.pass {
                    line.rule = Some(rule);
                    line.filter = Some(filter.iter().map(|byte| format!("{byte:02x}")).collect());
                }
            }
            Event::Update(update) => {
                line.kind = "update";
                line.flow = Some(update.flow.0);
                line.path = update.path.map(path);
                line.counts(&update.counts);
            }
            Event::End(end) => {
                line.kind = "end";
                line.flow = Some(end.flow.0);
                line.end = Some(record.at.to_rfc3339());
                line.reason = Some(end.reason.word());
                line.counts(&end.counts);
            }
            Event::Drops(drops) => {
                line.kind = "denied";
                line.direction = Some(direction(drops.direction));
                line.reason = Some(drops.reason.word());
                line.peer_id = drops.peer.map(|peer| names.node(&peer).unwrap_or_else(|| peer.to_string()));
                (line.pkts, line.bytes) = (drops.packets, drops.bytes);
                if let Some(target) = &drops.target {
                    line.proto = Some(target.protocol);
                    // Of whatever ports.
                    line.src = Some(target.source.to_string());
                    line.dst = Some(std::net::SocketAddr::new(target.destination, target.port).to_string());
                }
            }
            Event::Missed { records } => {
                line.kind = "missed";
                line.records = Some(*records);
            }
        }
        line
    }

    fn about(&mut self, start: &Start, names: &impl Names) {
        self.peer_id = Some(names.node(&start.peer).unwrap_or_else(|| start.peer.to_string()));
        self.direction = Some(direction(start.direction));
        self.proto = Some(start.protocol);
        self.src = Some(start.local.to_string());
        self.dst = Some(start.remote.to_string());
    }

    const fn counts(&mut self, counts: &Counts) {
        (self.tx_pkts, self.tx_bytes) = (counts.tx_packets, counts.tx_bytes);
        (self.rx_pkts, self.rx_bytes) = (counts.rx_packets, counts.rx_bytes);
    }

    /// Writes it as a line of JSON.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.write_all(b"\n")
    }

    /// Writes it as a line of CSV (RFC 4180) with the columns [`COLUMNS`]; [`csv_head`] goes before the first.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn csv(&self, out: &mut impl Write) -> io::Result<()> {
        let value = serde_json::to_value(self)?;
        let cells: Vec<String> = COLUMNS
            .iter()
            .map(|column| match value.get(column) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => cell(text),
                Some(other) => other.to_string(),
            })
            .collect();
        write!(out, "{}\r\n", cells.join(","))
    }
}

/// Writes the names of the columns.
///
/// # Errors
/// Those of the writer.
pub fn csv_head(out: &mut impl Write) -> io::Result<()> {
    write!(out, "{}\r\n", COLUMNS.join(","))
}

/// Quotes what needs it. What a spreadsheet would take for a formula it is told is text: names are chosen by people.
fn cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Began;
    use crate::record::{DropReason, Drops, Target};
    use crate::testing::{at, end, secret, start};
    use crate::{Record, Time};
    use std::time::Duration;

    struct Known;

    impl Names for Known {
        fn writer(&self, _: &LogKey) -> Option<String> {
            Some("n1".into())
        }

        fn node(&self, _: &NodeKey) -> Option<String> {
            Some("=cmd,\"x\"".into())
        }
    }

    fn found(record: Record) -> Found {
        let (writer, epoch) = (secret(1).public(), at(0));
        Found { position: 7, stored: at(2_000_000), writer, epoch, number: 3, record, start: None }
    }

    fn json(found: &Found, names: &impl Names) -> String {
        let mut out = Vec::new();
        Line::of(found, names).json(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_end_says_what_it_was_about() {
        let Event::Start(begun) = start(4, 0).event else { panic!("a start") };
        let began = Some(Began { at: at(0), start: begun });
        let found = Found { start: began, ..found(end(4, 1_500_000, 5)) };
        let expected = concat!(
            r#"{"kind":"end","time":"2026-11-18T11:06:41.500000Z","logged":"2026-11-18T11:06:42.000000Z","nodeId":"n1","#,
            r#""peerId":"=cmd,\"x\"","direction":"outbound","proto":6,"src":"100.64.0.1:50000","dst":"100.64.0.2:443","#,
            r#""start":"2026-11-18T11:06:40.000000Z","end":"2026-11-18T11:06:41.500000Z","txPkts":5,"txBytes":500,"#,
            r#""rxPkts":5,"rxBytes":5000,"reason":"closed","flow":4,"position":7}"#,
            "\n"
        );
        assert_eq!(json(&found, &Known), expected);
        let mut out = Vec::new();
        csv_head(&mut out).unwrap();
        Line::of(&found, &Known).csv(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains(r#",n1,"'=cmd,""x""",outbound,6,100.64.0.1:50000,"#), "{text}");
    }

    #[test]
    fn every_field_has_a_column() {
        let all = Line { records: Some(1), ..Line::of(&found(start(0, 0)), &Keys) };
        let value = serde_json::to_value(&all).unwrap();
        assert!(value.as_object().unwrap().keys().all(|key| COLUMNS.contains(&key.as_str())), "{value}");
    }

    #[test]
    fn a_denied_attempt_says_who_wanted_what() {
        let target = Some(Target {
            protocol: 6,
            source: "fd7a::1".parse().unwrap(),
            destination: "fd7a::2".parse().unwrap(),
            port: 22,
        });
        let drops = Drops {
            reason: DropReason::NoRule,
            direction: Direction::Inbound,
            peer: None,
            target,
            packets: 3,
            bytes: 180,
            span: Duration::ZERO,
        };
        let text = json(&found(Record { at: at(0), event: Event::Drops(drops) }), &Keys);
        let fields = r#""direction":"inbound","proto":6,"src":"fd7a::1","dst":"[fd7a::2]:22","reason":"no-rule","pkts":3,"bytes":180"#;
        assert!(text.contains(fields) && text.contains(r#""nodeId":"logkey:"#), "{text}");
    }

    /// Any time that a hostile node signs can be written.
    #[test]
    fn the_latest_time_can_be_written() {
        let text = Time::from_micros(u64::MAX).to_rfc3339();
        assert!(text.ends_with('Z') && text.len() < 40, "{text}");
    }
}
