use super::*;
use crate::{Attributes, DEFAULT_POLICY, DESTINATIONS_MAX, DirectoryNode, DirectoryUser, POLICY_MAX_BYTES};
use std::collections::BTreeSet;
use warren_wire::control::FilterRule;

const ANN: i64 = 1;
const BOB: i64 = 2;

/// Two users with two devices each, two tagged nodes, of which one is a router and one an exit node.
fn directory() -> Directory {
    let user = |login: &str| DirectoryUser { login: login.to_owned(), ..DirectoryUser::default() };
    let own = |user: i64| Owner::User(UserId(user));
    let tags = |tags: &[&str]| Owner::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect());
    let nodes = [
        (own(ANN), vec![]),
        (own(ANN), vec![]),
        (own(BOB), vec![]),
        (own(BOB), vec![]),
        (tags(&["tag:web", "tag:router"]), vec!["10.1.0.0/16"]),
        (tags(&["tag:exit"]), vec!["0.0.0.0/0", "::/0"]),
    ];
    let node = |number: usize, owner: &Owner, routes: &[&str]| DirectoryNode {
        owner: owner.clone(),
        addresses: vec![
            format!("100.64.0.{number}").parse().unwrap(),
            format!("fd7a:115c:a1e0::{number}").parse().unwrap(),
        ],
        approved_routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        online: true,
        attributes: Attributes::new(),
    };
    Directory {
        domains: BTreeSet::new(),
        users: [(UserId(ANN), user("ann@example.com")), (UserId(BOB), user("bob@example.com"))].into(),
        nodes: nodes
            .iter()
            .zip(1_usize..)
            .map(|((owner, routes), number)| (NodeId(number as i64), node(number, owner, routes)))
            .collect(),
    }
}

fn compile(policy: &str) -> Compiled {
    Policy::parse(policy).unwrap().compile(&directory(), 0)
}

fn compile_acls(acls: &str) -> Compiled {
    let sections = r#""groups": {"group:both": ["ann@example.com", "bob@example.com"], "group:ann": ["ann@example.com"]},
        "tagOwners": {"tag:web": [], "tag:router": [], "tag:exit": []}, "hosts": {"printer": "10.1.0.9"}"#;
    compile(&format!("{{\"acls\": [{acls}], {sections}}}"))
}

/// Writes a filter as one line a rule: sources > destinations:ports, and protocols if any.
fn filter(compiled: &Compiled, node: i64) -> Vec<String> {
    let rules: Vec<FilterRule> = compiled.filter(NodeId(node)).iter().map(crate::NodeRule::to_wire).collect();
    let line = |rule: &FilterRule| {
        let destinations: Vec<String> = rule
            .dst_ports
            .iter()
            .map(|entry| match (entry.ports.first, entry.ports.last) {
                (0, 65535) => format!("{} *", entry.ip),
                (first, last) => format!("{} {first}-{last}", entry.ip),
            })
            .collect();
        let protocols = if rule.ip_proto.is_empty() { String::new() } else { format!(" {:?}", rule.ip_proto) };
        format!("{} > {}{protocols}", rule.src_ips.join(","), destinations.join(","))
    };
    rules.iter().map(line).collect()
}

fn peers(compiled: &Compiled, node: i64) -> Vec<i64> {
    compiled.peers(NodeId(node)).map(|peer| peer.0).collect()
}

#[test]
fn default_lets_own_devices_reach_each_other_and_nothing_else() {
    let compiled = compile(DEFAULT_POLICY);
    assert_eq!((peers(&compiled, 1), peers(&compiled, 3)), (vec![2], vec![4]));
    assert_eq!((peers(&compiled, 5), peers(&compiled, 6)), (vec![], vec![]));
    assert_eq!(
        filter(&compiled, 2),
        ["100.64.0.1,100.64.0.2,fd7a:115c:a1e0::1,fd7a:115c:a1e0::2 > 100.64.0.2 *,fd7a:115c:a1e0::2 *"]
    );
    assert_eq!(filter(&compiled, 5), [""; 0]);
}

#[test]
fn empty_rules_deny_everything() {
    for acls in
        ["", r#"{"action": "accept", "src": [], "dst": ["*:*"]}"#, r#"{"action": "accept", "src": ["*"], "dst": []}"#]
    {
        let compiled = compile_acls(acls);
        for node in 1..=6 {
            assert_eq!((filter(&compiled, node), peers(&compiled, node)), (vec![], vec![]), "{acls}");
        }
    }
}

/// Lessons, C7: a wildcard that means the Internet lets strangers in through whoever forwards for them.
#[test]
fn wildcard_source_is_this_tailnet_and_its_subnets_not_the_internet() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#);
    let expected =
        "100.64.0.0-100.115.91.255,100.115.94.0-100.127.255.255,10.1.0.0/16,fd7a:115c:a1e0::/48 > * *".to_owned();
    for node in 1..=6 {
        assert_eq!(filter(&compiled, node), [expected.as_str()]);
        assert_eq!(peers(&compiled, node).len(), 5);
    }
}

