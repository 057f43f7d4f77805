//! Questions about policies: tests, explanations, comparisons, SSH decisions and cases; and the judge of single rules
//! against the compiled filter.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use proptest::prelude::*;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;
use warren_policy::case::{self, Case};
use warren_policy::{
    Directory, Owner, Policy, PolicyDiff, PolicyQuestion, QuestionError, Reach, SshDecision, SshRules, Verdict,
};
use warren_wire::control::{FilterRule, NodeId};

const NOW: i64 = 1_790_000_000;

/// A small tailnet: two people with two devices and one, two servers, a router.
fn tailnet(policy: &str) -> Case {
    let node = |number: u8, user: Option<&str>, tags: &[&str], routes: &[&str]| {
        json!({
            "id": number, "user": user, "tags": tags, "routable_ips": routes, "approved_routes": routes,
            "ipv4": format!("100.64.0.{number}"), "ipv6": format!("fd7a:115c:a1e0::{number}"),
        })
    };
    let case = json!({
        "policy": policy,
        "users": [
            {"id": 1, "name": "ann", "email": "ann@x.org"},
            {"id": 2, "name": "bob", "email": "bob@y.org"},
            {"id": 3, "name": "root", "email": "root@x.org"},
        ],
        "nodes": {
            "laptop": node(1, Some("ann"), &[], &[]),
            "phone": node(2, Some("ann"), &[], &[]),
            "desk": node(3, Some("bob"), &[], &[]),
            "web": node(4, None, &["tag:web"], &[]),
            "db": node(5, None, &["tag:db"], &[]),
            "router": node(6, None, &["tag:router"], &["10.1.0.0/16"]),
            "roots": node(7, Some("root"), &[], &[]),
        },
    });
    Case::read(&case.to_string()).unwrap()
}

