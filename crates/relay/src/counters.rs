//! Counts of what a relay does.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::hub::Kind;

/// Counts what a relay does. Everything but `connections` and `mesh_links` only grows.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections open now.
    pub connections: AtomicU64,
    /// Connections admitted since the start.
    pub admitted: AtomicU64,
    /// Connections whose key was not admitted.
    pub rejected: AtomicU64,
    /// Connections to other relays of the region that are up now.
    pub mesh_links: AtomicU64,
    /// Packets handed on to another relay of the region.
    pub forwarded: AtomicU64,
    /// Packets that another relay of the region handed on to this one.
    pub received_forwarded: AtomicU64,
    /// Packets put into a queue; disco, then others.
    packets: [AtomicU64; 2],
    /// Bytes of those packets with their frames' heads; disco, then others.
    bytes: [AtomicU64; 2],
    /// Packets that were not delivered, by reason and kind.
    dropped: [[AtomicU64; 2]; DropReason::ALL.len()],
}

/// Why a packet was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Nobody of that key is here.
    UnknownDestination,
    /// Pushed out of a full queue by newer packets.
    QueueFull,
    /// Its receiver's connection ended while it waited.
    Gone,
    /// Another relay of the region forwarded it, and nobody of that key is here.
    UnknownDestinationOnForward,
    /// It was being written when the connection broke, or did not take it in time.
    WriteError,
    /// It waited for a connection that was ended because its key had too many.
    DuplicateClient,
}

impl DropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 6] = [
        Self::UnknownDestination,
        Self::QueueFull,
        Self::Gone,
        Self::UnknownDestinationOnForward,
        Self::WriteError,
        Self::DuplicateClient,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::UnknownDestination => "unknown_destination",
            Self::QueueFull => "queue_full",
            Self::Gone => "gone",
            Self::UnknownDestinationOnForward => "unknown_destination_on_forward",
            Self::WriteError => "write_error",
            Self::DuplicateClient => "duplicate_client",
        }
    }
}

impl Counters {
    /// Returns how many packets of a kind were queued for their receivers.
    #[must_use]
    pub fn packets(&self, kind: Kind) -> u64 {
        kind.of_two(&self.packets).load(Ordering::Relaxed)
    }

    /// Returns how many packets of a kind were dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason, kind: Kind) -> u64 {
        self.dropped.get(reason as usize).map_or(0, |kinds| kind.of_two(kinds).load(Ordering::Relaxed))
    }

    pub(crate) fn pass(&self, kind: Kind, bytes: usize) {
        kind.of_two(&self.packets).fetch_add(1, Ordering::Relaxed);
        kind.of_two(&self.bytes).fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn drop(&self, reason: DropReason, kind: Kind, packets: u64) {
        if let Some(kinds) = self.dropped.get(reason as usize).filter(|_| packets > 0) {
            kind.of_two(kinds).fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Writes all counts in Prometheus' text format.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, labels: &str, value: &AtomicU64| {
            if !kind.is_empty() {
                // Writing into a string does not fail.
                let _ = writeln!(text, "# TYPE warren_relay_{name} {kind}");
            }
            let _ = writeln!(text, "warren_relay_{name}{labels} {}", value.load(Ordering::Relaxed));
        };
        one("connections", "gauge", "", &self.connections);
        one("admitted_total", "counter", "", &self.admitted);
        one("rejected_total", "counter", "", &self.rejected);
        one("mesh_links", "gauge", "", &self.mesh_links);
        one("forwarded_total", "counter", "", &self.forwarded);
        one("received_forwarded_total", "counter", "", &self.received_forwarded);
        for (name, values) in [("packets_total", &self.packets), ("bytes_total", &self.bytes)] {
            for (at, kind) in Kind::ALL.into_iter().enumerate() {
                let declare = if at == 0 { "counter" } else { "" };
                one(name, declare, &format!("{{kind=\"{}\"}}", kind.name()), kind.of_two(values));
            }
        }
        let mut declare = "counter";
        for (reason, values) in DropReason::ALL.into_iter().zip(&self.dropped) {
            for kind in Kind::ALL {
                let labels = format!("{{reason=\"{}\",kind=\"{}\"}}", reason.name(), kind.name());
                one("dropped_total", declare, &labels, kind.of_two(values));
                declare = "";
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_every_count_once_with_its_type_before_it() {
        let counters = Counters::default();
        counters.pass(Kind::Data, 137);
        counters.drop(DropReason::QueueFull, Kind::Disco, 3);
        let text = counters.prometheus();
        for line in [
            "# TYPE warren_relay_connections gauge",
            "warren_relay_packets_total{kind=\"other\"} 1",
            "warren_relay_bytes_total{kind=\"other\"} 137",
            "warren_relay_dropped_total{reason=\"queue_full\",kind=\"disco\"} 3",
        ] {
            assert_eq!(text.lines().filter(|other| *other == line).count(), 1, "{line}\n{text}");
        }
        assert_eq!(text.matches("# TYPE warren_relay_dropped_total counter\n").count(), 1);
    }
}
