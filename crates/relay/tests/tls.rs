//! Our client and our server over real sockets and TLS.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use warren_relay::{Admission, Certificate, ConnectError, Received, SelfMade, Server, connect};
use warren_wire::control::{DerpNode, Time};
use warren_wire::derp::GoneReason;
use warren_wire::key::{NodeKey, NodeSecret};

/// Admits every key but the one of repeated bytes 9.
struct NotNine;

impl Admission for NotNine {
    fn admit(&self, key: &NodeKey, _: IpAddr) -> bool {
        *key != secret(9).public()
    }
}

fn secret(byte: u8) -> NodeSecret {
    NodeSecret::from_bytes([byte; 32])
}

#[expect(clippy::disallowed_methods, reason = "certificates are made for this time")]
fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time::from_unix(since.as_secs().try_into().unwrap(), 0).unwrap()
}

/// Starts a relay and returns how the map describes it.
async fn relay(meta_of: &NodeKey) -> (Server, DerpNode) {
    let made = SelfMade::generate("relay.test").unwrap();
    let certificate = Certificate::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
    let server = Server::new(secret(100), NotNine);
    let config = certificate.server_config(meta_of, now()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = DerpNode {
        host_name: "relay.example".to_owned(),
        cert_name: format!("sha256-raw:{}", certificate.pin()),
        ipv4: "127.0.0.1".to_owned(),
        ipv6: "none".to_owned(),
        derp_port: listener.local_addr().unwrap().port(),
        ..DerpNode::default()
    };
    let relay = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let (acceptor, relay) = (acceptor.clone(), relay.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                drop(relay.take(stream, from.ip()).await);
            });
        }
    });
    (server, node)
}

#[tokio::test]
async fn packets_pass_between_two_clients_that_know_the_pin() {
    let (server, node) = relay(&secret(100).public()).await;
    let (mut hears, mut says) = connect(&node, &secret(1)).await.unwrap();
    let (mut hears_too, mut says_too) = connect(&node, &secret(2)).await.unwrap();
    says.send_packet(&secret(2).public(), b"hello").await.unwrap();
    let from = secret(1).public();
    assert_eq!(hears_too.next().await.unwrap(), Received::Packet { from, packet: b"hello".to_vec() });
    says_too.send_packet(&from, &vec![7; 65_536]).await.unwrap();
    let from = secret(2).public();
    assert_eq!(hears.next().await.unwrap(), Received::Packet { from, packet: vec![7; 65_536] });
    server.disconnect(&from);
    assert!(hears_too.next().await.is_err());
    assert_eq!(hears.next().await.unwrap(), Received::PeerGone { key: from, reason: GoneReason::Disconnected });
}

#[tokio::test]
async fn other_certificates_than_the_pinned_one_are_refused() {
    let (_, node) = relay(&secret(100).public()).await;
    let (_, other) = relay(&secret(100).public()).await;
    for cert_name in [other.cert_name.clone(), "sha256-raw:".to_owned(), String::new(), "relay.example".to_owned()] {
        let wrong = DerpNode { cert_name: cert_name.clone(), ..node.clone() };
        let result = connect(&wrong, &secret(1)).await;
        assert!(matches!(result, Err(ConnectError::Io { .. })), "{cert_name}: {result:?}");
    }
    let upper = DerpNode { cert_name: node.cert_name.to_uppercase(), ..node.clone() };
    assert!(connect(&upper, &secret(1)).await.is_err(), "the prefix is written in lowercase");
    let tests = DerpNode { cert_name: String::new(), insecure_for_tests: true, ..node };
    assert!(connect(&tests, &secret(1)).await.is_ok());
}

#[tokio::test]
async fn key_that_is_not_admitted_is_told_so() {
    let (_, node) = relay(&secret(100).public()).await;
    assert!(matches!(connect(&node, &secret(9)).await, Err(ConnectError::Refused(name)) if name == "relay.example"));
}

/// The certificate says another key than the relay has: a fast start would be sealed for somebody else.
#[tokio::test]
async fn meta_certificate_of_another_relay_is_noticed() {
    let (_, node) = relay(&secret(101).public()).await;
    assert!(connect(&node, &secret(1)).await.is_err());
}

#[tokio::test]
async fn nobody_there_is_an_error_and_no_panic() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, node) = relay(&secret(100).public()).await;
    let derp_port = listener.local_addr().unwrap().port();
    drop(listener);
    let gone = DerpNode { derp_port, ..node.clone() };
    assert!(matches!(connect(&gone, &secret(1)).await, Err(ConnectError::Io { .. })));
    let off = DerpNode { ipv4: "none".to_owned(), ..node.clone() };
    assert!(matches!(connect(&off, &secret(1)).await, Err(ConnectError::NoAddress(_))));
    let nameless = DerpNode { host_name: String::new(), ..node };
    assert!(connect(&nameless, &secret(1)).await.is_err());
}
