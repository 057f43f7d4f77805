//! What the tests of this crate share: folders that go with them, a server in stopped time, and a client's map.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use warren_wire::control::{
    CapabilityVersion, DerpMap, DerpNode, DerpRegion, FilterRule, Hostinfo, MapRequest, MapResponse, Node, NodeId,
    RULES_END, RegionId, RegisterAuth, RegisterRequest, RegisterResponse, SshPolicy, UserId, UserProfile, from_json,
};
use warren_wire::key::{DiscoKey, MachineKey, NodeKey};
use warren_wire::mapframe::{Compression, Decoder};

use crate::admin::{Admin, NewAuthKey};
use crate::{Config, Control, MapStream, OpenError, Who};

/// Where the clients of the tests come from.
pub(crate) const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

/// A folder that is removed with its value.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("warren-control-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        // A run that was killed may have left one.
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// When the servers of the tests begin.
pub(crate) fn start_of_time() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

/// One relay.
pub(crate) fn relays(name: &str) -> DerpMap {
    let node = DerpNode { name: name.to_owned(), region_id: RegionId(900), ..DerpNode::default() };
    let region = DerpRegion { region_id: RegionId(900), nodes: vec![node], ..DerpRegion::default() };
    DerpMap { regions: Some(BTreeMap::from([(RegionId(900), region)])), ..DerpMap::default() }
}

pub(crate) fn config(folder: &Folder) -> Config {
    Config {
        state_dir: folder.join("state"),
        server_url: "http://control.test:8080".to_owned(),
        base_domain: "warren.internal".to_owned(),
        derp_map: relays("900a"),
    }
}

/// A server whose clock stands still unless a test waits: use it in `start_paused` tests.
pub(crate) struct World {
    pub(crate) control: Control,
    pub(crate) folder: Folder,
    now: Timestamp,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = Folder::new();
        let now = start_of_time();
        let control = Control::open_in_paused_time(config(&folder), now).await.unwrap();
        Self { control, folder, now }
    }

    /// Ends the server and starts it again on its folder, `later`.
    pub(crate) async fn restart(self, later: Duration) -> Self {
        let Self { control, folder, .. } = self;
        let now = control.clock().now() + later;
        drop(control);
        loop {
            match Control::open_in_paused_time(config(&folder), now).await {
                // The tasks of the tailnets are still at work.
                Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                opened => return Self { control: opened.unwrap(), folder, now },
            }
        }
    }

    /// Takes over a server that stands in another folder.
    pub(crate) fn over(control: Control, folder: Folder) -> Self {
        let now = control.clock().now();
        Self { control, folder, now }
    }

    /// Returns when this server started.
    pub(crate) fn started(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn admin(&self) -> Admin {
        self.control.admin(Who::local_user(0))
    }

    /// Makes an auth key of the tailnet "default".
    pub(crate) async fn auth_key(&self, new: NewAuthKey) -> String {
        let tailnet = if new.tailnet.is_empty() { "default".to_owned() } else { new.tailnet.clone() };
        let created = self.admin().create_auth_key(NewAuthKey { tailnet, ..new }).await.unwrap();
        created.text.expose().to_owned()
    }

    pub(crate) async fn register(&self, machine: u8, request: RegisterRequest) -> RegisterResponse {
        self.control.register(self::machine(machine), request, FROM).await
    }

    /// Lets machine and node `number` in with a key of their own.
    pub(crate) async fn join(&self, number: u8, new: NewAuthKey) -> i64 {
        let key = self.auth_key(new).await;
        let answer = self.register(number, with_key(register(number), &key)).await;
        assert_eq!((answer.error.as_str(), answer.auth_url.as_str()), ("", ""), "{answer:?}");
        self.id(number)
    }

    /// Returns the number of the node with the key `number`.
    pub(crate) fn id(&self, number: u8) -> i64 {
        self.control.registered(&node_key(number)).unwrap().1.node.0
    }

    pub(crate) async fn poll(&self, number: u8) -> Follower {
        self.poll_with(number, MapRequest { stream: true, ..map(number) }).await
    }

    pub(crate) async fn poll_with(&self, number: u8, request: MapRequest) -> Follower {
        let compression = Compression::from_request(&request.compress).unwrap();
        let stream = self.control.map_stream(machine(number), request).await.unwrap();
        Follower { decoder: Decoder::new(compression), ..Follower::new(stream) }
    }

    /// Returns what a client knows after a whole map.
    pub(crate) fn whole_map(&self, number: u8) -> ClientMap {
        self.whole_map_on(number, number)
    }

    /// Returns what a client on another machine than its own knows after a whole map.
    pub(crate) fn whole_map_on(&self, machine: u8, number: u8) -> ClientMap {
        let bytes = self.control.map_once(self::machine(machine), &map(number)).unwrap();
        let mut known = ClientMap::default();
        let mut decoder = Decoder::new(Compression::None);
        let mut rest = &bytes[..];
        while let Some(json) = decoder.next_document(&mut rest).unwrap() {
            known.apply(from_json(&json).unwrap());
        }
        assert!(rest.is_empty() && decoder.is_between_frames());
        known
    }
}

pub(crate) fn machine(number: u8) -> MachineKey {
    MachineKey::from_bytes([number.wrapping_add(100); 32])
}

pub(crate) fn node_key(number: u8) -> NodeKey {
    NodeKey::from_bytes([number; 32])
}

pub(crate) fn disco_key(number: u8) -> DiscoKey {
    DiscoKey::from_bytes([number.wrapping_add(50); 32])
}

/// What the node `number` registers with: its key and the host name `host<number>`.
pub(crate) fn register(number: u8) -> RegisterRequest {
    RegisterRequest {
        version: CapabilityVersion(130),
        node_key: node_key(number),
        hostinfo: Some(host(&format!("host{number}"))),
        ..RegisterRequest::default()
    }
}

