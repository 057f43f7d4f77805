//! Carrying out changes.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use warren_wire::control::{DerpRegion, NodeId, RegionId, UserId};
use warren_wire::key::MachineKey;

use super::audit::{self, Fact};
use super::{StoreError, accounts};
use crate::account::{AccountRecord, InvitationRecord, Secrets};
use crate::model::{
    AuthKeyRecord, CredentialRecord, MachineCaRecord, MachineRecord, NodeRecord, NodeState, TailnetId, TailnetRecord,
    UserRecord, Who,
};

/// One audited change.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Who makes it.
    pub(crate) who: Who,
    /// What it is called in the log, such as `node.create`.
    pub(crate) what: &'static str,
    /// Tailnet that it concerns; absent if it concerns all.
    pub(crate) tailnet: Option<TailnetId>,
    /// The change.
    pub(crate) change: Change,
}

/// A change of one record.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Makes or replaces a tailnet.
    PutTailnet(TailnetRecord),
    /// Makes or replaces a user.
    PutUser(UserRecord),
    /// Removes a user.
    RemoveUser(UserId),
    /// Makes a node; `next_address` is where the search for the address of the next one begins.
    AddNode { record: Arc<NodeRecord>, next_address: u32 },
    /// Replaces a node.
    PutNode(Arc<NodeRecord>),
    /// Removes a node; if `lease` is given, only if the stored lease is not later.
    RemoveNode {
        /// The node.
        id: NodeId,
        /// Time at which the lease must be over.
        lease: Option<Timestamp>,
    },
    /// Makes or replaces an auth key.
    PutAuthKey {
        /// What is known of it.
        record: AuthKeyRecord,
        /// Hash of the secret; `None` keeps the stored one.
        hash: Option<[u8; 32]>,
    },
    /// Counts a use of an auth key; fails if it was for one use only and is spent, or revoked.
    UseAuthKey(String),
    /// Makes or replaces a credential of the API.
    PutCredential {
        /// What is known of it.
        record: CredentialRecord,
        /// Hash of the secret; `None` keeps the stored one.
        hash: Option<[u8; 32]>,
    },
    /// Forgets an auth key that lets nobody in any more.
    RemoveAuthKey(String),
    /// Forgets a credential of the API that works no more.
    RemoveCredential(String),
    /// Enrols a machine, or replaces what is known of it.
    PutMachine(MachineRecord),
    /// Ends the enrolment of a machine in the tailnet.
    RemoveMachine(MachineKey),
    /// Enrols an authority, or replaces what is known of it.
    PutMachineCa(MachineCaRecord),
    /// Forgets an authority of the tailnet.
    RemoveMachineCa(String),
    /// Makes a link that makes an account.
    PutInvitation {
        /// What is known of it.
        record: InvitationRecord,
        /// Hash of its secret.
        hash: [u8; 32],
    },
    /// Uses a link up; fails if it is gone.
    UseInvitation(String),
    /// Makes an account.
    AddAccount {
        /// What is known of it.
        record: AccountRecord,
        /// What it knows its person by; not in the log.
        secrets: Secrets,
    },
    /// Uses a code of a second factor up; fails if that one or a later one was used.
    UseStep {
        /// ID of the account.
        account: String,
        /// Its step.
        step: i64,
    },
    /// Uses a code for when the second factor is lost up; fails if there is none such.
    UseRecovery {
        /// ID of the account.
        account: String,
        /// Hash of the code.
        hash: [u8; 32],
    },
    /// Changes nothing: somebody was refused a change of this kind of record.
    Refused {
        /// What they asked for, and what they lack.
        subject: String,
    },
    /// Stores a new version of the policy.
    PutPolicy {
        /// Its number.
        version: u64,
        /// Its text.
        text: Arc<str>,
        /// Why it was set; may be empty.
        reason: String,
    },
    /// Makes a region of relays on other machines known, or replaces it.
    PutRelays(DerpRegion),
    /// Forgets a relay.
    RemoveRelay(RegionId),
}

