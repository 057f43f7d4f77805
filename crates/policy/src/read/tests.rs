use crate::{DESTINATIONS_MAX, DirectoryUser, ERRORS_MAX, POLICY_MAX_BYTES, Policy, PolicyErrors, Problem};
use proptest::prelude::*;

const WHOLE: &str = r##"{
  // Whom we know.
  "groups": {"group:dev": ["ann@example.com", " bob@example.com"], "group:none": []},
  "hosts": {"printer": "10.1.0.9", "lab": "10.2.0.0/16"},
  "tagOwners": {"tag:web": ["group:dev", "tag:ci"], "tag:ci": ["autogroup:member"], "tag:loop": ["tag:loop"]},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "printer:*"], "proto": "tcp", "#note": 1},
    {"Action": "accept", "users": ["*"], "ports": ["autogroup:self:*", "lab:22", "[fd7a::1]:22"]},
  ],
}"##;

fn errors(text: &str) -> PolicyErrors {
    Policy::parse(text).unwrap_err()
}

/// Returns the message of a policy with one error.
fn message(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.errors().len(), 1, "{errors}");
    errors.to_string()
}

/// Returns the message for a rule `{"action": "accept", …}`, without the place.
fn rule_message(rest: &str) -> String {
    let policy = format!(
        r#"{{"groups": {{"group:a": ["ann@x.org"]}}, "tagOwners": {{"tag:a": []}}, "acls": [{{"action": "accept", {rest}}}]}}"#
    );
    message(&policy).split_once(": ").unwrap().1.to_owned()
}

#[test]
fn policy_keeps_its_text() {
    assert_eq!(Policy::parse(WHOLE).unwrap().text(), WHOLE);
}

