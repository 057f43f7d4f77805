use super::*;
use crate::testing::in_own_network;
use crate::wait::{Watched, poll};
use std::time::Duration;

fn loopback(socket: &UdpSocket) -> SocketAddr {
    let ip: IpAddr =
        if socket.local_addr().is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(ip, socket.port())
}

/// Receives until `want` datagrams have come.
fn receive(socket: &UdpSocket, want: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = RecvBatch::new();
    let mut all = Vec::new();
    while all.len() < want {
        let ready = poll([Some(Watched::readable(socket))], Some(Duration::from_secs(5))).unwrap();
        assert!(ready[0].readable, "{} of {want} datagrams came", all.len());
        socket.recv_batch(&mut batch).unwrap();
        all.extend(batch.datagrams().map(|datagram| (datagram.from, datagram.bytes.to_vec())));
    }
    all
}

fn batches_keep_order_and_senders(family: Family) {
    let (a, b) = (UdpSocket::bind(family, 0).unwrap(), UdpSocket::bind(family, 0).unwrap());
    let payloads: Vec<Vec<u8>> = (0..150_u8).map(|at| vec![at; usize::from(at)]).collect();
    let outgoing: Vec<Outgoing<'_>> = payloads.iter().map(|bytes| Outgoing { to: loopback(&b), bytes }).collect();
    let report = a.send_batch(&outgoing);
    assert_eq!(report, SendReport { sent: 150, ..SendReport::default() });
    let received = receive(&b, 150);
    assert!(received.iter().all(|(from, _)| *from == loopback(&a)));
    assert_eq!(received.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), payloads);
    assert_eq!(b.recv_batch(&mut RecvBatch::new()), Ok(0));
}

#[test]
fn batches_keep_order_and_senders_over_ipv4() {
    batches_keep_order_and_senders(Family::V4);
}

#[test]
fn batches_keep_order_and_senders_over_ipv6() {
    if UdpSocket::bind(Family::V6, 0).is_ok_and(|probe| probe.send(loopback(&probe), b"x").is_ok()) {
        batches_keep_order_and_senders(Family::V6);
    } else {
        println!("skipped: no IPv6 on the loopback interface");
    }
}

#[test]
fn a_taken_port_falls_back_to_a_free_one() {
    let first = UdpSocket::bind(Family::V4, 0).unwrap();
    let second = UdpSocket::bind(Family::V4, first.port()).unwrap();
    assert_ne!(second.port(), 0);
    assert_ne!(second.port(), first.port());
}

#[test]
fn both_families_share_a_port() {
    let (v4, v6) = UdpSocket::bind_pair(0, Offload::Probe).unwrap();
    if let Some(v6) = v6 {
        assert!(v6.local_addr().is_ipv6());
        assert_eq!(v6.port(), v4.port());
    }
}

#[test]
fn a_refused_datagram_does_not_stop_the_ones_behind_it() {
    let (a, b) = (UdpSocket::bind(Family::V4, 0).unwrap(), UdpSocket::bind(Family::V4, 0).unwrap());
    let huge = vec![0; 70_000];
    let outgoing = [
        Outgoing { to: loopback(&b), bytes: b"one" },
        Outgoing { to: loopback(&b), bytes: &huge },
        Outgoing { to: "[::1]:9".parse().unwrap(), bytes: b"wrong family" },
        Outgoing { to: loopback(&b), bytes: b"two" },
    ];
    let report = a.send_batch(&outgoing);
    assert_eq!((report.sent, report.refused, report.error, report.blocked), (2, 2, Some(Errno::MSGSIZE), false));
    let received: Vec<Vec<u8>> = receive(&b, 2).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(received, [b"one".to_vec(), b"two".to_vec()]);
}

