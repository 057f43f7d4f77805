//! `warren down`, `logout` and `set`.

use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};
use warren_node::local_api::Client;
use warren_node::prefs::Prefs;

use super::Socket;
use crate::exit::{Exit, Failure};

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
    /// Let machines in those networks see packets of peers as this machine's. Without it they see the peer's own address, and
    /// need a route back through this machine.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    snat_subnet_routes: Option<bool>,
}

impl Router {
    /// Adds what was given.
    pub(super) fn add_to(&self, changes: &mut Changes) {
        let list = |text: &String| -> Vec<String> {
            text.split(',').map(str::trim).filter(|net| !net.is_empty()).map(str::to_owned).collect()
        };
        changes.add("AdvertiseRoutes", self.advertise_routes.as_ref().map(list));
        changes.add("NoSNAT", self.snat_subnet_routes.map(|on| !on));
    }
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
        let mut changes = Changes::default();
        changes.add("Hostname", self.hostname);
        changes.add("RouteAll", self.accept_routes);
        self.router.add_to(&mut changes);
        changes.add("ShieldsUp", self.shields_up);
        changes.add("OperatorUser", self.operator);
        changes.add("MapMaxAge", self.map_max_age);
        changes.add("RelayServerPort", self.relay_server_port.map(|port| json!(port.0)));
        if changes.is_empty() {
            return Err(Failure::new(Exit::Usage, "nothing to set; see: warren set --help"));
        }
        changes.apply(&self.socket.client()).await.map(drop)
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
        let mut prefs =
            Prefs { hostname: "x".into(), route_all: true, shields_up: true, no_snat: true, ..Prefs::default() };
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

    #[test]
    fn networks_are_a_list_and_nothing_takes_them_back() {
        let with = |networks: &str| {
            let mut changes = Changes::default();
            let router = Router { advertise_routes: Some(networks.to_owned()), snat_subnet_routes: Some(false) };
            router.add_to(&mut changes);
            changes.into_value()
        };
        assert_eq!(with("10.0.0.0/24, fd00::/64")["AdvertiseRoutes"], json!(["10.0.0.0/24", "fd00::/64"]));
        assert_eq!(with("")["AdvertiseRoutes"], json!([]));
        assert_eq!(with("")["NoSNAT"], json!(true));
    }

    #[test]
    fn only_what_is_named_changes() {
        let mut changes = Changes::default();
        changes.add("ShieldsUp", Some(true));
        changes.add("RouteAll", None::<bool>);
        assert_eq!(changes.into_value(), json!({ "ShieldsUp": true, "ShieldsUpSet": true }));
    }
}
