//! WireGuard: two nodes, and somebody between them who changes, drops, replays and invents messages.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use warren_wg::{Event, HEADROOM, MessageType, Origin, Session, SessionTable, TAILROOM, Transmit, Tunnels};
use warren_wire::key::{NodeKey, NodeSecret};

use crate::input::{Input, changed};

/// An arbitrary moment, the same for a whole run.
static START: LazyLock<Instant> = LazyLock::new(|| {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary start, moved by hand from here")]
    Instant::now()
});

/// Longest story.
const STEPS_MAX: usize = 64;
/// Messages that may come of one step: far more than handshakes need, far less than a flood.
const TRANSMITS_MAX: usize = 16;
/// Messages that lie between the nodes; later ones are lost.
const WIRE_MAX: usize = 32;
const MTU: usize = 1280;

struct Side {
    key: NodeKey,
    tunnels: Tunnels,
    table: Arc<SessionTable>,
    session: Option<Arc<Session>>,
}

/// A message on its way to a side.
struct Message {
    to: usize,
    bytes: Vec<u8>,
}

struct World {
    now: Instant,
    sides: [Side; 2],
    wire: VecDeque<Message>,
    seen: Vec<Message>,
}

/// Takes steps from `data`. No message that was not made by the other side may make a session or be opened, and data
/// that was sealed and delivered unchanged comes out as it was.
pub fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let choice = input.byte();
        let side = usize::from(choice >> 7);
        match choice % 8 {
            0 => {
                let other = world.sides[1 - side].key;
                let _ = world.sides[side].tunnels.start_handshake(&other, world.now);
            }
            1 | 2 => world.deliver_next(),
            3 => {
                let Some(mut message) = world.wire.pop_front() else { continue };
                let original = std::mem::take(&mut message.bytes);
                message.bytes = changed(&original, input.bytes());
                if is_genuine(&original, &message.bytes) {
                    world.deliver(&message);
                } else {
                    world.deliver_forged(&message);
                }
            }
            4 => {
                let bytes = input.bytes();
                let kind = bytes.first().copied().unwrap_or_default();
                let bytes = match kind {
                    // Of the right length and with a valid first code, so that what is behind it is reached.
                    1 => with_first_code(bytes, 148, &world.sides[side].key),
                    2 => with_first_code(bytes, 92, &world.sides[side].key),
                    _ => bytes.to_vec(),
                };
                world.deliver_forged(&Message { to: side, bytes });
            }
            5 => {
                let Some(old) = world.seen.get(input.below(WIRE_MAX)) else { continue };
                let message = Message { to: old.to, bytes: old.bytes.clone() };
                world.deliver(&message);
            }
            6 => {
                world.now += Duration::from_secs(u64::from(input.byte()));
                for side in &mut world.sides {
                    side.tunnels.handle_timeout(world.now);
                    assert!(side.tunnels.poll_timeout().is_none_or(|next| next > world.now), "a deadline is left over");
                }
            }
            _ => world.send(side, input.bytes()),
        }
        world.settle();
    }
}

impl World {
    fn new() -> Self {
        let secret = |number: u8| NodeSecret::from_bytes([number + 1; 32]);
        let side = |number: u8| {
            let table = Arc::new(SessionTable::new());
            let wall = Duration::from_secs(1_795_000_000);
            let mut tunnels = Tunnels::new(secret(number), Arc::clone(&table), [number; 32], *START, wall);
            assert!(tunnels.add_peer(secret(1 - number).public()));
            Side { key: secret(number).public(), tunnels, table, session: None }
        };
        Self { now: *START, sides: [side(0), side(1)], wire: VecDeque::new(), seen: Vec::new() }
    }

    /// Takes what both sides want to send and say.
    fn settle(&mut self) {
        for number in [0, 1] {
            let mut count = 0;
            while let Some(Transmit { bytes, .. }) = self.sides[number].tunnels.poll_transmit() {
                count += 1;
                assert!(count <= TRANSMITS_MAX, "a flood");
                assert!(MessageType::of(&bytes).is_some(), "a message that is none");
                if self.wire.len() < WIRE_MAX {
                    self.wire.push_back(Message { to: 1 - number, bytes });
                }
            }
            while let Some(event) = self.sides[number].tunnels.poll_event() {
                match event {
                    Event::Ready { peer, session } => {
                        assert_eq!((peer, session.peer()), (self.sides[1 - number].key, peer));
                        self.sides[number].session = Some(session);
                    }
                    Event::Closed { .. } => self.sides[number].session = None,
                    Event::Failed { .. } => {}
                }
            }
        }
    }

