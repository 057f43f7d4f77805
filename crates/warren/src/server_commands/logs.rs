//! `warren logs`: who talked to whom, as both ends wrote it down.

use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_control::admin::{FlowAnswer, FlowCursor, FlowQuestion, FlowVerdict};
use warren_control::admin_socket::AdminRequest;

use super::socket::Socket;
use super::times;
use crate::exit::{Exit, Failure, OrExit};
use crate::output;

/// How many records are asked for at a time.
const PAGE: usize = 1000;

/// How often `tail` looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `warren logs`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
    /// The network; needed if the server has several and none is called "default".
    #[arg(long, global = true, value_name = "NAME")]
    tailnet: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print connections that were written down, the oldest first.
    Query {
        #[command(flatten)]
        span: Span,
        #[command(flatten)]
        filter: Filter,
        /// How many records at most.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
    },
    /// Print connections as they are written down.
    Tail {
        #[command(flatten)]
        filter: Filter,
    },
    /// Print everything that was written down as JSON, one record a line.
    Export {
        #[command(flatten)]
        filter: Filter,
    },
    /// List what is wrong with the logs: chains that were tampered with, ends that say different things. The newest first.
    Events {
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Read all logs and check that nothing was changed, removed or added.
    Verify,
}

#[derive(Debug, Args)]
struct Span {
    /// From so long ago on: 30m, 24h, 7d.
    #[arg(long, value_name = "SPAN", value_parser = times::span, default_value = "24h", conflicts_with = "from")]
    since: Duration,
    /// From this time on, such as 2026-11-26T08:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
}

#[derive(Debug, Args)]
struct Filter {
    /// Only with this machine, user (login name) or tag (tag:web) at one end. Given twice: between these two.
    #[arg(long = "with", value_name = "WHO")]
    parties: Vec<String>,
    /// Only to this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only of this protocol: tcp, udp, icmp, or a number.
    #[arg(long, value_name = "NAME", value_parser = protocol)]
    protocol: Option<u8>,
    /// Only with an address of this network at one end. May be given several times.
    #[arg(long = "network", value_name = "PREFIX")]
    networks: Vec<IpNet>,
    /// Only records of this kind: start, update, end, denied or missed. May be given several times.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// Only what was denied.
    #[arg(long, conflicts_with = "kinds")]
    denied: bool,
}

impl Filter {
    fn question(self) -> FlowQuestion {
        let kinds = if self.denied { vec!["denied".to_owned()] } else { self.kinds };
        FlowQuestion {
            parties: self.parties,
            port: self.port,
            protocol: self.protocol,
            networks: self.networks,
            kinds,
            limit: PAGE,
            ..FlowQuestion::default()
        }
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let asker = Asker { socket: self.socket, tailnet: self.tailnet, json: self.json };
        match self.verb {
            Verb::Query { span, filter, limit } => {
                let ago = Timestamp::now().checked_sub(span.since).unwrap_or(Timestamp::UNIX_EPOCH);
                let since = Some(span.from.unwrap_or(ago));
                let question = FlowQuestion { since, until: span.until, ..filter.question() };
                asker.print(question, limit).map(drop)
            }
            Verb::Tail { filter } => asker.follow(filter.question()),
            Verb::Export { filter } => Asker { json: true, ..asker }.print(filter.question(), usize::MAX).map(drop),
            Verb::Events { limit } => asker.events(limit),
            Verb::Verify => asker.verify(),
        }
    }
}

struct Asker {
    socket: Socket,
    tailnet: Option<String>,
    json: bool,
}

impl Asker {
    fn ask(&self, question: &FlowQuestion) -> Result<FlowAnswer, Failure> {
        let request = AdminRequest::FlowLogAsk { tailnet: self.tailnet.clone(), question: question.clone() };
        typed(self.socket.call(&request)?)
    }

