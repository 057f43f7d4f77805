//! The rules of a policy, numbered, and found by what they name.
//!
//! A rule has one destination. Each rule and each list of sources has a number, which it keeps from one policy to the
//! next as long as it stays the same; a number is not given to another in the very next version.

use super::grants::Maker;
use super::groups::Groups;
use super::numbers::Numbers;
use super::prefixes::PrefixMap;
use super::rule_set::RuleSet;
use super::target::Target;
use crate::Policy;
use crate::posture::Assertion;
use crate::schedule::Validity;
use crate::selector::Selector;
use crate::service::Service;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::sync::Arc;
use warren_wire::control::RawJson;

/// The attribute that takes a node's IPv4 address away.
const DISABLE_IPV4: &str = "disable-ipv4";

/// What sources may do with one destination.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) sources: Arc<ListKey>,
    pub(super) target: Target,
    pub(super) services: Vec<Service>,
    pub(super) app: Arc<BTreeMap<String, Vec<RawJson>>>,
    /// Tags of the routers that alone lead there; empty is any.
    pub(super) via: Vec<String>,
    pub(super) validity: Validity,
    /// For a companion, whose destinations are another rule's sources: the list that those are in, if they need postures.
    pub(super) target_list: Option<Arc<ListKey>>,
    pub(super) is_companion: bool,
}

/// What a list of sources is; lists that are written alike are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListKey {
    /// Sorted, each once.
    pub(super) targets: Vec<Target>,
    /// Assertions of the postures of which a node must have one. They have no order, so they are compared as written.
    pub(super) postures: Vec<String>,
}

/// A list of sources.
#[derive(Debug)]
pub(super) struct List {
    pub(super) key: Arc<ListKey>,
    /// Rules with these sources, without those to own devices.
    pub(super) rules: RuleSet,
    pub(super) own: RuleSet,
    /// Postures of which a node must have one; none demands nothing.
    pub(super) postures: Vec<Vec<Assertion>>,
}

impl List {
    pub(super) fn holds(&self, target: &Target) -> bool {
        self.key.targets.binary_search(target).is_ok()
    }

    /// Tells whether the list names every address there is, so that nothing else is worth naming.
    pub(super) fn is_everything(&self) -> bool {
        self.postures.is_empty() && self.holds(&Target::Everywhere)
    }
}

/// Rules and lists that a word or an address leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mentions {
    /// Lists with the word.
    pub(super) lists: RuleSet,
    /// Rules of those lists, if they need no postures.
    pub(super) sources: RuleSet,
    /// Rules to own devices of those lists, with or without postures.
    pub(super) own: RuleSet,
    /// Rules to it through any router.
    pub(super) destinations: RuleSet,
    /// Rules to it through certain routers.
    pub(super) via: RuleSet,
}

impl Mentions {
    pub(super) fn extend(&mut self, other: &Self) {
        self.lists.extend(&other.lists);
        self.sources.extend(&other.sources);
        self.own.extend(&other.own);
        self.destinations.extend(&other.destinations);
        self.via.extend(&other.via);
    }
}

/// A policy's rules.
#[derive(Debug, Default)]
pub(super) struct Rulebook {
    pub(super) rules: Vec<Option<Arc<Rule>>>,
    /// By rule: the number of its list.
    pub(super) list_of: Vec<usize>,
    /// By rule: where it stands in the policy.
    pub(super) position: Vec<usize>,
    /// By rule: which grant it is of. Capabilities of one grant stay together.
    pub(super) grant_of: Vec<usize>,
    pub(super) lists: Vec<Option<Arc<List>>>,

    /// By words for nodes.
    pub(super) by_selector: BTreeMap<Selector, Mentions>,
    /// By addresses.
    pub(super) literals: PrefixMap<Arc<Mentions>>,
    /// `*`.
    pub(super) any: Mentions,
    /// `autogroup:danger-all`.
    pub(super) everywhere: Mentions,
    /// Lists that need postures.
    pub(super) posture_lists: RuleSet,
    /// The same by the postures, of which a node must have one of a list.
    pub(super) by_postures: Vec<(Arc<List>, RuleSet)>,
    /// Companions whose destinations need postures, with the lists that say which.
    pub(super) posture_targets: BTreeMap<usize, usize>,
    /// Rules that let their sources use any exit node, which makes it a destination.
    pub(super) exit_use: RuleSet,
    /// Rules that are in the filter of an exit node besides.
    pub(super) exit_filter: RuleSet,
    /// Rules to certain routers only.
    pub(super) via: RuleSet,
    pub(super) via_by_tag: BTreeMap<String, RuleSet>,
    /// Rules that do not hold always.
    pub(super) timed: RuleSet,

    pub(super) groups: Groups,
    /// Whose nodes have no IPv4 address.
    pub(super) without_ipv4: Vec<Target>,
}

impl Rulebook {
    /// Numbers a policy's rules, by those of the version before.
    pub(super) fn new(policy: &Policy, old: &Self) -> Self {
        let sections = &policy.sections;
        let mut book = Self { groups: Groups::new(&sections.groups, &old.groups), ..Self::default() };
        let mut numbers = Numbers::new(old);
        let mut maker = Maker { sections, known: BTreeMap::new(), postures: BTreeMap::new() };
        let mut position: usize = 0;
        for (grant_number, grant) in sections.grants.iter().enumerate() {
            for rule in maker.rules(grant) {
                let list = numbers.list(&rule.sources);
                let (number, rule) = numbers.rule(list, rule);
                book.place(number, rule, list, position, grant_number);
                position = position.saturating_add(1);
            }
        }
        book.lists = numbers.list_table(&book, &maker.postures);
        book.index();
        book.without_ipv4 = if sections.disable_ipv4 {
            vec![Target::Any]
        } else {
            let entries = sections.node_attributes.iter();
            let entries = entries.filter(|entry| entry.attributes.iter().any(|name| name == DISABLE_IPV4));
            entries.flat_map(|entry| &entry.targets).map(|target| Target::new(target, sections)).collect()
        };
        book
    }

