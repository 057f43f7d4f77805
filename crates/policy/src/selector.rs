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
        let unsupported = || Problem::UnsupportedSelector { selector: text.to_owned() };
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(address) = parse_prefix(text) {
            return Ok(Self::Prefix(address));
        }
        if let Some((family, name)) = text.split_once(':') {
            return match family {
                "group" if name.contains('@') => Err(unsupported()),
                "group" => Ok(Self::Group(text.to_owned())),
                "tag" => Ok(Self::Tag(text.to_owned())),
                "autogroup" => autogroup(text, name),
                "ipset" | "svc" | "user" | "host" | "posture" | "localpart" => Err(unsupported()),
                _ => Err(Problem::UndefinedHost { host: text.to_owned() }),
            };
        }
        if text.contains('@') {
            return Ok(Self::User(user_name(text).to_owned()));
        }
        Ok(Self::Host(text.to_owned()))
    }
}

fn autogroup(text: &str, name: &str) -> Result<Selector, Problem> {
    match name {
        "member" | "members" => Ok(Selector::Members),
        "self" => Ok(Selector::OwnDevices),
        "tagged" | "internet" | "danger-all" | "shared" | "nonroot" | "owner" | "admin" | "it-admin"
        | "network-admin" | "billing-admin" | "auditor" => {
            Err(Problem::UnsupportedSelector { selector: text.to_owned() })
        }
        _ => Err(Problem::UnknownAutogroup { name: text.to_owned() }),
    }
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
        return Err(Problem::TagPrefix { name: tag.to_owned() });
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
        ] {
            assert_eq!(Selector::parse(text), Ok(wanted), "{text}");
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
        assert!(matches!(check_tag_name("web"), Err(Problem::TagPrefix { .. })));
    }
}
