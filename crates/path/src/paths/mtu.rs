//! How large the packets may be that an address carries.
//!
//! Off unless the user or the server wants it ([`Paths::set_mtu_probing`]). An address that has just answered a ping is then
//! sent pings of several sizes that must not be fragmented. Only such addresses are: nobody can have us send much to where
//! nobody asked for it. To one peer goes one round of some 24 kB in 5 s at most, and to one address one in ten minutes once
//! its answer is clear.
//!
//! What follows from it. The tunnel's own MTU stays as it was chosen, and that the network carries what the largest packet of
//! the tunnel becomes is believed of every address without proof, as it is without probing. What is learned is which
//! addresses do not hold to it:
//! where two rounds got through with less alone, packets larger than the largest that got through take another way if there
//! is one ([`Direct::largest`](super::Direct::largest)), and an address that carries all is preferred. Without probing such a
//! path swallows them, if the router that cannot pass them on does not say so, or its saying so is swallowed, too.
//! That more is carried is shown, and used for nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::key::NodeKey;

use super::Paths;
use super::outbox::Outbox;
use super::output::Destination;
use super::peer::Peer;
use super::pings::Sent;

/// The sizes of IP packets that are tried, beside the one that the tunnel needs.
///
/// Source: Tailscale `net/tstun/mtu.go`, `WireMTUsToProbe`.
const SIZES: [u16; 6] = [1280, 1360, 1400, 1500, 8000, 9000];
/// Bytes of a ping without padding.
const PING_BYTES: u16 = 124;
/// Least time between two rounds to one peer: that in which pongs are waited for.
const SPACING: Duration = Duration::from_secs(5);
/// Time until an address whose answer was clear is asked again.
const AGAIN: Duration = Duration::from_secs(600);
/// The same for one that carries too little.
const AGAIN_NARROW: Duration = Duration::from_secs(60);
/// Rounds in a row that must fail: one packet is lost by chance now and then.
const MISSES: u8 = 2;

/// What is known of one address.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mtu {
    /// The largest packet that got there; 0 while none did.
    proven: u16,
    /// The largest of the present round.
    got: u16,
    /// Rounds in a row in which what the tunnel needs did not get there, but something did.
    missed: u8,
    /// When the present or last round began.
    began: Option<Instant>,
}

impl Mtu {
    /// Returns the largest packet that got there.
    pub(super) fn proven(&self) -> Option<u16> {
        (self.proven > 0).then_some(self.proven)
    }

    /// Tells whether it is known to carry less than the tunnel needs.
    pub(super) fn is_narrow(&self) -> bool {
        self.missed >= MISSES
    }

    /// Returns the largest datagram that is to be sent there.
    pub(super) fn largest(&self, to: SocketAddr) -> u16 {
        if self.is_narrow() { self.proven.saturating_sub(headers(to)).max(PING_BYTES) } else { u16::MAX }
    }

    fn is_due(&self, now: Instant) -> bool {
        let spacing = match self.missed {
            0 => AGAIN,
            MISSES.. => AGAIN_NARROW,
            _ => SPACING,
        };
        self.began.is_none_or(|at| now.saturating_duration_since(at) >= spacing)
    }

    fn begin(&mut self, now: Instant) {
        (self.began, self.got) = (Some(now), 0);
    }

    /// Notes that a packet of the round that began at `began` got there; the tunnel needs `needed`.
    fn note(&mut self, size: u16, needed: u16, began: Instant) {
        if self.began != Some(began) {
            return;
        }
        self.got = self.got.max(size);
        self.proven = self.proven.max(size);
        if size >= needed {
            self.missed = 0;
        }
    }

    /// Ends the round that began at `began`: something of it was not answered. `is_alive` is whether the address has
    /// answered anything since.
    fn end(&mut self, needed: u16, began: Instant, is_alive: bool) {
        if self.began != Some(began) || !is_alive {
            return;
        }
        if self.got >= needed {
            self.proven = self.got;
            return;
        }
        self.missed = self.missed.saturating_add(1).min(MISSES);
        if self.is_narrow() {
            self.proven = self.got;
        }
    }
}

