//! The store against the disk: what is kept, what is refused, what survives damage.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use warren_policy::{Attributes, DirectoryUser, Role};
use warren_wire::key::{MachineKey, NodeKey};

use super::*;
use crate::backup::{self, Existing, RestoreError};
use crate::model::{AuthKeyRecord, NodeRecord, Owner, TailnetRecord, UserIdentity, UserRecord, Who};
use crate::store::audit::AuditVerdict;
use crate::testing::{Folder, start_of_time};

const TAILNET: TailnetId = TailnetId(1);

fn tailnet() -> TailnetRecord {
    TailnetRecord {
        id: TAILNET,
        name: "default".to_owned(),
        created: start_of_time(),
        machine_approval: false,
        only_enrolled: false,
        flow_log: false,
        key_lifetime: crate::model::KeyLifetime::default(),
        dns: crate::model::DnsSettings::default(),
        policy_version: 0,
        unconfirmed: None,
    }
}

fn user(id: i64, login: &str) -> UserRecord {
    UserRecord {
        id: UserId(id),
        tailnet: TAILNET,
        login: login.to_owned(),
        display_name: login.to_owned(),
        role: Role::Member,
        identity: None,
        suspended: false,
        created: start_of_time(),
    }
}

fn node(number: u8) -> Arc<NodeRecord> {
    Arc::new(NodeRecord {
        id: NodeId(i64::from(number)),
        tailnet: TAILNET,
        owner: Owner::User(UserId(1)),
        tags: Vec::new(),
        machine: MachineKey::from_bytes([number; 32]),
        key: NodeKey::from_bytes([number; 32]),
        key_expiry: None,
        key_expiry_disabled: false,
        name: format!("node{number}"),
        name_chosen: false,
        ipv4: [100, 64, 0, number].into(),
        created: start_of_time(),
        approved: true,
        suspended: false,
        ephemeral: false,
        auth_key: None,
        approved_routes: Vec::new(),
        attributes: Attributes::new(),
        log_key: None,
    })
}

fn auth_key(id: &str, reusable: bool) -> Change {
    let record = AuthKeyRecord {
        id: id.to_owned(),
        tailnet: TAILNET,
        owner: Owner::User(UserId(1)),
        tags: Vec::new(),
        reusable,
        ephemeral: false,
        pre_approved: false,
        created: start_of_time(),
        expires: None,
        revoked: false,
        description: String::new(),
        made_by: None,
        used: 0,
    };
    Change::PutAuthKey { record, hash: Some([7; 32]) }
}

fn entry(change: Change) -> Entry {
    Entry { who: Who::server(), what: "test", tailnet: Some(TAILNET), change }
}

fn add(number: u8) -> Entry {
    entry(Change::AddNode { record: node(number), next_address: u32::from(number) + 1 })
}

fn open(folder: &Folder) -> Result<(Store, Identity, Loaded), OpenError> {
    Store::open(&StateDir::open(&folder.join("state"))?)
}

/// Makes a database with a tailnet and a user.
async fn filled(folder: &Folder) -> Store {
    let (store, _, loaded) = open(folder).unwrap();
    assert!(loaded.tailnets.is_empty());
    let entries = vec![entry(Change::PutTailnet(tailnet())), entry(Change::PutUser(user(1, "ann@example.com")))];
    store.apply(entries, start_of_time()).await.unwrap();
    store
}

/// Opens the database past the store, as an attacker or an accident would.
fn raw(folder: &Folder) -> Connection {
    Connection::open(folder.join("state/warren.db")).unwrap()
}

async fn count(store: &Store, table: &'static str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    store.read(move |connection| Ok(connection.query_row(&sql, [], |row| row.get(0))?)).await.unwrap()
}

async fn verdict(store: &Store) -> AuditVerdict {
    store.read(audit::verify).await.unwrap()
}

