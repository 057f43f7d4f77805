//! Links with a length: packets take time on them, are lost, overtake each other, and pass at a limited rate.
//!
//! The kernel of a test machine often has no `netem`, so a link is two TUN devices with a thread of ours between them:
//! one is the host's `eth0`, the other lies in the switch's namespace, which routes to it.

use super::{Host, Lab, in_namespace, ip};
use crate::run::Run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use warren_os::{IfName, MAX_PACKET_BYTES, Offload, Tun, TunRead, Waker, Watched, poll};

/// Largest packet on a link unless its quality says otherwise, in bytes.
const MTU: u16 = 1500;
/// Most packets on their way in one direction: what is more is lost, as in a full router.
const ROOM: usize = 10_000;
/// Packets that the kernel keeps for a device until they are read.
const QUEUE: u32 = 5_000;
/// Packets that are taken from one device before the other has its turn.
const TURN: usize = 64;

/// What a link does to packets, in each direction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quality {
    /// How long a packet takes, one way.
    pub(crate) delay: Duration,
    /// Packets of a thousand that are lost.
    pub(crate) loss: u32,
    /// Packets of a thousand that take [`Self::lateness`] longer, so that others overtake them.
    pub(crate) late: u32,
    /// How much longer those take.
    pub(crate) lateness: Duration,
    /// Bits per second; 0 for as many as come.
    pub(crate) rate: u64,
    /// Largest packet in bytes; 0 for 1500.
    pub(crate) mtu: u16,
}

/// What has happened on a link so far, both directions together.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Packets that came to the other end.
    pub(crate) passed: AtomicU64,
    /// Packets lost because the link loses some.
    pub(crate) lost: AtomicU64,
    /// Packets that took longer.
    pub(crate) late: AtomicU64,
    /// Packets lost because too many were on their way.
    pub(crate) crowded: AtomicU64,
    /// Packets that the kernel did not take at the other end: the interface there is down, for instance.
    pub(crate) refused: AtomicU64,
}

impl Counts {
    /// Returns them as a sentence's end.
    pub(crate) fn text(&self) -> String {
        let counts = [&self.passed, &self.lost, &self.late, &self.crowded, &self.refused];
        let [passed, lost, late, crowded, refused] = counts.map(|count| count.load(Ordering::Relaxed));
        format!(
            "{passed} packets passed, {late} were late; {lost} lost, {crowded} more for want of room, {refused} refused"
        )
    }
}

/// A link that runs; dropping it ends its thread and takes its devices away.
pub(super) struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    waker: Waker,
    counts: Arc<Counts>,
}

impl Link {
    /// Begins to move packets between two devices.
    fn start(ends: [Tun; 2], quality: Quality, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), waker: Waker::new()?, counts: Arc::default() });
        let of_thread = Arc::clone(&shared);
        let work = move || {
            if let Err(error) = carry(&ends, &of_thread, quality, seed) {
                eprintln!("a link of the lab has broken: {error:#}");
            }
        };
        let thread = std::thread::Builder::new().name("link".to_owned()).spawn(work).context("cannot start a link")?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the thread of a link panicked");
        }
    }
}

