//! Where enrolled machines alone take part, nothing else lets anybody in.

use std::time::Duration;

use super::*;
use crate::admin::NewAuthKey;
use crate::testing::{World, machine, map, node_key, register, with_key};

const NETWORK: &str = "default";

/// A network that takes enrolled machines alone, with the node of one.
async fn world() -> World {
    let world = World::new().await;
    world.admin().set_only_enrolled(NETWORK, true).await.unwrap();
    world.admin().enrol_machines(NETWORK, &[machine(1)], "first").await.unwrap();
    world.join(1, NewAuthKey::default()).await;
    world
}

/// Tells whether nobody is told of the node 2, nor it of anybody.
fn is_hidden(world: &World) -> bool {
    let own = world.whole_map(2);
    let known = !world.whole_map(1).names().is_empty() || !own.names().is_empty();
    let let_in = own.own.unwrap().machine_authorized || world.control.relay_admits(&node_key(2));
    assert_eq!(known, let_in, "all or nothing");
    !known
}

#[tokio::test(start_paused = true)]
async fn no_key_login_or_approval_lets_a_machine_in_that_is_not_enrolled() {
    let world = world().await;
    let admin = world.admin();
    let key = world.auth_key(NewAuthKey { pre_approved: true, ..NewAuthKey::default() }).await;
    let answer = world.register(2, with_key(register(2), &key)).await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", false), "it waits: {answer:?}");
    assert!(is_hidden(&world));
    admin.approve_node(None, "host2").await.unwrap();
    assert!(is_hidden(&world), "an approval");
    assert!(admin.node(None, "host2").unwrap().barred);
    admin.enrol_machines(NETWORK, &[machine(2)], "").await.unwrap();
    assert!(!is_hidden(&world));
    // A login that an administrator approved is no enrolment either.
    let waiting = world.register(3, register(3)).await;
    let id = waiting.auth_url.rsplit('/').next().unwrap().to_owned();
    admin.approve_login(&id, NETWORK, "owner@default").await.unwrap();
    assert_eq!(world.whole_map(1).names(), ["host2"]);
    assert!(world.whole_map(3).names().is_empty() && !world.control.relay_admits(&node_key(3)));
}

#[tokio::test(start_paused = true)]
async fn an_enrolment_that_ends_takes_the_peer_away_in_the_very_next_snapshot() {
    let world = world().await;
    let admin = world.admin();
    admin.enrol_machines(NETWORK, &[machine(2)], "").await.unwrap();
    world.join(2, NewAuthKey::default()).await;
    let (mut first, mut second) = (world.poll(1).await, world.poll(2).await);
    first.settle().await;
    second.settle().await;
    assert_eq!((first.map.names(), second.map.names()), (vec!["host2"], vec!["host1"]));
    let mut departures = world.control.relay_departures();
    let tailnet = &world.control.tailnets()[0];
    let before = tailnet.snapshot().number;
    admin.end_enrolment(NETWORK, machine(2)).await.unwrap();
    let after = tailnet.snapshot();
    assert_eq!(after.number, before + 1);
    assert!(is_hidden(&world));
    assert_eq!(departures.try_recv().unwrap(), node_key(2), "the relay serves it no more");
    let told = first.next().await.unwrap();
    assert_eq!(told.peers_removed.len(), 1, "{told:?}");
    second.settle().await;
    assert!(second.map.names().is_empty() && !second.map.own.as_ref().unwrap().machine_authorized);
    let gone = admin.end_enrolment(NETWORK, machine(2)).await;
    assert!(matches!(gone, Err(AdminError::NotFound { .. })), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn all_nodes_of_a_machine_follow_it_and_nothing_else_does() {
    let world = world().await;
    let admin = world.admin();
    admin.create_user(NETWORK, "ann@example.com", None).await.unwrap();
    admin.create_tailnet("other").await.unwrap();
    admin.enrol_machines("other", &[machine(2)], "").await.unwrap();
    world.join(2, NewAuthKey::default()).await;
    assert!(is_hidden(&world), "another network's enrolment is none");
    admin.enrol_machines(NETWORK, &[machine(2)], "").await.unwrap();
    // A second node of the machine, for another user, and the first one with a new key.
    let of = NewAuthKey { user: Some("ann@example.com".to_owned()), ..NewAuthKey::default() };
    let (second, anew) = (world.auth_key(of).await, world.auth_key(NewAuthKey::default()).await);
    assert_eq!(world.register(2, with_key(register(4), &second)).await.error, "");
    assert_eq!(world.register(2, with_key(register(5), &anew)).await.error, "");
    let admitted = |number| world.control.relay_admits(&node_key(number));
    assert!(admitted(4) && admitted(5));
    admin.end_enrolment(NETWORK, machine(2)).await.unwrap();
    assert!(!admitted(4) && !admitted(5) && admitted(1));
    assert!(world.control.map_once(machine(2), &map(5)).is_ok(), "it is told that it waits");
}

#[tokio::test(start_paused = true)]
async fn what_is_enrolled_lasts_and_is_told() {
    let world = world().await;
    world.join(2, NewAuthKey::default()).await;
    let world = world.restart(Duration::from_secs(60)).await;
    assert!(is_hidden(&world), "after a restart, too");
    let admin = world.admin();
    let shown = admin.machines(None).unwrap();
    assert_eq!((shown.len(), shown[0].key, shown[0].description.as_str()), (1, machine(1), "first"));
    assert_eq!(shown[0].nodes, ["host1.default.warren.internal"]);
    let view = admin.tailnets()[0].clone();
    assert!(view.only_enrolled);
    assert_eq!((view.enrolled, view.barred), (1, 1));
    // Once more is no change.
    let before = admin.audit(None, None, 1).await.unwrap()[0].seq;
    admin.enrol_machines(NETWORK, &[machine(1)], "again").await.unwrap();
    assert_eq!(admin.audit(None, None, 1).await.unwrap()[0].seq, before);
    let many: Vec<_> = vec![machine(1); AT_ONCE + 1];
    assert!(matches!(admin.enrol_machines(NETWORK, &many, "").await, Err(AdminError::Invalid { .. })));
    admin.set_only_enrolled(NETWORK, false).await.unwrap();
    assert!(!is_hidden(&world), "where it is not asked for, all take part");
}
