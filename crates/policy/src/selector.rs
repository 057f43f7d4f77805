//! Selectors: the words by which a policy names nodes and addresses.

use crate::Role;
use crate::problem::Problem;
use ipnet::IpNet;
use std::net::IpAddr;

/// A set of nodes or addresses, as written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Selector {
    /// `*`: the whole tailnet, subnet routes included.
    Any,
    /// Untagged devices of a user.
    User(String),
    /// Untagged devices of the members of a group.
    Group(String),
    /// Devices with a tag.
    Tag(String),
    /// Address of a host alias.
    Host(String),
    /// Literal addresses, without host bits.
    Prefix(IpNet),
    /// Addresses of a set, `ipset:…`.
    IpSet(String),
    /// Virtual addresses of a service, `svc:…`.
    Service(String),
    /// Untagged devices of members whose login ends in `@` and this domain.
    UsersOfDomain(String),
    /// All untagged devices of members.
    Members,
    /// Untagged devices of users with a role.
    Role(Role),
    /// All tagged devices.
    Tagged,
    /// Devices of users outside the tailnet that accepted a shared node.
    Shared,
    /// Every address, even outside the tailnet.
    Everywhere,
    /// The Internet, through an exit node.
    Internet,
    /// Devices of the same user as the source.
    OwnDevices,
}

impl Selector {
    /// Reads a selector, whatever place it stands in.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(address) = parse_prefix(text) {
            return Ok(Self::Prefix(address));
        }
        let own = || text.to_owned();
        if let Some((family, name)) = text.split_once(':') {
            return match family {
                _ if name.is_empty() => Err(Problem::SelectorForm { text: own() }),
                "group" => Ok(Self::Group(own())),
                "tag" => Ok(Self::Tag(own())),
                "ipset" => Ok(Self::IpSet(own())),
                "svc" => Ok(Self::Service(own())),
                "autogroup" => autogroup(text, name),
                "user" => match name.strip_prefix("*@").filter(|domain| is_domain(domain)) {
                    Some(domain) => Ok(Self::UsersOfDomain(domain.to_owned())),
                    None => Err(Problem::UserPattern { text: own() }),
                },
                _ => Err(Problem::SelectorForm { text: own() }),
            };
        }
        if text.contains('@') {
            return check_user(text).map(|login| Self::User(login.to_owned()));
        }
        if text.contains('/') {
            return Err(Problem::Address { text: own() });
        }
        Ok(Self::Host(own()))
    }
}

fn autogroup(text: &str, name: &str) -> Result<Selector, Problem> {
    Ok(match name {
        "member" | "members" => Selector::Members,
        "self" => Selector::OwnDevices,
        "tagged" => Selector::Tagged,
        "internet" => Selector::Internet,
        "danger-all" => Selector::Everywhere,
        "shared" => Selector::Shared,
        "owner" => Selector::Role(Role::Owner),
        "admin" => Selector::Role(Role::Admin),
        "it-admin" => Selector::Role(Role::ItAdmin),
        "network-admin" => Selector::Role(Role::NetworkAdmin),
        "billing-admin" => Selector::Role(Role::BillingAdmin),
        "auditor" => Selector::Role(Role::Auditor),
        _ => return Err(Problem::UnknownAutogroup { name: text.to_owned() }),
    })
}

/// Tells whether a text may be the domain of logins.
pub(crate) fn is_domain(text: &str) -> bool {
    !text.is_empty() && !text.contains(['*', '@', ':', '/']) && !text.contains(char::is_whitespace)
}

/// Demands a login name, which has an `@`, and returns it without a trailing one.
pub(crate) fn check_user(text: &str) -> Result<&str, Problem> {
    let login = user_name(text);
    let strange = login.is_empty() || login.contains(['*', ':', ',']) || login.contains(char::is_whitespace);
    if strange { Err(Problem::UserPattern { text: text.to_owned() }) } else { Ok(login) }
}

/// Returns the login name: one trailing `@` stands for a name without domain.
pub(crate) fn user_name(text: &str) -> &str {
    text.strip_suffix('@').unwrap_or(text)
}

/// Reads an address or a prefix; host bits are cleared.
pub(crate) fn parse_prefix(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    text.parse::<IpNet>().ok().map(|prefix| prefix.trunc())
}

