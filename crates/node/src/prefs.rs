//! What the user of this machine chose.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_wire::key::MachineKey;

/// Longest host name that is accepted.
const MAX_HOSTNAME: usize = 63;

/// How old a kept map may be unless the user says otherwise, in seconds: a week, so that a server may be away over holidays.
const MAP_MAX_AGE: u64 = 7 * 86_400;

/// Most routes that a node offers. Source: paths.md, section 9.2 (what servers take).
const MAX_ROUTES: usize = 1024;

/// Longest age that can be set, in seconds: ten years.
const MAP_MAX_AGE_LIMIT: u64 = 10 * 366 * 86_400;

/// Holds the settings of the node, under their official JSON names.
///
/// Source: Tailscale `ipn/prefs.go`, `Prefs`; fields that this node does not act on are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Prefs {
    /// Address of the coordination server; empty until the first `up`.
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// Pinned Noise key of the server (`mkey:…`), empty if none. Not part of the official set.
    pub server_key: String,
    /// Be on the tailnet.
    pub want_running: bool,
    /// The user logged out; do not log in by itself.
    pub logged_out: bool,
    /// Use routes that peers offer.
    pub route_all: bool,
    /// Networks behind this node that it offers to peers; both default routes offer it as an exit node.
    pub advertise_routes: Vec<IpNet>,
    /// Leave the source address of what is passed on to those networks as it is.
    #[serde(rename = "NoSNAT")]
    pub no_snat: bool,
    /// Stable ID of the peer that takes all packets for the Internet; empty if it is chosen in another way, or none is.
    #[serde(rename = "ExitNodeID")]
    pub exit_node_id: String,
    /// Address of that peer, in place of its ID.
    #[serde(rename = "ExitNodeIP", with = "address_or_nothing")]
    pub exit_node_ip: Option<IpAddr>,
    /// `any`: let whichever peer can be it be the exit node; else empty.
    pub auto_exit_node: String,
    /// Reach the networks that this machine is in straight, though an exit node is used.
    #[serde(rename = "ExitNodeAllowLANAccess")]
    pub exit_node_allow_lan_access: bool,
    /// Make programs of this machine find names as the tailnet says.
    #[serde(rename = "CorpDNS")]
    pub corp_dns: bool,
    /// Refuse connections from peers.
    pub shields_up: bool,
    /// Host name to show instead of the machine's own; empty means the machine's own.
    pub hostname: String,
    /// Local user (name or number) of this machine who may change settings beside root; empty means nobody.
    pub operator_user: String,
    /// How many seconds after the server was last heard the map on disk may still be used; 0 keeps none. Not part of the
    /// official set.
    pub map_max_age: u64,
    /// UDP port on which to relay for peers that may use this node; 0 takes a free one, absent means no relaying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_server_port: Option<u16>,
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            control_url: String::new(),
            server_key: String::new(),
            want_running: false,
            logged_out: true,
            route_all: false,
            advertise_routes: Vec::new(),
            no_snat: false,
            exit_node_id: String::new(),
            exit_node_ip: None,
            auto_exit_node: String::new(),
            exit_node_allow_lan_access: false,
            corp_dns: true,
            shields_up: false,
            hostname: String::new(),
            operator_user: String::new(),
            map_max_age: MAP_MAX_AGE,
            relay_server_port: None,
        }
    }
}

/// Says who may change a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// The operator and root.
    Own,
    /// Root alone: the setting decides whom this machine trusts.
    Root,
}

/// Says why a change of settings was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefsError {
    /// The body is not a JSON object with `…Set` booleans.
    #[error("not a set of masked preferences")]
    Malformed,
    /// A setting that this node does not have.
    #[error("this node has no setting {0}")]
    Unknown(String),
    /// The value has the wrong type or form.
    #[error("{field} is not valid: {reason}")]
    Invalid {
        /// Name of the setting.
        field: &'static str,
        /// What is expected.
        reason: &'static str,
    },
    /// A node cannot send everything to another one and take everything from others.
    #[error("a node that offers itself as an exit node cannot use another one: take one of the two back")]
    ExitBothWays,
}

