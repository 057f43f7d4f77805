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
        ["100.64.0.1-100.64.0.2,fd7a:115c:a1e0::1-fd7a:115c:a1e0::2 > 100.64.0.2 *,fd7a:115c:a1e0::2 *"]
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
        ["100.64.0.1-100.64.0.2,fd7a:115c:a1e0::1-fd7a:115c:a1e0::2 > 100.64.0.5 *,fd7a:115c:a1e0::5 *"]
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
    let ann = "100.64.0.1-100.64.0.2,fd7a:115c:a1e0::1-fd7a:115c:a1e0::2";
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

/// Compiles grants, with what [`compile_acls`] defines and a posture that node 1 alone has.
fn compile_grants(grants: &str, more: &str) -> Compiled {
    let text = format!(
        r#"{{"grants": [{grants}], "postures": {{"posture:gold": ["custom:tier == 'gold'"]}},
        "tagOwners": {{"tag:web": [], "tag:router": [], "tag:exit": []}} {more}}}"#
    );
    let mut directory = directory();
    let gold = ("custom:tier".to_owned(), crate::AttributeValue::Text("gold".to_owned()));
    directory.nodes.get_mut(&NodeId(1)).unwrap().attributes.extend([gold]);
    Policy::parse(&text).unwrap_or_else(|errors| panic!("{errors}")).compile(&directory, NOW)
}

const NOW: i64 = 1_800_000_000;

#[test]
fn posture_names_devices_instead_of_the_tailnet_and_leaves_subnets() {
    let grant = |source: &str| {
        format!(r#"{{"src": ["{source}"], "dst": ["tag:exit"], "ip": ["22"], "srcPosture": ["posture:gold"]}}"#)
    };
    let sources = |source: &str| {
        let rules = compile_grants(&grant(source), "").filter(NodeId(6));
        rules.iter().flat_map(|rule| rule.sources.texts().collect::<Vec<_>>()).collect::<Vec<_>>().join(",")
    };
    assert_eq!(sources("autogroup:member"), "100.64.0.1,fd7a:115c:a1e0::1");
    assert_eq!(sources("*"), "10.1.0.0/16,100.64.0.1,fd7a:115c:a1e0::1");
    assert_eq!(sources("100.64.0.0/16"), "100.64.0.1");
    assert_eq!(sources("10.0.0.0/8"), "10.0.0.0/8");
    assert_eq!(sources("bob@example.com"), "");
    let all = "0.0.0.0-100.63.255.255,100.128.0.0-255.255.255.255";
    assert!(sources("autogroup:danger-all").starts_with(all), "{}", sources("autogroup:danger-all"));
    // The device without the posture does not see the destination, either.
    assert_eq!(peers(&compile_grants(&grant("autogroup:member"), ""), 6), [1]);
}

#[test]
fn companion_of_a_rule_with_posture_is_for_those_devices() {
    let compiled = compile_grants(
        r#"{"src": ["autogroup:member"], "dst": ["tag:web"], "app": {"tailscale.com/cap/drive": [{"access": "rw"}]},
            "srcPosture": ["posture:gold"]}"#,
        "",
    );
    let capabilities = |node: i64| -> Vec<String> {
        let rules = compiled.filter(NodeId(node));
        rules.iter().flat_map(|rule| &rule.grants).flat_map(|grant| grant.cap_map.0.keys().cloned()).collect()
    };
    assert_eq!(capabilities(5), ["tailscale.com/cap/drive"]);
    assert_eq!(capabilities(1), ["tailscale.com/cap/drive-sharer"]);
    assert_eq!(capabilities(2), [""; 0]);
}

