//! One entry of `tests`: a source, and where it must get and must not get.

use crate::model::{Grant, ReachTest};
use crate::reach::{DEFAULT_PROTOCOLS, Named, Party, Traffic, leads_to_own_devices};
use crate::selector::{Selector, split_destination};
use crate::service::parse_protocol;
use crate::{Attributes, Reach};

/// Protocols that a test may name beside none: TCP, UDP, SCTP.
const PROTOCOLS: [u8; 3] = [6, 17, 132];

/// Runs a test; returns what is wrong.
pub(super) fn run(reach: &Reach<'_>, test: &ReachTest) -> Vec<String> {
    let mut errors = Vec::new();
    if test.accept.is_empty() && test.deny.is_empty() {
        errors.push("test entry must have at least one of \"accept\" or \"deny\"".to_owned());
    }
    let protocols = protocols(&test.protocol);
    if protocols.is_none() {
        errors.push(format!("test protocol must be tcp, udp, sctp, or empty, not {:?}", test.protocol));
    }
    let sources = named(reach, &test.source).map_err(|problem| errors.push(format!("src: {problem}")));
    let (Ok(sources), Some(protocols), true) = (sources, protocols, errors.is_empty()) else {
        return errors;
    };
    let mut sources = sources.parties(reach);
    let assumed: Vec<Attributes>;
    if !test.attributes.is_empty() {
        assumed = sources.iter().map(|source| attributes(source.attributes, &test.attributes)).collect();
        sources.iter_mut().zip(&assumed).for_each(|(source, assumed)| source.attributes = Some(assumed));
    }
    let cases = test.accept.iter().map(|text| (text, true)).chain(test.deny.iter().map(|text| (text, false)));
    for (text, wanted) in cases {
        errors.extend(judge(reach, &sources, &protocols, text, wanted).err());
    }
    errors
}

fn judge(reach: &Reach<'_>, sources: &[Party<'_>], protocols: &[u8], text: &str, wanted: bool) -> Result<(), String> {
    let (host, port) = destination(text)?;
    let host = named(reach, &host).map_err(|problem| format!("address {text:?}: {problem}"))?;
    let destinations = host.parties(reach);
    let traffic = Traffic { protocols: protocols.to_vec(), port: Some(port) };
    // Rules that could do it, with whether they lead to a destination by name.
    let rules: Vec<(&Grant, bool)> = reach
        .rules()
        .map(|(_, grant)| grant)
        .filter(|grant| reach.holds_now(grant) && grant.services.iter().any(|service| traffic.is_in(service)))
        .map(|grant| (grant, destinations.iter().any(|destination| reach.names_destination(grant, *destination))))
        .filter(|(grant, by_name)| *by_name || leads_to_own_devices(grant))
        .collect();
    let reaches = |source: &Party<'_>| {
        rules.iter().any(|(grant, by_name)| {
            reach.is_source(grant, *source)
                && reach.has_posture(&grant.postures, source.attributes)
                && (*by_name
                    || destinations.iter().any(|destination| reach.is_destination(grant, *source, *destination)))
        })
    };
    match wanted {
        true if !sources.iter().all(reaches) => Err(format!("address {text:?}: want: Accept, got: Drop")),
        false if sources.iter().any(reaches) => Err(format!("address {text:?}: want: Drop, got: Accept")),
        _ => Ok(()),
    }
}

/// Reads the protocol of a test; `None` if a test cannot have it. Without one, all that a rule without one lets through.
fn protocols(text: &str) -> Option<Vec<u8>> {
    match parse_protocol(text) {
        Ok(None) => Some(DEFAULT_PROTOCOLS.to_vec()),
        Ok(Some(protocol)) if PROTOCOLS.contains(&protocol) => Some(vec![protocol]),
        _ => None,
    }
}

/// Takes a destination apart into a single host and a single port.
fn destination(text: &str) -> Result<(String, u16), String> {
    let wrong = |what: &str| format!("address {text:?}: {what}");
    let (selector, ports) = split_destination(text.trim()).map_err(|problem| wrong(&problem.to_string()))?;
    let digits = !ports.is_empty() && ports.bytes().all(|byte| byte.is_ascii_digit());
    let port = ports.parse().ok().filter(|port: &u16| digits && *port > 0);
    let port = port.ok_or_else(|| wrong("test destination must be a single port"))?;
    if selector.contains('/') {
        return Err(wrong("test destination must be a single host, not a CIDR range"));
    }
    Ok((selector, port))
}

/// Looks the source or the host of a destination up.
pub(super) fn named(reach: &Reach<'_>, text: &str) -> Result<Named, String> {
    let sections = &reach.policy.sections;
    let selector = Selector::parse(text.trim()).map_err(|problem| problem.to_string())?;
    match &selector {
        Selector::Host(host) if !sections.hosts.contains_key(host) => {
            return Err(format!("host not defined in policy: {text:?}"));
        }
        Selector::Tag(tag) if !sections.tag_owners.contains_key(tag) => return Err(format!("tag not found: {text:?}")),
        Selector::Prefix(_) | Selector::Host(_) | Selector::Tag(_) | Selector::User(_) | Selector::Group(_) => {}
        Selector::Any
        | Selector::IpSet(_)
        | Selector::Service(_)
        | Selector::UsersOfDomain(_)
        | Selector::Members
        | Selector::Role(_)
        | Selector::Tagged
        | Selector::Shared
        | Selector::Everywhere
        | Selector::Internet
        | Selector::OwnDevices => {
            return Err(format!("{text:?} cannot be tested: name a user, group, tag, host or address"));
        }
    }
    match Named::of(reach, &selector) {
        None => Err(format!("{text:?} must be a single host, not a CIDR range")),
        Some(Named::Owners(owners)) if owners.is_empty() && matches!(selector, Selector::User(_)) => {
            Err(format!("user not found: {text:?}"))
        }
        Some(Named::Owners(owners)) if owners.is_empty() => Err(format!("{text:?} names nobody")),
        Some(named) => Ok(named),
    }
}

/// Gives sources the attributes that a test takes them to have, beside their own.
pub(super) fn attributes(own: Option<&Attributes>, given: &Attributes) -> Attributes {
    let mut attributes = own.cloned().unwrap_or_default();
    attributes.extend(given.clone());
    attributes
}