#[test]
fn wildcard_of_one_tailnet_knows_nothing_of_another() {
    let policy = Policy::parse(r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#).unwrap();
    let mut other = directory();
    other.nodes.get_mut(&NodeId(5)).unwrap().approved_routes = vec!["10.2.0.0/16".parse().unwrap()];
    let (one, two) = (policy.compile(&directory(), 0), policy.compile(&other, 0));
    let sources = |compiled: &Compiled| {
        let mut rules = compiled.filter(NodeId(1));
        rules.remove(0).sources.texts().filter(|text| text.starts_with("10.")).collect::<Vec<_>>()
    };
    assert_eq!((sources(&one), sources(&two)), (vec!["10.1.0.0/16".to_owned()], vec!["10.2.0.0/16".to_owned()]));
}

#[test]
fn address_does_not_stand_for_the_other_family() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["100.64.0.1"], "dst": ["100.64.0.3:22"]}"#);
    assert_eq!(filter(&compiled, 3), ["100.64.0.1 > 100.64.0.3 22-22"]);
    assert_eq!((peers(&compiled, 1), peers(&compiled, 3)), (vec![3], vec![1]));
}

#[test]
fn tagged_nodes_belong_to_nobody() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:80"]}"#);
    assert_eq!(peers(&compiled, 5), [1, 2, 3, 4]);
    assert_eq!(peers(&compiled, 6), [0; 0]);
    let own = compile_acls(r#"{"action": "accept", "src": ["*"], "dst": ["autogroup:self:*"]}"#);
    assert_eq!((peers(&own, 5), filter(&own, 5)), (vec![], vec![]));
}

#[test]
fn tag_does_not_stand_for_the_subnet_behind_it() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:router:*"]}"#);
    assert_eq!(
        filter(&compiled, 5),
        ["100.64.0.1,100.64.0.2,fd7a:115c:a1e0::1,fd7a:115c:a1e0::2 > 100.64.0.5 *,fd7a:115c:a1e0::5 *"]
    );
}

#[test]
fn router_gets_the_rules_for_its_subnet_unclipped() {
    let compiled = compile_acls(
        r#"{"action": "accept", "src": ["tag:exit"], "dst": ["printer:631", "10.0.0.0/8:1", "11.0.0.0/8:2"]}"#,
    );
    assert_eq!(filter(&compiled, 5), ["100.64.0.6,fd7a:115c:a1e0::6 > 10.1.0.9 631-631,10.0.0.0/8 1-1"]);
    assert_eq!(peers(&compiled, 6), [5]);
    // Its filter must let through what it may be asked to forward, though that makes nobody see it.
    assert_eq!(filter(&compiled, 6), ["100.64.0.6,fd7a:115c:a1e0::6 > 11.0.0.0/8 2-2"]);
}

#[test]
fn rules_with_equal_sources_and_protocols_are_one() {
    let compiled = compile_acls(
        r#"{"action": "accept", "src": ["group:ann"], "dst": ["tag:web:80"]},
           {"action": "accept", "src": ["tag:exit"], "dst": ["tag:web:1"]},
           {"action": "accept", "src": ["ann@example.com", "group:ann"], "dst": ["tag:web:443"]},
           {"action": "accept", "src": ["group:ann"], "dst": ["tag:web:53"], "proto": "udp"}"#,
    );
    let ann = "100.64.0.1,100.64.0.2,fd7a:115c:a1e0::1,fd7a:115c:a1e0::2";
    let web = |ports: &str| format!("100.64.0.5 {ports},fd7a:115c:a1e0::5 {ports}");
    assert_eq!(
        filter(&compiled, 5),
        [
            format!("{ann} > {},{}", web("80-80"), web("443-443")),
            format!("100.64.0.6,fd7a:115c:a1e0::6 > {}", web("1-1")),
            format!("{ann} > {} [17]", web("53-53")),
        ]
    );
}

#[test]
fn narrower_source_of_own_devices_is_that_user() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:self:22"]}"#);
    assert_eq!(filter(&compiled, 1), [""; 0]);
    assert_eq!((peers(&compiled, 1), peers(&compiled, 3)), (vec![], vec![4]));
}

#[test]
fn unknown_node_sees_nothing() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#);
    assert_eq!((filter(&compiled, 99), peers(&compiled, 99)), (vec![], vec![]));
    assert!(!compiled.visible(NodeId(1), NodeId(99)) && !compiled.visible(NodeId(99), NodeId(99)));
    assert!(!compiled.visible(NodeId(1), NodeId(1)));
}

#[test]
fn nodes_of_a_kind_share_a_class() {
    let mut directory = directory();
    let model = directory.nodes[&NodeId(1)].clone();
    for number in 100..1_100_u16 {
        let [high, low] = number.to_be_bytes();
        let addresses = vec![IpAddr::from([100, 64, high, low])];
        directory.nodes.insert(NodeId(number.into()), DirectoryNode { addresses, ..model.clone() });
    }
    let policy = Policy::parse(DEFAULT_POLICY).unwrap();
    let compiled = policy.compile(&directory, 0);
    assert_eq!(compiled.peers(NodeId(1)).count(), 1_001);
}

/// Without sharing, the lists of this policy would hold a thousand million selectors.
#[test]
fn long_lists_of_sources_and_destinations_take_no_more_room_than_their_text() {
    let sources: Vec<String> = (0..20_000).map(|number| format!("\"u{number}@x\"")).collect();
    let destinations = vec!["\"*:1\""; DESTINATIONS_MAX];
    let rule = format!(
        "{{\"action\": \"accept\", \"src\": [{},\"ann@example.com\"], \"dst\": [{}]}}",
        sources.join(","),
        destinations.join(",")
    );
    let text = format!("{{\"acls\": [{rule}]}}");
    assert!(text.len() < POLICY_MAX_BYTES);
    let compiled = compile(&text);
    let rules = compiled.filter(NodeId(1));
    assert_eq!((rules.len(), rules[0].sources.len(), rules[0].destinations.len()), (1, 4, DESTINATIONS_MAX));
}
