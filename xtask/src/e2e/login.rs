//! People log in: our node and the official Go client, with a certified OpenID provider and forms that are followed as a
//! browser does.

use super::Context;
use crate::fleet::{GoClient, Node, PATIENCE, Server, address_of, fetch};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::time::Instant;

/// Port of the provider, on the server's own machine, where it may speak plain HTTP.
const PORT: &str = "4000";
const SECRET: &str = "of the lab, for the lab";

/// A browser of few abilities: cookies, redirects and forms.
struct Browser {
    host: Host,
    jar: PathBuf,
}

/// A page and where it came from.
struct Page {
    url: String,
    html: String,
}

impl Browser {
    fn new(host: &Host, name: &str) -> Self {
        Self { host: host.clone(), jar: host.dir().join(format!("{name}.cookies")) }
    }

    fn load(&self, url: &str, form: &[(String, String)]) -> Result<Page> {
        let mut run = self.host.run("curl").args("-sS -L --max-time 20 --max-redirs 10 -w \n%{url_effective}");
        run = run.arg("-b").arg(&self.jar).arg("-c").arg(&self.jar);
        for (name, value) in form {
            run = run.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        let text = run.arg(url).output()?;
        let (html, url) = text.rsplit_once('\n').unwrap_or((&text, url));
        Ok(Page { url: url.to_owned(), html: html.to_owned() })
    }

    /// Follows the first link whose text begins with `text`.
    fn follow(&self, page: &Page, text: &str) -> Result<Page> {
        let at = page.html.find(&format!(">{text}")).with_context(|| format!("no link {text:?} in {}", page.html))?;
        let before = page.html.get(..at).unwrap_or_default();
        let target = before.rsplit_once("href=\"").and_then(|(_, rest)| rest.split('"').next());
        self.load(&page.resolve(target.context("a link leads nowhere")?), &[])
    }

    /// Fills in the page's form and sends it.
    fn submit(&self, page: &Page, fill: &[(&str, &str)]) -> Result<Page> {
        let form = page.html.split_once("<form").with_context(|| format!("no form in {}", page.html))?.1;
        let form = form.split("</form>").next().unwrap_or_default();
        let action = attribute(form, "action").context("a form leads nowhere")?;
        let hidden = form.split("<input").skip(1).filter(|input| attribute(input, "type") == Some("hidden"));
        let mut fields: Vec<(String, String)> = hidden
            .filter_map(|input| Some((attribute(input, "name")?.to_owned(), attribute(input, "value")?.to_owned())))
            .collect();
        fields.extend(fill.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
        self.load(&page.resolve(action), &fields)
    }

    /// Logs in as `name` at the login page `url` up to the page that asks to confirm.
    fn log_in(&self, url: &str, name: &str) -> Result<Page> {
        let page = self.load(url, &[])?;
        let page = self.follow(&page, "Log in with The Lab")?;
        let page = self.submit(&page, &[("login", name), ("password", "any")])?;
        self.submit(&page, &[])
    }
}

impl Page {
    fn resolve(&self, target: &str) -> String {
        if target.contains("://") {
            return target.to_owned();
        }
        let end = self.url.find("://").and_then(|at| self.url.get(at + 3..)?.find('/').map(|end| at + 3 + end));
        format!("{}{target}", self.url.get(..end.unwrap_or(self.url.len())).unwrap_or_default())
    }
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    tag.split_once(&format!("{name}=\""))?.1.split('"').next()
}

/// Finds the URL of a login in what a client says.
fn login_url(said: &str, server: &Server) -> Option<String> {
    let from = said.rfind(&format!("{}/login/", server.url))?;
    let rest = said.get(from..)?;
    let end = rest.find(|letter: char| letter.is_whitespace() || letter == '"' || letter == '\\')?;
    rest.get(..end).map(str::to_owned)
}

/// Starts `warren up` without a key, and returns its process once it shows a URL.
fn begin(context: &Context, node: &Node, server: &Server, key: &str) -> Result<(Process, String)> {
    let socket = node.socket().to_owned();
    let words = ["up", "--socket", &socket, "--login-server", &server.url, "--server-key", key, "--timeout", "60"];
    let up = node.host.spawn("up", &context.warren, &words)?;
    let url = wait_for("the URL of the login", PATIENCE, || login_url(&up.log(), server))?;
    Ok((up, url))
}

/// A person brings our node and a Go client in; both fetch from each other.
pub(super) fn with_provider(context: &Context) -> Result<()> {
    let caddy = packages::caddy()?;
    let provider = packages::oidc_provider()?;
    let lab = Lab::new("login", &["server", "alpha", "gopher"])?;
    let host = lab.host("server");
    let script = provider.join("provider.mjs");
    std::fs::write(&script, include_str!("login/provider.mjs"))?;
    let redirect = format!("http://{}:8080/oidc/lab/callback", host.address);
    let script = script.to_string_lossy().into_owned();
    let node = PathBuf::from("node");
    let mut issuer = host.spawn("provider", &node, &[&script, PORT, "warren", SECRET, &redirect])?;
    issuer.wait_log("listening", PATIENCE)?;
    std::fs::write(host.dir().join("secret"), SECRET)?;
    let config = host.dir().join("oidc.toml");
    let text = format!(
        "[[provider]]\nname = \"lab\"\ntitle = \"The Lab\"\nissuer = \"http://127.0.0.1:{PORT}\"\n\
         client_id = \"warren\"\nclient_secret_file = \"secret\"\n[provider.tailnets]\n\"example.com\" = \"default\"\n"
    );
    std::fs::write(&config, text)?;
    let mut server = Server::start(&context.warren, &host, &["--oidc", &config.to_string_lossy()])?;
    let key = server.invite(&[])?.value("--server-key")?;

    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    let ann = Browser::new(&host, "ann");
    let start = Instant::now();
    let (mut up, url) = begin(context, &alpha, &server, &key)?;
    let page = ann.log_in(&url, "ann")?;
    ensure!(page.html.contains("ann@example.com (Person ann)"), "not the page that asks: {}", page.html);
    let done = ann.submit(&page, &[("decision", "confirm")])?;
    ensure!(done.html.contains("was let in"), "the machine is not let in: {}", done.html);
    ensure!(up.wait_end(PATIENCE)?.success(), "warren up failed: {}", up.log());
    println!("        from `warren up` to connected: {:.1} s", start.elapsed().as_secs_f64());

    let (alpha4, _) = alpha.addresses()?;
    let me = std::env::current_exe()?;
    let mut page = alpha.host.spawn("page", &me, &["traffic", "http", &format!("{alpha4}:80"), "page of alpha"])?;
    page.wait_log("listening", PATIENCE)?;
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server.url, "", "page of gopher", &alpha4)?;
    let url = wait_for("the URL of the Go client's login", PATIENCE * 2, || login_url(&gopher.log(), &server))?;
    // The provider knows the browser by now, and asks nothing.
    let shown = ann.load(&url, &[])?;
    let asks = ann.follow(&shown, "Log in with The Lab")?;
    let done = ann.submit(&asks, &[("decision", "confirm")])?;
    ensure!(done.html.contains("was let in"), "the Go client is not let in: {}", done.html);
    gopher.wait_page("page of alpha")?;
    let address = address_of(&server, "gopher")?;
    wait_for("the Go client's page on our node", PATIENCE, || {
        (fetch(&alpha.host, &format!("http://{address}/")).ok()? == "page of gopher").then_some(())
    })?;

    // Her key ends; she logs in again, and the machine is the one that it was.
    server.admin(&["node", "expire", &alpha4])?;
    wait_for("the machine to notice that its key ended", PATIENCE, || is_running(&alpha).is_none().then_some(()))?;
    let (mut again, url) = begin_other(context, &alpha, &server, "ann")?;
    let asks = ann.follow(&ann.load(&url, &[])?, "Log in with The Lab")?;
    let done = ann.submit(&asks, &[("decision", "confirm")])?;
    ensure!(done.html.contains("was let in"), "Ann is not let in again: {}", done.html);
    ensure!(again.wait_end(PATIENCE)?.success(), "warren login failed: {}", again.log());
    wait_for("the machine to be back", PATIENCE, || is_running(&alpha))?;
    ensure!(alpha.addresses()?.0 == alpha4, "the machine has another address after the login");

    another_person(context, &server, &host, &alpha, &alpha4)?;
    drop(issuer);
    server.kill_and_restart()?;
    without_provider(context, &server, &host, &alpha)?;
    ensure!(server.admin(&["audit", "--verify"])?.contains("intact"), "the audit log is broken");
    Ok(())
}

/// Works out the code of a second factor, some steps from now, by a program that is not ours.
fn code(host: &Host, key: &str, later: i32) -> Result<String> {
    const TOTP: &str = "import base64, hmac, struct, sys, time\n\
        key, step = base64.b32decode(sys.argv[1]), int(time.time()) // 30 + int(sys.argv[2])\n\
        tag = hmac.new(key, struct.pack('>Q', step), 'sha1').digest()\n\
        at = tag[19] & 15\n\
        print('%06d' % ((struct.unpack('>I', tag[at:at + 4])[0] & 0x7fffffff) % 10 ** 6), end='')";
    host.run("python3").arg("-c").arg(TOTP).arg(key).arg(later.to_string()).output()
}

const PASSWORD: &str = "several words at once";

/// Fills in the form for name, password and code.
fn fill<'a>(name: &'a str, code: &'a str) -> [(&'a str, &'a str); 3] {
    [("name", name), ("password", PASSWORD), ("code", code)]
}

