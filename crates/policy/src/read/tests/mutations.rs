//! Valid policies, each with one thing wrong: every one is refused, at the place of what is wrong.

use super::meaning::EVERYTHING;
use crate::hujson::{self, Json, Kind, Member};
use crate::problem::Errors;
use crate::{Policy, Position};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// Objects whose members are named by the author, by the way to them.
const NAMED_BY_AUTHOR: [&str; 11] = [
    "/groups",
    "/hosts",
    "/tagowners",
    "/ipsets",
    "/postures",
    "/autoapprovers/routes",
    "/autoapprovers/services",
    "/derpmap/regions",
    "/grants[]/app",
    "/nodeattrs[]/app",
    "/tests[]/srcpostureattrs",
];

/// Lists of selectors, by the way to their entries, and whether ports follow.
const SELECTORS: [(&str, bool); 14] = [
    ("/acls[]/src[]", false),
    ("/acls[]/users[]", false),
    ("/acls[]/dst[]", true),
    ("/acls[]/ports[]", true),
    ("/grants[]/src[]", false),
    ("/grants[]/dst[]", false),
    ("/ssh[]/src[]", false),
    ("/ssh[]/dst[]", false),
    ("/nodeattrs[]/target[]", false),
    ("/tagowners/*[]", false),
    ("/autoapprovers/routes/*[]", false),
    ("/autoapprovers/exitnode[]", false),
    ("/autoapprovers/services/*[]", false),
    ("/grants[]/via[]", false),
];

/// Selectors that are valid nowhere.
const WRONG_SELECTORS: [&str; 8] = [
    "tag:nowhere",
    "group:nowhere",
    "nowhere",
    "autogroup:nobody",
    "gruop:dev",
    "10.0.0.0/40",
    "user:ann@example.com",
    "autogroup:nonroot",
];

/// What may not stand at a place, by the way to it.
const WRONG_TEXTS: [(&str, &[&str]); 30] = [
    ("/groups/*[]", &["ann", "group:dev", "*@example.com", "", "a b@example.com"]),
    ("/hosts/*", &["10.1.0", "nowhere", "10.0.0.0/33", ""]),
    (
        "/ipsets/*[]",
        &[
            "add",
            "del 10.0.0.1",
            "add ann@example.com",
            "add 10.0.0.2-10.0.0.1",
            "add ipset:nowhere",
            "add host:nowhere",
            "remove tag:web",
            "add ipset:prod",
        ],
    ),
    (
        "/postures/*[]",
        &[
            "",
            "node:os",
            "node:os = 'linux'",
            "node:os == linux",
            "node:nothing == 'x'",
            "node:os > 'a'",
            "node:tsAutoUpdate == 'x'",
        ],
    ),
    ("/defaultsrcposture[]", &["posture:nowhere", ""]),
    ("/acls[]/srcposture[]", &["posture:nowhere"]),
    ("/grants[]/srcposture[]", &["new"]),
    ("/ssh[]/srcposture[]", &["posture:nowhere"]),
    ("/acls[]/action", &["deny", "", "Accept", "check"]),
    ("/acls[]/proto", &["ip", "256", "06", "*", "tcp/udp"]),
    (
        "/acls[]/dst[]",
        &[
            "*",
            "*:0",
            "*:65536",
            "*:9-1",
            "*:ssh",
            "[10.0.0.1]:22",
            "autogroup:self",
            "autogroup:danger-all:*",
            "autogroup:shared:*",
        ],
    ),
    ("/acls[]/src[]", &["autogroup:self", "autogroup:internet", "svc:db"]),
    ("/grants[]/ip[]", &["icmp", "tcp:0", "tcp:80:81", ":80", "0", "icmp:8", "ssh", ""]),
    ("/grants[]/dst[]", &["0.0.0.0/0", "::/0", "autogroup:danger-all"]),
    ("/grants[]/via[]", &["ann@example.com", "autogroup:tagged"]),
    ("/grants[]/from", &["2026-01-01", "now", ""]),
    ("/grants[]/until", &["2025-01-01T00:00:00Z", "18:00"]),
    ("/grants[]/schedule[]/days[]", &["monday", "", "mon-"]),
    ("/grants[]/schedule[]/start", &["8:00", "24:30"]),
    ("/grants[]/schedule[]/end", &["", "25:00"]),
    ("/grants[]/schedule[]/zone", &["Europe/Nowhere", "CET+1"]),
    ("/autoapprovers/exitnode[]", &["*", "printer", "10.0.0.1"]),
    ("/ssh[]/action", &["deny", "Accept", ""]),
    ("/ssh[]/src[]", &["*", "printer", "autogroup:self", "10.0.0.1"]),
    ("/ssh[]/dst[]", &["*", "printer", "group:dev", "autogroup:internet"]),
    ("/ssh[]/users[]", &["", "*"]),
    ("/ssh[]/checkperiod", &["abc", "-1m", "168h0m1s", ""]),
    ("/ssh[]/acceptenv[]", &[""]),
    ("/nodeattrs[]/ippool[]", &["100.100.100.0/24", "10.0.0.0/8", "100.64.0.0/10", "x"]),
    ("/onecgnatroute", &["always"]),
];