const POLICY: &str = r#"{
  "groups": {"group:ops": ["ann@x.org"]},
  "tagOwners": {"tag:web": [], "tag:db": [], "tag:router": [], "tag:none": []},
  "hosts": {"printer": "10.1.0.9", "lost": "10.9.0.9"},
  "acls": [
    {"action": "accept", "src": ["group:ops"], "dst": ["tag:web:80,443"], "proto": "tcp"},
    {"action": "accept", "src": ["bob@y.org"], "dst": ["printer:9100", "lost:1", "autogroup:self:*"]},
    {"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]},
  ],
  "ssh": [
    {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web"], "users": ["localpart:*@x.org", "deploy"]},
    {"action": "check", "checkPeriod": "1h", "src": ["ann@x.org"], "dst": ["tag:db"], "users": ["root"]},
    {"action": "accept", "src": ["ann@x.org"], "dst": ["tag:db"], "users": ["root", "deploy"]},
  ],
}"#;

fn explained(from: &str, to: &str) -> warren_policy::Explanation {
    let case = tailnet(POLICY);
    let policy = Policy::parse(POLICY).unwrap();
    Reach::new(&policy, &case.directory, NOW).explain(&case.names, from, to).unwrap()
}

#[test]
fn what_is_allowed_is_told_with_its_line_and_the_way() {
    let answer = explained("laptop", "web:443");
    assert_eq!((answer.verdict, answer.rules.len(), answer.rules[0].line), (Verdict::Allowed, 1, 6));
    let answer = explained("bob@y.org", "printer:9100/udp");
    assert_eq!((answer.verdict, answer.rules[0].line), (Verdict::Allowed, 7));
    assert_eq!(answer.rules[0].through, ["router"]);
}

#[test]
fn what_is_denied_is_told_with_the_nearest_rule() {
    for (from, to, reason) in [
        ("ann@x.org", "tag:web:22", "the rule on line 6 names ann@x.org and tag:web, but only tcp 80,443"),
        ("ann@x.org", "tag:web:443/udp", "the rule on line 6 names ann@x.org and tag:web, but only tcp 80,443"),
        ("desk", "web:80", "the rule on line 6 lets others reach web; desk is not among its sources"),
        ("desk", "lost:1", "10.9.0.9 is no node's address and is behind no approved route"),
        ("router", "web", "the rule on line 6 lets others reach web; router is not among its sources"),
        ("router", "phone", "no rule names router as a source, and none names phone as a destination"),
        ("laptop", "router", "no rule names router as a destination"),
    ] {
        let answer = explained(from, to);
        assert_eq!(answer.verdict, Verdict::Denied, "{from} {to}");
        assert!(answer.reasons.iter().any(|given| given == reason), "{from} {to}: {:?}", answer.reasons);
    }
}

#[test]
fn a_part_of_a_group_is_told_by_pairs() {
    let answer = explained("autogroup:member", "web:443");
    assert_eq!(answer.verdict, Verdict::Partly);
    assert!(answer.denied_pairs.contains(&("desk".to_owned(), "web".to_owned())));
    assert!(!answer.denied_pairs.contains(&("phone".to_owned(), "web".to_owned())));
}

#[test]
fn questions_without_an_answer_are_refused() {
    let case = tailnet(POLICY);
    let policy = Policy::parse(POLICY).unwrap();
    let reach = Reach::new(&policy, &case.directory, NOW);
    let ask = |from: &str, to: &str| reach.explain(&case.names, from, to).unwrap_err();
    assert!(matches!(ask("nobody", "web"), QuestionError::Unknown(_)));
    assert!(matches!(ask("laptop", "tag:unknown:22"), QuestionError::Unknown(_)));
    assert!(matches!(ask("laptop", "web:0"), QuestionError::Port(_)));
    assert!(matches!(ask("laptop", "web:22/smtp"), QuestionError::Protocol(_)));
    assert!(matches!(ask("*", "web"), QuestionError::Many(_)));
    assert!(matches!(ask("laptop", "10.0.0.0/8"), QuestionError::Many(_)));
}

#[test]
fn everybody_who_reaches_a_node_is_listed_by_owner() {
    let case = tailnet(POLICY);
    let policy = Policy::parse(POLICY).unwrap();
    let answer = Reach::new(&policy, &case.directory, NOW).who_can_reach(&case.names, "web:443").unwrap();
    assert_eq!(answer.entries.len(), 1);
    assert_eq!(answer.entries[0].nodes["ann@x.org"], ["laptop", "phone"]);
}

#[test]
fn tests_of_a_policy_pass_and_fail_as_written() {
    for (test, wanted) in [
        (json!({"src": "ann@x.org", "accept": ["tag:web:80"], "deny": ["tag:web:22", "tag:db:5432"]}), None),
        // A tag that no device has counts as one.
        (json!({"src": "tag:none", "deny": ["tag:web:80"]}), None),
        (json!({"src": "ann@x.org", "proto": "udp", "accept": ["tag:web:80"]}), Some("want: Accept, got: Drop")),
        (json!({"src": "bob@y.org", "deny": ["printer:9100"]}), Some("want: Drop, got: Accept")),
        (json!({"src": "ann@x.org", "accept": ["tag:web:*"]}), Some("must be a single port")),
        (json!({"src": "ann@x.org", "accept": ["10.0.0.0/8:80"]}), Some("not a CIDR range")),
        (json!({"src": "zoe@x.org", "accept": ["tag:web:80"]}), Some("user not found")),
        (json!({"src": "ann@x.org"}), Some("must have at least one")),
        (json!({"src": "ann@x.org", "proto": "gre", "accept": ["tag:web:80"]}), Some("test protocol must be")),
    ] {
        let text = POLICY.replacen("\"acls\"", &format!("\"tests\": [{test}], \"acls\""), 1);
        let failures = Policy::parse(&text).unwrap().run_tests(&tailnet(POLICY).directory, NOW);
        let told: Vec<String> = failures.iter().map(ToString::to_string).collect();
        match wanted {
            None => assert!(told.is_empty(), "{test}: {told:?}"),
            Some(wanted) => assert!(told.len() == 1 && told[0].contains(wanted), "{test}: {told:?}"),
        }
    }
}

#[test]
fn checks_come_before_accepts_and_nobody_is_root_by_name() {
    let case = tailnet(POLICY);
    let policy = Policy::parse(POLICY).unwrap();
    let reach = Reach::new(&policy, &case.directory, NOW);
    let decide = |from, to, user| reach.ssh_decision(NodeId(from), NodeId(to), user);
    assert_eq!(decide(1, 5, "root"), SshDecision::Check(Duration::from_secs(3600)));
    assert_eq!(decide(1, 5, "deploy"), SshDecision::Accept);
    assert_eq!(decide(1, 4, "ann"), SshDecision::Accept);
    assert_eq!(decide(1, 4, "root"), SshDecision::Deny);
    assert_eq!(decide(3, 4, "bob"), SshDecision::Deny, "another domain");
    assert_eq!(decide(7, 4, "root"), SshDecision::Deny, "a login called root");
    assert_eq!(decide(4, 5, "deploy"), SshDecision::Deny, "a tagged device is no member");
    let ssh = SshRules::new(&reach);
    let rules = ssh.policy(NodeId(4)).rules;
    assert!(rules.iter().all(|rule| rule.ssh_users.get("root").is_none_or(String::is_empty)), "{rules:?}");
    let holds: Vec<bool> = ssh
        .policy(NodeId(5))
        .rules
        .iter()
        .map(|rule| !rule.action.as_ref().unwrap().hold_and_delegate.is_empty())
        .collect();
    assert_eq!(holds, [true, false]);
    assert!(ssh.policy(NodeId(6)).rules.is_empty());
}

#[test]
fn equal_rights_in_other_words_are_no_difference() {
    let case = tailnet(POLICY);
    let diff = |old: &str, new: &str| {
        let (old, new) = (Policy::parse(old).unwrap(), Policy::parse(new).unwrap());
        PolicyDiff::of(&old, &new, &case.directory, &case.names).lines()
    };
    let nothing = ["nobody gains or loses anything"];
    assert_eq!(diff(POLICY, POLICY), nothing);
    assert_eq!(diff(POLICY, &POLICY.replace("[\"group:ops\"], \"dst\"", "[\"ann@x.org\"], \"dst\"")), nothing);
    assert_eq!(diff(POLICY, &POLICY.replace("80,443", "79-81,443")), ["+ laptop, phone -> web: tcp 79,81",]);
    assert_eq!(diff(POLICY, &POLICY.replace(", \"autogroup:self:*\"", "")), ["- desk -> own devices: all traffic"]);
}

#[test]
fn a_policy_can_be_asked_without_a_tailnet() {
    let policy = Policy::parse(POLICY).unwrap();
    let (directory, names) = Directory::of_words(&[&policy]);
    let ask = |from: &str, to: &str| {
        let question = PolicyQuestion::Explain { from: from.to_owned(), to: to.to_owned() };
        question.answer(&policy, &directory, &names, NOW).unwrap().details["verdict"].clone()
    };
    assert_eq!(ask("group:ops", "tag:web:80"), "allowed");
    assert_eq!(ask("bob@y.org", "printer:9100"), "allowed");
    assert_eq!(ask("another member", "tag:web:80"), "denied");
}

#[test]
fn strange_cases_are_refused_with_a_reason() {
    let node = json!({"tags": ["tag:a"], "ipv4": "100.64.0.1"});
    for (case, reason) in [
        (json!([]), "it must be an object"),
        (json!({"policy": 1}), "policy must be"),
        (json!({"policy": "{"}), "line 1"),
        (json!({"policy": "{}", "users": {}}), "users must be a list"),
        (json!({"policy": "{}", "users": [{"id": 1}]}), "login name"),
        (json!({"policy": "{}", "nodes": []}), "nodes must be"),
        (json!({"policy": "{}", "nodes": {"a": 1}}), "must be an object"),
        (json!({"policy": "{}", "nodes": {"a": {}}}), "neither a user nor tags"),
        (json!({"policy": "{}", "nodes": {"a": {"user": "zoe"}}}), "not among the users"),
        (json!({"policy": "{}", "nodes": {"a": {"tags": ["tag:a"], "ipv4": "x"}}}), "must be an address"),
        (json!({"policy": "{}", "nodes": {"a": node, "b": node}}), "twice"),
        (
            json!({"policy": "{}", "nodes": {"a": {"tags": ["tag:a"], "id": 1}, "b": {"tags": ["tag:a"], "id": 1}}}),
            "twice",
        ),
    ] {
        let answer = case::run(&case.to_string(), NOW);
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(answer["status"] == 400 && message.contains(reason), "{case}: {answer}");
    }
    for text in ["", "null", "{", "{\"policy\":", "\u{0}"] {
        assert_eq!(case::run(text, NOW)["status"], 400, "{text:?}");
    }
    let small = json!({"policy": "{}", "users": [{"email": "ann@x.org"}], "nodes": {"a": {"user": "ann@x.org"}}});
    assert_eq!(case::run(&small.to_string(), NOW)["status"], 200, "a node without addresses");
}

/// Tells whether a filter lets a packet through, by its wire form.
fn passes(rules: &[FilterRule], from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> bool {
    let holds = |text: &str, address: IpAddr| match text.split_once('-') {
        _ if text == "*" => true,
        Some((first, last)) => {
            let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
            first.is_ipv4() == address.is_ipv4() && first <= address && address <= last
        }
        None => match text.parse::<ipnet::IpNet>() {
            Ok(prefix) => prefix.contains(&address),
            Err(_) => text.parse::<IpAddr>().unwrap() == address,
        },
    };
    rules.iter().any(|rule| {
        let protocols = if rule.ip_proto.is_empty() { vec![6, 17, 1, 58] } else { rule.ip_proto.clone() };
        protocols.contains(&i64::from(protocol))
            && rule.src_ips.iter().any(|text| holds(text, from))
            && rule.dst_ports.iter().any(|entry| holds(&entry.ip, to) && entry.ports.contains(port))
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "*",
        "ann@x.org",
        "bob@y.org",
        "group:ops",
        "tag:web",
        "tag:db",
        "autogroup:member",
        "autogroup:tagged",
        "100.64.0.4",
        "10.1.0.0/24",
        "printer",
        "100.64.0.0/29",
    ]);
    let own = any::<prop::sample::Index>();
    let service = prop::sample::select(vec!["*", "tcp:80", "udp:*", "22", "icmp:*", "tcp:443-500"]);
    let list = |word: BoxedStrategy<&'static str>| prop::collection::vec(word, 1..3);
    (list(word.clone().boxed()), list(word.boxed()), service, any::<bool>(), own).prop_map(
        |(src, dst, ip, via, own)| {
            let mut rule = json!({"src": src, "dst": dst, "ip": [ip]});
            if own.index(5) == 0 {
                rule["src"] = json!(["autogroup:member"]);
                rule["dst"] = json!(["autogroup:self"]);
            } else if via && own.index(3) == 0 {
                rule["via"] = json!(["tag:router"]);
            }
            rule
        },
    )
}

proptest! {
    #[test]
    fn the_judge_of_rules_and_the_compiled_filter_agree(rules in prop::collection::vec(rule(), 1..5)) {
        let mut text: Value = json!({
            "groups": {"group:ops": ["ann@x.org"]}, "hosts": {"printer": "10.1.0.9"},
            "tagOwners": {"tag:web": [], "tag:db": [], "tag:router": []},
        });
        text["grants"] = Value::Array(rules);
        let policy = Policy::parse(&text.to_string()).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let directory = tailnet("{}").directory;
        let compiled = policy.compile(&directory, NOW);
        let reach = Reach::new(&policy, &directory, NOW);
        let nodes = directory.nodes.values().flat_map(|node| &node.addresses).copied();
        let strangers = ["10.1.0.9", "10.1.200.1", "100.64.9.9", "8.8.8.8"].map(|text| text.parse::<IpAddr>().unwrap());
        let addresses: Vec<IpAddr> = nodes.chain(strangers).collect();
        for (id, node) in &directory.nodes {
            let filter: Vec<FilterRule> = compiled.filter(*id).iter().map(warren_policy::NodeRule::to_wire).collect();
            let here = |to: &IpAddr| node.addresses.contains(to) || node.subnet_routes().any(|route| route.contains(to));
            for to in addresses.iter().filter(|to| here(to)) {
                for from in &addresses {
                    for (protocol, port) in [(6, 80), (6, 22), (17, 22), (1, 0), (58, 0), (132, 80)] {
                        let judged = !reach.rules_at(*id, *from, *to, protocol, port).is_empty();
                        let compiled = passes(&filter, *from, *to, protocol, port);
                        prop_assert_eq!(judged, compiled, "{} at {}: {} -> {} {}/{}", text, id, from, to, port, protocol);
                    }
                }
            }
        }
    }
}

#[test]
fn routes_are_approved_by_owner_and_exits_apart() {
    let text = r#"{"tagOwners": {"tag:router": []}, "autoApprovers": {
        "routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["ann@x.org"]}, "exitNode": ["autogroup:member"]}}"#;
    let (policy, case) = (Policy::parse(text).unwrap(), tailnet("{}"));
    let reach = Reach::new(&policy, &case.directory, NOW);
    let router = Owner::Tags(["tag:router".to_owned()].into());
    let ann = Owner::User(warren_wire::control::UserId(1));
    let approves = |owner: &Owner, route: &str| reach.auto_approves(owner, route.parse().unwrap());
    assert!(approves(&router, "10.1.0.0/16") && approves(&router, "10.0.0.0/8"));
    assert!(!approves(&router, "0.0.0.0/0") && !approves(&router, "11.0.0.0/8") && !approves(&router, "8.0.0.0/5"));
    assert!(approves(&ann, "0.0.0.0/0") && approves(&ann, "::/0") && !approves(&ann, "10.1.0.0/16"));
}
