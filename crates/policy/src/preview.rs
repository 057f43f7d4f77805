//! Which rules concern a person or a destination, whoever the other end is.

use crate::reach::{Named, Party, Traffic, leads_to_own_devices};
use crate::{Owner, Policy, Reach};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Whom a preview is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviewOf<'a> {
    /// A person by login name, as a source.
    User(&'a str),
    /// An address and a port, as a destination.
    Destination(IpAddr, u16),
}

/// A rule that concerns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewRule {
    /// Line in the policy, from 1.
    pub line: usize,
    /// Its sources, as written.
    pub sources: Vec<String>,
    /// Its destinations, as written.
    pub destinations: Vec<String>,
    /// The traffic to each of them that a grant lets through, as written; empty for other rules, whose destinations say it.
    pub traffic: Vec<String>,
}

impl Reach<'_> {
    /// Returns the rules that name a person as source or a destination, in the order of the policy. Postures and the other
    /// end are not looked at; nobody is told of a rule twice. All of them together are not longer than the policy.
    #[must_use]
    pub fn preview(&self, of: PreviewOf<'_>) -> Vec<PreviewRule> {
        let places: BTreeSet<usize> = match of {
            PreviewOf::User(login) => {
                let known = self.directory.users.iter().find(|(_, user)| user.login == login);
                let Some(owner) = known.map(|(id, _)| Owner::User(*id)) else { return Vec::new() };
                let named = Named::Owners(vec![owner.clone()]);
                let mut parties = named.parties(self);
                // A device that they do not have yet, too.
                parties.push(Party { address: None, node: None, owner: Some(&owner), attributes: None });
                self.places(|grant| parties.iter().any(|party| self.is_source(grant, *party)))
            }
            PreviewOf::Destination(address, port) => {
                let party = self.party(address);
                let traffic = Traffic { protocols: Vec::new(), port: Some(port) };
                let is_own = matches!(party.owner, Some(Owner::User(_)));
                self.places(|grant| {
                    grant.services.iter().any(|service| traffic.is_in(service))
                        && (self.names_destination(grant, party) || is_own && leads_to_own_devices(grant))
                })
            }
        };
        let text = self.policy.text();
        let (mut line, mut before) = (1, 0);
        let numbered = |at| {
            // Only what lies between two rules is looked at for the second one.
            line += text.get(before..at).map_or(0, |part| part.bytes().filter(|byte| *byte == b'\n').count());
            before = at;
            rule(self.policy, at, line)
        };
        places.into_iter().map(numbered).collect()
    }

    /// Returns where the rules are that hold now and fit; each once, however many destinations it has.
    fn places(&self, fits: impl Fn(&crate::model::Grant) -> bool) -> BTreeSet<usize> {
        let places = &self.policy.sections.grant_places;
        let fitting = self.rules().filter(|(_, grant)| self.holds_now(grant) && fits(grant));
        fitting.filter_map(|(number, _)| places.get(number).copied()).collect()
    }
}

/// Reads a rule of a valid policy as its author wrote it.
fn rule(policy: &Policy, at: usize, line: usize) -> PreviewRule {
    let text = crate::reach::rule_text(policy, at);
    let json = Policy::to_json(text).ok().and_then(|json| serde_json::from_str::<Value>(&json).ok());
    let list = |names: &[&str]| -> Vec<String> {
        let list = json.as_ref().and_then(|rule| names.iter().find_map(|name| rule.get(name)?.as_array()));
        list.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    PreviewRule {
        line,
        sources: list(&["src", "users"]),
        destinations: list(&["dst", "ports"]),
        traffic: list(&["ip"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Directory, DirectoryUser, Role};
    use std::collections::BTreeMap;
    use warren_wire::control::UserId;

    const POLICY: &str = r#"{
  "groups": {"group:dev": ["ann@example.com"]},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["10.0.0.0/8:22", "10.0.0.0/8:80"]},
    {"action": "accept", "src": ["ben@example.com"], "dst": ["*:443"]},
  ],
  "grants": [
    // for all
    {"src": ["autogroup:member"], "dst": ["10.1.0.0/16"], "ip": ["tcp:22"]},
  ],
}"#;

    fn lines(of: PreviewOf<'_>) -> Vec<usize> {
        let user = |id, login: &str| {
            let user = DirectoryUser { login: login.to_owned(), role: Role::Member, groups: BTreeSet::new() };
            (UserId(id), user)
        };
        let users = BTreeMap::from([user(1, "ann@example.com"), user(2, "ben@example.com")]);
        let directory = Directory { users, ..Directory::default() };
        let policy = Policy::parse(POLICY).unwrap();
        Reach::new(&policy, &directory, 0).preview(of).iter().map(|rule| rule.line).collect()
    }

    #[test]
    fn rules_are_found_by_person_and_by_destination() {
        assert_eq!(lines(PreviewOf::User("ann@example.com")), [4, 9]);
        assert_eq!(lines(PreviewOf::User("ben@example.com")), [5, 9]);
        assert_eq!(lines(PreviewOf::User("eve@example.com")), [0; 0]);
        let to = |address: &str, port| PreviewOf::Destination(address.parse().unwrap(), port);
        assert_eq!(lines(to("10.1.2.3", 22)), [4, 9]);
        assert_eq!(lines(to("10.2.2.3", 22)), [4]);
        assert_eq!(lines(to("10.2.2.3", 23)), [0; 0]);
        assert_eq!(lines(to("100.64.0.1", 443)), [5]);
    }

    #[test]
    fn rules_are_shown_as_written() {
        let policy = Policy::parse(POLICY).unwrap();
        let directory = Directory::default();
        let of = PreviewOf::Destination("10.1.2.3".parse().unwrap(), 22);
        let rules = Reach::new(&policy, &directory, 0).preview(of);
        assert_eq!(
            (&rules[0].sources[..], &rules[0].destinations[..]),
            (&["group:dev".to_owned()][..], &["10.0.0.0/8:22".to_owned(), "10.0.0.0/8:80".to_owned()][..])
        );
        assert_eq!(
            (&rules[1].destinations[..], &rules[1].traffic[..]),
            (&["10.1.0.0/16".to_owned()][..], &["tcp:22".to_owned()][..])
        );
    }

    #[test]
    fn what_is_shown_is_not_longer_than_the_policy() {
        let list = |of: fn(u32) -> String| (0..100).map(of).collect::<Vec<_>>().join(", ");
        let (to, ip) =
            (list(|n| format!("\"10.{}.{}.0/24\"", n / 250, n % 250)), list(|n| format!("\"tcp:{}\"", n + 1)));
        let text = format!("{{\"grants\": [{{\"src\": [\"*\"], \"dst\": [{to}], \"ip\": [{ip}]}}]}}");
        let (policy, directory) = (Policy::parse(&text).unwrap(), Directory::default());
        let of = PreviewOf::Destination("10.0.3.1".parse().unwrap(), 22);
        let rules = Reach::new(&policy, &directory, 0).preview(of);
        let shown = rules.iter().flat_map(|rule| rule.sources.iter().chain(&rule.destinations).chain(&rule.traffic));
        assert_eq!(rules.len(), 1);
        assert!(shown.map(String::len).sum::<usize>() < text.len(), "one rule is told once");
    }
}
