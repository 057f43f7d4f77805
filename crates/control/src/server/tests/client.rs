//! A client of the control protocol: upgrade, Noise, early payload, HTTP/2.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use warren_relay::noise_stream::NoiseStream;
use warren_wire::key::{MachineKey, MachineSecret, NodeKey};
use warren_wire::noise::{EarlyPayload, Initiator};

use super::Rig;

pub(super) fn machine(number: u8) -> MachineSecret {
    MachineSecret::from_bytes([number; 32])
}

pub(super) fn node_key(number: u8) -> NodeKey {
    warren_wire::key::NodeSecret::from_bytes([number; 32]).public()
}

pub(super) struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    /// The task that serves the HTTP/1.1 part of the other end.
    pub(super) server: Option<JoinHandle<()>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    /// Connects as the machine `number` with capability version 130.
    pub(super) async fn connect(rig: &Rig, number: u8) -> Self {
        Self::with_version(rig, number, 130).await
    }

    pub(super) async fn with_version(rig: &Rig, number: u8, version: u16) -> Self {
        let (stream, server) = rig.connect();
        let key = rig.shared.control.noise_key();
        let mut client = Self::over(stream, &machine(number), &key, version).await.unwrap();
        client.server = Some(server);
        client
    }

    /// Upgrades `stream`. Fails with a text if the other end closes instead of answering.
    pub(super) async fn over(
        mut stream: DuplexStream,
        machine: &MachineSecret,
        server: &MachineKey,
        version: u16,
    ) -> Result<Self, String> {
        let (initiator, initiation) = Initiator::new(version, machine, server, [77; 32]).unwrap();
        let request = format!(
            "POST /ts2021 HTTP/1.1\r\nHost: control.test\r\nConnection: upgrade\r\n\
             Upgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
            STANDARD.encode(initiation)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.map_err(|_| "closed within the head")?);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        let mut response = [0; 51];
        stream.read_exact(&mut response).await.map_err(|_| "closed instead of a response")?;
        let transport = initiator.finish(&response).map_err(|error| error.to_string())?;
        let mut stream = NoiseStream::new(stream, transport, Vec::new());
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.map_err(|_| "closed before the early payload")?;
        let mut early = vec![0; EarlyPayload::parse_header(header).expect("an early payload")];
        stream.read_exact(&mut early).await.map_err(|_| "closed within the early payload")?;
        assert!(EarlyPayload::decode(&early).unwrap().node_key_challenge.is_some());
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, connection, server: None })
    }

    /// Sends a request and returns the answer before its body.
    pub(super) async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.try_send(method, path, body).await.unwrap()
    }

    pub(super) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://unused{path}"))
            .header("ts-lb", "nodekey:whatever")
            .body(Full::new(body.into()))
            .unwrap();
        self.sender.clone().send_request(request).await
    }

    /// Sends a request and reads the answer to its end.
    pub(super) async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let answer = self.send(method, path, body).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> (StatusCode, String) {
        self.ask(Method::POST, path, body.to_string()).await
    }

    /// Registers `node` with an auth key.
    pub(super) async fn register(&self, node: u8, auth_key: &str) -> Value {
        let request = json!({
            "Version": 130, "NodeKey": node_key(node), "OldNodeKey": format!("nodekey:{}", "0".repeat(64)),
            "Auth": {"AuthKey": auth_key}, "Hostinfo": {"Hostname": format!("host{node}"), "OS": "linux"},
        });
        let (status, body) = self.post("/machine/register", &request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Begins a map poll of `node`.
    pub(super) async fn poll(&self, node: u8) -> Maps {
        let request = json!({"Version": 130, "NodeKey": node_key(node), "Stream": true, "KeepAlive": true});
        let answer = self.send(Method::POST, "/machine/map", request.to_string()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        Maps { body: answer.into_body(), bytes: Vec::new() }
    }
}

/// The maps of a poll.
pub(super) struct Maps {
    body: Incoming,
    bytes: Vec<u8>,
}

impl Maps {
    /// Returns the next message, or `None` at the end of the poll.
    pub(super) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((length, rest)) = self.bytes.split_first_chunk::<4>() {
                let length = u32::from_le_bytes(*length) as usize;
                if rest.len() >= length {
                    let message = serde_json::from_slice(&rest[..length]).unwrap();
                    self.bytes.drain(..4 + length);
                    return Some(message);
                }
            }
            match self.body.frame().await? {
                Ok(frame) => self.bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => return None,
            }
        }
    }
}