/// Packets that wait for a neighbour's hardware address fill the socket's buffer until it is known.
#[test]
fn a_full_buffer_ends_the_batch_and_what_was_not_tried_can_be_sent_later() {
    in_own_network(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        handle.link().add(rtnetlink::LinkVeth::new("wtest0", "wtest1").build()).execute().await.unwrap();
        let netlink = crate::Netlink::connect().unwrap();
        let ends: Vec<_> =
            netlink.interfaces().await.unwrap().into_iter().filter(|one| one.name.starts_with("wtest")).collect();
        for end in &ends {
            netlink.set_up(end.index).await.unwrap();
        }
        let near = ends.iter().find(|end| end.name == "wtest0").unwrap().index;
        netlink.add_address(near, "192.0.2.1/24".parse().unwrap()).await.unwrap();

        let socket = UdpSocket::bind(Family::V4, 0).unwrap();
        socket.socket.set_send_buffer_size(16 << 10).unwrap();
        let to: SocketAddr = "192.0.2.9:9".parse().unwrap();
        let outgoing = [Outgoing { to, bytes: &[0; 1000] }; 200];
        let first = socket.send_batch(&outgoing);
        assert!(first.blocked && first.sent > 0 && first.sent < 200, "{first:?}");
        assert_eq!((first.refused, first.error), (0, None));
        assert_eq!(socket.send_batch(&outgoing), SendReport { blocked: true, ..SendReport::default() });
        assert_eq!(socket.send(to, b"x"), Err(Errno::AGAIN));

        let known = handle.neighbours().add(near.0, to.ip()).link_layer_address(&[2, 0, 0, 0, 0, 9]).replace();
        known.execute().await.unwrap();
        let mut rest = &outgoing[first.sent..];
        while !rest.is_empty() {
            assert!(poll([Some(Watched::writable(&socket))], Some(Duration::from_secs(5))).unwrap()[0].writable);
            let report = socket.send_batch(rest);
            assert_eq!((report.refused, report.error), (0, None));
            rest = &rest[report.sent..];
        }
    });
}

/// A device that takes less than the datagram: what must stay whole is refused, all else is cut, before and after.
#[test]
fn a_datagram_that_must_stay_whole_is_refused_where_another_is_cut() {
    in_own_network(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        handle.link().add(rtnetlink::LinkVeth::new("wtest0", "wtest1").build()).execute().await.unwrap();
        let netlink = crate::Netlink::connect().unwrap();
        let all = netlink.interfaces().await.unwrap();
        for end in all.iter().filter(|one| one.name.starts_with("wtest")) {
            netlink.set_up(end.index).await.unwrap();
        }
        let near = all.iter().find(|end| end.name == "wtest0").unwrap().index;
        netlink.add_address(near, "192.0.2.1/24".parse().unwrap()).await.unwrap();
        netlink.add_address(near, "2001:db8::1/64".parse().unwrap()).await.unwrap();
        for (family, to) in [(Family::V4, "192.0.2.9:9"), (Family::V6, "[2001:db8::9]:9")] {
            let to: SocketAddr = to.parse().unwrap();
            let known = handle.neighbours().add(near.0, to.ip()).link_layer_address(&[2, 0, 0, 0, 0, 9]).replace();
            known.execute().await.unwrap();
            let headers = if to.is_ipv4() { 28 } else { 48 };
            let socket = UdpSocket::bind(family, 0).unwrap();
            for _ in 0..2 {
                assert_eq!(socket.send(to, &[0; 3000]), Ok(()), "{to}");
                assert_eq!(socket.send_whole(to, &[0; 3000]), Err(Errno::MSGSIZE), "{to}");
                assert_eq!(socket.send_whole(to, &vec![0; 1500 - headers]), Ok(()), "{to}");
            }
        }
    });
}

#[test]
fn a_datagram_longer_than_a_slot_is_dropped_and_the_next_kept() {
    let a = UdpSocket::bind(Family::V4, 0).unwrap();
    let b = UdpSocket::bind_with(Family::V4, 0, Offload::Off).unwrap();
    for bytes in [vec![1; 9000], vec![2; 100]] {
        a.send(loopback(&b), &bytes).unwrap();
    }
    assert_eq!(receive(&b, 1), [(loopback(&a), vec![2; 100])]);
}

