//! The policy file.

use std::sync::LazyLock;

use ipnet::IpNet;
use warren_filter::{Filter, FilterInput, Shields};
use warren_policy::{Attributes, Directory, DirectoryNode, DirectoryUser, ERRORS_MAX, Owner, Policy};
use warren_wire::control::{NodeId, UserId};

/// Two users and their devices, a tagged router and a tagged exit node.
static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let user = |login: &str| DirectoryUser { login: login.to_owned(), ..DirectoryUser::default() };
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
            attributes: Attributes::new(),
        };
        (NodeId(number.into()), node)
    });
    Directory {
        users: [(UserId(1), user("a@x")), (UserId(2), user("b@x"))].into(),
        nodes: nodes.collect(),
        ..Directory::default()
    }
});

/// Reads `data` as a policy. A refused one must name places within the text; an accepted one is compiled, and both ends
/// of every pair must agree that they see each other, and nodes must understand their filters.
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
    let compiled = policy.compile(&DIRECTORY);
    for (one, node) in &DIRECTORY.nodes {
        let peers: Vec<NodeId> = compiled.peers(*one).collect();
        for two in DIRECTORY.nodes.keys() {
            assert_eq!(compiled.visible(*one, *two), compiled.visible(*two, *one));
            assert_eq!(compiled.visible(*one, *two), peers.contains(two));
        }
        let rules = compiled.filter(*one);
        assert!(rules.iter().all(|rule| !rule.src_ips.is_empty() && !rule.dst_ports.is_empty()));
        let own = node.addresses.iter().copied().map(IpNet::from);
        let local: Vec<IpNet> = own.chain(node.approved_routes.iter().copied()).collect();
        let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| Vec::new() };
        let (_, problems) = Filter::compile(&input).expect("rules without the obsolete form");
        assert_eq!(problems, [], "{text}");
    }
}