/// Makes an account by a link; returns the key of its second factor and the codes for when that is lost.
fn make_account(browser: &Browser, link: &str) -> Result<(String, Vec<String>)> {
    let page = browser.load(link, &[])?;
    let (_, rest) = page.html.split_once("name=\"key\"").with_context(|| format!("no key in {}", page.html))?;
    let key = attribute(rest, "value").context("the key is empty")?.to_owned();
    let code = code(&browser.host, &key, 0)?;
    let made = browser.submit(&page, &[("password", PASSWORD), ("again", PASSWORD), ("code", &code)])?;
    ensure!(made.html.contains("Your account is made"), "no account is made: {}", made.html);
    let codes = made.html.split_once("<pre>").and_then(|(_, rest)| rest.split("</pre>").next()).unwrap_or_default();
    let again = browser.load(link, &[])?;
    ensure!(again.html.contains("used already"), "the link works again: {}", again.html);
    Ok((key, codes.lines().map(str::to_owned).collect()))
}

/// Finds the link that makes an account in what the server says.
fn invitation(said: &str) -> Option<String> {
    said.split_whitespace().find(|word| word.contains("/invite/")).map(str::to_owned)
}

/// The first owner makes an account by the link that the server prints, brings a machine in, and invites somebody.
pub(super) fn with_password(context: &Context) -> Result<()> {
    let lab = Lab::new("password", &["server", "alpha"])?;
    let host = lab.host("server");
    let mut server = Server::start(&context.warren, &host, &[])?;
    let key = server.invite(&[])?.value("--server-key")?;
    let link = wait_for("the link for the owner", PATIENCE, || invitation(&server.process().log()))?;
    let owner = Browser::new(&host, "owner");
    let (totp, _) = make_account(&owner, &link)?;

    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    let (mut up, url) = begin(context, &alpha, &server, &key)?;
    let mut form = owner.follow(&owner.load(&url, &[])?, "Log in with a password")?;
    for wrong in ["000000".to_owned(), code(&host, &totp, -1)?] {
        form = owner.submit(&form, &fill("owner@default", &wrong))?;
        ensure!(form.html.contains("is wrong, or the code was used already"), "it is let on: {}", form.html);
    }
    let page = owner.submit(&form, &fill("owner@default", &code(&host, &totp, 1)?))?;
    ensure!(page.html.contains("Is this your machine?"), "not the page that asks: {}", page.html);
    let done = owner.submit(&page, &[("tailnet", "default"), ("decision", "confirm")])?;
    ensure!(done.html.contains("was let in"), "the machine is not let in: {}", done.html);
    ensure!(up.wait_end(PATIENCE)?.success(), "warren up failed: {}", up.log());

    // Somebody whom an administrator invites, without the phone, on the same machine.
    let link = invitation(&server.admin(&["user", "invite", "ann@example.com"])?).context("no link is printed")?;
    let ann = Browser::new(&host, "ann");
    let (_, codes) = make_account(&ann, &link)?;
    let first = codes.first().context("there are no codes for a lost phone")?.clone();
    server.kill_and_restart()?;
    ensure!(!server.process().own_log().contains("/invite/"), "the server prints a link at its second start");
    let (mut login, url) = begin_other(context, &alpha, &server, "ann")?;
    let form = ann.follow(&ann.load(&url, &[])?, "Log in with a password")?;
    let page = ann.submit(&form, &fill("ann@example.com", &first))?;
    let done = ann.submit(&page, &[("tailnet", "default"), ("decision", "confirm")])?;
    ensure!(done.html.contains("was let in"), "Ann is not let in: {}", done.html);
    ensure!(login.wait_end(PATIENCE)?.success(), "warren login failed: {}", login.log());
    let mut owners: Vec<_> =
        nodes_of(&server)?.iter().filter_map(|node| Some(node.get("user")?.as_str()?.to_owned())).collect();
    owners.sort();
    ensure!(owners == ["ann@example.com", "owner@default"], "the machine's nodes belong to {owners:?}");
    ensure!(server.admin(&["audit", "--verify"])?.contains("intact"), "the audit log is broken");
    Ok(())
}