pub(crate) fn host(name: &str) -> Hostinfo {
    Hostinfo { os: "linux".to_owned(), hostname: name.to_owned(), ..Hostinfo::default() }
}

pub(crate) fn with_key(mut request: RegisterRequest, key: &str) -> RegisterRequest {
    request.auth = Some(RegisterAuth { auth_key: key.to_owned(), ..RegisterAuth::default() });
    request
}

/// A map request of the node `number` for one whole map; every fifth node ends rules by itself.
pub(crate) fn map(number: u8) -> MapRequest {
    MapRequest {
        debug_flags: if number.is_multiple_of(5) { vec![RULES_END.to_owned()] } else { Vec::new() },
        version: CapabilityVersion(130),
        node_key: node_key(number),
        disco_key: Some(disco_key(number)),
        ..MapRequest::default()
    }
}

/// A report of the node `number`.
pub(crate) fn report(number: u8, endpoints: &[&str]) -> MapRequest {
    MapRequest {
        omit_peers: true,
        endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
        hostinfo: Some(host(&format!("host{number}"))),
        ..map(number)
    }
}

/// A client at its map poll.
pub(crate) struct Follower {
    stream: MapStream,
    decoder: Decoder,
    pub(crate) map: ClientMap,
}

impl Follower {
    /// Follows a stream without compression.
    pub(crate) fn new(stream: MapStream) -> Self {
        Self { stream, decoder: Decoder::new(Compression::None), map: ClientMap::default() }
    }

    /// Tells whether the poll is over; takes no message that matters.
    pub(crate) async fn has_ended(&mut self) -> bool {
        matches!(tokio::time::timeout(Duration::from_millis(1), self.stream.next()).await, Ok(None))
    }

    /// Waits for the next message, keepalives included; `None` at the end of the poll.
    pub(crate) async fn next(&mut self) -> Option<MapResponse> {
        let bytes = self.stream.next().await?;
        let mut rest = &bytes[..];
        let json = self.decoder.next_document(&mut rest).unwrap().expect("one message is one frame");
        assert!(rest.is_empty() && self.decoder.is_between_frames());
        let message: MapResponse = from_json(&json).unwrap();
        self.map.apply(message.clone());
        Some(message)
    }

    /// Takes messages until nothing comes for a while; tells what came.
    pub(crate) async fn settle(&mut self) -> Vec<MapResponse> {
        let mut messages = Vec::new();
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(300), self.next()).await {
            messages.push(message);
        }
        messages
    }
}

/// What a client knows, kept by the rules that official clients follow.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ClientMap {
    pub(crate) own: Option<Node>,
    pub(crate) peers: BTreeMap<NodeId, Node>,
    /// Chunks of the filter by their names.
    pub(crate) filter: BTreeMap<String, Vec<FilterRule>>,
    pub(crate) profiles: BTreeMap<UserId, UserProfile>,
    pub(crate) derp: Option<DerpMap>,
    pub(crate) ssh: Option<SshPolicy>,
    pub(crate) domain: String,
}

impl ClientMap {
    fn apply(&mut self, message: MapResponse) {
        let own = message.node.as_deref().or(self.own.as_ref()).map(|node| node.id);
        let about = message.peers.iter().chain(&message.peers_changed).map(|node| node.id);
        let about = about.chain(message.peers_changed_patch.iter().map(|patch| patch.node_id));
        for id in about.chain(message.peers_removed.iter().copied()) {
            assert_ne!(Some(id), own, "nobody is told of itself as a peer");
        }
        if !message.peers.is_empty() {
            self.peers = message.peers.into_iter().map(|node| (node.id, node)).collect();
        }
        for id in &message.peers_removed {
            assert!(self.peers.remove(id).is_some(), "{id} was not known");
        }
        for node in message.peers_changed {
            self.peers.insert(node.id, node);
        }
        for patch in message.peers_changed_patch {
            let node = self.peers.get_mut(&patch.node_id).expect("patches are for known peers");
            if let Some(region) = patch.derp_region.known() {
                node.home_derp = region;
            }
            if patch.cap.0 != 0 {
                node.cap = patch.cap;
            }
            node.endpoints = patch.endpoints.unwrap_or_else(|| node.endpoints.clone());
            node.key = patch.key.unwrap_or(node.key);
            node.disco_key = patch.disco_key.or(node.disco_key);
            node.online = patch.online.or(node.online);
            node.last_seen = patch.last_seen.or(node.last_seen);
            node.key_expiry = patch.key_expiry.map_or(node.key_expiry, Option::from);
            if node.online == Some(true) {
                // Clients show it of nodes that are away only.
                node.last_seen = None;
            }
        }
        self.own = message.node.map(|node| *node).or(self.own.take());
        for (name, rules) in message.packet_filters {
            match rules {
                Some(rules) => drop(self.filter.insert(name, rules)),
                None => assert!(self.filter.remove(&name).is_some(), "{name} was not there"),
            }
        }
        self.profiles.extend(message.user_profiles.into_iter().map(|profile| (profile.id, profile)));
        self.derp = message.derp_map.or(self.derp.take());
        self.ssh = message.ssh_policy.or(self.ssh.take());
        if !message.domain.is_empty() {
            self.domain = message.domain;
        }
        for node in self.peers.values().chain(&self.own) {
            assert!(self.profiles.contains_key(&node.user), "the owner of {} is known", node.name);
            assert!(node.name.ends_with('.'), "{}", node.name);
        }
    }

    /// Returns the names of the peers, without the domain.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.peers.values().map(|node| node.name.split('.').next().unwrap_or_default()).collect()
    }
}
