//! What was changed, in the words of the original. Source: logs-and-api.md, section 6.

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::call::{ApiError, Call, Reply};
use super::devices::NEVER;
use crate::AuditEntry;
use crate::store::audit::hex;

/// Most entries of one answer.
const MOST: usize = 1000;
/// Most bytes of one answer, counted by what its entries hold.
const ANSWER_MAX: usize = 4 << 20;
/// How many are read at a time.
const PAGE: u32 = 1000;
/// How many are looked at for one answer, if most do not pass the filters.
const LOOKED_AT: usize = 20_000;
/// How many bytes of them.
const READ_MAX: usize = 16 << 20;
/// Longest text in place of a record: older entries hold whole policies.
const TEXT_MAX: usize = 16 << 10;

/// How changes are called: ours; target, action and property of the original.
const WORDS: [(&str, &str, &str, Option<&str>); 45] = [
    ("node.create", "NODE", "CREATE", None),
    ("node.remove", "NODE", "DELETE", None),
    ("node.remove-ephemeral", "NODE", "DELETE", None),
    ("node.logout", "NODE", "LOGOUT", None),
    ("node.login", "NODE", "LOGIN", None),
    ("node.approve", "NODE", "APPROVE", None),
    ("node.disapprove", "NODE", "REVOKE", None),
    ("node.tag", "NODE", "UPDATE", Some("ACL_TAGS")),
    ("node.rename", "NODE", "UPDATE", Some("MACHINE_NAME")),
    ("node.expiry", "NODE", "UPDATE", Some("KEY_EXPIRY_TIME")),
    ("node.address", "NODE", "UPDATE", Some("ADDRESS")),
    ("node.approve-routes", "NODE", "UPDATE", Some("ALLOWED_IPS")),
    ("node.revoke-routes", "NODE", "UPDATE", Some("ALLOWED_IPS")),
    ("node.attribute", "NODE", "UPDATE", Some("ATTRIBUTES")),
    ("user.create", "USER", "CREATE", None),
    ("user.remove", "USER", "DELETE", None),
    ("user.role", "USER", "UPDATE", Some("USER_ROLE")),
    ("user.suspend", "USER", "SUSPEND", None),
    ("user.restore", "USER", "RESTORE", None),
    ("user.invite", "USER", "CREATE", Some("INVITATION")),
    ("user.account", "USER", "UPDATE", Some("IDENTITY")),
    ("invitation.use", "USER", "UPDATE", Some("INVITATION")),
    ("account.create", "USER", "CREATE", Some("ACCOUNT")),
    ("auth-key.create", "API_KEY", "CREATE", None),
    ("auth-key.revoke", "API_KEY", "REVOKE", None),
    ("credential.create", "API_KEY", "CREATE", None),
    ("credential.revoke", "API_KEY", "REVOKE", None),
    ("auth-key.forget", "API_KEY", "DELETE", None),
    ("credential.forget", "API_KEY", "DELETE", None),
    ("policy.set", "TAILNET", "UPDATE", Some("ACL")),
    ("policy.rollback", "TAILNET", "UPDATE", Some("ACL")),
    ("policy.prune", "TAILNET", "DELETE", Some("ACL")),
    ("machine.enrol", "NODE", "CREATE", Some("ENROLMENT")),
    ("machine.prove", "NODE", "CREATE", Some("ENROLMENT")),
    ("machine-ca.enrol", "TAILNET", "CREATE", Some("ENROLMENT_AUTHORITY")),
    ("machine-ca.revoke", "TAILNET", "REVOKE", Some("ENROLMENT_AUTHORITY")),
    ("machine-ca.end", "TAILNET", "DELETE", Some("ENROLMENT_AUTHORITY")),
    ("machine.end", "NODE", "DELETE", Some("ENROLMENT")),
    ("tailnet.only-enrolled", "TAILNET", "UPDATE", Some("ENROLMENT_NEEDED")),
    ("node.log-key", "NODE", "UPDATE", Some("FLOW_LOG_KEY")),
    ("tailnet.flow-log", "TAILNET", "UPDATE", Some("NETWORK_FLOW_LOGGING")),
    ("tailnet.dns", "TAILNET", "UPDATE", Some("DNS_CONFIG")),
    ("tailnet.machine-approval", "TAILNET", "UPDATE", Some("MACHINE_APPROVAL_NEEDED")),
    ("tailnet.key-lifetime", "TAILNET", "UPDATE", Some("MAX_KEY_DURATION")),
    ("api.refuse", "FAILED_REQUEST", "UPDATE", None),
];

