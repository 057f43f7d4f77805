//! Every operation of the table, by everybody, on what is theirs and what is another's.

use serde_json::{Value, json};

use warren_wire::key::MachineKey;

use super::{Api, NETWORK, OTHER};
use crate::admin::{NewAuthKey, NewOauthClient};
use crate::authority::{Rights, Scope};
use crate::model::role;
use crate::server::api::table::{ROUTES, Route};

/// What an operation is called on.
struct Subjects {
    network: &'static str,
    node: String,
    user: i64,
    key: String,
    client: String,
    machine: MachineKey,
}

impl Subjects {
    async fn new(api: &mut Api, network: &'static str) -> Self {
        // What ranks above whoever calls is tried elsewhere.
        let user = api.user(network, VICTIM, "member").await;
        let new = NewOauthClient { scopes: vec!["dns:read".to_owned()], tags: Vec::new(), description: String::new() };
        let client = api.admin().create_oauth_client(network, new).await.unwrap().view.id;
        let key = auth_key(api, network).await;
        let machine = MachineKey::from_bytes([if network == NETWORK { 200 } else { 201 }; 32]);
        api.admin().enrol_machines(network, &[machine], "").await.unwrap();
        Self { network, node: api.node_of(network, Some(VICTIM)).await, user, key, client, machine }
    }

    /// Makes anew what an operation takes away.
    async fn renew(&mut self, api: &mut Api, route: &Route) {
        let admin = api.admin();
        if self.user_is_gone(api) {
            self.user = api.user(self.network, VICTIM, "member").await;
        }
        if admin.node(Some(self.network), &self.node).is_err() {
            self.node = api.node_of(self.network, Some(VICTIM)).await;
        }
        match route.id {
            "getKey" | "deleteKey" => {
                self.key = auth_key(api, self.network).await;
            }
            "endEnrolment" => drop(admin.enrol_machines(self.network, &[self.machine], "").await.unwrap()),
            "deleteDeviceAttribute" => {
                admin.set_node_attribute(Some(self.network), &self.node, "custom:a", &json!(1)).await.unwrap();
            }
            _ => {}
        }
    }

    fn user_is_gone(&self, api: &Api) -> bool {
        api.admin().users(Some(self.network)).unwrap().iter().all(|user| user.id != self.user)
    }

    fn path(&self, route: &Route, tailnet: &str) -> String {
        let key = if route.id == "setKey" { &self.client } else { &self.key };
        let pairs = [
            ("{tailnet}", tailnet),
            ("{deviceId}", &self.node),
            ("{userId}", &self.user.to_string()),
            ("{keyId}", key),
            ("{attributeKey}", "custom:a"),
            ("{machineKey}", &self.machine.to_string()),
        ];
        let path = pairs.iter().fold(route.path.to_owned(), |path, (name, value)| path.replace(name, value));
        if route.id == "previewPolicyFile" { format!("{path}?type=user&previewFor=a@example.com") } else { path }
    }

    /// A body that the operation takes.
    fn body(&self, route: &Route) -> Option<Value> {
        route.body?;
        Some(match route.id {
            "setDeviceRoutes" => json!({ "routes": ["10.0.0.0/8"] }),
            "authorizeDevice" => json!({ "authorized": true }),
            "setDeviceName" => json!({ "name": format!("a{}", self.node) }),
            "setDeviceTags" => json!({ "tags": ["tag:web"] }),
            "setDeviceKey" => json!({ "keyExpiryDisabled": true }),
            "setDeviceIp" => json!({ "ipv4": format!("100.99.0.{}", self.node.trim_start_matches('n')) }),
            "setDeviceAttribute" => json!({ "value": 1 }),
            "patchDeviceAttributes" => json!({ "nodes": { &self.node: { "custom:a": { "value": 2 } } } }),
            "enrolMachines" => json!({ "machineKeys": [self.machine] }),
            "createKey" => json!({ "capabilities": { "devices": { "create": { "tags": ["tag:web"] } } } }),
            "setKey" => json!({ "keyType": "client", "scopes": ["dns:read"] }),
            "setUserRole" => json!({ "role": "member" }),
            "setPolicyFile" | "validatePolicyFile" | "previewPolicyFile" => json!({
                "tagOwners": { "tag:web": ["it-admin@example.com", "network-admin@example.com"], "tag:db": ["tag:web"] },
                "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }],
            }),
            "setDnsNameservers" => json!({ "dns": ["1.1.1.1"] }),
            "setDnsPreferences" => json!({ "magicDNS": true }),
            "setDnsSearchPaths" => json!({ "searchPaths": ["example.com"] }),
            "patchSplitDns" | "setSplitDns" => json!({ "example.com": ["10.0.0.1"] }),
            "setDnsConfiguration" => json!({ "preferences": { "magicDNS": true } }),
            "patchSettings" => json!({ "devicesKeyDurationDays": 90 }),
            other => panic!("{other} needs a body"),
        })
    }
}

