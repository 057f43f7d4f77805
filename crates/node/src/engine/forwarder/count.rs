//! Counts what passes and what is dropped, for the flow log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use warren_filter::{Body, DropReason, Firewall, Packet, Parting, Side};
use warren_ledger::recorder::{Conversation, Mark, Note, Passed, Recorder};
use warren_ledger::{Direction, DropReason as Dropped, EndReason, Target};

use super::Refusal;
use crate::engine::shared::PeerSlot;

/// Counts packets by conversation. Belongs to the worker's forwarder.
#[derive(Debug)]
pub(super) struct Count {
    recorder: Recorder<Arc<PeerSlot>>,
    /// The conversation of the packet of the host that is being cut, and its TCP flags.
    being_cut: (Mark, Option<u8>),
}

impl Count {
    pub(super) fn new(now: Instant) -> Self {
        Self { recorder: Recorder::new(now), being_cut: (Mark::default(), None) }
    }

    /// Says what time it is, and makes the notes that are due.
    pub(super) fn begin(&mut self, now: Instant) {
        self.recorder.begin(now);
        if self.recorder.poll_timeout().is_some_and(|next| next <= now) {
            self.recorder.handle_timeout(now);
        }
    }

    /// Counts a packet of `slot`'s peer that passes.
    pub(super) fn inbound(&mut self, firewall: &mut Firewall, packet: &Packet<'_>, slot: &Arc<PeerSlot>) {
        let passed = passed(packet, Direction::Inbound);
        self.pass(firewall, packet, slot, passed);
    }

    /// Takes note of a packet of the host that will be cut into those that travel.
    pub(super) fn outbound(&mut self, firewall: &mut Firewall, packet: &Packet<'_>, slot: &Arc<PeerSlot>) {
        let nothing = Passed { packets: 0, bytes: 0, ..passed(packet, Direction::Outbound) };
        // A reset or the last FIN counts when it has been cut, once.
        let mark =
            self.pass(firewall, packet, slot, Passed { flags: nothing.flags.map(|flags| flags & SYN_ACK), ..nothing });
        self.being_cut = (mark, nothing.flags);
    }

    /// Counts the packets that travel of the one that was noted last.
    pub(super) fn cut(&mut self, packets: u32, bytes: u64) {
        let (mark, flags) = self.being_cut;
        // A SYN has said what it says when it was noted.
        let flags = flags.map(|flags| flags & !SYN_ACK);
        self.recorder.count(mark, Passed { direction: Direction::Outbound, packets, bytes, flags });
    }

    /// Counts a packet that is dropped; `slot` is the peer, as far as there is one.
    pub(super) fn dropped(
        &mut self,
        refusal: Refusal,
        packet: Option<&Packet<'_>>,
        slot: Option<&Arc<PeerSlot>>,
        direction: Direction,
    ) {
        let Some(reason) = reason(refusal) else { return };
        let target = packet.map(|packet| Target {
            protocol: packet.protocol(),
            source: packet.source(),
            destination: packet.destination(),
            port: match packet.body() {
                Body::Tcp { ports, .. } | Body::Udp { ports } | Body::Sctp { ports } => ports.destination,
                Body::Icmp(_) | Body::Tsmp | Body::Other | Body::LaterFragment => 0,
            },
        });
        let nothing = Passed { direction, packets: 1, bytes: 0, flags: None };
        let passed = packet.map_or(nothing, |packet| passed(packet, direction));
        self.recorder.drop(reason, target, || slot.cloned(), passed);
    }

    /// Returns when [`Self::begin`] has something to do next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.recorder.poll_timeout()
    }

    /// Returns the oldest note that was not taken.
    pub(super) fn poll_note(&mut self) -> Option<Note<Arc<PeerSlot>>> {
        self.recorder.poll_note()
    }

    /// Ends all conversations; tells whether there is more to note once notes have been taken.
    pub(super) fn shut_down(&mut self, now: Instant) -> bool {
        self.recorder.shut_down(now)
    }

    fn pass(&mut self, firewall: &mut Firewall, packet: &Packet<'_>, slot: &Arc<PeerSlot>, passed: Passed) -> Mark {
        let mark = match firewall.mark(packet) {
            Some(mark) => {
                let mark = Mark::from_number(*mark);
                if self.recorder.count(mark, passed) { mark } else { self.open(firewall, packet, slot, passed) }
            }
            None => Mark::default(),
        };
        while let Some((mark, parting)) = firewall.take_forgotten() {
            let reason = match parting {
                Parting::Idle => EndReason::Idle,
                Parting::Crowded => EndReason::Forgotten,
                Parting::Refused => EndReason::Refused,
                Parting::Replaced => EndReason::Replaced,
            };
            self.recorder.forget(Mark::from_number(mark), reason);
        }
        mark
    }

    #[cold]
    fn open(&mut self, firewall: &mut Firewall, packet: &Packet<'_>, slot: &Arc<PeerSlot>, passed: Passed) -> Mark {
        // Of an answer there is no rule for these ends.
        let rule = if passed.direction == Direction::Inbound { firewall.rule_for(packet) } else { None };
        let Some(known) = firewall.conversation(packet) else { return Mark::default() };
        let direction = match known.opener {
            Side::Us => Direction::Outbound,
            Side::Them => Direction::Inbound,
        };
        let conversation = Conversation {
            direction,
            protocol: known.protocol,
            local: SocketAddr::from(known.local),
            remote: SocketAddr::from(known.remote),
            rule: rule.filter(|_| direction == Direction::Inbound),
            rest: known.rest,
            rest_unanswered: known.rest_unanswered,
        };
        let mark = self.recorder.open(conversation, Arc::clone(slot), passed);
        if let Some(number) = firewall.mark(packet) {
            *number = mark.to_number();
        }
        mark
    }
}

/// SYN and ACK.
const SYN_ACK: u8 = 0x12;

fn passed(packet: &Packet<'_>, direction: Direction) -> Passed {
    let flags = if let Body::Tcp { flags, .. } = packet.body() { Some(flags.0) } else { None };
    Passed { direction, packets: 1, bytes: u64::try_from(packet.bytes().len()).unwrap_or(u64::MAX), flags }
}

/// Says why in the ledger's words; `None` for what is no packet of a peer or of the host.
fn reason(refusal: Refusal) -> Option<Dropped> {
    Some(match refusal {
        Refusal::Malformed(_) => Dropped::Malformed,
        Refusal::NoPeer => Dropped::NoPeer,
        Refusal::Loop => Dropped::Reserved,
        Refusal::NotCut(_) => Dropped::Undelivered,
        Refusal::WrongSource => Dropped::WrongSource,
        Refusal::NotTranslated => Dropped::Undelivered,
        Refusal::Unknown | Refusal::NoSession | Refusal::NotAuthentic => return None,
        Refusal::Filtered(reason) => filtered(reason),
    })
}

fn filtered(reason: DropReason) -> Dropped {
    match reason {
        DropReason::Multicast => Dropped::Multicast,
        DropReason::LinkLocal => Dropped::LinkLocal,
        DropReason::BadAddress => Dropped::BadAddress,
        DropReason::NotLocal => Dropped::NotLocal,
        DropReason::NoRule => Dropped::NoRule,
        DropReason::NoFlow => Dropped::NoFlow,
        DropReason::Jailed => Dropped::Jailed,
        DropReason::Fragment => Dropped::Fragment,
        DropReason::Icmp => Dropped::Icmp,
        DropReason::Reserved => Dropped::Reserved,
        _ => Dropped::Other,
    }
}
