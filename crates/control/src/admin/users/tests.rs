//! Users who are locked out or removed take nothing with them but what is theirs, and leave nothing that works.

use std::time::Duration;

use super::*;
use crate::admin::{Admin, NewApiKey, NewAuthKey};
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

    assert!(admin.suspend_user(NETWORK, "ben@example.com").await.unwrap().suspended);
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
    assert!(last(admin.suspend_user(NETWORK, "owner@default").await));
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
