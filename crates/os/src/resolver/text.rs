//! The text of `/etc/resolv.conf`: whose it is, and one of ours, which holds what was there before.

use std::net::IpAddr;

/// The first line of a file that we made.
const HEAD: &str =
    "# Made by warren. What was here before follows and comes back with `warren down` or `warren cleanup`.";
/// Begins a line of what was there before.
const BEFORE: &str = "#| ";
/// Says that what was there before does not end with a line's end.
const OPEN_END: &str = "#\\";
/// Says that a symbolic link was there, and where to.
const LINK: &str = "#> ";
/// Says that nothing was there.
const NOTHING: &str = "#0";
/// Begins what is cut off next, if a file could not be replaced as a whole.
pub(super) const TAIL: &str = "\n# warren cuts this off: ";

/// What was in the place of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// A symbolic link.
    Link {
        /// Where to.
        target: String,
        /// What the file had that it led to.
        text: String,
    },
    /// A file.
    File(String),
}

impl Before {
    /// Returns the settings that were in force.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Link { text, .. } | Self::File(text) => text,
        }
    }
}

/// Writes a file of ours.
pub(super) fn wrap(servers: &[IpAddr], search: &[String], before: &Before) -> String {
    let mut text = format!("{HEAD}\n");
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    // What programs were used to write stays enough, and how they ask stays theirs.
    let words = |key: &'static str| {
        let lines = before.text().lines().map(str::split_whitespace);
        lines.filter_map(move |mut words| (words.next() == Some(key)).then_some(words)).next_back()
    };
    let old = words("search").or_else(|| words("domain")).into_iter().flatten().map(str::to_owned);
    let mut all: Vec<String> = Vec::new();
    for domain in search.iter().cloned().chain(old) {
        if !all.contains(&domain) {
            all.push(domain);
        }
    }
    if !all.is_empty() {
        text += &format!("search {}\n", all.join(" "));
    }
    for line in before.text().lines().filter(|line| line.split_whitespace().next() == Some("options")) {
        text += &format!("{line}\n");
    }
    match before {
        Before::Nothing => text += &format!("{NOTHING}\n"),
        Before::Link { target, .. } => text += &format!("{LINK}{target}\n"),
        Before::File(_) => {}
    }
    let old = before.text();
    for line in old.split_inclusive('\n') {
        text += &format!("{BEFORE}{}\n", line.strip_suffix('\n').unwrap_or(line));
    }
    if !old.is_empty() && !old.ends_with('\n') {
        text += &format!("{OPEN_END}\n");
    }
    text
}

/// Returns what was there before a file of ours; `None` if it is not ours.
pub(super) fn unwrap(text: &str) -> Option<Before> {
    let rest = text.strip_prefix(HEAD)?;
    let mut old = String::new();
    let (mut target, mut nothing) = (None, false);
    for line in rest.lines() {
        if let Some(line) = line.strip_prefix(BEFORE) {
            old += line;
            old.push('\n');
        } else if line == OPEN_END {
            old.pop();
        } else if let Some(to) = line.strip_prefix(LINK) {
            target = Some(to.to_owned());
        } else if line == NOTHING {
            nothing = true;
        }
    }
    Some(match target {
        Some(target) => Before::Link { target, text: old },
        None if nothing => Before::Nothing,
        None => Before::File(old),
    })
}

/// Returns a file without what is to be cut off.
pub(super) fn cut(text: &str) -> Option<&str> {
    text.split_once(TAIL).map(|(kept, _)| kept)
}

/// Says who wrote a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    Resolved,
    Resolvconf,
}

/// Returns who wrote a file, by what the comments at its beginning say. Source: Tailscale `net/dns`, `resolvOwner`.
/// NetworkManager, which rewrites a file of its own when the network changes, counts as nobody: we write ours again then.
pub(super) fn owner(text: &str) -> Owner {
    let comments = text.lines().take_while(|line| line.trim().is_empty() || line.starts_with('#'));
    let mut owner = Owner::Nobody;
    for line in comments {
        if line.contains("systemd-resolved") {
            return Owner::Resolved;
        }
        if line.contains("NetworkManager") {
            return Owner::Nobody;
        }
        if line.contains("resolvconf") {
            owner = Owner::Resolvconf;
        }
    }
    owner
}

/// Tells whether names really go to systemd-resolved: by the file, or by `nsswitch.conf`. Source: node.md, section 20.4.
pub(super) fn resolved_is_asked(text: &str, nsswitch: &str) -> bool {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default())
    });
    let servers: Vec<&str> = servers.collect();
    if !servers.is_empty() && servers.iter().all(|server| *server == "127.0.0.53") {
        return true;
    }
    let hosts = nsswitch.lines().find_map(|line| line.trim_start().strip_prefix("hosts:")).unwrap_or_default();
    let first = hosts.split_whitespace().find(|word| matches!(*word, "resolve" | "dns"));
    first == Some("resolve")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn programs_ask_us_and_find_the_names_that_they_did() {
        let before = Before::File("search home.example\noptions edns0\nnameserver 192.0.2.1\n".to_owned());
        let text = wrap(&[[100, 100, 100, 100].into()], &["t.example".to_owned()], &before);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["nameserver 100.100.100.100", "search t.example home.example", "options edns0"]);
    }

    #[test]
    fn files_of_others_are_told_apart() {
        for (text, expected) in [
            ("# This is managed by man:systemd-resolved(8).\nnameserver 127.0.0.53\n", Owner::Resolved),
            ("# Dynamic resolv.conf(5) file generated by resolvconf(8)\nnameserver 1.1.1.1\n", Owner::Resolvconf),
            ("# Generated by NetworkManager\nnameserver 1.1.1.1\n", Owner::Nobody),
            ("nameserver 1.1.1.1\n# systemd-resolved\n", Owner::Nobody),
            ("", Owner::Nobody),
        ] {
            assert_eq!(owner(text), expected, "{text}");
            assert_eq!(unwrap(text), None, "{text}");
        }
        assert!(resolved_is_asked("nameserver 127.0.0.53\n", ""));
        assert!(resolved_is_asked("nameserver 1.1.1.1\n", "hosts: files resolve [!UNAVAIL=return] dns\n"));
        assert!(!resolved_is_asked("nameserver 1.1.1.1\n", "hosts: files dns resolve\n"));
    }

    proptest! {
        #[test]
        fn what_was_there_comes_back(text in "([a-z#|\\\\>0 ]{0,8}\n?){0,6}", kind in 0..3, target in "[a-z/.]{1,12}") {
            let before = match kind {
                0 => Before::Nothing,
                1 => Before::Link { target, text },
                _ => Before::File(text),
            };
            let ours = wrap(&[[100, 100, 100, 100].into()], &[], &before);
            prop_assert_eq!(unwrap(&ours), Some(before.clone()));
            // The longer one can be put over the shorter one in one piece.
            prop_assert!(ours.len() > before.text().len());
        }
    }
}
