//! Addresses, routes and interfaces through the kernel's route socket.
//!
//! # How packets find the tunnel, and what is left behind
//! Routes to the TUN interface lie in a table of their own, [`TABLE`], which policy rules put before the main one; packets
//! with the mark [`crate::BYPASS_MARK`] never look there. Every socket by which the tunnel itself is carried has that mark, so
//! that nothing of it enters the tunnel whatever is routed into it, and an exit node can take everything else.
//!
//! - *Local networks.* What the main table knows better is left to it: `throw` routes take its prefixes out of ours, so
//!   that a peer's offer of a network that this machine is already in never takes it over. The interface's own addresses
//!   are /32 and /128, so that the kernel adds no network of its own.
//! - *Kernels without rules.* Then routes go to the main table, with the metric [`ROUTE_METRIC`], far worse than that of a
//!   connected network or of a route from DHCP. The engine drops packets from the TUN whose source is its own address and
//!   own UDP port.
//!
//! Addresses and routes go with the interface, and that goes with the process that opened it, even after `kill -9`. The rules
//! stay then, and `throw` routes; both mean nothing without the routes beside them, and carry the protocol number
//! [`PROTOCOL`] by which the next start, or `warren cleanup`, finds them.
//!
//! A persistent TUN device made by the administrator (`ip tuntap add`) does survive the process. The `sync_*` calls
//! take away whatever an earlier process left on it.
//!
//! All changes are idempotent: adding what is there and removing what is not succeeds. Calls need a tokio runtime;
//! [`Netlink`] works in the network namespace of the thread that connected it.

mod rules;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;

use crate::ifname::IfIndex;

pub use rules::{PROTOCOL, Rules, TABLE};
pub use watch::LinkWatch;

/// The metric of all our routes; lower wins, and connected networks and DHCP use 0 to about 1,000.
pub const ROUTE_METRIC: u32 = 5_200;

/// The kernel's table of this machine's own addresses. Source: `linux/rtnetlink.h`, `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u8 = 255;

/// Changes and lists addresses, routes and interfaces. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

/// Says which change or query the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// This process may not change the network.
    #[error("no permission to {step}: run as root or with the capability CAP_NET_ADMIN")]
    Denied {
        /// What was being done.
        step: &'static str,
    },
    /// The kernel answered with an error.
    #[error("cannot {step}: {errno}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Another interface has a route for the same prefix with the same metric.
    #[error(
        "cannot add the route {prefix}: another interface has it with the same metric, is another overlay network running?"
    )]
    RouteTaken {
        /// The wanted prefix.
        prefix: IpNet,
    },
    /// The connection to the kernel broke or gave an answer that cannot be read.
    #[error("cannot {step}: the kernel's route socket gave no usable answer")]
    Broken {
        /// What was being done.
        step: &'static str,
    },
}

impl NetlinkError {
    /// Tells whether the kernel has no such thing at all, as one that was built without it.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::OPNOTSUPP | Errno::AFNOSUPPORT, .. })
    }
}

/// Describes a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number.
    pub index: IfIndex,
    /// The name, which other programs chose.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Largest packet in bytes.
    pub mtu_bytes: u32,
    /// Usable addresses with their prefix lengths: neither tentative, deprecated nor duplicates.
    pub addresses: Vec<IpNet>,
}

/// Names the interfaces that default routes of the main table lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DefaultRoutes {
    /// For IPv4.
    pub v4: Option<IfIndex>,
    /// For IPv6.
    pub v6: Option<IfIndex>,
    /// The IPv4 gateway; `None` if the way out has none, as in a tunnel.
    pub gateway_v4: Option<Ipv4Addr>,
}

/// Says in which table routes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTable {
    /// The one that [`Netlink::add_rules`] puts before the main one, [`TABLE`].
    Own,
    /// The main one.
    Main,
}

impl RouteTable {
    fn number(self) -> u8 {
        match self {
            Self::Own => TABLE,
            Self::Main => RouteHeader::RT_TABLE_MAIN,
        }
    }
}

/// Describes a route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MainRoute {
    /// Where it leads.
    pub prefix: IpNet,
    /// By which interface, if by one alone.
    pub interface: Option<IfIndex>,
    /// Whether that is a network which this machine is in: the kernel made the route for an address of an interface, and
    /// there is no gateway. What a DHCP server or somebody else adds is none.
    pub connected: bool,
}