#[test]
fn router_of_a_via_rule_lets_through_what_lies_behind_it_and_is_the_way() {
    let compiled = compile_grants(
        r#"{"src": ["ann@example.com"], "dst": ["10.0.0.0/8", "192.168.0.0/16"], "ip": ["*"], "via": ["tag:router"]},
           {"src": ["bob@example.com"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:exit"]}"#,
        "",
    );
    let ann = "100.64.0.1-100.64.0.2,fd7a:115c:a1e0::1-fd7a:115c:a1e0::2";
    assert_eq!(filter(&compiled, 5), [format!("{ann} > 10.0.0.0/8 *")]);
    assert_eq!(filter(&compiled, 6), [""; 0]);
    assert_eq!(peers(&compiled, 5), [1, 2]);
    let route: IpNet = "10.1.0.0/16".parse().unwrap();
    assert_eq!(compiled.routes(NodeId(1), NodeId(5)).primary, [route]);
    assert_eq!(compiled.routes(NodeId(3), NodeId(5)), PeerRoutes::default());
}

#[test]
fn way_to_a_subnet_stays_as_long_as_it_is_there() {
    let compiled = compile_acls(r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#);
    let mut second = directory().nodes[&NodeId(4)].clone();
    second.approved_routes = vec!["10.1.0.0/16".parse().unwrap()];
    let is_way = |compiled: &Compiled, node: i64| !compiled.own_routes(NodeId(node)).primary.is_empty();
    let compiled = compiled.with_nodes([(NodeId(4), Some(second))]);
    assert!(is_way(&compiled, 5) && !is_way(&compiled, 4), "a lower number alone changes nothing");
    let mut first = directory().nodes[&NodeId(5)].clone();
    first.online = false;
    let failed = compiled.with_nodes([(NodeId(5), Some(first.clone()))]);
    assert!(is_way(&failed, 4) && !is_way(&failed, 5));
    assert_eq!(Compiled::changed_nodes(&compiled, &failed), [NodeId(4), NodeId(5)]);
    first.online = true;
    let back = failed.with_nodes([(NodeId(5), Some(first))]);
    assert!(is_way(&back, 4) && !is_way(&back, 5));
}

#[test]
fn rule_with_hours_ends_by_itself_and_costs_nothing_until_then() {
    let compiled = compile_grants(
        r#"{"src": ["ann@example.com"], "dst": ["tag:exit"], "ip": ["22"], "from": "2027-01-15T08:00:00Z",
            "until": "2027-01-15T09:00:00Z"}"#,
        "",
    );
    assert_eq!((compiled.next_edge(), peers(&compiled, 6)), (Some(NOW + 3_600), vec![1, 2]));
    assert_eq!(compiled.filter(NodeId(6))[0].until, Some(NOW + 3_600));
    let before = compiled.at(NOW - 1);
    assert_eq!((before.next_edge(), peers(&before, 6), filter(&before, 6)), (Some(NOW), vec![], vec![]));
    let after = compiled.at(NOW + 3_600);
    assert_eq!((after.next_edge(), peers(&after, 6), filter(&after, 6)), (None, vec![], vec![]));
    assert_eq!(Compiled::changed_nodes(&compiled, &after), [NodeId(1), NodeId(2), NodeId(6)]);
    assert!(Compiled::same_view(&compiled, &after, NodeId(3)) && !Compiled::same_view(&compiled, &after, NodeId(1)));
}

#[test]
fn node_without_ipv4_has_none_as_a_source_either() {
    let compiled = compile_grants(
        r#"{"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["22"]}"#,
        r#", "nodeAttrs": [{"target": ["100.64.0.1", "tag:web"], "attr": ["disable-ipv4"]}]"#,
    );
    let own: IpNet = "fd7a:115c:a1e0::1/128".parse().unwrap();
    assert_eq!(compiled.addresses(NodeId(1)), [own]);
    assert_eq!(filter(&compiled, 5), ["100.64.0.2,fd7a:115c:a1e0::1-fd7a:115c:a1e0::2 > fd7a:115c:a1e0::5 22-22"]);
    assert_eq!(compiled.own_routes(NodeId(5)).primary.len(), 1, "its subnets stay");
}

/// One more node in a list of many changes one chunk of it, and nobody who is not in that list's rules.
#[test]
fn joining_touches_only_the_lists_with_the_node() {
    let mut directory = directory();
    for number in 100..5_100_u16 {
        let model = &directory.nodes[&NodeId(if number % 2 == 0 { 1 } else { 3 })];
        let [high, low] = number.to_be_bytes();
        let node = DirectoryNode { addresses: vec![IpAddr::from([100, 65, high, low])], ..model.clone() };
        directory.nodes.insert(NodeId(number.into()), node);
    }
    let policy = r#"{"tagOwners": {"tag:web": [], "tag:router": [], "tag:exit": []}, "acls": [
        {"action": "accept", "src": ["ann@example.com"], "dst": ["tag:web:22"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["tag:exit:22"]}]}"#;
    let compiled = Policy::parse(policy).unwrap().compile(&directory, 0);
    let joining =
        DirectoryNode { addresses: vec![IpAddr::from([100, 66, 0, 1])], ..directory.nodes[&NodeId(1)].clone() };
    let next = compiled.with_nodes([(NodeId(9_000), Some(joining))]);
    assert_eq!(Compiled::changed_nodes(&compiled, &next), [NodeId(9_000)]);
    let others: Vec<i64> = directory
        .nodes
        .keys()
        .filter(|node| !Compiled::same_filter(&compiled, &next, **node))
        .map(|node| node.0)
        .collect();
    assert_eq!(others, [5]);
    assert!(directory.nodes.keys().all(|node| Compiled::same_view(&compiled, &next, *node)));
    let chunks = |compiled: &Compiled| compiled.filter(NodeId(5))[0].sources.chunks().to_vec();
    let (old, new) = (chunks(&compiled), chunks(&next));
    let kept = new.iter().filter(|chunk| old.iter().any(|old| Arc::ptr_eq(old, chunk))).count();
    assert!(old.len() > 20 && kept + 2 >= new.len(), "{kept} of {}", new.len());
}
