//! What is remembered of a conversation.

use std::net::IpAddr;
use std::time::Duration;

use crate::packet::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, TcpFlags};

/// How long an idle TCP connection that both sides spoke on is remembered.
///
/// RFC 5382 (REQ-5) asks for at least 2 h 4 min; a day lets a quiet session survive a night.
pub const TCP_OPEN: Duration = Duration::from_secs(24 * 3600);

/// How long a TCP connection is remembered that is not answered yet, or that both sides or a reset have ended.
///
/// RFC 5382 (REQ-5) asks for 4 minutes.
pub const TCP_TRANSITORY: Duration = Duration::from_secs(240);

/// How long an idle UDP conversation is remembered. Source: RFC 4787 (REQ-5), the recommended value.
pub const UDP: Duration = Duration::from_secs(300);

/// How long an idle SCTP association is remembered; its heartbeats come every 30 s (RFC 9260, section 15).
pub const SCTP: Duration = Duration::from_secs(900);

/// How long a ping's answer is waited for. Source: RFC 5508 (REQ-2).
pub const ECHO: Duration = Duration::from_secs(60);

/// How long the rest of a fragmented packet is let in after its first piece. Source: Linux `ipfrag_time`.
pub const FRAGMENT: Duration = Duration::from_secs(30);

/// Identifies a conversation between this node and another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    local: u128,
    remote: u128,
    /// Our port above, theirs below; a ping's identifier counts as our port.
    ports: u32,
    /// Protocol below, address family (4 or 6) above.
    protocol: u16,
}

impl FlowKey {
    pub(crate) fn new(protocol: u8, local: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
        let family = if local.0.is_ipv4() { 4 } else { 6 };
        Self {
            local: bits(local.0),
            remote: bits(remote.0),
            ports: u32::from(local.1) << 16 | u32::from(remote.1),
            protocol: family << 8 | u16::from(protocol),
        }
    }
}

/// Identifies a packet in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FragmentKey {
    source: u128,
    destination: u128,
    id: u32,
    /// Protocol, address family, and whether the sender is jailed.
    kind: u32,
}

impl FragmentKey {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8, id: u32, jailed: bool) -> Self {
        let family: u32 = if source.is_ipv4() { 4 } else { 6 };
        let kind = u32::from(jailed) << 16 | family << 8 | u32::from(protocol);
        Self { source: bits(source), destination: bits(destination), id, kind }
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Holds the state of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Seconds on the firewall's clock at the last packet.
    pub(crate) last: u32,
    /// Which filter judged it last, for conversations that the other side opened.
    pub(crate) judged_by: u32,
    /// What that filter said.
    pub(crate) allowed: bool,
    /// What whoever counts packets keeps with it; 0 is nothing.
    pub(crate) mark: u64,
    protocol: u8,
    seen: u8,
}

/// Says who sent a packet, or began a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This node, or a host behind it.
    Us,
    /// A peer, or a host behind it.
    Them,
}

const FROM_US: u8 = 1;
const FROM_THEM: u8 = 2;
const END_US: u8 = 4;
const END_THEM: u8 = 8;
const RESET: u8 = 16;

impl Flow {
    pub(crate) fn new(protocol: u8, now: u32, judged_by: u32) -> Self {
        Self { last: now, judged_by, allowed: true, mark: 0, protocol, seen: 0 }
    }

    /// Takes note of a packet.
    pub(crate) fn saw(&mut self, side: Side, flags: Option<TcpFlags>, now: u32) {
        self.last = now;
        let (from, end) = match side {
            Side::Us => (FROM_US, END_US),
            Side::Them => (FROM_THEM, END_THEM),
        };
        if let Some(flags) = flags {
            if flags.is_opening() {
                // The ports are used again.
                self.seen = 0;
            }
            if flags.has(TcpFlags::FIN) {
                self.seen |= end;
            }
            if flags.has(TcpFlags::RST) {
                self.seen |= RESET;
            }
        }
        self.seen |= from;
    }

    pub(crate) fn is_expired(&self, now: u32) -> bool {
        u64::from(now.saturating_sub(self.last)) > self.timeout().as_secs()
    }

    fn timeout(&self) -> Duration {
        let has = |mask| self.seen & mask == mask;
        match self.protocol {
            PROTO_TCP if !has(FROM_US | FROM_THEM) || has(END_US | END_THEM) || has(RESET) => TCP_TRANSITORY,
            PROTO_TCP => TCP_OPEN,
            PROTO_UDP => UDP,
            PROTO_SCTP => SCTP,
            _ => ECHO,
        }
    }
}