    pub(super) fn rule(&self, number: usize) -> Option<&Arc<Rule>> {
        self.rules.get(number)?.as_ref()
    }

    pub(super) fn list(&self, number: usize) -> Option<&Arc<List>> {
        self.lists.get(number)?.as_ref()
    }

    pub(super) fn list_of(&self, rule: usize) -> usize {
        self.list_of.get(rule).copied().unwrap_or(usize::MAX)
    }

    /// Returns the lists with their numbers.
    pub(super) fn lists(&self) -> impl Iterator<Item = (usize, &Arc<List>)> {
        self.lists.iter().enumerate().filter_map(|(number, list)| Some((number, list.as_ref()?)))
    }

    /// Returns the rules with their numbers.
    pub(super) fn rules(&self) -> impl Iterator<Item = (usize, &Arc<Rule>)> {
        self.rules.iter().enumerate().filter_map(|(number, rule)| Some((number, rule.as_ref()?)))
    }

    /// Returns the rules of lists.
    pub(super) fn rules_of<'a>(&'a self, lists: &'a RuleSet) -> impl Iterator<Item = &'a RuleSet> {
        lists.iter().filter_map(|list| self.list(list)).map(|list| &list.rules)
    }

    fn place(&mut self, number: usize, rule: Arc<Rule>, list: usize, position: usize, grant: usize) {
        let len = self.rules.len().max(number.saturating_add(1));
        self.rules.resize(len, None);
        for (table, value) in [(&mut self.list_of, list), (&mut self.position, position), (&mut self.grant_of, grant)] {
            table.resize(len, usize::MAX);
            if let Some(entry) = table.get_mut(number) {
                *entry = value;
            }
        }
        if let Some(entry) = self.rules.get_mut(number) {
            *entry = Some(rule);
        }
    }

    fn index(&mut self) {
        let mut literals: BTreeMap<IpNet, Mentions> = BTreeMap::new();
        let lists: Vec<(usize, Arc<List>)> = self.lists().map(|(number, list)| (number, Arc::clone(list))).collect();
        let mut by_postures: BTreeMap<Vec<String>, (Arc<List>, RuleSet)> = BTreeMap::new();
        for (number, list) in lists {
            if !list.postures.is_empty() {
                self.posture_lists.insert(number);
                let postures = list.key.postures.clone();
                by_postures.entry(postures).or_insert_with(|| (Arc::clone(&list), RuleSet::default())).1.insert(number);
            }
            for target in &list.key.targets {
                self.mention(target, &mut literals, |mentions| {
                    mentions.lists.insert(number);
                    mentions.own.extend(&list.own);
                    if list.postures.is_empty() {
                        mentions.sources.extend(&list.rules);
                    }
                });
            }
        }
        self.by_postures = by_postures.into_values().collect();
        let list_numbers: BTreeMap<&ListKey, usize> =
            self.lists.iter().enumerate().filter_map(|(number, list)| Some((&*list.as_ref()?.key, number))).collect();
        let rules: Vec<(usize, Arc<Rule>)> = self.rules().map(|(number, rule)| (number, Arc::clone(rule))).collect();
        for (number, rule) in &rules {
            if let Some(list) = rule.target_list.as_ref().and_then(|key| list_numbers.get(&**key)) {
                self.posture_targets.insert(*number, *list);
            }
        }
        drop(list_numbers);
        for (number, rule) in rules {
            if rule.validity != Validity::default() {
                self.timed.insert(number);
            }
            let through_any = rule.via.is_empty();
            self.mention(&rule.target, &mut literals, |mentions| {
                if through_any { &mut mentions.destinations } else { &mut mentions.via }.insert(number);
            });
            if !through_any {
                self.via.insert(number);
                for tag in &rule.via {
                    self.via_by_tag.entry(tag.clone()).or_default().insert(number);
                }
            } else if !rule.is_companion {
                if rule.target.is_internet() || rule.target == Target::Any {
                    self.exit_use.insert(number);
                }
                if rule.target.concerns_exit_nodes() {
                    self.exit_filter.insert(number);
                }
            }
        }
        let literals = literals.into_iter().map(|(prefix, mentions)| (prefix, Some(Arc::new(mentions))));
        self.literals = PrefixMap::default().with(literals.collect());
    }

    fn mention(
        &mut self,
        target: &Target,
        literals: &mut BTreeMap<IpNet, Mentions>,
        mut add: impl FnMut(&mut Mentions),
    ) {
        match target {
            Target::Any => add(&mut self.any),
            Target::Everywhere => add(&mut self.everywhere),
            Target::Named(selector) => add(self.by_selector.entry(selector.clone()).or_default()),
            Target::Prefix(_) | Target::Set(_) => {
                for prefix in target.literal().into_iter().flat_map(super::address::prefixes) {
                    add(literals.entry(prefix).or_default());
                }
            }
            // Found by other ways: exit nodes, and the lists' own rules.
            Target::Internet | Target::OwnDevices => {}
        }
    }
}
