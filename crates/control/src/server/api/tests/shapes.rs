//! What the calls do, and the shapes that tools of the original rely on.

use serde_json::{Value, json};

use super::{Api, NETWORK};
use crate::testing::{FROM, machine, node_key, register, with_key};

#[tokio::test]
async fn devices_are_shown_filtered_and_changed() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    let (node, second) = (api.node(NETWORK).await, api.node(NETWORK).await);
    let list = api.get(&key, "/tailnet/-/devices").await;
    let device = &list["devices"][0];
    for field in ["id", "nodeId", "name", "hostname", "user", "machineKey", "nodeKey", "created", "expires", "lastSeen"]
    {
        let shown = device.get(field).is_some_and(Value::is_string);
        assert_eq!(shown, field != "lastSeen", "{field} of {device}");
    }
    assert!(device.get("clientConnectivity").is_none() && device.get("enabledRoutes").is_none(), "{device}");
    assert_eq!(device["name"], "host1.default.warren.internal");
    let all = api.get(&key, &format!("/device/{node}?fields=all")).await;
    assert_eq!(all["enabledRoutes"], json!([]));
    let by_id = api.get(&key, &format!("/device/{}", all["id"].as_str().unwrap())).await;
    assert_eq!(by_id["nodeId"], node.as_str());
    let some = api.get(&key, "/tailnet/default/devices?hostname=host2&isEphemeral=false").await;
    assert_eq!((some["devices"].as_array().unwrap().len(), &some["devices"][0]["nodeId"]), (1, &json!(second)));
    assert_eq!(api.call(&key, "GET", "/tailnet/-/devices?nonsense=1", None).await.0, 400);

    let path = |what: &str| format!("/device/{node}/{what}");
    api.post(&key, &path("name"), json!({ "name": "DB.default.warren.internal" })).await;
    api.post(&key, &path("tags"), json!({ "tags": ["tag:web"] })).await;
    api.post(&key, &path("ip"), json!({ "ipv4": "100.80.1.2" })).await;
    let routes = api.post(&key, &path("routes"), json!({ "routes": ["10.0.0.0/8"] })).await;
    assert_eq!(routes, json!({ "advertisedRoutes": [], "enabledRoutes": ["10.0.0.0/8"] }));
    api.post(&key, &path("authorized"), json!({ "authorized": false })).await;
    let after = api.get(&key, &format!("/device/{node}")).await;
    assert_eq!((&after["name"], &after["tags"]), (&json!("db.default.warren.internal"), &json!(["tag:web"])));
    assert_eq!((&after["addresses"][0], &after["authorized"]), (&json!("100.80.1.2"), &json!(false)));
    assert_eq!(after["user"], "tagged-devices");
    for (what, body, code) in [
        ("name", json!({ "name": "no name" }), 400),
        ("name", json!({ "name": "host2" }), 409),
        ("tags", json!({ "tags": ["tag:unknown"] }), 403),
        ("tags", json!({ "tags": [] }), 400),
        ("ip", json!({ "ipv4": "10.0.0.1" }), 400),
        ("ip", json!({ "ipv4": "100.100.100.100" }), 400),
        ("routes", json!({ "routes": ["10/8"] }), 400),
    ] {
        assert_eq!(api.call(&key, "POST", &path(what), Some(&body)).await.0, code, "{what} {body}");
    }
    api.post(&key, &format!("/device/{second}/expire"), json!({})).await;
    assert!(api.admin().node(None, &second).unwrap().expired);
    assert_eq!(api.call(&key, "DELETE", &format!("/device/{second}"), None).await.0, 200);
    assert_eq!(api.call(&key, "GET", &format!("/device/{second}"), None).await.0, 404);
}

#[tokio::test]
async fn a_device_that_is_called_like_the_id_of_another_is_not_taken_for_it() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    let (first, second) = (api.node(NETWORK).await, api.node(NETWORK).await);
    api.post(&key, &format!("/device/{second}/name"), json!({ "name": first })).await;
    assert_eq!(api.get(&key, &format!("/device/{first}")).await["nodeId"], first.as_str());
    assert_eq!(api.call(&key, "DELETE", &format!("/device/{first}"), None).await.0, 200);
    assert_eq!(api.get(&key, &format!("/device/{second}")).await["nodeId"], second.as_str());
    assert_eq!(api.call(&key, "GET", "/device/host2", None).await.0, 404, "names are no IDs");
}