/// Returns the size of the IP packet that a datagram of `largest` bytes to `to` is.
fn needed(largest: u16, to: SocketAddr) -> u16 {
    largest.saturating_add(headers(to))
}

/// Bytes of the headers in front of a datagram's content.
fn headers(to: SocketAddr) -> u16 {
    if to.is_ipv4() { 28 } else { 48 }
}

/// Returns the sizes to try where the tunnel needs `needed`, from the smallest.
fn sizes(needed: u16) -> impl Iterator<Item = u16> {
    let below = SIZES.into_iter().filter(move |size| *size < needed);
    let above = SIZES.into_iter().filter(move |size| *size > needed);
    below.chain([needed]).chain(above)
}

/// Returns the padding that makes a ping to `to` a packet of `size` bytes; none for size 0.
pub(super) fn padding(size: u16, to: &Destination) -> usize {
    match to {
        Destination::Udp(to) => size.saturating_sub(headers(*to) + PING_BYTES).into(),
        Destination::PeerRelay(_) | Destination::Relay { .. } => 0,
    }
}

impl Peer {
    /// Begins a round to an address from which a ping of size `needed` or less has just been answered, if one is due.
    fn probe_mtu(&mut self, answered: &Sent, address: SocketAddr, needed: u16, outbox: &mut Outbox, now: Instant) {
        let is_early = |at: Instant| now.saturating_duration_since(at) < SPACING;
        if self.watch().probed.is_some_and(is_early) {
            return;
        }
        let (Some(disco), Some(candidate)) = (self.disco, self.candidates.get(address)) else { return };
        if !candidate.trace().mtu().is_due(now) {
            return;
        }
        candidate.trace().mtu().begin(now);
        self.watch().probed = Some(now);
        for size in sizes(needed) {
            let sent = Sent { at: now, user: None, size, ..*answered };
            outbox.ping_from(&sent, &disco);
        }
    }
}

impl Paths {
    /// Says whether to find out how large packets the addresses of peers carry; not at first. `largest` are the most bytes of
    /// a datagram of the tunnel. Datagrams that are [`whole`](super::Transmit::whole) are part of it.
    pub fn set_mtu_probing(&mut self, largest: Option<u16>) {
        if std::mem::replace(&mut self.probes_mtu, largest) == largest {
            return;
        }
        let keys: Vec<NodeKey> = self.peers.keys().copied().collect();
        for key in keys {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.candidates.forget_mtu();
            }
            self.publish(&key);
        }
    }

    /// Takes over what the pong to a ping says of its address.
    pub(super) fn learn_mtu(&mut self, sent: &Sent, address: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(&sent.peer) else { return };
        let Some(needed) = self.probes_mtu.map(|largest| needed(largest, address)) else { return };
        if sent.size == 0 {
            peer.probe_mtu(sent, address, needed, &mut self.outbox, now);
        } else if let Some(candidate) = peer.candidates.get(address) {
            candidate.trace().mtu().note(sent.size, needed, sent.at);
        }
    }

    /// Takes over that a ping of a certain size was not answered.
    pub(super) fn miss_mtu(&mut self, sent: &Sent, address: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(&sent.peer) else { return };
        let Some(candidate) = peer.candidates.get(address) else { return };
        let Some(needed) = self.probes_mtu.map(|largest| needed(largest, address)) else { return };
        let was_narrow = candidate.trace().mtu().is_narrow();
        let is_alive = candidate.has_answered_after(sent.at);
        candidate.trace().mtu().end(needed, sent.at, is_alive);
        let is_narrow = candidate.trace().mtu().is_narrow();
        if is_narrow && !was_narrow && peer.best_address() == Some(address) && peer.is_in_use(now) {
            // Another may carry all.
            peer.be_eager();
            self.search(&sent.peer, now);
        }
        self.publish(&sent.peer);
    }
}

#[cfg(test)]
mod tests;
