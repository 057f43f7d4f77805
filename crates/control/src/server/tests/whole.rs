//! The whole server on loopback: real sockets, TLS, the relay, STUN, the administrators' socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use warren_relay::{ClientError, ClientReader, ConnectError, Received};
use warren_wire::control::{DerpNode, RegisterRequest};
use warren_wire::key::NodeSecret;

use super::*;
use crate::admin::NewAuthKey;
use crate::admin_socket::{AdminRequest, CallError, call};
use crate::server::{Options, Server, StartError};
use crate::testing::{FROM, Folder, machine, register, with_key};
use crate::{OpenError, Who};

fn options(folder: &Folder) -> Options {
    let any = "127.0.0.1:0".parse().unwrap();
    Options {
        state_dir: folder.join("state"),
        listen: any,
        url: None,
        relay_listen: Some(any),
        stun_listen: Some(any),
        certificate: None,
        trusted_proxies: Vec::new(),
        oidc: crate::OidcConfig::default(),
        base_domain: "warren.internal".to_owned(),
        socket: folder.join("admin.sock"),
        connections: ConnectionLimits::default(),
        relay_insecure_for_tests: false,
    }
}

async fn start(folder: &Folder) -> Server {
    Server::start(options(folder)).await.unwrap()
}

/// The relay as the server's own map names it.
fn relay(server: &Server) -> DerpNode {
    let snapshot = server.control.tailnets()[0].snapshot();
    let regions = snapshot.derp.regions.as_ref().unwrap();
    regions.values().next().unwrap().nodes[0].clone()
}

/// Opens TLS without looking at the certificate.
async fn tls(server: &Server) -> tokio_rustls::client::TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
        .with_no_client_auth();
    let stream = TcpStream::connect(server.addresses().relay.unwrap()).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// Takes every certificate.