impl Prefs {
    /// Applies a PATCH body: an object that has, for each field to change, the field and `‹Field›Set: true`.
    /// Returns the right that the change needs; what is set to what it was needs none.
    ///
    /// Nothing is changed on error.
    ///
    /// # Errors
    /// Refuses settings that do not exist and values that are not valid.
    pub fn patch(&mut self, body: &Value) -> Result<Right, PrefsError> {
        let object = body.as_object().ok_or(PrefsError::Malformed)?;
        let mut next = self.clone();
        for (key, on) in object {
            let Some(field) = key.strip_suffix("Set") else {
                continue;
            };
            match on {
                Value::Bool(true) => {}
                Value::Bool(false) | Value::Null => continue,
                Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                    return Err(PrefsError::Malformed);
                }
            }
            next.set(field, object.get(field).unwrap_or(&Value::Null))?;
        }
        if next.uses_exit_node() && next.offers_exit_node() {
            return Err(PrefsError::ExitBothWays);
        }
        let trust = |prefs: &Self| (prefs.control_url.clone(), prefs.server_key.clone(), prefs.operator_user.clone());
        let right = if trust(&next) == trust(self) { Right::Own } else { Right::Root };
        *self = next;
        Ok(right)
    }

    /// Returns the pinned key of the server, if one is pinned.
    ///
    /// # Errors
    /// Says that the text is no key; it must not be taken for "no pin".
    pub fn server_pin(&self) -> Result<Option<MachineKey>, PrefsError> {
        if self.server_key.is_empty() {
            return Ok(None);
        }
        let reason = "expected mkey: and 64 hex digits";
        self.server_key.parse().map(Some).map_err(|_| PrefsError::Invalid { field: "ServerKey", reason })
    }

    /// Tells whether an exit node was chosen, be it known or not.
    #[must_use]
    pub fn uses_exit_node(&self) -> bool {
        !self.exit_node_id.is_empty() || self.exit_node_ip.is_some() || !self.auto_exit_node.is_empty()
    }

    /// Tells whether this node offers itself as an exit node.
    #[must_use]
    pub fn offers_exit_node(&self) -> bool {
        self.advertise_routes.iter().any(|route| route.prefix_len() == 0)
    }

    fn forget_exit_node(&mut self) {
        self.exit_node_id.clear();
        self.exit_node_ip = None;
        self.auto_exit_node.clear();
    }

    fn set(&mut self, field: &str, value: &Value) -> Result<(), PrefsError> {
        match field {
            "ControlURL" => {
                let url = text("ControlURL", value)?;
                self.control_url = if url.is_empty() {
                    url
                } else {
                    let parsed = url.parse::<crate::control_client::ServerUrl>();
                    let reason = "expected http(s)://host[:port]";
                    parsed.map_err(|_| PrefsError::Invalid { field: "ControlURL", reason })?.to_string()
                };
            }
            "ServerKey" => {
                self.server_key = text("ServerKey", value)?;
                self.server_pin()?;
            }
            "WantRunning" => self.want_running = flag("WantRunning", value)?,
            "LoggedOut" => self.logged_out = flag("LoggedOut", value)?,
            "RouteAll" => self.route_all = flag("RouteAll", value)?,
            "AdvertiseRoutes" => self.advertise_routes = routes(value)?,
            "NoSNAT" => self.no_snat = flag("NoSNAT", value)?,
            // Choosing in one of the three ways ends what was chosen in another.
            "ExitNodeID" => {
                let id = text("ExitNodeID", value)?;
                if id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let reason = "expected the stable ID of a peer, or nothing";
                    return Err(PrefsError::Invalid { field: "ExitNodeID", reason });
                }
                if !id.is_empty() {
                    self.forget_exit_node();
                }
                self.exit_node_id = id;
            }
            "ExitNodeIP" => {
                let ip = text("ExitNodeIP", value)?;
                let reason = "expected an address, or nothing";
                let ip = (!ip.is_empty()).then(|| ip.parse()).transpose();
                let ip = ip.map_err(|_| PrefsError::Invalid { field: "ExitNodeIP", reason })?;
                if ip.is_some() {
                    self.forget_exit_node();
                }
                self.exit_node_ip = ip;
            }
            "AutoExitNode" => {
                let auto = text("AutoExitNode", value)?;
                if !auto.is_empty() && auto != "any" {
                    return Err(PrefsError::Invalid { field: "AutoExitNode", reason: "expected any, or nothing" });
                }
                if !auto.is_empty() {
                    self.forget_exit_node();
                }
                self.auto_exit_node = auto;
            }
            "ExitNodeAllowLANAccess" => self.exit_node_allow_lan_access = flag("ExitNodeAllowLANAccess", value)?,
            "CorpDNS" => self.corp_dns = value.is_null() || flag("CorpDNS", value)?,
            "ShieldsUp" => self.shields_up = flag("ShieldsUp", value)?,
            "Hostname" => {
                let name = text("Hostname", value)?;
                if !name.is_empty() && !is_hostname(&name) {
                    let reason = "expected letters, digits, '-' and '.', at most 63";
                    return Err(PrefsError::Invalid { field: "Hostname", reason });
                }
                self.hostname = name;
            }
            "OperatorUser" => {
                let user = text("OperatorUser", value)?;
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
                if user.len() > 32 || user.starts_with('-') || !user.bytes().all(plain) {
                    return Err(PrefsError::Invalid { field: "OperatorUser", reason: "expected a user name" });
                }
                self.operator_user = user;
            }
            "MapMaxAge" => {
                let reason = "expected seconds, at most ten years";
                let age = if value.is_null() { Some(MAP_MAX_AGE) } else { value.as_u64() };
                let age = age.filter(|age| *age <= MAP_MAX_AGE_LIMIT);
                self.map_max_age = age.ok_or(PrefsError::Invalid { field: "MapMaxAge", reason })?;
            }
            "RelayServerPort" => {
                let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
                if port.is_none() && !value.is_null() {
                    return Err(PrefsError::Invalid { field: "RelayServerPort", reason: "expected a port, or null" });
                }
                self.relay_server_port = port;
            }
            _ => {
                return Err(PrefsError::Unknown(field.chars().filter(char::is_ascii_alphanumeric).take(40).collect()));
            }
        }
        Ok(())
    }
}

