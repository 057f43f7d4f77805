//! `warren down`, `logout` and `set`.

use std::net::IpAddr;

use clap::Args;
use http::Method;
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use warren_node::local_api::Client;
use warren_node::local_api::types::{PeerStatus, Status};
use warren_node::prefs::Prefs;

use super::risk::{self, Risk};
use super::{Socket, peers};
use crate::exit::{self, Failure};

/// Collects settings to change, in the masked form of the local API.
#[derive(Debug, Default)]
pub(super) struct Changes(Map<String, Value>);

impl Changes {
    /// Adds a setting, if it was given.
    pub(super) fn add(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
            self.0.insert(format!("{name}Set"), true.into());
        }
    }

    /// Tells whether there is nothing to change.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the document to send.
    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Makes the daemon change the settings.
    pub(super) async fn apply(self, client: &Client) -> Result<Prefs, Failure> {
        let body = self.into_value().to_string().into();
        Ok(client.json(Method::PATCH, "prefs", body).await?)
    }
}

/// Arguments of `warren down`.
#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    socket: Socket,
}

impl Down {
    /// Takes the node down.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = self.socket.client();
        if !client.get::<Prefs>("prefs").await?.want_running {
            eprintln!("The node is down already.");
            return Ok(());
        }
        let mut changes = Changes::default();
        changes.add("WantRunning", Some(false));
        changes.apply(&client).await.map(drop)
    }
}

/// Arguments of `warren logout`.
#[derive(Debug, Args)]
pub(crate) struct Logout {
    #[command(flatten)]
    socket: Socket,
}

impl Logout {
    /// Logs out.
    pub(super) async fn run(self) -> Result<(), Failure> {
        self.socket.client().request(Method::POST, "logout", "".into()).await?;
        Ok(())
    }
}

/// Arguments of `warren set`.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name to show instead of this machine's own; empty for the machine's own.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Use routes that peers offer.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    accept_routes: Option<bool>,
    #[command(flatten)]
    router: Router,
    #[command(flatten)]
    exit: Exit,
    /// Make programs of this machine find names as the tailnet says.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    accept_dns: Option<bool>,
    /// Refuse every connection that a peer opens.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    shields_up: Option<bool>,
    /// Local user who may use up, down, login, logout and set without root; empty for nobody.
    #[arg(long, value_name = "USER")]
    operator: Option<String>,
    /// How long after the server was last heard the map on disk may be used by a node that starts while the server is
    /// away, like 24h or 7d; 0 keeps no map.
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    map_max_age: Option<u64>,
    /// UDP port on which to relay packets between peers that find no direct path, if the policy lets them; 0 for any port,
    /// empty for no relaying.
    #[arg(long, value_name = "PORT", value_parser = parse_port)]
    relay_server_port: Option<RelayPort>,
    #[command(flatten)]
    socket: Socket,
}

/// Settings of a node with networks behind it, which `up` and `set` share.
#[derive(Debug, Args)]
pub(super) struct Router {
    /// Networks behind this machine that peers may reach through it, such as 10.0.0.0/24,fd00:1::/64; empty for none. An
    /// administrator approves them.
    #[arg(long, value_name = "NETWORKS")]
    advertise_routes: Option<String>,
    /// Offer to pass packets of peers on to the Internet. An administrator approves it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    advertise_exit_node: Option<bool>,
    /// Let machines in those networks see packets of peers as this machine's. Without it they see the peer's own address, and
    /// need a route back through this machine.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    snat_subnet_routes: Option<bool>,
}

/// What offers a node as an exit node.
const EXIT_ROUTES: [&str; 2] = ["0.0.0.0/0", "::/0"];

impl Router {
    /// Adds what was given; `offered` is what the node offers so far: each of the two options leaves the other's part alone.
    pub(super) fn add_to(&self, changes: &mut Changes, offered: &[IpNet]) {
        if self.advertise_routes.is_some() || self.advertise_exit_node.is_some() {
            let (exit, nets): (Vec<&IpNet>, Vec<&IpNet>) = offered.iter().partition(|net| net.prefix_len() == 0);
            let mut routes: Vec<String> = match &self.advertise_routes {
                Some(text) => text.split(',').map(str::trim).filter(|net| !net.is_empty()).map(str::to_owned).collect(),
                None => nets.into_iter().map(ToString::to_string).collect(),
            };
            if self.advertise_exit_node.unwrap_or(!exit.is_empty()) {
                routes.extend(EXIT_ROUTES.map(str::to_owned));
            }
            changes.add("AdvertiseRoutes", Some(routes));
        }
        changes.add("NoSNAT", self.snat_subnet_routes.map(|on| !on));
    }
}