/// Carries out one change and appends it to the log.
pub(super) fn entry(connection: &Connection, entry: &Entry, at: Timestamp) -> Result<(), StoreError> {
    let (subject, before, after) = match &entry.change {
        Change::PutTailnet(record) => put_tailnet(connection, record)?,
        Change::PutUser(record) => put_user(connection, record)?,
        Change::RemoveUser(id) => {
            let before = take(connection, "DELETE FROM user WHERE id = ?1 RETURNING body", id.0)?;
            (format!("user:{}", id.0), Some(before), None)
        }
        Change::AddNode { record, next_address } => {
            connection
                .prepare_cached("UPDATE tailnet SET next_address = ?2 WHERE id = ?1")?
                .execute((record.tailnet.0, next_address))?;
            put_node(connection, record)?
        }
        Change::PutNode(record) => put_node(connection, record)?,
        Change::RemoveNode { id, lease } => remove_node(connection, *id, *lease)?,
        Change::PutAuthKey { record, hash } => put_auth_key(connection, record, hash.as_ref())?,
        Change::UseAuthKey(id) => use_auth_key(connection, id)?,
        Change::PutCredential { record, hash } => put_credential(connection, record, hash.as_ref())?,
        Change::RemoveAuthKey(id) => {
            let before = forget(connection, "DELETE FROM auth_key WHERE id = ?1 RETURNING body", id)?;
            (format!("auth-key:{id}"), Some(before), None)
        }
        Change::RemoveCredential(id) => {
            let before = forget(connection, "DELETE FROM credential WHERE id = ?1 RETURNING body", id)?;
            (format!("credential:{id}"), Some(before), None)
        }
        Change::PutMachine(record) => {
            let row = Keyed { table: "machine", key: "key", tailnet: record.tailnet, of: &record.key.to_string() };
            put_keyed(connection, &row, &json(record)?, "machine")?
        }
        Change::RemoveMachine(key) => {
            let tailnet = entry.tailnet.ok_or(StoreError::Conflict { what: "a machine of no network" })?;
            let row = Keyed { table: "machine", key: "key", tailnet, of: &key.to_string() };
            remove_keyed(connection, &row, "machine")?
        }
        Change::PutMachineCa(record) => {
            let row = Keyed { table: "machine_ca", key: "id", tailnet: record.tailnet, of: &record.id };
            put_keyed(connection, &row, &json(record)?, "machine-ca")?
        }
        Change::RemoveMachineCa(id) => {
            let tailnet = entry.tailnet.ok_or(StoreError::Conflict { what: "an authority of no network" })?;
            remove_keyed(connection, &Keyed { table: "machine_ca", key: "id", tailnet, of: id }, "machine-ca")?
        }
        Change::PutInvitation { record, hash } => {
            let after = accounts::put_invitation(connection, record, hash)?;
            (format!("invitation:{}", record.id), None, Some(after))
        }
        Change::UseInvitation(id) => {
            (format!("invitation:{id}"), Some(accounts::use_invitation(connection, id)?), None)
        }
        Change::AddAccount { record, secrets } => {
            (format!("account:{}", record.id), None, Some(accounts::add(connection, record, secrets)?))
        }
        Change::UseStep { account, step } => {
            accounts::use_step(connection, account, *step)?;
            (format!("account:{account}"), None, None)
        }
        Change::UseRecovery { account, hash } => {
            accounts::use_recovery(connection, account, hash)?;
            (format!("account:{account}"), None, None)
        }
        Change::Refused { subject } => (subject.clone(), None, None),
        Change::PutPolicy { version, text, reason } => {
            let row = PolicyRow { version: *version, text, at, author: entry.who.as_str(), reason };
            let tailnet = entry.tailnet.ok_or(StoreError::Conflict { what: "a policy of no network" })?;
            put_policy(connection, tailnet, &row)?
        }
        Change::PutRelays(region) => {
            let (id, after) = (i64::from(region.region_id.0), json(region)?);
            let before = body(connection, "SELECT body FROM relay WHERE region = ?1", id)?;
            let sql = "INSERT INTO relay (region, body) VALUES (?1, ?2)
                       ON CONFLICT (region) DO UPDATE SET body = excluded.body";
            connection.prepare_cached(sql)?.execute((id, &after))?;
            (format!("relay:{id}"), before, Some(after))
        }
        Change::RemoveRelay(id) => {
            let sql = "DELETE FROM relay WHERE region = ?1 RETURNING body";
            (format!("relay:{}", id.0), Some(take(connection, sql, i64::from(id.0))?), None)
        }
    };
    let fact = Fact {
        at,
        tailnet: entry.tailnet,
        who: &entry.who,
        what: entry.what,
        subject: &subject,
        before: before.as_deref(),
        after: after.as_deref(),
    };
    audit::append(connection, &fact)?;
    let (Change::PutPolicy { version, .. }, Some(tailnet)) = (&entry.change, entry.tailnet) else { return Ok(()) };
    let gone = prune_policies(connection, tailnet, *version)?;
    let (Some(first), Some(last)) = (gone.first(), gone.last()) else { return Ok(()) };
    let subject = format!("policy:{tailnet}:{first}-{last}");
    let before = format!("{{\"versions\":{}}}", gone.len());
    let who = &Who::server();
    let pruned = Fact { who, what: "policy.prune", subject: &subject, before: Some(&before), after: None, ..fact };
    audit::append(connection, &pruned)
}