/// A text with one thing wrong.
struct Mutation {
    what: String,
    text: String,
    /// Where.
    place: Range<usize>,
}

/// Returns where a value ends that begins at `start`.
fn end(text: &str, value: &Json) -> usize {
    let from = |at: usize, signs: &[char]| at + text[at..].find(signs).unwrap();
    match &value.kind {
        Kind::Text(_) => {
            let mut escaped = false;
            let rest = text[value.at + 1..].char_indices().find(|(_, sign)| {
                let over = !escaped && *sign == '"';
                escaped = !escaped && *sign == '\\';
                over
            });
            value.at + 2 + rest.unwrap().0
        }
        Kind::Null | Kind::Bool(_) | Kind::Number(_) => {
            text[value.at..].find(|sign: char| !sign.is_alphanumeric() && !"+-.".contains(sign)).unwrap() + value.at
        }
        Kind::List(elements) => from(elements.last().map_or(value.at, |last| end(text, last)), &[']']) + 1,
        Kind::Object(members) => from(members.last().map_or(value.at, |last| end(text, &last.value)), &['}']) + 1,
    }
}

struct Maker<'a> {
    text: &'a str,
    made: Vec<Mutation>,
}

impl Maker<'_> {
    /// Puts `new` in the place of a piece of the text.
    fn put(&mut self, what: String, place: Range<usize>, new: &str) {
        let text = [&self.text[..place.start], new, &self.text[place.end..]].concat();
        self.made.push(Mutation { what, text, place: place.start..place.start + new.len() });
    }

    fn value(&mut self, way: &str, value: &Json) {
        let place = value.at..end(self.text, value);
        if way.ends_with("/#") {
            return;
        }
        let mut put = |name: &str, new: &str| self.put(format!("{way}: {name}"), place.clone(), new);
        let any_scalar = way.ends_with("/srcpostureattrs/*");
        match &value.kind {
            Kind::Text(_) if any_scalar => put("an attribute that is a list", "[]"),
            Kind::Text(text) => {
                put("a number in place of a text", "7");
                put("a list in place of a text", "[\"x\"]");
                for (_, wrong) in WRONG_TEXTS.iter().filter(|(to, _)| *to == way) {
                    wrong.iter().for_each(|wrong| put(&format!("{wrong:?} for {text:?}"), &format!("\"{wrong}\"")));
                }
                if let Some((_, ports)) = SELECTORS.iter().find(|(to, _)| *to == way) {
                    for wrong in WRONG_SELECTORS {
                        let wrong = if *ports { format!("{wrong}:*") } else { wrong.to_owned() };
                        put(&format!("{wrong:?} for {text:?}"), &format!("\"{wrong}\""));
                    }
                }
            }
            Kind::Bool(_) | Kind::Number(_) if any_scalar => put("an attribute that is null", "null"),
            Kind::Bool(_) => put("a text in place of true or false", "\"yes\""),
            Kind::Number(_) => put("a text in place of a number", "\"1\""),
            Kind::Null => {}
            Kind::List(elements) => {
                put("a text in place of a list", "\"x\"");
                put("an object in place of a list", "{\"a\": 1}");
                if !elements.is_empty() {
                    put("a list with a list in it", "[[]]");
                }
                elements.iter().for_each(|element| self.value(&format!("{way}[]"), element));
            }
            Kind::Object(members) => {
                put("a list in place of an object", "[]");
                put("no JSON", "{\"a\" 1}");
                // Arguments of capabilities are the author's own.
                if !way.ends_with("/app/*[]") {
                    members.iter().for_each(|member| self.member(way, member));
                }
            }
        }
    }

    fn member(&mut self, way: &str, member: &Member) {
        let by_author = NAMED_BY_AUTHOR.contains(&way);
        let name = if by_author { "*".to_owned() } else { member.name.to_ascii_lowercase() };
        let name = if name.starts_with('#') { "#".to_owned() } else { name };
        let inner = format!("{way}/{name}");
        let name_place = member.at..member.at + member.name.len() + 2;
        let whole = member.at..end(self.text, &member.value);
        if name != "#" && !(by_author && way == "/tests[]/srcpostureattrs") {
            let wrong = if by_author { ":/ ".to_owned() } else { format!("{}x", member.name) };
            // The old name defines something that would be missed elsewhere, so that the new one stands beside it.
            let both = format!("\"{wrong}\": null, {}", &self.text[whole.clone()]);
            self.put(format!("{inner}: named {wrong:?}"), whole.start..whole.end, &both);
        }
        let twice = format!("{}: null, {}", &self.text[name_place], &self.text[whole.clone()]);
        self.put(format!("{inner}: twice"), whole, &twice);
        self.value(&inner, &member.value);
    }
}

