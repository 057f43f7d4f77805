//! The connections to the other relays of the region: who is there, and packets for them.
//!
//! Each relay connects to each other one, as a client that shows the mesh key. On its own connection it hears who is
//! there and sends packets; on the other's it says who is here and gets packets. Source: paths.md §1.9.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use warren_wire::control::DerpNode;
use warren_wire::derp::{Frame, GoneReason, present};

use crate::client::{ClientError, ClientReader, ClientWriter, ConnectError, Who, connect_as, read_frame};
use crate::hub::{Connection, Hub};
use crate::server::{Server, WRITE_BYTES};

/// Mean time between two attempts to connect.
const RETRY: Duration = Duration::from_secs(1);
/// How often the other relay is asked for a sign of life.
const PING: Duration = Duration::from_secs(10);
/// Time without any frame after which a connection is dead.
const SILENCE: Duration = Duration::from_secs(25);
/// Time for one write. Source: Tailscale `derp/derpserver`.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

impl Server {
    /// Keeps up the connection to another relay of the region; ends when the relay stops, has no mesh key, or if the
    /// other one is this one.
    pub async fn mesh_with(&self, node: &DerpNode) {
        let Some(key) = &self.0.mesh else { return };
        let who = Who { secret: &self.0.secret, mesh: Some(key) };
        let keep_up = async {
            loop {
                let ended = match connect_as(node, who).await {
                    Ok((reader, writer)) => self.mesh_over(reader, writer).await.to_string(),
                    Err(ConnectError::Itself(_)) => return,
                    Err(error) => error.to_string(),
                };
                tracing::warn!(
                    relay = node.host_name,
                    reason = ended,
                    "no connection to the other relay of the region"
                );
                tokio::time::sleep(retry_delay()).await;
            }
        };
        tokio::select! {
            () = keep_up => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    /// Serves a connection to another relay until it ends.
    pub(crate) async fn mesh_over(&self, mut reader: ClientReader, mut writer: ClientWriter) -> ClientError {
        let hub = &self.0.hub;
        let link = Hub::link(self.0.key, IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.0.stop.child_token());
        let _lost_at_the_end = Up::new(hub, &link);
        let listening = async {
            loop {
                let (kind, payload) = match timeout(SILENCE, read_frame(&mut reader.0)).await {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(error)) => return error,
                    Err(_) => return ClientError::Silent,
                };
                match Frame::decode(kind, &payload) {
                    Ok(Frame::PeerPresent { key, flags, .. }) if flags & present::MESH_PEER == 0 => {
                        hub.hear_present(&link, key);
                    }
                    Ok(Frame::PeerGone { key, reason: GoneReason::Disconnected | GoneReason::NotHere }) => {
                        hub.hear_gone(&link, &key);
                    }
                    Ok(Frame::Ping(data)) => link.pong(data),
                    Ok(_) => {}
                    Err(error) => return error.into(),
                }
            }
        };
        let writing = async {
            let mut ticks = tokio::time::interval(PING);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut out = Vec::new();
            Frame::WatchConns.encode(&mut out);
            loop {
                let write = async {
                    writer.stream.write_all(&out).await?;
                    writer.stream.flush().await
                };
                match timeout(WRITE_DEADLINE, write).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.into(),
                    Err(_) => return ClientError::Silent,
                }
                out.clear();
                while !link.drain(&mut out, WRITE_BYTES) && out.is_empty() {
                    tokio::select! {
                        () = link.wake.notified() => {}
                        _ = ticks.tick() => Frame::Ping([0; 8]).encode(&mut out),
                    }
                }
            }
        };
        tokio::select! {
            error = listening => error,
            error = writing => error,
        }
    }
}

/// Draws the time until the next attempt, half to one and a half times [`RETRY`]: relays that lost the same one do not knock
/// at the same instant.
fn retry_delay() -> Duration {
    let mut byte = [0];
    // Without randomness all wait for the shortest time.
    let _ = getrandom::fill(&mut byte);
    let [byte] = byte;
    RETRY / 2 + RETRY * u32::from(byte) / 255
}

/// A connection that is up; when it ends, what is known by it is forgotten.
struct Up<'a> {
    hub: &'a Hub,
    link: &'a Arc<Connection>,
}

impl<'a> Up<'a> {
    fn new(hub: &'a Hub, link: &'a Arc<Connection>) -> Self {
        hub.counters.mesh_links.fetch_add(1, Ordering::Relaxed);
        Self { hub, link }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.hub.counters.mesh_links.fetch_sub(1, Ordering::Relaxed);
        self.hub.lose_link(self.link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spread_around_a_second() {
        let delays: Vec<Duration> = (0..1000).map(|_| retry_delay()).collect();
        assert!(delays.iter().all(|delay| (RETRY / 2..=RETRY * 3 / 2).contains(delay)));
        assert!(delays.iter().any(|delay| *delay < RETRY * 4 / 5) && delays.iter().any(|delay| *delay > RETRY * 6 / 5));
    }
}