/// Settings of a node that uses an exit node, which `up` and `set` share.
#[derive(Debug, Args)]
pub(super) struct Exit {
    /// Peer through which all packets for the Internet go: a name or an address; auto:any for one that can be used, empty for
    /// none. While it is away, none leave.
    #[arg(long, value_name = "NAME")]
    exit_node: Option<String>,
    /// Reach the networks that this machine is in straight, though an exit node is used.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    exit_node_allow_lan_access: Option<bool>,
    /// Take a risk that the command would refuse to take otherwise.
    #[arg(long, value_name = "RISK", value_enum)]
    accept_risk: Option<Risk>,
}

impl Exit {
    /// Adds what was given.
    pub(super) async fn add_to(&self, changes: &mut Changes, client: &Client) -> Result<(), Failure> {
        changes.add("ExitNodeAllowLANAccess", self.exit_node_allow_lan_access);
        let Some(name) = &self.exit_node else { return Ok(()) };
        let (mut id, mut address, mut auto) = (String::new(), String::new(), "");
        if !name.is_empty() {
            risk::check(self.accept_risk, "an exit node")?;
        }
        if name == "auto:any" {
            auto = "any";
        } else if !name.is_empty() {
            let status: Status = client.get("status").await?;
            match (exit_node(&status, name), name.parse::<IpAddr>()) {
                (Ok(peer), _) => peer.id.clone_into(&mut id),
                // Before the first login nobody knows the peers.
                (Err(_), Ok(ip)) if status.peer.is_empty() => address = ip.to_string(),
                (Err(failure), _) => return Err(failure),
            }
        }
        changes.add("ExitNodeID", Some(id));
        changes.add("ExitNodeIP", Some(address));
        changes.add("AutoExitNode", Some(auto));
        Ok(())
    }
}

/// Finds a peer that can be the exit node.
fn exit_node<'a>(status: &'a Status, name: &str) -> Result<&'a PeerStatus, Failure> {
    let found = peers::find(status, name)?;
    if found.public_key == status.self_.public_key {
        let text = "this machine cannot be its own exit node; to offer it to others say: --advertise-exit-node";
        return Err(Failure::new(exit::Exit::Usage, text));
    }
    if !found.exit_node_option {
        let text = format!("{name} is no exit node, or none for this machine; see: warren exit-node list");
        return Err(Failure::new(exit::Exit::NotFound, text));
    }
    Ok(found)
}

/// What is set as the port of the peer relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RelayPort(Option<u16>);

/// Reads a port, or nothing.
fn parse_port(text: &str) -> Result<RelayPort, String> {
    let port = (!text.is_empty()).then(|| text.parse());
    port.transpose().map(RelayPort).map_err(|_| "write a port, 0 for any, or nothing".to_owned())
}

/// Reads a time such as `90s`, `30m`, `24h` or `7d`, or 0, in seconds.
fn parse_age(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.char_indices().next_back() {
        Some((at, 's')) => (text.get(..at), 1),
        Some((at, 'm')) => (text.get(..at), 60),
        Some((at, 'h')) => (text.get(..at), 3_600),
        Some((at, 'd')) => (text.get(..at), 86_400),
        Some(_) if text == "0" => (Some("0"), 1),
        Some(_) | None => (None, 1),
    };
    let number = number.and_then(|number| number.parse::<u64>().ok());
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "write a number and a unit, 90s, 30m, 24h or 7d, or 0".to_owned())
}

impl Set {
    /// Changes what was named and nothing else.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = self.socket.client();
        let mut changes = Changes::default();
        changes.add("Hostname", self.hostname);
        changes.add("RouteAll", self.accept_routes);
        if self.router.advertise_routes.is_some() || self.router.advertise_exit_node.is_some() {
            let before: Prefs = client.get("prefs").await?;
            self.router.add_to(&mut changes, &before.advertise_routes);
        } else {
            self.router.add_to(&mut changes, &[]);
        }
        self.exit.add_to(&mut changes, &client).await?;
        changes.add("CorpDNS", self.accept_dns);
        changes.add("ShieldsUp", self.shields_up);
        changes.add("OperatorUser", self.operator);
        changes.add("MapMaxAge", self.map_max_age);
        changes.add("RelayServerPort", self.relay_server_port.map(|port| json!(port.0)));
        if changes.is_empty() {
            return Err(Failure::new(exit::Exit::Usage, "nothing to set; see: warren set --help"));
        }
        changes.apply(&client).await.map(drop)
    }
}

