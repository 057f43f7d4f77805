//! What the reader makes of a policy that uses the whole language.

use crate::model::{Grant, SshAction, SshUser, TagOwner};
use crate::selector::Selector;
use crate::{AttributeValue, Policy, Role};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use warren_wire::control::RegionId;

pub(super) const EVERYTHING: &str = include_str!("everything.hujson");

fn policy() -> Policy {
    Policy::parse(EVERYTHING).unwrap()
}

/// Returns the rules of a policy with these sections, and what they may name.
fn rules(sections: &str) -> Vec<Grant> {
    let text = format!(
        r#"{{"tagOwners": {{"tag:a": []}}, "postures": {{"posture:a": ["a:b IS SET"], "posture:b": ["a:b NOT SET"]}}, {sections}}}"#
    );
    Policy::parse(&text).unwrap_or_else(|errors| panic!("{errors}")).sections.grants
}

#[test]
fn acls_and_grants_add_up_and_empty_ones_deny_all() {
    let any = [Selector::Any];
    for (sections, count) in [
        (r#""hosts": {}"#, 1),
        (r#""acls": null, "grants": null"#, 1),
        (r#""acls": []"#, 0),
        (r#""grants": []"#, 0),
        (r#""acls": null, "grants": []"#, 0),
        (r#""acls": [{"action": "accept", "src": ["*"], "dst": ["*:*", "tag:a:1"]}], "grants": []"#, 2),
        (r#""acls": [{"action": "accept", "src": [], "dst": ["*:*"]}, {"action": "accept", "src": ["*"]}]"#, 0),
        (
            r#""acls": [{"action": "accept", "src": ["*"], "dst": ["*:1"]}], "grants": [{"src": ["*"], "dst": ["*", "tag:a"], "ip": ["*"]}]"#,
            2,
        ),
    ] {
        let rules = rules(sections);
        assert_eq!(rules.len(), count, "{sections}");
        assert!(rules.iter().all(|rule| *rule.sources == any), "{sections}");
    }
}

#[test]
fn grants_come_before_acls_and_each_knows_where_it_stands() {
    let policy = policy();
    let sections = &policy.sections;
    assert_eq!(sections.grants.len(), sections.grant_places.len());
    let line = |place: &usize| EVERYTHING[*place..].lines().next().unwrap();
    assert!(sections.grant_places.iter().all(|place| line(place).starts_with('{')));
    assert!(EVERYTHING[sections.grant_places[0]..].lines().nth(1).unwrap().contains("group:ops"));
    assert_eq!(sections.grants.len(), 5 + 2 + 4 + 5 + 1);
    // The destination that is the person's own devices comes last.
    let users: Vec<_> = sections.grants[7..11].iter().map(|grant| &grant.destinations[0]).collect();
    assert_eq!(*users[3], Selector::OwnDevices);
}

#[test]
fn the_default_posture_is_in_every_rule_without_its_own() {
    let with = |rule: &str| rules(&format!(r#""defaultSrcPosture": ["posture:a"], {rule}"#))[0].postures.to_vec();
    let acl = |more: &str| format!(r#""acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]{more}}}]"#);
    assert_eq!(with(&acl("")), ["posture:a"]);
    assert_eq!(with(&acl(r#", "srcPosture": []"#)), ["posture:a"]);
    assert_eq!(with(&acl(r#", "srcPosture": ["posture:b"]"#)), ["posture:b"]);
    assert_eq!(with(r#""grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]"#), ["posture:a"]);
    assert_eq!(with(r#""hosts": {}"#), ["posture:a"]);
    assert_eq!(*policy().sections.ssh[1].postures, ["posture:new".to_owned()]);
}

#[test]
fn arguments_of_capabilities_are_plain_json() {
    let rules = rules(
        "\"grants\": [{\"src\": [\"*\"], \"dst\": [\"*\"], \"app\": {\"a.b/c\": [{\"x\": [1.50, /* no */ \"\\u00e9\\n\",], },], \"a.b/d\": []}}]",
    );
    let texts: Vec<&str> = rules[0].app["a.b/c"].iter().map(warren_wire::control::RawJson::text).collect();
    assert_eq!(texts, [r#"{"x":[1.50,"é\n"]}"#]);
    assert!(rules[0].app["a.b/d"].is_empty() && rules[0].services.is_empty());
}

#[test]
fn ipsets_are_made_in_the_order_of_their_operations() {
    let policy = policy();
    let has = |set: &str, address: &str| policy.sections.ip_sets[set].contains(address.parse::<IpAddr>().unwrap());
    for (address, inside) in [
        ("10.0.0.1", true),
        ("10.1.0.1", false),
        // Removed with its prefix, added again as a host.
        ("10.1.0.9", true),
        ("10.9.0.7", false),
        ("10.9.0.8", true),
        ("fd00::7", true),
        ("8.8.8.8", true),
        ("11.0.0.1", true),
        ("192.168.0.1", false),
    ] {
        assert_eq!(has("ipset:prod", address), inside, "{address}");
    }
    assert!(
        !has("ipset:six", "10.0.0.1")
            && policy.sections.ip_sets["ipset:six"].overlaps("::/0".parse::<IpNet>().unwrap())
    );
}

#[test]
fn ipsets_that_contain_each_other_are_refused_however_long_the_way() {
    let chain = |last: &str| {
        let sets = (0..3_000).map(|number| format!("\"ipset:{number}\": [\"ipset:{}\"]", number + 1));
        format!("{{\"ipsets\": {{{}, \"ipset:3000\": [\"{last}\"]}}}}", sets.collect::<Vec<_>>().join(","))
    };
    let policy = Policy::parse(&chain("10.0.0.0/8")).unwrap();
    assert!(policy.sections.ip_sets["ipset:0"].contains("10.1.2.3".parse().unwrap()));
    let errors = Policy::parse(&chain("ipset:0")).unwrap_err();
    assert!(errors.to_string().contains("contains itself, through \"ipset:3000\""), "{errors}");
    // 200 sets of 2,000 ranges each, all from one line each.
    let ranges = (0..2_000).map(|number| format!("\"10.0.{}.{}\"", number / 100, number % 100 * 2));
    let many = (1..200).map(|number| format!("\"ipset:m{number}\": [\"ipset:m0\"]")).collect::<Vec<_>>().join(",");
    let text = format!("{{\"ipsets\": {{\"ipset:m0\": [{}], {many}}}}}", ranges.collect::<Vec<_>>().join(","));
    assert!(Policy::parse(&text).unwrap_err().to_string().contains("ranges of addresses"));
}

#[test]
fn ssh_rules_keep_what_they_say() {
    let policy = policy();
    let rule = &policy.sections.ssh[0];
    assert_eq!(rule.action, SshAction::Check(Duration::from_secs(8 * 3_600 + 30 * 60)));
    let local = SshUser::LocalPart { domain: "example.com".to_owned() };
    assert_eq!(rule.users, [SshUser::NonRoot, SshUser::Name("root".to_owned()), local]);
    assert!(rule.enforce_recorder && rule.recorders == ["tag:rec"] && rule.accept_env == ["GIT_*", "TERM"]);
    assert_eq!(policy.sections.ssh[1].action, SshAction::Check(Duration::ZERO));
    let default = r#"{"ssh": [{"action": "check", "src": ["a@b"], "dst": ["autogroup:self"], "users": ["x"]}]}"#;
    let default = Policy::parse(default).unwrap();
    assert_eq!(default.sections.ssh[0].action, SshAction::Check(Duration::from_secs(12 * 3_600)));
}

#[test]
fn grants_end_when_they_say() {
    let policy = policy();
    let times = &policy.sections.grants[4].validity;
    let at = |text: &str| crate::schedule::parse_moment(text).unwrap();
    // A Wednesday in winter.
    assert!(times.holds(at("2026-11-25T08:00:00+01:00")) && !times.holds(at("2026-11-25T19:00:00Z")));
    assert!(times.holds(at("2026-11-25T23:00:00Z")), "the second time, in UTC");
    assert!(!times.holds(at("2025-11-26T10:00:00Z")) && !times.holds(at("2027-01-31T17:00:00Z")));
}

#[test]
fn the_other_sections_are_read() {
    let sections = policy().sections;
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    assert_eq!(sections.auto_approvers.routes.keys().collect::<Vec<_>>(), [&net("10.0.0.0/8")]);
    assert_eq!(sections.auto_approvers.exit_node.len(), 2);
    assert_eq!(sections.auto_approvers.services.len(), 2);
    assert_eq!(sections.tag_owners["tag:ci"][1], TagOwner::Nodes(Selector::Role(Role::NetworkAdmin)));
    assert_eq!(sections.tag_owners["tag:web"][1], TagOwner::Tag("tag:ci".to_owned()));
    assert_eq!(sections.node_attributes[2].ip_pool, ["100.81.0.0/16".parse().unwrap()]);
    assert_eq!(sections.node_attributes[1].app["tailscale.com/app-connectors"].len(), 1);
    let attributes: BTreeMap<_, _> = sections.tests[0].attributes.clone();
    assert_eq!(attributes["custom:tier"], AttributeValue::Number(1.0));
    assert_eq!(sections.tests[1].accept, ["tag:web:22"], "by its old name");
    assert!(EVERYTHING[sections.ssh_tests[0].at..].starts_with("{\n"));
    assert!(sections.omit_default_regions && sections.randomize_client_port && !sections.disable_ipv4);
    assert_eq!(sections.one_cgnat_route, "mac-always");
    assert!(sections.relay_regions[&RegionId(1)].is_none());
    let region = sections.relay_regions[&RegionId(900)].clone().unwrap();
    assert_eq!((region.region_code.as_str(), region.nodes[0].derp_port), ("home", 8443));
    assert_eq!((region.nodes[0].stun_port, region.nodes[0].ipv4.as_str()), (-1, "192.0.2.1"));
}

/// Names of members match without regard to case, and texts without blanks around them.
#[test]
fn case_of_names_and_blanks_around_texts_do_not_matter() {
    let loose = r#"{"ACLs": [{"Action": " accept", "SRC": ["\t*"], "Ports": [" *:22 "]}], "TagOwners": {" tag:a ": null},
        "SSH": [{"action": "accept ", "src": [" a@b"], "dst": ["tag:a "], "users": [" root"]}]}"#;
    let loose = Policy::parse(loose).unwrap().sections;
    assert_eq!(loose.grants[0].destinations, [Selector::Any]);
    assert_eq!(loose.ssh[0].users, [SshUser::Name("root".to_owned())]);
    let both = r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:members:*"]}]}"#;
    assert!(Policy::parse(both).unwrap_err().to_string().contains("autogroup:members are both used"));
}