/// Demands `tag:`, a letter, then letters, digits and hyphens.
pub(crate) fn check_tag_name(tag: &str) -> Result<(), Problem> {
    let Some(name) = tag.strip_prefix("tag:") else {
        return Err(Problem::DefinitionName { what: "tag", prefix: "tag:", name: tag.to_owned() });
    };
    let starts_well = name.starts_with(|letter: char| letter.is_ascii_alphabetic());
    if !starts_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Problem::TagName { name: tag.to_owned() });
    }
    Ok(())
}

/// Splits a destination at its last colon into selector and ports; brackets around IPv6 are taken off.
pub(crate) fn split_destination(text: &str) -> Result<(String, &str), Problem> {
    let missing = || Problem::MissingPorts { text: text.to_owned() };
    let (selector, ports) = text.rsplit_once(':').ok_or_else(missing)?;
    let brackets = || Problem::Brackets { text: text.to_owned() };
    let Some(inside) = selector.strip_prefix('[') else {
        if selector.contains(['[', ']']) || text.contains('[') {
            return Err(brackets());
        }
        return Ok((selector.to_owned(), ports));
    };
    let (address, rest) = inside.split_once(']').ok_or_else(brackets)?;
    let is_ipv6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    if !is_ipv6 || !(rest.is_empty() || rest.starts_with('/')) {
        return Err(brackets());
    }
    Ok((format!("{address}{rest}"), ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_told_apart() {
        for (text, wanted) in [
            ("*", Selector::Any),
            ("ann@example.com", Selector::User("ann@example.com".to_owned())),
            ("odin@", Selector::User("odin".to_owned())),
            ("group:dev", Selector::Group("group:dev".to_owned())),
            ("tag:web", Selector::Tag("tag:web".to_owned())),
            ("printer", Selector::Host("printer".to_owned())),
            ("10.1.2.3", Selector::Prefix("10.1.2.3/32".parse().unwrap())),
            ("10.1.2.3/8", Selector::Prefix("10.0.0.0/8".parse().unwrap())),
            ("fd7a::1", Selector::Prefix("fd7a::1/128".parse().unwrap())),
            ("autogroup:members", Selector::Members),
            ("autogroup:self", Selector::OwnDevices),
            ("autogroup:network-admin", Selector::Role(Role::NetworkAdmin)),
            ("autogroup:danger-all", Selector::Everywhere),
            ("group:dev@example.com", Selector::Group("group:dev@example.com".to_owned())),
            ("user:*@example.com", Selector::UsersOfDomain("example.com".to_owned())),
            ("ipset:lab", Selector::IpSet("ipset:lab".to_owned())),
            ("svc:web", Selector::Service("svc:web".to_owned())),
        ] {
            assert_eq!(Selector::parse(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn malformed_selectors_are_refused() {
        for text in [
            "tag:",
            "gruop:dev",
            "user:ann@x.org",
            "user:*@",
            "user:*@*",
            "*@x.org",
            "@",
            "a b@x",
            "autogroup:all",
            "10.0.0.0/33",
            "fd7a:",
            "%/%",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn destinations_split_at_the_last_colon() {
        for (text, selector, ports) in [
            ("tag:web:80,443", "tag:web", "80,443"),
            ("*:*", "*", "*"),
            ("10.0.0.0/8:22", "10.0.0.0/8", "22"),
            ("[fd7a::1]:22", "fd7a::1", "22"),
            ("[fd7a::]/48:22", "fd7a::/48", "22"),
            ("fd7a::1:22", "fd7a::1", "22"),
            ("autogroup:self", "autogroup", "self"),
        ] {
            assert_eq!(split_destination(text), Ok((selector.to_owned(), ports)), "{text}");
        }
        for text in ["[10.0.0.1]:22", "[fd7a::1:22", "x[y]:22", "[web]:1"] {
            assert!(matches!(split_destination(text), Err(Problem::Brackets { .. })), "{text}");
        }
        assert!(matches!(split_destination("web"), Err(Problem::MissingPorts { .. })));
    }

    #[test]
    fn tag_names_are_checked() {
        assert_eq!(check_tag_name("tag:web-1"), Ok(()));
        for tag in ["tag:", "tag:1", "tag:сервер", "tag:a b"] {
            assert!(matches!(check_tag_name(tag), Err(Problem::TagName { .. })), "{tag}");
        }
        assert!(matches!(check_tag_name("web"), Err(Problem::DefinitionName { .. })));
    }
}
