//! IP header views, super-packets, prefix tables, the compiled packet filter and its flow state.
//!
//! [`Packet`] reads a packet's headers once and proves that they are sound. [`Filter`] is the immutable form of the rules
//! that coordination sends. [`Firewall`] judges packets by a filter and by the conversations it has seen; it is the whole
//! policy of a node's data plane. [`segments`] cuts super-packets
//! of the host and makes them of received packets. [`Grants`] holds what rules allow beyond packets. [`PrefixTable`] also serves to find the peer of an address. [`tsmp`] reads and makes the
//! control messages that nodes exchange inside the tunnel, [`via`] translates packets for sites whose networks may clash.
//!
//! Nothing here reads a clock, touches a socket or allocates per packet.
#![forbid(unsafe_code)]

mod firewall;
pub mod flow;
mod grants;
mod packet;
mod prefix;
mod recent;
mod rules;
pub mod segments;
#[cfg(test)]
mod testing;
pub mod tsmp;
pub mod via;

pub use firewall::{
    ADOPTION, Conversation, DropReason, Firewall, MAX_FRAGMENTED, MAX_OWN_FLOWS, MAX_PEER_FLOWS, MAX_STATELESS,
    Parting, PeerMode, Verdict,
};
pub use flow::Side;
pub use grants::Grants;
pub use packet::{Body, Fragment, Icmp, PROTO_TCP, PROTO_TSMP, PROTO_UDP, Packet, PacketError, Ports, TcpFlags};
pub use prefix::PrefixTable;
pub use rules::{Filter, FilterError, FilterInput, Problem, Shields};
