//! From what the forwarder notes to records of the flow log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_ledger::recorder::{Note, What};
use warren_ledger::{Drops, End, Event, Pass, Path, Record, Start, Time, Update};
use warren_path::Path as PeerPath;

use super::super::shared::PeerSlot;

/// Says what time it is on both clocks, and which rules hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// The same moment by this machine's clock.
    pub(super) wall: Time,
    /// See [`warren_ledger::rules_id`].
    pub(super) rules: [u8; 8],
}

/// Makes a record of a note.
pub(super) fn record(note: Note<Arc<PeerSlot>>, moment: &Moment) -> Record {
    let event = match note.what {
        What::Start { flow, conversation, peer } => Event::Start(Start {
            flow,
            direction: conversation.direction,
            protocol: conversation.protocol,
            local: conversation.local,
            remote: conversation.remote,
            peer: peer.key(),
            pass: match (conversation.direction, conversation.rule) {
                (warren_ledger::Direction::Outbound, _) => Pass::Opened,
                (warren_ledger::Direction::Inbound, Some(rule)) => Pass::Rule { rule, filter: moment.rules },
                // Begun by an answer to what was there before the log.
                (warren_ledger::Direction::Inbound, None) => Pass::Unknown,
            },
            path: path(&peer.path(), moment.now),
        }),
        What::Update { flow, counts, peer } => {
            Event::Update(Update { flow, counts, path: Some(path(&peer.path(), moment.now)) })
        }
        What::End { flow, reason, counts } => Event::End(End { flow, reason, counts }),
        What::Drops { reason, direction, peer, target, packets, bytes, since } => Event::Drops(Drops {
            reason,
            direction,
            peer: peer.map(|peer| peer.key()),
            target,
            packets,
            bytes,
            span: micros(note.at.saturating_duration_since(since)),
        }),
        What::Missed { records } => Event::Missed { records },
    };
    let ago = micros(moment.now.saturating_duration_since(note.at)).as_micros();
    let at = moment.wall.as_micros().saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX));
    Record { at: Time::from_micros(at), event }
}

/// Leaves what is less than a microsecond away.
fn micros(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Says by which way packets go, as [`super::Worker`] chooses it.
fn path(path: &PeerPath, now: Instant) -> Path {
    let direct = path.direct.map(|direct| (Path::Direct(direct.address), direct.trusted_until));
    let relayed = path.peer_relay.map(|relayed| (Path::PeerRelay(relayed.to.address), relayed.trusted_until));
    if let Some((trusted, _)) = [direct, relayed].into_iter().flatten().find(|(_, until)| now <= *until) {
        return trusted;
    }
    match (path.relay, direct) {
        (Some(region), _) => Path::Relay(region.0),
        (None, Some((direct, _))) => direct,
        (None, None) => Path::None,
    }
}
