//! Requests behind Noise.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::{Client, node_key};
use super::*;
use crate::Who;
use crate::admin::NewAuthKey;

/// Makes a reusable auth key of the tailnet "default".
async fn auth_key(rig: &Rig) -> String {
    let new = NewAuthKey { tailnet: "default".to_owned(), reusable: true, ..NewAuthKey::default() };
    rig.shared.control.admin(Who::server()).create_auth_key(new).await.unwrap().text.expose().to_owned()
}

#[tokio::test]
async fn a_machine_joins_and_follows_its_map() {
    let rig = Rig::new().await;
    let key = auth_key(&rig).await;
    let alpha = Client::connect(&rig, 1).await;
    let answer = alpha.register(1, &key).await;
    assert_eq!(answer["MachineAuthorized"], true, "{answer}");
    for field in ["User", "Login", "NodeKeyExpired", "AuthURL", "Error"] {
        assert!(answer.get(field).is_some(), "{field} is always written: {answer}");
    }
    let mut maps = alpha.poll(1).await;
    let first = maps.next().await.unwrap();
    assert_eq!(first["Node"]["Key"], node_key(1).to_string(), "{first}");
    assert!(first["DERPMap"]["Regions"]["900"].is_object(), "{first}");

    let beta = Client::connect(&rig, 2).await;
    beta.register(2, &key).await;
    let _beta_maps = beta.poll(2).await;
    loop {
        let next = maps.next().await.unwrap();
        if next.to_string().contains(&node_key(2).to_string()) {
            break;
        }
    }
}

#[tokio::test]
async fn a_lite_update_and_a_fetch_answer_at_once() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    client.register(1, &auth_key(&rig).await).await;
    let update = json!({"Version": 130, "NodeKey": node_key(1), "OmitPeers": true, "HostInfo": {"Hostname": "a"}});
    let (status, body) = client.post("/machine/map", &update).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
    let fetch = json!({"Version": 130, "NodeKey": node_key(1)});
    let (status, body) = client.ask(Method::POST, "/machine/map", fetch.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains(&node_key(1).to_string()), "{body}");
}

#[tokio::test]
async fn a_stolen_node_key_is_of_no_use_on_another_machine() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    client.register(1, &auth_key(&rig).await).await;
    let thief = Client::connect(&rig, 2).await;
    for request in [
        json!({"Version": 130, "NodeKey": node_key(1), "Stream": true}),
        json!({"Version": 130, "NodeKey": node_key(1), "OmitPeers": true}),
        json!({"Version": 130, "NodeKey": node_key(1)}),
    ] {
        let (status, body) = thief.post("/machine/map", &request).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{request}");
        assert!(!body.is_empty());
    }
}

#[tokio::test]
async fn a_wrong_auth_key_is_refused_in_words() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    let answer = client.register(1, "wkey-000000000000-0").await;
    assert!(!answer["Error"].as_str().unwrap().is_empty(), "{answer}");
    assert_eq!(answer["MachineAuthorized"], false);
}

#[tokio::test]
async fn too_old_a_client_is_told_so() {
    let rig = Rig::new().await;
    let client = Client::with_version(&rig, 1, 112).await;
    let answer = client.register(1, "whatever").await;
    assert!(answer["Error"].as_str().unwrap().contains("unsupported client version"), "{answer}");
    let (status, body) = client.post("/machine/map", &json!({"Version": 112, "NodeKey": node_key(1)})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("unsupported client version"), "{body}");

    let client = Client::with_version(&rig, 1, 113).await;
    assert_eq!(client.ask(Method::GET, "/machine/whoami", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_login_waits_for_its_approval() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    let request = json!({"Version": 130, "NodeKey": node_key(1), "Hostinfo": {"Hostname": "<laptop>", "OS": "linux"}});
    let (_, body) = client.post("/machine/register", &request).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    let url = answer["AuthURL"].as_str().unwrap();
    let id = url.strip_prefix("http://control.test:8080/login/").unwrap();

    let page = rig.get(&format!("/login/{id}")).await;
    assert_eq!(status(&page), 200);
    assert!(page.contains("&lt;laptop&gt;") && page.contains(&format!("warren admin login approve {id}")), "{page}");

    let mut followup = request.clone();
    followup["Followup"] = url.into();
    let wait = async { client.post("/machine/register", &followup).await };
    let admin = rig.shared.control.admin(Who::server());
    let approve = async { admin.approve_login(id, "default", "owner@default").await.unwrap() };
    let ((_, body), node) = tokio::join!(wait, approve);
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&answer["MachineAuthorized"], &answer["AuthURL"]), (&true.into(), &"".into()), "{answer}");
    assert_eq!(node.node_key, node_key(1));
}

#[tokio::test]
async fn every_other_call_gets_a_polite_answer() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    let node = json!({"NodeKey": node_key(1)}).to_string();
    let cases = [
        (Method::POST, "/machine/set-dns", 501),
        (Method::PATCH, "/machine/set-device-attr", 501),
        (Method::POST, "/machine/update-health", 204),
        (Method::POST, "/machine/audit-log", 200),
        (Method::POST, "/machine/id-token", 501),
        (Method::POST, "/machine/feature/query", 200),
        (Method::POST, "/machine/webclient/init/1/to/2", 501),
        (Method::POST, "/machine/webclient/wait/1/to/2/3", 501),
        (Method::GET, "/machine/tka/bootstrap", 501),
        (Method::GET, "/machine/tka/sync/offer", 501),
        (Method::POST, "/machine/tka/sign", 501),
        (Method::GET, "/machine/whoami", 200),
        (Method::GET, "/machine/ssh/action/1/to/2?local_user=root", 200),
        (Method::HEAD, "/machine/ping-response/x", 404),
        (Method::GET, "/machine/map", 405),
        (Method::GET, "/machine/register", 405),
        (Method::PUT, "/machine/set-dns", 405),
        (Method::POST, "/machine", 404),
        (Method::GET, "/key?v=130", 404),
    ];
    for (method, path, wanted) in cases {
        let (status, body) = client.ask(method.clone(), path, node.clone()).await;
        assert_eq!(status.as_u16(), wanted, "{method} {path}: {body}");
        let silent = method == Method::HEAD || matches!(wanted, 204) || path == "/machine/audit-log";
        assert!(silent || !body.is_empty(), "{method} {path} says why");
    }
    let (_, body) = client.ask(Method::GET, "/machine/ssh/action/1/to/2", "").await;
    let action: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(action["reject"], true);
    let (_, body) = client.post("/machine/feature/query", &json!({"Feature": "funnel"})).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert!(answer.get("Complete").is_none() && answer.get("ShouldWait").is_none() && answer["Text"].is_string());
}

#[tokio::test]
async fn a_request_that_is_no_json_is_the_clients_fault() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    for path in ["/machine/register", "/machine/map", "/machine/update-health", "/machine/audit-log"] {
        for body in ["", "{", "[]", r#"{"NodeKey":"nodekey:00"}"#, "\u{0}"] {
            let (status, text) = client.ask(Method::POST, path, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body:?}: {text}");
        }
    }
}

#[tokio::test]
async fn the_end_of_the_server_ends_the_streams() {
    let rig = Rig::new().await;
    let mut client = Client::connect(&rig, 1).await;
    client.register(1, &auth_key(&rig).await).await;
    let mut maps = client.poll(1).await;
    maps.next().await.unwrap();
    rig.shared.stop.cancel();
    while maps.next().await.is_some() {}
    client.server.take().unwrap().await.unwrap();
    drop(client);
    rig.shared.gate.drained().await;
    assert_eq!(rig.shared.gate.open(), 0);
}
