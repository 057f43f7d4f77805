//! Asking the gateway for a UDP port that everybody can reach: PCP, else NAT-PMP, else UPnP.
//!
//! One mapping is asked for and kept: that of the node's own UDP port. PCP goes first; if the gateway does not speak it, or
//! says nothing for a moment, NAT-PMP and UPnP are asked as well, and whoever answers first is stayed with; a mapping by UPnP
//! makes room for one by the others. What does not answer at all is asked again after [`REST`] or when the network changes.
//!
//! The gateway is a stranger: answers count only if they come from where the question went, are about our own port (in
//! PCP with our nonce) and name a possible address, and all times in them are clamped.
//!
//! Sources: RFC 6886 (NAT-PMP), RFC 6887 (PCP), UPnP WANIPConnection; Tailscale `net/portmapper`.

mod natpmp;
mod pcp;
mod upnp;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use upnp::Upnp;

pub use upnp::MapRequest;

/// Port of gateways for both protocols.
const GATEWAY_PORT: u16 = 5351;
/// How long a mapping is asked for, in seconds.
const LIFETIME: u32 = 7200;
/// Shortest and longest time for which a gateway is believed to keep a mapping, in seconds.
const LIFETIME_RANGE: (u32, u32) = (60, 86_400);
/// Time after which a question is asked again, doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// How often a question is asked.
const TRIES: u32 = 5;
/// How long a gateway is left alone that did not answer or refused.
const REST: Duration = Duration::from_secs(600);
/// How far a gateway's clock may be behind ours before we think that it was restarted, in seconds. RFC 6886, section 3.6.
const EPOCH_SLACK: u32 = 2;

/// Where the gateway is, and what is to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapTarget {
    /// The gateway of the default route.
    pub gateway: Ipv4Addr,
    /// This machine's address on the way there.
    pub own: Ipv4Addr,
    /// UDP port of the node; not 0.
    pub port: u16,
    /// Whether UPnP may be used.
    pub upnp: bool,
}

/// Protocols that a gateway answered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MapServices {
    /// PCP.
    pub pcp: bool,
    /// NAT-PMP.
    pub nat_pmp: bool,
    /// UPnP, with a service that maps ports.
    pub upnp: bool,
}

/// A datagram for the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapTransmit {
    /// Where to.
    pub to: SocketAddrV4,
    /// The whole datagram, at most 200 bytes.
    pub bytes: Vec<u8>,
}

/// Keeps one mapping. After each call drain [`Self::poll_transmit`] and [`Self::poll_request`] and look at
/// [`Self::mapping`] and [`Self::poll_timeout`].
#[derive(Debug)]
pub struct PortMapper {
    rng: StdRng,
    target: Option<MapTarget>,
    nonce: pcp::Nonce,
    state: State,
    upnp: Upnp,
    services: MapServices,
    /// The last mapping's outside, to ask for again.
    suggested: (Ipv4Addr, u16),
    /// What NAT-PMP said of the address, which it tells apart from the port.
    nat_pmp_address: Option<Ipv4Addr>,
    /// The gateway's clock and when we saw it.
    epoch: Option<(u32, Instant)>,
    transmits: VecDeque<MapTransmit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Pcp,
    NatPmp,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing to do: no target.
    Off,
    /// Asked `tries` times, in these protocols; asking again at `next`. A mapping that is being renewed holds meanwhile.
    Asking { pcp: bool, nat_pmp: bool, tries: u32, next: Instant, kept: Option<Mapping> },
    /// Mapped.
    Mapped(Mapping),
    /// Left alone until then.
    Resting(Instant),
}

#[derive(Debug, Clone, Copy)]
struct Mapping {
    by: Protocol,
    /// Where packets to the port come from outside; the address may be missing for a moment with NAT-PMP.
    address: Option<Ipv4Addr>,
    port: u16,
    renew_at: Instant,
    ends_at: Instant,
}

