//! Browsers on their way through a login, honest and other ones, with a provider on loopback.

use std::path::Path;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use warren_wire::control::{RegisterRequest, RegisterResponse};
use zeroize::Zeroizing;

use super::*;
use crate::OidcConfig;
use crate::oidc::tests::Signer;
use crate::testing::{FROM, machine, node_key, register, with_key};

/// How a provider behaves.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Honest,
    Huge,
    Silent,
    Moved,
    Broken,
    Babbling,
}

/// A provider that knows Ann.
struct Issuer {
    url: String,
    signer: Signer,
    mood: Mutex<Mood>,
    /// Claims of the next token; the nonce is that of the last authorization unless it is said here.
    claims: Mutex<Value>,
    user_info: Mutex<Option<Value>>,
    asked: Mutex<Vec<String>>,
    /// Challenge and nonce that the last browser brought.
    brought: Mutex<(String, String)>,
}

impl Issuer {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let claims = json!({"sub": "1", "email": "ann@example.com", "email_verified": true, "name": "Ann"});
        let issuer = Arc::new(Self {
            url,
            signer: Signer::new(),
            mood: Mutex::new(Mood::Honest),
            claims: Mutex::new(claims),
            user_info: Mutex::default(),
            asked: Mutex::default(),
            brought: Mutex::default(),
        });
        let serving = Arc::clone(&issuer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let issuer = Arc::clone(&serving);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    let mut part = [0; 4096];
                    while !whole(&request) {
                        match stream.read(&mut part).await {
                            Ok(length) if length > 0 => request.extend_from_slice(&part[..length]),
                            _ => return,
                        }
                    }
                    let request = String::from_utf8(request).unwrap();
                    if *issuer.mood.lock().unwrap() == Mood::Silent {
                        std::future::pending::<()>().await;
                    }
                    // Whoever had enough of a huge answer hangs up.
                    drop(stream.write_all(issuer.answer(&request).as_bytes()).await);
                });
            }
        });
        issuer
    }

    fn answer(&self, request: &str) -> String {
        let path = request.split(' ').nth(1).unwrap();
        self.asked.lock().unwrap().push(path.to_owned());
        let (status, body) = match *self.mood.lock().unwrap() {
            Mood::Huge => ("200 OK", format!("{{\"x\":\"{}\"}}", "x".repeat(10 * 1024 * 1024))),
            Mood::Moved => ("302 Found\r\nLocation: http://127.0.0.1:1/", String::new()),
            Mood::Broken => ("500 Internal Server Error", "{}".to_owned()),
            Mood::Babbling => ("200 OK", "<html>".to_owned()),
            Mood::Honest | Mood::Silent => match path {
                "/.well-known/openid-configuration" => ("200 OK", self.document().to_string()),
                "/keys" => ("200 OK", self.signer.set().to_string()),
                "/token" => self.token(request),
                "/me" => {
                    assert!(request.contains("uthorization: Bearer access\r\n"), "{request}");
                    ("200 OK", self.user_info.lock().unwrap().clone().unwrap().to_string())
                }
                "/login/oauth/access_token" => self.github_token(request),
                path if path.starts_with("/api/v3/user") => {
                    assert!(request.contains("uthorization: Bearer access\r\n"), "{request}");
                    ("200 OK", self.claims.lock().unwrap()[path].to_string())
                }
                _ => ("404 Not Found", String::new()),
            },
        };
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    fn document(&self) -> Value {
        let at = |path: &str| format!("{}{path}", self.url);
        json!({"issuer": self.url, "authorization_endpoint": at("/auth"), "token_endpoint": at("/token"),
            "jwks_uri": at("/keys"), "userinfo_endpoint": at("/me"),
            "authorization_response_iss_parameter_supported": true})
    }

    fn token(&self, request: &str) -> (&'static str, String) {
        let form: Vec<(String, String)> = form_urlencoded::parse(body(request).as_bytes()).into_owned().collect();
        let field = |name: &str| form.iter().find(|(key, _)| key == name).unwrap().1.clone();
        let (challenge, nonce) = self.brought.lock().unwrap().clone();
        assert_eq!(URL_SAFE_NO_PAD.encode(Sha256::digest(field("code_verifier"))), challenge);
        assert!(request.contains("uthorization: Basic d2FycmVuOnNlY3JldA==\r\n"), "{request}");
        if field("code") != "good" {
            return ("400 Bad Request", json!({"error": "invalid_grant"}).to_string());
        }
        let now = crate::Clock::system().now().as_second();
        let mut claims = json!({"iss": self.url, "aud": "warren", "nonce": nonce, "iat": now, "exp": now + 60});
        for (name, value) in self.claims.lock().unwrap().as_object().unwrap() {
            claims[name] = value.clone();
        }
        let id_token = self.signer.sign(&json!({"alg": "ES256", "kid": "ec"}), &claims);
        ("200 OK", json!({"id_token": id_token, "access_token": "access", "token_type": "Bearer"}).to_string())
    }

    fn github_token(&self, request: &str) -> (&'static str, String) {
        let form: Vec<(String, String)> = form_urlencoded::parse(body(request).as_bytes()).into_owned().collect();
        let field = |name: &str| form.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!(URL_SAFE_NO_PAD.encode(Sha256::digest(field("code_verifier"))), self.brought.lock().unwrap().0);
        assert_eq!((field("client_id"), field("client_secret")), ("warren".to_owned(), "secret".to_owned()));
        match field("code").as_str() {
            "good" => ("200 OK", json!({"access_token": "access", "scope": "", "token_type": "bearer"}).to_string()),
            _ => ("200 OK", json!({"error": "bad_verification_code"}).to_string()),
        }
    }

    fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

fn whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// A server with that provider and another one, and a machine that waits at it.
struct Scene {
    rig: Rig,
    issuer: Arc<Issuer>,
    base: &'static str,
    /// Path at the provider where browsers arrive.
    authorization: &'static str,
    id: String,
    url: String,
}

const BASE: &str = "http://control.test:8080";

impl Scene {
    async fn new() -> Self {
        Self::at(BASE, "").await
    }

    async fn at(base: &'static str, more: &str) -> Self {
        let issuer = Issuer::start().await;
        let text = format!(
            "[[provider]]\nname = \"example\"\ntitle = \"Example <Ltd>\"\nissuer = \"{}\"\nclient_id = \"warren\"\n\
             client_secret_file = \"x\"\n{more}\ntailnets = {{ \"example.com\" = \"default\" }}\n\
             [[provider]]\nname = \"other\"\nissuer = \"http://127.0.0.1:1\"\nclient_id = \"warren\"\n",
            issuer.url
        );
        let secret = |_: &Path| Ok(Zeroizing::new("secret".to_owned()));
        let config = OidcConfig::parse(&text, Path::new("oidc.toml"), secret).unwrap();
        let rig = Rig::with_oidc(ConnectionLimits::default(), &[], config, base).await;
        let answer = rig.shared.control.register(machine(1), register(1), FROM).await;
        let id = rig.shared.control.login_id(&answer.auth_url).unwrap().to_owned();
        let authorization = if more.contains("github") { "login/oauth/authorize" } else { "auth" };
        Self { rig, issuer, base, authorization, id, url: answer.auth_url }
    }

    async fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> String {
        let length = body.len();
        self.rig
            .ask(&format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n{fields}\r\n{body}"
            ))
            .await
    }

    async fn get(&self, path: &str, cookie: &str) -> String {
        self.ask("GET", path, &format!("Cookie: a=b; {cookie}\r\n"), "").await
    }

    /// Follows the link to the provider; returns the cookie, as it is sent back, and the path that leads back.
    async fn leave(&self) -> (String, String) {
        let answer = self.get(&format!("/login/{}/start?provider=example", self.id), "").await;
        assert_eq!(status(&answer), 303, "{answer}");
        let url = field(&answer, "location").unwrap();
        let start = format!("{}/{}?", self.issuer.url, self.authorization);
        assert!(url.starts_with(&start), "{url}");
        let query: Vec<(String, String)> =
            form_urlencoded::parse(url.split_once('?').unwrap().1.as_bytes()).into_owned().collect();
        let parameter = |name: &str| query.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!(parameter("redirect_uri"), format!("{}/oidc/example/callback", self.base));
        *self.issuer.brought.lock().unwrap() = (parameter("code_challenge"), parameter("nonce"));
        let cookie = field(&answer, "set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let issuer: String = form_urlencoded::byte_serialize(self.issuer.url.as_bytes()).collect();
        (cookie, format!("/oidc/example/callback?state={}&iss={issuer}&code=good", parameter("state")))
    }

    /// Logs in up to the page that asks to confirm; returns cookie and page.
    async fn arrive(&self) -> (String, String) {
        let (cookie, back) = self.leave().await;
        let answer = self.get(&back, &cookie).await;
        assert_eq!((status(&answer), field(&answer, "location")), (303, Some(self.url.clone())), "{answer}");
        let page = self.get(&format!("/login/{}", self.id), &cookie).await;
        assert_eq!(status(&page), 200);
        (cookie, page)
    }

    async fn post(&self, cookie: &str, more: &str, form: &str) -> String {
        let fields = format!("Cookie: {cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\n{more}");
        self.ask("POST", &format!("/login/{}", self.id), &fields, form).await
    }

    async fn wait(&self) -> RegisterResponse {
        let request = RegisterRequest { followup: self.url.clone(), ..register(1) };
        self.rig.shared.control.register(machine(1), request, FROM).await
    }

    fn is_in(&self) -> bool {
        self.rig.shared.control.is_registered(&machine(1), &node_key(1))
    }
}

fn field(answer: &str, name: &str) -> Option<String> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
}