/// Tells whether `name` can stand as this machine's host name.
#[must_use]
pub fn is_hostname(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_HOSTNAME
        && !name.starts_with(['-', '.'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// Reads the networks that a node offers.
fn routes(value: &Value) -> Result<Vec<IpNet>, PrefsError> {
    let invalid = |reason| PrefsError::Invalid { field: "AdvertiseRoutes", reason };
    let texts = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(texts) if texts.len() <= MAX_ROUTES => texts,
        Value::Array(_) => return Err(invalid("expected 1024 networks at most")),
        Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(invalid("expected a list of networks"));
        }
    };
    let mut routes = Vec::new();
    for text in texts {
        let net = text.as_str().and_then(|text| text.parse::<IpNet>().ok());
        let net = net.ok_or(invalid("expected networks such as 10.0.0.0/24 or fd00::/64"))?;
        if net != net.trunc() {
            return Err(invalid(
                "bits beyond the length of the network are set; 10.0.0.0/24 is one, 10.0.0.1/24 is not",
            ));
        }
        let address = net.addr();
        let is_nowhere = address.is_loopback() || address.is_multicast() || address.is_unspecified();
        if net.prefix_len() > 0 && is_nowhere {
            return Err(invalid("loopback and groups cannot be behind a node"));
        }
        routes.push(net);
    }
    routes.sort_unstable();
    routes.dedup();
    // Clients use both or none: with one alone the other family would pass by.
    if routes.iter().filter(|net| net.prefix_len() == 0).count() == 1 {
        return Err(invalid("0.0.0.0/0 and ::/0 go together; to offer an exit node say --advertise-exit-node"));
    }
    Ok(routes)
}

/// Writes no address as an empty text, as Go does.
mod address_or_nothing {
    use std::net::IpAddr;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(address: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
        address.map(|address| address.to_string()).unwrap_or_default().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        (!text.is_empty()).then(|| text.parse().map_err(D::Error::custom)).transpose()
    }
}

fn text(field: &'static str, value: &Value) -> Result<String, PrefsError> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) if text.len() <= 512 => Ok(text.clone()),
        Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(PrefsError::Invalid { field, reason: "expected a short text" })
        }
    }
}

