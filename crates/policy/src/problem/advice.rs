//! What to write instead of what is wrong.

use super::Problem;
use crate::posture::NODE_ATTRIBUTES;

/// First words of selectors, for whoever misspelled one.
const FAMILIES: [&str; 8] = ["group", "tag", "autogroup", "ipset", "svc", "user", "host", "posture"];

const PROTOCOLS: &str =
    "write tcp, udp, icmp, ipv6-icmp, sctp, gre, esp, ah, igmp, or a number from 1 to 255 in quotes";

impl Problem {
    /// Says what to write instead.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest has advice that does not depend on its fields")]
    pub fn advice(&self) -> String {
        let fixed = match self {
            Self::DuplicateName { .. } => "keep one of them, or join what they hold",
            Self::WrongKind { wanted, .. } => return format!("write {wanted}"),
            Self::UnknownField { name, known } => {
                return match nearest(name, known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known here: {}", known.join(", ")),
                };
            }
            Self::SelectorForm { text } => {
                let family = text.split(':').next().unwrap_or_default();
                return match nearest(family, &FAMILIES) {
                    Some(near) => format!("did you mean \"{near}:…\"?"),
                    None => "write a user (with @), group:…, tag:…, a host, an address or a prefix".to_owned(),
                };
            }
            Self::UnknownAttribute { name } => {
                return match nearest(name, &NODE_ATTRIBUTES) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known are {}", NODE_ATTRIBUTES.join(", ")),
                };
            }
            Self::Misplaced { allowed, .. } => return format!("write {allowed}"),
            Self::UndefinedTag { tag, .. } | Self::UndefinedViaTag { tag } => {
                return format!("add {tag:?} with its owners to tagOwners");
            }
            Self::UndefinedOwnerTag { owner, .. } => return format!("add {owner:?} with its owners to tagOwners"),
            Self::UndefinedGroup { group } => return format!("add {group:?} with its members to groups"),
            Self::UndefinedHost { host } => {
                return format!(
                    "add {host:?} with its address to hosts, or write a user (with @), group:…, tag:… or an address"
                );
            }
            Self::UndefinedIpSet { name } => return format!("add {name:?} with its addresses to ipsets"),
            Self::UndefinedPosture { name } => return format!("add {name:?} with its assertions to postures"),
            Self::DefinitionName { prefix, name, .. } => return format!("write \"{prefix}{}\"", name.trim()),
            Self::SyncedGroup { .. } => "remove it here and use it in rules, or choose a name without @",
            Self::MissingPorts { text } => return format!("write \"{text}:*\" or name the ports"),
            _ => self.fixed_advice(),
        };
        fixed.to_owned()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest has advice made of its fields")]
    const fn fixed_advice(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "shorten it, with groups and tags in place of lists",
            Self::TooManyDestinations { .. } => "give groups of machines a tag, and name the tag",
            Self::TooManyRanges { .. } => "write prefixes in place of single addresses",
            Self::TooDeep { .. } => "no section needs that depth",
            Self::EmptyDocument => "write {\"acls\": []} to deny everything",
            Self::Syntax { .. } => {
                "write JSON; only comments and trailing commas may be added, and every name and text stands in double quotes"
            }
            Self::ControlCharacter => "write \\n, \\t or \\u00XX",
            Self::UnknownAutogroup { .. } => {
                "known are member, tagged, self, internet, danger-all, shared, owner, admin, it-admin, network-admin, billing-admin and auditor"
            }
            Self::BothMemberSpellings => "write autogroup:member everywhere",
            Self::MissingAction | Self::UnsupportedAction { .. } => {
                "write \"action\": \"accept\"; what no rule accepts is denied"
            }
            Self::WrongSide { .. } => "write autogroup:member as the source of a rule to autogroup:self",
            Self::InternetAsSource => "name the devices that may answer as the source",
            Self::EverywhereAsDestination => "write * for the tailnet, or autogroup:internet through exit nodes",
            Self::SelfWithOtherSources { .. } => "give this source a rule of its own, with another destination",
            Self::UserPattern { .. } => {
                "write a login name like ann@example.com, or user:*@example.com for all of a domain"
            }
            Self::Address { .. } => "write an address like 10.0.0.1, a prefix like 10.0.0.0/8, or a name in hosts",
            Self::TagName { .. } => "choose a name like tag:web-server",
            Self::NestedGroup { .. } => "list the users themselves",
            Self::UserName { .. } => "write the login name, like ann@example.com",
            Self::HostName { .. } => "choose a name without : * @ and / that is no address",
            Self::HostAddress { .. } => "write an address like 10.0.0.1 or a prefix like 10.0.0.0/8",
            Self::TagOwner { .. } => "write a user, group:…, tag:… or an autogroup of users",
            Self::Brackets { .. } => "write [address]:ports for IPv6 and address:ports for IPv4",
            Self::Ports { .. } => "write *, 443, 8000-8999, or several with commas; ports go from 1 to 65535",
            Self::Protocol { .. } | Self::ProtocolRange { .. } | Self::ProtocolLeadingZero { .. } => PROTOCOLS,
            Self::PortsWithoutPortProtocol { .. } => "write :* as the ports",
            Self::GrantColons { .. } => "write ports, or a protocol and ports like tcp:443",
            Self::EmptyGrant => "write \"ip\": [\"*\"] for all traffic",
            Self::ViaNoTag { .. } => "write the tag of the routers",
            Self::AppToInternet => "name devices, or write ip in place of app",
            Self::DefaultRoute { .. } => "write one of these",
            Self::CapabilityForm { .. } => "write a name like example.com/cap/name, without https://",
            Self::CapabilityDomain { .. } => {
                "use a domain of your own, or one of tailscale.com/cap/ drive, relay, webui, kubernetes, tsidp, secrets"
            }
            Self::Value { .. } => "write plain JSON",
            Self::MissingSshAction | Self::SshAction { .. } => "write \"action\": \"accept\" or \"action\": \"check\"",
            Self::MissingSshUsers | Self::SshUser { .. } => {
                "name the logins: root, autogroup:nonroot, localpart:*@example.com or any other"
            }
            Self::EmptyAcceptEnv => "name a variable; * and ? stand for any characters and for one",
            Self::SshDestination { .. } | Self::SshDestinationAny => {
                "write tag:…, autogroup:tagged, autogroup:member or autogroup:self"
            }
            Self::SshUserDestination { .. } => "write autogroup:self, or that user alone as the source",
            Self::SshSelfSources { .. } | Self::SshTaggedToUser { .. } | Self::SshTaggedToMember => {
                "give tagged sources a rule of their own, to tags"
            }
            Self::SshTaggedCheck { .. } => "write \"action\": \"accept\" for tagged sources",
            Self::CheckPeriod { .. } | Self::Duration { .. } => "write a time like 30m or 12h, at most 168h, or always",
            Self::CheckPeriodWithoutCheck => "write \"action\": \"check\", or remove checkPeriod",
            Self::PoolRange { .. } | Self::PoolReserved { .. } => {
                "write a prefix like 100.81.0.0/16, outside of 100.100.100.0/24 and 100.115.92.0/23"
            }
            Self::EmptyAttribute => "write the name of the attribute",
            Self::Approver { .. } => "write a user, group:…, tag:… or an autogroup of users",
            Self::RoutePrefix { .. } => "write a prefix like 10.0.0.0/8",
            Self::ServiceName { .. } => "write \"svc:name\" or \"tag:name\"",
            Self::Assertion { .. } => {
                "write attribute operator value, like node:os IN ['linux', 'macos'] or node:tsVersion >= '1.40'"
            }
            Self::EmptyDefinition { .. } => "write at least one, or remove it",
            Self::IpSetOperation { .. } => {
                "write add or remove, then an address, a prefix, a range a-b, host:…, ipset:… or autogroup:internet"
            }
            Self::IpSetBare { .. } => "write add before it",
            Self::IpSetCycle { .. } => "let one of them list the addresses itself",
            Self::Region { .. } => "write a number from 1 to 65535 in quotes, the same as the RegionID",
            Self::RegionNodes { .. } => "name its relays in Nodes, or write null to take the region away",
            Self::Choice { allowed, .. } => allowed,
            Self::Moment { .. } => "write a moment like 2027-01-31T18:00:00+01:00",
            Self::EndBeforeBegin => "let until be later than from",
            Self::Clock { .. } => "write hours and minutes like 08:30, up to 24:00",
            Self::Days { .. } => "write mon, tue, wed, thu, fri, sat, sun, or several like mon-fri",
            Self::Zone { .. } => "write a name of the IANA list, like Europe/Berlin, or UTC",
            Self::TestAttribute { .. } => "write a text, a number, true or false",
            Self::ForeignDomain { .. } => "name a domain of the tailnet, or a group or users",
            _ => "",
        }
    }
}

/// Returns the known name that is one or two letters away, without regard to case.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(&name.to_ascii_lowercase(), &candidate.to_ascii_lowercase()), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 2.min(candidate.len().div_ceil(2)))
        .map(|(_, candidate)| candidate)
}

/// Counts the letters to insert, remove or change (Levenshtein); long names are not compared.
fn distance(one: &str, two: &str) -> usize {
    if one.len() > 40 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=two.chars().count()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = index;
        let mut left = index.saturating_add(1);
        let mut next = vec![left];
        for (other, above) in two.chars().zip(row.iter().skip(1)) {
            let changed = diagonal.saturating_add(usize::from(letter != other));
            left = changed.min(left.saturating_add(1)).min(above.saturating_add(1));
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