fn csrf(page: &str) -> String {
    let rest = page.split_once("name=\"csrf\" value=\"").unwrap_or_else(|| panic!("no form: {page}")).1;
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_person_logs_in_confirms_and_the_machine_is_in() {
    let scene = Scene::new().await;
    let first = scene.get(&format!("/login/{}", scene.id), "").await;
    assert!(first.contains("Log in with Example &lt;Ltd&gt;</a>") && !first.contains("csrf"), "{first}");
    let (cookie, page) = scene.arrive().await;
    for shown in ["host1", "linux", "192.0.2.7", "ann@example.com (Ann)", "network <strong>default"] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    assert!(!page.contains("<script") && !scene.is_in());
    let waits = scene.wait();
    let confirm = async {
        let form = format!("csrf={}&tailnet=default&decision=confirm", csrf(&page));
        scene.post(&cookie, &format!("Origin: {BASE}\r\n"), &form).await
    };
    let (answer, done) = tokio::join!(waits, confirm);
    assert_eq!(status(&done), 200, "{done}");
    assert!(done.contains("was let in"), "{done}");
    assert!(answer.machine_authorized && answer.login.login_name == "ann@example.com", "{answer:?}");
    let page = scene.get(&format!("/login/{}", scene.id), &cookie).await;
    assert!(page.contains("It was let in") && !page.contains("<form"), "{page}");
}

#[tokio::test]
async fn pages_run_nothing_and_cookies_stay_here() {
    let scene = Scene::at("https://vpn.test", "").await;
    let page = scene.get(&format!("/login/{}", scene.id), "").await;
    let policy = field(&page, "content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && policy.contains("form-action 'self'"));
    let style = body(&page).split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(style));
    assert!(policy.contains(&hash), "the style that the page has is the one that is allowed");
    let answer = scene.get(&format!("/login/{}/start?provider=example", scene.id), "").await;
    let cookie = field(&answer, "set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-warren-login-"), "{cookie}");
    for part in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!(field(&answer, "cache-control").as_deref(), Some("no-store"));
    // Nothing that comes from outside leads anywhere else.
    for path in ["start?provider=https://evil.test", "start?provider=", "start", "start?next=//evil.test"] {
        assert_eq!(status(&scene.get(&format!("/login/{}/{path}", scene.id), "").await), 404, "{path}");
    }
    let answer = scene.get("/login/0123/start?provider=example", "").await;
    assert_eq!((status(&answer), field(&answer, "set-cookie")), (404, None), "no login, no attempt");
}

