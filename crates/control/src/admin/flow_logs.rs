//! Asking the collected flow logs.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_ledger::checkpoint::Verifier;
use warren_ledger::query::{Kinds, Line, Names, Party, Query};
use warren_ledger::store::{ReadFolder, View, verify};
use warren_ledger::{LogKey, Time};
use warren_wire::key::NodeKey;

use super::{AdminError, Desk, invalid};
use crate::authority::Scope;
use crate::collector;
use crate::model::{NodeRecord, Owner};
use crate::tailnet::snapshot::Snapshot;

/// The most lines of one answer.
const LINES_MAX: usize = 1000;

/// The most parties and networks of a question.
const CONDITIONS_MAX: usize = 64;

/// What is asked of a flow log. Everything that is said must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowQuestion {
    /// From this time on, by the clock of the node that wrote it.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// One end is this: what names a node, the login name of a user, or a tag. Of several, each is one end.
    pub parties: Vec<String>,
    /// Kinds of records: `start`, `update`, `end`, `denied`, `missed`; all if there are none.
    pub kinds: Vec<String>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// The port to which it was begun.
    pub port: Option<u16>,
    /// One end's address is in one of these networks.
    pub networks: Vec<IpNet>,
    /// From there on.
    pub from: FlowCursor,
    /// How many lines; a thousand at most.
    pub limit: usize,
}

/// A place in a flow log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCursor {
    /// Of the batch.
    pub position: u64,
    /// The number of the record.
    pub number: u64,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowAnswer {
    /// The records, the oldest first.
    pub lines: Vec<Value>,
    /// Names of the nodes, by their IDs.
    pub names: BTreeMap<String, String>,
    /// Where to go on; the end of the log if that was all.
    pub next: FlowCursor,
    /// Whether there may be more before the end.
    pub more: bool,
}

/// What verifying a flow log came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowVerdict {
    /// How many batches are what their nodes signed.
    pub batches: u64,
    /// How many records they hold.
    pub records: u64,
    /// How many batches were ever stored.
    pub size: u64,
    /// What does not fit.
    pub breaks: Vec<String>,
    /// How much more does not.
    pub more: u64,
}

impl Desk {
    /// Finds records of a tailnet's flow log.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`], [`AdminError::FlowLog`].
    pub async fn ask_flows(&self, tailnet: &str, question: FlowQuestion) -> Result<FlowAnswer, AdminError> {
        let place = self.place(tailnet, Scope::LogsNetwork.read())?;
        if question.parties.len() + question.networks.len() > CONDITIONS_MAX {
            return Err(invalid("number of conditions: 64 at most", &question.parties.len().to_string()));
        }
        let snapshot = place.snapshot();
        let parties = question.parties.iter().map(|text| self.party(tailnet, &snapshot, text));
        let query = Query {
            position: question.from.position,
            since: question.since.map(time),
            until: question.until.map(time),
            kinds: kinds(&question.kinds)?,
            parties: parties.collect::<Result<_, _>>()?,
            protocol: question.protocol,
            port: question.port,
            networks: question.networks,
            limit: None,
        };
        let known = Arc::new(Known::of(&snapshot));
        let (limit, from) = (question.limit.min(LINES_MAX), question.from);
        let names = known.names.clone();
        let found = place.look_at_flows(move |dir, log| find(dir, log, query, (from, limit), &known)).await?;
        Ok(FlowAnswer { names, ..found.map_err(|reason| AdminError::FlowLog { reason })? })
    }

    /// Reads all of a tailnet's flow log and holds it against itself.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::FlowLog`].
    pub async fn verify_flows(&self, tailnet: &str) -> Result<FlowVerdict, AdminError> {
        let place = self.place(tailnet, Scope::LogsNetwork.read())?;
        let verified = place.look_at_flows(|dir, log| {
            let Some(files) = folder(dir)? else { return Ok(FlowVerdict::default()) };
            let found = verify(&files, log, &[]);
            Ok(FlowVerdict {
                batches: found.batches,
                records: found.records,
                size: found.size,
                breaks: found.breaks.iter().map(ToString::to_string).collect(),
                more: found.more,
            })
        });
        verified.await?.map_err(|reason| AdminError::FlowLog { reason })
    }

