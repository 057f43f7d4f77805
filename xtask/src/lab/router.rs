//! Routers of the lab: hosts on the switch that other hosts are behind, with a NAT and perhaps a port mapping service.

use super::{Host, Lab, Process, ip};
use anyhow::{Context, Result};
use std::path::Path;

/// How a router maps the UDP ports of those behind it, by RFC 4787. They filter by address and port, if not said
/// otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// One outside port for all destinations, usually that of the inside.
    Easy,
    /// Another outside port for every destination.
    Hard,
    /// As easy, but whoever sends to a port that is in use comes in.
    Cone,
}

impl Lab {
    /// Makes a host behind `router`, which becomes a NAT. A router on the switch has the outside address `9.91.0.n` with
    /// the number of its address there: one that port mapping services take for a public one.
    pub(crate) fn add_behind(&mut self, router: &Host, nat: Nat, name: &str) -> Result<Host> {
        let inside = router.inside();
        let host = self.make(name, format!("{inside}.2"))?;
        let namespace = &host.namespace;
        if router.outside() != router.address {
            ip(&format!("-n {} address add {}/24 dev eth0", router.namespace, router.outside()))?;
        }
        for words in [
            format!("-n {} link add lan0 type veth peer name eth0 netns {namespace}", router.namespace),
            format!("-n {} address add {inside}.1/24 dev lan0", router.namespace),
            format!("-n {} link set lan0 up", router.namespace),
            format!("-n {namespace} link set lo up"),
            format!("-n {namespace} address add {inside}.2/24 dev eth0"),
            format!("-n {namespace} link set eth0 up"),
            format!("-n {namespace} route add default via {inside}.1"),
        ] {
            ip(&words)?;
        }
        // Taking away one of two addresses of a subnet leaves the other.
        router.run("sysctl").args("-q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.promote_secondaries=1").output()?;
        router.route_with(nat, &inside)?;
        Ok(host)
    }

    /// Makes a host in a network of its own behind `router`, which passes packets on as they are: 192.168.n.2 and
    /// fd92:n::2 with the number of the router's address on the switch. It has no route beyond its network.
    pub(crate) fn add_lan(&mut self, router: &Host, name: &str) -> Result<Host> {
        let (inside, inside6) = (router.inside(), router.inside6());
        let host = self.make(name, format!("{inside}.2"))?;
        let namespace = &host.namespace;
        for words in [
            format!("-n {} link add lan0 type veth peer name eth0 netns {namespace}", router.namespace),
            format!("-n {} address add {inside}.1/24 dev lan0", router.namespace),
            format!("-n {} address add {inside6}::1/64 dev lan0 nodad", router.namespace),
            format!("-n {} link set lan0 up", router.namespace),
            format!("-n {namespace} link set lo up"),
            format!("-n {namespace} address add {inside}.2/24 dev eth0"),
            format!("-n {namespace} address add {inside6}::2/64 dev eth0 nodad"),
            format!("-n {namespace} link set eth0 up"),
        ] {
            ip(&words)?;
        }
        Ok(host)
    }
}

impl Lab {
    /// Makes a host in one network behind several routers: 192.168.n.2 and fd92:n::2 with the number of the first router's
    /// address on the switch. The routers have the addresses that end in 1, 3, 4 …. It has no route beyond its network.
    pub(crate) fn add_shared_lan(&mut self, routers: &[&Host], name: &str) -> Result<Host> {
        let first = routers.first().context("a network needs a router")?;
        let (inside, inside6) = (first.inside(), first.inside6());
        let host = self.make(name, format!("{inside}.2"))?;
        let switch = self.namespace("sw");
        let bridge = format!("br-{name}");
        ip(&format!("-n {switch} link add {bridge} type bridge"))?;
        ip(&format!("-n {switch} link set {bridge} up"))?;
        let members = [(&host, "eth0", 2)]
            .into_iter()
            .chain(routers.iter().enumerate().map(|(at, router)| (*router, "lan0", if at == 0 { 1 } else { at + 2 })));
        for (member, device, number) in members {
            let (namespace, port) = (&member.namespace, format!("{name}-{number}"));
            for words in [
                format!("-n {switch} link add {port} type veth peer name {device} netns {namespace}"),
                format!("-n {switch} link set {port} master {bridge} up"),
                format!("-n {namespace} link set lo up"),
                format!("-n {namespace} address add {inside}.{number}/24 dev {device}"),
                format!("-n {namespace} address add {inside6}::{number}/64 dev {device} nodad"),
                format!("-n {namespace} link set {device} up"),
            ] {
                ip(&words)?;
            }
        }
        Ok(host)
    }

    /// Takes a host's plug out of the switch, without its noticing, or puts it back.
    pub(crate) fn unplug(&self, host: &Host, out: bool) -> Result<()> {
        let (_, number) = host.address.rsplit_once('.').unwrap_or_default();
        let bridge = if out { "nomaster" } else { "master br0" };
        ip(&format!("-n {} link set p{number} {bridge}", self.namespace("sw")))
    }

    /// Likewise for a router of a network of [`Self::add_shared_lan`], which is the `number`th there, from 0.
    pub(crate) fn unplug_lan(&self, name: &str, number: usize, out: bool) -> Result<()> {
        let number = if number == 0 { 1 } else { number + 2 };
        let bridge = if out { "nomaster".to_owned() } else { format!("master br-{name}") };
        ip(&format!("-n {} link set {name}-{number} {bridge}", self.namespace("sw")))
    }
}