#[tokio::test]
async fn a_callback_works_once_in_the_browser_that_began() {
    let scene = Scene::new().await;
    let (cookie, back) = scene.leave().await;
    // Somebody else gets hold of the callback's URL; so does a link checker.
    assert_eq!(status(&scene.ask("HEAD", &back, "", "").await), 405);
    let (other_cookie, _) = scene.leave().await;
    let name = cookie.split('=').next().unwrap();
    for stolen in ["", &other_cookie, &format!("{name}=x"), &format!("{name}=")] {
        let (cookie, back) = scene.leave().await;
        let answer = scene.get(&back, stolen).await;
        assert_eq!(status(&answer), 400, "{stolen:?} {answer}");
        assert_eq!(status(&scene.get(&back, &cookie).await), 400, "it ended the attempt");
        let page = scene.get(&format!("/login/{}", scene.id), stolen).await;
        assert!(!page.contains("csrf"), "{page}");
    }
    let (cookie, back) = scene.leave().await;
    assert_eq!(status(&scene.get(&back, &cookie).await), 303);
    assert_eq!(status(&scene.get(&back, &cookie).await), 400, "replayed");
    assert_eq!(status(&scene.get("/oidc/example/callback?state=x&code=good", &cookie).await), 400);
    assert_eq!(status(&scene.get("/oidc/example/callback", &cookie).await), 400);
    assert_eq!(status(&scene.get("/oidc/unknown/callback?state=x&code=good", &cookie).await), 404);
    // The browser was sent to one provider and comes back from another.
    let (cookie, back) = scene.leave().await;
    assert_eq!(status(&scene.get(&back.replace("/example/", "/other/"), &cookie).await), 400);
    for (from, to) in [("&iss=http", "&iss=https"), ("&iss=", "&isn=")] {
        let (cookie, back) = scene.leave().await;
        let answer = scene.get(&back.replace(from, to), &cookie).await;
        assert!(answer.contains("another provider"), "{answer}");
    }
    assert!(!scene.is_in());
}

