//! The relay within the server: its certificate, its place in the map, its connections, STUN.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Bytes;
use tokio::net::UdpSocket;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warren_wire::control::{DerpMap, DerpNode, DerpRegion, RegionId};

use super::accept::{Duplex, HttpStream};
use super::address::ServerUrl;
use super::replay::Replay;
use super::shared::Arrival;
use super::{CertificateFiles, StartError};
use crate::Control;

/// The region of the embedded relay; 900 to 999 are reserved for those who run their own. Source: paths.md §1.11.
const REGION: RegionId = RegionId(900);

/// Describes the embedded relay to clients. `pin` is the SHA-256 of a self-made certificate in hexadecimal digits.
pub(crate) fn derp_map(
    url: &ServerUrl,
    relay_port: u16,
    stun_port: u16,
    pin: Option<&str>,
    insecure_for_tests: bool,
) -> DerpMap {
    let (ipv4, ipv6) = match url.address() {
        Some(IpAddr::V4(address)) => (address.to_string(), "none".to_owned()),
        Some(IpAddr::V6(address)) => ("none".to_owned(), address.to_string()),
        None => (String::new(), String::new()),
    };
    let node = DerpNode {
        name: "900a".to_owned(),
        region_id: REGION,
        host_name: url.host.clone(),
        cert_name: pin.map(|pin| format!("sha256-raw:{pin}")).unwrap_or_default(),
        ipv4,
        ipv6,
        stun_port: i32::from(stun_port),
        derp_port: relay_port,
        insecure_for_tests,
        ..DerpNode::default()
    };
    let region = DerpRegion {
        region_id: REGION,
        region_code: "warren".to_owned(),
        region_name: "warren".to_owned(),
        nodes: vec![node],
        ..DerpRegion::default()
    };
    DerpMap { regions: Some(BTreeMap::from([(REGION, region)])), omit_default_regions: true, ..DerpMap::default() }
}

/// TLS for the relay, and for clients if the operator gave a certificate.
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    /// Digest of a self-made certificate; absent if the operator gave one.
    pub(crate) pin: Option<String>,
}

pub(crate) async fn tls(control: &Control, files: Option<&CertificateFiles>) -> Result<Tls, StartError> {
    let _ = (control, files);
    unimplemented!()
}

#[derive(Debug)]
pub(crate) struct Relaying {}

impl Relaying {
    pub(crate) fn new(_control: &Control) -> Self {
        Self {}
    }
    pub(crate) async fn take(&self, _arrival: &Arrival, stream: Box<dyn Duplex>) -> Option<HttpStream> {
        Some(Replay::new(Bytes::new(), stream))
    }
}
pub(crate) async fn serve_stun(_socket: UdpSocket, stop: CancellationToken) {
    stop.cancelled().await
}
pub(crate) async fn drop_departed(_relaying: Arc<Relaying>, _control: Control, stop: CancellationToken) {
    stop.cancelled().await
}
