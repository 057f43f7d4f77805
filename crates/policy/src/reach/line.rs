//! Rules as people find them: by line, with their text.

use crate::model::Grant;
use crate::problem::Position;
use crate::rights::services;
use crate::{Policy, Reach};
use serde::Serialize;
use warren_wire::control::NodeId;

/// Most characters of a rule that are shown.
const EXCERPT_MAX: usize = 160;

/// A rule of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleLine {
    /// Line in the policy, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Its text on one line, cut if it is long.
    pub text: String,
    /// What it lets through, in words.
    pub services: String,
    /// Names of the nodes that carry the packets, where these are not the destination itself.
    pub through: Vec<String>,
    /// First second in which it does not hold any more, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

impl RuleLine {
    pub(crate) fn of(reach: &Reach<'_>, number: usize, grant: &Grant) -> Self {
        let at = reach.policy.sections.grant_places.get(number).copied().unwrap_or_default();
        let Position { line, column } = Position::of(reach.policy.text(), at);
        Self {
            line,
            column,
            text: excerpt(reach.policy, at),
            services: services(grant),
            through: Vec::new(),
            until: grant.validity.until,
        }
    }

    /// Adds the nodes that carry the packets.
    pub(crate) fn through(self, nodes: &[NodeId], names: &crate::NodeNames) -> Self {
        Self { through: nodes.iter().map(|node| node_name(*node, names)).collect(), ..self }
    }
}

/// Returns the name of a node, or its number.
pub(crate) fn node_name(node: NodeId, names: &crate::NodeNames) -> String {
    names.get(&node).cloned().unwrap_or_else(|| format!("node {node}"))
}

/// Returns the text of the rule at a place, with single blanks, or the line if no rule begins there.
fn excerpt(policy: &Policy, at: usize) -> String {
    let whole = rule_text(policy, at);
    let mut text = whole.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() > EXCERPT_MAX {
        text = text.chars().take(EXCERPT_MAX.saturating_sub(1)).chain(['…']).collect();
    }
    text
}

/// Returns the text of the rule at a place as it is, or the line if no rule begins there.
pub(crate) fn rule_text(policy: &Policy, at: usize) -> &str {
    let rest = policy.text().get(at..).unwrap_or_default();
    if rest.starts_with('{') && at > 0 { object(rest) } else { rest.lines().next().unwrap_or_default() }
}

/// Returns the object that a valid text begins with.
fn object(text: &str) -> &str {
    let mut depth = 0_usize;
    let mut in_text = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' if !in_text => depth = depth.saturating_add(1),
            b'}' if !in_text => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return text.get(..=at).unwrap_or(text);
                }
            }
            _ => {}
        }
    }
    text
}