#[tokio::test]
async fn what_the_provider_says_must_hold() {
    let scene = Scene::at(BASE, "allowed_domains = [\"example.com\"]").await;
    let good = scene.issuer.claims.lock().unwrap().clone();
    let now = crate::Clock::system().now().as_second();
    for (claim, value, told) in [
        ("iss", json!("https://evil.example"), "not of this provider"),
        ("aud", json!("other"), "another client"),
        ("nonce", json!("other"), "another login"),
        ("exp", json!(now - 1000), "expired"),
        ("iat", json!(now + 1000), "future"),
        ("email_verified", json!(false), "not of a domain"),
        ("email", json!("ann@elsewhere.test"), "not of a domain"),
    ] {
        let mut claims = good.clone();
        claims[claim] = value;
        *scene.issuer.claims.lock().unwrap() = claims;
        let (cookie, back) = scene.leave().await;
        let answer = scene.get(&back, &cookie).await;
        assert_eq!(status(&answer), 403, "{claim} {answer}");
        assert!(answer.contains(told), "{claim} {answer}");
        assert!(!scene.get(&format!("/login/{}", scene.id), &cookie).await.contains("csrf"), "{claim}");
    }
    *scene.issuer.claims.lock().unwrap() = good;
    for (from, to, told) in [
        ("code=good", "code=bad", "invalid_grant"),
        ("code=good", "error=access_denied&error_description=%3Cb%3E", "access_denied &lt;b&gt;"),
    ] {
        let (cookie, back) = scene.leave().await;
        let answer = scene.get(&back.replace(from, to), &cookie).await;
        assert_eq!(status(&answer), 403, "{answer}");
        assert!(answer.contains(told), "{answer}");
    }
}

