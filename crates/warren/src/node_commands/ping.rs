//! `warren ping`.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::json;
use warren_node::local_api::Client;
use warren_node::local_api::types::{PingResult, State, Status};

use super::{Socket, clean, parse_duration, peers};
use crate::exit::{Exit, Failure};
use crate::output;

/// Pings that are sent when no number was given; the first direct answer ends them.
const DEFAULT_COUNT: u32 = 10;

/// Time between two pings.
const INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `warren ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Name or tailnet address of the peer.
    #[arg(value_name = "NAME|ADDRESS")]
    peer: String,
    /// Send exactly so many pings. Without it: up to 10, until one comes back directly.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// How long to wait for each answer.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    timeout: Duration,
    /// Print one JSON object for each ping.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Ping {
    /// Pings.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = self.socket.client();
        let status: Status = client.get("status").await?;
        if status.backend_state != State::Running.name() && status.backend_state != State::Starting.name() {
            return Err(super::status::not_running(&status));
        }
        let node = peers::find(&status, &self.peer)?;
        let Some(&address) = node.tailscale_ips.first() else {
            return Err(Failure::new(Exit::NotFound, format_args!("{} has no tailnet address", self.peer)));
        };
        if status.self_.tailscale_ips.contains(&address) {
            return output::line(format_args!("{address} is this machine"));
        }
        let mut answered = 0;
        let count = self.count.unwrap_or(DEFAULT_COUNT);
        let mut last_error = "no reply".to_owned();
        let mut is_relayed = false;
        for number in 1..=count {
            let started = tokio::time::sleep(INTERVAL);
            let result = self.once(&client, address).await?;
            let direct = !result.endpoint.is_empty();
            let ok = result.err.is_empty();
            if self.json {
                output::text(&format!("{}\n", serde_json::to_string(&result).map_err(anyhow::Error::from)?))?;
            } else {
                output::line(text(&result, &self.peer, address))?;
            }
            if ok {
                answered += 1;
                is_relayed = !direct;
            } else {
                last_error = result.err;
            }
            if number == count || (self.count.is_none() && ok && direct) {
                break;
            }
            started.await;
        }
        if answered == 0 {
            let text = format!("{} does not answer: {}; see: warren status", self.peer, clean(&last_error));
            return Err(Failure::new(Exit::Timeout, text));
        }
        if is_relayed && !self.json {
            let status: Status = client.get("status").await?;
            if let Some(reason) = peers::find(&status, &self.peer)?.path_reason.as_deref() {
                output::line(format_args!("not direct: {}", clean(reason)))?;
            }
        }
        Ok(())
    }

    async fn once(&self, client: &Client, address: IpAddr) -> Result<PingResult, Failure> {
        let path = format!("ping?ip={address}&type=disco");
        let asked = client.json::<PingResult>(Method::POST, &path, "".into());
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(result) => Ok(result?),
            Err(_) => Ok(serde_json::from_value(json!({
                "IP": address.to_string(), "NodeIP": "", "NodeName": "", "Err": "no reply in time", "LatencySeconds": 0.0,
                "Endpoint": "", "PeerRelay": "", "DERPRegionID": 0, "DERPRegionCode": "",
            }))
            .map_err(anyhow::Error::from)?),
        }
    }
}

fn text(result: &PingResult, peer: &str, address: IpAddr) -> String {
    if !result.err.is_empty() {
        return format!("ping {} ({address}): {}", clean(peer), clean(&result.err));
    }
    let way = if !result.peer_relay.is_empty() {
        format!("peer-relay {}", clean(&result.peer_relay))
    } else if result.endpoint.is_empty() {
        format!("relayed through {}", clean(&result.derp_region_code))
    } else {
        format!("direct, {}", clean(&result.endpoint))
    };
    let name = if result.node_name.is_empty() { peer } else { &result.node_name };
    format!("pong from {} ({address}): {way}, {:.1} ms", clean(name), result.latency_seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_says_which_way_it_took() {
        let address = "100.64.0.2".parse().unwrap();
        let direct = PingResult {
            node_name: "beta".into(),
            latency_seconds: 0.001_24,
            endpoint: "192.0.2.1:41641".into(),
            ..PingResult::default()
        };
        assert_eq!(text(&direct, "b", address), "pong from beta (100.64.0.2): direct, 192.0.2.1:41641, 1.2 ms");
        let relayed = PingResult { endpoint: String::new(), derp_region_code: "home".into(), ..direct };
        assert_eq!(text(&relayed, "b", address), "pong from beta (100.64.0.2): relayed through home, 1.2 ms");
        let by_peer = PingResult { endpoint: String::new(), peer_relay: "192.0.2.9:7:vni:3".into(), ..relayed.clone() };
        assert_eq!(text(&by_peer, "b", address), "pong from beta (100.64.0.2): peer-relay 192.0.2.9:7:vni:3, 1.2 ms");
        let lost = PingResult { err: "no reply".into(), ..PingResult::default() };
        assert_eq!(text(&lost, "b", address), "ping b (100.64.0.2): no reply");
    }
}