/// Bob logs in on Ann's machine: he gets a node of his own, and hers stays hers. His waits for approval.
fn another_person(context: &Context, server: &Server, host: &Host, alpha: &Node, alpha4: &str) -> Result<()> {
    server.admin(&["tailnet", "approval", "default", "on"])?;
    let (_login, url) = begin_other(context, alpha, server, "bob")?;
    let bob = Browser::new(host, "bob");
    let page = bob.log_in(&url, "bob")?;
    let done = bob.submit(&page, &[("decision", "confirm")])?;
    ensure!(
        done.html.contains("as soon as an administrator approves it"),
        "Bob's machine does not wait: {}",
        done.html
    );
    let nodes = nodes_of(server)?;
    let owner = |node: &serde_json::Value| node.get("user").and_then(|user| user.as_str().map(str::to_owned));
    let first = |node: &serde_json::Value| node.pointer("/addresses/0").and_then(|at| at.as_str().map(str::to_owned));
    let mut owners: Vec<_> =
        nodes.iter().map(|node| (first(node).unwrap_or_default(), owner(node).unwrap_or_default())).collect();
    let hers = owners.iter().position(|(address, _)| address == alpha4).context("the first node is gone")?;
    ensure!(owners.remove(hers).1 == "ann@example.com", "Ann's node changed hands: {nodes:?}");
    let mut owners: Vec<_> = owners.into_iter().map(|(_, user)| user).collect();
    owners.sort();
    ensure!(owners == ["ann@example.com", "bob@example.com"], "the other nodes belong to {owners:?}");
    let waits = |node: &&serde_json::Value| node.get("approved") == Some(&serde_json::Value::Bool(false));
    let waiting = nodes.iter().find(waits).context("no machine waits for approval")?;
    ensure!(owner(waiting).as_deref() == Some("bob@example.com"), "another machine waits: {waiting}");
    let id = waiting.get("stable_id").and_then(serde_json::Value::as_str).context("a node has no ID")?;
    ensure!(is_running(alpha).is_none(), "a machine that waits takes part");
    server.admin(&["node", "approve", id])?;
    wait_for("Bob's machine to take part", PATIENCE, || is_running(alpha))?;
    ensure!(server.admin(&["--json", "audit"])?.contains("node.approve"), "the approval is not in the audit log");
    Ok(())
}

