use super::*;
use crate::host::Cut;
use crate::userspace::line::{WorkerEnd, line};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use warren_os::TunRead;

const MTU: u16 = 1280;

/// Two nodes whose packet workers are one task that hands packets over.
pub(crate) struct World {
    pub(crate) nodes: [Network; 2],
    task: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn world() -> World {
    let bell = Arc::new(Notify::new());
    let [(one, first), (two, second)] = [1, 2].map(|number| {
        let (worker, stack) = line();
        let network = Network::new(MTU, [number; 32]);
        network.set_addresses(&own(number));
        let ring = Arc::clone(&bell);
        network.spawn(stack, MTU, move || ring.notify_one()).unwrap();
        (worker, network)
    });
    let task = tokio::spawn(async move {
        let (mut one, mut two) = (one, two);
        loop {
            hand_over(&mut one, &two);
            hand_over(&mut two, &one);
            bell.notified().await;
        }
    });
    World { nodes: [first, second], task }
}

fn hand_over(from: &mut WorkerEnd, to: &WorkerEnd) {
    let mut buffer = vec![0; 65_536];
    while let TunRead::Packet { length, header } = from.read(&mut buffer) {
        let cut = Cut::new(&mut buffer[..length], header).unwrap();
        for part in 0..cut.count() {
            let mut packet = vec![0; cut.length(part)];
            cut.write(part, &mut packet).unwrap();
            // What is lost comes again.
            let _ = to.write(None, &packet, std::slice::from_ref(&(0..packet.len())));
        }
    }
}

fn own(number: u8) -> [IpAddr; 2] {
    [IpAddr::from([100, 64, 0, number]), IpAddr::from([0xfd7a, 0, 0, 0, 0, 0, 0, u16::from(number)])]
}

#[tokio::test]
async fn a_peer_reaches_the_programs_of_this_machine_in_both_families() {
    let world = world();
    for (address, local) in own(2).into_iter().zip(["127.0.0.1:0", "[::1]:0"]) {
        let program = TcpListener::bind(local).await.unwrap();
        let port = program.local_addr().unwrap().port();
        let echo = tokio::spawn(async move {
            let (mut stream, _) = program.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap()
        });
        let mut stream = world.nodes[0].connect((address, port).into()).await.unwrap();
        let sent: Vec<u8> = (0..2_000_000_u32).map(|at| (at >> 7).to_le_bytes()[0]).collect();
        let mut got = Vec::new();
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (_, count) = tokio::join!(writing, read.read_to_end(&mut got));
        assert_eq!((count.unwrap(), got == sent), (sent.len(), true));
        assert_eq!(echo.await.unwrap(), 2_000_000);
    }
}

#[tokio::test]
async fn a_port_where_no_program_is_refuses() {
    let world = world();
    // Nobody else gets it while this one is there, and nobody listens on it.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = world.nodes[0].connect((own(2)[0], port).into()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let error = world.nodes[0].connect((own(2)[0], 0).into()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Other, "there is no such port");
}

/// A proxy is reached by programs of this machine alone, and who has the node inside opened nothing else to peers.
#[tokio::test]
async fn ports_that_are_kept_lead_to_no_program() {
    let world = world();
    let program = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = program.local_addr().unwrap().port();
    let to = (own(2)[0], port).into();
    world.nodes[0].connect(to).await.expect("it is open yet");
    world.nodes[1].keep_port(port);
    assert_eq!(world.nodes[0].connect(to).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = (own(2)[0], other.local_addr().unwrap().port()).into();
    world.nodes[0].connect(to).await.expect("others stay open");
    world.nodes[1].keep_all_ports();
    assert_eq!(world.nodes[0].connect(to).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_program_with_the_node_inside_listens_itself() {
    let world = world();
    let mut listener = world.nodes[1].listen(7).unwrap();
    assert_eq!(world.nodes[1].listen(7).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let serving = async {
        let mut stream = listener.accept().await.unwrap();
        assert_eq!((stream.local_addr(), stream.peer_addr().ip()), ((own(2)[0], 7).into(), own(1)[0]));
        stream.write_all(b"welcome").await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let asking = async {
        let mut stream = world.nodes[0].connect((own(2)[0], 7).into()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let (stream, text) = tokio::join!(serving, asking);
    assert_eq!(text, "welcome");
    drop((stream, listener));
    world.nodes[1].listen(7).expect("it is free again");
}

#[tokio::test]
async fn datagrams_reach_a_program_and_its_answers_the_peer() {
    let (mut worker, stack) = line();
    let network = Network::new(MTU, [1; 32]);
    network.set_addresses(&own(1));
    let bell = Arc::new(Notify::new());
    let ring = Arc::clone(&bell);
    network.spawn(stack, MTU, move || ring.notify_one()).unwrap();
    for (peer, own, local) in [(own(2)[0], own(1)[0], "127.0.0.1:0"), (own(2)[1], own(1)[1], "[::1]:0")] {
        let program = UdpSocket::bind(local).await.unwrap();
        let port = program.local_addr().unwrap().port();
        let question = super::super::datagram::packet((peer, 4000).into(), (own, port).into(), b"ask", 1280).unwrap();
        worker.write(None, &question, std::slice::from_ref(&(0..question.len()))).unwrap();
        let mut buffer = vec![0; 65_536];
        let (length, from) = program.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"ask");
        program.send_to(b"answer", from).await.unwrap();
        let length = loop {
            if let TunRead::Packet { length, .. } = worker.read(&mut buffer) {
                break length;
            }
            bell.notified().await;
        };
        let expected = super::super::datagram::packet((own, port).into(), (peer, 4000).into(), b"answer", 1280);
        assert_eq!(Some(buffer[..length].to_vec()), expected);
    }
}

/// As a program's UDP socket does on a machine with a TUN device.
#[tokio::test]
async fn datagrams_are_exchanged_with_a_peer() {
    let world = world();
    for (address, local) in own(2).into_iter().zip(["127.0.0.1:0", "[::1]:0"]) {
        let program = UdpSocket::bind(local).await.unwrap();
        let port = program.local_addr().unwrap().port();
        let mut flow = world.nodes[0].datagrams((address, port).into()).unwrap();
        flow.send(b"ask").unwrap();
        let mut buffer = [0; 64];
        let (length, from) = program.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"ask");
        program.send_to(b"answer", from).await.unwrap();
        assert_eq!(flow.receive().await, Some(b"answer".to_vec()));
        assert_eq!(flow.send(&[0; 2000]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    let to = (own(2)[0], 7).into();
    let flows: Vec<_> = (0..ASKED.0).map(|_| world.nodes[0].datagrams(to).unwrap()).collect();
    assert!(world.nodes[0].datagrams(to).is_err(), "they are bounded");
    drop(flows);
    world.nodes[0].datagrams(to).expect("and leave room when they end");
}
