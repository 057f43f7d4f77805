//! The whole server without sockets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::{OnceCell, broadcast};
use warren_policy::{DEFAULT_POLICY, Role};
use warren_wire::control::{
    DerpMap, DerpRegion, LogKeyRequest, LogKeyResponse, MapRequest, RegionId, RegisterRequest, RegisterResponse,
};
use warren_wire::flows::{Answer, Submission};
use warren_wire::key::{ChallengeKey, MachineKey, MachineSecret, NodeKey, NodeSecret};

use crate::account::Hashing;
use crate::admin::Admin;
use crate::clock::Clock;
use crate::collector::{self, Collector, FlowsRefusal, Known};
use crate::config::Config;
use crate::identity::{Identity, StateDir};
use crate::login::Logins;
use crate::map::{self, MapError, MapStream};
use crate::model::{DnsSettings, KeyLifetime, TailnetId, TailnetRecord, UserRecord, Who};
use crate::oidc::Person;
use crate::store::{Change, Entry, Loaded, LoadedTailnet, OpenError, Quarantined, Store, StoreError};
use crate::tailnet::access::{PolicyInForce, has_relay};
use crate::tailnet::registry::{Registered, Registry};
use crate::tailnet::{Shared, Tailnet};
use crate::thinking::Thinking;
use crate::tokens::Tokens;

/// Name of the secret that signs receipts for flow logs.
const LEDGER_KEY: &str = "ledger_key";

/// Path below the server's URL where logins are shown.
const LOGIN_PATH: &str = "/login/";

/// The coordination server; cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tailnets: RwLock<BTreeMap<TailnetId, Tailnet>>,
    logins: Logins,
    tokens: Tokens,
    thinking: Thinking,
    hashing: Hashing,
    collector: OnceCell<Collector>,
    /// Folder of the collected flow logs.
    ledger_dir: PathBuf,
    identity: Identity,
    server_url: String,
    quarantined: Vec<Quarantined>,
    derp: Mutex<Relays>,
    /// Held while a tailnet is made or the relays change, so that no tailnet misses the newest relays.
    changing: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
}

