//! Reading everything at the start.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_wire::control::{DerpRegion, NodeId, RegionId, UserId};
use warren_wire::key::MachineKey;

use super::{OpenError, StoreError};
use crate::model::{
    AuthKeyRecord, CredentialRecord, MachineCaRecord, MachineRecord, NodeRecord, NodeState, TailnetId, TailnetRecord,
    UserRecord,
};
use crate::tailnet::access::PolicyInForce;

/// All that the database holds.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The tailnets.
    pub(crate) tailnets: Vec<LoadedTailnet>,
    /// Relays on other machines.
    pub(crate) relays: BTreeMap<RegionId, DerpRegion>,
    /// Records that could not be read.
    pub(crate) quarantined: Vec<Quarantined>,
}

/// A tailnet and what belongs to it.
#[derive(Debug)]
pub(crate) struct LoadedTailnet {
    pub(crate) record: TailnetRecord,
    pub(crate) next_address: u32,
    pub(crate) policy: Arc<PolicyInForce>,
    pub(crate) users: BTreeMap<UserId, Arc<UserRecord>>,
    pub(crate) nodes: Vec<(Arc<NodeRecord>, Arc<NodeState>)>,
    pub(crate) auth_keys: BTreeMap<String, (AuthKeyRecord, [u8; 32])>,
    pub(crate) credentials: BTreeMap<String, (CredentialRecord, [u8; 32])>,
    pub(crate) machines: BTreeMap<MachineKey, Arc<MachineRecord>>,
    pub(crate) machine_cas: BTreeMap<String, Arc<MachineCaRecord>>,
    /// Names and addresses of nodes that could not be read; nobody else may get them.
    pub(crate) reserved: Vec<(String, Option<Ipv4Addr>)>,
}

/// A record that was put aside because it cannot be read; its row is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// Table of the record.
    pub table: &'static str,
    /// Its number or name.
    pub id: String,
}

/// Reads every table.
pub(super) fn everything(connection: &Connection) -> Result<Loaded, OpenError> {
    let mut loaded = Loaded::default();
    let mut tailnets: BTreeMap<TailnetId, LoadedTailnet> = BTreeMap::new();
    let sql = "SELECT id, body, next_address FROM tailnet ORDER BY id";
    for (id, text, next_address) in
        rows(connection, sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, u32>(2)?)))?
    {
        let Some(record) = loaded.decode::<TailnetRecord>("tailnet", id, &text) else {
            continue;
        };
        let policy = loaded.read_policy(connection, &record)?;
        let tailnet = LoadedTailnet {
            record,
            next_address,
            policy,
            users: BTreeMap::new(),
            nodes: Vec::new(),
            auth_keys: BTreeMap::new(),
            credentials: BTreeMap::new(),
            machines: BTreeMap::new(),
            machine_cas: BTreeMap::new(),
            reserved: Vec::new(),
        };
        tailnets.insert(TailnetId(id), tailnet);
    }
    read_users(connection, &mut loaded, &mut tailnets)?;
    read_nodes(connection, &mut loaded, &mut tailnets)?;
    read_auth_keys(connection, &mut loaded, &mut tailnets)?;
    read_credentials(connection, &mut loaded, &mut tailnets)?;
    read_machines(connection, &mut loaded, &mut tailnets)?;
    read_relays(connection, &mut loaded)?;
    loaded.tailnets = tailnets.into_values().collect();
    Ok(loaded)
}

type Tailnets = BTreeMap<TailnetId, LoadedTailnet>;

fn read_relays(connection: &Connection, loaded: &mut Loaded) -> Result<(), StoreError> {
    let sql = "SELECT region, body FROM relay ORDER BY region";
    for (id, text) in rows(connection, sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))? {
        if let Some(region) = loaded.decode::<DerpRegion>("relay", id, &text) {
            loaded.relays.insert(region.region_id, region);
        }
    }
    Ok(())
}

fn read_users(connection: &Connection, loaded: &mut Loaded, tailnets: &mut Tailnets) -> Result<(), StoreError> {
    for (id, tailnet, text) in rows(connection, "SELECT id, tailnet, body FROM user ORDER BY id", |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
    })? {
        let Some(record) = loaded.decode::<UserRecord>("user", id, &text) else {
            continue;
        };
        if let Some(tailnet) = tailnets.get_mut(&TailnetId(tailnet)) {
            tailnet.users.insert(UserId(id), Arc::new(record));
        }
    }
    Ok(())
}

