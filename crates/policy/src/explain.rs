//! Why one party reaches another, or does not, in words.

mod question;
mod reasons;
mod who;

pub use question::{PARTIES_MAX, QuestionError};
pub use who::{WhoAnswer, WhoEntry};

use crate::reach::{Party, RuleLine};
use crate::{NodeNames, Reach};
use question::{Device, Devices, Service};
use serde::Serialize;
use std::collections::BTreeMap;

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every device of the one reaches every device of the other.
    Allowed,
    /// Some do.
    Partly,
    /// None does.
    Denied,
}

/// The answer to whether one party reaches another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The source, as asked.
    pub from: String,
    /// The destination, as asked, without port and protocol.
    pub to: String,
    /// Protocol and port, in words.
    pub service: String,
    /// What came of it.
    pub verdict: Verdict,
    /// The rules that allow it, in the order of the policy.
    pub rules: Vec<RuleLine>,
    /// If not all is allowed: why, the likeliest first; one sentence each.
    pub reasons: Vec<String>,
    /// If only a part is allowed: pairs of devices of which the first does not reach the second.
    pub denied_pairs: Vec<(String, String)>,
}

/// Most pairs in [`Explanation::denied_pairs`].
const PAIRS_MAX: usize = 50;

impl Explanation {
    /// Writes the answer for people, one line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Self { from, to, service, .. } = self;
        let mut lines = vec![match self.verdict {
            Verdict::Allowed => format!("{from} reaches {to} ({service})"),
            Verdict::Partly => format!("{from} reaches {to} in part ({service})"),
            Verdict::Denied => format!("{from} does not reach {to} ({service})"),
        }];
        for rule in &self.rules {
            let through = match rule.through.as_slice() {
                [] => String::new(),
                nodes => format!(", through {}", nodes.join(" or ")),
            };
            lines.push(format!("  line {} allows {}{through}: {}", rule.line, rule.services, rule.text));
        }
        lines.extend(self.reasons.iter().map(|reason| format!("  {reason}")));
        lines.extend(self.denied_pairs.iter().map(|(from, to)| format!("  {from} does not reach {to}")));
        lines
    }
}

impl Reach<'_> {
    /// Explains whether `from` reaches `to`, and by which rules, or why not.
    ///
    /// `from` is a node's name, a user, group, tag, host, address or autogroup; `to` is one of these with port and
    /// protocol: `web:443/tcp`, `web:443` (TCP), `web/icmp`, or `web` alone for any traffic. IPv6 addresses with a port
    /// stand in brackets.
    ///
    /// # Errors
    /// [`QuestionError`] if a name is unknown or the question is malformed.
    pub fn explain(&self, names: &NodeNames, from: &str, to: &str) -> Result<Explanation, QuestionError> {
        let (to, service) = Service::split(to)?;
        let (sources, destinations) = (Devices::of(self, names, from)?, Devices::of(self, names, &to)?);
        let (sources, destinations) = (sources.list(self, names)?, destinations.list(self, names)?);
        let mut allowing = BTreeMap::new();
        let mut pairs = Vec::new();
        for source in &sources {
            for destination in &destinations {
                let allowed = self.pair(source, destination, &service, &mut allowing);
                pairs.push((allowed, source, destination));
            }
        }
        let allowed = pairs.iter().filter(|(allowed, ..)| *allowed).count();
        let verdict = match allowed {
            _ if allowed == pairs.len() && allowed > 0 => Verdict::Allowed,
            0 => Verdict::Denied,
            _ => Verdict::Partly,
        };
        let mut reasons = Vec::new();
        if verdict != Verdict::Allowed {
            let denied = pairs.iter().filter(|(allowed, ..)| !allowed);
            let denied: Vec<(&Device<'_>, &Device<'_>)> = denied.map(|(_, from, to)| (*from, *to)).collect();
            reasons = reasons::of(self, &denied, &service, [from, &to]);
        }
        let mut denied_pairs = Vec::new();
        if verdict == Verdict::Partly {
            let denied = pairs.iter().filter(|(allowed, ..)| !allowed).take(PAIRS_MAX);
            denied_pairs = denied.map(|(_, from, to)| (from.name.clone(), to.name.clone())).collect();
        }
        let rules = allowing.into_iter().filter_map(|(number, ways)| {
            let grant = self.policy.sections.grants.get(number)?;
            Some(RuleLine::of(self, number, grant).through(&ways.into_iter().collect::<Vec<_>>(), names))
        });
        Ok(Explanation {
            from: from.to_owned(),
            service: service.to_string(),
            verdict,
            rules: rules.collect(),
            reasons,
            denied_pairs,
            to,
        })
    }

    /// Judges a pair of devices; notes the rules that allow it and the nodes in between.
    fn pair(&self, source: &Device<'_>, destination: &Device<'_>, service: &Service, allowing: &mut Allowing) -> bool {
        let mut allowed = false;
        for (from, to) in same_family(source, destination) {
            for (number, grant) in self.rules() {
                if !self.fit(grant, from, to, &service.0).all() {
                    continue;
                }
                if self.has_way(grant, to) {
                    allowed = true;
                    let between = self.ways(grant, to).into_iter().filter(|way| Some(*way) != to.node);
                    allowing.entry(number).or_default().extend(between);
                }
            }
        }
        allowed
    }
}

/// Rules that allow something, by number, and the nodes that carry the packets.
type Allowing = BTreeMap<usize, std::collections::BTreeSet<warren_wire::control::NodeId>>;

/// Returns the pairs of addresses between which packets can be at all.
fn same_family<'a>(
    source: &'a Device<'a>,
    destination: &'a Device<'a>,
) -> impl Iterator<Item = (Party<'a>, Party<'a>)> {
    let is_ipv4 = |party: &Party<'_>| party.address.map(|address| address.is_ipv4());
    source.parties.iter().flat_map(move |from| {
        let fits = move |to: &&Party<'_>| match (is_ipv4(from), is_ipv4(to)) {
            (Some(from), Some(to)) => from == to,
            _ => true,
        };
        destination.parties.iter().filter(fits).map(|to| (*from, *to))
    })
}
