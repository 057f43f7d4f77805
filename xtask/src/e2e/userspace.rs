//! Nodes without TUN device and without root.

use super::Context;
use crate::fleet::{GoClient, Invitation, Node, PATIENCE, Server, Setting, address_of, fetch, icmp, transfer_to};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::run::{Run, target};
use crate::{packages, traffic};
use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// Where the proxies listen; one port for both.
const PROXY: &str = "127.0.0.1:1055";
/// A user who is nobody.
const NOBODY: &str = "65534";

/// Starts a node without TUN device for a user without rights, and joins.
pub(super) fn start(context: &Context, host: &Host, invitation: &Invitation) -> Result<Node> {
    let arguments = ["--tun=userspace-networking", "--socks5-server", PROXY, "--outbound-http-proxy-listen", PROXY];
    let setting =
        Setting { arguments: arguments.map(str::to_owned).to_vec(), user: NOBODY.to_owned(), ..Setting::default() };
    let node = Node::start_as(&context.warren, host, &host.name, setting)?;
    node.up(invitation, &[])?;
    Ok(node)
}

/// Starts a page on a host.
fn page(host: &Host, listen: &str, text: &str) -> Result<Process> {
    let title = format!("page-{}", listen.replace([':', '[', ']', '.'], "-"));
    let mut page = host.spawn(&title, &std::env::current_exe()?, &["traffic", "http", listen, text])?;
    page.wait_log("listening", PATIENCE)?;
    Ok(page)
}

fn url(address: &str, port: u16) -> String {
    if address.contains(':') { format!("http://[{address}]:{port}/") } else { format!("http://{address}:{port}/") }
}

/// Fetches a page through a proxy, by these words of curl.
fn fetch_by(host: &Host, words: &str, url: &str) -> Result<String> {
    host.run("curl").args("-sS -g --fail --max-time 10").args(words).arg(url).output()
}

/// Has the node find a name, for a program that wants a page there; nobody needs to be there.
pub(super) fn fetch_by_name(host: &Host, name: &str) {
    let words = format!("--socks5-hostname {PROXY} --max-time 8");
    let _ = fetch_by(host, &words, &format!("http://{name}/"));
}

/// Fails unless nobody listens there: told at once, not by silence.
fn is_refused(host: &Host, address: &str) -> Result<()> {
    match fetch(host, &url(address, 9)) {
        Err(error) if error.to_string().contains("exit status: 7") => Ok(()),
        Err(error) => Err(error.context("a refused port is not told as such")),
        Ok(text) => bail!("a port where nobody listens said {text:?}"),
    }
}

/// Sends bytes through `warren nc` to what receives them on another host, and compares both ends.
fn send_by_nc(from: &Node, name: &str, receiver: &mut Process) -> Result<()> {
    let text: String =
        (0..2_500_000_u32).map(|number| format!("{:07x} ", number.wrapping_mul(2_654_435_761) >> 4)).collect();
    receiver.wait_log("listening", PATIENCE)?;
    from.host.run(from.program()).args("nc --socket").arg(from.socket()).arg(name).arg("7001").input(&text)?;
    receiver.wait_end(PATIENCE)?;
    let digest = traffic::summary(u64::try_from(text.len())?, &Sha256::digest(&text));
    let log = receiver.log();
    ensure!(log.contains(&digest), "sent {digest}, but the receiver says: {log}");
    Ok(())
}