/// Stores what nodes reported.
pub(super) fn states(connection: &Connection, states: &[(NodeId, Arc<NodeState>)]) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO node_state (node, lease_until, body) SELECT id, ?2, ?3 FROM node WHERE id = ?1
         ON CONFLICT (node) DO UPDATE SET lease_until = excluded.lease_until, body = excluded.body",
    )?;
    for (id, state) in states {
        let lease = state.lease_until.map(Timestamp::as_millisecond);
        statement.execute((id.0, lease, json(&**state)?))?;
    }
    Ok(())
}

/// Name of the record, its text before, its text afterwards.
type Written = (String, Option<String>, Option<String>);

fn put_tailnet(connection: &Connection, record: &TailnetRecord) -> Result<Written, StoreError> {
    let before = body(connection, "SELECT body FROM tailnet WHERE id = ?1", record.id.0)?;
    let after = json(record)?;
    connection
        .prepare_cached(
            "INSERT INTO tailnet (id, name, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body",
        )?
        .execute((record.id.0, &record.name, &after))?;
    Ok((format!("tailnet:{}", record.id), before, Some(after)))
}

fn put_user(connection: &Connection, record: &UserRecord) -> Result<Written, StoreError> {
    let before = body(connection, "SELECT body FROM user WHERE id = ?1", record.id.0)?;
    let after = json(record)?;
    connection
        .prepare_cached(
            "INSERT INTO user (id, tailnet, login, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET login = excluded.login, body = excluded.body",
        )?
        .execute((record.id.0, record.tailnet.0, &record.login, &after))?;
    Ok((format!("user:{}", record.id.0), before, Some(after)))
}

fn put_node(connection: &Connection, record: &NodeRecord) -> Result<Written, StoreError> {
    let before = body(connection, "SELECT body FROM node WHERE id = ?1", record.id.0)?;
    let after = json(record)?;
    connection
        .prepare_cached(
            "INSERT INTO node (id, tailnet, node_key, ipv4, name, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET
                node_key = excluded.node_key, ipv4 = excluded.ipv4, name = excluded.name, body = excluded.body",
        )?
        .execute((
            record.id.0,
            record.tailnet.0,
            record.key.to_string(),
            record.ipv4.to_string(),
            &record.name,
            &after,
        ))?;
    Ok((format!("node:{}", record.id.0), before, Some(after)))
}

fn remove_node(connection: &Connection, id: NodeId, lease: Option<Timestamp>) -> Result<Written, StoreError> {
    if let Some(now) = lease {
        let over: Option<bool> = connection
            .prepare_cached("SELECT lease_until <= ?2 FROM node_state WHERE node = ?1")?
            .query_row((id.0, now.as_millisecond()), |row| row.get::<_, Option<bool>>(0))
            .optional()?
            .flatten();
        if over != Some(true) {
            return Err(StoreError::Conflict { what: "the lease of an ephemeral node" });
        }
    }
    let before = take(connection, "DELETE FROM node WHERE id = ?1 RETURNING body", id.0)?;
    Ok((format!("node:{}", id.0), Some(before), None))
}

