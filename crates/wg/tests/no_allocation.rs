//! Packets are sealed and opened without touching the heap, and a peer at rest takes little of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wg::{Event, HEADROOM, Incoming, Origin, Outgoing, Session, SessionTable, TAILROOM, Tunnels};
use warren_wire::key::{NodeKey, NodeSecret};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that are held; what another thread frees is not seen.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches only a constant-initialised cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        HELD.with(|held| held.set(held.get().wrapping_add(layout.size())));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.with(|held| held.set(held.get().wrapping_sub(layout.size())));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn session(tunnels: &mut Tunnels) -> Option<Arc<Session>> {
    std::iter::from_fn(|| tunnels.poll_event()).find_map(|event| match event {
        Event::Ready { session, .. } => Some(session),
        Event::Closed { .. } | Event::Failed { .. } => None,
    })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
fn sealing_and_opening_do_not_allocate() {
    let now = Instant::now();
    let secrets = [3, 4].map(|number| NodeSecret::from_bytes([number; 32]));
    let [one_key, two_key] = [secrets[0].public(), secrets[1].public()];
    let tables = [(); 2].map(|()| Arc::new(SessionTable::new()));
    let [mut one, mut two] = [0, 1].map(|at| {
        let table = Arc::clone(&tables[at]);
        Tunnels::new(
            secrets[at].clone(),
            table,
            [u8::try_from(at).unwrap(); 32],
            now,
            Duration::from_secs(1_795_000_000),
        )
    });
    assert!(one.add_peer(two_key) && two.add_peer(one_key));
    let origin = Origin::Udp(SocketAddr::from(([192, 0, 2, 1], 41_641)));
    one.start_handshake(&two_key, now).unwrap();
    two.handle_datagram(&one.poll_transmit().unwrap().bytes, origin, now);
    one.handle_datagram(&two.poll_transmit().unwrap().bytes, origin, now);
    let sending = session(&mut one).unwrap();

    let mut buffer = vec![0; HEADROOM + 1280 + TAILROOM];
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..1000 {
        let length = sending.seal(&mut buffer, 1280, 1280, now).unwrap();
        let receiving = tables[1].for_message(&buffer[..length]).unwrap();
        receiving.open(&mut buffer[..length], now).unwrap();
        let mut buffers = [[0; HEADROOM + 1280 + TAILROOM]; 8];
        let mut packets = buffers.each_mut().map(|buffer| Outgoing { buffer, length: 1280 });
        sending.seal_batch(&mut packets, 1280, now).unwrap();
        let mut packets = packets.map(|packet| Incoming::new(&mut packet.buffer[..packet.length]));
        receiving.open_batch(&mut packets, now);
        assert!(packets.iter().all(|packet| packet.opened.is_ok()));
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
}

/// Issue 5 allows a kilobyte for a further idle peer in the whole engine; here stands the part of this crate.
#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
fn ten_thousand_peers_at_rest_take_less_than_600_bytes_each() {
    const PEERS: usize = 10_000;
    let now = Instant::now();
    let table = Arc::new(SessionTable::new());
    let mut node = Tunnels::new(NodeSecret::from_bytes([3; 32]), table, [5; 32], now, Duration::from_secs(1));
    let before = HELD.with(Cell::get);
    for number in 0..PEERS {
        let mut key = [9; 32];
        key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        assert!(node.add_peer(NodeKey::from_bytes(key)));
    }
    let each = (HELD.with(Cell::get) - before) / PEERS;
    println!("{each} bytes a peer");
    assert!(each < 600, "{each} bytes");
    assert_eq!(node.poll_timeout(), None);
}
