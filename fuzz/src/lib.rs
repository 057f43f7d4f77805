//! What the fuzz targets do: one function for every decoder that reads bytes from strangers.
//!
//! `fuzz/libfuzzer` makes a program of each. The test `replay` runs each over its corpus, without libFuzzer, so that
//! continuous integration does too.

#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a target fails by panicking"
)]

pub mod control;
pub mod derp;
pub mod filter;
mod input;
pub mod key;
pub mod map_frames;
pub mod noise;
pub mod policy;
pub mod udp;
pub mod wg;

/// A target: what it does with an input. It panics where it finds a fault.
pub type Target = fn(&[u8]);

/// Every target with its name, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("control_calls", control::calls),
    ("control_map", control::map),
    ("control_register", control::register),
    ("datagram", udp::datagram),
    ("derp_frames", derp::frames),
    ("derp_info", derp::info),
    ("disco", udp::disco),
    ("filter_packet", filter::packet),
    ("filter_rules", filter::rules),
    ("firewall", filter::firewall),
    ("keys", key::keys),
    ("map_frames", map_frames::map_frames),
    ("noise_handshake", noise::handshake),
    ("noise_records", noise::records),
    ("policy", policy::policy),
    ("stun", udp::stun),
    ("tsmp", filter::tsmp),
    ("wg_handshake", wg::handshake),
];