fn put_auth_key(
    connection: &Connection,
    record: &AuthKeyRecord,
    hash: Option<&[u8; 32]>,
) -> Result<Written, StoreError> {
    let before: Option<String> = connection
        .prepare_cached("SELECT body FROM auth_key WHERE id = ?1")?
        .query_row([&record.id], |row| row.get(0))
        .optional()?;
    let after = json(record)?;
    let changed = if let Some(hash) = hash {
        connection
            .prepare_cached("INSERT INTO auth_key (id, tailnet, hash, body) VALUES (?1, ?2, ?3, ?4)")?
            .execute((&record.id, record.tailnet.0, hash, &after))?
    } else {
        connection.prepare_cached("UPDATE auth_key SET body = ?2 WHERE id = ?1")?.execute((&record.id, &after))?
    };
    expect_one(changed, "an auth key")?;
    Ok((format!("auth-key:{}", record.id), before, Some(after)))
}

fn put_credential(
    connection: &Connection,
    record: &CredentialRecord,
    hash: Option<&[u8; 32]>,
) -> Result<Written, StoreError> {
    let before: Option<String> = connection
        .prepare_cached("SELECT body FROM credential WHERE id = ?1")?
        .query_row([&record.id], |row| row.get(0))
        .optional()?;
    let after = json(record)?;
    let changed = if let Some(hash) = hash {
        connection
            .prepare_cached("INSERT INTO credential (id, tailnet, hash, body) VALUES (?1, ?2, ?3, ?4)")?
            .execute((&record.id, record.tailnet.0, hash, &after))?
    } else {
        connection.prepare_cached("UPDATE credential SET body = ?2 WHERE id = ?1")?.execute((&record.id, &after))?
    };
    expect_one(changed, "a credential")?;
    Ok((format!("credential:{}", record.id), before, Some(after)))
}

/// A row of a table whose rows a tailnet and a text name.
struct Keyed<'a> {
    table: &'static str,
    /// Name of the column with the text.
    key: &'static str,
    tailnet: TailnetId,
    of: &'a str,
}

fn put_keyed(connection: &Connection, row: &Keyed<'_>, after: &str, what: &str) -> Result<Written, StoreError> {
    let Keyed { table, key, tailnet, of } = row;
    let before: Option<String> = connection
        .prepare_cached(&format!("SELECT body FROM {table} WHERE tailnet = ?1 AND {key} = ?2"))?
        .query_row((tailnet.0, of), |row| row.get(0))
        .optional()?;
    connection
        .prepare_cached(&format!(
            "INSERT INTO {table} (tailnet, {key}, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (tailnet, {key}) DO UPDATE SET body = excluded.body"
        ))?
        .execute((tailnet.0, of, after))?;
    Ok((format!("{what}:{of}"), before, Some(after.to_owned())))
}

fn remove_keyed(connection: &Connection, row: &Keyed<'_>, what: &str) -> Result<Written, StoreError> {
    let Keyed { table, key, tailnet, of } = row;
    let before: Option<String> = connection
        .prepare_cached(&format!("DELETE FROM {table} WHERE tailnet = ?1 AND {key} = ?2 RETURNING body"))?
        .query_row((tailnet.0, of), |row| row.get(0))
        .optional()?;
    let before = before.ok_or(StoreError::Conflict { what: "an enrolment that is not there" })?;
    Ok((format!("{what}:{of}"), Some(before), None))
}

fn use_auth_key(connection: &Connection, id: &str) -> Result<Written, StoreError> {
    let used: Option<i64> = connection
        .prepare_cached(
            "UPDATE auth_key SET used = used + 1
             WHERE id = ?1 AND NOT body ->> 'revoked' AND (used = 0 OR body ->> 'reusable') RETURNING used",
        )?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let used = used.ok_or(StoreError::Conflict { what: "the auth key" })?;
    let text = |used: i64| Some(format!("{{\"used\":{used}}}"));
    Ok((format!("auth-key:{id}"), text(used - 1), text(used)))
}