impl Host {
    /// Drops all packets that this host would pass on, or lets them pass again.
    pub(crate) fn block_forwarding(&self, block: bool) -> Result<()> {
        let rules = if block {
            "table inet lab {\n chain forward { type filter hook forward priority 0; policy drop; }\n}\n"
        } else {
            "delete table inet lab\n"
        };
        self.rules(rules)
    }

    /// The networks that [`Lab::add_lan`] puts behind this host: IPv4, then IPv6.
    pub(crate) fn lan(&self) -> [String; 2] {
        [format!("{}.0/24", self.inside()), format!("{}::/64", self.inside6())]
    }

    /// The host's addresses if it is in such a network: IPv4, then IPv6.
    pub(crate) fn lan_addresses(&self) -> [String; 2] {
        let number = self.address.split('.').nth(2).unwrap_or_default();
        [self.address.clone(), format!("fd92:{number}::2")]
    }

    fn inside6(&self) -> String {
        format!("fd92:{}", self.address.rsplit('.').next().unwrap_or_default())
    }

    /// The address that hosts behind this router are seen with.
    pub(crate) fn outside(&self) -> String {
        self.address.replacen("10.91.", "9.91.", 1)
    }

    /// The first three numbers of the network behind this router.
    fn inside(&self) -> String {
        let number = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let mut parts = self.address.rsplit('.');
        let (last, third) = (number(parts.next()), number(parts.next()));
        // Behind a carrier: another network than the router's own.
        if self.address.starts_with("192.168.") { format!("172.20.{third}") } else { format!("192.168.{last}") }
    }

    /// The address of the router that this host is behind.
    pub(crate) fn gateway(&self) -> String {
        let (network, _) = self.address.rsplit_once('.').unwrap_or_default();
        format!("{network}.1")
    }

    fn route_with(&self, nat: Nat, inside: &str) -> Result<()> {
        let random = if nat == Nat::Hard { " fully-random" } else { "" };
        // Ports that were used, and by whom; conntrack keeps them, as there is nobody else behind the router.
        let (map, learn, find) = if nat == Nat::Cone {
            (
                "map cone { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 60s; size 1000; }\n ",
                "iifname \"lan0\" meta l4proto udp update @cone { udp sport : ip saddr . udp sport }; ",
                "iifname \"eth0\" meta l4proto udp dnat ip to udp dport map @cone; ",
            )
        } else {
            ("", "", "")
        };
        let accept = if nat == Nat::Cone { "ct status dnat accept; " } else { "" };
        // Unasked packets to the router itself are dropped, as by routers at home: one that accepts them spoils hole
        // punching. The empty chains are for the port mapping service.
        let rules = format!(
            "table inet filter {{\n {map}\
             chain input {{ type filter hook input priority 0; iifname \"eth0\" ct state new meta l4proto udp drop; }}\n \
             chain forward {{ type filter hook forward priority 0; policy drop; {learn}ct state established,related accept; {accept}\
             iifname \"lan0\" accept; jump miniupnpd; }}\n \
             chain miniupnpd {{ }}\n \
             chain prerouting {{ type nat hook prerouting priority -100; {find}jump prerouting_miniupnpd; }}\n \
             chain prerouting_miniupnpd {{ }}\n \
             chain postrouting {{ type nat hook postrouting priority 100; jump postrouting_miniupnpd; \
             ip saddr {inside}.0/24 oifname \"eth0\" snat ip to {}{random}; }}\n \
             chain postrouting_miniupnpd {{ }}\n}}\n",
            self.outside()
        );
        self.rules(&rules)
    }

    /// Gives those behind this router another outside address, which it must have.
    pub(crate) fn renumber(&self, outside: &str) -> Result<()> {
        let rules = self.run("nft").args("-a list chain inet filter postrouting").output()?;
        for line in rules.lines().filter(|line| line.contains(" snat ip to ")) {
            let (rule, handle) = line.split_once(" # handle ").context("a rule without a handle")?;
            let (head, tail) = rule.split_once(" snat ip to ").context("a rule without an address")?;
            let random = if tail.contains("fully-random") { "fully-random" } else { "" };
            self.run("nft").args(&format!("delete rule inet filter postrouting handle {handle}")).output()?;
            let words = format!("add rule inet filter postrouting {} snat ip to {outside} {random}", head.trim());
            self.run("nft").arg(words).output()?;
        }
        Ok(())
    }

    /// Starts miniupnpd on this router: UPnP for those behind it, and with `pcp` NAT-PMP and PCP.
    pub(crate) fn map_ports(&self, pcp: bool) -> Result<Process> {
        let pcp_word = if pcp { "yes" } else { "no" };
        let config = format!(
            "ext_ifname=eth0\next_ip={}\nlistening_ip=lan0\nenable_natpmp={pcp_word}\nenable_upnp=yes\nsecure_mode=yes\n\
             upnp_nat_table_name=filter\nuuid=00000000-0000-0000-0000-000000000001\n\
             lease_file={}\n\
             allow 1024-65535 192.168.0.0/16 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            self.outside(),
            self.dir.join(format!("{}.leases", self.name)).display(),
        );
        let file = self.dir.join(format!("{}-miniupnpd.conf", self.name));
        std::fs::write(&file, config)?;
        // Its usual file would keep a second one, on another router, from starting.
        let pid = self.dir.join(format!("{}-miniupnpd.pid", self.name));
        let words = ["-d", "-f", &file.to_string_lossy(), "-P", &pid.to_string_lossy()];
        let mut daemon = self.spawn("miniupnpd", Path::new("miniupnpd"), &words)?;
        let sign = if pcp { "Listening for NAT-PMP/PCP" } else { "HTTP listening on port" };
        daemon.wait_log(sign, crate::fleet::PATIENCE)?;
        Ok(daemon)
    }
}