#[tokio::test]
async fn key_expiry_is_turned_off_and_on() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    let node = api.node(NETWORK).await;
    let path = format!("/device/{node}/key");
    api.post(&key, &path, json!({ "keyExpiryDisabled": true })).await;
    let off = api.get(&key, &format!("/device/{node}")).await;
    assert_eq!((&off["keyExpiryDisabled"], &off["expires"]), (&json!(true), &json!("0001-01-01T00:00:00Z")));
    api.post(&key, &path, json!({ "keyExpiryDisabled": false })).await;
    let on = api.get(&key, &format!("/device/{node}")).await;
    assert_eq!(on["keyExpiryDisabled"], false);
    assert!(on["expires"].as_str().unwrap() > "2026", "{on}");
}

#[tokio::test]
async fn attributes_are_set_one_by_one_and_many_at_once_or_not_at_all() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    let (one, two) = (api.node(NETWORK).await, api.node(NETWORK).await);
    let path = format!("/device/{one}/attributes");
    let set = api.post(&key, &format!("{path}/custom:tier"), json!({ "value": "gold", "comment": "x" })).await;
    assert_eq!(set["attributes"]["custom:tier"], "gold");
    assert_eq!(api.call(&key, "POST", &format!("{path}/node:os"), Some(&json!({ "value": "x" }))).await.0, 400);
    let expiring = json!({ "value": "x", "expiry": "2030-01-01T00:00:00Z" });
    assert_eq!(api.call(&key, "POST", &format!("{path}/custom:b"), Some(&expiring)).await.0, 501);
    let patch = |nodes: Value| json!({ "nodes": nodes });
    let good = patch(
        json!({ &one: { "custom:tier": null, "custom:n": { "value": 3 } }, &two: { "custom:n": { "value": 4 } } }),
    );
    let patched = api.call(&key, "PATCH", "/tailnet/-/device-attributes", Some(&good)).await;
    assert_eq!(patched.0, 200, "{}", patched.1);
    assert!(api.get(&key, &path).await["attributes"].get("custom:tier").is_none());
    let half = patch(json!({ &one: { "custom:n": { "value": 9 } }, &two: { "custom:n": { "value": "text" } } }));
    assert_eq!(api.call(&key, "PATCH", "/tailnet/-/device-attributes", Some(&half)).await.0, 400);
    assert_eq!(api.get(&key, &path).await["attributes"]["custom:n"].as_f64(), Some(3.0), "all or none");
}

#[tokio::test]
async fn auth_keys_of_the_api_let_nodes_in() {
    let api = Api::new().await;
    let key = api.owner().await;
    let new = json!({
        "description": "dev access", "expirySeconds": 3600,
        "capabilities": { "devices": { "create": { "reusable": false, "ephemeral": true, "tags": ["tag:web"] } } },
    });
    let made = api.post(&key, "/tailnet/-/keys", new).await;
    let (id, text) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert_eq!((&made["expirySeconds"], &made["keyType"]), (&json!(3600), &json!("auth")));
    let control = &api.rig.shared.control;
    assert_eq!(control.register(machine(9), with_key(register(9), text), FROM).await.error, "");
    assert!(control.registered(&node_key(9)).is_some());
    let shown = api.get(&key, &format!("/tailnet/-/keys/{id}")).await;
    assert!(shown.get("key").is_none() && shown["invalid"] == true, "spent: {shown}");
    assert_eq!(api.get(&key, "/tailnet/-/keys").await["keys"].as_array().unwrap().len(), 1, "the API key alone works");
    for wrong in [
        json!({}),
        json!({ "keyType": "nonsense" }),
        json!({ "expirySeconds": 7_776_001, "capabilities": {} }),
        json!({ "description": "<b>", "capabilities": {} }),
    ] {
        assert_eq!(api.call(&key, "POST", "/tailnet/-/keys", Some(&wrong)).await.0, 400, "{wrong}");
    }
    assert_eq!(api.call(&key, "POST", "/tailnet/-/keys", Some(&json!({ "keyType": "federated" }))).await.0, 501);
}

