#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

use super::super::{MapServices, PortMapper};
use super::*;
use proptest::prelude::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const TARGET: MapTarget = MapTarget { gateway: GATEWAY, own: Ipv4Addr::new(192, 168, 1, 20), port: 41_641, upnp: true };
/// Where the gateway serves its description, and its calls.
const HTTP: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 49_152);

/// A gateway that speaks UPnP alone, and a mapper behind it. Written from the documents, not from the code under test.
struct Bench {
    mapper: PortMapper,
    now: Instant,
    /// Kind of its service.
    kind: &'static str,
    /// Errors for the next calls that would map.
    faults: Vec<u16>,
    answers: bool,
    mapped: Vec<u16>,
    leases: Vec<u32>,
    address: &'static str,
}

impl Bench {
    fn new() -> Self {
        Self {
            mapper: PortMapper::new([7; 32]),
            now: Instant::now() + Duration::from_secs(100_000),
            kind: "urn:schemas-upnp-org:service:WANIPConnection:1",
            faults: Vec::new(),
            answers: true,
            mapped: Vec::new(),
            leases: Vec::new(),
            address: "203.0.113.9",
        }
    }

    fn start(mut self) -> Self {
        self.mapper.set_target(Some(TARGET), self.now);
        self.run(Duration::from_secs(20));
        self
    }

    fn settle(&mut self) {
        loop {
            if let Some(MapTransmit { to, bytes }) = self.mapper.poll_transmit() {
                let text = String::from_utf8_lossy(&bytes);
                if to.port() == 1900 && self.answers && text.contains("InternetGatewayDevice") {
                    assert!(text.starts_with("M-SEARCH * HTTP/1.1\r\n"), "{text}");
                    let answer = "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                        Location: http://192.168.1.1:49152/root.xml\r\n\r\n";
                    // From whatever port it likes.
                    let from = SocketAddrV4::new(GATEWAY, 40_000);
                    self.mapper.handle_datagram(from, answer.as_bytes(), self.now);
                }
            } else if let Some(MapRequest { to, bytes }) = self.mapper.poll_request() {
                assert_eq!(to, HTTP);
                let answer = self.answers.then(|| self.serve(&String::from_utf8(bytes).unwrap()));
                self.mapper.handle_response(answer.as_ref().map(String::as_bytes), self.now);
            } else {
                return;
            }
        }
    }

    fn serve(&mut self, request: &str) -> String {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("Host: 192.168.1.1:49152\r\n"), "{head}");
        let value = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>")).unwrap();
            rest.split_once(&format!("</{name}>")).unwrap().0.to_owned()
        };
        let ok = |inner: &str| format!("HTTP/1.1 200 OK\r\n\r\n<s:Envelope><s:Body>{inner}</s:Body></s:Envelope>");
        if head.starts_with("GET /root.xml HTTP/1.1") {
            let kind = self.kind;
            return ok(&format!("<service><serviceType>{kind}</serviceType><controlURL>/ctl</controlURL></service>"));
        }
        assert!(head.starts_with("POST /ctl HTTP/1.1"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        if head.contains("#DeletePortMapping\"") {
            let port: u16 = value("NewExternalPort").parse().unwrap();
            self.mapped.retain(|mapped| *mapped != port);
            return ok("");
        }
        if head.contains("#GetExternalIPAddress\"") {
            return ok(&format!("<NewExternalIPAddress>{}</NewExternalIPAddress>", self.address));
        }
        assert_eq!(value("NewProtocol"), "UDP");
        assert_eq!(value("NewInternalClient"), "192.168.1.20");
        assert_eq!(value("NewInternalPort"), "41641");
        let port: u16 = value("NewExternalPort").parse().unwrap();
        assert_ne!(port, 0, "this would map every port");
        self.leases.push(value("NewLeaseDuration").parse().unwrap());
        if let Some(code) = self.faults.pop() {
            return format!(
                "HTTP/1.1 500 Internal Server Error\r\n\r\n<s:Fault><detail><UPnPError><errorCode>{code}</errorCode>\
                 </UPnPError></detail></s:Fault>"
            );
        }
        let any = head.contains("#AddAnyPortMapping\"");
        assert_eq!(any, self.kind.ends_with("WANIPConnection:2"));
        let port = if any { 5000 } else { port };
        self.mapped.retain(|mapped| *mapped != port);
        self.mapped.push(port);
        ok(&if any { format!("<NewReservedPort>{port}</NewReservedPort>") } else { String::new() })
    }

    fn run(&mut self, time: Duration) {
        self.settle();
        let end = self.now + time;
        while let Some(next) = self.mapper.poll_timeout().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.mapper.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }
}

#[test]
fn a_port_is_mapped_renewed_and_given_back() {
    let mut bench = Bench::new().start();
    let mapping = bench.mapper.mapping().unwrap();
    assert_eq!((*mapping.ip(), bench.mapped.as_slice()), (OUTSIDE, [mapping.port()].as_slice()));
    assert_eq!(bench.mapper.services(), MapServices { upnp: true, ..MapServices::default() });
    assert_eq!(bench.leases, [7200]);
    bench.run(Duration::from_secs(3600));
    assert_eq!((bench.mapper.mapping(), bench.leases.len()), (Some(mapping), 2), "the same port, once more");
    bench.mapper.set_target(None, bench.now);
    bench.settle();
    assert_eq!((bench.mapper.mapping(), bench.mapped.len()), (None, 0));
}