impl Lab {
    /// Makes one more host, with a link of this quality between it and the switch. Returns what is counted there, too.
    pub(crate) fn add_far(&mut self, name: &str, quality: Quality) -> Result<(Host, Arc<Counts>)> {
        let number = self.next_number();
        let host = self.make(name, format!("10.91.0.{number}"))?;
        let (namespace, switch) = (host.namespace.clone(), self.namespace("sw"));
        let near = format!("f{number}");
        let mtu = if quality.mtu == 0 { MTU } else { quality.mtu };
        let ends = [open(&switch, &near, mtu)?, open(&namespace, "eth0", mtu)?];
        let link = Link::start(ends, quality, number as u64)?;
        let counts = Arc::clone(&link.shared.counts);
        self.links.push(link);
        // The switch routes to the host, and answers at once in its place when neighbours ask where it is.
        let settings = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.br0.proxy_arp=1 \
                        net.ipv6.conf.br0.proxy_ndp=1 net.ipv4.neigh.br0.proxy_delay=0 net.ipv6.neigh.br0.proxy_delay=0";
        Run::new("ip").args("netns exec").arg(&switch).args("sysctl -q -w").args(settings).output()?;
        for words in [
            format!("link set {near} txqueuelen {QUEUE} up"),
            format!("route add 10.91.0.{number}/32 dev {near}"),
            format!("route add 9.91.0.{number}/32 dev {near}"),
            "route replace 9.91.0.0/24 dev br0".to_owned(),
            format!("route add fd91::{number}/128 dev {near}"),
            format!("-6 neighbour add proxy fd91::{number} dev br0"),
        ] {
            ip(&format!("-n {switch} {words}"))?;
        }
        ip(&format!("-n {namespace} link set eth0 txqueuelen {QUEUE}"))?;
        host.configure(number)?;
        Ok((host, counts))
    }
}

/// Makes a TUN device in a namespace.
fn open(namespace: &str, name: &str, mtu: u16) -> Result<Tun> {
    let name: IfName = name.parse().with_context(|| format!("{name} is no name for an interface"))?;
    in_namespace(namespace, || {
        Tun::open(&name, mtu, Offload::Off).with_context(|| format!("no device for {namespace}"))
    })
}