/// A node without TUN beside one with it: pages, refusals, pings, datagrams and 20 MB, both ways, in both families.
pub(super) fn with_tun(context: &Context) -> Result<()> {
    let lab = Lab::new("userspace", &["server", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = start(context, &lab.host("alpha"), &invitation)?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    beta.up(&invitation, &[])?;
    let ((alpha4, alpha6), (beta4, beta6)) = (alpha.addresses()?, beta.addresses()?);
    let devices = alpha.host.run("ip").args("-br link").output()?;
    ensure!(!devices.contains("warren"), "a node without TUN device has one: {devices}");
    let _pages = [
        page(&alpha.host, "127.0.0.1:8080", "page of alpha")?,
        page(&alpha.host, "[::1]:8080", "page of alpha")?,
        page(&beta.host, "0.0.0.0:8080", "page of beta")?,
        page(&beta.host, "[::]:8081", "page of beta")?,
    ];
    for address in [&alpha4, &alpha6] {
        icmp(&beta.host, address, 2)?;
        let text = fetch(&beta.host, &url(address, 8080))?;
        ensure!(text == "page of alpha", "{address} said {text:?}");
        is_refused(&beta.host, address)?;
    }
    for words in [format!("--socks5 {PROXY}"), format!("-x http://{PROXY}"), format!("-p -x http://{PROXY}")] {
        for to in [url(&beta4, 8080), url(&beta6, 8081)] {
            let text = fetch_by(&alpha.host, &words, &to)?;
            ensure!(text == "page of beta", "{to} said {text:?} by {words}");
        }
    }
    // By name, which the node finds; and what is not in the tailnet goes as always.
    for words in [format!("--socks5-hostname {PROXY}"), format!("-x http://{PROXY}")] {
        ensure!(fetch_by(&alpha.host, &words, "http://beta:8080/")? == "page of beta", "not by name with {words}");
        let outside = format!("http://{}:8080/key?v=130", lab.host("server").address);
        ensure!(fetch_by(&alpha.host, &words, &outside)?.contains("mkey:"), "not outside with {words}");
    }
    // Refused over there, and an address that nobody has.
    let refused = fetch_by(&alpha.host, &format!("--socks5 {PROXY}"), &url(&beta4, 9));
    ensure!(refused.is_err_and(|error| error.to_string().contains("(5)")), "SOCKS5 does not say who refused");
    ensure!(fetch_by(&alpha.host, &format!("--socks5 {PROXY}"), &url("100.64.99.99", 80)).is_err(), "nobody is there");

    let me = std::env::current_exe()?;
    let mut echo = alpha.host.spawn("echo", &me, &["traffic", "echo", "127.0.0.1:7"])?;
    echo.wait_log("listening", PATIENCE)?;
    let knock = beta.host.spawn("knock", &me, &["traffic", "knock", "echo", &format!("{alpha4}:7")])?;
    wait_for("an answer to a datagram", PATIENCE, || (knock.log().lines().count() > 3).then_some(()))?;
    drop((knock, echo));

    alpha.wait_direct("beta")?;
    for (address, listen) in [(&alpha4, "127.0.0.1:7001"), (&alpha6, "[::1]:7001")] {
        transfer_to((&beta.host, address), (&alpha.host, listen), 20_000_000)?;
    }
    let mut receiver = beta.host.spawn("receive-nc", &me, &["traffic", "receive", &format!("{beta4}:7001")])?;
    send_by_nc(&alpha, "beta", &mut receiver)?;
    // With a TUN device the command connects by itself.
    let text = beta.host.run(beta.program()).args("nc --socket").arg(beta.socket()).args("beta 8080");
    ensure!(text.input("GET / HTTP/1.0\r\n\r\n")?.ends_with("page of beta"), "`warren nc` with a TUN device");
    Ok(())
}

/// Two nodes without TUN, for users without rights; and a port that the policy forbids.
pub(super) fn two(context: &Context) -> Result<()> {
    let lab = Lab::new("userspace-two", &["server", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = start(context, &lab.host("alpha"), &invitation)?;
    let beta = start(context, &lab.host("beta"), &invitation)?;
    let _pages = [page(&beta.host, "127.0.0.1:8080", "page of beta")?, page(&beta.host, "127.0.0.1:8081", "secret")?];
    let words = format!("--socks5-hostname {PROXY}");
    ensure!(fetch_by(&alpha.host, &words, "http://beta:8080/")? == "page of beta", "the page");
    ensure!(fetch_by(&alpha.host, &words, "http://beta:8081/")? == "secret", "before the policy forbids it");
    alpha.wait_direct("beta")?;
    let me = std::env::current_exe()?;
    let mut receiver = beta.host.spawn("receive-nc", &me, &["traffic", "receive", "127.0.0.1:7001"])?;
    send_by_nc(&alpha, "beta", &mut receiver)?;

    let file = lab.dir().join("policy.hujson");
    std::fs::write(&file, r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:8080"]}]}"#)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    wait_for("the policy to forbid a port", PATIENCE, || {
        fetch_by(&alpha.host, &format!("{words} --max-time 1"), "http://beta:8081/").is_err().then_some(())
    })?;
    ensure!(fetch_by(&alpha.host, &words, "http://beta:8080/")? == "page of beta", "what the policy allows goes on");
    Ok(())
}

/// The example of a program with a node inside it fetches from a node with a TUN device, and the other way round.
pub(super) fn inside(context: &Context) -> Result<()> {
    Run::cargo().args("build --quiet --locked --package warren-node --example inside").go()?;
    let lab = Lab::new("userspace-inside", &["server", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    beta.up(&invitation, &[])?;
    let _page = page(&beta.host, "0.0.0.0:8080", "page of beta")?;
    let key = invitation.value("--server-key")?;
    let words = ["inside-state", &server.url, &key, &invitation.key, "beta", "8080"];
    let mut program = lab.host("alpha").spawn("inside", &target().join("debug/examples/inside"), &words)?;
    program.wait_log("beta says: page of beta", PATIENCE)?;
    program.wait_log("listening", PATIENCE)?;
    let text = fetch(&beta.host, &url(&address_of(&server, "inside")?, 80))?;
    ensure!(text == "page from inside", "the program said {text:?}");
    Ok(())
}

/// The official Go client, which has no TUN device either, and our node fetch from each other.
pub(super) fn go_client(context: &Context) -> Result<()> {
    let caddy = packages::caddy()?;
    let lab = Lab::new("userspace-go", &["server", "alpha", "gopher"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = start(context, &lab.host("alpha"), &invitation)?;
    let (alpha4, _) = alpha.addresses()?;
    let _page = page(&alpha.host, "127.0.0.1:80", "page of alpha")?;
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server.url, &invitation.key, "page of gopher", &alpha4)?;
    let address = address_of(&server, "gopher")?;
    gopher.wait_page("page of alpha")?;
    wait_for("the Go client's page", PATIENCE, || {
        let text = fetch_by(&alpha.host, &format!("--socks5 {PROXY}"), &url(&address, 80)).ok()?;
        (text == "page of gopher").then_some(())
    })
    .with_context(|| format!("our node's log says:\n{}", alpha.process().log()))
}