fn mutations(text: &str) -> Vec<Mutation> {
    let document = hujson::read(text, &mut Errors::new(text)).unwrap();
    let mut maker = Maker { text, made: Vec::new() };
    maker.value("", &document);
    maker.made
}

/// Returns the valid policies among the recorded ones, if they lie beside the repository.
fn recorded() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/policy");
    let files = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let lines = files.filter(|path| path.extension().is_some_and(|name| name == "jsonl"));
    lines
        .flat_map(|path| {
            let cases = std::fs::read_to_string(path).unwrap();
            let cases = cases.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            let valid = cases.filter(|case| case["status"] == 200);
            valid.map(|case| case["policy"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn each_mutation_of_a_valid_policy_is_refused_where_it_is() {
    Policy::parse(EVERYTHING).unwrap();
    let mut seen = BTreeSet::new();
    let (mut of_everything, mut of_recorded) = (0, 0);
    for (number, text) in std::iter::once(EVERYTHING.to_owned()).chain(recorded()).enumerate() {
        for mutation in mutations(&text) {
            // Recorded policies have much in common.
            if number > 0 && !seen.insert((mutation.what.clone(), mutation.place.len())) {
                continue;
            }
            *(if number > 0 { &mut of_recorded } else { &mut of_everything }) += 1;
            let Err(errors) = Policy::parse(&mutation.text) else {
                panic!("accepted: {} in\n{}", mutation.what, &mutation.text[mutation.place])
            };
            let place =
                Position::of(&mutation.text, mutation.place.start)..=Position::of(&mutation.text, mutation.place.end);
            let found = errors.errors().iter().find(|error| place.contains(&error.position));
            let found = found.unwrap_or_else(|| panic!("{}: not at {place:?}: {errors}", mutation.what));
            assert!(found.problem.advice().len() > 8, "{found}");
        }
    }
    eprintln!(
        "policy: {of_everything} mutations of a policy with everything, {of_recorded} of recorded ones, all refused"
    );
    assert!(of_everything >= 400);
}

/// The form changes, the meaning does not.
#[test]
fn formatting_keeps_the_meaning_of_policies() {
    let plain = |text: &str| {
        let mut out = String::new();
        hujson::read(text, &mut Errors::new(text)).unwrap().write(&mut out);
        out
    };
    for text in std::iter::once(EVERYTHING.to_owned()).chain(recorded()) {
        let once = Policy::format(&text).unwrap();
        assert_eq!(plain(&once), plain(&text));
        assert_eq!(Policy::format(&once).unwrap(), once);
        Policy::parse(&once).unwrap();
    }
    assert_eq!(Policy::format(EVERYTHING).unwrap(), EVERYTHING);
}