/// Tells what a `sync_*` call changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// What was missing and is there now.
    pub added: Vec<IpNet>,
    /// What was too much and is gone now.
    pub removed: Vec<IpNet>,
    /// What the kernel refused to add, with its answer; IPv6 on a machine without it, for one.
    pub refused: Vec<(IpNet, NetlinkError)>,
}

impl Netlink {
    /// Connects to the kernel; the connection is a task of the current tokio runtime.
    ///
    /// # Errors
    /// Returns [`NetlinkError`] when no route socket can be had.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            NetlinkError::Refused { step: "open the route socket", errno }
        })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Takes an interface up without letting the kernel give it IPv6 addresses of its own.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_up(&self, interface: IfIndex) -> Result<(), NetlinkError> {
        let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let quiet = LinkUnspec::new_with_index(interface.0)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![quiet]))
            .build();
        if let Err(error) = self.handle.link().set(quiet).execute().await {
            // A kernel without IPv6 gives no addresses anyway.
            tracing::debug!(%error, %interface, "cannot turn off automatic IPv6 addresses");
        }
        let up = LinkUnspec::new_with_index(interface.0).up().build();
        self.handle.link().set(up).execute().await.map_err(failed("take the interface up"))
    }

    /// Takes an interface down; routes through it vanish, addresses stay.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_down(&self, interface: IfIndex) -> Result<(), NetlinkError> {
        let down = LinkUnspec::new_with_index(interface.0).down().build();
        self.handle.link().set(down).execute().await.map_err(failed("take the interface down"))
    }

    /// Changes an interface's MTU in bytes.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_mtu(&self, interface: IfIndex, mtu_bytes: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(interface.0).mtu(mtu_bytes).build();
        self.handle.link().set(message).execute().await.map_err(failed("set the interface's MTU"))
    }

    /// Adds an address to an interface.
    ///
    /// # Errors
    /// See [`NetlinkError`]; an address that is there already is no error.
    pub async fn add_address(&self, interface: IfIndex, address: IpNet) -> Result<(), NetlinkError> {
        let handle = self.handle.address();
        let mut request = handle.add(interface.0, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // There is nobody to ask for duplicates, and until the answer the address could not be used.
            let at_once = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(at_once);
        }
        unless(request.execute().await.map_err(failed("add an address")), &[Errno::EXIST])
    }

    /// Removes an address from an interface.
    ///
    /// # Errors
    /// See [`NetlinkError`]; an address that is not there is no error.
    pub async fn remove_address(&self, interface: IfIndex, address: IpNet) -> Result<(), NetlinkError> {
        let step = "list addresses";
        for message in collect(step, self.handle.address().get().execute()).await? {
            if message.header.index == interface.0 && address_of(&message) == Some(address) {
                let result = self.handle.address().del(message).execute().await.map_err(failed("remove an address"));
                unless(result, &[Errno::ADDRNOTAVAIL])?;
            }
        }
        Ok(())
    }

    /// Makes `wanted` the only addresses of an interface, apart from IPv6 link-local ones.
    ///
    /// # Errors
    /// Returns an error if addresses cannot be listed or a stray one cannot be removed; refused additions are in
    /// [`Changes::refused`].
    pub async fn sync_addresses(&self, interface: IfIndex, wanted: &[IpNet]) -> Result<Changes, NetlinkError> {
        let mut changes = Changes::default();
        let present: Vec<IpNet> = collect("list addresses", self.handle.address().get().execute())
            .await?
            .iter()
            .filter(|message| message.header.index == interface.0)
            .filter_map(address_of)
            .filter(|net| !matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local()))
            .collect();
        for &stray in present.iter().filter(|net| !wanted.contains(net)) {
            self.remove_address(interface, stray).await?;
            changes.removed.push(stray);
        }
        for &missing in wanted.iter().filter(|net| !present.contains(net)) {
            match self.add_address(interface, missing).await {
                Ok(()) => changes.added.push(missing),
                Err(error) => changes.refused.push((missing, error)),
            }
        }
        Ok(changes)
    }

    /// Lists the prefixes that are routed to an interface in a table, without those the kernel made itself.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn routes(&self, interface: IfIndex, table: RouteTable) -> Result<Vec<IpNet>, NetlinkError> {
        let routes = self.tables(&[table]).await?;
        Ok(routes.iter().filter(|route| is_ours(route, interface)).filter_map(destination).collect())
    }

    /// Lists what the main table knows besides default routes and those to `except`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn main_routes(&self, except: IfIndex) -> Result<Vec<MainRoute>, NetlinkError> {
        let describe = |route: &RouteMessage| {
            let prefix = destination(route).filter(|net| net.prefix_len() > 0)?;
            let is_gateway = |attribute: &RouteAttribute| {
                matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_))
            };
            let connected = route.header.kind == RouteType::Unicast
                && route.header.protocol == RouteProtocol::Kernel
                && !route.attributes.iter().any(is_gateway);
            Some(MainRoute { prefix, interface: output(route), connected })
        };
        let routes = self.tables(&[RouteTable::Main]).await?;
        Ok(routes.iter().filter(|route| output(route) != Some(except)).filter_map(describe).collect())
    }

    /// Routes a prefix to an interface, with [`ROUTE_METRIC`].
    ///
    /// # Errors
    /// See [`NetlinkError`]; a route that is there already is no error, unless it leads to another interface.
    pub async fn add_route(&self, interface: IfIndex, prefix: IpNet, table: RouteTable) -> Result<(), NetlinkError> {
        let message = in_table(route(interface, prefix), table);
        let result = self.handle.route().add(message).execute().await.map_err(failed("add a route"));
        let Err(NetlinkError::Refused { errno: Errno::EXIST, .. }) = result else {
            return result;
        };
        // The kernel goes by prefix and metric alone.
        let prefix = prefix.trunc();
        let ours = |route: &RouteMessage| {
            is_ours(route, interface) && destination(route) == Some(prefix) && metric(route) == ROUTE_METRIC
        };
        if self.tables(&[table]).await?.iter().any(ours) { Ok(()) } else { Err(NetlinkError::RouteTaken { prefix }) }
    }

    /// Removes a route that [`Self::add_route`] made.
    ///
    /// # Errors
    /// See [`NetlinkError`]; a route that is not there is no error.
    pub async fn remove_route(&self, interface: IfIndex, prefix: IpNet, table: RouteTable) -> Result<(), NetlinkError> {
        let result = self.handle.route().del(in_table(route(interface, prefix), table)).execute().await;
        unless(result.map_err(failed("remove a route")), &[Errno::SRCH, Errno::NOENT])
    }

    /// Makes an address this machine's own without giving it to the interface, so that nothing is sent from it by chance; the
    /// kernel forgets it with the interface.
    ///
    /// # Errors
    /// See [`NetlinkError`]; an address that is there already is no error.
    pub async fn add_local(&self, interface: IfIndex, address: IpAddr) -> Result<(), NetlinkError> {
        let result = self.handle.route().add(local_route(interface, address)).execute().await;
        unless(result.map_err(failed("add a local address")), &[Errno::EXIST])
    }

    /// Takes back what [`Self::add_local`] did.
    ///
    /// # Errors
    /// See [`NetlinkError`]; an address that is not there is no error.
    pub async fn remove_local(&self, interface: IfIndex, address: IpAddr) -> Result<(), NetlinkError> {
        let result = self.handle.route().del(local_route(interface, address)).execute().await;
        unless(result.map_err(failed("remove a local address")), &[Errno::SRCH, Errno::NOENT])
    }

    /// Makes `wanted` the only routes to an interface, which must be up; they lie in `table`, and none in the other one.
    ///
    /// # Errors
    /// Returns an error if routes cannot be listed or a stray one cannot be removed; refused additions are in
    /// [`Changes::refused`].
    pub async fn sync_routes(
        &self,
        interface: IfIndex,
        wanted: &[IpNet],
        table: RouteTable,
    ) -> Result<Changes, NetlinkError> {
        let all = self.tables(&[RouteTable::Own, RouteTable::Main]).await?;
        let fits = |route: &RouteMessage| table_of(route) == u32::from(table.number()) && metric(route) == ROUTE_METRIC;
        let present = all.into_iter().filter(|route| is_ours(route, interface)).collect();
        let (mut changes, missing) = self.remove_strays(present, wanted, fits).await?;
        for prefix in missing {
            match self.add_route(interface, prefix, table).await {
                Ok(()) => changes.added.push(prefix),
                Err(error) => changes.refused.push((prefix, error)),
            }
        }
        Ok(changes)
    }

    /// Makes `wanted` the only prefixes that [`TABLE`] leaves to the tables after it although it has a shorter one.
    ///
    /// # Errors
    /// As [`Self::sync_routes`].
    pub async fn sync_throws(&self, wanted: &[IpNet]) -> Result<Changes, NetlinkError> {
        let all = self.tables(&[RouteTable::Own]).await?;
        let present = all.into_iter().filter(is_throw).collect();
        let (mut changes, missing) = self.remove_strays(present, wanted, |_| true).await?;
        for prefix in missing {
            let result = self.handle.route().add(throw(prefix)).execute().await.map_err(failed("add a throw route"));
            match unless(result, &[Errno::EXIST]) {
                Ok(()) => changes.added.push(prefix),
                Err(error) => changes.refused.push((prefix, error)),
            }
        }
        Ok(changes)
    }

    /// Removes what of `present` is not wanted or does not fit; returns what is missing.
    async fn remove_strays(
        &self,
        present: Vec<RouteMessage>,
        wanted: &[IpNet],
        fits: impl Fn(&RouteMessage) -> bool,
    ) -> Result<(Changes, BTreeSet<IpNet>), NetlinkError> {
        let mut changes = Changes::default();
        let mut missing: BTreeSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        for stray in present {
            let prefix = destination(&stray);
            if prefix.is_some_and(|prefix| fits(&stray) && missing.remove(&prefix)) {
                continue;
            }
            let result = self.handle.route().del(stray).execute().await.map_err(failed("remove a route"));
            unless(result, &[Errno::SRCH, Errno::NOENT])?;
            changes.removed.extend(prefix);
        }
        Ok((changes, missing))
    }

    /// Lists all interfaces with their addresses, by number.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetlinkError> {
        let links = collect("list interfaces", self.handle.link().get().execute()).await?;
        let mut interfaces: BTreeMap<u32, Interface> =
            links.iter().filter_map(|link| Some((link.header.index, interface_of(link)?))).collect();
        for message in collect("list addresses", self.handle.address().get().execute()).await? {
            if let Some(interface) = interfaces.get_mut(&message.header.index)
                && is_usable(&message)
                && let Some(address) = address_of(&message)
            {
                interface.addresses.push(address);
            }
        }
        Ok(interfaces.into_values().collect())
    }

    /// Finds the interfaces of the default routes, the best metric first.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn default_routes(&self) -> Result<DefaultRoutes, NetlinkError> {
        let routes = self.tables(&[RouteTable::Main]).await?;
        let best = |any: IpAddr| {
            let default = routes.iter().filter(|route| {
                route.header.kind == RouteType::Unicast
                    && destination(route).is_some_and(|net| net.prefix_len() == 0 && net.addr() == any)
            });
            default.filter_map(|route| Some((route, output(route)?))).min_by_key(|(route, _)| metric(route))
        };
        let v4 = best(Ipv4Addr::UNSPECIFIED.into());
        Ok(DefaultRoutes {
            v4: v4.map(|(_, interface)| interface),
            v6: best(Ipv6Addr::UNSPECIFIED.into()).map(|(_, interface)| interface),
            gateway_v4: v4.and_then(|(route, _)| gateway_v4(route)),
        })
    }

    /// Lists the routes of some tables.
    async fn tables(&self, tables: &[RouteTable]) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let routes = collect("list routes", self.handle.route().get(family).execute()).await?;
            let is_in = |route: &RouteMessage| tables.iter().any(|table| table_of(route) == u32::from(table.number()));
            all.extend(routes.into_iter().filter(is_in));
        }
        Ok(all)
    }
}

