//! `warren policy` over files, as users see it: what goes to standard output, what to standard error, and the exit code.
#![cfg(feature = "server")]
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

const POLICY: &str = r#"{
  "tagOwners": {"tag:web": []},
  "acls": [{"action": "accept", "src": ["ann@x.org"], "dst": ["tag:web:443"]}],
  "tests": [{"src": "ann@x.org", "accept": ["tag:web:443"]}],
}
"#;

/// Runs `warren policy` with a file on standard input; returns exit code, standard output and standard error.
fn policy(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_warren"))
        .arg("policy")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn errors_stand_one_a_line_with_their_place() {
    assert_eq!(policy(&["check", "-"], POLICY).0, 0);
    let (code, out, err) = policy(&["check", "-"], &POLICY.replace("accept\", \"src", "drop\", \"src"));
    assert_eq!((code, out.as_str()), (1, ""));
    let lines: Vec<&str> = err.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("-:3:") && lines[1].starts_with("warren: "), "{err}");
}

#[test]
fn failing_tests_fail_the_command() {
    assert_eq!(policy(&["test", "-"], POLICY).0, 0);
    let (code, out, err) = policy(&["test", "-"], &POLICY.replace("accept\": [\"tag", "deny\": [\"tag"));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("want: Drop, got: Accept") && err.contains("test(s) failed: 1 of 1"), "{err}");
}

#[test]
fn questions_are_answered_in_words_and_as_json() {
    let ask = |more: &[&str]| policy(&[&["explain", "--policy", "-", "--from"], more].concat(), POLICY);
    let (code, out, _) = ask(&["ann@x.org", "--to", "tag:web:443/tcp"]);
    assert!(code == 0 && out.contains("line 3 allows port 443"), "{out}");
    let (code, out, _) = ask(&["ann@x.org", "--to", "tag:web:22", "--json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()["verdict"].as_str()), (0, Some("denied")));
    assert_eq!(ask(&["zoe@x.org", "--to", "tag:web"]).0, 9);
    assert_eq!(ask(&["ann@x.org", "--to", "tag:web:99999"]).0, 2);
}

#[test]
fn a_case_is_always_answered() {
    let case = serde_json::json!({
        "policy": POLICY,
        "users": [{"id": 1, "name": "ann", "email": "ann@x.org"}],
        "nodes": {
            "laptop": {"user": "ann", "ipv4": "100.64.0.1"},
            "web": {"tags": ["tag:web"], "ipv4": "100.64.0.2"},
        },
    });
    let (code, out, _) = policy(&["compile", "-"], &case.to_string());
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, answer["status"].as_u64()), (0, Some(200)));
    assert_eq!(answer["nodes"]["web"]["packet_filter"][0]["SrcIPs"][0], "100.64.0.1");
    for input in ["", "[]", "{\"policy\": 7}"] {
        let (code, out, _) = policy(&["compile", "-"], input);
        assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()["status"].as_u64()), (0, Some(400)), "{input}");
    }
}