#[tokio::test]
async fn users_are_shown_and_changed() {
    let api = Api::new().await;
    let key = api.owner().await;
    let id = api.user(NETWORK, "ann@example.com", "member").await;
    let user = api.get(&key, &format!("/users/{id}")).await;
    assert_eq!(
        (&user["loginName"], &user["status"], &user["id"]),
        (&json!("ann@example.com"), &json!("idle"), &json!(id.to_string()))
    );
    api.post(&key, &format!("/users/{id}/role"), json!({ "role": "auditor" })).await;
    let auditors = api.get(&key, "/tailnet/-/users?role=auditor").await;
    assert_eq!(auditors["users"].as_array().unwrap().len(), 1);
    api.post(&key, &format!("/users/{id}/suspend"), json!({})).await;
    assert_eq!(api.get(&key, &format!("/users/{id}")).await["status"], "suspended");
    api.post(&key, &format!("/users/{id}/restore"), json!({})).await;
    api.post(&key, &format!("/users/{id}/approve"), json!({})).await;
    api.post(&key, &format!("/users/{id}/delete"), json!({})).await;
    assert_eq!(api.call(&key, "GET", &format!("/users/{id}"), None).await.0, 404);
    let owner = api.admin().users(Some(NETWORK)).unwrap()[0].id;
    for what in ["suspend", "delete"] {
        let (code, _) = api.call(&key, "POST", &format!("/users/{owner}/{what}"), None).await;
        assert!(code == 403 || code == 409, "oneself: {what} {code}");
    }
}

/// Returns the tag of an answer.
fn etag(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("etag: "));
    line.unwrap_or_else(|| panic!("no tag: {answer}")).trim().to_owned()
}

#[tokio::test]
async fn of_two_who_edit_the_policy_one_wins() {
    let api = Api::new().await;
    let key = api.owner().await;
    let head =
        |more: &str, text: &str| format!("Authorization: Bearer {key}\r\n{more}Content-Length: {}\r\n", text.len());
    let path = "/tailnet/-/acl";
    let text = "// mine\n{\"acls\": [],}";
    let set = api.answer("POST", path, &head("", text), text).await;
    let tag = etag(&set);
    assert!(tag.starts_with('"') && tag.len() == 66, "{tag}");
    let hujson = api.answer("GET", path, &head("", ""), "").await;
    assert!(hujson.ends_with(text) && hujson.contains("application/hujson") && etag(&hujson) == tag, "{hujson}");
    let json = api.answer("GET", path, &head("Accept: application/json\r\n", ""), "").await;
    assert!(json.ends_with("\r\n\r\n{\"acls\":[]}") && etag(&json) == tag, "{json}");
    let details = api.get(&key, "/tailnet/-/acl?details=true").await;
    assert!(details["acl"].is_string() && details["errors"] == json!([]));
    let other = "{\"acls\": [], \"groups\": {}}";
    let matching = format!("If-Match: {tag}\r\n");
    assert_eq!(api.raw("POST", path, &head(&matching, other), other).await.0, 200);
    let (code, late) = api.raw("POST", path, &head(&matching, text), text).await;
    assert_eq!((code, &late["message"]), (412, &json!("precondition failed, invalid old hash")));
    assert_eq!(api.raw("POST", path, &head("If-Match: \"ts-default\"\r\n", text), text).await.0, 412);
    let (code, wrong) = api.raw("POST", path, &head("", "{\"nonsense\": 1}"), "{\"nonsense\": 1}").await;
    assert_eq!(code, 400);
    assert!(wrong["message"].as_str().unwrap().contains("nonsense"), "{wrong}");
}

#[tokio::test]
async fn policies_and_tests_are_tried_without_harm() {
    let api = Api::new().await;
    let key = api.owner().await;
    let path = "/tailnet/-/acl/validate";
    let test = |accept: &str| json!([{ "src": "owner@default", "accept": [accept] }]);
    assert_eq!(api.post(&key, path, test("100.64.0.9:22")).await, json!({}));
    let closed = json!({ "acls": [], "tests": test("100.64.0.9:22") });
    let failed = api.post(&key, path, closed.clone()).await;
    assert_eq!(failed["message"], "test(s) failed");
    assert_eq!(failed["data"][0]["user"], "owner@default");
    assert!(failed["data"][0]["errors"][0].is_string());
    let (code, refused) = api.call(&key, "POST", "/tailnet/-/acl", Some(&closed)).await;
    assert_eq!((code, &refused["message"]), (400, &failed["message"]));
    assert_eq!(refused["data"], failed["data"]);
    assert!(api.post(&key, path, json!({ "nonsense": 1 })).await["message"].is_string());
    assert!(api.post(&key, path, json!([7])).await["message"].is_string());
}