impl PortMapper {
    /// Makes one that does nothing yet. `seed` must be fresh randomness.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        Self {
            nonce: rng.random(),
            upnp: Upnp::new(rng.random()),
            rng,
            target: None,
            state: State::Off,
            services: MapServices::default(),
            suggested: (Ipv4Addr::UNSPECIFIED, 0),
            nat_pmp_address: None,
            epoch: None,
            transmits: VecDeque::new(),
        }
    }

    /// Takes over the network; `None` if there is no gateway with a private address, or mapping is not wanted.
    ///
    /// A change gives the old mapping back and asks for a new one.
    pub fn set_target(&mut self, target: Option<MapTarget>, now: Instant) {
        let target = target.filter(|target| target.gateway.is_private() && target.port != 0);
        if target == self.target {
            return;
        }
        self.release();
        if self.target.map(|old| old.gateway) != target.map(|new| new.gateway) {
            self.services = MapServices::default();
            self.suggested = (Ipv4Addr::UNSPECIFIED, 0);
        }
        self.target = target;
        self.forget();
        self.nonce = self.rng.random();
        if target.is_some() {
            self.ask(None, now);
        }
    }

    /// Asks a gateway again that was left alone: the network was used after a rest, or somebody wants to know.
    pub fn try_again(&mut self, now: Instant) {
        if matches!(self.state, State::Resting(_)) {
            self.ask(None, now);
        }
        if let Some(target) = self.target.filter(|target| target.upnp) {
            self.upnp.try_again(target, now);
        }
    }

    /// Asks the gateway whether it is still the one that made the mapping: its clock begins anew with it.
    pub fn check(&mut self) {
        let (Some(target), State::Mapped(mapping)) = (self.target, self.state) else { return };
        match mapping.by {
            Protocol::Pcp => self.send(target, &pcp::announce_request(target.own)),
            Protocol::NatPmp => self.send(target, &natpmp::ADDRESS_REQUEST),
        }
    }

    /// Gives the mapping back, without waiting for an answer; the node ends.
    pub fn release(&mut self) {
        let Some(target) = self.target else { return };
        self.upnp.stop(target);
        let Some(mapping) = self.held() else { return };
        match mapping.by {
            Protocol::Pcp => self.send_pcp(target, 0),
            Protocol::NatPmp => self.send(target, &natpmp::map_request(target.port, 0, 0)),
        }
        self.state = State::Off;
    }

    /// Returns where the node's UDP port can be reached from outside.
    #[must_use]
    pub fn mapping(&self) -> Option<SocketAddrV4> {
        let whole = |mapping: Mapping| Some(SocketAddrV4::new(mapping.address?, mapping.port));
        self.held().and_then(whole).or_else(|| self.upnp.mapping())
    }

    /// Returns what the gateway answered in.
    #[must_use]
    pub fn services(&self) -> MapServices {
        MapServices { upnp: self.upnp.is_there(), ..self.services }
    }

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<MapTransmit> {
        self.transmits.pop_front().or_else(|| self.upnp.transmits.pop_front())
    }

    /// Returns the next request to make over TCP, whose response goes to [`Self::handle_response`]. They are made one
    /// after the other.
    pub fn poll_request(&mut self) -> Option<MapRequest> {
        self.upnp.requests.pop_front()
    }

    /// Takes in the whole response to the last request, of at most 64 KiB, or that there is none.
    pub fn handle_response(&mut self, response: Option<&[u8]>, now: Instant) {
        if let Some(target) = self.target {
            self.upnp.handle_response(target, response, now);
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Off => None,
            State::Asking { next, kept, .. } => Some(kept.map_or(next, |kept| next.min(kept.ends_at))),
            State::Mapped(mapping) => Some(mapping.renew_at),
            State::Resting(until) => Some(until),
        };
        own.into_iter().chain(self.upnp.poll_timeout()).min()
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(target) = self.target {
            self.upnp.handle_timeout(target, now);
        }
        match self.state {
            State::Off => {}
            State::Resting(until) => {
                if now >= until {
                    self.ask(None, now);
                }
            }
            State::Mapped(mapping) => {
                if now >= mapping.renew_at {
                    self.ask(Some(mapping).filter(|mapping| now < mapping.ends_at), now);
                }
            }
            State::Asking { pcp, tries, next, kept, .. } => {
                let kept = kept.filter(|kept| now < kept.ends_at);
                if now < next {
                    if let State::Asking { kept: held, .. } = &mut self.state {
                        *held = kept;
                    }
                } else if tries < TRIES {
                    // Whoever does not answer at once may not know PCP, or none of both.
                    self.ask_in(pcp, true, tries, kept, now);
                    self.ask_by_upnp(kept.is_some(), now);
                } else if let Some(kept) = kept {
                    // It may only be away for a moment: asked again halfway to the end.
                    let left = kept.ends_at.saturating_duration_since(now);
                    self.state = State::Mapped(Mapping { renew_at: now + left / 2 + Duration::from_secs(1), ..kept });
                } else {
                    self.rest(now);
                }
            }
        }
    }

    /// Takes in a datagram that came to the socket with which the gateway is asked.
    pub fn handle_datagram(&mut self, from: SocketAddrV4, bytes: &[u8], now: Instant) {
        let Some(target) = self.target.filter(|target| target.gateway == *from.ip()) else { return };
        if from.port() != GATEWAY_PORT {
            // Answers to searches come from any port.
            self.upnp.handle_datagram(target, bytes, now);
        } else if let Some(epoch) = pcp::read_announcement(bytes) {
            self.note_epoch(epoch, now);
        } else if let Some(answer) = pcp::Answer::read(bytes) {
            self.handle_pcp(target, &answer, now);
        } else if let Some(answer) = natpmp::Answer::read(bytes) {
            self.handle_nat_pmp(target, answer, now);
        }
    }

    fn handle_pcp(&mut self, target: MapTarget, answer: &pcp::Answer, now: Instant) {
        let State::Asking { pcp: true, .. } = self.state else { return };
        if answer.nonce != self.nonce || answer.internal != target.port {
            return;
        }
        self.services.pcp = true;
        self.note_epoch(answer.epoch, now);
        let address = answer.address.filter(|address| is_possible(*address));
        if answer.result == 0 && address.is_some() && answer.external != 0 {
            self.mapped(Protocol::Pcp, address, answer.external, answer.lifetime, now);
        } else {
            self.refused(Protocol::Pcp, now);
        }
    }

    fn handle_nat_pmp(&mut self, target: MapTarget, answer: natpmp::Answer, now: Instant) {
        let (natpmp::Answer::Address { result, epoch, .. } | natpmp::Answer::Mapping { result, epoch, .. }) = answer;
        let asking = match self.state {
            State::Asking { nat_pmp, kept, .. } => Some((nat_pmp, kept)),
            State::Off | State::Mapped(_) | State::Resting(_) => None,
        };
        match (answer, asking) {
            // A gateway without PCP answers to it in its own protocol: version not supported. RFC 6887, appendix A.
            (_, Some((nat_pmp, kept))) if result == 1 => {
                if nat_pmp {
                    self.refused(Protocol::Pcp, now);
                } else {
                    self.ask_in(false, true, 0, kept, now);
                }
            }
            (natpmp::Answer::Address { address, .. }, _) if result == 0 => {
                self.services.nat_pmp = true;
                if is_possible(address) {
                    self.nat_pmp_address = Some(address);
                    // It may come after the port.
                    if let State::Mapped(mapping @ Mapping { by: Protocol::NatPmp, .. }) = &mut self.state {
                        mapping.address = Some(address);
                    }
                }
                self.note_epoch(epoch, now);
            }
            (natpmp::Answer::Mapping { internal, external, lifetime, .. }, Some((true, _)))
                if result == 0 && internal == target.port && external != 0 && lifetime != 0 =>
            {
                self.services.nat_pmp = true;
                self.note_epoch(epoch, now);
                self.mapped(Protocol::NatPmp, self.nat_pmp_address, external, lifetime, now);
            }
            (_, Some((true, _))) if result != 0 => {
                self.services.nat_pmp = true;
                self.refused(Protocol::NatPmp, now);
            }
            _ => {}
        }
    }

    fn held(&self) -> Option<Mapping> {
        match self.state {
            State::Mapped(mapping) => Some(mapping),
            State::Asking { kept, .. } => kept,
            State::Off | State::Resting(_) => None,
        }
    }

    fn forget(&mut self) {
        self.state = State::Off;
        self.nat_pmp_address = None;
        self.epoch = None;
    }

    /// Begins to ask; a mapping that is being renewed is asked for in its own protocol.
    fn ask(&mut self, kept: Option<Mapping>, now: Instant) {
        let only = kept.map(|kept| kept.by);
        self.ask_in(only != Some(Protocol::NatPmp), only == Some(Protocol::NatPmp), 0, kept, now);
    }

    fn ask_in(&mut self, pcp: bool, nat_pmp: bool, tries: u32, kept: Option<Mapping>, now: Instant) {
        let Some(target) = self.target else { return };
        if pcp {
            self.send_pcp(target, LIFETIME);
        }
        if nat_pmp {
            self.send(target, &natpmp::ADDRESS_REQUEST);
            self.send(target, &natpmp::map_request(target.port, self.suggested.1, LIFETIME));
        }
        let wait = FIRST_RETRY.saturating_mul(1 << tries.min(TRIES));
        self.state = State::Asking { pcp, nat_pmp, tries: tries + 1, next: now + wait, kept };
    }

    fn mapped(&mut self, by: Protocol, address: Option<Ipv4Addr>, port: u16, lifetime: u32, now: Instant) {
        let (least, most) = LIFETIME_RANGE;
        let lifetime = Duration::from_secs(lifetime.clamp(least, most).into());
        self.suggested = (address.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
        if let Some(target) = self.target {
            self.upnp.stop(target);
        }
        // RFC 6887, section 11.2.1: renewal begins at half of the lifetime.
        self.state =
            State::Mapped(Mapping { by, address, port, renew_at: now + lifetime / 2, ends_at: now + lifetime });
    }

    /// Goes on without a protocol; rests if that was the last.
    fn refused(&mut self, by: Protocol, now: Instant) {
        let State::Asking { pcp, nat_pmp, tries, kept, .. } = self.state else { return };
        match by {
            Protocol::Pcp if !nat_pmp => self.ask_in(false, true, 0, kept, now),
            Protocol::NatPmp if pcp && tries < TRIES => {
                if let State::Asking { nat_pmp, .. } = &mut self.state {
                    *nat_pmp = false;
                }
            }
            Protocol::Pcp => {
                if let State::Asking { pcp, .. } = &mut self.state {
                    *pcp = false;
                }
            }
            Protocol::NatPmp => self.rest(now),
        }
    }

    fn rest(&mut self, now: Instant) {
        self.state = State::Resting(now + REST);
        self.ask_by_upnp(false, now);
    }

    /// Lets UPnP try, unless there is a mapping already.
    fn ask_by_upnp(&mut self, has_mapping: bool, now: Instant) {
        if let Some(target) = self.target.filter(|target| target.upnp && !has_mapping) {
            self.upnp.start(target, now);
        }
    }

    /// Compares the gateway's clock with the last time; a gateway that was restarted knows no mapping, and is asked anew.
    fn note_epoch(&mut self, epoch: u32, now: Instant) {
        let Some((old, at)) = self.epoch.replace((epoch, now)) else { return };
        let elapsed = u32::try_from(now.saturating_duration_since(at).as_secs()).unwrap_or(u32::MAX);
        // Its clock may be slow by an eighth. RFC 6886, section 3.6.
        let least = old.saturating_add(elapsed - elapsed / 8).saturating_sub(EPOCH_SLACK);
        if epoch < least && matches!(self.state, State::Mapped(_)) {
            self.nat_pmp_address = None;
            self.ask(None, now);
        }
    }

    fn send_pcp(&mut self, target: MapTarget, lifetime: u32) {
        let outside = if lifetime == 0 { (Ipv4Addr::UNSPECIFIED, 0) } else { self.suggested };
        self.send(target, &pcp::map_request(target.own, &self.nonce, target.port, outside, lifetime));
    }

    fn send(&mut self, target: MapTarget, bytes: &[u8]) {
        let to = SocketAddrV4::new(target.gateway, GATEWAY_PORT);
        self.transmits.push_back(MapTransmit { to, bytes: bytes.to_vec() });
    }
}

/// Tells whether peers may be told an address: one that can be somewhere else than here.
fn is_possible(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local())
}

#[cfg(test)]
mod tests;
