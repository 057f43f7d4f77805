//! A policy that was read and found valid.

use crate::model::Sections;
use crate::problem::{Errors, PolicyErrors};
use crate::{Compiled, Directory, hujson, read};
use std::sync::Arc;

/// Most destinations that all rules of a policy may have together, each as often as it has ranges of ports and
/// capabilities.
pub const DESTINATIONS_MAX: usize = 40_000;

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
}
