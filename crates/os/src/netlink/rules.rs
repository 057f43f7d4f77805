//! Policy rules: packets of the tunnel's own sockets keep to the main table, all others look into ours first.
//!
//! Source: node.md, section 21.1 (Tailscale `wgengine/router/osrouter`), whose priorities and marks these are.

use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteHeader, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rustix::io::Errno;

use super::{Netlink, NetlinkError, collect, failed, unless};
use crate::udp::{BYPASS_MARK, BYPASS_MASK};

/// The table of routes into the tunnel.
pub const TABLE: u8 = 52;

/// The number by which rules and routes say that we made them; `rt_protos` gives it to nobody.
pub const PROTOCOL: u8 = 152;

/// The kernel's second table of everybody. Source: `linux/rtnetlink.h`, `RT_TABLE_DEFAULT`.
const DEFAULT_TABLE: u8 = 253;

/// A rule: its priority, whether it is for marked packets alone, what it does, and in which table.
type Rule = (u32, bool, RuleAction, u8);

const RULES: [Rule; 4] = [
    (5210, true, RuleAction::ToTable, RouteHeader::RT_TABLE_MAIN),
    (5230, true, RuleAction::ToTable, DEFAULT_TABLE),
    // Without a way out they do not enter the tunnel either.
    (5250, true, RuleAction::Unreachable, RouteHeader::RT_TABLE_UNSPEC),
    (5270, false, RuleAction::ToTable, TABLE),
];

/// Says for which families there are rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// IPv4 alone: the machine has no IPv6, or its kernel no rules for it.
    V4,
    /// Both.
    Both,
}

impl Netlink {
    /// Makes the rules that put [`TABLE`] before the main table, for packets without the mark of our sockets. Those that are
    /// there already, whoever made them, are left alone.
    ///
    /// They are made in an order in which some of them do no harm: the one that leads into the tunnel is the last.
    ///
    /// # Errors
    /// See [`NetlinkError`]; [`NetlinkError::is_unsupported`] if the kernel has no rules at all. What was there stays.
    pub async fn add_rules(&self) -> Result<Rules, NetlinkError> {
        let mut rules = Rules::Both;
        for rule in RULES {
            let mut request = self.handle.rule().add().v4();
            *request.message_mut() = message(AddressFamily::Inet, rule);
            unless(request.execute().await.map_err(failed("add a routing rule")), &[Errno::EXIST])?;
            let mut request = self.handle.rule().add().v6();
            *request.message_mut() = message(AddressFamily::Inet6, rule);
            let result = request.execute().await.map_err(failed("add a routing rule for IPv6"));
            match unless(result, &[Errno::EXIST]) {
                Ok(()) => {}
                Err(error) if error.is_unsupported() => rules = Rules::V4,
                Err(error) => return Err(error),
            }
        }
        Ok(rules)
    }

    /// Removes the rules that we made, now or in an earlier life.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn remove_rules(&self) -> Result<(), NetlinkError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules = collect("list routing rules", self.handle.rule().get(version).execute()).await?;
            for rule in rules.into_iter().filter(is_ours) {
                let result = self.handle.rule().del(rule).execute().await.map_err(failed("remove a routing rule"));
                unless(result, &[Errno::NOENT])?;
            }
        }
        Ok(())
    }
}

fn message(family: AddressFamily, (priority, marked, action, table): Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = table;
    message.header.action = action;
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    if marked {
        message.attributes.push(RuleAttribute::FwMark(BYPASS_MARK));
        message.attributes.push(RuleAttribute::FwMask(BYPASS_MASK));
    }
    message
}

fn is_ours(rule: &RuleMessage) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    has(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
        && RULES.iter().any(|(priority, ..)| has(&RuleAttribute::Priority(*priority)))
}
