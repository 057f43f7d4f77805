#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    reason = "tests name what they expect; their clock is paused"
)]

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;
use warren_wire::control::{Node, NodeId, PingRequest};
use warren_wire::key::{DiscoKey, MachineSecret};

use super::super::certificate::MachineCertificate;
use super::super::fake::{Call, Fake, MapStream, Mood, Reply};
use super::*;

/// A session against a fake server, seen from the daemon's side.
struct Fixture {
    server: Fake,
    calls: mpsc::Receiver<Call>,
    events: mpsc::Receiver<Event>,
    report: watch::Sender<Report>,
    flows: mpsc::Sender<crate::flow_log::Call>,
    stored: NodeKeys,
    disk_works: bool,
    task: tokio::task::JoinHandle<()>,
}

fn report() -> Report {
    Report {
        hostinfo: Hostinfo { hostname: "alpha".into(), ..Hostinfo::default() },
        net_info: None,
        endpoints: Vec::new(),
        disco_key: DiscoKey::from_bytes([9; 32]),
    }
}

fn start(login: Login, keys: NodeKeys) -> Fixture {
    start_with(login, keys, "http://127.0.0.1:8080", |_| None)
}

fn start_with(login: Login, keys: NodeKeys, url: &str, pin: impl Fn(&Fake) -> Option<MachineKey>) -> Fixture {
    start_as(login, keys, (url, None), pin)
}

fn start_as(
    login: Login,
    keys: NodeKeys,
    (url, certificate): (&str, Option<MachineCertificate>),
    pin: impl Fn(&Fake) -> Option<MachineKey>,
) -> Fixture {
    let (server, calls) = Fake::new();
    if certificate.is_some() {
        server.set_mood(Mood::Early);
    }
    let certificate = certificate.map(Arc::new);
    let (events, heard) = mpsc::channel(16);
    let report = watch::Sender::new(report());
    let target = Target {
        url: url.parse().unwrap(),
        pin: pin(&server),
        machine: Arc::new(MachineSecret::from_bytes([1; 32])),
        certificate,
    };
    let (flows, asked) = mpsc::channel(1);
    let session = Session {
        connector: server.clone(),
        target,
        keys: keys.clone(),
        login,
        report: report.subscribe(),
        flows: Some(Link::of(asked)),
        events,
    };
    let task = tokio::spawn(session.run());
    Fixture { server, calls, events: heard, report, flows, stored: keys, disk_works: true, task }
}

fn registered() -> NodeKeys {
    NodeKeys { current: Some(Arc::new(NodeSecret::from_bytes([3; 32]))), ..NodeKeys::default() }
}

fn own_node(key: NodeKey) -> MapResponse {
    MapResponse {
        node: Some(Box::new(Node { id: NodeId(1), key, machine_authorized: true, ..Node::default() })),
        ..MapResponse::default()
    }
}

impl Fixture {
    async fn call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    /// Returns the next event that is not about keys (which are "stored" here) nor about the clock.
    async fn event(&mut self) -> Event {
        loop {
            match self.events.recv().await.unwrap() {
                Event::Keys(keys, saved) => {
                    self.stored = keys;
                    let _ = saved.send(self.disk_works);
                }
                Event::ServerTime(_) => {}
                event => return event,
            }
        }
    }

    /// Stores keys until the next call to the server arrives.
    async fn call_while_storing(&mut self) -> Call {
        loop {
            tokio::select! {
                call = self.calls.recv() => return call.unwrap(),
                event = self.events.recv() => match event.unwrap() {
                    Event::Keys(keys, saved) => {
                        self.stored = keys;
                        let _ = saved.send(self.disk_works);
                    }
                    Event::ServerTime(_) => {}
                    event => panic!("{event:?}"),
                },
            }
        }
    }

    async fn register(&mut self) -> (RegisterRequest, oneshot::Sender<Reply>) {
        match self.call_while_storing().await {
            Call::Register(request, reply) => (request, reply),
            call => panic!("{call:?}"),
        }
    }