/// The provider went away before the server started: a page says so, and whoever was in is in.
fn without_provider(context: &Context, server: &Server, host: &Host, alpha: &Node) -> Result<()> {
    wait_for("both machines to be back", PATIENCE, || {
        let nodes = nodes_of(server).ok()?;
        let online = |node: &&serde_json::Value| node.get("online") == Some(&serde_json::Value::Bool(true));
        (nodes.iter().filter(online).count() == 2).then_some(())
    })?;
    wait_for("Bob's machine to go on", PATIENCE, || is_running(alpha))?;
    let (_login, url) = begin_other(context, alpha, server, "carl")?;
    let browser = Browser::new(host, "carl");
    let page = browser.load(&url, &[])?;
    let page = browser.follow(&page, "Log in with The Lab")?;
    ensure!(page.html.contains("The Lab cannot be asked just now"), "the page does not say it: {}", page.html);
    Ok(())
}

fn is_running(node: &Node) -> Option<()> {
    node.status().ok().filter(|status| status["BackendState"] == "Running").map(|_| ())
}

fn nodes_of(server: &Server) -> Result<Vec<serde_json::Value>> {
    Ok(serde_json::from_str(&server.admin(&["--json", "node", "list"])?)?)
}

/// Starts a login of somebody else on the machine of `node`, and returns its process once it shows a URL.
fn begin_other(context: &Context, node: &Node, server: &Server, name: &str) -> Result<(Process, String)> {
    let words = ["login", "--socket", node.socket(), "--timeout", "60"];
    let login = node.host.spawn(&format!("login-of-{name}"), &context.warren, &words)?;
    let url = wait_for("the URL of another login", PATIENCE, || login_url(&login.log(), server))?;
    Ok((login, url))
}