/// Runs of every shape, from a socket with offloads or without to one with or without.
fn runs_arrive(from: Offload, to: Offload) {
    let (a, b) = (UdpSocket::bind_with(Family::V4, 0, from).unwrap(), UdpSocket::bind_with(Family::V4, 0, to).unwrap());
    for (segment, count, last) in
        [(96, 1, 96), (96, 200, 1), (1312, 50, 1000), (1312, 49, 1312), (1, 3, 1), (5000, 13, 7)]
    {
        let run: Vec<u8> =
            (0..segment * (count - 1) + last).map(|at| u8::try_from(at / segment % 251).unwrap()).collect();
        let report = a.send_run(loopback(&b), &run, segment);
        assert_eq!(report, SendReport { sent: count, ..SendReport::default() }, "{count} of {segment} bytes");
        let received: Vec<Vec<u8>> = receive(&b, count).into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(received, run.chunks(segment).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
}

#[test]
fn runs_arrive_as_they_were_sent_with_offloads_on_both_sides_on_one_and_on_none() {
    for from in [Offload::Probe, Offload::Off] {
        for to in [Offload::Probe, Offload::Off] {
            runs_arrive(from, to);
        }
    }
}

#[test]
fn a_run_travels_as_one_where_the_kernel_can() {
    let (a, b) = (UdpSocket::bind(Family::V4, 0).unwrap(), UdpSocket::bind(Family::V4, 0).unwrap());
    assert_eq!(a.offloads(), (true, true), "Linux has both since 5.0");
    assert_eq!(a.send_run(loopback(&b), &[7; 1000], 100).sent, 10);
    let mut batch = RecvBatch::new();
    assert!(poll([Some(Watched::readable(&b))], Some(Duration::from_secs(5))).unwrap()[0].readable);
    assert_eq!(b.recv_batch(&mut batch), Ok(1));
    assert_eq!(batch.parts().0, [Run { from: loopback(&a), start: 0, length: 1000, segment: 100 }]);
}

#[test]
fn what_cannot_go_as_a_run_is_tried_one_by_one() {
    let (a, b) = (UdpSocket::bind(Family::V4, 0).unwrap(), UdpSocket::bind(Family::V4, 0).unwrap());
    // Longer than the loopback interface's packets: the kernel cuts nothing into pieces that must be cut again.
    let report = a.send_run(loopback(&b), &vec![0; 3 * 66_000], 66_000);
    assert_eq!((report.sent, report.refused, report.error), (0, 3, Some(Errno::MSGSIZE)));
    let report = a.send_run("[::1]:9".parse().unwrap(), &[0; 300], 100);
    assert_eq!((report.sent, report.refused), (0, 3));
    assert_eq!(a.send_run(loopback(&b), &[0; 300], 0), SendReport::default());
    assert_eq!(a.send_run(loopback(&b), &[], 100), SendReport::default());
    assert!(a.offloads().1, "that says nothing about other destinations");
}

#[test]
fn addresses_are_read_from_the_kernels_layout() {
    let mut name = EMPTY_NAME;
    assert_eq!(address_of(&name), None);
    let mut write = |bytes: &[u8]| name.0[..bytes.len()].copy_from_slice(bytes);
    write(&2_u16.to_ne_bytes());
    let mut bytes = name;
    bytes.0[2..8].copy_from_slice(&[0x12, 0x34, 192, 0, 2, 1]);
    assert_eq!(address_of(&bytes), Some("192.0.2.1:4660".parse().unwrap()));
    let mut bytes = EMPTY_NAME;
    bytes.0[..2].copy_from_slice(&10_u16.to_ne_bytes());
    bytes.0[3] = 9;
    bytes.0[4..8].copy_from_slice(&[1; 4]);
    bytes.0[8..10].copy_from_slice(&[0xfe, 0x80]);
    bytes.0[23] = 1;
    bytes.0[24..28].copy_from_slice(&7_u32.to_ne_bytes());
    assert_eq!(address_of(&bytes), Some(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 7).into()));
}