#[derive(Debug)]
struct Anything(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Sends a request and returns the head of the answer.
async fn ask_over_tls(server: &Server, request: &str) -> String {
    let mut stream = tls(server).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[tokio::test]
async fn nothing_is_needed_to_start_and_the_second_start_is_the_same_server() {
    let folder = Folder::new();
    let server = start(&folder).await;
    let (key, pin) = (server.key(), relay(&server).cert_name);
    assert!(server.url().starts_with("http://127.0.0.1:"));
    assert!(pin.starts_with("sha256-raw:") && pin.len() == "sha256-raw:".len() + 64, "{pin}");
    assert_eq!(std::fs::metadata(folder.join("admin.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    server.stop().await;
    assert!(!folder.join("admin.sock").exists());
    let server = loop {
        match Server::start(options(&folder)).await {
            // The tasks of the first one are still at their end.
            Err(StartError::State(OpenError::InUse { .. })) => tokio::task::yield_now().await,
            started => break started.unwrap(),
        }
    };
    assert_eq!((server.key(), relay(&server).cert_name), (key, pin));
    let second = Options { socket: folder.join("other.sock"), ..options(&folder) };
    assert!(matches!(Server::start(second).await, Err(StartError::State(OpenError::InUse { .. }))));
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_named_and_leaves_no_state() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (what, option) in [
        (Options { listen: address, ..options(&folder) }, "--listen"),
        (Options { relay_listen: Some(address), ..options(&folder) }, "--relay-listen"),
    ] {
        let error = Server::start(what).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains(option), "{error}");
    }
    assert!(!folder.join("state").exists());
}

#[tokio::test]
async fn connections_that_break_off_are_normal() {
    let folder = Folder::new();
    let server = start(&folder).await;
    let relay = server.addresses().relay.unwrap();
    // Latency probes: connect and leave; begin TLS and leave; finish TLS and leave.
    drop(TcpStream::connect(relay).await.unwrap());
    let mut half = TcpStream::connect(relay).await.unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    drop(half);
    let mut whole = tls(&server).await;
    whole.shutdown().await.unwrap();
    drop(whole);
    drop(TcpStream::connect(server.addresses().clients).await.unwrap());
    server.shared.gate.drained().await;
    let answer = ask_over_tls(&server, "GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(status(&answer), 200, "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn the_relays_port_answers_probes_in_any_form_and_http_too() {
    let folder = Folder::new();
    let server = start(&folder).await;
    for (request, expected) in [
        ("GET https://relay.test/derp/latency-check HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n", 200),
        ("GET /derp/latency-check HTTP/1.1\r\nHost: relay.test:1\r\nConnection: close\r\n\r\n", 200),
        ("HEAD /derp/probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        ("GET /generate_204 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 204),
        ("GET /key?v=130 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        ("GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    ] {
        let answer = ask_over_tls(&server, request).await;
        assert_eq!(status(&answer), expected, "{request}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_tls_handshake_that_does_not_come_is_cut() {
    let folder = Folder::new();
    let server = start(&folder).await;
    let mut stream = TcpStream::connect(server.addresses().relay.unwrap()).await.unwrap();
    stream.write_all(&[0x16, 3, 1]).await.unwrap();
    tokio::time::pause();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or_default(), 0);
    server.shared.gate.drained().await;
    tokio::time::resume();
    server.stop().await;
}

#[tokio::test]
async fn a_connection_above_the_limit_is_closed_at_once() {
    let folder = Folder::new();
    let connections = ConnectionLimits { total: 2, ..ConnectionLimits::default() };
    let server = Server::start(Options { connections, ..options(&folder) }).await.unwrap();
    let clients = server.addresses().clients;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(clients).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
        held.push(stream);
    }
    let mut third = TcpStream::connect(clients).await.unwrap();
    assert_eq!(third.read(&mut [0; 16]).await.unwrap_or_default(), 0);
    drop(held);
    server.shared.gate.drained().await;
    server.stop().await;
}

#[tokio::test]
async fn only_registered_nodes_use_the_relay_and_only_as_long_as_they_are() {
    let folder = Folder::new();
    let server = start(&folder).await;
    let relay = relay(&server);
    let secrets: Vec<_> = (1..=3).map(|number| NodeSecret::from_bytes([number; 32])).collect();
    // A stranger finishes the handshake at most; nothing it sends arrives anywhere.
    assert!(!is_served(&relay, &secrets[2]).await);

    let admin = server.control.admin(Who::server());
    let new = NewAuthKey { tailnet: "default".to_owned(), reusable: true, ..NewAuthKey::default() };
    let key = admin.create_auth_key(new).await.unwrap().text.expose().to_owned();
    for (number, secret) in (1..).zip(&secrets[..2]) {
        let request = RegisterRequest { node_key: secret.public(), ..with_key(register(number), &key) };
        assert!(server.control.register(machine(number), request, FROM).await.machine_authorized);
    }
    assert!(!is_served(&relay, &secrets[2]).await);
    let (mut from_one, mut to_one) = warren_relay::connect(&relay, &secrets[0]).await.unwrap();
    let (mut from_two, _to_two) = warren_relay::connect(&relay, &secrets[1]).await.unwrap();
    loop {
        to_one.send_packet(&secrets[1].public(), b"hello").await.unwrap();
        if let Ok(Ok(Received::Packet { from, packet })) =
            tokio::time::timeout(std::time::Duration::from_secs(1), from_two.next()).await
        {
            assert_eq!((from, &packet[..]), (secrets[0].public(), &b"hello"[..]));
            break;
        }
    }
    admin.remove_node(None, "host1").await.unwrap();
    end_of(&mut from_one).await;
    assert!(!is_served(&relay, &secrets[0]).await);
    server.stop().await;
    end_of(&mut from_two).await;
}

/// Waits until the relay ends a connection.
async fn end_of(reader: &mut ClientReader) {
    let end = async { while reader.next().await.is_ok() {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), end).await.expect("the relay ends the connection");
}

/// Tells whether the relay goes on talking to that key.
async fn is_served(relay: &DerpNode, secret: &NodeSecret) -> bool {
    let connected: Result<_, ConnectError> = warren_relay::connect(relay, secret).await;
    let Ok((mut reader, mut writer)) = connected else { return false };
    if writer.ping([7; 8]).await.is_err() {
        return false;
    }
    loop {
        let received: Result<Received, ClientError> = reader.next().await;
        match received {
            Ok(Received::Pong(data)) => return data == [7; 8],
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[tokio::test]
async fn stun_answers_requests_and_nothing_else() {
    let folder = Folder::new();
    let server = start(&folder).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for junk in [&b""[..], b"x", &[0; 20], &[0xff; 1500]] {
        socket.send_to(junk, server.addresses().stun).await.unwrap();
    }
    let request = warren_wire::stun::request(&[9; 12]);
    socket.send_to(&request, server.addresses().stun).await.unwrap();
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer).await.unwrap();
    assert!(length <= request.len() * 2, "nobody is flooded by it");
    let parsed = warren_wire::stun::parse_response(&answer[..length]).unwrap();
    assert_eq!(parsed, ([9; 12], socket.local_addr().unwrap()));
    server.stop().await;
}

#[tokio::test]
async fn administrators_call_over_their_socket() {
    let folder = Folder::new();
    let server = start(&folder).await;
    let socket = folder.join("admin.sock");
    let answer = call(&socket, &AdminRequest::ServerShow).await.unwrap();
    assert_eq!(answer["server_key"], server.key().to_string());
    let missing = AdminRequest::NodeShow { tailnet: None, node: "nobody".to_owned() };
    let Err(CallError::Refused { code, message }) = call(&socket, &missing).await else { panic!("there is nobody") };
    assert_eq!((code.as_str(), message.as_str()), ("not-found", "there is no node \"nobody\""));
    let backup = folder.join("backup");
    call(&socket, &AdminRequest::Backup { to: backup.clone() }).await.unwrap();
    assert_eq!(std::fs::metadata(backup).unwrap().permissions().mode() & 0o777, 0o600);
    let audit = server.control.admin(Who::server()).audit(None, None, 1).await.unwrap();
    call(&socket, &AdminRequest::TailnetCreate { name: "second".to_owned() }).await.unwrap();
    let after = server.control.admin(Who::server()).audit(None, None, 1).await.unwrap();
    assert!(after[0].seq > audit[0].seq);
    assert_eq!(after[0].who, format!("cli:uid={}", rustix::process::geteuid().as_raw()), "as the kernel says");
    server.stop().await;
    assert!(matches!(call(&socket, &AdminRequest::ServerShow).await, Err(CallError::NotRunning(_))));
}

#[tokio::test]
async fn a_socket_that_is_left_over_is_replaced_and_one_in_use_is_not() {
    let folder = Folder::new();
    let socket = folder.join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let server = start(&folder).await;
    call(&socket, &AdminRequest::ServerShow).await.unwrap();
    let elsewhere = Options { state_dir: folder.join("second"), ..options(&folder) };
    let error = Server::start(elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("--socket"), "{error}");
    server.stop().await;
    std::fs::write(&socket, "no socket").unwrap();
    assert!(Server::start(options(&folder)).await.is_err());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "no socket", "a file is left alone");
}
