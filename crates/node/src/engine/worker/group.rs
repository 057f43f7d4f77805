//! Received datagrams that are opened together.

use std::ops::Range;
use std::time::Instant;

use warren_wg::{BATCH, Incoming, OpenError, Opened, Session};

/// Bytes that transport messages of one session begin with: their kind and the receiver's index.
const HEAD: usize = 8;

/// Names datagrams of one sender and one session by where they lie, in their order.
#[derive(Debug, Default)]
pub(super) struct Group {
    places: [Range<usize>; BATCH],
    count: usize,
}

impl Group {
    /// Tells whether `datagram` belongs to the session of those that are there, and there is room.
    pub(super) fn is_joined_by(&self, buffer: &[u8], datagram: &[u8]) -> bool {
        let Some(first) = self.places().first().and_then(|place| buffer.get(place.clone())) else { return false };
        self.count < BATCH
            && datagram.len() >= 32
            && datagram.starts_with(&[4, 0, 0, 0])
            && datagram.get(..HEAD) == first.get(..HEAD)
    }

    pub(super) fn push(&mut self, place: Range<usize>) {
        if let Some(room) = self.places.get_mut(self.count) {
            *room = place;
            self.count += 1;
        }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    pub(super) fn places(&self) -> &[Range<usize>] {
        self.places.get(..self.count).unwrap_or_default()
    }

    /// Opens all in place and returns what came out.
    pub(super) fn open(
        &self,
        session: &Session,
        buffer: &mut [u8],
        now: Instant,
    ) -> [Result<Opened, OpenError>; BATCH] {
        let mut datagrams: [Incoming<'_>; BATCH] = std::array::from_fn(|_| Incoming::new(&mut []));
        let (mut rest, mut at) = (buffer, 0);
        // They lie one behind the other.
        for (datagram, place) in datagrams.iter_mut().zip(self.places()) {
            let gap = place.start.saturating_sub(at);
            let Some((_, behind)) = std::mem::take(&mut rest).split_at_mut_checked(gap) else { break };
            let Some((bytes, behind)) = behind.split_at_mut_checked(place.len()) else { break };
            at = place.end;
            rest = behind;
            *datagram = Incoming::new(bytes);
        }
        session.open_batch(datagrams.get_mut(..self.count).unwrap_or_default(), now);
        datagrams.map(|datagram| datagram.opened)
    }
}