/// Returns the changes that put every setting that `up` knows back to its default, apart from the server.
pub(super) fn defaults() -> Changes {
    let Value::Object(all) = json!({
        "Hostname": "", "HostnameSet": true,
        "RouteAll": false, "RouteAllSet": true,
        "ShieldsUp": false, "ShieldsUpSet": true,
        "AdvertiseRoutes": [], "AdvertiseRoutesSet": true,
        "NoSNAT": false, "NoSNATSet": true,
        "CorpDNS": true, "CorpDNSSet": true,
        "ExitNodeID": "", "ExitNodeIDSet": true,
        "ExitNodeIP": "", "ExitNodeIPSet": true,
        "AutoExitNode": "", "AutoExitNodeSet": true,
        "ExitNodeAllowLANAccess": false, "ExitNodeAllowLANAccessSet": true,
    }) else {
        return Changes::default();
    };
    Changes(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_setting_that_the_node_has() {
        let mut prefs = Prefs {
            hostname: "x".into(),
            route_all: true,
            shields_up: true,
            no_snat: true,
            auto_exit_node: "any".into(),
            corp_dns: false,
            exit_node_allow_lan_access: true,
            ..Prefs::default()
        };
        prefs.patch(&defaults().into_value()).unwrap();
        assert_eq!(prefs, Prefs::default());
    }

    #[test]
    fn ages_are_numbers_with_a_unit() {
        assert_eq!(parse_age("0"), Ok(0));
        assert_eq!(parse_age("90s"), Ok(90));
        assert_eq!(parse_age("7d"), Ok(604_800));
        for wrong in ["", "7", "d", "-1d", "1.5h", "99999999999999999999d", "18446744073709551615h", "1\u{e9}"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_relay_port_may_be_taken_away() {
        assert_eq!(parse_port(""), Ok(RelayPort(None)));
        assert_eq!(parse_port("0"), Ok(RelayPort(Some(0))));
        assert_eq!(parse_port("65535"), Ok(RelayPort(Some(65535))));
        for wrong in ["65536", "-1", "x", " "] {
            assert!(parse_port(wrong).is_err(), "{wrong}");
        }
    }

    fn offers(networks: Option<&str>, exit: Option<bool>, offered: &[&str]) -> Value {
        let mut changes = Changes::default();
        let router = Router {
            advertise_routes: networks.map(str::to_owned),
            advertise_exit_node: exit,
            snat_subnet_routes: Some(false),
        };
        let offered: Vec<IpNet> = offered.iter().map(|net| net.parse().unwrap()).collect();
        router.add_to(&mut changes, &offered);
        changes.into_value()
    }

    #[test]
    fn networks_are_a_list_and_nothing_takes_them_back() {
        let with = |networks| offers(Some(networks), None, &[]);
        assert_eq!(with("10.0.0.0/24, fd00::/64")["AdvertiseRoutes"], json!(["10.0.0.0/24", "fd00::/64"]));
        assert_eq!(with("")["AdvertiseRoutes"], json!([]));
        assert_eq!(with("")["NoSNAT"], json!(true));
    }

    #[test]
    fn networks_and_the_exit_are_offered_one_beside_the_other() {
        let both = ["10.0.0.0/24", "0.0.0.0/0", "::/0"];
        let routes = |networks, exit, offered: &[&str]| offers(networks, exit, offered)["AdvertiseRoutes"].clone();
        assert_eq!(routes(None, Some(true), &["10.0.0.0/24"]), json!(both));
        assert_eq!(routes(None, Some(false), &both), json!(["10.0.0.0/24"]));
        assert_eq!(routes(Some("10.1.0.0/24"), None, &both), json!(["10.1.0.0/24", "0.0.0.0/0", "::/0"]));
        assert_eq!(routes(None, None, &both), Value::Null, "nothing is said of what nobody named");
    }

    #[test]
    fn an_exit_node_is_a_peer_that_offers_to_be_one() {
        let mut status = peers::tests::status();
        status.self_.public_key = "own".into();
        assert_eq!(exit_node(&status, "beta").unwrap_err().exit(), exit::Exit::NotFound);
        status.peer.values_mut().for_each(|peer| peer.exit_node_option = true);
        assert_eq!(exit_node(&status, "100.64.0.2").unwrap().dns_name, "beta.t.example.");
        assert_eq!(exit_node(&status, "alpha").unwrap_err().exit(), exit::Exit::Usage);
    }

    #[test]
    fn only_what_is_named_changes() {
        let mut changes = Changes::default();
        changes.add("ShieldsUp", Some(true));
        changes.add("RouteAll", None::<bool>);
        assert_eq!(changes.into_value(), json!({ "ShieldsUp": true, "ShieldsUpSet": true }));
    }
}
