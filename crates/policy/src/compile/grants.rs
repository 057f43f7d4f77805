//! From the grants of a policy to rules with one destination each.

use super::rules::{ListKey, Rule};
use super::target::Target;
use crate::model::{Grant, Sections};
use crate::posture::{Assertion, Test};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use warren_wire::control::RawJson;

/// Capabilities that make the other side need one, too, and which.
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];
/// Makes rules of grants.
pub(super) struct Maker<'a> {
    pub(super) sections: &'a Sections,
    /// Lists by where the model keeps them: long ones are shared by many grants.
    pub(super) known: BTreeMap<(usize, usize), Arc<ListKey>>,
    /// The postures of a list, by how they are written.
    pub(super) postures: BTreeMap<String, Vec<Assertion>>,
}

impl Maker<'_> {
    /// Returns the rules of a grant, those of companions behind the others.
    pub(super) fn rules(&mut self, grant: &Grant) -> Vec<Rule> {
        let sources = self.list(grant);
        let target = |selector| Target::new(selector, self.sections);
        let targets: Vec<Target> = grant.destinations.iter().map(target).collect();
        if sources.targets.is_empty() || targets.is_empty() {
            return Vec::new();
        }
        let rule = |target: &Target| Rule {
            sources: Arc::clone(&sources),
            target: target.clone(),
            services: grant.services.clone(),
            app: Arc::clone(&grant.app),
            via: grant.via.clone(),
            validity: grant.validity.clone(),
            target_list: None,
            is_companion: false,
        };
        let mut rules: Vec<Rule> = targets.iter().map(rule).collect();
        let companions = COMPANIONS.iter().filter(|(name, _)| grant.app.contains_key(*name));
        let app: BTreeMap<String, Vec<RawJson>> =
            companions.map(|(_, companion)| ((*companion).to_owned(), Vec::new())).collect();
        if app.is_empty() || !grant.via.is_empty() {
            return rules;
        }
        let app = Arc::new(app);
        let companion = |sources: &Arc<ListKey>, target: &Target, target_list: Option<Arc<ListKey>>| Rule {
            sources: Arc::clone(sources),
            services: Vec::new(),
            app: Arc::clone(&app),
            target_list,
            is_companion: true,
            ..rule(target)
        };
        let mut others: Vec<Target> = targets.iter().filter(|target| **target != Target::OwnDevices).cloned().collect();
        others.sort();
        others.dedup();
        if targets.contains(&Target::OwnDevices) {
            rules.push(companion(&sources, &Target::OwnDevices, None));
        }
        if !others.is_empty() {
            let reversed = Arc::new(ListKey { targets: others, postures: Vec::new() });
            let needs = (!sources.postures.is_empty()).then(|| Arc::clone(&sources));
            // As a destination, every address is every node.
            let target = |source: &Target| match source == &Target::Everywhere {
                true => Target::Any,
                false => source.clone(),
            };
            let targets: BTreeSet<Target> = sources.targets.iter().map(target).collect();
            rules.extend(targets.iter().map(|target| companion(&reversed, target, needs.clone())));
        }
        rules
    }

    fn list(&mut self, grant: &Grant) -> Arc<ListKey> {
        let place = (grant.sources.as_ptr() as usize, grant.postures.as_ptr() as usize);
        if let Some(known) = self.known.get(&place) {
            return Arc::clone(known);
        }
        let mut targets: Vec<Target> =
            grant.sources.iter().map(|selector| Target::new(selector, self.sections)).collect();
        targets.sort();
        targets.dedup();
        let postures = grant.postures.iter().map(|name| {
            // Reading the policy made sure that the posture is there; one that is not holds for nobody.
            let assertions = self.sections.postures.get(name).cloned().unwrap_or_else(|| vec![never()]);
            let text = format!("{assertions:?}");
            self.postures.insert(text.clone(), assertions);
            text
        });
        let mut postures: Vec<String> = postures.collect();
        postures.sort();
        postures.dedup();
        let key = Arc::new(ListKey { targets, postures });
        self.known.insert(place, Arc::clone(&key));
        key
    }
}

fn never() -> Assertion {
    Assertion { attribute: String::new(), test: Test::In(Vec::new()) }
}
