//! The operations: where they are, what they take, and who does them. The OpenAPI document and the tests of who may do what
//! are made of the same list.

use std::future::Future;
use std::pin::Pin;

use http::Method;

use super::call::{ApiError, Call, Reply};
use super::{devices, dns, keys, logs, machines, policy, settings, users};
use crate::authority::{Right, Scope};

/// What does an operation.
type Run = for<'a> fn(&'a Call) -> Pin<Box<dyn Future<Output = Result<Reply, ApiError>> + Send + 'a>>;

/// One operation.
pub(super) struct Route {
    /// Its name, unlike that of any other.
    pub(super) id: &'static str,
    pub(super) method: Method,
    /// Path below [`super::BASE`]; what stands in braces is a parameter.
    pub(super) path: &'static str,
    /// One of these is needed.
    pub(super) rights: &'static [Right],
    /// What it does, for the document.
    pub(super) summary: &'static str,
    /// Names of what it takes in the query, with a sentence for each.
    pub(super) query: &'static [(&'static str, &'static str)],
    /// Name of the shape of its body.
    pub(super) body: Option<&'static str>,
    /// Name of the shape of its answer.
    pub(super) answer: &'static str,
    pub(super) run: Run,
}

impl Route {
    /// Tells whether its first parameter is a tailnet.
    pub(super) fn is_of_tailnet(&self) -> bool {
        self.path.starts_with("/tailnet/")
    }

    /// Tells whether it takes a policy, which is work.
    pub(super) fn takes_policy(&self) -> bool {
        matches!(self.body, Some("Policy" | "Trial"))
    }

    /// Returns the names of its parameters.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// Why there is no operation.
pub(super) enum Found {
    Nothing,
    /// There are some for these methods.
    OtherMethods(String),
}

/// Finds the operation of a method and a path, and the values of its parameters.
pub(super) fn find(method: &Method, path: &str) -> Result<(&'static Route, Vec<String>), Found> {
    let mut others = Vec::new();
    for route in ROUTES {
        let Some(values) = matched(route.path, path) else { continue };
        if route.method == *method {
            return Ok((route, values));
        }
        others.push(route.method.as_str());
    }
    if others.is_empty() { Err(Found::Nothing) } else { Err(Found::OtherMethods(others.join(", "))) }
}

fn matched(template: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    let mut values = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(values),
            (Some(part), Some(text)) if part.starts_with('{') => values.push(decoded(text)?),
            (Some(part), Some(text)) if part == text => {}
            _ => return None,
        }
    }
}

/// Undoes percent encoding; nothing that is empty, odd or longer than names are.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.is_empty() && text.len() <= 256 && !text.chars().any(char::is_control)).then_some(text)
}

macro_rules! route {
    ($id:literal, $method:ident $path:literal, [$($scope:ident . $access:ident),+], $summary:literal,
     $(query $query:expr,)? $(body $body:literal,)? answer $answer:literal, $run:path) => {
        Route {
            id: $id,
            method: Method::$method,
            path: $path,
            rights: &[$(Scope::$scope.$access()),+],
            summary: $summary,
            query: route!(@list $($query)?),
            body: route!(@some $($body)?),
            answer: $answer,
            run: |call| Box::pin($run(call)),
        }
    };
    (@list) => { &[] };
    (@list $query:expr) => { $query };
    (@some) => { None };
    (@some $body:literal) => { Some($body) };
}

/// `fields` of devices.
const FIELDS: (&str, &str) = ("fields", "`all`, or `default` for the fields that most need");

