//! The section `ipsets`: sets of addresses, made by adding and removing.
//!
//! Source: policy.md, section 13.

use super::definitions::check_name;
use super::json::{Fields, definitions, noted, texts};
use crate::addresses::{AddressSet, AddressSetBuilder};
use crate::model::Sections;
use crate::problem::{Errors, Problem};
use crate::selector::parse_prefix;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Most ranges that all sets together may take in; sets that contain each other could be far longer than the text.
const RANGES_MAX: usize = 200_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Add,
    Remove,
}

/// What an operation adds or removes.
enum Target<'a> {
    Range(IpAddr, IpAddr),
    Internet,
    Set(&'a str),
}

struct Operation<'a> {
    at: usize,
    step: Step,
    target: Target<'a>,
}

/// How far a set is, while sets are made that contain each other.
enum State {
    /// The sets that it contains are being made.
    Open,
    Done(Arc<AddressSet>),
}

/// Reads all sets.
pub(super) fn read(
    policy: &Fields<'_>,
    sections: &Sections,
    errors: &mut Errors<'_>,
) -> BTreeMap<String, Arc<AddressSet>> {
    let Some(section) = policy.get("ipsets") else { return BTreeMap::new() };
    let mut written: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for (name, member) in definitions(section, "\"ipsets\"", errors) {
        if noted(check_name("ipset", "ipset:", name), member.at, errors).is_none() {
            continue;
        }
        let texts = texts(&member.value, &format!("a list of operations in {name:?}"), errors);
        written.insert(name, operations(texts, sections, errors));
    }
    for operation in written.values().flatten() {
        if let Target::Set(name) = operation.target
            && !written.contains_key(name)
        {
            errors.note(operation.at, Problem::UndefinedIpSet { name: name.to_owned() });
        }
    }
    let mut maker = Maker { written: &written, states: BTreeMap::new(), taken: 0 };
    for name in written.keys() {
        maker.make(name, errors);
    }
    let made = maker.states.into_iter().filter_map(|(name, state)| match state {
        State::Done(set) => Some((name.to_owned(), set)),
        State::Open => None,
    });
    made.collect()
}

fn operations<'a>(texts: Vec<(usize, &'a str)>, sections: &Sections, errors: &mut Errors<'_>) -> Vec<Operation<'a>> {
    let removes = texts.iter().any(|(_, text)| matches!(split(text), (Some(Step::Remove), _)));
    let mut found = Vec::new();
    for (at, text) in texts {
        let (step, rest) = split(text);
        if step.is_none() && removes {
            errors.note(at, Problem::IpSetBare { text: text.to_owned() });
        }
        let target = noted(target(text, rest, sections), at, errors);
        found.extend(target.map(|target| Operation { at, step: step.unwrap_or(Step::Add), target }));
    }
    found
}

/// Takes the word that says what to do off the front.
fn split(text: &str) -> (Option<Step>, &str) {
    match text.split_once(char::is_whitespace) {
        Some(("add", rest)) => (Some(Step::Add), rest.trim_start()),
        Some(("remove", rest)) => (Some(Step::Remove), rest.trim_start()),
        _ => (None, text),
    }
}

fn target<'a>(whole: &str, text: &'a str, sections: &Sections) -> Result<Target<'a>, Problem> {
    let wrong = || Problem::IpSetOperation { text: whole.to_owned() };
    if text == "autogroup:internet" {
        return Ok(Target::Internet);
    }
    if text.starts_with("ipset:") {
        return Ok(Target::Set(text));
    }
    if let Some(host) = text.strip_prefix("host:") {
        let prefix = sections.hosts.get(host).ok_or_else(|| Problem::UndefinedHost { host: host.to_owned() })?;
        return Ok(Target::Range(prefix.network(), prefix.broadcast()));
    }
    if let Some(prefix) = parse_prefix(text) {
        return Ok(Target::Range(prefix.network(), prefix.broadcast()));
    }
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
    let (first, last) = (address(first)?, address(last)?);
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(wrong());
    }
    Ok(Target::Range(first, last))
}

/// Makes sets in an order in which those that a set contains come before it.
struct Maker<'a> {
    written: &'a BTreeMap<&'a str, Vec<Operation<'a>>>,
    states: BTreeMap<&'a str, State>,
    /// Ranges that were taken in so far.
    taken: usize,
}

impl<'a> Maker<'a> {
    /// Makes a set and what it contains. A stack in place of recursion: chains may be long.
    fn make(&mut self, name: &'a str, errors: &mut Errors<'_>) {
        let mut stack = vec![name];
        while let Some(name) = stack.last().copied() {
            let operations = self.written.get(name).map(Vec::as_slice).unwrap_or_default();
            match self.states.get(name) {
                Some(State::Done(_)) => drop(stack.pop()),
                Some(State::Open) => {
                    let set = self.build(operations, errors);
                    self.states.insert(name, State::Done(Arc::new(set)));
                    stack.pop();
                }
                None => {
                    self.states.insert(name, State::Open);
                    for operation in operations {
                        let Target::Set(part) = operation.target else { continue };
                        match self.states.get(part) {
                            Some(State::Done(_)) => {}
                            // Open is what waits for this one.
                            Some(State::Open) => {
                                let (name, through) = (part.to_owned(), name.to_owned());
                                errors.note(operation.at, Problem::IpSetCycle { name, through });
                            }
                            None if self.written.contains_key(part) => stack.push(part),
                            None => {}
                        }
                    }
                }
            }
        }
    }

    fn build(&mut self, operations: &[Operation<'_>], errors: &mut Errors<'_>) -> AddressSet {
        let mut set = AddressSetBuilder::default();
        for operation in operations {
            let single;
            let ranges = match &operation.target {
                Target::Range(first, last) => {
                    single = [(*first, *last)];
                    &single
                }
                Target::Internet => AddressSet::internet().ranges(),
                Target::Set(name) => match self.states.get(name) {
                    Some(State::Done(part)) => part.ranges(),
                    Some(State::Open) | None => continue,
                },
            };
            let before = self.taken;
            self.taken = before.saturating_add(ranges.len());
            if self.taken > RANGES_MAX {
                if before <= RANGES_MAX {
                    errors.note(operation.at, Problem::TooManyRanges { limit: RANGES_MAX });
                }
                break;
            }
            for (first, last) in ranges {
                match operation.step {
                    Step::Add => set.add(*first, *last),
                    Step::Remove => set.remove(*first, *last),
                }
            }
        }
        set.finish()
    }
}