#[test]
fn a_gateway_may_choose_the_port() {
    let bench = Bench { kind: "urn:schemas-upnp-org:service:WANIPConnection:2", ..Bench::new() }.start();
    assert_eq!(bench.mapper.mapping(), Some(SocketAddrV4::new(OUTSIDE, 5000)));
}

/// Faults that routers in the field give: upstream issues 9343 and 15223, and a port that is taken.
#[test]
fn faults_are_worked_around() {
    for (faults, leases) in [(vec![725], vec![7200, 0]), (vec![402], vec![7200, 0]), (vec![718, 718], vec![7200; 3])] {
        let bench = Bench { faults, ..Bench::new() }.start();
        assert!(bench.mapper.mapping().is_some());
        assert_eq!(bench.leases, leases);
    }
    let bench = Bench { faults: vec![606; 9], ..Bench::new() }.start();
    assert_eq!((bench.mapper.mapping(), bench.leases.len()), (None, 1), "not authorised: left alone");
}

#[test]
fn a_mapping_ends_with_its_life_when_the_gateway_is_gone() {
    let mut bench = Bench::new().start();
    bench.answers = false;
    bench.run(Duration::from_secs(7100));
    assert!(bench.mapper.mapping().is_some());
    bench.run(Duration::from_secs(200));
    assert_eq!(bench.mapper.mapping(), None);
    bench.answers = true;
    bench.run(Duration::from_secs(700));
    assert!(bench.mapper.mapping().is_some(), "it is asked again");
}

#[test]
fn addresses_that_nobody_can_use_are_no_mapping() {
    for address in ["0.0.0.0", "127.0.0.1", "255.255.255.255", "fe80::1", "", "203.0.113.9.1"] {
        let bench = Bench { address, ..Bench::new() }.start();
        assert_eq!(bench.mapper.mapping(), None, "{address}");
    }
}

#[test]
fn upnp_is_not_used_where_it_is_not_wanted() {
    let mut bench = Bench::new();
    bench.mapper.set_target(Some(MapTarget { upnp: false, ..TARGET }), bench.now);
    bench.run(Duration::from_secs(2000));
    assert_eq!((bench.mapper.mapping(), bench.leases.len()), (None, 0));
}

/// Lessons, C15: whoever answers from elsewhere, or points elsewhere, is not followed.
#[test]
fn nobody_but_the_gateway_is_asked() {
    let mut mapper = PortMapper::new([7; 32]);
    let mut now = Instant::now();
    mapper.set_target(Some(TARGET), now);
    now += Duration::from_millis(300);
    mapper.handle_timeout(now);
    let answer = |host: &str| {
        format!("HTTP/1.1 200 OK\r\nLocation: http://{host}:80/x\r\nST: urn:a:device:InternetGatewayDevice:1\r\n\r\n")
    };
    mapper.handle_datagram(SocketAddrV4::new(OUTSIDE, 1900), answer("203.0.113.9").as_bytes(), now);
    assert_eq!(mapper.poll_request(), None);
    mapper.handle_datagram(SocketAddrV4::new(GATEWAY, 1900), answer("203.0.113.9").as_bytes(), now);
    assert_eq!(mapper.poll_request().unwrap().to, SocketAddrV4::new(GATEWAY, 80));
    let description = "HTTP/1.1 200 OK\r\n\r\n<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
        </serviceType><controlURL>http://203.0.113.9:81/c</controlURL></service>";
    mapper.handle_response(Some(description.as_bytes()), now);
    assert_eq!(mapper.poll_request().unwrap().to, SocketAddrV4::new(GATEWAY, 81));
}

proptest! {
    /// No answer makes it panic, loop, ask anybody else, or say what nobody can use.
    #[test]
    fn strange_answers_do_no_harm(
        answers in prop::collection::vec((0..6_u8, ".{0,80}", 0..9000_u64), 0..40)
    ) {
        let mut bench = Bench::new();
        bench.answers = false;
        bench.mapper.set_target(Some(TARGET), bench.now);
        let mut requests = 0;
        for (kind, text, wait) in answers {
            let from = SocketAddrV4::new(GATEWAY, 1900);
            let text = match kind {
                0 => format!("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5/{text}\r\n:InternetGatewayDevice:\r\n\r\n"),
                1 => format!("HTTP/1.1 200 OK\r\n\r\n<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2\
                    </serviceType><controlURL>{text}</controlURL></service>"),
                2 => format!("HTTP/1.1 200 OK\r\n\r\n<NewReservedPort>{text}</NewReservedPort>"),
                3 => format!("HTTP/1.1 500 No\r\n\r\n<errorCode>{text}</errorCode>"),
                4 => "HTTP/1.1 200 OK\r\n\r\n<NewExternalIPAddress>203.0.113.4</NewExternalIPAddress>".to_owned(),
                _ => text,
            };
            bench.mapper.handle_datagram(from, text.as_bytes(), bench.now);
            while let Some(request) = bench.mapper.poll_request() {
                requests += 1;
                prop_assert_eq!(*request.to.ip(), GATEWAY);
                let head = String::from_utf8(request.bytes).unwrap();
                prop_assert_eq!(head.matches("\r\n\r\n").count(), 1, "{}", head);
                bench.mapper.handle_response(Some(text.as_bytes()), bench.now);
                prop_assert!(requests < 2000, "a loop");
            }
            bench.run(Duration::from_secs(wait));
            if let Some(mapping) = bench.mapper.mapping() {
                prop_assert!(mapping.port() != 0 && is_possible(*mapping.ip()));
            }
        }
    }
}
