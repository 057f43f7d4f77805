//! What becomes of a packet, without I/O: the worker gives it bytes and does what it answers.
//!
//! Packets of the host, which may be super-packets, are judged once, then cut into a [`Burst`] for their peer; there they lie
//! with [`HEADROOM`] bytes before and [`warren_wg::TAILROOM`] behind them. They are sealed and opened in place. Nothing is
//! allocated for a packet that passes.

mod burst;
mod count;
mod echo;
mod question;
mod sites;
mod waiting;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Instant;

use warren_filter::tsmp::{Message, Reason, Reject};
use warren_filter::via;
use warren_filter::{Body, DropReason, Firewall, Packet, PacketError, PeerMode, Verdict};
use warren_ledger::Direction;
use warren_ledger::recorder::Note;
use warren_path::Answerer;
use warren_wg::{HEADROOM, MessageType, OpenError, Opened, SealError, Session, SessionTable};
use warren_wire::key::NodeKey;

use crate::host::CutError;

pub(super) use burst::{Burst, Run};
pub(super) use sites::stand_ins;

use super::owner::{Owner, Watch};
use super::shared::{PeerSlot, Question, Snapshot};
use count::Count;
use question::Questions;
use sites::{Sites, Visitor};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use waiting::Waiting;

/// Sessions that peers have just confirmed, of which the worker keeps in mind to send with them; older ones are left to the
/// decision task.
const CONFIRMED: usize = 64;

/// Judges, seals and opens packets. Belongs to one worker.
#[derive(Debug)]
pub(super) struct Forwarder {
    firewall: Firewall,
    waiting: Waiting,
    questions: Questions,
    /// Sessions that peers have just confirmed, and in which no packet for the host has come yet.
    confirmed: VecDeque<Weak<Session>>,
    sites: Sites,
    /// The largest packet of the tunnel: padding ends there.
    mtu: usize,
    /// If there is a flow log.
    count: Option<Count>,
}

/// Addresses of the IPv6 packets that a site's IPv4 packets become, see [`via::to_v6`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToV6 {
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
}

/// What an IPv6 packet to a site's host becomes, see [`via::to_v4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToV4 {
    pub(super) source: Ipv4Addr,
    pub(super) id: u16,
}

/// Says what to do with a packet of the host.
#[derive(Debug)]
pub(super) enum Outbound<'s> {
    /// Send the packet, the first `length` bytes, to the peer: with [`Forwarder::seal`]. If the destination is in a network
    /// with several routers, it is counted there. It may have to be translated after it was cut.
    Send { slot: &'s Arc<PeerSlot>, watch: Option<(&'s Watch, IpAddr)>, length: usize, translation: Option<ToV6> },
    /// Write the answer of this many bytes back to the host.
    Answer { length: usize },
    /// Forget it.
    Drop(Refusal),
}

/// Says what to do with a datagram of the network.
#[derive(Debug)]
pub(super) struct Inbound<'s> {
    /// First packet of a session that the peer began: tell the decision task.
    pub(super) confirmed: Option<Arc<Session>>,
    /// What to do with the packet inside.
    pub(super) action: Action<'s>,
}

/// Says what to do with a packet of a peer.
#[derive(Debug)]
pub(super) enum Action<'s> {
    /// Write the packet of `length` bytes at [`HEADROOM`] to the host, perhaps translated. It is counted as with
    /// [`Outbound::Send`].
    Deliver { slot: &'s Arc<PeerSlot>, watch: Option<&'s Watch>, length: usize, translation: Option<ToV4> },
    /// A question to a router was answered, by way of this peer: tell the decision task.
    Answered { slot: &'s Arc<PeerSlot>, number: u16, answerer: Answerer },
    /// Send this packet to the peer; nothing goes to the host.
    Reply { slot: &'s Arc<PeerSlot>, packet: Vec<u8> },
    /// Nothing goes anywhere: a keep-alive, or a message to this node itself.
    Done,
    /// Not data: for the decision task.
    Decide,
    /// Forget it.
    Drop(Refusal),
}

/// Says why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not a sound IP packet.
    Malformed(PacketError),
    /// The firewall says so.
    Filtered(DropReason),
    /// No peer has the destination.
    NoPeer,
    /// The tunnel's own datagram came back into the tunnel.
    Loop,
    /// The host left to us what cannot be done.
    NotCut(CutError),
    /// A datagram that is nothing we know.
    Unknown,
    /// No session has this index.
    NoSession,
    /// It does not open: forged, replayed or too old.
    NotAuthentic,
    /// A packet to or from a site that cannot be translated, or stands for no peer.
    NotTranslated,
    /// The packet's source is not an address of the peer that sent it.
    WrongSource,
}