    async fn trouble(&mut self) -> Trouble {
        match self.event().await {
            Event::Trouble(trouble) => trouble,
            event => panic!("{event:?}"),
        }
    }

    /// Accepts the registration and answers the poll; returns it with the first report.
    async fn reach_poll(&mut self) -> (MapRequest, MapStream, MapRequest) {
        let (_, reply) = self.register().await;
        reply.send(Reply::ok()).unwrap();
        assert!(matches!(self.event().await, Event::Registered(_)));
        self.poll().await
    }

    async fn poll(&mut self) -> (MapRequest, MapStream, MapRequest) {
        let (mut poll, mut report) = (None, None);
        while poll.is_none() || report.is_none() {
            match self.call().await {
                Call::Poll(request, stream) => poll = Some((request, stream)),
                Call::Report(request) => report = Some(request),
                call => panic!("{call:?}"),
            }
        }
        assert!(matches!(self.event().await, Event::PollStarted(_)));
        let (request, stream) = poll.unwrap();
        (request, stream, report.unwrap())
    }
}

use warren_wire::control::RegisterRequest;

#[tokio::test(start_paused = true)]
async fn a_new_key_is_on_disk_before_the_server_hears_of_it() {
    let mut fixture = start(Login::AuthKey(AuthKey::new(" wkey-x \n")), NodeKeys::default());
    let (request, reply) = fixture.register().await;
    let pending = fixture.stored.pending.clone().unwrap().public();
    assert_eq!(request.node_key, pending);
    assert_eq!(request.auth.unwrap().auth_key, "wkey-x");
    assert_eq!(request.old_node_key, None);
    assert_eq!(request.version, CapabilityVersion(130));
    assert_eq!(request.hostinfo.unwrap().hostname, "alpha");
    assert!(fixture.stored.current.is_none());
    reply.send(Reply::ok()).unwrap();
    assert!(matches!(fixture.event().await, Event::Registered(_)));
    assert_eq!(fixture.stored.current.clone().unwrap().public(), pending);
    assert!(fixture.stored.pending.is_none());
}

