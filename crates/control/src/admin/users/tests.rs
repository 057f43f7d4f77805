//! Users who are locked out or removed take nothing with them but what is theirs, and leave nothing that works.

use std::time::Duration;

use super::*;
use crate::admin::{Admin, NewApiKey, NewAuthKey, NewOauthClient};
use crate::testing::{World, register, with_key};

const NETWORK: &str = "default";

/// A network in which all of a user's own nodes see each other, and Ann's see Ben's.
async fn world() -> World {
    let world = World::new().await;
    for login in ["ann@example.com", "ben@example.com"] {
        world.admin().create_user(NETWORK, login, None).await.unwrap();
    }
    world
        .admin()
        .set_policy(NETWORK, "{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]}]}")
        .await
        .unwrap();
    world
}

fn of(login: &str) -> NewAuthKey {
    NewAuthKey { user: Some(login.to_owned()), reusable: true, ..NewAuthKey::default() }
}

async fn api_key(admin: &Admin, login: &str) -> String {
    let new = NewApiKey {
        user: Some(login.to_owned()),
        scopes: Vec::new(),
        description: String::new(),
        lifetime: Duration::from_secs(3600),
    };
    admin.create_api_key(NETWORK, new).await.unwrap().text.expose().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_suspended_user_is_cut_off_at_once_and_comes_back_as_before() {
    let world = world().await;
    let (admin, from) = (world.admin(), crate::testing::FROM);
    world.join(1, of("ann@example.com")).await;
    world.join(2, of("ben@example.com")).await;
    let key = world.auth_key(of("ben@example.com")).await;
    admin.set_user_role(NETWORK, "ben@example.com", "admin").await.unwrap();
    let api_key = api_key(&admin, "ben@example.com").await;
    assert_eq!(world.whole_map(1).names(), ["host2"]);
    assert!(world.control.authenticate(&api_key, from).is_some());

    assert!(admin.suspend_user(NETWORK, "ben@example.com").await.unwrap().user.suspended);
    assert!(world.whole_map(1).names().is_empty(), "nobody sees the node");
    let own = world.whole_map(2);
    assert!(own.names().is_empty() && !own.own.unwrap().machine_authorized, "it sees nobody, and knows why");
    assert!(!world.control.relay_admits(&crate::testing::node_key(2)));
    assert!(world.control.authenticate(&api_key, from).is_none(), "the API key is nothing");
    let refused = world.register(3, with_key(register(3), &key)).await;
    assert!(refused.error.contains("suspended"), "{}", refused.error);

    drop(admin);
    let world = world.restart(Duration::from_secs(60)).await;
    assert!(world.whole_map(1).names().is_empty(), "it lasts");
    world.admin().restore_user(NETWORK, "ben@example.com").await.unwrap();
    assert_eq!(world.whole_map(1).names(), ["host2"]);
    assert!(world.control.authenticate(&api_key, from).is_some());
    assert_eq!(world.register(3, with_key(register(3), &key)).await.error, "");
}

#[tokio::test(start_paused = true)]
async fn streams_hear_of_a_suspension_within_a_second() {
    let world = world().await;
    world.join(1, of("ann@example.com")).await;
    world.join(2, of("ben@example.com")).await;
    let mut follower = world.poll(1).await;
    follower.settle().await;
    assert_eq!(follower.map.names(), ["host2"]);
    world.admin().suspend_user(NETWORK, "ben@example.com").await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    follower.settle().await;
    assert!(follower.map.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removed_user_takes_nodes_and_keys_along() {
    let world = world().await;
    let (admin, from) = (world.admin(), crate::testing::FROM);
    world.join(1, of("ann@example.com")).await;
    let auth_key = world.auth_key(of("ann@example.com")).await;
    let api_key = api_key(&admin, "ann@example.com").await;
    let kept = admin.remove_user(NETWORK, "ann@example.com", Belongings::Keep).await;
    assert!(matches!(kept, Err(AdminError::Busy { nodes: 1, keys: 2, .. })), "{kept:?}");
    admin.remove_user(NETWORK, "ann@example.com", Belongings::Remove).await.unwrap();
    assert!(admin.nodes(None).unwrap().is_empty());
    assert!(admin.auth_keys(None).unwrap().iter().all(|key| !key.valid));
    assert!(world.register(2, with_key(register(2), &auth_key)).await.error.contains("revoked"));
    assert!(world.control.authenticate(&api_key, from).is_none());
    // Somebody of the same name is somebody else.
    admin.create_user(NETWORK, "ann@example.com", None).await.unwrap();
    assert!(world.control.authenticate(&api_key, from).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_last_owner_who_can_act_stays() {
    let world = world().await;
    let admin = world.admin();
    let last = |done: Result<UserView, AdminError>| matches!(done, Err(AdminError::LastOwner { .. }));
    assert!(last(admin.suspend_user(NETWORK, "owner@default").await.map(|left| left.user)));
    admin.set_user_role(NETWORK, "ann@example.com", "owner").await.unwrap();
    admin.suspend_user(NETWORK, "owner@default").await.unwrap();
    assert!(last(admin.set_user_role(NETWORK, "ann@example.com", "admin").await), "a suspended owner does not count");
    let removed = admin.remove_user(NETWORK, "ann@example.com", Belongings::Remove).await;
    assert!(matches!(removed, Err(AdminError::LastOwner { .. })));
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_anybody_who_may_more_than_they() {
    let world = world().await;
    let admin = world.admin();
    admin.set_user_role(NETWORK, "ann@example.com", "it-admin").await.unwrap();
    let key = api_key(&admin, "ann@example.com").await;
    let desk = world.control.authenticate(&key, crate::testing::FROM).unwrap();
    for role in ["owner", "admin", "network-admin"] {
        for user in ["ben@example.com", "ann@example.com"] {
            let done = desk.set_user_role(NETWORK, user, role).await;
            assert!(matches!(done, Err(AdminError::Denied { .. })), "{user} {role}: {done:?}");
        }
    }
    let own = desk.suspend_user(NETWORK, "owner@default").await;
    assert!(matches!(own, Err(AdminError::Denied { .. })), "an owner may more");
    desk.set_user_role(NETWORK, "ben@example.com", "auditor").await.unwrap();
    // What she was does not help her any more.
    admin.set_user_role(NETWORK, "ann@example.com", "auditor").await.unwrap();
    let late = desk.set_user_role(NETWORK, "ben@example.com", "member").await;
    assert!(matches!(late, Err(AdminError::Denied { .. })), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_role_that_ends_while_a_change_is_under_way_ends_the_change() {
    let world = world().await;
    let admin = world.admin();
    admin.set_user_role(NETWORK, "ann@example.com", "admin").await.unwrap();
    let key = api_key(&admin, "ann@example.com").await;
    let desk = world.control.authenticate(&key, crate::testing::FROM).unwrap();
    // Both are asked for at once, and the tailnet does one after the other.
    let (demoted, promoted) = tokio::join!(
        admin.set_user_role(NETWORK, "ann@example.com", "member"),
        desk.set_user_role(NETWORK, "ben@example.com", "admin"),
    );
    demoted.unwrap();
    assert!(matches!(promoted, Err(AdminError::Denied { .. })), "{promoted:?}");
    assert_eq!(admin.users(None).unwrap().iter().filter(|user| user.role == "admin").count(), 0);
}

async fn desk_of(world: &World, login: &str, role: &str) -> crate::admin::Desk {
    let admin = world.admin();
    admin.set_user_role(NETWORK, login, role).await.unwrap();
    let key = api_key(&admin, login).await;
    world.control.authenticate(&key, crate::testing::FROM).unwrap()
}

fn denied<T: std::fmt::Debug>(done: Result<T, AdminError>) -> bool {
    matches!(done, Err(AdminError::Denied { .. }))
}

const TAGS: &str = r#"{"tagOwners": {"tag:web": ["ann@example.com"], "tag:prod": []},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

fn client(scopes: &[&str]) -> NewOauthClient {
    let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
    NewOauthClient { scopes, tags: vec!["tag:web".to_owned()], description: String::new() }
}

#[tokio::test(start_paused = true)]
async fn keys_for_tagged_nodes_end_with_whoever_made_them_and_clients_are_named() {
    let world = world().await;
    let admin = world.admin();
    admin.set_policy(NETWORK, TAGS).await.unwrap();
    let ann = desk_of(&world, "ann@example.com", "admin").await;
    let new = NewAuthKey {
        tailnet: NETWORK.to_owned(),
        tags: vec!["tag:web".to_owned()],
        reusable: true,
        ..NewAuthKey::default()
    };
    let key = ann.create_auth_key(new.clone()).await.unwrap().text.expose().to_owned();
    let servers = world.auth_key(new).await;
    let made = ann.create_oauth_client(NETWORK, client(&["dns:read"])).await.unwrap().view.id;
    assert_eq!(world.register(1, with_key(register(1), &key)).await.error, "");

    assert_eq!(admin.suspend_user(NETWORK, "ann@example.com").await.unwrap().oauth_clients, [made.as_str()]);
    let refused = world.register(2, with_key(register(2), &key)).await.error;
    assert!(refused.contains("suspended"), "{refused}");
    assert_eq!(admin.auth_keys(None).unwrap().iter().filter(|key| key.valid).count(), 1, "the server's own");
    admin.restore_user(NETWORK, "ann@example.com").await.unwrap();
    assert_eq!(world.register(2, with_key(register(2), &key)).await.error, "");

    let kept = admin.remove_user(NETWORK, "ann@example.com", Belongings::Keep).await;
    assert!(matches!(kept, Err(AdminError::Busy { nodes: 0, keys: 1, .. })), "{kept:?}");
    let left = admin.remove_user(NETWORK, "ann@example.com", Belongings::Remove).await.unwrap();
    assert_eq!((left.oauth_clients, left.user.login.as_str()), (vec![made], "ann@example.com"));
    assert!(world.register(3, with_key(register(3), &key)).await.error.contains("revoked"));
    assert_eq!(world.register(4, with_key(register(4), &servers)).await.error, "");
    assert_eq!(admin.nodes(None).unwrap().len(), 3, "tagged nodes belong to the network");
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_back_the_keys_of_those_who_may_more() {
    let world = world().await;
    let admin = world.admin();
    admin.set_policy(NETWORK, TAGS).await.unwrap();
    let ann = desk_of(&world, "ann@example.com", "it-admin").await;
    let id = |text: &str| text.split('-').nth(2).unwrap().to_owned();
    let (owners, bens) = (api_key(&admin, "owner@default").await, api_key(&admin, "ben@example.com").await);
    let take = async |key: &str| ann.revoke_credential(&id(key), CredentialKind::ApiKey).await;
    assert!(denied(take(&owners).await) && take(&bens).await.is_ok(), "a member may less");
    assert!(world.control.authenticate(&owners, crate::testing::FROM).is_some());
    let auth_key = async |login: &str| {
        let new = NewAuthKey { tailnet: NETWORK.to_owned(), ..of(login) };
        admin.create_auth_key(new).await.unwrap().view.id
    };
    assert!(denied(ann.revoke_auth_key(&auth_key("owner@default").await).await));
    ann.revoke_auth_key(&auth_key("ben@example.com").await).await.unwrap();
    ann.revoke_auth_key(&auth_key("ann@example.com").await).await.unwrap();
    // Of a client it is what it may that counts.
    let strong = admin.create_oauth_client(NETWORK, client(&["all"])).await.unwrap().view.id;
    let new = NewApiKey {
        user: Some("owner@default".to_owned()),
        scopes: vec!["oauth_keys".to_owned(), "dns:read".to_owned()],
        description: String::new(),
        lifetime: Duration::from_secs(3600),
    };
    let narrow = admin.create_api_key(NETWORK, new).await.unwrap().text.expose().to_owned();
    let narrow = world.control.authenticate(&narrow, crate::testing::FROM).unwrap();
    assert!(denied(narrow.revoke_credential(&strong, CredentialKind::OauthClient).await));
    let weak = admin.create_oauth_client(NETWORK, client(&["dns:read"])).await.unwrap().view.id;
    narrow.revoke_credential(&weak, CredentialKind::OauthClient).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_gets_tags_only_from_whoever_may_take_it_from_its_owner_or_tags() {
    let world = world().await;
    let admin = world.admin();
    admin.set_policy(NETWORK, TAGS).await.unwrap();
    let ann = desk_of(&world, "ann@example.com", "it-admin").await;
    let tag = async |node: &str, tags: &[&str]| {
        let tags: Vec<_> = tags.iter().map(|&tag| tag.to_owned()).collect();
        ann.tag_node(Some(NETWORK), node, &tags).await
    };
    world.join(1, of("ben@example.com")).await;
    world.join(2, of("owner@default")).await;
    world.join(3, NewAuthKey { tags: vec!["tag:prod".to_owned()], ..NewAuthKey::default() }).await;
    admin.suspend_user(NETWORK, "ben@example.com").await.unwrap();
    assert!(denied(tag("host1", &["tag:web"]).await), "it would take part again");
    assert!(denied(admin.tag_node(None, "host1", &["tag:web".to_owned()]).await), "also on the server");
    assert!(admin.node(None, "host1").unwrap().suspended);
    admin.restore_user(NETWORK, "ben@example.com").await.unwrap();
    assert_eq!(tag("host1", &["tag:web"]).await.unwrap().tags, ["tag:web"]);
    assert!(denied(tag("host2", &["tag:web"]).await), "an owner may more");
    assert!(denied(tag("host3", &["tag:web"]).await), "tag:prod is not hers to take away");
    assert!(denied(tag("host3", &["tag:prod", "tag:other"]).await));
    // A tag that the policy knows no more protects nothing.
    admin.set_policy(NETWORK, TAGS.replace("tag:prod", "tag:new").as_str()).await.unwrap();
    assert_eq!(tag("host3", &["tag:web"]).await.unwrap().tags, ["tag:web"]);
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_of_no_use_are_forgotten_one_day() {
    use crate::tailnet::work::DEAD_KEPT;
    let world = world().await;
    let admin = world.admin();
    let short = NewAuthKey { lifetime: Some(Duration::from_secs(1)), ..NewAuthKey::default() };
    let first = world.auth_key(short.clone()).await;
    let lasting = world.auth_key(NewAuthKey::default()).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..DEAD_KEPT {
        world.auth_key(short.clone()).await;
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(world.register(1, with_key(register(1), &first)).await.error.contains("expired"));
    world.auth_key(short).await;
    assert!(world.register(1, with_key(register(1), &first)).await.error.contains("not known"), "the oldest is gone");
    assert_eq!(admin.auth_keys(None).unwrap().len(), DEAD_KEPT + 2);
    let log = admin.audit(Some(NETWORK), None, 1).await.unwrap();
    assert_eq!(log[0].what, "auth-key.forget");
    assert_eq!(world.register(1, with_key(register(1), &lasting)).await.error, "");
}