fn interface_of(link: &LinkMessage) -> Option<Interface> {
    let mut name = None;
    let mut mtu_bytes = 0;
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(text) = attribute {
            name = Some(text.clone());
        } else if let LinkAttribute::Mtu(bytes) = attribute {
            mtu_bytes = *bytes;
        }
    }
    Some(Interface {
        index: IfIndex(link.header.index),
        name: name?,
        up: link.header.flags.contains(LinkFlags::Up),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        mtu_bytes,
        addresses: Vec::new(),
    })
}

/// Returns the interface's own address: on point-to-point interfaces `Address` is the other end's.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| if let AddressAttribute::Local(ip) = attribute { Some(*ip) } else { None });
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None });
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Dadfailed;
    !message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.intersects(unusable)))
}

fn route(interface: IfIndex, prefix: IpNet) -> RouteMessage {
    let prefix = prefix.trunc();
    let mut message = match prefix {
        IpNet::V4(net) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
            builder.scope(RouteScope::Link).output_interface(interface.0).priority(ROUTE_METRIC).build()
        }
        IpNet::V6(net) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.network(), net.prefix_len());
            builder.output_interface(interface.0).priority(ROUTE_METRIC).build()
        }
    };
    message.header.protocol = RouteProtocol::Static;
    message
}

