//! The official Go client, as Caddy with its plugin.

use super::{PATIENCE, Server};
use crate::lab::{Host, Process, wait_for};
use anyhow::{Context as _, Result};
use std::path::Path;

/// One Go client on a host: serves a page on its tailnet address and proxies 127.0.0.1:8000 into the tailnet.
pub(crate) struct GoClient {
    pub(crate) host: Host,
    process: Process,
}

impl GoClient {
    /// Starts it as node `name`: port 80 on the tailnet answers `page`, local port 8000 goes to `http://<target>`.
    ///
    /// Over UDP, port 443 speaks HTTP/3.
    pub(crate) fn start(host: &Host, caddy: &Path, url: &str, key: &str, page: &str, target: &str) -> Result<Self> {
        Self::start_with(host, caddy, (url, key), (page, target), &[])
    }

    /// Does so with further environment variables.
    pub(crate) fn start_with(
        host: &Host,
        caddy: &Path,
        (url, key): (&str, &str),
        (page, target): (&str, &str),
        environment: &[(String, String)],
    ) -> Result<Self> {
        let name = &host.name;
        // Without a key it shows a URL and waits for a person.
        let key = if key.is_empty() { String::new() } else { format!("auth_key {key}") };
        let text = format!(
            "{{\n admin off\n debug\n auto_https off\n tailscale {{\n  {key}\n  control_url {url}\n  state_dir ./{name}-go-state\n }}\n}}\n\
             http://:80 {{\n bind tailscale/{name}\n respond \"{page}\"\n}}\n\
             https://{name}.test:443 {{\n bind tailscale/{name}\n tls internal\n respond \"{page}\"\n}}\n\
             http://127.0.0.1:8000 {{\n bind 127.0.0.1\n reverse_proxy http://{target} {{\n  transport tailscale {name}\n }}\n}}\n"
        );
        let file = host.dir().join(format!("{name}.Caddyfile"));
        std::fs::write(&file, text)?;
        // Of its own: Caddy makes a certificate authority there.
        let home = host.dir().join(format!("{name}-home")).to_string_lossy().into_owned();
        let config = file.to_string_lossy().into_owned();
        let mut variables = vec![
            ("TS_NO_LOGS_NO_SUPPORT", "true"),
            ("TS_LOGS_DIR", &home),
            ("HOME", &home),
            ("XDG_DATA_HOME", &home),
            ("XDG_CONFIG_HOME", &home),
            ("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
        ];
        variables.extend(environment.iter().map(|(name, value)| (&**name, &**value)));
        let words = ["run", "--adapter", "caddyfile", "--config", &config];
        let process = host.spawn_env("caddy", caddy, &words, &variables)?;
        Ok(Self { host: host.clone(), process })
    }

    /// Fetches its local port 8000, which goes through the tailnet to the target, until `page` comes back.
    pub(crate) fn wait_page(&self, page: &str) -> Result<()> {
        let what = format!("the page through the Go client on {}", self.host.name);
        wait_for(&what, PATIENCE * 2, || {
            let text = fetch(&self.host, "http://127.0.0.1:8000/").ok()?;
            (text == page).then_some(())
        })
        .with_context(|| format!("its log ends with:\n{}", last_lines(&self.process.log())))
    }

    /// Returns its log.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Returns the end of its log.
    pub(crate) fn log_end(&self) -> String {
        last_lines(&self.process.log())
    }

    /// Tells whether packets to any peer ever began to go directly.
    pub(crate) fn has_been_direct(&self) -> bool {
        self.process.log().contains(DIRECT)
    }

    /// Goes on fetching `page` until the log says that packets go directly to the address of `peer` on the switch.
    pub(crate) fn wait_direct(&self, page: &str, peer: &Host) -> Result<()> {
        let sign = format!("{DIRECT}{}:", peer.address);
        wait_for(&format!("a direct path from {} to {}", self.host.name, peer.name), PATIENCE, || {
            self.wait_page(page).ok()?;
            self.process.log().contains(&sign).then_some(())
        })
        .with_context(|| format!("its log ends with:\n{}", last_lines(&self.process.log())))
    }
}

/// What the Go client logs before the address when packets to a peer begin to go directly.
const DIRECT: &str = " now using ";

/// Fetches a page.
pub(crate) fn fetch(host: &Host, url: &str) -> Result<String> {
    host.run("curl").args("-sS -g --fail --max-time 5").arg(url).output()
}

/// Returns the end of a log.
pub(crate) fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}

/// Returns the IPv4 address of the node with this host name, as the server lists it.
pub(crate) fn address_of(server: &Server, name: &str) -> Result<String> {
    wait_for(&format!("{name} to be registered"), PATIENCE * 2, || {
        let list = server.admin(&["--json", "node", "list"]).ok()?;
        let nodes: serde_json::Value = serde_json::from_str(&list).ok()?;
        let node = nodes.as_array()?.iter().find(|node| {
            node.get("name")
                .and_then(serde_json::Value::as_str)
                .is_some_and(|full| full.split('.').next() == Some(name))
        })?;
        node.get("addresses")?.as_array()?.first()?.as_str().map(str::to_owned)
    })
}