pub(super) async fn configuration(call: &Call) -> Result<Reply, ApiError> {
    let time = |name: &str| match call.query(name) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| ApiError::bad(format!("{name}: write a time as RFC 3339"))),
    };
    let (start, end) = (time("start")?.unwrap_or(Timestamp::UNIX_EPOCH), time("end")?.unwrap_or(call.desk.now()));
    let mut after = match call.query("after") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| ApiError::bad("after: write `next` of the answer before"))?),
    };
    let (mut logs, mut looked_at, mut read, mut bytes) = (Vec::new(), 0, 0, 0);
    let more = 'reading: loop {
        let entries = call.desk.audit_between(&call.tailnet, (start, end), after, PAGE).await?;
        if entries.is_empty() {
            break false;
        }
        for entry in entries {
            if logs.len() == MOST || bytes >= ANSWER_MAX || looked_at == LOOKED_AT || read >= READ_MAX {
                break 'reading true;
            }
            after = Some(entry.seq);
            looked_at += 1;
            read += entry.len();
            let log = shown(&entry);
            if is_asked(call, &log) {
                bytes += entry.len().min(2 * TEXT_MAX);
                logs.push(log);
            }
        }
    };
    let mut answer = json!({ "version": "1.1", "tailnetId": &*call.tailnet, "logs": logs });
    if let (true, Some(after), Some(object)) = (more, after, answer.as_object_mut()) {
        object.insert("next".to_owned(), after.to_string().into());
    }
    Ok(Reply::Json(answer))
}

/// Tells whether an entry passes the filters: of each kind one must fit, where there are any.
fn is_asked(call: &Call, log: &Value) -> bool {
    let text = |path: &str| log.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let any = |name: &str, fits: &dyn Fn(&str) -> bool| {
        let mut wanted = call.queries().filter(|(key, _)| *key == name).map(|(_, value)| value).peekable();
        wanted.peek().is_none() || wanted.any(fits)
    };
    let by_actor = |wanted: &str| match wanted.strip_prefix('~') {
        Some(part) => text("/actor/loginName").contains(part) || text("/actor/displayName").contains(part),
        None => text("/actor/id") == wanted,
    };
    let on_target = |wanted: &str| text("/target/id").contains(wanted) || text("/target/name").contains(wanted);
    let event = [text("/target/type"), text("/action"), text("/target/property")].join(".");
    let is_event = |wanted: &str| event.trim_end_matches('.') == wanted;
    any("actor", &by_actor) && any("target", &on_target) && any("event", &is_event)
}

fn shown(entry: &AuditEntry) -> Value {
    let known = WORDS.iter().find(|(what, ..)| *what == entry.what);
    let subject = entry.subject.split_once(':').map_or(entry.subject.as_str(), |(_, id)| id);
    let (target, action, property) =
        known.map_or(("TAILNET", "UPDATE", None), |(_, target, action, property)| (*target, *action, *property));
    let (kind, name) = entry.who.split_once(':').unwrap_or(("server", ""));
    let (origin, actor) = match kind {
        "client" => ("CONFIG_API", "OAUTH_CLIENT"),
        "machine" => ("NODE", "NODE"),
        "user" if entry.credential.is_some() => ("CONFIG_API", "USER"),
        "user" => ("IDENTITY_PROVIDER", "USER"),
        "cli" => ("ADMIN_CONSOLE", "USER"),
        _ => ("CONTROL", "AUTOMATED_WORKER"),
    };
    let value = |text: &Option<String>| text.as_ref().map_or(Value::Null, |text| record(text));
    let mut target = json!({ "id": subject, "name": subject, "type": target });
    if let (Some(property), Some(target)) = (property, target.as_object_mut()) {
        target.insert("property".to_owned(), property.into());
    }
    json!({
        "eventTime": entry.at,
        "type": "CONFIG",
        "deferredAt": NEVER,
        "eventGroupID": entry.hash.get(..32),
        "origin": origin,
        "actor": {
            "id": entry.credential.as_deref().or(Some(name).filter(|name| !name.is_empty())).unwrap_or(&entry.who),
            "type": actor,
            "loginName": name,
            "displayName": name,
        },
        "target": target,
        "action": action,
        "old": value(&entry.before),
        "new": value(&entry.after),
        "actionDetails": entry.what,
    })
}

/// Shows a record as it was; what is too long only by what it can be known again.
fn record(text: &str) -> Value {
    if text.len() > TEXT_MAX {
        return json!({ "sha256": hex(&Sha256::digest(text)), "bytes": text.len() });
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
