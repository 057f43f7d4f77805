use super::*;
use crate::testing::in_own_network;
use crate::tun::Tun;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn open(name: &str) -> Tun {
    Tun::open(&name.parse().unwrap(), 1280, crate::Offload::Off).unwrap()
}

/// Gives devices back and waits until they are gone. Another test that starts a program holds a copy for a moment.
async fn give_back(netlink: &Netlink, devices: impl Sized) {
    let mut watch = LinkWatch::new().unwrap();
    drop(devices);
    while netlink.interfaces().await.unwrap().iter().any(|one| one.name.starts_with('w')) {
        watch.changed().await.unwrap();
    }
}

async fn interface(netlink: &Netlink, index: IfIndex) -> Interface {
    netlink.interfaces().await.unwrap().into_iter().find(|one| one.index == index).unwrap()
}

#[test]
fn an_interface_gets_addresses_and_routes_and_every_change_can_be_repeated() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let tun = open("wtest0");
        let index = tun.index();
        let addresses = nets(&["100.64.0.7/32", "fd7a:115c:a1e0::7/128"]);
        let routes = nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"]);
        for round in 0..2 {
            netlink.set_up(index).await.unwrap();
            for &address in &addresses {
                netlink.add_address(index, address).await.unwrap();
            }
            for &route in &routes {
                netlink.add_route(index, route, RouteTable::Own).await.unwrap();
            }
            let found = interface(&netlink, index).await;
            assert_eq!((found.name.as_str(), found.up, found.mtu_bytes), ("wtest0", true, 1280), "round {round}");
            assert_eq!(found.addresses, addresses, "no address but ours, link-local neither");
            assert_eq!(netlink.routes(index, RouteTable::Own).await.unwrap(), routes);
        }
        netlink.set_mtu(index, 1400).await.unwrap();
        assert_eq!(interface(&netlink, index).await.mtu_bytes, 1400);
        for _ in 0..2 {
            netlink.remove_route(index, routes[0], RouteTable::Own).await.unwrap();
            netlink.remove_address(index, addresses[0]).await.unwrap();
        }
        assert_eq!(netlink.routes(index, RouteTable::Own).await.unwrap(), routes[1..]);
        assert_eq!(interface(&netlink, index).await.addresses, addresses[1..]);
    });
}

#[test]
fn synchronising_removes_strays_and_adds_what_is_missing() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let tun = open("wtest0");
        let index = tun.index();
        netlink.set_up(index).await.unwrap();
        let first = nets(&["100.64.0.7/32", "100.64.0.8/32"]);
        assert_eq!(netlink.sync_addresses(index, &first).await.unwrap().added, first);
        let second = nets(&["100.64.0.8/32", "fd7a:115c:a1e0::7/128"]);
        let changes = netlink.sync_addresses(index, &second).await.unwrap();
        assert_eq!((changes.added, changes.removed), (nets(&["fd7a:115c:a1e0::7/128"]), nets(&["100.64.0.7/32"])));
        assert_eq!(netlink.sync_addresses(index, &second).await.unwrap(), Changes::default());

        let first = nets(&["10.1.0.0/16", "100.64.0.0/10", "fd7a:115c:a1e0::/48"]);
        assert_eq!(netlink.sync_routes(index, &first, RouteTable::Own).await.unwrap().added, first);
        let second = nets(&["100.64.0.0/10", "10.2.0.9/16"]);
        let changes = netlink.sync_routes(index, &second, RouteTable::Own).await.unwrap();
        assert_eq!(changes.added, nets(&["10.2.0.0/16"]));
        assert_eq!(changes.removed, nets(&["10.1.0.0/16", "fd7a:115c:a1e0::/48"]));
        assert_eq!(netlink.sync_routes(index, &second, RouteTable::Own).await.unwrap(), Changes::default());
    });
}

#[test]
fn nothing_is_left_when_the_device_goes() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let before =
            (netlink.interfaces().await.unwrap(), netlink.tables(&[RouteTable::Main, RouteTable::Own]).await.unwrap());
        let tun = open("wtest0");
        netlink.set_up(tun.index()).await.unwrap();
        netlink.sync_addresses(tun.index(), &nets(&["100.64.0.7/32", "fd7a:115c:a1e0::7/128"])).await.unwrap();
        netlink
            .sync_routes(tun.index(), &nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"]), RouteTable::Own)
            .await
            .unwrap();
        give_back(&netlink, tun).await;
        assert_eq!(
            (netlink.interfaces().await.unwrap(), netlink.tables(&[RouteTable::Main, RouteTable::Own]).await.unwrap()),
            before
        );
    });
}

