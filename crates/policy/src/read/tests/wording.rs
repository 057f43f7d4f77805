//! Refusals in the words of the original service, whole, and after them what to write instead.
//!
//! Source: policy.md, section 16.

use crate::Policy;

/// Returns the only error of a policy that is refused.
fn refusal(sections: &str) -> String {
    let text = format!(
        r#"{{"tagOwners": {{"tag:server": [], "tag:prod": []}}, "hosts": {{"srv": "100.64.0.16"}}, {sections}}}"#
    );
    let errors = Policy::parse(&text).map(|_| ()).expect_err(sections);
    assert_eq!(errors.errors().len(), 1, "{errors}");
    errors.to_string()
}

fn refuses(place: impl Fn(&str) -> String, table: &[(&str, &str)]) {
    for (part, message) in table {
        let ours = refusal(&place(part));
        assert!(ours.contains(message), "{part}:\n  ours   {ours}\n  theirs {message}");
        let advice = ours.split_once(message).and_then(|(_, rest)| rest.split_once("; "));
        assert!(advice.is_some_and(|(_, advice)| !advice.is_empty()), "no advice: {ours}");
    }
}

#[test]
fn acls() {
    let rule = |part: &str| format!(r#""acls": [{{{part}}}]"#);
    refuses(
        rule,
        &[
            (r#""action": "deny", "src": ["*"], "dst": ["*:*"]"#, r#"action="deny" is not supported"#),
            (
                r#""action": "accept", "src": ["autogroup:self"], "dst": ["*:*"]"#,
                r#""autogroup:self" not valid on the src side of a rule"#,
            ),
            (
                r#""action": "accept", "src": ["tag:nonexistent"], "dst": ["*:*"]"#,
                r#"src=tag not found: "tag:nonexistent""#,
            ),
            (
                r#""action": "accept", "src": ["*"], "dst": ["tag:nonexistent:22"]"#,
                r#"dst="tag:nonexistent": tag not found: "tag:nonexistent""#,
            ),
            (
                r#""action": "accept", "src": ["*"], "dst": ["autogroup:self"]"#,
                r#"dst="autogroup:self": port range "self": invalid first integer"#,
            ),
            (
                r#""action": "accept", "src": ["*"], "dst": ["tag:server:ssh"]"#,
                r#"dst="tag:server:ssh": port range "ssh": invalid first integer"#,
            ),
            (
                r#""action": "accept", "src": ["*"], "dst": ["autogroup:danger-all:*"]"#,
                "cannot use autogroup:danger-all as a dst",
            ),
            (
                r#""action": "accept", "src": ["tag:server"], "dst": ["autogroup:self:*"]"#,
                "autogroup:self can only be used with users, groups, or supported autogroups",
            ),
            (
                r#""action": "accept", "src": ["autogroup:internet"], "dst": ["*:*"]"#,
                "autogroup:internet can only be used in ACL destinations",
            ),
            (r#""action": "accept", "src": ["nowhere"], "dst": ["*:*"]"#, r#"host not defined in policy: "nowhere""#),
            (
                r#""action": "accept", "src": ["group:no"], "dst": ["*:*"]"#,
                r#"group not defined in policy: "group:no""#,
            ),
            (r#""action": "accept", "src": ["*"], "dst": ["*"]"#, "hostport must contain a colon"),
            (
                r#""action": "accept", "src": ["*"], "dst": ["[10.0.0.1]:1"]"#,
                "square brackets are only valid around IPv6 addresses",
            ),
            (r#""action": "accept", "src": ["*"], "dst": ["*:9-1"]"#, "first port is greater than last port"),
            (r#""action": "accept", "src": ["*"], "dst": ["*:65536"]"#, "port number out of range"),
            (
                r#""action": "accept", "src": ["*"], "dst": ["*:*"], "proto": "01""#,
                "leading 0 not permitted in protocol number",
            ),
            (
                r#""action": "accept", "src": ["*"], "dst": ["*:*"], "proto": "256""#,
                "protocol number out of range (0-255)",
            ),
            (r#""action": "accept", "src": ["*"], "dst": ["*:*"], "proto": "*""#, r#"proto name "*" not known"#),
            (r#""action": "accept", "src": ["*"], "dst": ["*:22"], "proto": "gre""#, "does not support specific ports"),
            (r#""action": "accept", "x": 1"#, r#"unknown field: "x""#),
        ],
    );
}

#[test]
fn grants() {
    let grant = |part: &str| format!(r#""grants": [{{{part}}}]"#);
    refuses(
        grant,
        &[
            (r#""src": ["*"], "dst": ["*"]"#, "ip and app can not both be empty"),
            (r#""src": ["*"], "dst": ["*"], "ip": [], "app": {}"#, "ip and app can not both be empty"),
            (r#""src": ["*"], "dst": ["*"], "ip": ["*"], "via": ["srv"]"#, "via can only be a tag"),
            (
                r#""src": ["*"], "dst": ["*"], "ip": ["*"], "via": ["tag:nonexistent"]"#,
                r#"tag "tag:nonexistent" not found"#,
            ),
            (
                r#""src": ["*"], "dst": ["autogroup:internet"], "app": {"example.com/cap/x": [{}]}"#,
                "cannot use app grants with autogroup:internet",
            ),
            (
                r#""src": ["*"], "dst": ["0.0.0.0/0"], "ip": ["*"]"#,
                r#"dst "0.0.0.0/0": to allow all IP addresses, use "*" or "autogroup:internet""#,
            ),
            (
                r#""src": ["*"], "dst": ["::/0"], "ip": ["*"]"#,
                r#"dst "::/0": to allow all IP addresses, use "*" or "autogroup:internet""#,
            ),
            (
                r#""src": ["*"], "dst": ["*"], "app": {"https://tailscale.com/cap/ingress": [{}]}"#,
                "capability name must have the form {domain}/{path}",
            ),
            (
                r#""src": ["*"], "dst": ["*"], "app": {"tailscale.com/cap/funnel": [{}]}"#,
                "capability name must not be in the tailscale.com domain",
            ),
            (r#""src": ["*"], "dst": ["*"], "ip": ["icmp"]"#, r#"port range "icmp": invalid first integer"#),
            (
                r#""src": ["*"], "dst": ["*"], "ip": ["tcp:0"]"#,
                r#"port range "0": first port must be >0, or use '*' for wildcard"#,
            ),
            (
                r#""src": ["*"], "dst": ["*"], "ip": ["tcp:1:2"]"#,
                "expected only one colon in Internet protocol and port type",
            ),
            (
                r#""src": ["*"], "dst": ["autogroup:self"], "ip": ["*"]"#,
                "autogroup:self can only be used with users, groups, or supported autogroups",
            ),
        ],
    );
}

#[test]
fn definitions_and_nodes() {
    refuses(
        str::to_owned,
        &[
            (r#""nodeAttrs": [{"target": ["%bogus%"], "attr": ["x"]}]"#, r#""%bogus%": invalid address"#),
            (r#""nodeAttrs": [{"target": ["tag:undefined-tag"]}]"#, r#"tag not found: "tag:undefined-tag""#),
            (
                r#""nodeAttrs": [{"target": [], "ipPool": ["100.100.100.0/24"]}]"#,
                "IPPool(100.100.100.0/24): network within reserved range",
            ),
            (
                r#""nodeAttrs": [{"target": [], "ipPool": ["10.0.0.0/8"]}]"#,
                "nodeAttrs ipPool must be within 100.64.0.0/10",
            ),
            (r#""nodeAttrs": [{"target": ["autogroup:self"]}]"#, "autogroup not supported for nodeAttrs targets"),
            (
                r#""groups": {"group:a": [], "group:b": ["group:a"]}"#,
                r#"groups["group:b"]: "group:a": group members cannot be recursive"#,
            ),
            (r#""x": 2"#, r#"unknown field: "x""#),
            (r#""groups": {"a": []}"#, "group must start with 'group:'"),
            (r#""groups": {"group:a": ["ann"]}"#, r#"username must contain @, got: "ann""#),
            (r#""autoApprovers": {"exitNode": ["*"]}"#, "invalid auto approver format"),
        ],
    );
    let cyrillic = Policy::parse(r#"{"tagOwners": {"tag:сервер": []}}"#).unwrap_err().to_string();
    assert!(
        cyrillic.contains(r#"tagOwners["tag:сервер"]: tag names must start with a letter, after 'tag:'"#),
        "{cyrillic}"
    );
}

#[test]
fn ssh() {
    let with = |users: &'static str| {
        move |part: &str| {
            format!(r#""ssh": [{{"src": ["thor@example.org"], "dst": ["tag:server"], "users": {users}, {part}}}]"#)
        }
    };
    refuses(
        with(r#"["root"]"#),
        &[
            (r#""acceptEnv": []"#, "action must be specified"),
            (r#""action": "deny""#, r#""deny" is not a valid action"#),
            (r#""action": "ACCEPT""#, r#""ACCEPT" is not a valid action"#),
            (r#""action": "accept", "acceptEnv": [""]"#, "acceptEnv values cannot be empty"),
            (r#""action": "check", "checkPeriod": "-1m""#, "checkPeriod -1m0s must be a positive duration"),
            (r#""action": "check", "checkPeriod": "168h0m1s""#, "checkPeriod 168h0m1s is above the max (168h)"),
            (r#""action": "check", "checkPeriod": "abc""#, r#"time: invalid duration "abc""#),
            (r#""action": "accept", "checkPeriod": "1h""#, r#"checkPeriod is only valid with action "check""#),
        ],
    );
    refuses(with("[]"), &[(r#""action": "accept""#, "users must be specified")]);
    refuses(with("null"), &[(r#""action": "accept""#, "users must be specified")]);
    refuses(with(r#"[""]"#), &[(r#""action": "accept""#, r#"user "" is not valid"#)]);
    refuses(with(r#"["*"]"#), &[(r#""action": "accept""#, r#"user "*" is not valid"#)]);
    let pair = |part: &str| format!(r#""ssh": [{{"action": "accept", "users": ["root"], {part}}}]"#);
    refuses(
        pair,
        &[
            (r#""src": ["a@x"], "dst": ["srv"]"#, r#"invalid dst "srv""#),
            (r#""src": ["a@x"], "dst": ["*"]"#, "wildcard (*) is not supported as SSH destination"),
            (r#""src": ["*"], "dst": ["tag:server"]"#, "alias not supported for SSH source"),
            (
                r#""src": ["a@x"], "dst": ["b@x"]"#,
                r#"user destination requires source to contain only that same user "b@x""#,
            ),
            (
                r#""src": ["tag:prod"], "dst": ["autogroup:self"]"#,
                "autogroup:self destination requires source to contain only users or groups, not tags or autogroup:tagged",
            ),
            (
                r#""src": ["autogroup:tagged"], "dst": ["autogroup:member"]"#,
                "tags in SSH source cannot access autogroup:member (user-owned devices)",
            ),
            (r#""src": ["tag:prod"], "dst": ["a@x"]"#, "tags in SSH source cannot access user-owned devices"),
        ],
    );
}
