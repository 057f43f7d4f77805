//! What waits for one client: bounded in number and bytes, and shared fairly between those who send.
//!
//! Each sender has a line of its own. Lines are served in turn, one packet each, and a queue that is full drops the
//! oldest packet of whoever holds most of it: one sender can neither delay nor push out what others send.

use std::collections::VecDeque;

use bytes::Bytes;
use warren_wire::key::NodeKey;

/// Packets that wait in a queue. Source: Tailscale `derp/derpserver`, its default.
pub(crate) const QUEUE_PACKETS: usize = 32;
/// Bytes that wait in a queue: plenty for packets of common size, and no more than two of the largest, with which few
/// senders could fill the memory of a relay otherwise.
pub(crate) const QUEUE_BYTES: usize = 160 << 10;

/// Frames in lines, one for each sender that has something waiting.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// The line that is served next comes first. There are never more lines than packets.
    lines: VecDeque<Line>,
    packets: usize,
    bytes: usize,
    /// How many times more than usual may wait, beyond once.
    more: usize,
}

#[derive(Debug)]
struct Line {
    sender: NodeKey,
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    /// Makes a queue in which so many times more may wait.
    pub(crate) fn of_times(times: usize) -> Self {
        Self { more: times.saturating_sub(1), ..Self::default() }
    }

    fn has_too_many(&self) -> bool {
        self.packets > QUEUE_PACKETS.saturating_mul(1 + self.more)
    }

    fn has_too_much(&self) -> bool {
        self.bytes > QUEUE_BYTES.saturating_mul(1 + self.more)
    }

    /// Adds a frame, which always has room, and returns how many older ones had to go.
    pub(crate) fn push(&mut self, sender: NodeKey, frame: Bytes) -> u64 {
        let size = frame.len();
        match self.lines.iter_mut().find(|line| line.sender == sender) {
            Some(line) => {
                line.bytes = line.bytes.saturating_add(size);
                line.frames.push_back(frame);
            }
            None => self.lines.push_back(Line { sender, frames: VecDeque::from([frame]), bytes: size }),
        }
        self.packets += 1;
        self.bytes = self.bytes.saturating_add(size);
        let mut dropped = 0;
        while self.packets > 1 && (self.has_too_many() || self.has_too_much()) && self.drop_one() {
            dropped += 1;
        }
        dropped
    }

    /// Drops the oldest packet of the line that holds most of what is scarce; of equals, of the one served next, whose
    /// packet has waited longest.
    fn drop_one(&mut self) -> bool {
        let by_number = self.has_too_many();
        let mut most = None;
        for (at, line) in self.lines.iter().enumerate() {
            let holds = if by_number { line.frames.len() } else { line.bytes };
            if most.is_none_or(|(_, other)| holds > other) {
                most = Some((at, holds));
            }
        }
        most.is_some_and(|(at, _)| self.take(at).is_some())
    }

    /// Takes the oldest frame of a line, which keeps its place unless it is empty now.
    fn take(&mut self, at: usize) -> Option<Bytes> {
        let line = self.lines.get_mut(at)?;
        let frame = line.frames.pop_front()?;
        line.bytes = line.bytes.saturating_sub(frame.len());
        self.bytes = self.bytes.saturating_sub(frame.len());
        self.packets = self.packets.saturating_sub(1);
        if line.frames.is_empty() {
            self.lines.remove(at);
        }
        if self.lines.is_empty() {
            // An idle connection holds no room for packets.
            self.lines = VecDeque::new();
        }
        Some(frame)
    }

    /// Takes the next frame.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let sender = self.lines.front()?.sender;
        let frame = self.take(0)?;
        if self.lines.len() > 1 && self.lines.front().is_some_and(|line| line.sender == sender) {
            self.lines.rotate_left(1);
        }
        Some(frame)
    }

    /// Returns how many frames wait.
    pub(crate) fn len(&self) -> usize {
        self.packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> NodeKey {
        NodeKey::from_bytes([byte; 32])
    }

    #[test]
    fn lines_are_served_in_turn() {
        let mut queue = Queue::default();
        for (sender, frame) in [(1, "a"), (1, "b"), (1, "c"), (2, "x"), (3, "y"), (2, "z")] {
            assert_eq!(queue.push(key(sender), Bytes::from_static(frame.as_bytes())), 0);
        }
        let order: Vec<Bytes> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["a", "x", "y", "b", "z", "c"]);
    }

    #[test]
    fn a_flood_pushes_out_only_itself() {
        let mut queue = Queue::default();
        for _ in 0..4 {
            queue.push(key(2), Bytes::from_static(b"quiet"));
        }
        for _ in 0..1000 {
            queue.push(key(1), Bytes::from_static(b"flood"));
        }
        assert_eq!(queue.len(), QUEUE_PACKETS);
        let quiet = std::iter::from_fn(|| queue.pop()).take(8).filter(|frame| frame == "quiet").count();
        assert_eq!(quiet, 4, "the quiet sender waits for no more than one packet of the other in front of each");
    }

    proptest! {
        /// Whatever is sent: the bounds hold, nothing is lost uncounted, each sender's packets keep their order.
        #[test]
        fn bounds_order_and_counts(sent in proptest::collection::vec((0_u8..40, 1_usize..40_000, any::<bool>()), 1..200)) {
            let mut queue = Queue::default();
            let (mut dropped, mut taken, mut last) = (0, 0_u64, std::collections::HashMap::new());
            let mut see = |frame: &Bytes| {
                let sender = frame[0];
                let number = u16::from_be_bytes([frame[1], frame[2]]);
                last.insert(sender, number).is_none_or(|before| before < number)
            };
            for (number, (sender, size, pop)) in sent.iter().enumerate() {
                let mut frame = vec![0; size + 3];
                frame[0] = *sender;
                frame[1..3].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
                dropped += queue.push(key(*sender), frame.into());
                prop_assert!(queue.packets <= QUEUE_PACKETS && (queue.bytes <= QUEUE_BYTES || queue.packets == 1));
                if *pop {
                    let frame = queue.pop().unwrap();
                    prop_assert!(see(&frame));
                    taken += 1;
                }
            }
            while let Some(frame) = queue.pop() {
                prop_assert!(see(&frame));
                taken += 1;
            }
            prop_assert_eq!(taken + dropped, sent.len() as u64);
            prop_assert_eq!((queue.packets, queue.bytes, queue.lines.len()), (0, 0, 0));
        }
    }
}
