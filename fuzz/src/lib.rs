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

pub mod admin;
pub mod aead;
pub mod control;
pub mod derp;
pub mod filter;
pub mod gateway;
mod input;
pub mod key;
pub mod ledger;
pub mod ledger_export;
pub mod map_frames;
pub mod node;
pub mod noise;
pub mod path;
pub mod policy;
pub mod relay;
pub mod udp;
pub mod wg;

/// A target: what it does with an input. It panics where it finds a fault.
pub type Target = fn(&[u8]);

/// Every target with its name, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("admin_request", admin::request),
    ("aead_batch", aead::batch),
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
    ("flows", ledger::flows),
    ("gateway", gateway::gateway),
    ("kept_map", node::kept_map),
    ("keys", key::keys),
    ("ledger_batch", ledger::batch),
    ("ledger_chain", ledger::chain),
    ("ledger_checkpoint", ledger::checkpoint),
    ("ledger_export", ledger_export::export),
    ("local_api", node::local_api),
    ("map_frames", map_frames::map_frames),
    ("netcheck", path::netcheck),
    ("netmap", node::netmap),
    ("noise_handshake", noise::handshake),
    ("noise_records", noise::records),
    ("paths", path::paths),
    ("peer_relay", path::peer_relay),
    ("policy", policy::policy),
    ("relay_head", relay::head),
    ("relay_received", relay::received),
    ("relay_websocket", relay::websocket),
    ("segments_join", filter::join),
    ("segments_split", filter::split),
    ("server_url", node::server_url),
    ("stun", udp::stun),
    ("tsmp", filter::tsmp),
    ("wg_handshake", wg::handshake),
];
