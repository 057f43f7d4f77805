//! Who is in which groups, as far as the policy itself says.

use super::chunked::ChunkedMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The groups of a policy; versions share what they have in common.
#[derive(Debug, Default)]
pub(super) struct Groups {
    members: BTreeMap<String, Arc<[String]>>,
    by_login: ChunkedMap<String, BTreeSet<String>>,
}

impl Groups {
    /// Takes the groups of a policy, those that are as before from there.
    pub(super) fn new(groups: &BTreeMap<String, Vec<String>>, old: &Self) -> Self {
        let mut edits: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut edit = |group: &str, login, add| {
            let known = || old.by_login.get(login).cloned().unwrap_or_default();
            let groups: &mut BTreeSet<String> = edits.entry(login).or_insert_with(known);
            if add {
                groups.insert(group.to_owned())
            } else {
                groups.remove(group)
            };
        };
        let mut members: BTreeMap<String, Arc<[String]>> = BTreeMap::new();
        let none: Arc<[String]> = Arc::new([]);
        for (group, logins) in groups {
            let before = old.members.get(group).unwrap_or(&none);
            if **before == **logins {
                members.insert(group.clone(), Arc::clone(before));
                continue;
            }
            let (was, is) = (before.iter().collect::<BTreeSet<_>>(), logins.iter().collect::<BTreeSet<_>>());
            was.difference(&is).for_each(|login| edit(group, login, false));
            is.difference(&was).for_each(|login| edit(group, login, true));
            members.insert(group.clone(), logins.as_slice().into());
        }
        for (group, logins) in old.members.iter().filter(|(group, _)| !groups.contains_key(*group)) {
            logins.iter().for_each(|login| edit(group, login, false));
        }
        let changes =
            edits.into_iter().map(|(login, groups)| (login.to_owned(), (!groups.is_empty()).then_some(groups)));
        Self { members, by_login: old.by_login.with(changes.collect()) }
    }

    /// Returns the groups that a login is in.
    pub(super) fn of(&self, login: &str) -> impl Iterator<Item = &String> {
        self.by_login.get(login).into_iter().flatten()
    }

    /// Returns the logins that are in other groups in the one than in the other.
    pub(super) fn changed<'a>(old: &'a Self, new: &'a Self) -> BTreeSet<&'a str> {
        let mut changed = BTreeSet::new();
        ChunkedMap::differences(
            &old.by_login,
            &new.by_login,
            |one, two| one == two,
            |login, _, _| {
                changed.insert(login.as_str());
            },
        );
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_say_what_the_policy_says(
            versions in prop::collection::vec(
                prop::collection::btree_map("[a-d]", prop::collection::vec("[u-z]", 0..4), 0..4),
                1..5,
            ),
        ) {
            let mut groups = Groups::default();
            for version in versions {
                let next = Groups::new(&version, &groups);
                let of = |groups: &Groups, login: &str| groups.of(login).cloned().collect::<Vec<_>>();
                for login in ["u", "v", "w", "x", "y", "z"] {
                    let expected: Vec<String> = version
                        .iter()
                        .filter(|(_, members)| members.iter().any(|member| member == login))
                        .map(|(group, _)| group.clone())
                        .collect();
                    prop_assert_eq!(of(&next, login), expected);
                    let changed = Groups::changed(&groups, &next).contains(login);
                    prop_assert_eq!(changed, of(&groups, login) != of(&next, login));
                }
                groups = next;
            }
        }
    }
}
