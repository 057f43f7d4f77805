//! What changes when one policy replaces another: who gains and who loses what.
//!
//! Rules are compared by what they give to whom, not by their text: two policies that say the same in other words do not
//! differ. Rules with an end, a schedule, postures or a way give their right under that condition.

mod parties;

use crate::reach::node_name;
use crate::rights::Rights;
use crate::{Directory, NodeNames, Policy, Reach};
use parties::{Class, Place, Side, Target};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Most entries of a comparison.
pub const CHANGES_MAX: usize = 2_000;

/// What two policies differ in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PolicyDiff {
    /// Who gains or loses what, by source.
    pub changes: Vec<Change>,
    /// How many more there are than [`CHANGES_MAX`].
    pub omitted: usize,
}

/// Sources that gain or lose the same at the same destinations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Names of nodes, or prefixes.
    pub from: Vec<String>,
    /// Names of nodes, prefixes, or `own devices`, or `itself`.
    pub to: Vec<String>,
    /// What they may from now on.
    pub gains: Vec<String>,
    /// What they may no longer.
    pub losses: Vec<String>,
}

impl PolicyDiff {
    /// Compares what two policies give to the nodes of a directory and to the addresses that they name.
    #[must_use]
    pub fn of(old: &Policy, new: &Policy, directory: &Directory, names: &NodeNames) -> Self {
        // No rule is asked whether it holds now.
        let (old, new) = (Reach::new(old, directory, 0), Reach::new(new, directory, 0));
        let (old, new) = (Side::new(&old), Side::new(&new));
        let literals: BTreeSet<Target> = old.literals().chain(new.literals()).collect();
        let nodes = || directory.nodes.keys().map(|node| Target::Node(*node));
        let sources = Class::all([&old, &new], nodes().chain(literals.iter().cloned()), Place::Source);
        let own = [Target::OwnDevices, Target::Itself];
        let destinations =
            Class::all([&old, &new], nodes().chain(own).chain(literals.iter().cloned()), Place::Destination);
        let mut by_source: BTreeMap<(usize, Rights, Rights), Vec<usize>> = BTreeMap::new();
        for (from, source) in sources.iter().enumerate() {
            for (to, destination) in destinations.iter().enumerate() {
                if destination.members.contains(&Target::OwnDevices) && !source.personal {
                    continue;
                }
                let [[old_from, new_from], [old_to, new_to]] = [&source.rules, &destination.rules];
                let (before, after) = (old.rights(old_from, old_to), new.rights(new_from, new_to));
                let (gains, losses) = (after.without(&before), before.without(&after));
                if !gains.is_empty() || !losses.is_empty() {
                    by_source.entry((from, gains, losses)).or_default().push(to);
                }
            }
        }
        let mut by_both: BTreeMap<(Vec<usize>, Rights, Rights), Vec<usize>> = BTreeMap::new();
        for ((from, gains, losses), to) in by_source {
            by_both.entry((to, gains, losses)).or_default().push(from);
        }
        let members = |classes: &[Class], chosen: &[usize]| -> Vec<String> {
            let classes = chosen.iter().filter_map(|class| classes.get(*class));
            let mut texts: Vec<String> =
                classes.flat_map(|class| &class.members).map(|target| target_text(target, names)).collect();
            texts.sort();
            texts
        };
        let mut changes: Vec<Change> = by_both
            .into_iter()
            .map(|((to, gains, losses), from)| Change {
                from: members(&sources, &from),
                to: members(&destinations, &to),
                gains: gains.texts(),
                losses: losses.texts(),
            })
            .collect();
        changes.sort_by(|one, two| (&one.from, &one.to).cmp(&(&two.from, &two.to)));
        let omitted = changes.len().saturating_sub(CHANGES_MAX);
        changes.truncate(CHANGES_MAX);
        Self { changes, omitted }
    }

    /// Tells whether nobody gains or loses anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Writes the comparison for people, one line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if self.is_empty() {
            return vec!["nobody gains or loses anything".to_owned()];
        }
        let mut lines = Vec::new();
        for change in &self.changes {
            let (from, to) = (short(&change.from), short(&change.to));
            lines.extend(change.gains.iter().map(|what| format!("+ {from} -> {to}: {what}")));
            lines.extend(change.losses.iter().map(|what| format!("- {from} -> {to}: {what}")));
        }
        if self.omitted > 0 {
            lines.push(format!("… and {} more", self.omitted));
        }
        lines
    }
}

/// Writes a list for people, shortened.
fn short(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn target_text(target: &Target, names: &NodeNames) -> String {
    match target {
        Target::Node(node) => node_name(*node, names),
        Target::Net(prefix) => prefix.to_string(),
        Target::Internet => "the Internet".to_owned(),
        Target::OwnDevices => "own devices".to_owned(),
        Target::Itself => "itself".to_owned(),
    }
}