/// All operations.
pub(super) const ROUTES: &[Route] = &[
    route!("listDevices", GET "/tailnet/{tailnet}/devices", [DevicesCore.read], "List the devices of a tailnet.",
        query &[FIELDS, ("hostname", "Only devices of that name; other fields filter in the same way")],
        answer "Devices", devices::list),
    route!("getDevice", GET "/device/{deviceId}", [DevicesCore.read], "Get a device.",
        query &[FIELDS], answer "Device", devices::get),
    route!("deleteDevice", DELETE "/device/{deviceId}", [DevicesCore.write], "Remove a device.",
        answer "Done", devices::delete),
    route!("expireDevice", POST "/device/{deviceId}/expire", [DevicesCore.write],
        "End the time of a device's key: its user must log in again.", answer "Done", devices::expire),
    route!("getDeviceRoutes", GET "/device/{deviceId}/routes", [DevicesRoutes.read], "Get the routes of a device.",
        answer "DeviceRoutes", devices::routes),
    route!("setDeviceRoutes", POST "/device/{deviceId}/routes", [DevicesRoutes.write],
        "Set which routes a device may carry.", body "NewRoutes", answer "DeviceRoutes", devices::set_routes),
    route!("authorizeDevice", POST "/device/{deviceId}/authorized", [DevicesCore.write],
        "Let a device take part, or no more.", body "Authorized", answer "Done", devices::authorize),
    route!("setDeviceName", POST "/device/{deviceId}/name", [DevicesCore.write],
        "Name a device; an empty name is that of its host.", body "Name", answer "Done", devices::rename),
    route!("setDeviceTags", POST "/device/{deviceId}/tags", [DevicesCore.write],
        "Give a device tags instead of an owner.", body "Tags", answer "Done", devices::tag),
    route!("setDeviceKey", POST "/device/{deviceId}/key", [DevicesCore.write],
        "Say whether a device's key ends.", body "KeyExpiry", answer "Done", devices::key),
    route!("setDeviceIp", POST "/device/{deviceId}/ip", [DevicesCore.write],
        "Give a device another IPv4 address.", body "Address", answer "Done", devices::address),
    route!("getDeviceAttributes", GET "/device/{deviceId}/attributes", [DevicesAttributes.read],
        "Get the attributes of a device.", answer "Attributes", devices::attributes),
    route!("setDeviceAttribute", POST "/device/{deviceId}/attributes/{attributeKey}", [DevicesAttributes.write],
        "Give a device an attribute.", body "Attribute", answer "Attributes", devices::set_attribute),
    route!("deleteDeviceAttribute", DELETE "/device/{deviceId}/attributes/{attributeKey}", [DevicesAttributes.write],
        "Take an attribute away.", answer "Done", devices::delete_attribute),
    route!("patchDeviceAttributes", PATCH "/tailnet/{tailnet}/device-attributes", [DevicesAttributes.write],
        "Change attributes of several devices, all or none.", body "AttributePatch", answer "Done",
        devices::patch_attributes),
    route!("listMachines", GET "/tailnet/{tailnet}/machines", [DevicesCore.read], "List enrolled machines.",
        answer "Machines", machines::all),
    route!("enrolMachines", POST "/tailnet/{tailnet}/machines", [DevicesCore.write],
        "Enrol machines; with the setting `devicesEnrolledOnlyOn` they alone take part.", body "NewMachines",
        answer "Machines", machines::enrol),
    route!("endEnrolment", DELETE "/tailnet/{tailnet}/machines/{machineKey}", [DevicesCore.write],
        "End the enrolment of a machine.", answer "Done", machines::end),
    route!("listKeys", GET "/tailnet/{tailnet}/keys", [AuthKeys.read, OauthKeys.read, ApiTokens.read], "List keys.",
        query &[("all", "`true` for those of others, too")], answer "Keys", keys::list),
    route!("createKey", POST "/tailnet/{tailnet}/keys", [AuthKeys.write, OauthKeys.write, ApiTokens.write],
        "Make an auth key, an API key or an OAuth client.", body "NewKey", answer "Key", keys::create),
    route!("getKey", GET "/tailnet/{tailnet}/keys/{keyId}", [AuthKeys.read, OauthKeys.read, ApiTokens.read],
        "Get a key, without its secret.", answer "Key", keys::get),
    route!("setKey", PUT "/tailnet/{tailnet}/keys/{keyId}", [OauthKeys.write], "Change an OAuth client.",
        body "NewKey", answer "Key", keys::set),
    route!("deleteKey", DELETE "/tailnet/{tailnet}/keys/{keyId}", [AuthKeys.write, OauthKeys.write, ApiTokens.write],
        "Take a key back.", answer "Done", keys::delete),
    route!("listUsers", GET "/tailnet/{tailnet}/users", [Users.read], "List users.",
        query &[("type", "`member` or `all`"), ("role", "Only users of that role")], answer "Users", users::list),
    route!("getUser", GET "/users/{userId}", [Users.read], "Get a user.", answer "User", users::get),
    route!("setUserRole", POST "/users/{userId}/role", [Users.write], "Give a user another role.",
        body "Role", answer "Done", users::role),
    route!("approveUser", POST "/users/{userId}/approve", [Users.write],
        "Approve a user; nobody waits for that here.", answer "Done", users::approve),
    route!("suspendUser", POST "/users/{userId}/suspend", [Users.write],
        "Lock a user out, with all devices.", answer "Done", users::suspend),
    route!("restoreUser", POST "/users/{userId}/restore", [Users.write],
        "Let a suspended user be what they were.", answer "Done", users::restore),
    route!("deleteUser", POST "/users/{userId}/delete", [Users.write],
        "Remove a user, with all devices and keys.", answer "Done", users::delete),
    route!("getPolicyFile", GET "/tailnet/{tailnet}/acl", [PolicyFile.read],
        "Get the policy: JSON if asked for, otherwise as it was written.",
        query &[("details", "`true` for an object with warnings")], answer "Policy", policy::get),
    route!("setPolicyFile", POST "/tailnet/{tailnet}/acl", [PolicyFile.write],
        "Put a policy in force, if `If-Match` is its tag or absent.", body "Policy", answer "Policy", policy::set),
    route!("validatePolicyFile", POST "/tailnet/{tailnet}/acl/validate", [PolicyFile.read],
        "Try a policy, or a list of tests on the one in force.", body "Trial", answer "Verdict", policy::validate),
    route!("previewPolicyFile", POST "/tailnet/{tailnet}/acl/preview", [PolicyFile.read],
        "List the rules of a policy that concern a user or a destination.",
        query &[("type", "`user` or `ipport`"), ("previewFor", "A login name, or an address with a port")],
        body "Policy", answer "Preview", policy::preview),
    route!("getDnsNameservers", GET "/tailnet/{tailnet}/dns/nameservers", [Dns.read], "Get the resolvers.",
        answer "Nameservers", dns::nameservers),
    route!("setDnsNameservers", POST "/tailnet/{tailnet}/dns/nameservers", [Dns.write],
        "Set the resolvers. To take the last one away turns MagicDNS off.", body "Nameservers", answer "Nameservers",
        dns::set_nameservers),
    route!("getDnsPreferences", GET "/tailnet/{tailnet}/dns/preferences", [Dns.read], "Tell whether MagicDNS is on.",
        answer "DnsPreferences", dns::preferences),
    route!("setDnsPreferences", POST "/tailnet/{tailnet}/dns/preferences", [Dns.write], "Turn MagicDNS on or off.",
        body "DnsPreferences", answer "DnsPreferences", dns::set_preferences),
    route!("getDnsSearchPaths", GET "/tailnet/{tailnet}/dns/searchpaths", [Dns.read], "Get the search domains.",
        answer "SearchPaths", dns::search_paths),
    route!("setDnsSearchPaths", POST "/tailnet/{tailnet}/dns/searchpaths", [Dns.write], "Set the search domains.",
        body "SearchPaths", answer "SearchPaths", dns::set_search_paths),
    route!("getSplitDns", GET "/tailnet/{tailnet}/dns/split-dns", [Dns.read], "Get the resolvers of domains.",
        answer "SplitDns", dns::split),
    route!("patchSplitDns", PATCH "/tailnet/{tailnet}/dns/split-dns", [Dns.write],
        "Change the resolvers of some domains; null takes a domain away.", body "SplitDns", answer "SplitDns",
        dns::patch_split),
    route!("setSplitDns", PUT "/tailnet/{tailnet}/dns/split-dns", [Dns.write], "Set the resolvers of domains.",
        body "SplitDns", answer "SplitDns", dns::put_split),
    route!("getDnsConfiguration", GET "/tailnet/{tailnet}/dns/configuration", [Dns.read], "Get all about names.",
        answer "DnsConfiguration", dns::configuration),
    route!("setDnsConfiguration", POST "/tailnet/{tailnet}/dns/configuration", [Dns.write], "Set all about names.",
        body "DnsConfiguration", answer "DnsConfiguration", dns::set_configuration),
    route!("getSettings", GET "/tailnet/{tailnet}/settings", [FeatureSettings.read], "Get the settings of a tailnet.",
        answer "Settings", settings::get),
    route!("patchSettings", PATCH "/tailnet/{tailnet}/settings", [FeatureSettings.write],
        "Change settings of a tailnet; what is absent stays.", body "Settings", answer "Settings", settings::patch),
    route!("listConfigurationLogs", GET "/tailnet/{tailnet}/logging/configuration", [LogsConfiguration.read],
        "List what was changed, and by whom, the oldest first; 1,000 entries or 4 MiB at most. `next` is there if there are more.",
        query &[("start", "RFC 3339; the beginning if absent"), ("end", "RFC 3339; now if absent"),
            ("after", "`next` of the answer before, to go on there"), ("actor", "Only by this ID, or `~` and part of a name"),
            ("target", "Only on what has this in its ID"), ("event", "Only of this kind, such as `NODE.CREATE`")],
        answer "Logs", logs::configuration),
];
