//! Which of several routers takes the packets for a network, judged by what comes back out of it.
//!
//! The server names one router of each network and tells who could stand in for it. It finds out late when that one is cut
//! off, and never when it merely passes nothing on; and it may be wrong, or away. So a node looks for itself: packets go into
//! a network and nothing comes out of it, for [`WAIT`]. Then it asks, through the router in use and through the others, an echo of
//! the host that does not answer, and of each router itself. It changes over only to a router that was proved to be better:
//! through which the host answers while it does not through the one in use, or which answers while that one is silent
//! altogether. When all look dead, the last good one stays. What the server says of who is the way or is online takes
//! effect by itself only while nobody can tell better: for a network that is not in use; in the long run, for one that is
//! always in use, if the server's choice proves to work.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_wire::key::NodeKey;

/// How long packets go into a network without any coming out of it before it is looked into. A slow host costs a few
/// small packets thereby, and nothing else.
const WAIT: Duration = Duration::from_millis(450);
/// How often a network in use is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How long after its last packet a network is in use.
const QUIET: Duration = Duration::from_secs(5);
/// How recent an answer out of a network proves that its router works.
const PROVEN: Duration = Duration::from_secs(2);
/// How often a router is asked in a round.
const PROBES: u8 = 3;
/// Time between two questions to it.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How much longer the router in use has than the first of the others, and all have after the last question.
const LEAD: Duration = Duration::from_millis(250);
/// Time between two rounds: doubled while nobody answers at all.
const SPACING: Duration = Duration::from_secs(1);
/// The most that it becomes.
const SPACING_MAX: Duration = Duration::from_secs(16);
/// How long a network rests before its packets go the server's way again.
const REST: Duration = Duration::from_secs(60);
/// How long packets of a network that is never at rest go another way than the server's before that is asked; and how long a
/// router that failed is not taken again without having been asked.
const APART: Duration = Duration::from_secs(600);
/// Most routers that are asked in a round, beside the one in use.
const ASKED: usize = 3;
/// Most routers of one network that are known.
const ROUTERS: usize = 16;
/// Most networks with several routers; for others the server's word counts.
const NETWORKS: usize = 512;

/// Is a peer that leads into a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// The peer.
    pub key: NodeKey,
    /// Whether the server says that it is away. That is never believed of one that works.
    pub is_away: bool,
}

/// Says what the packets of a network tell. All are times of packets in the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// When the last packet went into it.
    pub sent: Option<Instant>,
    /// When the first packet went into it after the last one that came out.
    pub waiting: Option<Instant>,
    /// When the last one came out.
    pub answered: Option<Instant>,
}

/// Is a question to be sent: an echo request through `router` to a host of the network, and one to the router itself. Answers
/// carry `number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterProbe {
    /// The network.
    pub network: IpNet,
    /// The peer through which to ask.
    pub router: NodeKey,
    /// What the answers carry.
    pub number: u16,
}

/// Says who answered a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answerer {
    /// A host of the network, so that packets get into it and out again.
    Host,
    /// The router itself.
    Router,
}

/// Says that another router is in use now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switched {
    /// The network.
    pub network: IpNet,
    /// The router until now.
    pub from: NodeKey,
    /// The router from now on.
    pub to: NodeKey,
    /// Why.
    pub reason: SwitchReason,
}

/// Says why a router is left for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchReason {
    /// It does not answer.
    Silent,
    /// It answers, but passes nothing on.
    Closed,
    /// The server would have it so, and nobody knows better any more.
    Server,
}

/// Chooses a router for each network that has several. After each call with `now`, drain [`Self::poll_probe`] and
/// [`Self::poll_switched`].
#[derive(Debug, Default)]
pub struct Routers {
    networks: BTreeMap<IpNet, Network>,
    probes: VecDeque<RouterProbe>,
    switched: VecDeque<Switched>,
    next: u16,
}

#[derive(Debug)]
struct Network {
    /// The server's choice first.
    routers: Vec<Router>,
    in_use: NodeKey,
    /// When it is looked at next; `None` while it is not in use.
    look_at: Option<Instant>,
    answered: Option<Instant>,
    round: Option<Round>,
    next_round: Option<Instant>,
    spacing: Duration,
    /// Since when it is not in use, if somebody has looked.
    rests_since: Option<Instant>,
    /// Since when the router in use is another than the server's choice.
    apart_since: Option<Instant>,
    /// The server's choice that was left because it failed, and when it last did.
    failed: Option<(NodeKey, Instant)>,
}