    /// Prints up to `limit` records, and returns where that ended.
    fn print(&self, mut question: FlowQuestion, limit: usize) -> Result<FlowCursor, Failure> {
        let mut left = limit;
        loop {
            question.limit = left.min(PAGE);
            let answer = self.ask(&question)?;
            let mut text = String::new();
            for line in &answer.lines {
                text.push_str(&if self.json { line.to_string() } else { for_people(line, &answer) });
                text.push('\n');
            }
            output::text(&text)?;
            left = left.saturating_sub(answer.lines.len());
            question.from = answer.next;
            if !answer.more || left == 0 {
                return Ok(question.from);
            }
        }
    }

    fn follow(&self, question: FlowQuestion) -> Result<(), Failure> {
        let end = self.ask(&FlowQuestion { limit: 0, ..FlowQuestion::default() })?.next;
        let mut question = FlowQuestion { from: end, ..question };
        loop {
            question.from = self.print(question.clone(), usize::MAX)?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn events(&self, limit: usize) -> Result<(), Failure> {
        let request = AdminRequest::FlowLogFindings { tailnet: self.tailnet.clone(), limit };
        let events: Vec<Value> = typed(self.socket.call(&request)?)?;
        if self.json {
            return events.iter().try_for_each(output::line);
        }
        let text = |event: &Value, name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let row = |event: &Value| {
            [times::seconds(&text(event, "at")), text(event, "node_name"), text(event, "what"), text(event, "text")]
        };
        let rows: Vec<_> = events.iter().map(row).collect();
        if rows.is_empty() {
            output::line("nothing is wrong")
        } else {
            output::table(["TIME", "NODE", "WHAT", ""], &rows)
        }
    }

    fn verify(&self) -> Result<(), Failure> {
        let request = AdminRequest::FlowLogVerify { tailnet: self.tailnet.clone() };
        let answer = self.socket.call(&request)?;
        if self.json {
            output::line(&answer)?;
        }
        let FlowVerdict { batches, records, breaks, more, .. } = typed(answer)?;
        if breaks.is_empty() {
            return if self.json {
                Ok(())
            } else {
                output::line(format_args!("intact: {batches} batches with {records} records"))
            };
        }
        let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
        Err(Failure::of_lines(Exit::General, format!("{}{more}", breaks.join("\n"))))
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).or_exit(Exit::General, "the server's answer cannot be understood")
}

/// Writes a record for people.
fn for_people(line: &Value, answer: &FlowAnswer) -> String {
    let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| line.get(name).and_then(Value::as_u64).unwrap_or_default();
    let name = |id: &str| answer.names.get(id).map_or_else(|| id.to_owned(), Clone::clone);
    let (node, peer) = (name(text("nodeId")), name(text("peerId")));
    let arrow = if text("direction") == "inbound" { "<-" } else { "->" };
    let protocol = match number("proto") {
        0 => String::new(),
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    let rest = match text("kind") {
        "start" => text("path").to_owned(),
        "denied" => format!("{} packets: {}", number("pkts"), text("reason")),
        "missed" => format!("{} records could not be written down", number("records")),
        _ => format!("sent {} B, received {} B {}", number("txBytes"), number("rxBytes"), text("reason")),
    };
    let line = format!(
        "{} {:<6} {node} {arrow} {peer} {protocol} {} {} {rest}",
        text("time"),
        text("kind"),
        text("src"),
        text("dst")
    );
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>().trim_end().to_owned()
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        number => number.parse().map_err(|_| "write tcp, udp, icmp or a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_written_for_people_without_control_characters() {
        let answer =
            FlowAnswer { names: [("n1".to_owned(), "al\u{1b}pha".to_owned())].into(), ..FlowAnswer::default() };
        let line = json!({
            "kind": "end", "time": "T", "nodeId": "n1", "peerId": "n2", "direction": "inbound", "proto": 6,
            "src": "100.64.0.1:80", "dst": "100.64.0.2:5000", "txBytes": 7, "rxBytes": 9, "reason": "closed",
        });
        let text = for_people(&line, &answer);
        assert_eq!(text, "T end    al?pha <- n2 tcp 100.64.0.1:80 100.64.0.2:5000 sent 7 B, received 9 B closed");
        assert_eq!((protocol("udp"), protocol("89")), (Ok(17), Ok(89)));
        assert!(protocol("ftp").is_err());
    }
}