impl Forwarder {
    /// Makes a forwarder without flows, for a tunnel of `mtu` bytes. `seed` must be random and secret.
    pub(super) fn new(mtu: u16, seed: u64, now: Instant) -> Self {
        Self {
            firewall: Firewall::new(seed, now),
            waiting: Waiting::default(),
            questions: Questions::new(seed),
            confirmed: VecDeque::new(),
            sites: Sites::default(),
            mtu: mtu.into(),
            count: None,
        }
    }

    /// Counts packets by conversation from now on: take the notes with [`Self::poll_note`].
    pub(super) fn begin_count(&mut self, now: Instant) {
        self.count.get_or_insert_with(|| Count::new(now));
    }

    /// Returns the tunnel's MTU in bytes.
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Takes over the filter of `snapshot`; call it before the packets of a turn.
    pub(super) fn begin(&mut self, snapshot: &Snapshot, now: Instant) {
        self.firewall.use_filter(&snapshot.filter);
        if let Some(count) = &mut self.count {
            count.begin(now);
        }
    }

    /// Judges a packet, or a super-packet, which came from the host.
    pub(super) fn outbound<'s>(&mut self, snapshot: &'s Snapshot, bytes: &mut [u8], now: Instant) -> Outbound<'s> {
        if let Some(length) = echo::answer(bytes) {
            return Outbound::Answer { length };
        }
        let packet = match Packet::parse(bytes) {
            Ok(packet) => packet,
            Err(error) => {
                return Outbound::Drop(self.refuse(Refusal::Malformed(error), None, None, Direction::Outbound));
            }
        };
        if let Body::Udp { ports } = packet.body()
            && snapshot.ports.contains(&ports.source)
            && snapshot.own.contains(&packet.source())
        {
            return Outbound::Drop(self.refuse(Refusal::Loop, Some(&packet), None, Direction::Outbound));
        }
        let destination = packet.destination();
        if let IpAddr::V4(stand_in) = destination
            && via::POOL.contains(&stand_in)
        {
            let judged = self.outbound_of_site(snapshot, &packet, stand_in, now);
            return judged
                .unwrap_or_else(|why| Outbound::Drop(self.refuse(why, Some(&packet), None, Direction::Outbound)));
        }
        let owner = snapshot.peers.lookup(destination);
        match self.judge_outbound(&packet, owner, now) {
            Ok(Owner { slot, watch }) => {
                if let Some(count) = &mut self.count {
                    count.outbound(&mut self.firewall, &packet, slot);
                }
                let watch = watch.as_deref().map(|watch| (watch, destination));
                Outbound::Send { slot, watch, length: packet.bytes().len(), translation: None }
            }
            Err(refusal) => {
                let slot = owner.map(|owner| &owner.slot);
                Outbound::Drop(self.refuse(refusal, Some(&packet), slot, Direction::Outbound))
            }
        }
    }

    /// Returns the owner of the destination if the packet may go there.
    fn judge_outbound<'s>(
        &mut self,
        packet: &Packet<'_>,
        owner: Option<&'s Owner>,
        now: Instant,
    ) -> Result<&'s Owner, Refusal> {
        let owner = owner.ok_or(Refusal::NoPeer)?;
        match self.firewall.check_outbound(packet, now) {
            Verdict::Drop(reason) => Err(Refusal::Filtered(reason)),
            Verdict::Accept | Verdict::Tsmp => Ok(owner),
        }
    }

    /// Counts a packet that is dropped, and returns why it is.
    fn refuse(
        &mut self,
        refusal: Refusal,
        packet: Option<&Packet<'_>>,
        slot: Option<&Arc<PeerSlot>>,
        direction: Direction,
    ) -> Refusal {
        if let Some(count) = &mut self.count {
            count.dropped(refusal, packet, slot, direction);
        }
        refusal
    }

    /// Counts the packets that travel of the one that [`Self::outbound`] judged last.
    pub(super) fn note_cut(&mut self, packets: usize, bytes: usize) {
        if let Some(count) = &mut self.count {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            count.cut(u32::try_from(packets).unwrap_or(u32::MAX), bytes);
        }
    }

    /// Returns when [`Self::begin`] has something to do without packets.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.count.as_ref().and_then(Count::poll_timeout)
    }

    /// Returns the oldest note for the flow log.
    pub(super) fn poll_note(&mut self) -> Option<Note<Arc<PeerSlot>>> {
        self.count.as_mut().and_then(Count::poll_note)
    }

    /// Ends all conversations in the flow log; tells whether there is more to note once notes have been taken.
    pub(super) fn shut_down(&mut self, now: Instant) -> bool {
        self.count.as_mut().is_some_and(|count| count.shut_down(now))
    }

    /// Judges a packet of a host of a site to an address that stands for a peer.
    fn outbound_of_site<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        packet: &Packet<'_>,
        stand_in: Ipv4Addr,
        now: Instant,
    ) -> Result<Outbound<'s>, Refusal> {
        let (Some(Visitor { peer, site }), IpAddr::V4(host)) = (self.sites.visitor(stand_in, now), packet.source())
        else {
            return Err(Refusal::NotTranslated);
        };
        let translation = ToV6 { source: via::address(site, host), destination: peer };
        let head = via::head(packet, translation.source, translation.destination).ok_or(Refusal::NotTranslated)?;
        let Owner { slot, .. } = snapshot.peers.lookup(peer.into()).ok_or(Refusal::NoPeer)?;
        let head = Packet::parse(&head).map_err(Refusal::Malformed)?;
        match self.firewall.check_outbound(&head, now) {
            Verdict::Drop(reason) => Err(Refusal::Filtered(reason)),
            Verdict::Accept | Verdict::Tsmp => {
                if let Some(count) = &mut self.count {
                    count.outbound(&mut self.firewall, &head, slot);
                }
                let translation = Some(translation);
                Ok(Outbound::Send { slot, watch: None, length: packet.bytes().len(), translation })
            }
        }
    }

    /// Returns how a packet for a host of a site, which came by the peer `by`, is to be translated; `None` if it cannot be.
    fn for_site(&mut self, packet: &Packet<'_>, by: NodeKey, to: Ipv6Addr, now: Instant) -> Option<ToV4> {
        let (site, _) = via::host(to).filter(|(_, host)| via::is_host(*host) && via::is_translatable(packet))?;
        let IpAddr::V6(peer) = packet.source() else { return None };
        let source = self.sites.stand_in(Visitor { peer, site }, by, now)?;
        Some(ToV4 { source, id: self.sites.next_id() })
    }

    /// Returns an address that stood for a peer towards a site, and of which the kernel must forget all connections before it
    /// stands for another.
    pub(super) fn poll_vacated(&mut self) -> Option<Ipv4Addr> {
        self.sites.poll_vacated()
    }

    /// Says that the kernel has forgotten all connections of an address; none stands for a peer before.
    pub(super) fn cleared(&mut self, stand_in: Ipv4Addr) {
        self.sites.cleared(stand_in);
    }

    /// Seals packets that have been judged. Those that cannot be sealed now are kept if there is hope, and are no longer
    /// in the burst then; tells whether there are any, so that a handshake is wanted.
    pub(super) fn seal(&mut self, slot: &Arc<PeerSlot>, burst: &mut Burst, now: Instant) -> bool {
        let session = slot.session();
        let (sealed, error) = match session.as_ref() {
            Some(session) => burst.seal(session, now),
            None => (0, Some(SealError::Expired)),
        };
        let left = burst.split_off(sealed);
        if error != Some(SealError::Expired) {
            return false;
        }
        left.for_each(|packet| self.waiting.push(slot, packet, now));
        true
    }

    /// Opens and judges a datagram of the network in place.
    pub(super) fn inbound<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        table: &SessionTable,
        datagram: &mut [u8],
        now: Instant,
    ) -> Inbound<'s> {
        let only = |action| Inbound { confirmed: None, action };
        match MessageType::of(datagram) {
            Some(MessageType::Transport) => {}
            Some(_) => return only(Action::Decide),
            None => return only(Action::Drop(Refusal::Unknown)),
        }
        let Some(session) = table.for_message(datagram) else {
            return only(Action::Drop(Refusal::NoSession));
        };
        let opened = session.open(datagram, now);
        self.opened(snapshot, &session, datagram, opened, now)
    }

    /// Judges what came out of a datagram of `session`.
    pub(super) fn opened<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        session: &Arc<Session>,
        datagram: &[u8],
        opened: Result<Opened, OpenError>,
        now: Instant,
    ) -> Inbound<'s> {
        let Ok(opened) = opened else {
            return Inbound { confirmed: None, action: Action::Drop(Refusal::NotAuthentic) };
        };
        let confirmed = opened.confirmed.then(|| Arc::clone(session));
        if opened.confirmed {
            if self.confirmed.len() >= CONFIRMED {
                self.confirmed.pop_front();
            }
            self.confirmed.push_back(Arc::downgrade(session));
        }
        let action = if opened.length == 0 {
            Action::Done
        } else {
            let inner = datagram.get(HEADROOM..).and_then(|rest| rest.get(..opened.length)).unwrap_or_default();
            self.admit(snapshot, session, inner, now)
        };
        Inbound { confirmed, action }
    }

    /// Judges a packet that came out of `session`.
    fn admit<'s>(&mut self, snapshot: &'s Snapshot, session: &Arc<Session>, inner: &[u8], now: Instant) -> Action<'s> {
        let packet = match Packet::parse(inner) {
            Ok(packet) => packet,
            Err(error) => return Action::Drop(self.refuse(Refusal::Malformed(error), None, None, Direction::Inbound)),
        };
        let owner = snapshot.peers.lookup(packet.source());
        let Some((owner, slot)) = owner.and_then(|owner| Some((owner, owner.sender(session.peer())?))) else {
            return Action::Drop(self.refuse(Refusal::WrongSource, Some(&packet), None, Direction::Inbound));
        };
        self.adopt(slot, session);
        let mode = if slot.is_jailed() { PeerMode::Jailed } else { PeerMode::Normal };
        match self.firewall.check_inbound(&packet, mode, now) {
            Verdict::Accept | Verdict::Tsmp if let Some((number, answerer)) = self.questions.answered(&packet) => {
                Action::Answered { slot, number, answerer }
            }
            Verdict::Accept => {
                // Accepted, so that this node leads there.
                let translation = match packet.destination() {
                    IpAddr::V6(to) if via::RANGE.contains(&to) => match self.for_site(&packet, slot.key(), to, now) {
                        Some(translation) => Some(translation),
                        None => {
                            let refusal = Refusal::NotTranslated;
                            return Action::Drop(self.refuse(refusal, Some(&packet), Some(slot), Direction::Inbound));
                        }
                    },
                    IpAddr::V4(_) | IpAddr::V6(_) => None,
                };
                if let Some(count) = &mut self.count {
                    count.inbound(&mut self.firewall, &packet, slot);
                }
                Action::Deliver { slot, watch: owner.watch.as_deref(), length: packet.bytes().len(), translation }
            }
            Verdict::Tsmp => match Message::parse(&packet) {
                Some(Message::Ping { data }) => reply(slot, &packet, Message::Pong { data, peer_api_port: 0 }),
                _ => Action::Done,
            },
            Verdict::Drop(reason) => {
                self.refuse(Refusal::Filtered(reason), Some(&packet), Some(slot), Direction::Inbound);
                let opens = matches!(packet.body(), Body::Tcp { flags, .. } if flags.is_opening());
                if opens && packet.source().is_ipv4() && matches!(reason, DropReason::NoRule | DropReason::Jailed) {
                    let why = if snapshot.shields_up { Reason::ShieldsUp } else { Reason::Acl };
                    if let Some(reject) = Reject::of(&packet, why) {
                        return reply(slot, &packet, Message::Reject(reject));
                    }
                }
                Action::Drop(Refusal::Filtered(reason))
            }
        }
    }

    /// Sends with a session from now on that the peer began, if this is the first packet in it: the answer may be here
    /// before the decision task, and the peer may not have the session before any more. WireGuard itself switches at this
    /// point, too (paper, section 6.3).
    fn adopt(&mut self, slot: &PeerSlot, session: &Arc<Session>) {
        if self.confirmed.is_empty() {
            return;
        }
        let is_same = |other: &Weak<Session>| Weak::as_ptr(other) == Arc::as_ptr(session);
        if let Some(at) = self.confirmed.iter().position(is_same) {
            self.confirmed.remove(at);
            slot.adopt_session(session);
        }
    }

    /// Takes the oldest packet that waits and can be sealed now, seals it into `buffer` and returns to whom it goes
    /// and the length of the datagram. `None`: none is left that could be sent.
    pub(super) fn take_ready(&mut self, buffer: &mut [u8], now: Instant) -> Option<(Arc<PeerSlot>, usize)> {
        while let Some((slot, packet)) = self.waiting.pop_ready(now) {
            let Some(room) = buffer.get_mut(HEADROOM..).and_then(|rest| rest.get_mut(..packet.len())) else {
                continue;
            };
            room.copy_from_slice(&packet);
            let session = slot.session();
            let sealed = session.as_ref().map(|session| session.seal(buffer, packet.len(), self.mtu, now));
            if let Some(Ok(length)) = sealed {
                drop(session);
                return Some((slot, length));
            }
        }
        None
    }

    /// Seals a packet that this node itself sends, at [`HEADROOM`] in `buffer`; `None` if there is no session.
    pub(super) fn seal_own(&self, slot: &PeerSlot, packet: &[u8], buffer: &mut [u8], now: Instant) -> Option<usize> {
        buffer.get_mut(HEADROOM..)?.get_mut(..packet.len())?.copy_from_slice(packet);
        slot.session().as_ref()?.seal(buffer, packet.len(), self.mtu, now).ok()
    }

    /// Returns the packets of a question to a router. Their answers will pass.
    pub(super) fn question(&mut self, question: &Question, now: Instant) -> Vec<Vec<u8>> {
        let packets: Vec<Vec<u8>> = self.questions.packets(question).collect();
        for packet in packets.iter().filter_map(|packet| Packet::parse(packet).ok()) {
            self.firewall.note_outbound(&packet, now);
        }
        packets
    }

    /// Seals a packet of this node itself as [`Self::seal_own`] does; without a session it is kept.
    pub(super) fn seal_or_keep(
        &mut self,
        slot: &Arc<PeerSlot>,
        packet: &[u8],
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<usize> {
        let length = self.seal_own(slot, packet, buffer, now);
        if length.is_none() {
            self.waiting.push(slot, packet, now);
        }
        length
    }

    /// Returns how many packets were pushed out of the waiting room since the last call.
    pub(super) fn take_pushed_out(&mut self) -> usize {
        self.waiting.take_pushed_out()
    }
}

/// Answers a packet to its sender.
fn reply<'s>(slot: &'s Arc<PeerSlot>, to: &Packet<'_>, message: Message) -> Action<'s> {
    match message.packet(to.destination(), to.source()) {
        Some(packet) => Action::Reply { slot, packet },
        None => Action::Done,
    }
}

#[cfg(test)]
mod tests;