#[tokio::test]
async fn changes_that_belong_together_are_stored_and_logged_together() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply(vec![add(1), add(2)], start_of_time()).await.unwrap();
    assert_eq!((count(&store, "node").await, count(&store, "audit").await), (2, 4));
    // The second change of these conflicts: neither is stored, neither is logged.
    let twice = vec![add(3), entry(Change::AddNode { record: node(1), next_address: 9 }), {
        let record = Arc::new(NodeRecord { id: NodeId(4), ..(*node(1)).clone() });
        entry(Change::AddNode { record, next_address: 9 })
    }];
    assert!(matches!(store.apply(twice, start_of_time()).await, Err(StoreError::Conflict { .. })));
    assert_eq!((count(&store, "node").await, count(&store, "audit").await), (2, 4));
    assert!(matches!(verdict(&store).await, AuditVerdict::Intact { entries: 4, .. }));
}

#[tokio::test]
async fn the_log_tells_who_what_before_and_after() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply(vec![add(1)], start_of_time()).await.unwrap();
    let renamed = Arc::new(NodeRecord { name: "other".to_owned(), ..(*node(1)).clone() });
    let change = Entry { who: Who::local_user(7), what: "node.rename", ..entry(Change::PutNode(renamed)) };
    store.apply(vec![change], start_of_time()).await.unwrap();
    store.apply(vec![entry(Change::RemoveNode { id: NodeId(1), lease: None })], start_of_time()).await.unwrap();
    let list = store.read(|connection| audit::list(connection, Some(TAILNET), None, 2)).await.unwrap();
    let [removed, renamed] = &list[..] else { panic!("{list:?}") };
    assert_eq!((renamed.seq, renamed.who.as_str(), renamed.what.as_str()), (4, "cli:uid=7", "node.rename"));
    assert_eq!(renamed.subject, "node:1");
    assert!(renamed.before.as_deref().unwrap().contains(r#""name":"node1""#), "{renamed:?}");
    assert!(renamed.after.as_deref().unwrap().contains(r#""name":"other""#), "{renamed:?}");
    assert_eq!((&removed.before, &removed.after), (&renamed.after, &None));
    let older = store.read(|connection| audit::list(connection, None, Some(3), 10)).await.unwrap();
    assert_eq!(older.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [2, 1]);
}

#[tokio::test]
async fn the_log_takes_no_second_thoughts() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply((1..=5).map(add).collect(), start_of_time()).await.unwrap();
    let connection = raw(&folder);
    for forbidden in ["UPDATE audit SET who = 'nobody'", "DELETE FROM audit WHERE seq = 2"] {
        assert!(connection.execute(forbidden, []).is_err(), "{forbidden}");
    }
    // Whoever has the file can drop the triggers; the chain shows it.
    connection.execute_batch("DROP TRIGGER audit_is_append_only_1; DROP TRIGGER audit_is_append_only_2;").unwrap();
    for (forgery, broken) in [
        ("UPDATE audit SET credential = 'abc' WHERE seq = 5", 5),
        ("UPDATE audit SET after = NULL WHERE seq = 4", 4),
        ("UPDATE audit SET at = '2020-01-01T00:00:00Z' WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 2", 3),
        ("UPDATE audit SET client = '192.0.2.1' WHERE seq = 1", 1),
    ] {
        connection.execute(forgery, []).unwrap();
        assert_eq!(verdict(&store).await, AuditVerdict::Broken { seq: broken }, "{forgery}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_one_use_is_used_once_however_many_try() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let keys = vec![entry(auth_key("one", false)), entry(auth_key("many", true))];
    store.apply(keys, start_of_time()).await.unwrap();
    for (id, wanted) in [("one", 1), ("many", 100)] {
        let uses: Vec<_> = (0..100)
            .map(|_| {
                let store = store.clone();
                let entries = vec![entry(Change::UseAuthKey(id.to_owned()))];
                tokio::spawn(async move { store.apply(entries, start_of_time()).await })
            })
            .collect();
        let mut good = 0;
        for one in uses {
            match one.await.unwrap() {
                Ok(()) => good += 1,
                Err(error) => assert_eq!(error, StoreError::Conflict { what: "the auth key" }),
            }
        }
        assert_eq!(good, wanted, "{id}");
    }
    assert!(matches!(verdict(&store).await, AuditVerdict::Intact { entries: 105, .. }));
}

#[tokio::test]
async fn a_key_that_was_taken_back_is_not_used() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let Change::PutAuthKey { mut record, hash } = auth_key("key", true) else { unreachable!() };
    let new = Change::PutAuthKey { record: record.clone(), hash };
    store.apply(vec![entry(new)], start_of_time()).await.unwrap();
    record.revoked = true;
    store.apply(vec![entry(Change::PutAuthKey { record, hash: None })], start_of_time()).await.unwrap();
    let used = store.apply(vec![entry(Change::UseAuthKey("key".to_owned()))], start_of_time()).await;
    assert_eq!(used, Err(StoreError::Conflict { what: "the auth key" }));
}

#[tokio::test]
async fn a_lease_that_runs_keeps_its_node() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply(vec![add(1), add(2)], start_of_time()).await.unwrap();
    let now = start_of_time();
    let state = |until| Arc::new(NodeState { lease_until: until, ..NodeState::default() });
    let remove = |id| vec![entry(Change::RemoveNode { id: NodeId(id), lease: Some(now) })];
    let runs = StoreError::Conflict { what: "the lease of an ephemeral node" };
    store.save_states(vec![(NodeId(1), state(now.checked_add(std::time::Duration::from_secs(1)).ok()))]).await.unwrap();
    assert_eq!(store.apply(remove(1), now).await, Err(runs.clone()));
    // Without a lease the node is connected.
    store.save_states(vec![(NodeId(1), state(None))]).await.unwrap();
    assert_eq!(store.apply(remove(1), now).await, Err(runs.clone()));
    assert_eq!(store.apply(remove(2), now).await, Err(runs));
    store.save_states(vec![(NodeId(1), state(Some(now)))]).await.unwrap();
    assert_eq!(store.apply(remove(1), now).await, Ok(()));
}

#[tokio::test]
async fn numbers_are_never_given_again() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    assert_eq!(store.next_node(), NodeId(1));
    store.apply(vec![add(1), add(2)], start_of_time()).await.unwrap();
    store.apply(vec![entry(Change::RemoveNode { id: NodeId(2), lease: None })], start_of_time()).await.unwrap();
    drop(store);
    let (store, _, _) = open(&folder).unwrap();
    assert_eq!(store.next_node(), NodeId(3));
}

#[tokio::test]
async fn what_was_stored_comes_back() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply(vec![add(1), entry(auth_key("key", true))], start_of_time()).await.unwrap();
    store.apply(vec![entry(Change::UseAuthKey("key".to_owned()))], start_of_time()).await.unwrap();
    let policy = Change::PutPolicy { version: 1, text: "{\"acls\": []}".into(), reason: String::new() };
    store.apply(vec![entry(policy)], start_of_time()).await.unwrap();
    let state = NodeState {
        disco: Some(crate::testing::disco_key(1)),
        endpoints: vec!["192.0.2.1:41641".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()],
        home: Some(warren_wire::control::RegionId(900)),
        hostinfo: Some(crate::testing::host("ann")),
        cap: 130,
        last_seen: Some(start_of_time()),
        lease_until: Some(start_of_time()),
    };
    // The other node is gone, which is no reason to lose the state of this one.
    let states = vec![(NodeId(9), Arc::new(state.clone())), (NodeId(1), Arc::new(state.clone()))];
    store.save_states(states).await.unwrap();
    drop(store);
    let (_, _, loaded) = open(&folder).unwrap();
    assert_eq!(loaded.quarantined, []);
    let [one] = &loaded.tailnets[..] else { panic!("{loaded:?}") };
    assert_eq!(one.record, tailnet());
    assert_eq!(one.next_address, 2);
    assert_eq!(*one.users[&UserId(1)], user(1, "ann@example.com"));
    assert_eq!(one.nodes, [(node(1), Arc::new(state))]);
    assert_eq!((one.auth_keys["key"].0.used, one.auth_keys["key"].1), (1, [7; 32]));
    assert_eq!(&**one.policy.text(), "{\"acls\": []}");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_put_aside_and_the_rest_is_served() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let entries = vec![
        entry(Change::PutUser(user(2, "bob@example.com"))),
        add(1),
        add(2),
        add(3),
        entry(auth_key("one", false)),
        entry(auth_key("two", false)),
        entry(Change::PutPolicy { version: 1, text: "{}".into(), reason: "because".to_owned() }),
    ];
    store.apply(entries, start_of_time()).await.unwrap();
    store.save_states(vec![(NodeId(3), Arc::new(NodeState::default()))]).await.unwrap();
    drop(store);
    raw(&folder)
        .execute_batch(
            r#"UPDATE user SET body = '{}' WHERE id = 2;
               UPDATE node SET body = '{"name": null}' WHERE id = 2;
               UPDATE node_state SET body = '[]' WHERE node = 3;
               UPDATE auth_key SET body = '0' WHERE id = 'two';
               UPDATE policy SET text = 'allow all' WHERE version = 1;
               INSERT INTO tailnet (id, name, body) VALUES (9, 'nine', '{}');"#,
        )
        .unwrap();
    let (store, _, loaded) = open(&folder).unwrap();
    let aside: Vec<_> = loaded.quarantined.iter().map(|one| (one.table, one.id.as_str())).collect();
    let expected =
        [("policy", "1:1"), ("tailnet", "9"), ("user", "2"), ("node", "2"), ("node_state", "3"), ("auth_key", "two")];
    assert_eq!(aside, expected);
    let [one] = &loaded.tailnets[..] else { panic!("{loaded:?}") };
    assert_eq!(one.users.len(), 1);
    assert_eq!(one.nodes.iter().map(|(node, _)| node.id.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(one.auth_keys.keys().collect::<Vec<_>>(), ["one"]);
    assert_eq!(&**one.policy.text(), "allow all", "its author can mend it");
    let owner = DirectoryUser { role: Role::Owner, ..DirectoryUser::default() };
    assert!(!one.policy.may_tag(&owner, "tag:a"));
    assert_eq!(one.reserved, [("node2".to_owned(), Some([100, 64, 0, 2].into()))]);
    // The rows are left for a newer program, or a person.
    assert_eq!(count(&store, "node").await, 3);
}

#[tokio::test]
async fn a_server_keeps_its_identity_or_does_not_start() {
    let folder = Folder::new();
    let first = {
        let store = filled(&folder).await;
        drop(store);
        open(&folder).unwrap().1.noise.public()
    };
    assert_eq!(open(&folder).unwrap().1.noise.public(), first);
    let state = folder.join("state");
    let keep = folder.join("keep");
    let database = state.join("warren.db");

    fs::rename(&database, &keep).unwrap();
    let missing = OpenError::DatabaseMissing { path: database.clone() };
    assert_eq!(open(&folder).err(), Some(missing));
    fs::write(&database, "").unwrap();
    let missing = OpenError::DatabaseMissing { path: database.clone() };
    assert_eq!(open(&folder).err(), Some(missing), "an empty file is no database");
    fs::rename(&keep, &database).unwrap();

    fs::write(state.join("identity"), MachineKey::from_bytes([9; 32]).to_string()).unwrap();
    assert_eq!(open(&folder).err(), Some(OpenError::OtherIdentity));
    fs::write(state.join("identity"), "what?").unwrap();
    assert_eq!(open(&folder).err(), Some(OpenError::Marker));
    fs::remove_file(state.join("identity")).unwrap();
    assert_eq!(open(&folder).unwrap().1.noise.public(), first, "the marker is made anew from the database");
    assert_eq!(fs::read_to_string(state.join("identity")).unwrap().trim(), first.to_string());

    raw(&folder).execute("DELETE FROM secret WHERE name = 'noise_key'", []).unwrap();
    assert_eq!(open(&folder).err(), Some(OpenError::IdentityMissing));
}

#[test]
fn other_databases_are_left_alone() {
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    raw(&folder).pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(open(&folder).err(), Some(OpenError::Version { found: 99, known: 9 }));
    raw(&folder).pragma_update(None, "application_id", 1).unwrap();
    assert_eq!(open(&folder).err(), Some(OpenError::Foreign));
    fs::write(folder.join("state/warren.db"), "no database at all, but long enough to be looked at as one").unwrap();
    assert!(matches!(open(&folder).err(), Some(OpenError::Store(StoreError::Database { .. }))));
}

#[test]
fn one_server_at_a_time() {
    let folder = Folder::new();
    let held = StateDir::open(&folder.join("state")).unwrap();
    assert!(matches!(open(&folder), Err(OpenError::InUse { .. })));
    assert!(matches!(backup::backup(&folder.join("state"), &folder.join("b")), Err(OpenError::InUse { .. })));
    drop(held);
    assert!(open(&folder).is_ok());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nobody_else_can_read_the_state() {
    let folder = Folder::new();
    let state = folder.join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
    let store = filled(&folder).await;
    store.backup(&folder.join("backup")).await.unwrap();
    assert_eq!((mode(&state), mode(&folder.join("backup"))), (0o700, 0o600));
    let check = || {
        let mut names = Vec::new();
        for file in fs::read_dir(&state).unwrap() {
            let path = file.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            names.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
        names.sort();
        names
    };
    assert_eq!(check(), ["identity", "lock", "warren.db", "warren.db-shm", "warren.db-wal"]);
    // What somebody opened up is closed again.
    for file in fs::read_dir(&state).unwrap() {
        fs::set_permissions(file.unwrap().path(), Permissions::from_mode(0o644)).unwrap();
    }
    fs::remove_file(state.join("identity")).unwrap();
    drop(store);
    let _again = open(&folder).unwrap();
    check();
}

#[tokio::test]
async fn a_backup_is_the_whole_server_in_one_file() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply(vec![add(1)], start_of_time()).await.unwrap();
    let secret = store.secret_or_insert("relay_certificate".into(), || b"certificate".to_vec()).await.unwrap();
    let file = folder.join("backup");
    store.backup(&file).await.unwrap();
    assert!(matches!(store.backup(&file).await, Err(StoreError::File { .. })), "nothing is overwritten");
    // What happens later is not in it.
    store.apply(vec![add(2)], start_of_time()).await.unwrap();
    drop(store);
    let key = open(&folder).unwrap().1.noise.public();

    let elsewhere = Folder::new();
    backup::restore(&file, &elsewhere.join("state"), Existing::Refuse).unwrap();
    assert_eq!(mode(&elsewhere.join("state")), 0o700);
    let (store, identity, loaded) = open(&elsewhere).unwrap();
    assert_eq!(identity.noise.public(), key);
    assert_eq!(loaded.tailnets[0].nodes.len(), 1);
    assert!(matches!(verdict(&store).await, AuditVerdict::Intact { entries: 3, .. }));
    assert_eq!(store.secret_or_insert("relay_certificate".into(), || unreachable!()).await.unwrap(), secret);
    drop(store);

    // The other way: a backup of a server that does not run, and over a state that is there.
    let second = folder.join("second");
    backup::backup(&folder.join("state"), &second).unwrap();
    let state = elsewhere.join("state");
    let occupied = RestoreError::Occupied { path: state.clone() };
    assert_eq!(backup::restore(&second, &state, Existing::Refuse), Err(occupied));
    assert_eq!(open(&elsewhere).unwrap().2.tailnets[0].nodes.len(), 1);
    backup::restore(&second, &state, Existing::MoveAside).unwrap();
    assert_eq!(open(&elsewhere).unwrap().2.tailnets[0].nodes.len(), 2);
    assert!(state.join("replaced-1/warren.db").exists());
}

#[tokio::test]
async fn a_damaged_backup_changes_nothing() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    store.apply((1..=200).map(add).collect(), start_of_time()).await.unwrap();
    let file = folder.join("backup");
    store.backup(&file).await.unwrap();
    drop(store);
    let good = fs::read(&file).unwrap();
    let state = folder.join("state");
    let mut half = good[..good.len() / 2].to_vec();
    half.truncate(half.len() - half.len() % 4096);
    let mut holed = good.clone();
    holed[3 * 4096..12 * 4096].fill(0xa5);
    for (what, bytes) in [("no database", b"x".to_vec()), ("half", half), ("holed", holed), ("empty", Vec::new())] {
        fs::write(&file, bytes).unwrap();
        let restored = backup::restore(&file, &state, Existing::MoveAside);
        assert!(restored.is_err(), "{what}");
        assert!(!state.join("replaced-1").exists(), "{what}");
    }
    assert!(matches!(
        backup::restore(&folder.join("nowhere"), &state, Existing::MoveAside),
        Err(RestoreError::NotABackup { .. })
    ));
    assert_eq!(open(&folder).unwrap().2.tailnets[0].nodes.len(), 200);
}

#[tokio::test]
async fn a_migration_is_whole_or_not_at_all_and_keeps_a_copy() {
    let folder = Folder::new();
    drop(filled(&folder).await);
    let dir = StateDir::open(&folder.join("state")).unwrap();
    let mut connection = raw(&folder);
    let bad: &[(i64, &str)] = &[(10, "ALTER TABLE user ADD COLUMN a TEXT;"), (11, "ALTER TABLE nothing ADD COLUMN b;")];
    assert!(schema::migrate_by(&mut connection, &dir, bad).is_err());
    let version = |connection: &Connection| -> i64 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    assert_eq!(version(&connection), 9);
    assert!(connection.prepare("SELECT a FROM user").is_err());
    schema::migrate_by(&mut connection, &dir, &bad[..1]).unwrap();
    assert_eq!(version(&connection), 10);
    assert!(connection.prepare("SELECT a FROM user").is_ok());
    let copy = Connection::open(folder.join("state/before-migration-from-9.db")).unwrap();
    assert_eq!(version(&copy), 9);
}

#[tokio::test]
async fn a_database_of_the_first_schema_is_brought_forward() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let policy = Change::PutPolicy { version: 1, text: "{\"acls\": []}".into(), reason: String::new() };
    store.apply(vec![Entry { what: "policy.set", ..entry(policy) }], start_of_time()).await.unwrap();
    drop(store);
    let before = raw(&folder);
    before
        .execute_batch(
            "ALTER TABLE policy DROP COLUMN at; ALTER TABLE policy DROP COLUMN author;
             ALTER TABLE policy DROP COLUMN reason; UPDATE user SET body = json_remove(body, '$.role');
             DROP TABLE relay; DROP INDEX user_identity; DROP TABLE credential;
             DROP TABLE machine; DROP TABLE machine_ca;
             DROP TABLE recovery_code; DROP TABLE account; DROP TABLE invitation; DROP INDEX audit_by_number; DROP INDEX audit_by_time;
             ALTER TABLE audit DROP COLUMN credential; ALTER TABLE audit DROP COLUMN client; PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(before);
    let (store, _, loaded) = open(&folder).unwrap();
    let roles: Vec<_> = loaded.tailnets[0].users.values().map(|user| user.role).collect();
    assert_eq!(roles[0], Role::Owner, "the first user owns the tailnet");
    assert!(roles[1..].iter().all(|role| *role == Role::Member));
    let stored = store.read(|connection| policies::version(connection, TAILNET, 1)).await.unwrap().unwrap();
    assert_eq!((stored.at, stored.author.as_str()), (start_of_time().to_string(), "server"), "the audit log knows");
    let columns = |store: Store| async move {
        let read = |connection: &Connection| {
            let mut statement = connection.prepare("SELECT name FROM pragma_table_info('policy')")?;
            let names = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(names.collect::<Result<Vec<_>, _>>()?)
        };
        store.read(read).await.unwrap()
    };
    let fresh = Folder::new();
    assert!(loaded.relays.is_empty() && loaded.tailnets[0].credentials.is_empty());
    assert!(matches!(verdict(&store).await, AuditVerdict::Intact { .. }), "what was logged before still holds");
    assert_eq!(columns(store).await, columns(open(&fresh).unwrap().0).await, "as a new one is made");
}

#[tokio::test]
async fn a_person_is_one_user_of_a_tailnet() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let person = |id, login: &str, issuer: &str, subject: &str| {
        let identity = Some(UserIdentity { issuer: issuer.to_owned(), subject: subject.to_owned() });
        entry(Change::PutUser(UserRecord { identity, ..user(id, login) }))
    };
    let put = async |entry| store.apply(vec![entry], start_of_time()).await;
    put(person(31, "a@x", "https://one.test", "7")).await.unwrap();
    assert!(put(person(32, "b@x", "https://one.test", "7")).await.is_err(), "the same person again");
    put(person(33, "c@x", "https://two.test", "7")).await.unwrap();
    put(entry(Change::PutUser(user(34, "d@x")))).await.unwrap();
    put(entry(Change::PutUser(user(35, "e@x")))).await.unwrap();
}

#[tokio::test]
async fn a_refused_change_does_not_hurt_those_that_share_its_commit() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let mut jobs: Vec<_> = (1..=50_u8)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.apply(vec![add(number)], start_of_time()).await })
        })
        .collect();
    let store_too = store.clone();
    let gone = vec![entry(Change::RemoveUser(UserId(77)))];
    jobs.insert(25, tokio::spawn(async move { store_too.apply(gone, start_of_time()).await }));
    let mut refused = 0;
    for job in jobs {
        refused += usize::from(job.await.unwrap().is_err());
    }
    assert_eq!((refused, count(&store, "node").await), (1, 50));
    assert!(matches!(verdict(&store).await, AuditVerdict::Intact { entries: 52, .. }));
}

