//! Versions of the policy: who wins, what stays, what is undone.

use std::time::Duration;

use super::*;
use crate::admin::NewAuthKey;
use crate::testing::*;

const ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
const NONE: &str = r#"{"acls": []}"#;
const TAGS: &str = r#"{"acls": [], "tagOwners": {"tag:web": []}}"#;

fn new(text: &str) -> NewPolicy {
    NewPolicy::from(text)
}

fn confirmed_within(text: &str, minutes: u64) -> NewPolicy {
    NewPolicy { confirm_within: Some(Duration::from_secs(minutes * 60)), ..new(text) }
}

async fn in_force(world: &World) -> (u64, String) {
    let policy = world.admin().policy("default", None).await.unwrap();
    (policy.version, policy.text)
}

async fn minutes(minutes: u64) {
    // A little more, so that the task has done what was due by then.
    tokio::time::sleep(Duration::from_secs(minutes * 60) + Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn versions_keep_their_text_author_and_reason() {
    let world = World::new().await;
    let admin = world.admin();
    let first = admin.policy("default", None).await.unwrap();
    assert_eq!((first.version, first.etag.as_str(), first.author.as_str()), (1, "ts-default", "server"));
    let because = NewPolicy { reason: Some("the audit of May".to_owned()), ..new(NONE) };
    let second = admin.set_policy("default", because).await.unwrap();
    assert_eq!((second.version, second.in_force, second.text.as_str()), (2, true, NONE));
    assert_eq!((second.author.as_str(), second.reason.as_str()), ("cli:uid=0", "the audit of May"));
    assert_eq!(second.at, world.control.clock().now().to_string());
    // `printf '{"acls": []}' | sha256sum`
    assert_eq!(second.etag, "1b8c553ce101d752c20b3b3ae6e74a3fd56276c663be94385c671c86185ac3bb", "the hash of the text");
    admin.set_policy("default", ALL).await.unwrap();
    let again = admin.policy("default", Some(2)).await.unwrap();
    assert_eq!(again, PolicyView { in_force: false, difference: None, ..second });
    let history = admin.policy_history("default", 2).await.unwrap();
    let shown: Vec<_> = history.iter().map(|version| (version.version, version.in_force, version.bytes)).collect();
    assert_eq!(shown, [(3, true, ALL.len()), (2, false, NONE.len())]);
    assert!(matches!(admin.policy("default", Some(4)).await, Err(AdminError::NotFound { .. })));
    // The text in force, set again, is no news.
    assert_eq!(admin.set_policy("default", ALL).await.unwrap().version, 3);
    // All of it is in the audit log.
    let audit = admin.audit(None, None, 2).await.unwrap();
    let after: serde_json::Value = serde_json::from_str(audit[0].after.as_ref().unwrap()).unwrap();
    assert_eq!(
        (audit[0].what.as_str(), &after["version"], &after["bytes"]),
        ("policy.set", &3.into(), &ALL.len().into())
    );
    assert_eq!(after["sha256"], history[0].etag.as_str(), "by which the version is found");
}

#[tokio::test(start_paused = true)]
async fn of_changes_that_build_on_the_same_version_one_wins() {
    let world = World::new().await;
    let present = world.admin().policy("default", None).await.unwrap().etag;
    let tries = (0..20).map(|number| {
        let admin = world.admin();
        let text = format!("{{\"acls\": []}} // {number}");
        let wanted = if number % 2 == 0 { present.clone() } else { format!("\"{present}\"") };
        tokio::spawn(
            async move { admin.set_policy("default", NewPolicy { if_match: Some(wanted), ..new(&text) }).await },
        )
    });
    let mut won = Vec::new();
    for tried in tries.collect::<Vec<_>>() {
        match tried.await.unwrap() {
            Ok(policy) => won.push(policy),
            Err(error) => assert!(matches!(error, AdminError::PolicyChanged { version: 2, .. }), "{error}"),
        }
    }
    let [won] = &won[..] else { panic!("{won:?}") };
    assert_eq!(in_force(&world).await, (2, won.text.clone()));
    let any = NewPolicy { if_match: Some("*".to_owned()), ..new(ALL) };
    assert_eq!(world.admin().set_policy("default", any).await.unwrap().version, 3);
    let never = NewPolicy { if_match: Some("ts-default".to_owned()), ..new(NONE) };
    assert!(world.admin().set_policy("default", never).await.is_err(), "it was edited");
}

#[tokio::test(start_paused = true)]
async fn a_refused_policy_leaves_the_old_one() {
    let world = World::new().await;
    world.admin().set_policy("default", TAGS).await.unwrap();
    let audited = world.admin().audit(None, None, 100).await.unwrap().len();
    let refused = [
        new("{"),
        new(r#"{"acls": [{"action": "deny", "src": ["*"], "dst": ["*:*"]}]}"#),
        NewPolicy { reason: Some("x".repeat(1001)), ..new(ALL) },
        NewPolicy { reason: Some("a\u{1b}[31m".to_owned()), ..new(ALL) },
        NewPolicy { confirm_within: Some(Duration::ZERO), ..new(ALL) },
        NewPolicy { confirm_within: Some(Duration::MAX), ..new(ALL) },
        NewPolicy { source: PolicySource::Version(3), ..new("") },
        NewPolicy { source: PolicySource::Version(u64::MAX), ..new("") },
    ];
    for policy in refused {
        assert!(world.admin().set_policy("default", policy.clone()).await.is_err(), "{policy:?}");
        assert_eq!(in_force(&world).await, (2, TAGS.to_owned()));
    }
    assert_eq!(world.admin().audit(None, None, 100).await.unwrap().len(), audited);
}

#[tokio::test(start_paused = true)]
async fn going_back_makes_a_new_version() {
    let world = World::new().await;
    for text in [NONE, ALL] {
        world.admin().set_policy("default", text).await.unwrap();
    }
    let back = NewPolicy { source: PolicySource::Version(2), reason: Some("too wide".to_owned()), ..new("") };
    let policy = world.admin().set_policy("default", back).await.unwrap();
    assert_eq!((policy.version, policy.text.as_str()), (4, NONE));
    assert_eq!(policy.reason, "back to version 2: too wide");
    let audit = world.admin().audit(None, None, 1).await.unwrap();
    assert_eq!(audit[0].what, "policy.rollback");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_nobody_confirms_is_undone() {
    let world = World::new().await;
    let admin = world.admin();
    world.join(1, NewAuthKey::default()).await;
    world.join(2, NewAuthKey::default()).await;
    admin.set_policy("default", ALL).await.unwrap();
    let mut poll = world.poll(1).await;
    poll.settle().await;
    let set = admin.set_policy("default", confirmed_within(NONE, 5)).await.unwrap();
    let open = set.unconfirmed.unwrap();
    assert_eq!((open.back_to, open.until), (2, world.control.clock().now() + jiff::SignedDuration::from_mins(5)));
    poll.settle().await;
    assert_eq!(poll.map.names(), Vec::<&str>::new());
    minutes(4).await;
    assert_eq!(in_force(&world).await, (3, NONE.to_owned()));
    minutes(1).await;
    poll.settle().await;
    assert_eq!(poll.map.names(), ["host2"], "nodes hear of it");
    assert_eq!(in_force(&world).await, (4, ALL.to_owned()));
    let policy = admin.policy("default", None).await.unwrap();
    assert_eq!((policy.author.as_str(), policy.unconfirmed.clone()), ("server", None));
    assert!(policy.reason.contains("version 3 was not confirmed"), "{policy:?}");
    let too_late = admin.confirm_policy("default").await;
    assert!(matches!(too_late, Err(AdminError::NothingToConfirm { version: 4 })), "{too_late:?}");
    // A later version is not undone by the time of an earlier one.
    admin.set_policy("default", confirmed_within(NONE, 5)).await.unwrap();
    admin.set_policy("default", TAGS).await.unwrap();
    minutes(10).await;
    assert_eq!(in_force(&world).await, (6, TAGS.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_confirmed_stays() {
    let world = World::new().await;
    world.admin().set_policy("default", confirmed_within(ALL, 5)).await.unwrap();
    minutes(4).await;
    let confirmed = world.admin().confirm_policy("default").await.unwrap();
    assert_eq!((confirmed.version, confirmed.unconfirmed), (2, None));
    minutes(10).await;
    assert_eq!(in_force(&world).await, (2, ALL.to_owned()));
    // Setting it again for good is a confirmation, too.
    world.admin().set_policy("default", confirmed_within(NONE, 5)).await.unwrap();
    assert_eq!(world.admin().set_policy("default", NONE).await.unwrap().unconfirmed, None);
    minutes(10).await;
    assert_eq!(in_force(&world).await, (3, NONE.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn two_unconfirmed_policies_in_a_row_go_back_to_what_was_sure() {
    let world = World::new().await;
    world.admin().set_policy("default", TAGS).await.unwrap();
    world.admin().set_policy("default", confirmed_within(ALL, 5)).await.unwrap();
    minutes(4).await;
    world.admin().set_policy("default", confirmed_within(NONE, 5)).await.unwrap();
    minutes(4).await;
    assert_eq!(in_force(&world).await, (4, NONE.to_owned()));
    minutes(1).await;
    assert_eq!(in_force(&world).await, (5, TAGS.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_starts_again_remembers_what_to_undo() {
    let world = World::new().await;
    world.admin().set_policy("default", ALL).await.unwrap();
    world.admin().set_policy("default", confirmed_within(NONE, 30)).await.unwrap();
    // Away for a part of the time: the rest runs on.
    let world = world.restart(Duration::from_secs(20 * 60)).await;
    minutes(5).await;
    assert_eq!(in_force(&world).await, (3, NONE.to_owned()));
    minutes(5).await;
    assert_eq!(in_force(&world).await, (4, ALL.to_owned()));
    // Away when the time is over: undone at the start.
    world.admin().set_policy("default", confirmed_within(NONE, 30)).await.unwrap();
    let world = world.restart(Duration::from_secs(31 * 60)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(in_force(&world).await, (6, ALL.to_owned()));
    // And what is confirmed stays so.
    world.admin().set_policy("default", confirmed_within(NONE, 30)).await.unwrap();
    world.admin().confirm_policy("default").await.unwrap();
    let world = world.restart(Duration::from_secs(31 * 60)).await;
    minutes(31).await;
    assert_eq!(in_force(&world).await, (7, NONE.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_answered_by_who_gains_and_who_loses() {
    let world = World::new().await;
    world.join(1, NewAuthKey::default()).await;
    world.join(2, NewAuthKey { tags: vec!["tag:web".to_owned()], ..NewAuthKey::default() }).await;
    world.admin().set_policy("default", TAGS).await.unwrap();
    let rule = r#"{"tagOwners": {"tag:web": []}, "acls": [
        {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:443"], "proto": "tcp"}]}"#;
    let set = world.admin().set_policy("default", rule).await.unwrap();
    let lines = set.difference.unwrap();
    assert!(lines.len() == 1 && lines[0].starts_with("+ host1 -> host2: "), "{lines:?}");
    let back = NewPolicy { source: PolicySource::Version(2), ..new("") };
    let lines = world.admin().set_policy("default", back).await.unwrap().difference.unwrap();
    assert!(lines.len() == 1 && lines[0].starts_with("- host1 -> host2: "), "{lines:?}");
    assert_eq!(world.admin().policy("default", None).await.unwrap().difference, None);
}
