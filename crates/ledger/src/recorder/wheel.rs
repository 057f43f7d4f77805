//! Many timers, each set and cleared at little cost.

const NONE: u32 = u32::MAX;
/// Bits of a tick's number per level.
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const SLOT_MASK: u32 = (1 << BITS) - 1;
/// Enough for all 32 bits.
const LEVELS: usize = 6;

/// Holds at most one timer for each index.
///
/// A timer lies on the level of the highest six bits in which its tick differs from now, in the slot that these bits say; when
/// now comes to that slot it moves down. So setting and clearing costs O(1), and a timer moves five times at most.
#[derive(Debug)]
pub(super) struct Wheel {
    now: u32,
    heads: [[u32; SLOTS]; LEVELS],
    /// One bit for each slot that is not empty.
    occupied: [u64; LEVELS],
    links: Vec<Link>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    deadline: u32,
    next: u32,
    previous: u32,
    /// Level and slot.
    place: Option<(u8, u8)>,
}

const UNSET: Link = Link { deadline: 0, next: NONE, previous: NONE, place: None };

impl Wheel {
    pub(super) const fn new() -> Self {
        Self { now: 0, heads: [[NONE; SLOTS]; LEVELS], occupied: [0; LEVELS], links: Vec::new() }
    }

    /// Sets the timer `index` to a tick, which is the next one if it is not later than that.
    pub(super) fn set(&mut self, index: u32, deadline: u32) {
        self.clear(index);
        while self.links.len() <= index as usize {
            self.links.push(UNSET);
        }
        self.link(index, deadline.max(self.now.saturating_add(1)));
    }

    /// Clears the timer `index`.
    pub(super) fn clear(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index as usize) else { return };
        let Some((level, slot)) = link.place.take() else { return };
        let (next, previous) = (link.next, link.previous);
        if let Some(link) = self.links.get_mut(next as usize) {
            link.previous = previous;
        }
        if let Some(link) = self.links.get_mut(previous as usize) {
            link.next = next;
        } else {
            self.set_head(level, slot, next);
        }
    }

    /// Takes a timer that is due at `tick`, and moves on to that if there is none.
    pub(super) fn pop(&mut self, tick: u32) -> Option<u32> {
        loop {
            let Some((level, slot, at)) = self.first().filter(|(_, _, at)| *at <= tick) else {
                self.now = self.now.max(tick);
                return None;
            };
            self.now = self.now.max(at);
            let mut index = self.head(level, slot);
            self.clear(index);
            if level == 0 {
                return Some(index);
            }
            // All of the slot move down together: what is on a lower level is found first.
            while let Some(link) = self.links.get(index as usize).copied() {
                self.link(index, link.deadline);
                index = self.head(level, slot);
                self.clear(index);
            }
        }
    }

    /// Returns the tick at which [`Self::pop`] has something to do next; no timer is due before.
    pub(super) fn next(&self) -> Option<u32> {
        self.first().map(|(_, _, at)| at)
    }

    /// Returns the first slot that is not empty, and when it begins.
    fn first(&self) -> Option<(u8, u8, u32)> {
        let (level, occupied) = (0..).zip(self.occupied).find(|(_, occupied)| *occupied != 0)?;
        let slot = occupied.trailing_zeros();
        let shift = BITS * u32::from(level);
        // The bits above those of the level are those of now.
        let above = self.now.checked_shr(shift + BITS).and_then(|above| above.checked_shl(shift + BITS)).unwrap_or(0);
        Some((level, u8::try_from(slot).ok()?, above | slot << shift))
    }

    fn link(&mut self, index: u32, deadline: u32) {
        let differing = (deadline ^ self.now).checked_ilog2().unwrap_or(0);
        let level = differing / BITS;
        let slot = deadline >> (BITS * level) & SLOT_MASK;
        let (Ok(level), Ok(slot)) = (u8::try_from(level), u8::try_from(slot)) else { return };
        let next = self.head(level, slot);
        if let Some(link) = self.links.get_mut(next as usize) {
            link.previous = index;
        }
        if let Some(link) = self.links.get_mut(index as usize) {
            *link = Link { deadline, next, previous: NONE, place: Some((level, slot)) };
        }
        self.set_head(level, slot, index);
    }

    fn head(&self, level: u8, slot: u8) -> u32 {
        self.heads.get(usize::from(level)).and_then(|heads| heads.get(usize::from(slot))).copied().unwrap_or(NONE)
    }

    fn set_head(&mut self, level: u8, slot: u8, index: u32) {
        let heads = self.heads.get_mut(usize::from(level)).and_then(|heads| heads.get_mut(usize::from(slot)));
        if let (Some(head), Some(occupied)) = (heads, self.occupied.get_mut(usize::from(level))) {
            *head = index;
            *occupied = if index == NONE { *occupied & !(1 << slot) } else { *occupied | 1 << slot };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Set(u32, u32),
        Clear(u32),
        Advance(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let far = (any::<u32>(), 0_u32..32).prop_map(|(value, shift)| value >> shift);
        prop_oneof![
            4 => (0_u32..20, far.clone()).prop_map(|(index, after)| Step::Set(index, after)),
            1 => (0_u32..20).prop_map(Step::Clear),
            3 => far.prop_map(|by| Step::Advance(by >> 4)),
        ]
    }

    proptest! {
        #[test]
        fn timers_fire_when_they_are_due_and_not_before(steps in prop::collection::vec(step(), 0..60)) {
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<u32, u32> = BTreeMap::new();
            let mut now = 0_u32;
            for step in steps {
                match step {
                    Step::Set(index, after) => {
                        let deadline = now.saturating_add(after);
                        wheel.set(index, deadline);
                        model.insert(index, deadline.max(now.saturating_add(1)));
                    }
                    Step::Clear(index) => {
                        wheel.clear(index);
                        model.remove(&index);
                    }
                    Step::Advance(by) => {
                        now = now.saturating_add(by);
                        let mut last = 0;
                        while let Some(index) = wheel.pop(now) {
                            let deadline = model.remove(&index).unwrap();
                            prop_assert!(deadline <= now, "{} fired at {}", deadline, now);
                            prop_assert!(deadline >= last, "in order");
                            last = deadline;
                        }
                        prop_assert!(model.values().all(|deadline| *deadline > now), "one is left over");
                    }
                }
                let first = model.values().min();
                prop_assert_eq!(wheel.next().is_some(), first.is_some());
                if let (Some(next), Some(first)) = (wheel.next(), first) {
                    prop_assert!(next <= *first && next > now || *first == u32::MAX && now == u32::MAX);
                }
            }
        }
    }
}