#[tokio::test]
async fn the_log_of_one_tailnet_is_found_without_looking_at_that_of_others() {
    let folder = Folder::new();
    drop(filled(&folder).await);
    let connection = raw(&folder);
    for (sql, index) in [(audit::NEWEST_OF, "audit_by_number"), (audit::BETWEEN, "audit_by_time")] {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let none: Vec<Option<i64>> = vec![None; statement.parameter_count()];
        let steps = statement.query_map(rusqlite::params_from_iter(none), |row| row.get::<_, String>(3)).unwrap();
        let steps: Vec<_> = steps.map(Result::unwrap).collect();
        assert!(steps.len() == 1 && steps[0].contains("SEARCH") && steps[0].contains(index), "{steps:?}");
    }
}

fn refusals(texts: impl IntoIterator<Item = String>) -> Vec<Entry> {
    texts.into_iter().map(|subject| entry(Change::Refused { subject })).collect()
}

#[tokio::test]
async fn long_entries_are_read_a_few_at_a_time_and_none_is_left_out() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let second =
        |number: i64| start_of_time().checked_add(std::time::Duration::from_secs(number.unsigned_abs())).unwrap();
    for number in 1..=10 {
        store.apply(refusals(["x".repeat(1 << 20)]), second(number)).await.unwrap();
    }
    let newest = store.look(|connection| audit::list(connection, Some(TAILNET), None, 100)).await.unwrap();
    assert_eq!(newest.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [12, 11, 10, 9]);
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let span = (second(2), second(9));
        let some = store.look(move |connection| audit::between(connection, TAILNET, span, (after, 100))).await.unwrap();
        let Some(last) = some.last() else { break };
        assert!(some.len() <= 4);
        after = Some(last.seq);
        seen.extend(some.iter().map(|entry| entry.seq));
    }
    assert_eq!(seen, (4..=11).collect::<Vec<_>>(), "from the first to the last second");
}

