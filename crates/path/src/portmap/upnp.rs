//! Asking the gateway by UPnP: found by a search, described by a document, asked by HTTP.
//!
//! Only the gateway itself is talked to: whatever address an answer or a description names, only its port and path are
//! used. One request is on its way at a time; the shell makes a TCP connection for each, bounded in time and bytes.
//!
//! Sources: UPnP Device Architecture 1.1, WANIPConnection:1 and :2; Tailscale `net/portmapper/upnp.go`.

mod text;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::{FIRST_RETRY, LIFETIME, MapTarget, MapTransmit, REST, is_possible};
use text::{Service, Url};

/// Port of searches.
const SEARCH_PORT: u16 = 1900;
/// Group of searches.
const SEARCH_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// How often is searched, at doubling intervals.
const SEARCHES: u32 = 3;
/// How long an answer of somebody who does not say to be a gateway waits for a better one.
const SETTLE: Duration = Duration::from_millis(250);
/// Longest that a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How many outside ports are tried that are in use already.
const PORTS: u32 = 4;
/// Lowest outside port that is asked for.
const LEAST_PORT: u16 = 1024;
/// What the mapping is called in the gateway's list.
const DESCRIPTION: &str = "warren";

/// Errors of gateways that keep mappings for ever or not at all: "only permanent leases", and a device that takes the
/// number for nonsense.
const WANTS_NO_LEASE: [&str; 2] = ["725", "402"];
/// The outside port belongs to somebody else.
const CONFLICT: &str = "718";

/// An HTTP request for the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRequest {
    /// Where to connect.
    pub to: SocketAddrV4,
    /// The whole request; the gateway closes the connection behind its response.
    pub bytes: Vec<u8>,
}

/// Keeps one mapping by UPnP.
#[derive(Debug, Default)]
pub(super) struct Upnp {
    step: Step,
    /// Services that may map ports, of the gateway that was found, best first.
    services: VecDeque<Service>,
    held: Option<Held>,
    /// Random numbers for outside ports are drawn from this.
    random: u64,
    pub(super) transmits: VecDeque<MapTransmit>,
    pub(super) requests: VecDeque<MapRequest>,
}

#[derive(Debug, Default)]
enum Step {
    /// Nothing to do.
    #[default]
    Idle,
    /// Searching; `other` answered, but did not say to be a gateway.
    Searching { tries: u32, next: Instant, other: Option<Url> },
    /// The description is on its way.
    Describing { url: Url, until: Instant },
    /// A mapping was asked for.
    Mapping { port: u16, lease: u32, tries: u32, until: Instant },
    /// The outside address is asked for.
    Address { port: u16, until: Instant },
    /// Mapped; to be renewed then.
    Done { renew_at: Instant },
    /// Left alone until then.
    Resting(Instant),
}

/// A mapping.
#[derive(Debug, Clone)]
struct Held {
    service: Service,
    outside: SocketAddrV4,
    ends_at: Instant,
}

impl Upnp {
    /// Makes one that does nothing yet.
    pub(super) fn new(seed: u64) -> Self {
        Self { random: seed | 1, ..Self::default() }
    }

    /// Begins to look for a gateway, unless something is going on.
    pub(super) fn start(&mut self, target: MapTarget, now: Instant) {
        if matches!(self.step, Step::Idle) {
            self.search(target, 0, None, now);
        }
    }

    /// Looks again for a gateway that was left alone.
    pub(super) fn try_again(&mut self, target: MapTarget, now: Instant) {
        if matches!(self.step, Step::Resting(_)) {
            self.search(target, 0, None, now);
        }
    }

    /// Gives the mapping back and forgets the gateway.
    pub(super) fn stop(&mut self, target: MapTarget) {
        self.requests.clear();
        let under_way = match self.step {
            Step::Mapping { port, .. } | Step::Address { port, .. } => self.services.front().cloned().zip(Some(port)),
            Step::Idle | Step::Searching { .. } | Step::Describing { .. } | Step::Done { .. } | Step::Resting(_) => {
                None
            }
        };
        let held = self.held.take().map(|held| (held.service, held.outside.port()));
        if let Some((service, port)) = held.or(under_way) {
            let port = port.to_string();
            let arguments = [("NewRemoteHost", ""), ("NewExternalPort", &*port), ("NewProtocol", "UDP")];
            self.call(target, &service, "DeletePortMapping", &arguments);
        }
        self.step = Step::Idle;
        self.services.clear();
    }

