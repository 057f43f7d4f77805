//! The API v2 with programs that we did not write: the Python package `tailscale`, unchanged, through a proxy that answers
//! as the original's host; and a checker that holds the server to its own OpenAPI document.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;

/// The host that the client asks, whatever it is told.
const ORIGINAL: &str = "api.tailscale.com";

/// Starts a proxy on the server's host that speaks TLS as [`ORIGINAL`], with a certificate that it returns.
fn proxy(host: &Host, caddy: &Path, server: &Server) -> Result<(Process, String)> {
    let (certificate, key) = (host.dir().join("original.pem"), host.dir().join("original-key.pem"));
    let run = host.run("openssl").args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2");
    let run =
        run.arg("-subj").arg(format!("/CN={ORIGINAL}")).arg("-addext").arg(format!("subjectAltName=DNS:{ORIGINAL}"));
    run.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output()?;
    let text = format!(
        "{{\n admin off\n auto_https off\n}}\nhttps://{ORIGINAL}:443 {{\n tls {} {}\n reverse_proxy {}\n}}\n",
        certificate.display(),
        key.display(),
        server.url.trim_start_matches("http://"),
    );
    let file = host.dir().join("proxy.Caddyfile");
    std::fs::write(&file, text)?;
    let home = host.dir().join("proxy-home").to_string_lossy().into_owned();
    let variables = [("HOME", home.as_str()), ("XDG_DATA_HOME", &home), ("XDG_CONFIG_HOME", &home)];
    let words = ["run", "--adapter", "caddyfile", "--config", &file.to_string_lossy()];
    let process = host.spawn_env("proxy", caddy, &words, &variables)?;
    host.add_name(&host.address, ORIGINAL)?;
    Ok((process, certificate.to_string_lossy().into_owned()))
}

/// The Python client drives devices, keys, users, the policy and DNS of a network with two real nodes.
pub(super) fn python_client(context: &Context) -> Result<()> {
    let caddy = packages::caddy()?;
    let library = packages::python("tailscale", "1.0.0", &[])?;
    packages::debian(&[("openssl", "openssl")])?;
    let lab = Lab::new("api", &["server", "alpha", "beta", "gamma"])?;
    let host = lab.host("server");
    // The proxy's word is believed, so that the audit log has the caller's address.
    let server = Server::start(&context.warren, &host, &["--trusted-proxy", &host.address])?;
    let (proxy, certificate) = proxy(&host, &caddy, &server)?;
    for user in ["ann@example.com", "bob@example.com"] {
        server.admin(&["user", "create", user])?;
    }
    server.admin(&["user", "set-role", "ann@example.com", "admin"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&server.invite(&["--user", "ann@example.com"])?, &[])?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    beta.up(&server.invite(&["--user", "bob@example.com"])?, &[])?;
    let made = server.admin(&["api-key", "create", "--user", "ann@example.com", "--description", "e2e"])?;
    let key = made.lines().next().context("no API key")?.to_owned();

    let script = host.dir().join("client.py");
    std::fs::write(&script, include_str!("api/client.py"))?;
    let run = |part: &str| {
        let run = host.run("python3").arg(&script).arg(part).env("PYTHONPATH", &library);
        run.env("SSL_CERT_FILE", &certificate).env("API_KEY", &key).output()
    };
    let said = wait_for("the proxy", PATIENCE, || run("hello").ok())?;
    ensure!(said.contains("2 devices"), "the client sees no devices: {said}");
    let said = run("everything").with_context(|| format!("the proxy says:\n{}", proxy.log()))?;
    said.lines().filter(|line| !line.starts_with("auth key")).for_each(|line| println!("{line}"));
    // A key that the client made lets a node in.
    let joined = said.lines().find_map(|line| line.strip_prefix("auth key ")).context("no auth key")?;
    let gamma = Node::start(&context.warren, &lab.host("gamma"))?;
    let mut arguments = server.invite(&[])?;
    let at = arguments.arguments.iter().position(|word| *word == arguments.key).context("no key in the line")?;
    joined.clone_into(arguments.arguments.get_mut(at).context("no key in the line")?);
    gamma.up(&arguments, &[])?;
    let shown = server.admin(&["--json", "node", "list"])?;
    ensure!(shown.contains("tag:ci"), "the node of the client's key has no tag: {shown}");
    // Bob is locked out by the client: Ann's node loses his within a second, and gets it back.
    let bobs = beta.addresses()?.0;
    let sees = || alpha.status().is_ok_and(|status| status["Peer"].to_string().contains(&bobs));
    wait_for("Ann's node to see Bob's", PATIENCE, || sees().then_some(()))?;
    run("suspend")?;
    wait_for("Bob's node to vanish", PATIENCE, || (!sees()).then_some(()))?;
    run("restore")?;
    wait_for("Bob's node to be back", PATIENCE, || sees().then_some(()))?;
    let audit = server.admin(&["--json", "audit", "--limit", "200"])?;
    ensure!(audit.contains("user.suspend") && audit.contains("\"credential\""), "the audit log tells nothing: {audit}");
    ensure!(server.admin(&["audit", "--verify"])?.contains("intact"), "the audit log is broken");
    drop(proxy);
    Ok(())
}

/// What the checker looks at.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,allow_header_conformance,use_after_free";

/// What calls are about, so that most of them come to something; and what is no failure: a thing that is not offered.
const CONFIG: &str = "[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"3xx\", \"4xx\", 501]\n\
                      [parameters]\ntailnet = \"-\"\ndeviceId = \"n1\"\nuserId = \"2\"\n";

/// A checker makes calls of all kinds, and holds the answers against the server's own document.
pub(super) fn document(context: &Context) -> Result<()> {
    let library = packages::python("schemathesis", "4.32.5", &[])?;
    let lab = Lab::new("api-document", &["server", "alpha"])?;
    let host = lab.host("server");
    let server = Server::start(&context.warren, &host, &[])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&server.invite(&[])?, &[])?;
    let made = server.admin(&["api-key", "create"])?;
    let key = made.lines().next().context("no API key")?;
    let report = host.dir().join("checker");
    // What is not offered is said with 501, which is no failure of the server.
    let config = host.dir().join("schemathesis.toml");
    std::fs::write(&config, CONFIG)?;
    server.admin(&["user", "create", "ann@example.com"])?;
    // It keeps what it found in the folder that it runs in.
    let run = host.run("python3").dir(host.dir()).args("-m schemathesis.cli --config-file").arg(&config);
    let run = run.args("run --max-examples 8 --seed 1 --workers 1 --no-color --phases examples,coverage,fuzzing");
    let run = run.args("--generation-database none --rate-limit 60/s --checks");
    let run = run.arg(CHECKS).arg("--report-dir").arg(&report);
    let run = run.arg("-H").arg(format!("Authorization: Bearer {key}")).env("PYTHONPATH", &library);
    let log = host.dir().join("checker.log");
    let said = run.arg(format!("{}/api/v2/openapi.json", server.url)).output_to(&log)?;
    let cases = said.lines().find(|line| line.contains(" generated, ")).unwrap_or_default();
    println!("        {}", cases.trim());
    ensure!(server.admin(&["audit", "--verify"])?.contains("intact"), "the audit log is broken");
    Ok(())
}