#[tokio::test]
async fn commits_do_not_wait_for_somebody_who_reads_a_long_log() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let (go, wait) = std::sync::mpsc::sync_channel(1);
    let reading = store.clone();
    let look = tokio::spawn(async move {
        reading
            .look(move |connection| {
                let before = audit::list(connection, None, None, 100)?.len();
                wait.recv().map_err(|_| StoreError::Closed)?;
                Ok(before)
            })
            .await
    });
    store.apply(refusals(["meanwhile".to_owned()]), start_of_time()).await.unwrap();
    assert!(!look.is_finished());
    go.send(()).unwrap();
    let before = look.await.unwrap().unwrap();
    let after = store.look(|connection| audit::list(connection, None, None, 100)).await.unwrap();
    assert!(before <= after.len() && after[0].subject == "meanwhile", "who reads then sees what was committed");
}

fn policy(version: u64, text: &str) -> Entry {
    Entry { what: "policy.set", ..entry(Change::PutPolicy { version, text: text.into(), reason: String::new() }) }
}

#[tokio::test]
async fn versions_of_long_ago_are_pruned_but_not_one_that_may_come_back() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let open = crate::model::Unconfirmed { until: start_of_time(), back_to: 2 };
    store
        .apply(vec![entry(Change::PutTailnet(TailnetRecord { unconfirmed: Some(open), ..tailnet() }))], start_of_time())
        .await
        .unwrap();
    let policies = (1..=1004).map(|version| policy(version, &format!("{{\"acls\": []}} // {version}"))).collect();
    store.apply(policies, start_of_time()).await.unwrap();
    assert_eq!(count(&store, "policy").await, 1001);
    let kept = |version| store.look(move |connection| policies::version(connection, TAILNET, version));
    assert!(kept(1).await.unwrap().is_none() && kept(2).await.unwrap().is_some() && kept(4).await.unwrap().is_none());
    assert!(kept(5).await.unwrap().is_some());
    let log = store.look(|connection| audit::list(connection, Some(TAILNET), None, 2)).await.unwrap();
    assert_eq!((log[0].what.as_str(), log[0].subject.as_str()), ("policy.prune", "policy:1:4-4"));
    let after: serde_json::Value = serde_json::from_str(log[1].after.as_ref().unwrap()).unwrap();
    assert_eq!((&after["version"], after["sha256"].as_str().unwrap().len()), (&1004.into(), 64));
    assert!(log[1].len() < 400 && !log[1].after.as_ref().unwrap().contains("acls"), "the text is not in the log");
    assert!(matches!(verdict(&store).await, AuditVerdict::Intact { .. }));
}

