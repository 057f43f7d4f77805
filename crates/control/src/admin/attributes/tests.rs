//! Attributes: what may be given, and what is told of a node.

use serde_json::json;

use super::*;
use crate::admin::NewAuthKey;
use crate::testing::*;

#[tokio::test(start_paused = true)]
async fn attributes_are_given_kept_and_taken_away() {
    let world = World::new().await;
    world.join(1, NewAuthKey::default()).await;
    for (name, value) in [("custom:tier", json!("gold")), ("custom:score", json!(4.5)), ("custom:managed", json!(true))]
    {
        world.admin().set_node_attribute(None, "host1", name, &value).await.unwrap();
    }
    let world = world.restart(std::time::Duration::from_secs(1)).await;
    let admin = world.admin();
    let shown = admin.node_attributes(None, "host1").unwrap();
    let expected = json!({"custom:tier": "gold", "custom:score": 4.5, "custom:managed": true, "node:os": "linux"});
    assert_eq!(serde_json::to_value(&shown.attributes).unwrap(), expected);
    admin.unset_node_attribute(None, "host1", "custom:tier").await.unwrap();
    assert!(!admin.node_attributes(None, "host1").unwrap().attributes.contains_key("custom:tier"));
    let gone = admin.unset_node_attribute(None, "host1", "custom:tier").await;
    assert!(matches!(gone, Err(AdminError::NotFound { .. })), "{gone:?}");
    // Another kind needs to be meant.
    assert!(admin.set_node_attribute(None, "host1", "custom:score", &json!("high")).await.is_err());
    assert!(admin.set_node_attribute(None, "host1", "custom:Score", &json!(1)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn strange_attributes_are_refused() {
    let world = World::new().await;
    world.join(1, NewAuthKey::default()).await;
    let long = format!("custom:{}", "x".repeat(122));
    for name in ["", "tier", "node:os", "custom:", "custom:a b", "custom:é", "custom:a-b", &long] {
        let refused = world.admin().set_node_attribute(None, "host1", name, &json!(1)).await;
        assert!(matches!(refused, Err(AdminError::Invalid { .. })), "{name:?}: {refused:?}");
    }
    for value in [json!(null), json!([1]), json!({"a": 1}), json!("x".repeat(201))] {
        let refused = world.admin().set_node_attribute(None, "host1", "custom:a", &value).await;
        assert!(matches!(refused, Err(AdminError::Invalid { .. })), "{value}: {refused:?}");
    }
    for number in 0..=CUSTOM_MAX {
        let set = world.admin().set_node_attribute(None, "host1", &format!("custom:a{number}"), &json!(1)).await;
        assert_eq!(set.is_ok(), number < CUSTOM_MAX, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_patch_writes_each_node_once_and_has_a_limit() {
    let world = World::new().await;
    let (one, two) = (world.join(1, NewAuthKey::default()).await, world.join(2, NewAuthKey::default()).await);
    let admin = world.admin();
    let patch = |node: String, name: &str, value: i64| (node, format!("custom:{name}"), Some(json!(value)));
    let before = admin.audit(None, None, 1).await.unwrap()[0].seq;
    let patches = [patch(format!("n{one}"), "a", 1), patch(two.to_string(), "a", 2), patch(one.to_string(), "b", 3)];
    admin.patch_attributes("default", &patches).await.unwrap();
    assert_eq!(admin.audit(None, None, 1).await.unwrap()[0].seq, before + 2, "one entry for each node");
    let shown = admin.node_attributes(None, "host1").unwrap();
    assert_eq!((&shown.attributes["custom:a"], &shown.attributes["custom:b"]), (&json!(1.0), &json!(3.0)));
    let gone = admin.patch_attributes("default", &[patch("host1".to_owned(), "a", 1)]).await;
    assert!(matches!(gone, Err(AdminError::NotFound { .. })), "{gone:?}");
    let many = vec![patch(one.to_string(), "a", 1); PATCH_MAX + 1];
    assert!(matches!(admin.patch_attributes("default", &many).await, Err(AdminError::Invalid { .. })));
}