    /// Returns where the port can be reached from outside.
    pub(super) fn mapping(&self) -> Option<SocketAddrV4> {
        self.held.as_ref().map(|held| held.outside)
    }

    /// Tells whether a gateway was found that maps ports by UPnP.
    pub(super) fn is_there(&self) -> bool {
        !self.services.is_empty() || self.held.is_some()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.step {
            Step::Idle => None,
            Step::Searching { next, .. } => Some(next),
            Step::Describing { until, .. } | Step::Mapping { until, .. } | Step::Address { until, .. } => Some(until),
            Step::Done { renew_at } => Some(renew_at),
            Step::Resting(until) => Some(until),
        }
    }

    pub(super) fn handle_timeout(&mut self, target: MapTarget, now: Instant) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        self.expire(now);
        match std::mem::take(&mut self.step) {
            Step::Idle => {}
            Step::Searching { other: Some(url), .. } => self.describe(target, url, now),
            Step::Searching { tries, .. } if tries < SEARCHES => self.search(target, tries, None, now),
            Step::Searching { .. } => self.rest(now),
            // No answer: the gateway may have moved its service, or be gone.
            Step::Describing { .. } | Step::Mapping { .. } | Step::Address { .. } => self.fail(now),
            Step::Done { .. } => match self.held.clone() {
                Some(held) => {
                    self.services.retain(|service| *service != held.service);
                    self.services.push_front(held.service);
                    self.map(target, held.outside.port(), LIFETIME, 0, now);
                }
                None => self.search(target, 0, None, now),
            },
            Step::Resting(_) => self.search(target, 0, None, now),
        }
    }

    /// Takes in an answer to a search, which came from the gateway.
    pub(super) fn handle_datagram(&mut self, target: MapTarget, bytes: &[u8], now: Instant) {
        let Step::Searching { other, next, .. } = &mut self.step else { return };
        match text::read_answer(bytes) {
            Some((url, true)) => self.describe(target, url, now),
            Some((url, false)) if other.is_none() => {
                *other = Some(url);
                *next = now + SETTLE;
            }
            _ => {}
        }
    }

    /// Takes in the whole response to the last request, or that there is none.
    pub(super) fn handle_response(&mut self, target: MapTarget, bytes: Option<&[u8]>, now: Instant) {
        let response = bytes.and_then(text::response);
        match std::mem::take(&mut self.step) {
            Step::Describing { url, .. } => {
                self.services = match response {
                    Some((200, body)) => text::services(&body, &url).into(),
                    _ => VecDeque::new(),
                };
                let port = self.random_port();
                self.map(target, port, LIFETIME, 0, now);
            }
            Step::Mapping { port, lease, tries, .. } => match response {
                Some((200, body)) => {
                    let chosen = text::tag(&body, "NewReservedPort").and_then(|port| port.parse().ok());
                    let port = chosen.filter(|port| *port != 0).unwrap_or(port);
                    self.ask_address(target, port, now);
                }
                Some((_, body)) => match text::tag(&body, "errorCode").unwrap_or_default() {
                    code if WANTS_NO_LEASE.contains(&code) && lease != 0 => self.map(target, port, 0, tries, now),
                    CONFLICT if tries + 1 < PORTS => {
                        let port = self.random_port();
                        self.map(target, port, lease, tries + 1, now);
                    }
                    _ => {
                        self.services.pop_front();
                        self.map(target, port, LIFETIME, 0, now);
                    }
                },
                None => self.fail(now),
            },
            Step::Address { port, .. } => {
                let address = response
                    .filter(|(status, _)| *status == 200)
                    .and_then(|(_, body)| text::tag(&body, "NewExternalIPAddress")?.parse().ok())
                    .filter(|address| is_possible(*address));
                match (address, self.services.front().cloned()) {
                    (Some(address), Some(service)) => {
                        let lifetime = Duration::from_secs(LIFETIME.into());
                        let outside = SocketAddrV4::new(address, port);
                        self.held = Some(Held { service, outside, ends_at: now + lifetime });
                        self.step = Step::Done { renew_at: now + lifetime / 2 };
                    }
                    _ => self.fail(now),
                }
            }
            // Nobody waits for it: that of a mapping that was given back, for instance.
            other @ (Step::Idle | Step::Searching { .. } | Step::Done { .. } | Step::Resting(_)) => self.step = other,
        }
    }

    fn search(&mut self, target: MapTarget, tries: u32, other: Option<Url>, now: Instant) {
        // The gateway by itself first: that opens this machine's own firewall for the answer.
        let gateway = SocketAddrV4::new(target.gateway, SEARCH_PORT);
        let group = SocketAddrV4::new(SEARCH_GROUP, SEARCH_PORT);
        for (to, wanted) in [(gateway, text::EVERYBODY), (gateway, text::GATEWAYS), (group, text::GATEWAYS)] {
            self.transmits.push_back(MapTransmit { to, bytes: text::search(wanted) });
        }
        let next = now + FIRST_RETRY.saturating_mul(2 << tries.min(SEARCHES));
        self.step = Step::Searching { tries: tries + 1, next, other };
    }

    fn describe(&mut self, target: MapTarget, url: Url, now: Instant) {
        let to = SocketAddrV4::new(target.gateway, url.port);
        self.requests.push_back(MapRequest { to, bytes: text::get(to, &url.path) });
        self.step = Step::Describing { url, until: now + REQUEST_TIMEOUT };
    }

    /// Asks the best service that is left.
    fn map(&mut self, target: MapTarget, port: u16, lease: u32, tries: u32, now: Instant) {
        let Some(service) = self.services.front().cloned() else {
            self.fail(now);
            return;
        };
        let action = if service.chooses() { "AddAnyPortMapping" } else { "AddPortMapping" };
        let (outside, inside) = (port.to_string(), target.port.to_string());
        let (own, lease_text) = (target.own.to_string(), lease.to_string());
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &*outside),
            // In capitals: gateways compare it so.
            ("NewProtocol", "UDP"),
            ("NewInternalPort", &*inside),
            ("NewInternalClient", &*own),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", DESCRIPTION),
            ("NewLeaseDuration", &*lease_text),
        ];
        self.call(target, &service, action, &arguments);
        self.step = Step::Mapping { port, lease, tries, until: now + REQUEST_TIMEOUT };
    }

    fn ask_address(&mut self, target: MapTarget, port: u16, now: Instant) {
        if let Some(service) = self.services.front().cloned() {
            self.call(target, &service, "GetExternalIPAddress", &[]);
        }
        self.step = Step::Address { port, until: now + REQUEST_TIMEOUT };
    }

    fn call(&mut self, target: MapTarget, service: &Service, action: &str, arguments: &[(&str, &str)]) {
        let to = SocketAddrV4::new(target.gateway, service.url.port);
        self.requests.push_back(MapRequest { to, bytes: text::call(to, service, action, arguments) });
    }

    /// Gives up for now; a mapping that could not be renewed holds to its end.
    fn fail(&mut self, now: Instant) {
        self.services.clear();
        self.rest(now);
    }

    fn rest(&mut self, now: Instant) {
        let until = now + REST;
        let ends_at = self.held.as_ref().map(|held| held.ends_at).filter(|at| *at > now);
        self.step = Step::Resting(ends_at.map_or(until, |at| at.min(until)));
    }

    fn expire(&mut self, now: Instant) {
        self.held.take_if(|held| held.ends_at <= now);
    }

    /// Returns an outside port to ask for: never 0, which means all ports.
    fn random_port(&mut self) -> u16 {
        // Xorshift: whoever guesses a port has gained nothing.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let span = u64::from(u16::MAX - LEAST_PORT) + 1;
        LEAST_PORT.saturating_add(u16::try_from(self.random % span).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