#[tokio::test]
async fn more_is_asked_at_the_userinfo_endpoint_if_the_token_says_little() {
    let scene = Scene::new().await;
    *scene.issuer.claims.lock().unwrap() = json!({"sub": "1"});
    let more = |sub: &str| Some(json!({"sub": sub, "email": "bob@example.com", "email_verified": true}));
    *scene.issuer.user_info.lock().unwrap() = more("1");
    let (_, page) = scene.arrive().await;
    assert!(page.contains("bob@example.com"), "{page}");
    *scene.issuer.user_info.lock().unwrap() = more("2");
    let (cookie, back) = scene.leave().await;
    assert!(scene.get(&back, &cookie).await.contains("different people"));
}

#[tokio::test]
async fn a_network_that_is_named_and_missing_is_noticed() {
    let scene = Scene::new().await;
    let sign_in = &scene.rig.shared.sign_in;
    assert_eq!(sign_in.missing(|name| name == "default"), []);
    assert_eq!(sign_in.missing(|_| false), [("example", "default")]);
}

#[tokio::test]
async fn github_tells_over_its_api_who_it_is() {
    let scene = Scene::at(BASE, "kind = \"github\"\nallowed_groups = [\"7\"]").await;
    let honest = json!({
        "/api/v3/user": {"id": 42, "login": "ann", "name": null, "email": "root@example.com"},
        "/api/v3/user/emails?per_page=100": [
            {"email": "root@example.com", "primary": false, "verified": false},
            {"email": "Ann@Example.com", "primary": true, "verified": true},
        ],
        "/api/v3/user/orgs?per_page=100": [{"login": "example", "id": 7}],
    });
    let set = |path: &str, value: Value| {
        let mut claims = honest.clone();
        claims[path] = value;
        *scene.issuer.claims.lock().unwrap() = claims;
    };
    let (orgs, user) = ("/api/v3/user/orgs?per_page=100", "/api/v3/user");
    for (path, value, told) in [
        (orgs, json!([]), "none of the groups"),
        (orgs, json!([{"login": "example", "id": 8}]), "none of the groups"),
        (user, json!({"login": "ann"}), "cannot be believed"),
        (user, json!({"id": "42", "login": "ann"}), "cannot be believed"),
    ] {
        set(path, value);
        let (cookie, back) = scene.leave().await;
        let answer = scene.get(&back, &cookie).await;
        assert!(status(&answer) == 403 && answer.contains(told), "{told}: {answer}");
    }
    set("", json!(0));
    let (cookie, back) = scene.leave().await;
    let answer = scene.get(&back.replace("code=good", "code=bad"), &cookie).await;
    assert!(status(&answer) == 403 && answer.contains("bad_verification_code"), "{answer}");
    let (cookie, page) = scene.arrive().await;
    // The primary address, and the account's name where it has no other.
    assert!(page.contains("ann@example.com (ann)"), "{page}");
    let form = format!("csrf={}&tailnet=default&decision=confirm", csrf(&page));
    assert!(scene.post(&cookie, "", &form).await.contains("was let in"));
    let asked = scene.issuer.asked.lock().unwrap().clone();
    assert!(!asked.iter().any(|path| path.contains("well-known") || path == "/keys"), "{asked:?}");
}

#[tokio::test]
async fn an_address_that_github_did_not_verify_counts_for_nothing() {
    let scene = Scene::at(BASE, "kind = \"github\"").await;
    *scene.issuer.claims.lock().unwrap() = json!({
        "/api/v3/user": {"id": 42, "login": "ann@example.com", "name": "Ann"},
        "/api/v3/user/emails?per_page=100": [{"email": "ann@example.com", "primary": true, "verified": false}],
    });
    let (_, page) = scene.arrive().await;
    assert!(page.contains("42@example (Ann)") && page.contains("belongs to no network here"), "{page}");
}