/// Questions to the routers of a network.
#[derive(Debug)]
struct Round {
    began: Instant,
    sent: u8,
    /// The router in use first.
    asked: Vec<Asked>,
    /// What is asked.
    about: About,
}

/// Says what a round is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// Who works, since nothing comes out.
    Failure,
    /// Whether the server's choice works, which is the second one asked.
    Return,
}

#[derive(Debug)]
struct Asked {
    key: NodeKey,
    number: u16,
    host: Option<Instant>,
    router: Option<Instant>,
}

/// What a round says so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    /// The router in use is at least as good as any other.
    Stays,
    /// Nobody answers.
    Dead,
    Other(NodeKey),
}

impl Routers {
    /// Takes over who leads into networks, for each the server's choice first; of networks with one router only nothing is
    /// said here.
    pub fn set(&mut self, networks: BTreeMap<IpNet, Vec<Router>>, now: Instant) {
        self.networks.retain(|net, _| networks.contains_key(net));
        for (net, mut routers) in networks {
            routers.truncate(ROUTERS);
            let Some(first) = routers.first().map(|router| router.key) else { continue };
            if let Some(network) = self.networks.get_mut(&net) {
                network.set_routers(routers, first, now);
            } else if self.networks.len() < NETWORKS {
                self.networks.insert(net, Network::new(routers, first));
            }
        }
    }

    /// Returns the router in use of a network that has several.
    #[must_use]
    pub fn in_use(&self, network: &IpNet) -> Option<NodeKey> {
        self.networks.get(network).map(|network| network.in_use)
    }

    /// Returns all networks with several routers, each with the one in use and the server's choice.
    pub fn networks(&self) -> impl Iterator<Item = (IpNet, NodeKey, NodeKey)> {
        self.networks.iter().filter_map(|(net, network)| Some((*net, network.in_use, network.routers.first()?.key)))
    }

    /// Tells whether a peer is one of several routers of a network.
    #[must_use]
    pub fn has(&self, key: &NodeKey) -> bool {
        self.networks.values().any(|network| network.routers.iter().any(|router| router.key == *key))
    }

    /// Says that packets go into a network that was not in use.
    pub fn wake(&mut self, network: &IpNet, now: Instant) {
        if let Some(network) = self.networks.get_mut(network) {
            network.look_at.get_or_insert(now + LOOK_EVERY);
            network.rests_since = None;
        }
    }

    /// Returns the networks of which [`Self::handle_use`] shall be told now.
    #[must_use]
    pub fn due(&self, now: Instant) -> Vec<IpNet> {
        let due = self.networks.iter().filter(|(_, network)| network.look_at.is_some_and(|at| at <= now));
        due.map(|(net, _)| *net).collect()
    }

    /// Takes over what the packets of a network tell. Returns whether it is still in use; if not, [`Self::wake`] must say
    /// when it is again.
    pub fn handle_use(&mut self, net: &IpNet, packets: Use, now: Instant) -> bool {
        let Some(network) = self.networks.get_mut(net) else { return false };
        network.answered = packets.answered;
        let in_use = packets.sent.is_some_and(|at| now.saturating_duration_since(at) < QUIET);
        network.look_at = in_use.then(|| now + LOOK_EVERY);
        network.rests_since = if in_use { None } else { network.rests_since.or(Some(now)) };
        let Some(since) = packets.waiting.filter(|_| in_use) else {
            // What comes out needs no proof. A round is left to tell who was better if the answer is older.
            let is_answered = |round: &Round| packets.answered.is_some_and(|at| at > round.began);
            if network.round.as_ref().is_some_and(|round| round.about == About::Failure && is_answered(round)) {
                network.round = None;
            }
            if packets.answered.is_some() {
                network.spacing = SPACING;
            }
            return in_use;
        };
        let waits = now.saturating_duration_since(since) >= WAIT;
        if waits && network.round.is_none() && network.next_round.is_none_or(|at| at <= now) {
            network.begin(About::Failure, &mut self.next, now);
            network.ask(*net, &mut self.probes, now);
        }
        true
    }