#[test]
fn a_connected_network_wins_over_the_same_prefix_through_the_tunnel() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let (lan, tun) = (open("wlan0"), open("wtest0"));
        for device in [&lan, &tun] {
            netlink.set_up(device.index()).await.unwrap();
        }
        netlink.add_route(tun.index(), "192.168.7.0/24".parse().unwrap(), RouteTable::Main).await.unwrap();
        netlink.add_address(lan.index(), "192.168.7.1/24".parse().unwrap()).await.unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"x", "192.168.7.9:9").unwrap();
        let mut buffer = [0; 2048];
        assert!(matches!(lan.read(&mut buffer), Ok(crate::TunRead::Packet { .. })));
        assert!(matches!(tun.read(&mut buffer), Ok(crate::TunRead::Empty)));
    });
}

/// Two tunnels that number their nodes from one range: the second must learn that it gets no packet.
#[test]
fn a_route_that_another_interface_has_is_named() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let (first, second) = (open("wtest0"), open("wtest1"));
        let routes = nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"]);
        for device in [&first, &second] {
            netlink.set_up(device.index()).await.unwrap();
        }
        netlink.sync_routes(first.index(), &routes, RouteTable::Own).await.unwrap();
        let changes = netlink.sync_routes(second.index(), &routes, RouteTable::Own).await.unwrap();
        let taken = |prefix: &IpNet| (*prefix, NetlinkError::RouteTaken { prefix: *prefix });
        assert_eq!(changes.refused, routes.iter().map(taken).collect::<Vec<_>>());
        assert_eq!(changes.added, []);
        assert_eq!(netlink.routes(first.index(), RouteTable::Own).await.unwrap(), routes);
        let mut watch = LinkWatch::new().unwrap();
        drop(first);
        while netlink.interfaces().await.unwrap().iter().any(|one| one.name == "wtest0") {
            watch.changed().await.unwrap();
        }
        assert_eq!(netlink.sync_routes(second.index(), &routes, RouteTable::Own).await.unwrap().added, routes);
    });
}

#[test]
fn packets_flow_between_the_kernel_and_the_device() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let tun = open("wtest0");
        netlink.set_up(tun.index()).await.unwrap();
        netlink.add_address(tun.index(), "100.64.0.7/32".parse().unwrap()).await.unwrap();
        netlink.add_route(tun.index(), "100.64.0.0/10".parse().unwrap(), RouteTable::Main).await.unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket.send_to(b"ping", "100.64.0.9:7").unwrap();
        let mut buffer = [0; 2048];
        let Ok(crate::TunRead::Packet { length: len, .. }) = tun.read(&mut buffer) else { panic!("no packet") };
        let packet = &mut buffer[..len];
        assert_eq!(&packet[12..20], &[100, 64, 0, 7, 100, 64, 0, 9]);
        // Turn it round: swapped addresses and ports leave both checksums right.
        let (mut source, mut target) = ([0; 4], [0; 4]);
        source.copy_from_slice(&packet[12..16]);
        target.copy_from_slice(&packet[16..20]);
        packet[12..16].copy_from_slice(&target);
        packet[16..20].copy_from_slice(&source);
        packet[20..24].rotate_left(2);
        tun.write(packet).unwrap();
        let mut answer = [0; 16];
        let (len, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..len], from), (&b"ping"[..], "100.64.0.9:7".parse().unwrap()));
    });
}

#[test]
fn the_best_default_route_is_found() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        assert_eq!(netlink.default_routes().await.unwrap(), DefaultRoutes::default());
        let (a, b) = (open("wa"), open("wb"));
        for device in [&a, &b] {
            netlink.set_up(device.index()).await.unwrap();
        }
        let mut better = route(b.index(), "0.0.0.0/0".parse().unwrap());
        better.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Priority(_)));
        netlink.add_route(a.index(), "0.0.0.0/0".parse().unwrap(), RouteTable::Main).await.unwrap();
        assert_eq!(
            netlink.default_routes().await.unwrap(),
            DefaultRoutes { v4: Some(a.index()), ..DefaultRoutes::default() }
        );
        netlink.handle.route().add(better).execute().await.unwrap();
        netlink.add_route(a.index(), "::/0".parse().unwrap(), RouteTable::Main).await.unwrap();
        let found = netlink.default_routes().await.unwrap();
        assert_eq!(found, DefaultRoutes { v4: Some(b.index()), v6: Some(a.index()), gateway_v4: None });
    });
}

#[test]
fn the_gateway_of_the_default_route_is_found() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let device = open("wg");
        netlink.set_up(device.index()).await.unwrap();
        netlink.add_address(device.index(), "192.168.7.2/24".parse().unwrap()).await.unwrap();
        let gateway = Ipv4Addr::new(192, 168, 7, 1);
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(device.index().0).build();
        netlink.handle.route().add(route).execute().await.unwrap();
        assert_eq!(netlink.default_routes().await.unwrap().gateway_v4, Some(gateway));
    });
}

