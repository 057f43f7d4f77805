//! Names of nodes and tailnets: DNS labels.

/// Longest DNS label, in bytes (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;
/// Longest host name that is looked at, in bytes.
const HOST_MAX: usize = 255;

/// Makes a DNS label of what a client calls its host; `node` if nothing of it can be used.
///
/// Only the first label counts, since hosts often report a full name.
pub(crate) fn label(host: &str) -> String {
    let first = host.split('.').find(|part| !part.is_empty()).unwrap_or_default();
    let mut label = String::new();
    for letter in first.chars().take(HOST_MAX) {
        if letter.is_ascii_alphanumeric() {
            label.push(letter.to_ascii_lowercase());
        } else if matches!(letter, '-' | '_' | ' ') && !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
        // Everything else, such as an apostrophe, is left out.
        if label.len() >= LABEL_MAX {
            break;
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() { "node".to_owned() } else { label.to_owned() }
}

/// Finds a name that is not taken: `wanted`, else `wanted-1`, `wanted-2` and so on, cut to the length of a label.
pub(crate) fn free(wanted: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(wanted) {
        return wanted.to_owned();
    }
    let mut number = 1_u64;
    loop {
        let suffix = format!("-{number}");
        let stem: String = wanted.chars().take(LABEL_MAX - suffix.len()).collect();
        let name = format!("{}{suffix}", stem.trim_end_matches('-'));
        if !taken(&name) {
            return name;
        }
        number += 1;
    }
}

/// Tells whether `text` is a DNS label in lower case that can be part of a host name.
pub(crate) fn is_label(text: &str) -> bool {
    let allowed = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
    !text.is_empty()
        && text.len() <= LABEL_MAX
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Tells whether `text` can be a tag: `tag:`, a letter, then letters, digits and dashes.
pub(crate) fn is_tag(text: &str) -> bool {
    text.len() <= HOST_MAX
        && text.strip_prefix("tag:").is_some_and(|name| {
            name.starts_with(|first: char| first.is_ascii_alphabetic())
                && name.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_become_labels() {
        for (host, expected) in [
            ("laptop", "laptop"),
            ("Ann's MacBook Pro", "anns-macbook-pro"),
            ("web01.example.com", "web01"),
            ("..x", "x"),
            ("", "node"),
            ("-_-", "node"),
            ("日本", "node"),
            ("a--b", "a-b"),
            ("DESKTOP_7", "desktop-7"),
        ] {
            assert_eq!(label(host), expected, "{host:?}");
        }
    }

    #[test]
    fn taken_names_get_the_next_number() {
        let taken = ["a", "a-1", "a-2"];
        assert_eq!(free("a", |name| taken.contains(&name)), "a-3");
        assert_eq!(free("b", |name| taken.contains(&name)), "b");
    }

    #[test]
    fn tags_begin_with_a_letter() {
        assert!(is_tag("tag:Web-1"));
        for text in ["web", "tag:", "tag:1", "tag:-", "tag:a_b", "tag:a b"] {
            assert!(!is_tag(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_host_gives_a_label(host in ".{0,300}") {
            prop_assert!(is_label(&label(&host)));
        }

        #[test]
        fn numbered_names_stay_labels(host in "[a-z-]{1,80}", count in 0_u64..200) {
            let wanted = label(&host);
            let tries = std::cell::Cell::new(0);
            let name = free(&wanted, |_| { tries.set(tries.get() + 1); tries.get() <= count });
            prop_assert!(is_label(&name), "{name}");
        }
    }
}
