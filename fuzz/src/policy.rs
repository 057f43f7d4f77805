//! The policy file.

use std::sync::LazyLock;

use ipnet::IpNet;
use warren_filter::{Filter, FilterInput, Shields};
use warren_policy::{
    AttributeValue, Directory, DirectoryNode, DirectoryUser, ERRORS_MAX, NodeRule, Owner, Policy, Reach, Role, SshRules,
};
use warren_wire::control::{FilterRule, NodeId, UserId};

/// A Wednesday noon, for rules that hold at times.
const NOW: i64 = 1_795_608_000;

/// Two users and their devices, a tagged router and a tagged exit node.
static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let user = |login: &str, role: Role| DirectoryUser {
        login: login.to_owned(),
        role,
        groups: ["group:g@x".to_owned()].into(),
    };
    let tag = |tag: &str| Owner::Tags([tag.to_owned()].into());
    let nodes: [(Owner, &[&str]); 5] = [
        (Owner::User(UserId(1)), &[]),
        (Owner::User(UserId(1)), &["100.64.0.0/30"]),
        (Owner::User(UserId(2)), &[]),
        (tag("tag:a"), &["10.1.0.0/16", "fd00:1::/64"]),
        (tag("tag:b"), &["0.0.0.0/0", "::/0"]),
    ];
    let nodes = nodes.into_iter().zip(1_u8..).map(|((owner, routes), number)| {
        let addresses = [format!("100.64.0.{number}"), format!("fd7a:115c:a1e0::{number}")];
        let node = DirectoryNode {
            owner,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            approved_routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
            online: true,
            attributes: [("node:os".to_owned(), AttributeValue::Text("linux".to_owned()))].into(),
        };
        (NodeId(number.into()), node)
    });
    Directory {
        domains: ["x".to_owned()].into(),
        users: [(UserId(1), user("a@x", Role::Owner)), (UserId(2), user("b@x", Role::Member))].into(),
        nodes: nodes.collect(),
    }
});

/// Reads `data` as a policy. A refused one must name places within the text; an accepted one is formatted, which must be
/// done once and leave it valid, its tests are run, and it is compiled: both ends of every pair must agree that they see
/// each other, and nodes must understand their filters.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(errors) => {
            assert!((1..=ERRORS_MAX).contains(&errors.errors().len()));
            let lines: Vec<&str> = text.split('\n').collect();
            for error in errors.errors() {
                assert!(!error.to_string().is_empty());
                let line = lines.get(error.position.line - 1).expect("a line of the text");
                assert!((1..=line.chars().count() + 1).contains(&error.position.column), "{error}");
            }
            return;
        }
    };
    assert_eq!(policy.text(), text);
    let formatted = Policy::format(text).expect("a valid policy");
    Policy::parse(&formatted).expect("the same policy in another form");
    assert_eq!(Policy::format(&formatted).as_ref(), Ok(&formatted));
    let _ = policy.check_domains(&DIRECTORY);
    assert!(policy.run_tests(&DIRECTORY, NOW).len() <= policy.test_count());
    let reach = Reach::new(&policy, &DIRECTORY, NOW);
    let ssh = SshRules::new(&reach);
    let compiled = policy.compile(&DIRECTORY, NOW);
    assert!(compiled.next_edge().is_none_or(|edge| edge > NOW));
    for (one, node) in &DIRECTORY.nodes {
        let peers: Vec<NodeId> = compiled.peers(*one).collect();
        for two in DIRECTORY.nodes.keys() {
            assert_eq!(compiled.visible(*one, *two), compiled.visible(*two, *one));
            assert_eq!(compiled.visible(*one, *two), peers.contains(two));
        }
        let rules: Vec<FilterRule> = compiled.filter(*one).iter().map(NodeRule::to_wire).collect();
        for rule in &rules {
            assert_ne!(rule.dst_ports.is_empty(), rule.cap_grant.is_empty(), "a rule lets pass or grants");
            assert!(!rule.src_ips.is_empty() || rule.dst_ports.is_empty());
        }
        assert!(policy.has_ssh() || ssh.policy(*one).rules.is_empty());
        let _ = reach.own_capabilities(*one);
        let own = node.addresses.iter().copied().map(IpNet::from);
        let local: Vec<IpNet> = own.chain(node.approved_routes.iter().copied()).collect();
        let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| Vec::new() };
        let (_, problems) = Filter::compile(&input).expect("rules without the obsolete form");
        assert_eq!(problems, [], "{text}");
    }
}