fn listed(words: &str) -> String {
    let output = std::process::Command::new("ip").args(words.split(' ')).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Where the kernel sends packets to an address.
fn way(to: &str, mark: &str) -> String {
    let family = if to.contains(':') { "-6" } else { "-4" };
    listed(&format!("{family} route get {to} mark {mark}"))
}

#[test]
fn marked_packets_never_enter_the_tunnel_and_local_networks_stay_outside() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let before =
            (listed("rule"), listed("-6 rule"), listed("route show table all"), listed("-6 route show table all"));
        let (lan, tun) = (open("wlan0"), open("wtest0"));
        for device in [&lan, &tun] {
            netlink.set_up(device.index()).await.unwrap();
        }
        for address in nets(&["192.168.7.1/24", "fd00:7::1/64"]) {
            netlink.add_address(lan.index(), address).await.unwrap();
        }
        for default in nets(&["0.0.0.0/0", "::/0"]) {
            netlink.add_route(lan.index(), default, RouteTable::Main).await.unwrap();
            netlink.add_route(tun.index(), default, RouteTable::Own).await.unwrap();
        }
        for _ in 0..2 {
            netlink.add_rules().await.unwrap();
        }
        for to in ["9.9.9.9", "192.168.7.9", "2a00::9", "fd00:7::9"] {
            assert!(way(to, "0x80000").contains("wlan0"), "{}", way(to, "0x80000"));
            assert!(way(to, "0x180000").contains("wtest0"), "another mark: {}", way(to, "0x180000"));
            assert!(way(to, "0").contains("wtest0"), "{}", way(to, "0"));
        }
        // What the main table knows is known as such, and can be left to it.
        let known = netlink.main_routes(tun.index()).await.unwrap();
        let connected: Vec<IpNet> = known.iter().filter(|route| route.connected).map(|route| route.prefix).collect();
        let local = nets(&["192.168.7.0/24", "fd00:7::/64"]);
        assert!(local.iter().all(|net| connected.contains(net)), "{known:?}");
        for _ in 0..2 {
            netlink.sync_throws(&local).await.unwrap();
        }
        assert!(way("192.168.7.9", "0").contains("wlan0") && way("fd00:7::9", "0").contains("wlan0"));
        assert!(way("9.9.9.9", "0").contains("wtest0") && way("2a00::9", "0").contains("wtest0"));
        assert_eq!(netlink.sync_throws(&[]).await.unwrap().removed.len(), 2);
        // Without a way out they stay here.
        netlink.remove_route(lan.index(), "0.0.0.0/0".parse().unwrap(), RouteTable::Main).await.unwrap();
        assert!(!way("9.9.9.9", "0x80000").contains("dev"), "{}", way("9.9.9.9", "0x80000"));
        netlink.remove_rules().await.unwrap();
        give_back(&netlink, (lan, tun)).await;
        let after =
            (listed("rule"), listed("-6 rule"), listed("route show table all"), listed("-6 route show table all"));
        assert_eq!(after, before);
    });
}

#[test]
fn rules_of_others_stay() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let words = "rule add fwmark 0x80000/0xff0000 lookup main pref 5210";
        assert_eq!(listed(words), "");
        let before = listed("rule");
        netlink.add_rules().await.unwrap();
        netlink.remove_rules().await.unwrap();
        assert_eq!(listed("rule"), before);
        assert!(before.contains("5210:"), "{before}");
    });
}

#[test]
fn changes_on_a_missing_interface_name_the_step() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let error = netlink.set_up(IfIndex(4_000_000)).await.unwrap_err();
        assert_eq!(error, NetlinkError::Refused { step: "take the interface up", errno: Errno::NODEV });
    });
}

#[test]
fn a_watch_reports_a_storm_of_changes_once() {
    in_own_network(async || {
        let netlink = Netlink::connect().unwrap();
        let mut watch = LinkWatch::new().unwrap();
        let tun = open("wtest0");
        netlink.set_up(tun.index()).await.unwrap();
        netlink.add_address(tun.index(), "100.64.0.7/32".parse().unwrap()).await.unwrap();
        tokio::time::pause();
        watch.changed().await.unwrap();
        let again = tokio::time::timeout(std::time::Duration::from_secs(60), watch.changed()).await;
        assert!(again.is_err(), "nothing changed since");
        netlink.set_down(tun.index()).await.unwrap();
        watch.changed().await.unwrap();
    });
}