#[tokio::test(start_paused = true)]
async fn without_disk_the_server_hears_of_no_new_key() {
    let mut fixture = start(Login::Resume, NodeKeys::default());
    fixture.disk_works = false;
    assert_eq!(fixture.trouble().await.kind, TroubleKind::Local);
    assert!(fixture.calls.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_restart_registers_the_same_key_and_asks_nobody() {
    let mut fixture = start(Login::Resume, registered());
    let (request, reply) = fixture.register().await;
    assert_eq!(request.node_key, registered().current.unwrap().public());
    assert_eq!((request.auth, request.expiry, request.followup.as_str()), (None, None, ""));
    reply.send(Reply::ok()).unwrap();
    assert!(matches!(fixture.event().await, Event::Registered(_)));
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_storing_and_registering_goes_on_with_the_stored_key() {
    let pending = Arc::new(NodeSecret::from_bytes([4; 32]));
    let keys = NodeKeys { pending: Some(Arc::clone(&pending)), ..NodeKeys::default() };
    let mut fixture = start(Login::Resume, keys);
    assert_eq!(fixture.register().await.0.node_key, pending.public());
}

#[tokio::test(start_paused = true)]
async fn an_interactive_login_waits_on_the_page_and_names_the_old_key() {
    let mut fixture = start(Login::Interactive, registered());
    let old = registered().current.unwrap().public();
    let (request, reply) = fixture.register().await;
    assert_ne!(request.node_key, old);
    assert_eq!(request.old_node_key, Some(old));
    let page = || RegisterResponse { auth_url: "https://s/register/1".into(), ..RegisterResponse::default() };
    reply.send(Reply::Json(Box::new(page()))).unwrap();
    assert!(matches!(fixture.event().await, Event::Visit(url) if url == "https://s/register/1"));
    let (followup, reply) = fixture.register().await;
    assert_eq!(followup.followup, "https://s/register/1");
    assert_eq!(followup.node_key, request.node_key);
    // A person takes longer than any timeout.
    tokio::time::sleep(Duration::from_secs(600)).await;
    reply.send(Reply::ok()).unwrap();
    assert!(matches!(fixture.event().await, Event::Registered(_)));
    assert_eq!(fixture.stored.current.clone().unwrap().public(), request.node_key);
    assert_eq!(fixture.stored.previous, Some(old));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_login_page_is_replaced_by_the_new_one() {
    let mut fixture = start(Login::Resume, NodeKeys::default());
    for number in 1..3 {
        let (_, reply) = fixture.register().await;
        let auth_url = format!("https://s/register/{number}");
        reply.send(Reply::Json(Box::new(RegisterResponse { auth_url, ..RegisterResponse::default() }))).unwrap();
        assert!(matches!(fixture.event().await, Event::Visit(url) if url.ends_with(&number.to_string())));
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_key_is_replaced_once() {
    let mut fixture = start(Login::Resume, registered());
    let expired = || RegisterResponse { node_key_expired: true, ..RegisterResponse::default() };
    let (first, reply) = fixture.register().await;
    reply.send(Reply::Json(Box::new(expired()))).unwrap();
    let (second, reply) = fixture.register().await;
    assert_ne!(first.node_key, second.node_key);
    assert_eq!(second.old_node_key, Some(first.node_key));
    reply.send(Reply::Json(Box::new(expired()))).unwrap();
    let trouble = fixture.trouble().await;
    assert_eq!(trouble.kind, TroubleKind::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_refused_auth_key_ends_the_session_with_the_servers_words() {
    let mut fixture = start(Login::AuthKey(AuthKey::new("wkey-x")), NodeKeys::default());
    let (_, reply) = fixture.register().await;
    let response = RegisterResponse { error: "auth key has expired".into(), ..RegisterResponse::default() };
    reply.send(Reply::Json(Box::new(response))).unwrap();
    let Event::Refused(trouble) = fixture.event().await else { panic!() };
    assert_eq!(trouble.kind, TroubleKind::Refused);
    assert!(trouble.text.contains("auth key has expired") && !trouble.text.contains("wkey-x"));
    assert!(fixture.events.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_server_says_when_to_come_again() {
    for status in [429, 503] {
        let mut fixture = start(Login::Resume, registered());
        let (_, reply) = fixture.register().await;
        reply.send(Reply::Status(status, "busy", Some("17"))).unwrap();
        let trouble = fixture.trouble().await;
        assert!(trouble.text.contains("busy"), "{}", trouble.text);
        let asked = Instant::now();
        // That the network changes is no reason to come sooner.
        fixture.report.send_modify(|report| report.endpoints = vec![at_endpoint("192.0.2.1:1")]);
        fixture.register().await;
        assert!(asked.elapsed() >= Duration::from_secs(17) && asked.elapsed() < Duration::from_secs(22));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_too_busy_for_a_connection_says_when_to_come_again() {
    let mut fixture = start(Login::Resume, registered());
    fixture.server.set_mood(Mood::Busy);
    assert!(fixture.trouble().await.text.contains("busy"));
    let asked = Instant::now();
    fixture.server.set_mood(Mood::Normal);
    fixture.register().await;
    assert!(asked.elapsed() >= Duration::from_secs(20) && asked.elapsed() < Duration::from_secs(26));
}

/// All nodes of a server that ends notice it at once; they must not all come back at once.
#[tokio::test(start_paused = true)]
async fn nodes_of_a_server_that_ends_come_back_at_different_moments() {
    let mut waits = Vec::new();
    for _ in 0..40 {
        let mut fixture = start(Login::Resume, registered());
        let (_, stream, _) = fixture.reach_poll().await;
        sleep(SETTLED + Duration::from_millis(1)).await;
        drop(stream);
        assert_eq!(fixture.trouble().await.attempts, 1);
        let gone = Instant::now();
        fixture.poll().await;
        waits.push(gone.elapsed());
    }
    assert!(waits.iter().all(|wait| *wait <= SPREAD + Duration::from_millis(5)), "{waits:?}");
    // Of 40 moments, none in a fifth of the time: 1 in 7,000 for each fifth.
    let fifths: BTreeSet<u128> = waits.iter().map(|wait| wait.as_millis() * 5 / (SPREAD.as_millis() + 6)).collect();
    assert!(fifths.len() >= 3, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn another_network_is_tried_at_once() {
    let mut fixture = start(Login::Resume, registered());
    fixture.report.send_modify(|report| report.endpoints = vec![at_endpoint("192.0.2.1:1")]);
    fixture.server.set_mood(Mood::Down);
    for _ in 0..60 {
        fixture.trouble().await;
    }
    // Another port of the same address is no other network.
    let (asked, before) = (Instant::now(), fixture.server.connections());
    fixture.report.send_modify(|report| report.endpoints = vec![at_endpoint("192.0.2.1:2")]);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(fixture.server.connections(), before);
    fixture.server.set_mood(Mood::Normal);
    fixture.report.send_modify(|report| report.endpoints = vec![at_endpoint("198.51.100.1:2")]);
    fixture.register().await;
    assert!(asked.elapsed() < Duration::from_secs(11), "{:?}", asked.elapsed());
}

fn at_endpoint(address: &str) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), kind: warren_wire::control::EndpointType::Local }
}

#[tokio::test(start_paused = true)]
async fn the_map_arrives_in_pieces_and_pings_are_answered_once() {
    let mut fixture = start(Login::Resume, registered());
    let (request, stream, first_report) = fixture.reach_poll().await;
    let key = registered().current.unwrap().public();
    assert_eq!((request.node_key, request.compress.as_str(), request.keep_alive), (key, "zstd", true));
    assert_eq!((first_report.stream, first_report.omit_peers, first_report.read_only), (false, true, false));
    assert_eq!(first_report.disco_key, Some(DiscoKey::from_bytes([9; 32])));
    stream.send(&MapResponse { keep_alive: true, ..MapResponse::default() }).await;
    let ping = PingRequest {
        url: "https://anything/machine/c2n/token".into(),
        url_is_noise: true,
        types: "c2n".into(),
        payload: warren_wire::control::Blob(b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ..PingRequest::default()
    };
    for _ in 0..2 {
        stream.send(&MapResponse { ping_request: Some(ping.clone()), ..own_node(key) }).await;
        assert!(matches!(fixture.event().await, Event::Map(response) if response.ping_request.is_none()));
    }
    match fixture.call().await {
        Call::Other(method, path, body) => {
            assert_eq!((method, path.as_str()), (http::Method::POST, "/machine/c2n/token"));
            assert!(body.starts_with(b"HTTP/1.1 200"));
        }
        call => panic!("{call:?}"),
    }
    let head = PingRequest { url: "https://s/ping/1".into(), url_is_noise: true, ..PingRequest::default() };
    stream.send(&MapResponse { keep_alive: true, ping_request: Some(head), ..MapResponse::default() }).await;
    assert!(matches!(fixture.call().await, Call::Other(method, path, _) if method == "HEAD" && path == "/ping/1"));
    // The ping that came twice was answered once, and one that is not for Noise not at all.
    let elsewhere = PingRequest { url: "https://example.com/".into(), ..PingRequest::default() };
    stream.send(&MapResponse { ping_request: Some(elsewhere), ..own_node(key) }).await;
    fixture.event().await;
    assert!(fixture.calls.try_recv().is_err());
}

/// Sets the only endpoint to one with this port.
fn endpoint(report: &mut Report, port: u16) {
    let kind = warren_wire::control::EndpointType::Stun;
    report.endpoints = vec![Endpoint { address: ([192, 0, 2, 1], port).into(), kind }];
}

#[tokio::test(start_paused = true)]
async fn only_changes_are_reported() {
    let mut fixture = start(Login::Resume, registered());
    let (poll, _stream, _) = fixture.reach_poll().await;
    assert!(poll.ends_rules(), "the server may leave it to this node to end rules");
    fixture.report.send_modify(|report| endpoint(report, 7));
    let Call::Report(request) = fixture.call().await else { panic!() };
    assert_eq!((request.endpoints, request.endpoint_types.len()), (vec!["192.0.2.1:7".parse().unwrap()], 1));
    fixture.report.send_modify(|_| {});
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fixture.calls.try_recv().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whenever changes come: one after a silence is reported without delay, every one is reported (itself or a newer
    /// one in its place) before the spacing is over, and reports keep that spacing.
    #[test]
    fn changes_are_reported_soon_and_not_too_often(
        waits in proptest::collection::vec(prop_oneof![3 => 0_u64..15, 1 => 25_u64..40, 1 => 100_u64..200], 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (changes, reports) = runtime.block_on(async {
            let mut fixture = start(Login::Resume, registered());
            let (_, _stream, _) = fixture.reach_poll().await;
            sleep(Duration::from_secs(1)).await;
            let begin = Instant::now();
            let (mut changes, mut reports) = (Vec::new(), Vec::new());
            for (port, wait) in (1..).zip(waits.into_iter().chain([1000])) {
                changes.push(begin.elapsed());
                fixture.report.send_modify(|report| endpoint(report, port));
                let next = sleep(Duration::from_millis(wait));
                tokio::pin!(next);
                loop {
                    tokio::select! {
                        () = &mut next => break,
                        call = fixture.calls.recv() => {
                            let Some(Call::Report(request)) = call else { panic!("{call:?}") };
                            reports.push((begin.elapsed(), usize::from(request.endpoints[0].port())));
                        }
                    }
                }
            }
            (changes, reports)
        });
        for (number, at) in changes.iter().enumerate() {
            let (reported, _) = reports.iter().find(|(_, port)| *port > number).unwrap();
            prop_assert!(*reported - *at <= REPORT_SPACING, "change {} at {:?}: {:?}", number, at, reports);
            let last = reports.iter().map(|(at, _)| *at).rfind(|report| report < at);
            if last.is_none_or(|last| *at - last >= REPORT_SPACING) {
                prop_assert_eq!(reported, at, "change {} came after a silence: {:?}", number, &reports);
            }
        }
        for pair in reports.windows(2) {
            prop_assert!(pair[1].0 - pair[0].0 >= REPORT_SPACING, "{:?}", reports);
            prop_assert!(pair[1].1 > pair[0].1, "{:?}", reports);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_poll_and_the_next_one_does_not_register_again() {
    let mut fixture = start(Login::Resume, registered());
    let (_, stream, _) = fixture.reach_poll().await;
    stream.send(&own_node(registered().current.unwrap().public())).await;
    assert!(matches!(fixture.event().await, Event::Map(_)));
    let quiet_since = Instant::now();
    let trouble = fixture.trouble().await;
    assert!(trouble.text.contains("silent"), "{}", trouble.text);
    assert_eq!(quiet_since.elapsed().as_secs(), WATCHDOG.as_secs());
    stream.closed().await;
    fixture.poll().await;
    assert_eq!((fixture.server.connections(), fixture.server.key_requests()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn keepalives_keep_the_poll() {
    let mut fixture = start(Login::Resume, registered());
    let (_, stream, _) = fixture.reach_poll().await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stream.send(&MapResponse { keep_alive: true, ..MapResponse::default() }).await;
    }
    assert!(fixture.events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_ends_keeps_nothing_alive() {
    let mut fixture = start(Login::Resume, registered());
    let (_, stream, _) = fixture.reach_poll().await;
    let begun = Instant::now();
    let dribble = tokio::spawn(async move {
        // The length of a message, then a byte of it every minute.
        stream.send_raw(vec![0, 1, 0, 0]).await;
        while !stream.is_closed() {
            stream.send_raw(vec![0x28]).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    });
    assert!(fixture.trouble().await.text.contains("silent"));
    assert_eq!(begun.elapsed().as_secs(), WATCHDOG.as_secs());
    dribble.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_status_is_a_refusal() {
    for status in [401, 403] {
        let mut fixture = start(Login::AuthKey(AuthKey::new("wkey-x")), NodeKeys::default());
        let (_, reply) = fixture.register().await;
        reply.send(Reply::Status(status, "invalid pre auth key", None)).unwrap();
        let Event::Refused(trouble) = fixture.event().await else { panic!() };
        assert!(trouble.text.contains("invalid pre auth key"), "{}", trouble.text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_that_failed_is_sent_again() {
    let mut fixture = start(Login::Resume, registered());
    let (_, _stream, _) = fixture.reach_poll().await;
    fixture.server.set_report_status(500);
    fixture.report.send_modify(|report| report.hostinfo.hostname = "beta".into());
    let Call::Report(_) = fixture.call().await else { panic!() };
    fixture.server.set_report_status(200);
    let Call::Report(again) = fixture.call().await else { panic!() };
    assert_eq!(again.hostinfo.unwrap().hostname, "beta");
}

#[tokio::test(start_paused = true)]
async fn the_flow_log_reaches_its_server_and_no_other() {
    use crate::flow_log::Reply as Outcome;

    let mut fixture = start(Login::Resume, registered());
    let ask = |server, path| {
        let (reply, answer) = oneshot::channel();
        (crate::flow_log::Call { server, path, body: Bytes::from_static(b"batches"), reply }, answer)
    };
    // It waits for a connection.
    let (call, answer) = ask(fixture.server.key(), "/machine/warren/flows");
    fixture.flows.send(call).await.unwrap();
    let (_, stream, _) = fixture.reach_poll().await;
    let Call::Other(method, path, body) = fixture.call().await else { panic!() };
    assert_eq!((method, path.as_str(), &body[..]), (http::Method::POST, "/machine/warren/flows", &b"batches"[..]));
    assert!(matches!(answer.await.unwrap(), Outcome::Done(body) if body.is_empty()));
    // Another server's is not shown to this one; who asks learns that at once.
    let (call, answer) = ask(MachineKey::from_bytes([77; 32]), "/machine/warren/flows");
    fixture.flows.send(call).await.unwrap();
    assert!(answer.await.is_err());
    let mut streams = Vec::new();
    // After the connection has broken the next one takes what waits.
    drop(stream);
    let (call, answer) = ask(fixture.server.key(), "/machine/warren/log-key");
    fixture.flows.send(call).await.unwrap();
    loop {
        tokio::select! {
            call = fixture.calls.recv() => match call.unwrap() {
                Call::Register(_, reply) => reply.send(Reply::ok()).unwrap(),
                Call::Other(_, path, _) => break assert_eq!(path, "/machine/warren/log-key"),
                Call::Poll(_, stream) => streams.push(stream),
                Call::Report(_) => {}
            },
            event = fixture.events.recv() => drop(event.unwrap()),
        }
    }
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_asked_with_growing_patience() {
    let mut fixture = start(Login::Resume, registered());
    let (_, stream, _) = fixture.reach_poll().await;
    fixture.server.set_mood(Mood::Down);
    drop(stream);
    let before = fixture.server.connections();
    let gone = Instant::now();
    for attempt in 1..=30 {
        let trouble = fixture.trouble().await;
        assert_eq!(trouble.attempts, attempt);
        assert_eq!(trouble.kind, if attempt == 1 { TroubleKind::Server } else { TroubleKind::Unreachable });
    }
    assert_eq!(fixture.server.connections() - before, 29);
    assert!(gone.elapsed() > Duration::from_secs(30));
    fixture.server.set_mood(Mood::Normal);
    fixture.poll().await;
}

#[tokio::test(start_paused = true)]
async fn a_map_for_another_node_is_not_passed_on() {
    let mut fixture = start(Login::Resume, registered());
    let (_, stream, _) = fixture.reach_poll().await;
    stream.send(&own_node(NodeKey::from_bytes([8; 32]))).await;
    assert!(fixture.trouble().await.text.contains("another node key"));
    let (_, stream, _) = fixture.poll().await;
    stream.send(&MapResponse { domain: "x".into(), ..MapResponse::default() }).await;
    assert!(fixture.trouble().await.text.contains("does not describe this node"));
}

#[tokio::test(start_paused = true)]
async fn a_hostile_stream_is_cut_off() {
    let mut fixture = start(Login::Resume, registered());
    let (_, stream, _) = fixture.reach_poll().await;
    stream.send_raw(vec![0xff; 8]).await;
    assert_eq!(fixture.trouble().await.kind, TroubleKind::Server);
    let (_, stream, _) = fixture.poll().await;
    // A small frame that unpacks to more than is allowed.
    let bomb = zstd_bomb();
    stream.send_raw(bomb).await;
    assert_eq!(fixture.trouble().await.kind, TroubleKind::Server);
}

/// A frame of a few kilobytes with a document of 65 MiB.
fn zstd_bomb() -> Vec<u8> {
    let json = vec![b' '; 65 << 20];
    mapframe::encode(&json, mapframe::Compression::Zstd).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_early_payload_makes_no_difference() {
    let mut fixture = start(Login::Resume, registered());
    fixture.server.set_mood(Mood::Early);
    fixture.reach_poll().await;
}

#[tokio::test(start_paused = true)]
async fn the_pinned_key_is_the_only_one_that_is_accepted() {
    let other = MachineSecret::from_bytes([77; 32]).public();
    let mut fixture = start_with(Login::Resume, registered(), "http://server.example", |_| Some(other));
    let trouble = fixture.trouble().await;
    assert_eq!(trouble.kind, TroubleKind::ServerKey);
    assert!(trouble.text.contains(&fixture.server.key().to_string()), "{}", trouble.text);
    assert!(fixture.calls.try_recv().is_err());

    let mut fixture = start_with(Login::Resume, registered(), "http://server.example", |server| Some(server.key()));
    fixture.reach_poll().await;
}

#[tokio::test(start_paused = true)]
async fn without_tls_and_pin_only_loopback_is_spoken_to() {
    for (url, wants_pin) in [
        ("http://10.0.0.1", true),
        ("http://server.example:8080", true),
        ("http://[::1]:8080", false),
        ("https://s", false),
    ] {
        let mut fixture = start_with(Login::Resume, registered(), url, |_| None);
        if wants_pin {
            let trouble = fixture.trouble().await;
            assert_eq!((trouble.kind, fixture.server.connections()), (TroubleKind::ServerKey, 0), "{url}");
        } else {
            fixture.reach_poll().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_plain_http_does_not_reach_is_reached_by_tls() {
    let url = "http://server.example:8080";
    for (mood, most) in [(Mood::OnlyTls, 1), (Mood::PlainSilent, 600)] {
        let mut fixture = start_with(Login::Resume, registered(), url, |server| Some(server.key()));
        fixture.server.set_mood(mood);
        let begun = Instant::now();
        fixture.reach_poll().await;
        assert!(begun.elapsed() < Duration::from_millis(most), "{mood:?}: {:?}", begun.elapsed());
    }
    // The second way is no way around the pin.
    let other = MachineSecret::from_bytes([77; 32]).public();
    let mut fixture = start_with(Login::Resume, registered(), url, |_| Some(other));
    fixture.server.set_mood(Mood::OnlyTls);
    fixture.trouble().await;
    assert!(fixture.calls.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_changed_its_key_is_named_as_such() {
    let mut fixture = start_with(Login::Resume, registered(), "https://s", |server| Some(server.key()));
    let (_, stream, _) = fixture.reach_poll().await;
    fixture.server.change_key();
    drop(stream);
    // The stream ends, then the handshake fails, then the server is asked for its key.
    let kinds = [fixture.trouble().await.kind, fixture.trouble().await.kind, fixture.trouble().await.kind];
    assert_eq!(kinds, [TroubleKind::Server, TroubleKind::Server, TroubleKind::ServerKey]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_server_is_told_in_one_line() {
    let mut fixture = start(Login::Resume, registered());
    fixture.server.set_mood(Mood::Proxy);
    let text = fixture.trouble().await.text;
    assert!(text.contains("502") && text.contains("upgrades"), "{text}");
    fixture.server.set_mood(Mood::Silent);
    let trouble = fixture.trouble().await;
    assert_eq!(trouble.kind, TroubleKind::Unreachable);
    assert!(trouble.text.contains("in time"), "{}", trouble.text);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_the_server_forgot_registers_again() {
    let mut fixture = start(Login::Resume, registered());
    let (_, reply) = fixture.register().await;
    reply.send(Reply::Status(404, "no such node", None)).unwrap();
    assert!(fixture.trouble().await.text.contains("no such node"));
    fixture.register().await;
}

#[tokio::test(start_paused = true)]
async fn the_session_ends_with_its_daemon() {
    let mut fixture = start(Login::Resume, registered());
    fixture.server.set_mood(Mood::Down);
    fixture.trouble().await;
    drop(fixture.events);
    fixture.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_logout_tells_the_server_a_past_expiry() {
    let (server, mut calls) = Fake::new();
    let machine = Arc::new(MachineSecret::from_bytes([1; 32]));
    let target = Target { url: "http://localhost".parse().unwrap(), pin: None, machine, certificate: None };
    let key = NodeKey::from_bytes([3; 32]);
    let task = tokio::spawn(async move { log_out(&server, &target, key, &Hostinfo::default()).await });
    let Call::Register(request, reply) = calls.recv().await.unwrap() else { panic!() };
    assert_eq!(request.node_key, key);
    assert_eq!(request.expiry.unwrap().unix_seconds(), 123);
    reply.send(Reply::ok()).unwrap();
    task.await.unwrap().unwrap();
}

#[test]
fn an_auth_key_does_not_print() {
    let login = Login::AuthKey(AuthKey::new("wkey-secret"));
    assert!(!format!("{login:?}").contains("secret"));
}

/// Writes a certificate and its key into a folder.
fn certificate(folder: &std::path::Path) -> (MachineCertificate, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(vec!["laptop.example".to_owned()]).unwrap();
    let files = MachineCertificate { certificate: folder.join("machine.pem"), key: folder.join("machine.key") };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    (files, made.cert.der().to_vec())
}

#[tokio::test(start_paused = true)]
async fn a_machine_with_a_certificate_proves_it_for_each_connection() {
    let folder = std::env::temp_dir().join(format!("warren-node-proof-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (files, der) = certificate(&folder);
    let mut fixture = start_as(Login::Resume, registered(), ("http://127.0.0.1:8080", Some(files.clone())), |_| None);
    let (request, reply) = fixture.register().await;
    assert_eq!(request.signature_type.unwrap().text(), "\"warren-machine-proof-1\"");
    assert_eq!(request.device_cert.0, der);
    let binding = ProofBinding {
        challenge: crate::control_client::fake::challenge().public(),
        server: fixture.server.key(),
        machine: MachineSecret::from_bytes([1; 32]).public(),
        node: registered().current.unwrap().public(),
    };
    let valid = request.signature.0;
    assert!(verifies(&files, &binding, &der, &valid), "it signs what the connection, server, machine and node are");
    let other = ProofBinding { node: NodeKey::from_bytes([9; 32]), ..binding };
    assert!(!verifies(&files, &other, &der, &valid));
    reply.send(Reply::ok()).unwrap();
    assert!(matches!(fixture.event().await, Event::Registered(_)));
    drop(fixture.poll().await);
    fixture.trouble().await;
    let (again, _) = fixture.register().await;
    assert!(again.signature.0 != valid && again.device_cert.0 == der, "the next connection, another signature");
    // Without the key there is nothing to show, and the user hears of it.
    std::fs::remove_file(&files.key).unwrap();
    assert!(files.prove(&other).unwrap_err().contains("machine.key"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Tells whether a signature is that of the key in the files.
fn verifies(files: &MachineCertificate, binding: &ProofBinding, der: &[u8], signature: &[u8]) -> bool {
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(&files.key).unwrap()).unwrap();
    let public = rcgen::PublicKeyData::der_bytes(&key);
    let algorithm = &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1;
    aws_lc_rs::signature::UnparsedPublicKey::new(algorithm, public).verify(&binding.message(der), signature).is_ok()
}