fn flag(field: &'static str, value: &Value) -> Result<bool, PrefsError> {
    match value {
        Value::Null => Ok(false),
        Value::Bool(on) => Ok(*on),
        Value::String(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(PrefsError::Invalid { field, reason: "expected true or false" })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_without_its_set_flag_changes_nothing() {
        let mut prefs = Prefs::default();
        prefs.patch(&json!({"Hostname": "x", "WantRunning": true, "RouteAllSet": false, "RouteAll": true})).unwrap();
        assert_eq!(prefs, Prefs::default());
    }

    #[test]
    fn a_set_flag_without_value_resets_the_field() {
        let mut prefs = Prefs { hostname: "x".into(), ..Prefs::default() };
        prefs.patch(&json!({"HostnameSet": true})).unwrap();
        assert_eq!(prefs.hostname, "");
    }

    #[test]
    fn whom_to_trust_needs_root() {
        let mut prefs = Prefs { server_key: format!("mkey:{}", "ab".repeat(32)), ..Prefs::default() };
        assert_eq!(prefs.patch(&json!({"ShieldsUp": true, "ShieldsUpSet": true})).unwrap(), Right::Own);
        for body in [
            json!({"ControlURL": "http://127.0.0.1:1/", "ControlURLSet": true}),
            json!({"OperatorUser": "eve", "OperatorUserSet": true}),
            json!({"ServerKeySet": true}),
        ] {
            assert_eq!(prefs.patch(&body).unwrap(), Right::Root, "{body}");
            // The same once more changes nothing, so anybody who may change settings may say it.
            assert_eq!(prefs.patch(&body).unwrap(), Right::Own, "{body}");
        }
    }

    #[test]
    fn one_bad_value_refuses_the_whole_change() {
        let mut prefs = Prefs::default();
        let body = json!({"ShieldsUp": true, "ShieldsUpSet": true, "Hostname": "a\nb", "HostnameSet": true});
        assert!(matches!(prefs.patch(&body), Err(PrefsError::Invalid { field: "Hostname", .. })));
        assert_eq!(prefs, Prefs::default());
        let unknown = prefs.patch(&json!({"RunSSH": true, "RunSSHSet": true}));
        assert_eq!(unknown, Err(PrefsError::Unknown("RunSSH".into())));
        assert_eq!(prefs.patch(&json!([1])), Err(PrefsError::Malformed));
        assert_eq!(prefs.patch(&json!({"HostnameSet": 1})), Err(PrefsError::Malformed));
    }

    fn with(field: &str, value: Value) -> Result<Prefs, PrefsError> {
        let mut prefs = Prefs::default();
        prefs.patch(&json!({ field: value, format!("{field}Set"): true })).map(|_| prefs)
    }

    #[test]
    fn offered_routes_are_whole_networks_in_order() {
        let prefs = with("AdvertiseRoutes", json!(["fd00:1::/64", "10.0.0.0/24", "10.0.0.0/24"])).unwrap();
        assert_eq!(prefs.advertise_routes, ["10.0.0.0/24", "fd00:1::/64"].map(|net| net.parse().unwrap()));
        for wrong in [
            json!(["10.0.0.1/24"]),
            json!(["0.0.0.0/0"]),
            json!(["127.0.0.0/8"]),
            json!(["224.0.0.0/4"]),
            json!(["x"]),
            json!("10.0.0.0/24"),
            json!(vec!["10.0.0.0/24"; 1025]),
        ] {
            assert!(with("AdvertiseRoutes", wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_exit_node_is_offered_in_both_families_or_not_at_all() {
        let offer = |routes: Value| {
            let mut prefs = Prefs::default();
            prefs.patch(&json!({"AdvertiseRoutes": routes, "AdvertiseRoutesSet": true})).map(|_| prefs)
        };
        assert!(offer(json!(["::/0", "0.0.0.0/0"])).unwrap().offers_exit_node());
        assert!(offer(json!(["::/0"])).is_err() && offer(json!(["0.0.0.0/0", "10.0.0.0/8"])).is_err());
    }

    #[test]
    fn an_exit_node_is_chosen_in_one_way_and_never_by_one_that_is_one() {
        let mut prefs = Prefs::default();
        let way = |prefs: &Prefs| (prefs.exit_node_id.clone(), prefs.exit_node_ip, prefs.auto_exit_node.clone());
        prefs.patch(&json!({"ExitNodeID": "n1", "ExitNodeIDSet": true})).unwrap();
        prefs.patch(&json!({"ExitNodeIP": "100.64.0.9", "ExitNodeIPSet": true})).unwrap();
        assert_eq!(way(&prefs), (String::new(), Some([100, 64, 0, 9].into()), String::new()));
        prefs.patch(&json!({"AutoExitNode": "any", "AutoExitNodeSet": true, "ExitNodeIPSet": true})).unwrap();
        assert_eq!(way(&prefs), (String::new(), None, "any".to_owned()));
        let both = prefs.patch(&json!({"AdvertiseRoutes": ["0.0.0.0/0", "::/0"], "AdvertiseRoutesSet": true}));
        assert_eq!(both, Err(PrefsError::ExitBothWays));
        prefs.patch(&json!({"AutoExitNodeSet": true, "ExitNodeIPSet": true, "ExitNodeIDSet": true})).unwrap();
        assert!(!prefs.uses_exit_node());
        for (field, value) in [("ExitNodeIP", "alpha"), ("AutoExitNode", "all"), ("ExitNodeID", "a b")] {
            assert!(prefs.patch(&json!({field: value, format!("{field}Set"): true})).is_err(), "{field}");
        }
    }

    #[test]
    fn names_of_the_tailnet_are_used_unless_somebody_says_no() {
        let mut prefs = serde_json::from_str::<Prefs>("{}").unwrap();
        assert!(prefs.corp_dns, "settings of an older version");
        prefs.patch(&json!({"CorpDNS": false, "CorpDNSSet": true})).unwrap();
        assert!(!prefs.corp_dns);
        prefs.patch(&json!({"CorpDNSSet": true})).unwrap();
        assert!(prefs.corp_dns);
    }

    #[test]
    fn the_exit_nodes_address_is_a_text_that_may_be_empty() {
        let set = Prefs { exit_node_ip: Some([100, 64, 0, 9].into()), ..Prefs::default() };
        for (prefs, text) in [(Prefs::default(), ""), (set, "100.64.0.9")] {
            let json = serde_json::to_value(&prefs).unwrap();
            assert_eq!(json["ExitNodeIP"], text);
            assert_eq!(serde_json::from_value::<Prefs>(json).unwrap(), prefs);
        }
    }

    fn arb_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            "https?://[a-z.:/@0-9\\[\\]]{0,20}".prop_map(Value::from),
            Just(format!("mkey:{}", "ab".repeat(32)).into()),
            Just("x".repeat(2000).into()),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| proptest::collection::vec(inner, 0..3).prop_map(Value::from))
    }

    proptest! {
        /// Whatever is asked for, what comes out are settings that this node can start with, or the old ones.
        #[test]
        fn no_change_makes_unusable_settings(
            fields in proptest::collection::vec(
                (prop_oneof![
                    Just("ControlURL"), Just("ServerKey"), Just("WantRunning"), Just("LoggedOut"), Just("RouteAll"),
                    Just("ShieldsUp"), Just("Hostname"), Just("OperatorUser"), Just("MapMaxAge"), Just("RelayServerPort"),
                    Just("ExitNodeID"), Just("ExitNodeIP"), Just("AutoExitNode"), Just("AdvertiseRoutes"), Just("NoSNAT"), Just("")
                ], arb_json(), arb_json()),
                0..4,
            )
        ) {
            let mut body = serde_json::Map::new();
            for (name, value, on) in fields {
                body.insert(name.to_owned(), value);
                body.insert(format!("{name}Set"), if on.is_string() { true.into() } else { on });
            }
            let mut prefs = Prefs::default();
            let before = prefs.clone();
            if prefs.patch(&body.into()).is_err() {
                prop_assert_eq!(&prefs, &before);
            }
            prop_assert!(prefs.server_pin().is_ok());
            prop_assert!(prefs.hostname.is_empty() || is_hostname(&prefs.hostname));
            if !prefs.control_url.is_empty() {
                let url = prefs.control_url.parse::<crate::control_client::ServerUrl>();
                prop_assert_eq!(url.unwrap().to_string(), prefs.control_url.clone());
            }
            let stored = serde_json::to_string(&prefs).unwrap();
            prop_assert_eq!(serde_json::from_str::<Prefs>(&stored).unwrap(), prefs);
        }
    }

    #[test]
    fn names_are_the_official_ones() {
        let json = serde_json::to_value(Prefs::default()).unwrap();
        for name in [
            "ControlURL",
            "WantRunning",
            "LoggedOut",
            "RouteAll",
            "ShieldsUp",
            "Hostname",
            "OperatorUser",
            "AdvertiseRoutes",
            "NoSNAT",
            "ExitNodeID",
            "ExitNodeIP",
            "AutoExitNode",
            "ExitNodeAllowLANAccess",
            "CorpDNS",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
    }
}