fn read_nodes(connection: &Connection, loaded: &mut Loaded, tailnets: &mut Tailnets) -> Result<(), StoreError> {
    let sql = "SELECT node.id, tailnet, ipv4, name, node.body, node_state.body, lease_until
               FROM node LEFT JOIN node_state ON node_state.node = node.id ORDER BY node.id";
    for row in rows(connection, sql, |row| {
        Ok(NodeRow {
            id: row.get(0)?,
            tailnet: row.get(1)?,
            ipv4: row.get(2)?,
            name: row.get(3)?,
            body: row.get(4)?,
            state: row.get(5)?,
            lease_until: row.get(6)?,
        })
    })? {
        let record = loaded
            .decode::<NodeRecord>("node", row.id, &row.body)
            .filter(|record| record.id == NodeId(row.id) && record.tailnet == TailnetId(row.tailnet));
        let Some(tailnet) = tailnets.get_mut(&TailnetId(row.tailnet)) else {
            continue;
        };
        let Some(record) = record else {
            tailnet.reserved.push((row.name, row.ipv4.parse().ok()));
            continue;
        };
        // A node whose state is lost reports it anew.
        let mut state =
            row.state.and_then(|text| loaded.decode::<NodeState>("node_state", row.id, &text)).unwrap_or_default();
        state.lease_until = row.lease_until.and_then(|at| Timestamp::from_millisecond(at).ok());
        tailnet.nodes.push((Arc::new(record), Arc::new(state)));
    }
    Ok(())
}

struct NodeRow {
    id: i64,
    tailnet: i64,
    ipv4: String,
    name: String,
    body: String,
    state: Option<String>,
    lease_until: Option<i64>,
}

fn read_auth_keys(connection: &Connection, loaded: &mut Loaded, tailnets: &mut Tailnets) -> Result<(), StoreError> {
    for (id, tailnet, hash, text, used) in
        rows(connection, "SELECT id, tailnet, hash, body, used FROM auth_key ORDER BY id", |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, [u8; 32]>(2)?,
                row.get::<_, String>(3)?,
                row.get::<_, i64>(4)?,
            ))
        })?
    {
        let Some(mut record) = loaded.decode::<AuthKeyRecord>("auth_key", &id, &text) else {
            continue;
        };
        record.used = u64::try_from(used).unwrap_or_default();
        if let Some(tailnet) = tailnets.get_mut(&TailnetId(tailnet)) {
            tailnet.auth_keys.insert(id, (record, hash));
        }
    }
    Ok(())
}

fn read_credentials(connection: &Connection, loaded: &mut Loaded, tailnets: &mut Tailnets) -> Result<(), StoreError> {
    for (id, tailnet, hash, text) in
        rows(connection, "SELECT id, tailnet, hash, body FROM credential ORDER BY id", |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, [u8; 32]>(2)?, row.get::<_, String>(3)?))
        })?
    {
        let Some(record) = loaded.decode::<CredentialRecord>("credential", &id, &text) else {
            continue;
        };
        if let Some(tailnet) = tailnets.get_mut(&TailnetId(tailnet)) {
            tailnet.credentials.insert(id, (record, hash));
        }
    }
    Ok(())
}

/// Reads who is enrolled; a machine or an authority whose record cannot be read is not.
fn read_machines(connection: &Connection, loaded: &mut Loaded, tailnets: &mut Tailnets) -> Result<(), StoreError> {
    for (tailnet, key, text) in rows(connection, "SELECT tailnet, key, body FROM machine ORDER BY key", |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    })? {
        let Some(record) = loaded.decode::<MachineRecord>("machine", &key, &text) else {
            continue;
        };
        if let Some(tailnet) = tailnets.get_mut(&TailnetId(tailnet)) {
            tailnet.machines.insert(record.key, Arc::new(record));
        }
    }
    for (tailnet, id, text) in rows(connection, "SELECT tailnet, id, body FROM machine_ca ORDER BY id", |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    })? {
        let Some(record) = loaded.decode::<MachineCaRecord>("machine_ca", &id, &text) else {
            continue;
        };
        if let Some(tailnet) = tailnets.get_mut(&TailnetId(tailnet)) {
            tailnet.machine_cas.insert(id, Arc::new(record));
        }
    }
    Ok(())
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Loaded {
    /// Reads the newest policy; one that cannot be understood is kept as it is and allows nothing.
    fn read_policy(
        &mut self,
        connection: &Connection,
        tailnet: &TailnetRecord,
    ) -> Result<Arc<PolicyInForce>, StoreError> {
        let newest: Option<(i64, String)> = connection
            .prepare_cached("SELECT version, text FROM policy WHERE tailnet = ?1 ORDER BY version DESC LIMIT 1")?
            .query_row([tailnet.id.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (version, text) = newest.unwrap_or_default();
        let policy = PolicyInForce::parse(&text).unwrap_or_else(|errors| {
            let id = format!("{}:{version}", tailnet.id);
            tracing::error!(tailnet = tailnet.name, version, %errors, "a policy cannot be read; it allows nothing now");
            self.quarantined.push(Quarantined { table: "policy", id });
            PolicyInForce::nothing_allowed(&text)
        });
        Ok(Arc::new(policy))
    }

    /// Reads a record, or puts it aside and says so.
    fn decode<T: DeserializeOwned>(&mut self, table: &'static str, id: impl ToString, text: &str) -> Option<T> {
        match serde_json::from_str(text) {
            Ok(record) => Some(record),
            Err(error) => {
                let id = id.to_string();
                tracing::error!(table, id, %error, "a record cannot be read and is left out");
                self.quarantined.push(Quarantined { table, id });
                None
            }
        }
    }
}