    /// Returns what was found wrong with a tailnet's flow logs, the newest first.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::FlowLog`].
    pub async fn flow_findings(&self, tailnet: &str, limit: usize) -> Result<Vec<Value>, AdminError> {
        let place = self.place(tailnet, Scope::LogsNetwork.read())?;
        let names = Known::of(&place.snapshot()).names;
        let (id, dir) = place.findings().await?;
        let read = place.look_at_flows(move |_, _| collector::findings(&dir, id, limit.min(LINES_MAX))).await?;
        let events = read.map_err(|error| AdminError::FlowLog { reason: error.to_string() })?;
        let named = |event| {
            let mut value = serde_json::to_value(event).unwrap_or_default();
            let id = value.get("node").and_then(Value::as_i64).map(|id| format!("n{id}"));
            if let (Some(object), Some(id)) = (value.as_object_mut(), id) {
                object.insert("node_name".to_owned(), names.get(&id).cloned().unwrap_or(id).into());
            }
            value
        };
        Ok(events.iter().map(named).collect())
    }

    /// Returns whose keys somebody means.
    fn party(&self, tailnet: &str, snapshot: &Snapshot, text: &str) -> Result<Party, AdminError> {
        let of = |is_it: &dyn Fn(&NodeRecord) -> bool| {
            let records = snapshot.nodes.iter().map(|node| &*node.record).filter(|record| is_it(record));
            records.fold(Party::default(), |mut party, record| {
                party.nodes.insert(record.key);
                party.logs.extend(record.log_key.as_deref().and_then(|key| key.parse::<LogKey>().ok()));
                party
            })
        };
        if text.starts_with("tag:") {
            return Ok(of(&|record| record.tags.iter().any(|tag| tag == text)));
        }
        if let Some(user) = snapshot.users.values().find(|user| user.login == text) {
            return Ok(of(&|record| record.owner == Owner::User(user.id)));
        }
        let id = self.node(Some(tailnet), text)?.id;
        Ok(of(&|record| record.id.0 == id))
    }
}

/// What nodes of a tailnet are called.
#[derive(Debug)]
struct Known {
    by_log: BTreeMap<LogKey, String>,
    by_key: BTreeMap<NodeKey, String>,
    /// Names by IDs.
    names: BTreeMap<String, String>,
}

impl Known {
    fn of(snapshot: &Snapshot) -> Self {
        let mut known = Self { by_log: BTreeMap::new(), by_key: BTreeMap::new(), names: BTreeMap::new() };
        for node in snapshot.nodes.iter() {
            let (record, id) = (&node.record, node.record.stable_id());
            if let Some(key) = record.log_key.as_deref().and_then(|key| key.parse().ok()) {
                known.by_log.insert(key, id.clone());
            }
            known.by_key.insert(record.key, id.clone());
            known.names.insert(id, record.name.clone());
        }
        known
    }
}

impl Names for Known {
    fn writer(&self, key: &LogKey) -> Option<String> {
        self.by_log.get(key).cloned()
    }

    fn node(&self, key: &NodeKey) -> Option<String> {
        self.by_key.get(key).cloned()
    }
}

fn find(
    dir: PathBuf,
    log: &Verifier,
    query: Query,
    (from, limit): (FlowCursor, usize),
    known: &Known,
) -> Result<FlowAnswer, String> {
    let Some(files) = folder(dir)? else { return Ok(FlowAnswer { next: from, ..FlowAnswer::default() }) };
    let view = View::open(files, log).map_err(|error| error.to_string())?;
    let end = FlowCursor { position: view.size(), number: 0 };
    let first = view.first();
    let mut answer = FlowAnswer { next: end, ..FlowAnswer::default() };
    if limit == 0 {
        return Ok(answer);
    }
    // What retention has removed is not there to be asked.
    for found in view.query(Query { position: query.position.max(first), ..query }) {
        let found = found.map_err(|error| error.to_string())?;
        if found.position == from.position && found.number < from.number {
            continue;
        }
        let line = serde_json::to_value(Line::of(&found, known)).map_err(|error| error.to_string())?;
        answer.lines.push(line);
        if answer.lines.len() == limit {
            answer.next = FlowCursor { position: found.position, number: found.number + 1 };
            answer.more = true;
            break;
        }
    }
    Ok(answer)
}

/// Opens a folder to read; `None` if there is none.
fn folder(dir: PathBuf) -> Result<Option<ReadFolder>, String> {
    match ReadFolder::open(dir) {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn kinds(words: &[String]) -> Result<Kinds, AdminError> {
    let kind = |word: &String| match word.as_str() {
        "start" => Ok(Kinds::START),
        "update" => Ok(Kinds::UPDATE),
        "end" => Ok(Kinds::END),
        "denied" => Ok(Kinds::DENIED),
        "missed" => Ok(Kinds::MISSED),
        other => Err(invalid("kind of record: start, update, end, denied or missed", other)),
    };
    if words.is_empty() {
        return Ok(Kinds::ALL);
    }
    words.iter().map(kind).try_fold(Kinds::NONE, |all, kind| Ok(all | kind?))
}

fn time(at: Timestamp) -> Time {
    Time::from_micros(u64::try_from(at.as_microsecond()).unwrap_or(0))
}