/// Whose things operations are called on.
const VICTIM: &str = "victim@example.com";

async fn auth_key(api: &Api, network: &str) -> String {
    let new = NewAuthKey { tailnet: network.to_owned(), user: Some(VICTIM.to_owned()), ..NewAuthKey::default() };
    api.admin().create_auth_key(new).await.unwrap().view.id
}

/// Calls every operation and compares with what `rights` say.
async fn try_all(api: &mut Api, who: &str, key: &str, rights: Rights, own: &mut Subjects, other: &Subjects) {
    for route in ROUTES {
        own.renew(api, route).await;
        let may = route.rights.iter().any(|right| rights.has(*right));
        let body = own.body(route);
        let method = route.method.as_str();
        let (code, answer) = api.call(key, method, &own.path(route, "-"), body.as_ref()).await;
        assert_eq!(code, if may { 200 } else { 403 }, "{who}: {}: {answer}", route.id);
        // Another's network is not there, whoever asks; another's thing is not there for those who may look.
        let body = other.body(route);
        let foreign = other.path(route, if route.parameters().count() > 1 { "-" } else { OTHER });
        let is_named = route.is_of_tailnet() && route.parameters().count() == 1;
        let hidden = route.id == "patchDeviceAttributes";
        let (code, answer) = api.call(key, method, &foreign, body.as_ref()).await;
        let expected = if is_named || may { 404 } else { 403 };
        assert_eq!(code, expected, "{who}: {} of another: {answer}", route.id);
        if hidden {
            let (code, answer) = api.call(key, method, &own.path(route, "-"), body.as_ref()).await;
            assert_eq!(code, if may { 404 } else { 403 }, "{who}: {} of another: {answer}", route.id);
        }
    }
}

/// Returns the state of the other network, to see that nothing came of all that.
fn state(api: &Api) -> String {
    let admin = api.admin();
    let other = Some(OTHER);
    let (nodes, machines) = (admin.nodes(other).unwrap(), admin.machines(other).unwrap());
    format!("{nodes:?} {machines:?} {:?} {:?}", admin.users(other).unwrap(), admin.dns(OTHER).unwrap())
}

#[tokio::test]
async fn every_role_may_what_its_rights_say_and_nothing_of_another_network() {
    let mut api = Api::new().await;
    let mut own = Subjects::new(&mut api, NETWORK).await;
    let other = Subjects::new(&mut api, OTHER).await;
    let before = state(&api);
    for name in ["owner", "admin", "it-admin", "network-admin", "billing-admin", "auditor", "member"] {
        let login = format!("{name}@example.com");
        api.user(NETWORK, &login, name).await;
        let key = api.api_key(&login, &[]).await;
        let rights = Rights::of_role(role::parse(name).unwrap());
        try_all(&mut api, name, &key, rights, &mut own, &other).await;
    }
    assert_eq!(state(&api), before);
}

#[tokio::test]
async fn every_scope_opens_its_own_operations_alone() {
    let mut api = Api::new().await;
    let mut own = Subjects::new(&mut api, NETWORK).await;
    let other = Subjects::new(&mut api, OTHER).await;
    let before = state(&api);
    // Of operations that take one of several scopes, the body decides which; those are tried elsewhere.
    for scope in Scope::ALL
        .into_iter()
        .filter(|scope| ROUTES.iter().any(|route| route.rights.len() == 1 && route.rights[0].scope == *scope))
    {
        for name in [scope.name().to_owned(), format!("{}:read", scope.name())] {
            let secret = api.client(&[&name], &["tag:web"]).await;
            let (_, token) = api.token(&secret, "").await;
            let key = token["access_token"].as_str().unwrap().to_owned();
            let rights = Rights::of_scopes([name.as_str()]).unwrap();
            if scope == Scope::OauthKeys {
                continue;
            }
            try_all(&mut api, &name, &key, rights, &mut own, &other).await;
        }
    }
    assert_eq!(state(&api), before);
}

#[test]
fn operations_have_names_of_their_own_and_paths_that_do_not_meet() {
    for (at, one) in ROUTES.iter().enumerate() {
        for two in &ROUTES[at + 1..] {
            assert_ne!(one.id, two.id);
            assert!(one.method != two.method || one.path != two.path, "{}", one.id);
        }
        let writes = one.rights.iter().any(|right| right.access == crate::authority::Access::Write);
        assert_eq!(
            writes,
            one.method != http::Method::GET && !["validatePolicyFile", "previewPolicyFile"].contains(&one.id),
            "{}",
            one.id
        );
    }
}