#[tokio::test]
async fn a_policy_is_previewed_by_person_and_by_destination() {
    let api = Api::new().await;
    let key = api.owner().await;
    let policy = json!({ "acls": [{ "action": "accept", "src": ["owner@default"], "dst": ["10.0.0.0/8:22"] }] });
    let preview =
        async |query: &str| api.call(&key, "POST", &format!("/tailnet/-/acl/preview?{query}"), Some(&policy)).await;
    let rule = json!({ "users": ["owner@default"], "ports": ["10.0.0.0/8:22"], "lineNumber": 1 });
    let (code, answer) = preview("type=user&previewFor=owner@default").await;
    assert_eq!((code, &answer["matches"], &answer["type"]), (200, &json!([rule]), &json!("user")));
    assert_eq!(preview("type=ipport&previewFor=10.1.2.3:22").await.1["matches"], json!([rule]));
    assert_eq!(preview("type=ipport&previewFor=10.1.2.3:23").await.1["matches"], json!([]));
    for wrong in ["", "type=user2&previewFor=x", "type=ipport&previewFor=10.1.2.3"] {
        assert_eq!(preview(wrong).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn names_are_told_to_nodes() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    api.node(NETWORK).await;
    let dns = || {
        let bytes = api.rig.shared.control.map_once(machine(1), &crate::testing::map(1)).unwrap();
        let map: Value = serde_json::from_slice(&bytes[4..]).unwrap();
        map["DNSConfig"].clone()
    };
    let path = |what: &str| format!("/tailnet/-/dns/{what}");
    assert_eq!(api.get(&key, &path("preferences")).await, json!({ "magicDNS": true }));
    let set = api.post(&key, &path("nameservers"), json!({ "dns": ["1.1.1.1", "https://dns.example.com/q"] })).await;
    assert_eq!(set, json!({ "dns": ["1.1.1.1", "https://dns.example.com/q"], "magicDNS": true }));
    assert_eq!(dns()["FallbackResolvers"][0]["Addr"], "1.1.1.1");
    api.post(&key, &path("searchpaths"), json!({ "searchPaths": ["Corp.example."] })).await;
    assert_eq!(dns()["Domains"], json!(["default.warren.internal", "corp.example"]));
    let (code, split) = api
        .call(&key, "PUT", &path("split-dns"), Some(&json!({ "a.example": ["10.0.0.1"], "b.example": ["10.0.0.2"] })))
        .await;
    assert_eq!((code, split["a.example"].clone()), (200, json!(["10.0.0.1"])));
    let (_, split) = api
        .call(&key, "PATCH", &path("split-dns"), Some(&json!({ "A.example": null, "c.example": ["10.0.0.3"] })))
        .await;
    assert_eq!(split, json!({ "b.example": ["10.0.0.2"], "c.example": ["10.0.0.3"] }));
    assert_eq!(dns()["Routes"]["b.example"][0]["Addr"], "10.0.0.2");
    assert_eq!(dns()["Routes"]["default.warren.internal"], json!([]));
    let whole = json!({
        "nameservers": [{ "address": "9.9.9.9", "useWithExitNode": true }],
        "preferences": { "overrideLocalDNS": true, "magicDNS": true },
    });
    let after = api.post(&key, &path("configuration"), whole).await;
    assert_eq!((&after["splitDNS"], &after["searchPaths"]), (&json!({}), &json!([])));
    assert_eq!(dns()["Resolvers"], json!([{ "Addr": "9.9.9.9", "UseWithExitNode": true }]));
    assert_eq!(api.post(&key, &path("nameservers"), json!({ "dns": [] })).await["magicDNS"], false);
    assert!(dns().get("Proxied").is_none(), "{}", dns());
    for wrong in [json!({ "dns": ["nonsense"] }), json!({ "dns": "1.1.1.1" })] {
        assert_eq!(api.call(&key, "POST", &path("nameservers"), Some(&wrong)).await.0, 400);
    }
}

#[tokio::test]
async fn settings_that_are_not_there_are_not_taken_for_done() {
    let api = Api::new().await;
    let key = api.owner().await;
    let patch = async |value: Value| api.call(&key, "PATCH", "/tailnet/-/settings", Some(&value)).await;
    let (code, after) = patch(json!({ "devicesApprovalOn": true, "devicesKeyDurationDays": 30, "httpsEnabled": false, "regionalRoutingOn": null })).await;
    assert_eq!((code, &after["devicesApprovalOn"], &after["devicesKeyDurationDays"]), (200, &json!(true), &json!(30)));
    assert!(api.admin().tailnets()[0].machine_approval);
    let (code, answer) = patch(json!({ "regionalRoutingOn": true })).await;
    assert_eq!(code, 501, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("regionalRoutingOn"));
    let (code, after) = patch(json!({ "networkFlowLoggingOn": true })).await;
    assert_eq!((code, &after["networkFlowLoggingOn"]), (200, &json!(true)));
    assert!(api.admin().tailnets()[0].flow_log);
    assert_eq!(patch(json!({ "devicesKeyDurationDays": 181 })).await.0, 400);
    assert_eq!(api.get(&key, "/tailnet/-/settings").await["devicesKeyDurationDays"], 30);
}

#[tokio::test]
async fn machines_are_enrolled_and_alone_take_part_where_that_is_set() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    let node = api.node(NETWORK).await;
    let authorized = async || api.get(&key, &format!("/device/{node}")).await["authorized"].clone();
    let only = json!({ "devicesEnrolledOnlyOn": true });
    let (code, settings) = api.call(&key, "PATCH", "/tailnet/-/settings", Some(&only)).await;
    assert_eq!((code, &settings["devicesEnrolledOnlyOn"], authorized().await), (200, &json!(true), json!(false)));
    api.post(&key, &format!("/device/{node}/authorized"), json!({ "authorized": true })).await;
    assert_eq!(authorized().await, false, "an approval is no enrolment");
    let path = "/tailnet/-/machines";
    let new = json!({ "machineKeys": [machine(1)], "description": "laptop" });
    let made = api.post(&key, path, new).await;
    assert_eq!(made["machines"][0]["devices"], json!(["host1.default.warren.internal"]));
    assert_eq!((api.get(&key, path).await, authorized().await), (made, json!(true)));
    let one = format!("{path}/{}", machine(1));
    assert_eq!(api.call(&key, "DELETE", &one, None).await.0, 200);
    assert_eq!((api.call(&key, "DELETE", &one, None).await.0, authorized().await), (404, json!(false)));
    assert_eq!(api.call(&key, "DELETE", &format!("{path}/mkey:7"), None).await.0, 404);
    for wrong in [json!({}), json!({ "machineKeys": ["mkey:7"] }), json!({ "machineKeys": [], "description": "<b>" })] {
        assert_eq!(api.call(&key, "POST", path, Some(&wrong)).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_log_of_changes_is_shown_in_the_words_of_the_original() {
    let mut api = Api::new().await;
    let key = api.owner().await;
    let node = api.node(NETWORK).await;
    api.post(&key, &format!("/device/{node}/tags"), json!({ "tags": ["tag:web"] })).await;
    let logs = api.get(&key, "/tailnet/-/logging/configuration?start=2020-01-01T00:00:00Z").await;
    let last = logs["logs"].as_array().unwrap().last().unwrap();
    assert_eq!(
        last["target"],
        json!({ "id": node.trim_start_matches('n'), "name": node.trim_start_matches('n'), "type": "NODE", "property": "ACL_TAGS" })
    );
    assert_eq!((&last["origin"], &last["action"]), (&json!("CONFIG_API"), &json!("UPDATE")));
    assert_eq!(last["new"]["tags"], json!(["tag:web"]));
    let of = async |filter: &str| {
        let path = format!("/tailnet/-/logging/configuration?{filter}");
        api.get(&key, &path).await["logs"].as_array().unwrap().len()
    };
    assert_eq!((of("event=NODE.UPDATE.ACL_TAGS").await, of("event=NODE.UPDATE.ACL_TAGS&actor=~owner").await), (1, 1));
    assert_eq!((of("event=NODE.UPDATE.ACL_TAGS&actor=~ann").await, of("event=NODE.UPDATE").await), (0, 0));
    assert_eq!(of("event=NODE.CREATE&event=NODE.UPDATE.ACL_TAGS&target=1").await, 2);
    let none = api.get(&key, "/tailnet/-/logging/configuration?end=2020-01-01T00:00:00Z").await;
    assert_eq!(none["logs"], json!([]));
    assert_eq!(api.call(&key, "GET", "/tailnet/-/logging/configuration?start=yesterday", None).await.0, 400);
}

#[tokio::test]
async fn the_document_names_every_operation_and_only_shapes_that_are_there() {
    let api = Api::new().await;
    let (_, document) = api.raw("GET", "/openapi.json", "", "").await;
    for route in crate::server::api::table::ROUTES {
        let operation = &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
        assert_eq!(operation["operationId"], route.id);
    }
    let shapes = &document["components"]["schemas"];
    let text = document.to_string();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(shapes.get(name).is_some(), "{name} is nowhere");
    }
}