impl Control {
    /// Opens the state folder and starts a task for each tailnet on the present runtime; on the first start makes the
    /// server's keys and the tailnet `default` with the user `owner@default`.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the folder or the database; nothing is replaced then.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let path = config.state_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let dir = StateDir::open(&path)?;
            let opened = Store::open(&dir)?;
            Ok::<_, OpenError>((dir, opened))
        });
        let (dir, opened) = opened.await.map_err(|_| StoreError::Closed)??;
        Self::start(config, Clock::system(), dir, opened).await
    }

    /// Opens the state folder like [`Self::open`], with a store that works on the caller's thread and a clock that
    /// follows tokio's, so that a test can stop time.
    #[cfg(test)]
    pub(crate) async fn open_in_paused_time(config: Config, now: jiff::Timestamp) -> Result<Self, OpenError> {
        let dir = StateDir::open(&config.state_dir)?;
        let opened = Store::open_inline(&dir)?;
        Self::start(config, Clock::following_tokio(now), dir, opened).await
    }

    async fn start(
        config: Config,
        clock: Clock,
        dir: StateDir,
        (store, identity, loaded): (Store, Identity, Loaded),
    ) -> Result<Self, OpenError> {
        check_relays(&config.derp_map)?;
        let Loaded { tailnets, relays, quarantined } = loaded;
        let first_start = tailnets.is_empty() && !quarantined.iter().any(|one| one.table == "tailnet");
        let shared =
            Arc::new(Shared { store, clock, registry: Registry::new(), base_domain: config.base_domain, _dir: dir });
        let control = Self {
            inner: Arc::new(Inner {
                tailnets: RwLock::default(),
                logins: Logins::default(),
                tokens: Tokens::default(),
                thinking: Thinking::default(),
                hashing: Hashing::default(),
                collector: OnceCell::new(),
                ledger_dir: config.state_dir.join("ledger"),
                identity,
                server_url: config.server_url,
                quarantined,
                derp: Mutex::new(Relays::new(config.derp_map, relays)),
                changing: tokio::sync::Mutex::new(()),
                shared,
            }),
        };
        for loaded in tailnets {
            control.start_tailnet(loaded);
        }
        if first_start {
            control.make_tailnet("default", &Who::server()).await?;
        }
        Ok(control)
    }

    /// Makes a tailnet with the default policy and one user, `owner@<name>`.
    pub(crate) async fn make_tailnet(&self, name: &str, who: &Who) -> Result<Tailnet, StoreError> {
        self.make_tailnet_for(name, who, None).await
    }

    /// Makes a tailnet with the default policy, which `owner` owns or else the user `owner@<name>`. There is one tailnet
    /// for an owner: if they have one meanwhile, that is returned.
    pub(crate) async fn make_tailnet_for(
        &self,
        name: &str,
        who: &Who,
        owner: Option<&Person>,
    ) -> Result<Tailnet, StoreError> {
        let _changing = self.inner.changing.lock().await;
        if let Some(owner) = owner {
            let is_owner = |user: &UserRecord| user.identity.as_ref() == Some(&owner.identity);
            let theirs = |tailnet: &Tailnet| tailnet.snapshot().users.values().any(|user| is_owner(user));
            if let Some(tailnet) = self.tailnets().into_iter().find(theirs) {
                return Ok(tailnet);
            }
        }
        let (store, now) = (&self.inner.shared.store, self.clock().now());
        let policy = PolicyInForce::parse(DEFAULT_POLICY).unwrap_or_else(|errors| {
            tracing::error!(%errors, "the default policy is broken");
            PolicyInForce::nothing_allowed(DEFAULT_POLICY)
        });
        let record = TailnetRecord {
            id: store.next_tailnet(),
            name: name.to_owned(),
            created: now,
            machine_approval: false,
            only_enrolled: false,
            flow_log: false,
            key_lifetime: KeyLifetime::default(),
            dns: DnsSettings::default(),
            policy_version: 1,
            unconfirmed: None,
        };
        let login = owner.map_or_else(|| format!("owner@{name}"), |owner| owner.login.clone());
        let user = UserRecord {
            id: store.next_user(),
            tailnet: record.id,
            display_name: owner.map_or_else(|| login.clone(), |owner| owner.display_name.clone()),
            login,
            role: Role::Owner,
            identity: owner.map(|owner| owner.identity.clone()),
            suspended: false,
            created: now,
        };
        let entry = |what, change| Entry { who: who.clone(), what, tailnet: Some(record.id), change };
        let entries = vec![
            entry("tailnet.create", Change::PutTailnet(record.clone())),
            entry("user.create", Change::PutUser(user.clone())),
            entry(
                "policy.set",
                Change::PutPolicy { version: 1, text: Arc::clone(policy.text()), reason: String::new() },
            ),
        ];
        store.apply(entries, now).await?;
        Ok(self.start_tailnet(LoadedTailnet {
            record,
            next_address: 0,
            policy: Arc::new(policy),
            users: BTreeMap::from([(user.id, Arc::new(user))]),
            nodes: Vec::new(),
            auth_keys: BTreeMap::new(),
            credentials: BTreeMap::new(),
            machines: BTreeMap::new(),
            machine_cas: BTreeMap::new(),
            reserved: Vec::new(),
        }))
    }

    fn start_tailnet(&self, loaded: LoadedTailnet) -> Tailnet {
        for id in loaded.auth_keys.keys() {
            self.registry().add_auth_key(id.clone(), loaded.record.id);
        }
        for id in loaded.credentials.keys() {
            self.registry().add_credential(id.clone(), loaded.record.id);
        }
        let derp = self.inner.derp.lock().unwrap_or_else(PoisonError::into_inner).map();
        let tailnet = Tailnet::start(&self.inner.shared, loaded, derp);
        let mut tailnets = self.inner.tailnets.write().unwrap_or_else(PoisonError::into_inner);
        tailnets.insert(tailnet.id, tailnet.clone());
        tailnet
    }

    /// Returns the key by which clients know the server.
    #[must_use]
    pub fn noise_key(&self) -> MachineKey {
        self.inner.identity.noise.public()
    }

    /// Returns its private half.
    #[must_use]
    pub fn noise_secret(&self) -> &MachineSecret {
        &self.inner.identity.noise
    }

    /// Returns the private key of the embedded relay.
    #[must_use]
    pub fn relay_secret(&self) -> &NodeSecret {
        &self.inner.identity.relay
    }

    /// Returns a secret that belongs to the server, such as the relay's certificate with its key, making it the first
    /// time; it is part of backups.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn stored_secret(
        &self,
        name: String,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Vec<u8>, StoreError> {
        self.store().secret_or_insert(name, make).await
    }

    /// Tells clients of another relay within the server from now on; a map without any relay is refused. Relays on
    /// other machines stay.
    ///
    /// # Errors
    /// [`OpenError::NoRelay`].
    pub async fn set_derp_map(&self, map: DerpMap) -> Result<(), OpenError> {
        check_relays(&map)?;
        let _changing = self.inner.changing.lock().await;
        self.change_relays(|relays| relays.own = map).await?;
        Ok(())
    }

    /// Changes relays and tells all tailnets. The caller holds `changing`.
    async fn change_relays(&self, change: impl FnOnce(&mut Relays)) -> Result<(), StoreError> {
        let map = {
            let mut relays = self.inner.derp.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut relays);
            relays.map()
        };
        for tailnet in self.tailnets() {
            tailnet.set_derp(Arc::clone(&map)).await?;
        }
        Ok(())
    }

    /// Returns the relays on other machines, by region.
    #[must_use]
    pub(crate) fn relays(&self) -> BTreeMap<RegionId, DerpRegion> {
        self.inner.derp.lock().unwrap_or_else(PoisonError::into_inner).others.clone()
    }

    /// Makes a region of relays on other machines known to all clients, or replaces it; `what` is for the audit log.
    /// `make` gets the regions that are in use, the server's own first, then the others; nothing happens if it fails.
    pub(crate) async fn put_relays<E: From<StoreError>>(
        &self,
        who: &Who,
        what: &'static str,
        make: impl FnOnce(&DerpMap, &BTreeMap<RegionId, DerpRegion>) -> Result<DerpRegion, E>,
    ) -> Result<DerpRegion, E> {
        let _changing = self.inner.changing.lock().await;
        let region = {
            let relays = self.inner.derp.lock().unwrap_or_else(PoisonError::into_inner);
            make(&relays.own, &relays.others)?
        };
        let entry = Entry { who: who.clone(), what, tailnet: None, change: Change::PutRelays(region.clone()) };
        self.inner.shared.store.apply(vec![entry], self.clock().now()).await?;
        self.change_relays(|relays| _ = relays.others.insert(region.region_id, region.clone())).await?;
        Ok(region)
    }

    /// Forgets a region of relays on other machines; fails with a conflict if there is none of that region.
    pub(crate) async fn remove_relay(&self, who: &Who, region: RegionId) -> Result<(), StoreError> {
        let _changing = self.inner.changing.lock().await;
        let change = Change::RemoveRelay(region);
        let entry = Entry { who: who.clone(), what: "relay.remove", tailnet: None, change };
        self.inner.shared.store.apply(vec![entry], self.clock().now()).await?;
        self.change_relays(|relays| _ = relays.others.remove(&region)).await
    }

    /// Answers a register request; waits as long as a login does if the request follows one up. May be dropped. A proof of a
    /// machine in it is refused, see [`Self::register_on`].
    pub async fn register(&self, machine: MachineKey, request: RegisterRequest, from: IpAddr) -> RegisterResponse {
        self.register_on(machine, request, from, None).await
    }

    /// Answers a register request as [`Self::register`] does; `challenge` is what the connection began with, which a proof
    /// that the machine holds a certificate must sign.
    pub async fn register_on(
        &self,
        machine: MachineKey,
        request: RegisterRequest,
        from: IpAddr,
        challenge: Option<ChallengeKey>,
    ) -> RegisterResponse {
        Box::pin(crate::register::register(self, machine, request, from, challenge)).await
    }

    /// Begins a map poll, which ends an earlier one of the same node.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn map_stream(&self, machine: MachineKey, request: MapRequest) -> Result<MapStream, MapError> {
        map::stream(self, machine, request).await
    }

    /// Answers a request for one full map, framed and compressed as asked.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map_once(&self, machine: MachineKey, request: &MapRequest) -> Result<Bytes, MapError> {
        map::fetch(self, machine, request)
    }

    /// Takes what a node reports about itself.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn update(&self, machine: MachineKey, request: MapRequest) -> Result<(), MapError> {
        map::update(self, machine, request).await
    }

    /// Tells whether a node key is registered to a machine, whatever the node may do.
    #[must_use]
    pub fn is_registered(&self, machine: &MachineKey, node: &NodeKey) -> bool {
        self.registry().node(node).is_some_and(|known| known.machine == *machine)
    }

    /// Tells whether the relay may serve that node key: registered, approved, and not past its time.
    #[must_use]
    pub fn relay_admits(&self, node: &NodeKey) -> bool {
        self.registry().admits(node)
    }

    /// Returns the node keys that the relay must stop serving, as it happens; a receiver that lags must ask
    /// [`Self::relay_admits`] for every connection.
    #[must_use]
    pub fn relay_departures(&self) -> broadcast::Receiver<NodeKey> {
        self.registry().departures()
    }

    /// Returns administration in somebody's name.
    #[must_use]
    pub fn admin(&self, who: Who) -> Admin {
        Admin::new(self.clone(), who)
    }

    /// Waits until everything that nodes reported is stored.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn flush(&self) -> Result<(), StoreError> {
        for tailnet in self.tailnets() {
            tailnet.flush().await?;
        }
        Ok(())
    }

    /// Takes the key with which a node signs its flow log, and answers with that of the collector.
    ///
    /// # Errors
    /// [`FlowsRefusal`].
    pub async fn register_log_key(
        &self,
        machine: MachineKey,
        request: &LogKeyRequest,
    ) -> Result<LogKeyResponse, FlowsRefusal> {
        collector::register(self, machine, request).await
    }

    /// Stores a piece of a node's flow log; answers when it is there for good.
    ///
    /// # Errors
    /// [`FlowsRefusal`].
    pub async fn take_flows(&self, machine: MachineKey, submission: &Submission<'_>) -> Result<Answer, FlowsRefusal> {
        collector::take(self, machine, submission).await
    }

    /// Returns the collector of flow logs, which starts when it is first needed.
    pub(crate) async fn collector(&self) -> Result<&Collector, StoreError> {
        let start = async {
            let mut fresh = zeroize::Zeroizing::new([0; 32]);
            getrandom::fill(fresh.as_mut_slice()).map_err(|_| StoreError::Closed)?;
            let seed = self.stored_secret(LEDGER_KEY.to_owned(), move || fresh.to_vec()).await?;
            let seed = zeroize::Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| StoreError::Closed)?);
            // The collector belongs to the server, not the other way.
            let server = Arc::downgrade(&self.inner);
            let known = Known(Arc::new(move |key| {
                let control = Self { inner: server.upgrade()? };
                let (tailnet, known) = control.registered(key)?;
                let writes = tailnet.snapshot().nodes.get(known.node).is_some_and(|node| node.record.log_key.is_some());
                Some((known.node, writes))
            }));
            Ok(Collector::new(self.inner.ledger_dir.clone(), *seed, self.noise_key(), (self.clock(), known)))
        };
        self.inner.collector.get_or_try_init(|| start).await
    }

    pub(crate) fn clock(&self) -> Clock {
        self.inner.shared.clock
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.shared.store
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.shared.registry
    }

    pub(crate) fn logins(&self) -> &Logins {
        &self.inner.logins
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.inner.tokens
    }

    pub(crate) fn thinking(&self) -> &Thinking {
        &self.inner.thinking
    }

    pub(crate) fn quarantined(&self) -> &[Quarantined] {
        &self.inner.quarantined
    }

    /// Returns all tailnets, the oldest first.
    pub(crate) fn tailnets(&self) -> Vec<Tailnet> {
        self.inner.tailnets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn tailnet_by_id(&self, id: TailnetId) -> Option<Tailnet> {
        self.inner.tailnets.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Finds the tailnet and the node of a node key.
    pub(crate) fn registered(&self, key: &NodeKey) -> Option<(Tailnet, Registered)> {
        let known = self.registry().node(key)?;
        Some((self.tailnet_by_id(known.tailnet)?, known))
    }

    /// Returns the URL of a page.
    pub(crate) fn page_url(&self, path: &str) -> String {
        format!("{}{path}", self.inner.server_url)
    }

    /// Returns what limits the work on passwords.
    pub(crate) fn hashing(&self) -> &Hashing {
        &self.inner.hashing
    }

    /// Returns the URL at which a login is shown.
    pub(crate) fn login_url(&self, id: &str) -> String {
        format!("{}{LOGIN_PATH}{id}", self.inner.server_url)
    }

    /// Returns the login that a URL of [`Self::login_url`] shows.
    pub(crate) fn login_id<'a>(&self, url: &'a str) -> Option<&'a str> {
        url.strip_prefix(self.inner.server_url.as_str())?.strip_prefix(LOGIN_PATH)
    }
}

/// Clients that lose their last relay are lost themselves.
/// The relays that clients are told of, unless a policy says otherwise.
#[derive(Debug)]
struct Relays {
    /// The relay within the server.
    own: DerpMap,
    /// Relays on other machines.
    others: BTreeMap<RegionId, DerpRegion>,
}

impl Relays {
    fn new(own: DerpMap, others: BTreeMap<RegionId, DerpRegion>) -> Self {
        Self { own, others }
    }

    /// Returns all of them; the server's own region cannot be taken by another.
    fn map(&self) -> Arc<DerpMap> {
        let mut regions = self.others.clone();
        regions.extend(self.own.regions.clone().unwrap_or_default());
        Arc::new(DerpMap { regions: Some(regions), ..self.own.clone() })
    }
}

fn check_relays(map: &DerpMap) -> Result<(), OpenError> {
    if has_relay(map) { Ok(()) } else { Err(OpenError::NoRelay) }
}
