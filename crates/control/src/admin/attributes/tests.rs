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
