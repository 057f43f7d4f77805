//! The policy of a new tailnet.

/// Text of the policy of a new tailnet: a user's own untagged devices reach each other, and nothing else is allowed.
pub const DEFAULT_POLICY: &str = r#"// Who may reach what in this tailnet. Whatever no rule allows is denied.
{
  "acls": [
    // Everybody reaches their own devices, on all ports.
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},

    // To widen this, add rules. All devices of all people reach each other:
    //   {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*"]},
    // Everything reaches everything, tagged devices and subnet routes included:
    //   {"action": "accept", "src": ["*"], "dst": ["*:*"]},
    // Two people reach web servers, which carry a tag:
    //   {"action": "accept", "src": ["group:web"], "dst": ["tag:web:80,443"], "proto": "tcp"},
    // The last one needs these two sections beside "acls":
    //   "groups": {"group:web": ["ann@example.com", "bob@example.com"]},
    //   "tagOwners": {"tag:web": ["group:web"]},
  ],
}
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    #[test]
    fn default_policy_is_valid() {
        assert_eq!(Policy::parse(DEFAULT_POLICY).unwrap().text(), DEFAULT_POLICY);
    }

    /// Takes the comment marks off the suggestions and demands that the outcome is a policy.
    #[test]
    fn suggested_lines_are_valid() {
        let (rules, sections): (Vec<_>, Vec<_>) = DEFAULT_POLICY
            .lines()
            .filter_map(|line| line.trim().strip_prefix("//   "))
            .partition(|line| line.starts_with('{'));
        assert_eq!((rules.len(), sections.len()), (3, 2));
        let text = format!("{{\"acls\": [{}], {}}}", rules.concat(), sections.concat());
        Policy::parse(&text).unwrap();
    }
}