/// Returns a route in a table. In our own it carries our protocol number.
fn in_table(mut message: RouteMessage, table: RouteTable) -> RouteMessage {
    message.header.table = table.number();
    if table == RouteTable::Own {
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
    }
    message
}

/// Returns the route that leaves a prefix to the tables after ours.
fn throw(prefix: IpNet) -> RouteMessage {
    let mut message = match prefix.trunc() {
        IpNet::V4(net) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
            builder.priority(ROUTE_METRIC).build()
        }
        IpNet::V6(net) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.network(), net.prefix_len());
            builder.priority(ROUTE_METRIC).build()
        }
    };
    message.header.kind = RouteType::Throw;
    in_table(message, RouteTable::Own)
}

/// Tells whether a route of our table leaves a prefix to others, and we made it.
fn is_throw(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Throw && route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn local_route(interface: IfIndex, address: IpAddr) -> RouteMessage {
    let mut message = route(interface, address.into());
    message.header.table = LOCAL_TABLE;
    message.header.kind = RouteType::Local;
    message.header.scope = if address.is_ipv4() { RouteScope::Host } else { RouteScope::Universe };
    message
}

/// Tells whether a route leads to `interface` alone and was not made by the kernel.
fn is_ours(route: &RouteMessage, interface: IfIndex) -> bool {
    output(route) == Some(interface)
        && route.header.kind == RouteType::Unicast
        && route.header.protocol != RouteProtocol::Kernel
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let ip = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet(ip)) = attribute {
            Some(IpAddr::V4(*ip))
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(ip)) = attribute {
            Some(IpAddr::V6(*ip))
        } else {
            None
        }
    });
    let ip = match (ip, route.header.address_family) {
        (Some(ip), _) => ip,
        (None, AddressFamily::Inet) => Ipv4Addr::UNSPECIFIED.into(),
        (None, AddressFamily::Inet6) => Ipv6Addr::UNSPECIFIED.into(),
        (None, _) => return None,
    };
    IpNet::new(ip, route.header.destination_prefix_length).ok()
}

fn output(route: &RouteMessage) -> Option<IfIndex> {
    route
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(IfIndex(*index)) } else { None })
}

fn gateway_v4(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet(gateway)) = attribute { Some(*gateway) } else { None }
    })
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = route
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None });
    metric.unwrap_or(0)
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None });
    table.unwrap_or(u32::from(route.header.table))
}

/// Gathers a dump. A dump that the kernel interrupted ends early; callers compare states and come again on a change.
async fn collect<T>(
    step: &'static str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    stream.try_collect().await.map_err(failed(step))
}

fn failed(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |error| {
        let errno = if let rtnetlink::Error::NetlinkError(message) = error {
            message.code.map(|code| code.get().saturating_abs())
        } else {
            None
        };
        match errno.map(Errno::from_raw_os_error) {
            Some(Errno::PERM) => NetlinkError::Denied { step },
            Some(errno) => NetlinkError::Refused { step, errno },
            None => NetlinkError::Broken { step },
        }
    }
}

/// Turns the refusals that mean "already so" into success.
fn unless(result: Result<(), NetlinkError>, already: &[Errno]) -> Result<(), NetlinkError> {
    match result {
        Err(NetlinkError::Refused { errno, .. }) if already.contains(&errno) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
