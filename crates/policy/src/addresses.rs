//! Sets of addresses that are no single prefix: ipsets and the Internet.

use std::net::IpAddr;

/// Addresses as ranges: of one family each, sorted, apart from each other by at least one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct AddressSet(Vec<(IpAddr, IpAddr)>);

impl AddressSet {
    /// Returns the ranges.
    pub(crate) fn ranges(&self) -> &[(IpAddr, IpAddr)] {
        &self.0
    }
}