/// Whoever may edit a policy cannot make what was in force before them go away by editing, a lot or with much text.
#[tokio::test]
async fn the_last_version_of_each_of_the_last_days_stays_whatever_comes_after_it() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let day = |number: i64| start_of_time() + jiff::SignedDuration::from_hours(24 * number);
    // Two versions a day for 40 days, then a flood.
    for number in 0..40_u64 {
        let both = (1..=2).map(|one| policy(2 * number + one, &format!("{number} {one}"))).collect();
        store.apply(both, day(i64::try_from(number).unwrap())).await.unwrap();
    }
    store.apply((81..=1200).map(|version| policy(version, "flood")).collect(), day(40)).await.unwrap();
    let large = "x".repeat(30 << 20);
    store.apply((1201..=1203).map(|version| policy(version, &large)).collect(), day(40)).await.unwrap();
    let kept: Vec<_> = store
        .look(|connection| policies::newest(connection, TAILNET, 2000))
        .await
        .unwrap()
        .into_iter()
        .map(|kept| kept.version)
        .collect();
    let days: Vec<u64> = (11..40).rev().map(|number| 2 * number + 2).collect();
    assert_eq!(kept, [vec![1203, 1202], days].concat(), "the last of 29 days and of this one");
}

#[tokio::test]
async fn few_versions_that_are_large_are_pruned_likewise() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let large = "x".repeat(30 << 20);
    store.apply((1..=3).map(|version| policy(version, &large)).collect(), start_of_time()).await.unwrap();
    let left = |connection: &Connection| Ok(policies::newest(connection, TAILNET, 10)?.len());
    assert_eq!(store.look(left).await.unwrap(), 2, "64 MiB are kept");
}
