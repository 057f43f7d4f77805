//! A node without TUN device beside the official Go client's own way of doing without, in turns.

use super::{median, release_warren};
use crate::fleet::{Node, PATIENCE, Server, Setting, address_of};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::packages;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Bytes of the file that is fetched.
const BYTES: u64 = 200_000_000;
/// Where the proxy of our node listens.
const PROXY: &str = "127.0.0.1:1055";

/// What is wanted of a run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each file is fetched.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Measure this program instead of a release build.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print one JSON object for each figure instead of a table.
    #[arg(long)]
    json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { runs: 5, program: None, json: false }
    }
}

/// Starts Caddy, which has the Go client inside, with this configuration.
fn caddy(host: &Host, program: &Path, title: &str, sites: &str) -> Result<Process> {
    let file = host.dir().join(format!("{}-{title}.Caddyfile", host.name));
    std::fs::write(&file, sites)?;
    let home = host.dir().join(format!("{}-home", host.name)).to_string_lossy().into_owned();
    let variables = [
        ("TS_NO_LOGS_NO_SUPPORT", "true"),
        ("TS_LOGS_DIR", &home),
        ("HOME", &home),
        ("XDG_DATA_HOME", &home),
        ("XDG_CONFIG_HOME", &home),
        ("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
    ];
    let config = file.to_string_lossy().into_owned();
    host.spawn_env(title, program, &["run", "--adapter", "caddyfile", "--config", &config], &variables)
}

/// Fetches the file and returns the speed in Mbit/s.
fn fetch(host: &Host, words: &str, url: &str) -> Result<f64> {
    let run = host.run("curl").args("-sS -g --fail --max-time 60 -o /dev/null -w %{speed_download}").args(words);
    Ok(run.arg(url).output()?.trim().parse::<f64>()? * 8.0 / 1e6)
}

/// Measures a file's way out of the stack and into it, each with a node with a TUN device at the other end.
pub(super) fn measure(options: &Options) -> Result<()> {
    let warren = match &options.program {
        Some(program) => program.clone(),
        None => release_warren()?,
    };
    let program = packages::caddy()?;
    let lab = Lab::new("bench-userspace", &["server", "alpha", "gopher", "beta"])?;
    let [alpha, gopher, beta] = ["alpha", "gopher", "beta"].map(|name| lab.host(name));
    let files = lab.dir().join("files");
    std::fs::create_dir_all(&files)?;
    std::fs::File::create(files.join("file"))?.set_len(BYTES)?;
    let files = files.to_string_lossy().into_owned();
    let server = Server::start(&warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let arguments = ["--tun=userspace-networking", "--socks5-server", PROXY].map(str::to_owned).to_vec();
    let ours = Node::start_as(&warren, &alpha, "alpha", Setting { arguments, ..Setting::default() })?;
    ours.up(&invitation, &[])?;
    let other = Node::start(&warren, &beta)?;
    other.up(&invitation, &[])?;
    let ((ours4, _), (other4, _)) = (ours.addresses()?, other.addresses()?);
    let plain = format!("{{\n admin off\n auto_https off\n}}\nhttp://:8080 {{\n root * {files}\n file_server\n}}\n");
    let (url, key) = (&server.url, &invitation.key);
    let within = format!(
        "{{\n admin off\n auto_https off\n tailscale {{\n  auth_key {key}\n  control_url {url}\n  state_dir ./gopher-go-state\n }}\n}}\n\
         http://:8080 {{\n bind tailscale/gopher\n root * {files}\n file_server\n}}\n\
         http://127.0.0.1:8000 {{\n bind 127.0.0.1\n reverse_proxy http://{other4}:8080 {{\n  transport tailscale gopher\n }}\n}}\n"
    );
    let _caddies = [
        caddy(&alpha, &program, "files", &plain)?,
        caddy(&beta, &program, "files", &plain)?,
        caddy(&gopher, &program, "files", &within)?,
    ];
    let theirs4 = address_of(&server, "gopher")?;
    let (socks, from_ours, from_theirs) =
        (format!("--socks5 {PROXY}"), format!("http://{ours4}:8080/file"), format!("http://{theirs4}:8080/file"));
    let from_other = format!("http://{other4}:8080/file");
    // Who fetches, how, and from where: out of a stack, then into it.
    let ways: [(&str, &str, &Host, &str, &str); 4] = [
        ("userspace_out", "warren", &beta, "", &from_ours),
        ("userspace_out", "go", &beta, "", &from_theirs),
        ("userspace_in", "warren", &alpha, &socks, &from_other),
        ("userspace_in", "go", &gopher, "", "http://127.0.0.1:8000/file"),
    ];
    // All are there, and over direct paths by then.
    for (name, who, host, words, url) in &ways {
        wait_for(&format!("{name} of {who}"), PATIENCE * 2, || fetch(host, words, url).ok())
            .with_context(|| format!("our node's log says:\n{}", ours.process().log()))?;
    }
    let mut speeds = [const { Vec::new() }; 4];
    for _ in 0..options.runs {
        for ((_, _, host, words, url), speeds) in ways.iter().zip(&mut speeds) {
            speeds.push(fetch(host, words, url)?);
        }
    }
    let [mut out, mut out_go, mut into, mut into_go] = speeds;
    for (metric, ours, theirs) in [("userspace_out", &mut out, &mut out_go), ("userspace_in", &mut into, &mut into_go)]
    {
        let (middle, go) = (median(ours), median(theirs));
        if options.json {
            println!(
                "{}",
                json!({ "metric": metric, "unit": "Mbit/s", "warren": middle, "go": go, "runs": [ours, theirs] })
            );
        } else {
            println!("{metric:14} {middle:8.0} Mbit/s, the Go client {go:8.0} Mbit/s, ratio {:.2}", middle / go);
        }
    }
    Ok(())
}