#[tokio::test]
async fn only_the_page_itself_can_confirm() {
    let scene = Scene::new().await;
    let (cookie, page) = scene.arrive().await;
    let good = format!("csrf={}&decision=confirm", csrf(&page));
    let name = cookie.split('=').next().unwrap();
    for (cookie, more, form, wanted) in [
        ("", "", good.as_str(), 403),
        (&format!("{name}=x"), "", &good, 403),
        (&cookie, "", "decision=confirm", 403),
        (&cookie, "", "csrf=&decision=confirm", 403),
        (&cookie, "Origin: https://evil.test\r\n", &good, 403),
        (&cookie, "Origin: null\r\n", &good, 403),
        (&cookie, "", &good.replace("confirm", "other"), 400),
        (&cookie, "", &format!("{good}&tailnet=other"), 409),
    ] {
        let answer = scene.post(cookie, more, form).await;
        assert_eq!(status(&answer), wanted, "{more} {form} {answer}");
        assert!(!scene.is_in());
    }
    // An earlier page of the same login, of another browser, has another token.
    let (other_cookie, other_page) = scene.arrive().await;
    let mixed = scene.post(&other_cookie, "", &good).await;
    assert_eq!(status(&mixed), 403, "{mixed}");
    let form = format!("csrf={}&decision=reject", csrf(&other_page));
    let (waits, answer) = tokio::join!(scene.wait(), scene.post(&other_cookie, "", &form));
    assert!(status(&answer) == 200 && waits.error.contains("rejected"), "{waits:?}");
    assert_eq!(status(&scene.post(&cookie, "", &good).await), 410, "it was decided");
    assert!(!scene.is_in());
}

#[tokio::test]
async fn a_provider_in_trouble_is_told_and_hurts_nobody_else() {
    let scene = Scene::new().await;
    let control = &scene.rig.shared.control;
    let key = crate::admin::NewAuthKey { tailnet: "default".to_owned(), ..Default::default() };
    let key = control.admin(crate::Who::local_user(0)).create_auth_key(key).await.unwrap();
    let start = format!("/login/{}/start?provider=example", scene.id);
    for mood in [Mood::Huge, Mood::Moved, Mood::Broken, Mood::Babbling] {
        scene.issuer.mood(mood);
        let answer = scene.get(&start, "").await;
        assert_eq!(status(&answer), 502, "{answer}");
        assert_eq!(field(&answer, "set-cookie"), None);
        assert!(!body(&answer).contains("127.0.0.1:1"), "no detail of the inside: {answer}");
    }
    let answer = scene.get(&format!("/login/{}/start?provider=other", scene.id), "").await;
    assert!(status(&answer) == 502 && answer.contains("Machines that are in stay in"), "{answer}");
    let asked = scene.issuer.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|path| path == "/.well-known/openid-configuration"), "{asked:?}");
    // Known once, it is not asked each time; a browser that is underway comes back to the trouble.
    scene.issuer.mood(Mood::Honest);
    let (cookie, back) = scene.leave().await;
    scene.issuer.mood(Mood::Huge);
    let answer = scene.get(&back, &cookie).await;
    assert_eq!(status(&answer), 502, "{answer}");
    let joined = control.register(machine(5), with_key(register(5), key.text.expose()), FROM).await;
    assert!(joined.machine_authorized, "other machines come in");
    scene.issuer.mood(Mood::Honest);
    scene.arrive().await;
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_not_waited_for() {
    let scene = Scene::new().await;
    scene.issuer.mood(Mood::Silent);
    // Time goes as fast as nothing happens.
    tokio::time::pause();
    let before = crate::Clock::system().instant();
    let answer = scene.get(&format!("/login/{}/start?provider=example", scene.id), "").await;
    assert_eq!(status(&answer), 502, "{answer}");
    let waited = crate::Clock::system().instant() - before;
    assert!(waited.as_secs() <= 11, "{waited:?}");
}