/// Moves packets until it is stopped.
///
/// # Errors
/// When a device is gone: its namespace has been deleted, for instance.
fn carry(ends: &[Tun; 2], shared: &Shared, quality: Quality, seed: u64) -> Result<()> {
    let mut ways = [Way::new(quality, seed), Way::new(quality, seed ^ u64::MAX)];
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    while !shared.stop.load(Ordering::Acquire) {
        let due = ways.iter().filter_map(Way::next).min();
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
        let [one, other] = ends;
        let watched = [Watched::readable(one), Watched::readable(other), Watched::readable(&shared.waker)];
        let ready = poll(watched.map(Some), wait)?;
        for (at, way) in ways.iter_mut().enumerate() {
            let (from, to) = (&ends[at], &ends[1 - at]);
            let mut taken = 0;
            while (ready[at].readable || ready[at].failed) && taken < TURN {
                let TunRead::Packet { length, .. } = from.read(&mut buffer).context("cannot read")? else { break };
                way.push(&buffer[..length], Instant::now(), &shared.counts);
                taken += 1;
            }
            if ready[at].failed && taken == 0 {
                // Waiting for it would return at once for ever.
                bail!("the device {} reports an error and has nothing to read", from.name());
            }
            let now = Instant::now();
            while let Some(packet) = way.pop(now) {
                let count = if to.write(&packet).is_ok() { &shared.counts.passed } else { &shared.counts.refused };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// One direction of a link.
struct Way {
    quality: Quality,
    random: u64,
    /// Packets by the time of their arrival, and then as they came.
    packets: BTreeMap<(Instant, u64), Vec<u8>>,
    count: u64,
    /// When the last bit of the packet before is on the line.
    free_at: Option<Instant>,
}

impl Way {
    fn new(quality: Quality, seed: u64) -> Self {
        Self { quality, random: seed, packets: BTreeMap::new(), count: 0, free_at: None }
    }

    /// Puts a packet on the link, if its lot is not to be lost.
    fn push(&mut self, packet: &[u8], now: Instant, counts: &Counts) {
        // Both lots are drawn for each packet, so that one has the same fate whatever else the link does.
        let (is_lost, is_late) = (self.draw() < self.quality.loss, self.draw() < self.quality.late);
        if is_lost {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.packets.len() >= ROOM {
            counts.crowded.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut due = now;
        if let Some(nanoseconds) = (packet.len() as u64 * 8 * 1_000_000_000).checked_div(self.quality.rate) {
            due = self.free_at.map_or(now, |at| at.max(now)) + Duration::from_nanos(nanoseconds);
            self.free_at = Some(due);
        }
        due += self.quality.delay;
        if is_late {
            counts.late.fetch_add(1, Ordering::Relaxed);
            due += self.quality.lateness;
        }
        self.count += 1;
        self.packets.insert((due, self.count), packet.to_vec());
    }

    /// Returns when the next packet arrives.
    fn next(&self) -> Option<Instant> {
        self.packets.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes a packet that has arrived.
    fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let entry = self.packets.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// Returns a number below a thousand: splitmix64.
    fn draw(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u32::try_from((z ^ (z >> 31)) % 1000).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Puts `count` packets with their numbers on a link, one each `spacing`, and returns when which arrived.
    fn arrivals(quality: Quality, count: u16, spacing: Duration) -> (Vec<(Duration, u16)>, Counts) {
        let (start, counts) = (Instant::now(), Counts::default());
        let mut way = Way::new(quality, 7);
        for number in 0..count {
            way.push(&[&number.to_be_bytes()[..], &[0; 123]].concat(), start + spacing * number.into(), &counts);
        }
        let mut seen = Vec::new();
        while let Some(at) = way.next() {
            let packet = way.pop(at).unwrap();
            assert_eq!(packet.len(), 125);
            seen.push((at - start, u16::from_be_bytes([packet[0], packet[1]])));
        }
        (seen, counts)
    }

    #[test]
    fn packets_come_after_the_delay_in_their_order() {
        let (seen, _) = arrivals(Quality { delay: MS * 50, ..Quality::default() }, 3, MS);
        assert_eq!(seen, [(MS * 50, 0), (MS * 51, 1), (MS * 52, 2)]);
        let (seen, _) = arrivals(Quality::default(), 3, Duration::ZERO);
        assert_eq!(seen, [(Duration::ZERO, 0), (Duration::ZERO, 1), (Duration::ZERO, 2)]);
    }

    #[test]
    fn nothing_arrives_early() {
        let (start, mut way) = (Instant::now(), Way::new(Quality { delay: MS, ..Quality::default() }, 7));
        way.push(&[1], start, &Counts::default());
        assert_eq!(way.pop(start + MS - Duration::from_nanos(1)), None);
        assert_eq!(way.pop(start + MS), Some(vec![1]));
    }

    #[test]
    fn as_many_are_lost_and_late_as_wanted_and_the_same_each_time() {
        let quality = Quality { loss: 10, late: 50, lateness: MS * 2, ..Quality::default() };
        let (seen, counts) = arrivals(quality, 10_000, MS);
        let (lost, late) = (counts.lost.into_inner(), counts.late.into_inner());
        assert!((70..130).contains(&lost), "{lost} of 10000 lost");
        assert!((420..580).contains(&late), "{late} of 10000 late");
        assert_eq!(seen.len() as u64, 10_000 - lost);
        assert!(seen.windows(2).any(|pair| pair[0].1 > pair[1].1), "late ones are overtaken");
        assert_eq!(arrivals(quality, 10_000, MS).0, seen);
    }

    #[test]
    fn a_rate_spaces_packets() {
        // 125 bytes at 1 Mbit/s: a millisecond each.
        let quality = Quality { rate: 1_000_000, delay: MS * 5, ..Quality::default() };
        assert_eq!(arrivals(quality, 3, Duration::ZERO).0, [(MS * 6, 0), (MS * 7, 1), (MS * 8, 2)]);
        assert_eq!(arrivals(quality, 2, MS * 4).0, [(MS * 6, 0), (MS * 10, 1)], "an idle line owes nothing");
    }

    #[test]
    fn a_full_link_loses_the_newest() {
        let count = u16::try_from(ROOM).unwrap() + 3;
        let (seen, counts) = arrivals(Quality { delay: MS, ..Quality::default() }, count, Duration::ZERO);
        assert_eq!((seen.len(), counts.crowded.into_inner()), (ROOM, 3));
        assert_eq!(seen.last().map(|(_, number)| usize::from(*number)), Some(ROOM - 1));
    }
}