    /// Takes over an answer; `from` is the peer through which it came.
    pub fn handle_answer(&mut self, number: u16, answerer: Answerer, from: NodeKey, now: Instant) {
        for (net, network) in &mut self.networks {
            let Some(round) = &mut network.round else { continue };
            let Some(asked) = round.asked.iter_mut().find(|asked| asked.number == number) else { continue };
            match answerer {
                // It may come back by another router of the network, whichever its hosts use.
                Answerer::Host => asked.host = asked.host.or(Some(now)),
                Answerer::Router if asked.key == from => asked.router = asked.router.or(Some(now)),
                Answerer::Router => {}
            }
            network.decide(*net, &mut self.switched, now);
            return;
        }
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for (net, network) in &mut self.networks {
            network.look_back(*net, &mut self.next, &mut self.switched, now);
            network.ask(*net, &mut self.probes, now);
            network.decide(*net, &mut self.switched, now);
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next, after [`Self::handle_use`] for [`Self::due`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.networks
            .values()
            .flat_map(|network| [network.look_at, network.round.as_ref().map(Round::next), network.returns_at()])
            .flatten()
            .min()
    }

    /// Returns the next question.
    pub fn poll_probe(&mut self) -> Option<RouterProbe> {
        self.probes.pop_front()
    }

    /// Returns the next change.
    pub fn poll_switched(&mut self) -> Option<Switched> {
        self.switched.pop_front()
    }
}

impl Network {
    fn new(routers: Vec<Router>, in_use: NodeKey) -> Self {
        Self {
            routers,
            in_use,
            look_at: None,
            answered: None,
            round: None,
            next_round: None,
            spacing: SPACING,
            rests_since: None,
            apart_since: None,
            failed: None,
        }
    }

    fn set_routers(&mut self, routers: Vec<Router>, first: NodeKey, now: Instant) {
        let before = self.routers.first().map(|router| router.key);
        self.routers = routers;
        let is_router = |asked: &Asked| self.routers.iter().any(|router| router.key == asked.key);
        if self.round.as_ref().is_some_and(|round| !round.asked.iter().all(is_router)) {
            self.round = None;
        }
        let Some(in_use) = self.routers.iter().find(|router| router.key == self.in_use) else {
            self.in_use = first;
            self.round = None;
            return;
        };
        let works =
            self.look_at.is_some() || self.answered.is_some_and(|at| now.saturating_duration_since(at) < PROVEN);
        // A server that has just started says who came first, and one that is overloaded that all are away: connections
        // would break for it.
        if before != Some(first) && in_use.is_away && !works {
            self.in_use = first;
            self.round = None;
        }
        if before != Some(first) || self.in_use == first {
            self.apart_since = None;
        }
        if self.in_use != first {
            self.apart_since.get_or_insert(now);
            if self.look_at.is_none() {
                self.rests_since.get_or_insert(now);
            }
        }
    }

    /// Returns when the server's word counts again, if packets go another way: what was found out is not true for ever, and
    /// whom the server does not want must not keep a network by answering well, nor have got it for good by answering once.
    fn returns_at(&self) -> Option<Instant> {
        let first = self.routers.first().filter(|router| router.key != self.in_use && !router.is_away)?;
        if self.round.is_some() {
            return None;
        }
        let at = match self.rests_since {
            // Connections that rest as long have to begin anew, as they do with the server's choice alone.
            Some(since) => since + REST,
            None => self.apart_since? + APART,
        };
        let failed = self.failed.filter(|(key, _)| *key == first.key).map(|(_, at)| at + APART);
        Some(failed.map_or(at, |failed| failed.max(at)))
    }

    /// Goes the server's way again if it is time: at once while the network rests, else if the server's choice proves to work.
    fn look_back(&mut self, network: IpNet, next: &mut u16, switched: &mut VecDeque<Switched>, now: Instant) {
        if self.returns_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(to) = self.routers.first().map(|router| router.key) else { return };
        if self.rests_since.is_none() {
            self.apart_since = Some(now);
            self.begin(About::Return, next, now);
        } else {
            self.change(network, to, SwitchReason::Server, switched, now);
        }
    }

    fn change(
        &mut self,
        network: IpNet,
        to: NodeKey,
        reason: SwitchReason,
        switched: &mut VecDeque<Switched>,
        now: Instant,
    ) {
        switched.push_back(Switched { network, from: self.in_use, to, reason });
        let first = self.routers.first().map(|router| router.key);
        if reason != SwitchReason::Server && first == Some(self.in_use) {
            self.failed = Some((self.in_use, now));
        }
        self.apart_since = (first != Some(to)).then(|| self.apart_since.unwrap_or(now));
        self.in_use = to;
        self.spacing = SPACING;
    }

    fn begin(&mut self, about: About, next: &mut u16, now: Instant) {
        let others = self.routers.iter().map(|router| router.key).filter(|key| *key != self.in_use);
        // Those of which nobody says that they are away first.
        let mut others: Vec<NodeKey> = others.collect();
        others.sort_by_key(|key| self.routers.iter().any(|router| router.key == *key && router.is_away));
        let count = match about {
            About::Failure => ASKED,
            // The server's choice, which is not away.
            About::Return => 1,
        };
        let asked = std::iter::once(self.in_use).chain(others.into_iter().take(count)).map(|key| {
            *next = next.wrapping_add(1);
            Asked { key, number: *next, host: None, router: None }
        });
        self.round = Some(Round { began: now, sent: 0, asked: asked.collect(), about });
    }

    /// Sends the questions that are due.
    fn ask(&mut self, network: IpNet, probes: &mut VecDeque<RouterProbe>, now: Instant) {
        let Some(round) = &mut self.round else { return };
        if round.sent < PROBES && now >= round.began + PROBE_EVERY * u32::from(round.sent) {
            round.sent += 1;
            let open = round.asked.iter().filter(|asked| asked.host.is_none());
            probes.extend(open.map(|asked| RouterProbe { network, router: asked.key, number: asked.number }));
        }
    }

    /// Ends the round if it has told enough.
    fn decide(&mut self, network: IpNet, switched: &mut VecDeque<Switched>, now: Instant) {
        let Some(round) = &self.round else { return };
        let is_away = self.routers.iter().any(|router| router.key == self.in_use && router.is_away);
        match round.outcome(is_away, now) {
            Outcome::Open => return,
            Outcome::Stays => self.spacing = SPACING * 2,
            Outcome::Dead => self.spacing = (self.spacing * 2).min(SPACING_MAX),
            Outcome::Other(to) => {
                let is_there = round.asked.first().is_some_and(|asked| asked.router.is_some());
                let reason = match round.about {
                    About::Return => SwitchReason::Server,
                    About::Failure if is_there => SwitchReason::Closed,
                    About::Failure => SwitchReason::Silent,
                };
                self.change(network, to, reason, switched, now);
            }
        }
        self.round = None;
        self.next_round = Some(now + self.spacing);
    }
}

impl Round {
    fn end(&self) -> Instant {
        self.began + PROBE_EVERY * u32::from(PROBES - 1) + LEAD
    }

    /// Returns when there is something to send or to decide.
    fn next(&self) -> Instant {
        let next = if self.sent < PROBES { self.began + PROBE_EVERY * u32::from(self.sent) } else { self.end() };
        let others = self.asked.iter().skip(1).flat_map(|asked| [asked.host, asked.router]).flatten();
        // Those that have passed were decided on.
        let leads =
            others.map(|at| at + LEAD).filter(|at| *at > self.began + PROBE_EVERY * u32::from(self.sent.max(1) - 1));
        leads.chain([next]).min().unwrap_or(next)
    }

    fn outcome(&self, is_away: bool, now: Instant) -> Outcome {
        let Some((own, others)) = self.asked.split_first() else { return Outcome::Dead };
        let first = |of: fn(&Asked) -> Option<Instant>| {
            others.iter().filter_map(|asked| Some((of(asked)?, asked.key))).min_by_key(|(at, _)| *at)
        };
        let is_over = now >= self.end();
        if self.about == About::Return {
            let Some(choice) = others.first() else { return Outcome::Stays };
            // Where hosts answer nobody it is the router's word.
            let works = choice.host.is_some() || is_over && own.host.is_none() && choice.router.is_some();
            return match works {
                true => Outcome::Other(choice.key),
                false if is_over => Outcome::Stays,
                false => Outcome::Open,
            };
        }
        if own.host.is_some() {
            return Outcome::Stays;
        }
        if let Some((at, key)) = first(|asked| asked.host)
            && (is_over || now >= at + LEAD)
        {
            return Outcome::Other(key);
        }
        // The hosts may answer nobody: then it is the routers' word.
        match (own.router, first(|asked| asked.router)) {
            (Some(_), _) if is_over => Outcome::Stays,
            (None, Some((at, key))) if is_over || is_away && now >= at + LEAD => Outcome::Other(key),
            (None, None) if is_over => Outcome::Dead,
            (Some(_) | None, _) => Outcome::Open,
        }
    }
}

#[cfg(test)]
mod tests;