/// The messages of the original service (policy.md, section 16), and what to write instead.
#[test]
fn faults_of_rules_are_named() {
    for (rest, start) in [
        (r#""src": ["autogroup:self"], "dst": []"#, r#""autogroup:self" not valid on the src side of a rule"#),
        (r#""src": ["tag:no"], "dst": []"#, r#"src=tag not found: "tag:no"; add "tag:no" with its owners"#),
        (r#""src": [], "dst": ["tag:no:*"]"#, r#"dst="tag:no": tag not found: "tag:no""#),
        (
            r#""src": [], "dst": ["autogroup:self"]"#,
            r#"dst="autogroup:self": port range "self": invalid first integer"#,
        ),
        (r#""src": [], "dst": ["tag:a:ssh"]"#, r#"dst="tag:a:ssh": port range "ssh": invalid first integer"#),
        (r#""src": [], "dst": ["tag:a:0"]"#, r#"dst="tag:a:0": port range "0": first port must be >0"#),
        (r#""src": [], "dst": ["*"]"#, r#"dst="*": hostport must contain a colon; write "*:*""#),
        (r#""src": ["tag:a"], "dst": ["autogroup:self:*"]"#, "autogroup:self can only be used with users, groups"),
        (r#""src": ["group:b"], "dst": []"#, r#"group not defined in policy: "group:b"; add "group:b""#),
        (r#""src": ["srv"], "dst": []"#, r#"host not defined in policy: "srv""#),
        (r#""src": ["autogroup:mebmer"], "dst": []"#, r#"unknown autogroup: "autogroup:mebmer""#),
        (r#""src": [], "dst": ["*:22"], "proto": "icmp""#, r#"protocol "1" does not support specific ports"#),
        (r#""src": [], "dst": [], "proto": "06""#, r#"leading 0 not permitted in protocol number "06""#),
        (r#""src": [], "dst": [], "proto": "ip""#, r#"proto name "ip" not known; write tcp"#),
        (r#""src": "*", "dst": []"#, r#""src" must be a list in brackets, not a text"#),
        (r#""src": [7], "dst": []"#, r#"an entry of "src" must be a text in double quotes, not a number"#),
        (r#""scr": [], "dst": []"#, r#"unknown field: "scr"; did you mean "src"?"#),
        (r#""src": [], "users": [], "dst": []"#, r#""users" is given twice, first on line 1"#),
    ] {
        let message = rule_message(rest);
        assert!(message.starts_with(start), "{rest}: {message}");
    }
    let denies = message(r#"{"acls": [{"action": "deny", "src": [], "dst": []}]}"#);
    assert_eq!(
        denies,
        "line 1, column 22: action=\"deny\" is not supported; write \"action\": \"accept\"; what no rule accepts is denied"
    );
    assert!(message(r#"{"acls": [{"src": []}]}"#).contains("action must be specified"));
}

#[test]
fn faults_of_definitions_are_named() {
    for (section, part) in [
        (r#""groups": {"dev": []}"#, r#"group must start with 'group:', got: "dev"; write "group:dev""#),
        (
            r#""groups": {"group:a": [], "group:b": ["group:a"]}"#,
            r#"groups["group:b"]: "group:a": group members cannot be recursive; list the users themselves"#,
        ),
        (r#""groups": {"group:a": ["ann"]}"#, r#"username must contain @, got: "ann""#),
        (r#""groups": {"group:a": [], "group:a ": []}"#, r#""group:a" is given twice, first on line 1, column 13"#),
        (r#""Groups": {}, "groups": {}"#, r#""groups" is given twice, first on line 1, column 2"#),
        (r#""hosts": {"a": "10.0.0"}"#, r#"hostname contains invalid IP address: hostname "a" address "10.0.0""#),
        (r#""hosts": {"a:b": "10.0.0.1"}"#, r#"invalid hostname: "a:b""#),
        (r#""hosts": {"10.0.0.1": "10.0.0.2"}"#, r#"invalid hostname: "10.0.0.1""#),
        (r#""tagOwners": {"web": []}"#, r#"tag must start with 'tag:', got: "web"; write "tag:web""#),
        (r#""tagOwners": {"tag:сервер": []}"#, "tag names must start with a letter, after 'tag:'"),
        (r#""tagOwners": {"tag:a": ["tag:b"]}"#, r#"tag "tag:a" references undefined tag "tag:b""#),
        (r#""tagOwners": {"tag:a": ["*"]}"#, r#""*" cannot own a tag"#),
        (r#""alcs": []"#, r#"unknown field: "alcs"; did you mean "acls"?"#),
    ] {
        let message = message(&format!("{{{section}}}"));
        assert!(message.contains(part), "{section}: {message}");
    }
    assert!(message("[]").contains("the policy must be an object in braces, not a list"));
    assert!(message("null").contains("the policy must be an object in braces, not null"));
}

#[test]
fn all_faults_are_gathered_in_the_order_of_the_text() {
    let text = "{\"ssh\": 1,\n\"acls\": [{\"action\": \"no\"},\n 7],\n\"groups\": {\"a\": []}}";
    let found = errors(text);
    let lines: Vec<usize> = found.errors().iter().map(|error| error.position.line).collect();
    assert_eq!(lines, [1, 2, 3, 4]);
}

/// Destinations count as often as they have ports, since a short text can name many of both.
#[test]
fn number_of_destinations_is_limited() {
    let rule = |destinations: usize, ports: usize| {
        let (destinations, ports) = (vec!["\"*\""; destinations].join(","), vec!["\"1\""; ports].join(","));
        format!(r#"{{"src": ["*"], "dst": [{destinations}], "ip": [{ports}]}}"#)
    };
    let policy =
        |last: usize| format!("{{\"grants\": [{},\n{}]}}", rule(100, DESTINATIONS_MAX / 100 - 1), rule(last, 1));
    Policy::parse(&policy(100)).unwrap();
    let found = errors(&policy(101));
    assert_eq!(found.errors()[0].problem, Problem::TooManyDestinations { limit: DESTINATIONS_MAX });
    assert_eq!(found.errors()[0].position.line, 2);
}

/// Each of these costs the square of its length if done without thought.
#[test]
fn many_faults_cost_no_more_than_the_first_hundred() {
    let many = |part: &str| part.repeat((POLICY_MAX_BYTES - 64) / part.len());
    for text in [
        format!("{{{}}}", many("\"a\":1,")),
        format!("{{\"acls\": [{}]}}", many("7,")),
        format!("{{\"acls\": [{{\"src\": [{}]}}]}}", many("\"x\",")),
        format!("{{\"groups\": {{{}}}}}", many("\"g\":0,")),
        format!("{{\"tagOwners\": {{\"tag:a\": [{}]}}}}", many("\"tag:b\",")),
        format!("{{\"grants\": [{}]}}", many("{\"ip\": [0]},")),
        format!("{{\"ipsets\": {{\"ipset:a\": [{}]}}}}", many("\"add ipset:a\",")),
    ] {
        assert_eq!(errors(&text).errors().len(), ERRORS_MAX);
    }
}

#[test]
fn tags_are_passed_on_by_their_owners() {
    let policy = Policy::parse(WHOLE).unwrap();
    assert!(policy.defines_tag("tag:web") && !policy.defines_tag("tag:other"));
    let owns = |login: &str, tag| {
        let user = DirectoryUser { login: login.to_owned(), ..DirectoryUser::default() };
        policy.may_own_tag(&user, tag)
    };
    assert!(owns("ann@example.com", "tag:web") && owns("bob@example.com", "tag:web"));
    assert!(!owns("eve@example.com", "tag:web") && owns("eve@example.com", "tag:ci"));
    assert!(policy.may_pass_on_tag(["tag:ci"], "tag:web") && !policy.may_pass_on_tag(["tag:web"], "tag:ci"));
    assert!(policy.may_pass_on_tag(["tag:loop"], "tag:loop") && !policy.may_pass_on_tag(["tag:web"], "tag:loop"));
    assert!(!policy.may_pass_on_tag(["tag:other"], "tag:other"));
}

/// Words and signs of the language, to be put together at random.
const PARTS: [&str; 56] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\n",
    "// ",
    "/*",
    "*/",
    "\"acls\":",
    "\"groups\":",
    "\"hosts\":",
    "\"tagOwners\":",
    "\"action\":",
    "\"accept\"",
    "\"src\":",
    "\"dst\":",
    "\"proto\":",
    "\"*\"",
    "\"*:*\"",
    "\"group:a\"",
    "\"tag:a\"",
    "\"tag:a:1-9\"",
    "\"autogroup:self:*\"",
    "\"autogroup:member\"",
    "\"a@b\"",
    "\"[fd7a::1]:22\"",
    "\"10.0.0.1/33\"",
    "\"::/0:0\"",
    "null",
    "true",
    "-1e9",
    "\u{feff}",
    "é",
    "\u{0}",
    "\"ssh\":",
    "\"tcp\"",
    "\"grants\":",
    "\"ip\":",
    "\"app\":",
    "\"a.b/c\":",
    "\"ipsets\":",
    "\"ipset:a\"",
    "\"add ipset:a\"",
    "\"remove 10.0.0.0-::\"",
    "\"postures\":",
    "\"node:os IN ['a'\"",
    "\"schedule\":",
    "\"sun-mon\"",
    "\"derpMap\":",
    "\"Regions\":",
    "\"checkPeriod\":",
    "\"9999999h\"",
];

mod meaning;
mod mutations;
mod wording;

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Policy::parse(&text).map_err(|errors| errors.to_string());
    }

    #[test]
    fn no_row_of_words_panics(parts in proptest::collection::vec(proptest::sample::select(PARTS.to_vec()), 0..60)) {
        let text = parts.concat();
        let _ = Policy::parse(&text).map_err(|errors| errors.to_string());
    }

    /// A valid policy with a piece cut out and another put in.
    #[test]
    fn no_changed_policy_panics_and_places_are_within_the_text(
        at in any::<prop::sample::Index>(),
        length in 0_usize..12,
        part in proptest::sample::select(PARTS.to_vec()),
        everything: bool,
    ) {
        let mut text: Vec<char> = if everything { meaning::EVERYTHING } else { WHOLE }.chars().collect();
        let at = at.index(text.len());
        let end = text.len().min(at + length);
        text.splice(at..end, part.chars());
        let text: String = text.into_iter().collect();
        if let Err(errors) = Policy::parse(&text) {
            let lines: Vec<&str> = text.split('\n').collect();
            for error in errors.errors() {
                let line = lines[error.position.line - 1];
                prop_assert!(error.position.column <= line.chars().count() + 1, "{error}");
            }
        }
    }
}