struct PolicyRow<'a> {
    version: u64,
    text: &'a str,
    at: Timestamp,
    author: &'a str,
    reason: &'a str,
}

fn put_policy(connection: &Connection, tailnet: TailnetId, row: &PolicyRow<'_>) -> Result<Written, StoreError> {
    let version = i64::try_from(row.version).map_err(|_| StoreError::Encode)?;
    let before: Option<String> = connection
        .prepare_cached("SELECT text FROM policy WHERE tailnet = ?1 AND version = ?2")?
        .query_row((tailnet.0, version - 1), |row| row.get(0))
        .optional()?;
    connection
        .prepare_cached(
            "INSERT INTO policy (tailnet, version, text, at, author, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((tailnet.0, version, row.text, row.at.to_string(), row.author, row.reason))?;
    // The texts are in the table of versions; the log says which.
    let before = before.map(|text| digest(version - 1, &text));
    Ok((format!("policy:{tailnet}:{version}"), before, Some(digest(version, row.text))))
}

/// How many versions of a tailnet's policy are kept.
const VERSIONS_MAX: i64 = 1000;
/// How many bytes of them.
const VERSIONS_BYTES_MAX: i64 = 64 << 20;
/// Of how many days the last version is kept, however many and however large versions came since: somebody who may edit
/// the policy does not make what was before them go away in an hour.
const DAYS_KEPT: i64 = 30;

/// Removes versions of long ago, but neither the one that an unconfirmed one goes back to nor the last ones of the last
/// days on which there were any; returns their numbers.
fn prune_policies(connection: &Connection, tailnet: TailnetId, newest: u64) -> Result<Vec<i64>, StoreError> {
    let newest = i64::try_from(newest).map_err(|_| StoreError::Encode)?;
    let mut statement = connection.prepare_cached(
        "DELETE FROM policy WHERE tailnet = ?1 AND version < ?2
         AND version IS NOT (SELECT body ->> '$.unconfirmed.back_to' FROM tailnet WHERE id = ?1)
         AND version NOT IN (
            SELECT max(version) FROM policy WHERE tailnet = ?1
            GROUP BY substr(at, 1, 10) ORDER BY max(version) DESC LIMIT ?5)
         AND (version <= ?2 - ?3 OR version IN (
            SELECT version FROM (
                SELECT version, sum(octet_length(text)) OVER (ORDER BY version DESC) AS bytes
                FROM policy WHERE tailnet = ?1)
            WHERE bytes > ?4))
         RETURNING version",
    )?;
    let bounds = (tailnet.0, newest, VERSIONS_MAX, VERSIONS_BYTES_MAX, DAYS_KEPT);
    let rows = statement.query_map(bounds, |row| row.get(0))?;
    let mut gone: Vec<i64> = rows.collect::<Result<_, _>>()?;
    gone.sort_unstable();
    Ok(gone)
}

/// Says which policy it was, for the log.
fn digest(version: i64, text: &str) -> String {
    let hash = audit::hex(&Sha256::digest(text));
    format!("{{\"version\":{version},\"sha256\":\"{hash}\",\"bytes\":{}}}", text.len())
}

fn body(connection: &Connection, sql: &str, id: i64) -> Result<Option<String>, StoreError> {
    Ok(connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?)
}

fn take(connection: &Connection, sql: &str, id: i64) -> Result<String, StoreError> {
    body(connection, sql, id)?.ok_or(StoreError::Conflict { what: "a record that is gone" })
}

fn forget(connection: &Connection, sql: &str, id: &str) -> Result<String, StoreError> {
    let before: Option<String> = connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
    before.ok_or(StoreError::Conflict { what: "a key that is gone" })
}

pub(super) fn expect_one(changed: usize, what: &'static str) -> Result<(), StoreError> {
    if changed == 1 { Ok(()) } else { Err(StoreError::Conflict { what }) }
}

pub(super) fn json<T: Serialize>(record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|_| StoreError::Encode)
}
