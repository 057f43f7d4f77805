//! A policy that was read and found valid.

use crate::model::{Sections, TagOwner};
use crate::problem::{Errors, PolicyErrors};
use crate::selector::Selector;
use crate::{Compiled, Directory, hujson, read};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most destinations that all rules of a policy may have together.
pub const DESTINATIONS_MAX: usize = 10_000;

/// A valid policy, with its text.
#[derive(Debug, Clone)]
pub struct Policy {
    text: Arc<str>,
    pub(crate) sections: Sections,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// All errors of the text, each with its place and what to write instead.
    pub fn parse(text: &str) -> Result<Self, PolicyErrors> {
        let mut errors = Errors::new(text);
        let sections = hujson::read(text, &mut errors).and_then(|document| read::sections(&document, &mut errors));
        let sections = errors.finish(sections)?;
        Ok(Self { text: text.into(), sections })
    }

    /// Returns the text exactly as it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Compiles the policy for these users and nodes; `now` is in Unix seconds.
    #[must_use]
    pub fn compile(&self, directory: &Directory, now: i64) -> Compiled {
        Compiled::new(self, directory, now)
    }

    /// Tells whether the policy knows a tag, like `tag:web`.
    #[must_use]
    pub fn defines_tag(&self, tag: &str) -> bool {
        self.sections.tag_owners.contains_key(tag)
    }

    /// Tells whether a user may give `tag` to a node; `user` is the login name of a direct member.
    #[must_use]
    pub fn may_own_tag(&self, user: &str, tag: &str) -> bool {
        let owners = self.sections.tag_owners.get(tag);
        owners.into_iter().flatten().any(|owner| match owner {
            TagOwner::Nodes(Selector::User(login)) => login == user,
            TagOwner::Nodes(Selector::Group(group)) => {
                self.sections.groups.get(group).is_some_and(|members| members.iter().any(|member| member == user))
            }
            TagOwner::Nodes(Selector::Members) => true,
            TagOwner::Nodes(_) | TagOwner::Tag(_) => false,
        })
    }

    /// Tells whether whoever holds the tags `held` (a node or an auth key) may give `tag` to a node.
    ///
    /// A tag passes itself on, and every tag that it owns, directly or through others.
    #[must_use]
    pub fn may_pass_on_tag<'a>(&self, held: impl IntoIterator<Item = &'a str>, tag: &str) -> bool {
        let held: BTreeSet<&str> = held.into_iter().collect();
        let mut seen = BTreeSet::new();
        let mut open = vec![tag];
        while let Some(tag) = open.pop() {
            if !seen.insert(tag) {
                continue;
            }
            let Some(owners) = self.sections.tag_owners.get(tag) else {
                continue;
            };
            if held.contains(tag) {
                return true;
            }
            open.extend(owners.iter().filter_map(|owner| match owner {
                TagOwner::Tag(owner) => Some(owner.as_str()),
                TagOwner::Nodes(_) => None,
            }));
        }
        false
    }
}