    fn deliver_next(&mut self) {
        let Some(message) = self.wire.pop_front() else { return };
        self.deliver(&message);
        if self.seen.len() < WIRE_MAX {
            self.seen.push(message);
        }
    }

    /// Hands a message that a side made to the other, perhaps not for the first time.
    fn deliver(&mut self, message: &Message) {
        let side = &mut self.sides[message.to];
        if MessageType::of(&message.bytes) == Some(MessageType::Transport) {
            let Some(session) = side.table.for_message(&message.bytes) else { return };
            let mut bytes = message.bytes.clone();
            if let Ok(opened) = session.open(&mut bytes, self.now)
                && opened.confirmed
            {
                side.tunnels.confirm(&session, self.now);
            }
        } else {
            side.tunnels.handle_datagram(&message.bytes, origin(), self.now);
        }
    }

    /// Hands a message to a side that nobody made.
    fn deliver_forged(&mut self, message: &Message) {
        let side = &mut self.sides[message.to];
        if let Some(session) = side.table.for_message(&message.bytes) {
            let mut bytes = message.bytes.clone();
            assert!(session.open(&mut bytes, self.now).is_err(), "a forged packet opens");
        }
        // What earlier steps caused is taken already, so that whatever comes is an answer to this one.
        side.tunnels.handle_datagram(&message.bytes, origin(), self.now);
        let answer = side.tunnels.poll_transmit();
        assert!(answer.is_none_or(|answer| is_cookie(&answer.bytes)), "a forged message is answered");
        assert!(side.tunnels.poll_event().is_none(), "a forged message does something");
    }

    /// Seals bytes on one side and, at once, opens them on the other.
    fn send(&mut self, side: usize, data: &[u8]) {
        let Some(session) = self.sides[side].session.clone() else { return };
        let mut buffer = vec![0; HEADROOM + data.len() + TAILROOM];
        buffer[HEADROOM..HEADROOM + data.len()].copy_from_slice(data);
        let Ok(length) = session.seal(&mut buffer, data.len(), MTU, self.now) else { return };
        buffer.truncate(length);
        let receiver = &mut self.sides[1 - side];
        let Some(other) = receiver.table.for_message(&buffer) else { return };
        let Ok(opened) = other.open(&mut buffer, self.now) else { return };
        let plain = &buffer[HEADROOM..HEADROOM + opened.length];
        assert!(plain.starts_with(data) && plain[data.len()..].iter().all(|byte| *byte == 0), "data came out changed");
        if opened.confirmed {
            receiver.tunnels.confirm(&other, self.now);
        }
        receiver.tunnels.note_activity(&session.peer(), self.now);
    }
}

fn origin() -> Origin {
    Origin::Udp(SocketAddr::from(([192, 0, 2, 1], 41_641)))
}

/// Tells whether a message is the original but for its second code, which only counts under load.
fn is_genuine(original: &[u8], message: &[u8]) -> bool {
    let second_code = match MessageType::of(original) {
        Some(MessageType::Initiation | MessageType::Response) => 16,
        Some(MessageType::CookieReply | MessageType::Transport) | None => 0,
    };
    let counts = original.len() - second_code;
    message.len() == original.len() && message[..counts] == original[..counts]
}

fn is_cookie(bytes: &[u8]) -> bool {
    MessageType::of(bytes) == Some(MessageType::CookieReply)
}

/// Fills a message up to `length` and sets its first code (paper, section 5.4.4) for the holder of `to`.
fn with_first_code(bytes: &[u8], length: usize, to: &NodeKey) -> Vec<u8> {
    let mut message = bytes.to_vec();
    message.resize(length, 0);
    message[1..4].fill(0);
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to.as_bytes()).finalize();
    let (body, codes) = message.split_at_mut(length - 32);
    let code =
        Blake2sMac::<U16>::new_from_slice(&key).expect("a key of 32 bytes").chain_update(&*body).finalize_fixed();
    codes[..16].copy_from_slice(&code);
    message
}
