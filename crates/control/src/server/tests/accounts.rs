//! Browsers that make an account and log in with it, honest and other ones.

use warren_wire::control::RegisterRequest;
use zeroize::Zeroizing;

use super::*;
use crate::account::totp::{Secret, code, step_at};
use crate::testing::{FROM, machine, node_key, register};

const BASE: &str = "http://control.test:8080";
const OWNER: &str = "owner@default";
const PASSWORD: &str = "several words at once";

/// A server, and a machine that waits at it.
struct Scene {
    rig: Rig,
    id: String,
    url: String,
}

impl Scene {
    async fn new() -> Self {
        let rig = Rig::new().await;
        let answer = rig.shared.control.register(machine(1), register(1), FROM).await;
        let id = rig.shared.control.login_id(&answer.auth_url).unwrap().to_owned();
        Self { rig, id, url: answer.auth_url }
    }

    async fn get(&self, path: &str, cookie: &str) -> String {
        let fields = format!("Cookie: a=b; {cookie}\r\n");
        self.rig.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n")).await
    }

    async fn post(&self, path: &str, cookie: &str, more: &str, form: &[(&str, &str)]) -> String {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.rig
            .ask(&format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\nCookie: {cookie}\r\n{more}\r\n{form}",
                form.len()
            ))
            .await
    }

    /// Makes the owner's account by the pages; returns its key and the codes for when that is lost.
    async fn make_account(&self) -> (Secret, Vec<String>) {
        let admin = self.rig.shared.control.admin(crate::Who::local_user(0));
        let url = admin.invite_user("default", OWNER).await.unwrap().url;
        let path = url.strip_prefix(BASE).unwrap();
        let page = self.get(path, "").await;
        assert_eq!(status(&page), 200, "{page}");
        let totp = Secret::from_text(&value(&page, "key")).unwrap();
        let code = self.code(&totp, 0);
        let form = account(&totp, &code);
        let form: Vec<_> = form.iter().map(|(key, value)| (*key, value.as_ref())).collect();
        let page = self.post(path, "", &origin(BASE), &form).await;
        assert_eq!(status(&page), 200, "{page}");
        let codes = body(&page).split_once("<pre>").unwrap().1.split_once("</pre>").unwrap().0;
        (totp, codes.lines().map(str::to_owned).collect())
    }

    fn code(&self, totp: &Secret, later: i64) -> String {
        code(totp, step_at(self.rig.shared.control.clock().now()) + later)
    }

    fn form(&self) -> String {
        format!("/login/{}/password", self.id)
    }

    /// Opens the form; returns its cookie and token.
    async fn open(&self) -> (String, String) {
        let page = self.get(&self.form(), "").await;
        assert_eq!(status(&page), 200, "{page}");
        (cookie(&page), value(&page, "csrf"))
    }

    async fn enter(&self, name: &str, password: &str, code: &str) -> String {
        let (cookie, csrf) = self.open().await;
        let form = [("csrf", csrf.as_str()), ("name", name), ("password", password), ("code", code)];
        self.post(&self.form(), &cookie, &origin(BASE), &form).await
    }

    fn is_in(&self) -> bool {
        self.rig.shared.control.is_registered(&machine(1), &node_key(1))
    }
}

fn account<'a>(totp: &Secret, code: &'a str) -> [(&'static str, std::borrow::Cow<'a, str>); 4] {
    let key = totp.text().to_string();
    [("key", key.into()), ("password", PASSWORD.into()), ("again", PASSWORD.into()), ("code", code.into())]
}

fn origin(base: &str) -> String {
    format!("Origin: {base}\r\n")
}

fn field(answer: &str, name: &str) -> Option<String> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
}

fn cookie(answer: &str) -> String {
    field(answer, "set-cookie").unwrap_or_else(|| panic!("no cookie: {answer}")).split(';').next().unwrap().to_owned()
}

fn value(page: &str, name: &str) -> String {
    let rest = page.split_once(&format!("name=\"{name}\" value=\"")).unwrap_or_else(|| panic!("no {name}: {page}")).1;
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_person_makes_an_account_and_brings_a_machine_in() {
    let scene = Scene::new().await;
    let first = scene.get(&format!("/login/{}", scene.id), "").await;
    assert!(!first.contains("/password"), "nobody has one yet: {first}");
    let (totp, codes) = scene.make_account().await;
    assert!(codes.len() == 10 && codes.iter().all(|code| code.len() == 19), "{codes:?}");
    let page = scene.get(&format!("/login/{}", scene.id), "").await;
    assert!(page.contains("Log in with a password"), "{page}");
    let answer = scene.enter(" Owner@default ", PASSWORD, &scene.code(&totp, 1)).await;
    assert_eq!((status(&answer), field(&answer, "location")), (303, Some(scene.url.clone())), "{answer}");
    let cookie = cookie(&answer);
    let page = scene.get(&format!("/login/{}", scene.id), &cookie).await;
    for shown in
        ["host1", "linux", "192.0.2.7", "owner@default", "network <strong>default", "an account on this server"]
    {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    assert!(!page.contains("<script") && !scene.is_in());
    let csrf = value(&page, "csrf");
    let waits = {
        let request = RegisterRequest { followup: scene.url.clone(), ..register(1) };
        scene.rig.shared.control.register(machine(1), request, FROM)
    };
    let confirm = async {
        let form = [("csrf", csrf.as_str()), ("tailnet", "default"), ("decision", "confirm")];
        scene.post(&format!("/login/{}", scene.id), &cookie, &origin(BASE), &form).await
    };
    let (answer, done) = tokio::join!(waits, confirm);
    assert!(status(&done) == 200 && done.contains("was let in"), "{done}");
    assert!(answer.machine_authorized && answer.login.login_name == OWNER, "{answer:?}");
}

#[tokio::test]
async fn a_link_is_not_used_up_by_looking_nor_by_mistakes() {
    let scene = Scene::new().await;
    let admin = scene.rig.shared.control.admin(crate::Who::local_user(0));
    let url = admin.invite_user("default", OWNER).await.unwrap().url;
    let path = url.strip_prefix(BASE).unwrap();
    for _ in 0..3 {
        assert_eq!(status(&scene.get(path, "").await), 200);
    }
    assert_eq!(
        status(&scene.rig.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await),
        405
    );
    let page = scene.get(path, "").await;
    let policy = field(&page, "content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(page.contains("<svg ") && page.contains("otpauth://totp/warren:owner%40default?secret="), "{page}");
    assert!(!page.contains("<script") && !page.contains("style=") && !page.contains("http-equiv"));
    let totp = Secret::from_text(&value(&page, "key")).unwrap();
    let good = scene.code(&totp, 0);
    let try_with = async |name: &str, value: &str, from: &str| {
        let mut form = account(&totp, &good);
        form.iter_mut().filter(|(key, _)| *key == name).for_each(|(_, held)| *held = value.to_owned().into());
        let form: Vec<_> = form.iter().map(|(key, value)| (*key, value.as_ref())).collect();
        scene.post(path, "", from, &form).await
    };
    let own = origin(BASE);
    for (name, wrong, said) in [
        ("password", "another one that differs", "not the same"),
        ("code", "000000", "not what the key shows"),
        ("code", "", "not what the key shows"),
    ] {
        let page = try_with(name, wrong, &own).await;
        assert!(status(&page) == 400 && page.contains(said), "{name}: {page}");
        assert_eq!(value(&page, "key"), totp.text().as_str(), "the phone need not scan another one");
        assert!(!page.contains(PASSWORD));
    }
    assert_eq!(status(&try_with("", "", &origin("https://evil.test")).await), 403);
    let page = try_with("", "", &own).await;
    assert_eq!(status(&page), 200, "{page}");
    for answer in [scene.get(path, "").await, try_with("", "", &own).await, scene.get("/invite/x", "").await] {
        assert!(status(&answer) == 404 && answer.contains("used already"), "{answer}");
    }
}

/// The form works in the browser that it was given to, from the page alone; whoever plants a cookie gains nothing.
#[tokio::test]
async fn nobody_logs_in_for_somebody_else() {
    let scene = Scene::new().await;
    let (totp, codes) = scene.make_account().await;
    let good = scene.code(&totp, 1);
    let (own, csrf) = scene.open().await;
    let (other, other_csrf) = scene.open().await;
    assert_ne!((&own, &csrf), (&other, &other_csrf));
    let name = own.split('=').next().unwrap();
    let enter = async |cookie: &str, csrf: &str, from: &str, code: &str| {
        let form = [("csrf", csrf), ("name", OWNER), ("password", PASSWORD), ("code", code)];
        scene.post(&scene.form(), cookie, from, &form).await
    };
    let here = origin(BASE);
    for (cookie, csrf, from) in [
        (own.as_str(), other_csrf.as_str(), here.as_str()),
        (&own, "", &here),
        ("", &csrf, &here),
        (&format!("{name}="), &csrf, &here),
        (&format!("{name}=x"), &csrf, &here),
        (&own, &csrf, &origin("https://evil.test")),
        (&own, &csrf, &origin("null")),
    ] {
        let answer = enter(cookie, csrf, from, &good).await;
        assert!(status(&answer) == 403 && answer.contains("not from this page"), "{answer}");
    }
    let answer = enter(&own, &csrf, &here, &good).await;
    assert_eq!(status(&answer), 303, "{answer}");
    let after = cookie(&answer);
    assert_ne!(after, own, "a cookie from before is nobody's afterwards");
    let asks = async |cookie: &str| scene.get(&format!("/login/{}", scene.id), cookie).await.contains("decision");
    assert!(asks(&after).await && !asks(&own).await && !asks(&other).await && !asks("").await);
    // Whoever comes with a cookie of theirs gets another all the same.
    let again = enter(&own, &csrf, "", &codes[0]).await;
    assert!(status(&again) == 303 && cookie(&again) != own && cookie(&again) != after);
    // Without a login there is no form, and other methods are none.
    assert_eq!(status(&scene.get("/login/0123/password", "").await), 404);
    assert_eq!(status(&scene.post("/login/0123/password", &own, &here, &[]).await), 404);
}

#[tokio::test]
async fn what_was_wrong_is_not_told() {
    let scene = Scene::new().await;
    let (totp, _) = scene.make_account().await;
    let good = scene.code(&totp, 1);
    let mut said = Vec::new();
    for (name, password, code) in [
        ("nobody@default", PASSWORD, good.as_str()),
        (OWNER, "another password", &good),
        (OWNER, PASSWORD, "000000"),
        (OWNER, PASSWORD, ""),
        (&"x".repeat(300), PASSWORD, &good),
        ("<script>", "\u{0}", "'"),
    ] {
        let answer = scene.enter(name, password, code).await;
        assert_eq!(status(&answer), 403, "{answer}");
        said.push(body(&answer).replace(&value(&answer, "csrf"), ""));
    }
    assert!(said.windows(2).all(|two| two[0] == two[1]), "{said:?}");
    assert_eq!(status(&scene.enter(OWNER, PASSWORD, &good).await), 303);
}

#[tokio::test]
async fn of_a_thousand_tries_a_few_are_looked_at() {
    let scene = Scene::new().await;
    let (totp, codes) = scene.make_account().await;
    let (cookie, csrf) = scene.open().await;
    let (mut looked_at, mut told_to_wait) = (0, 0);
    for number in 0..1000 {
        let password = format!("guess number {number}");
        let form = [("csrf", csrf.as_str()), ("name", OWNER), ("password", &password), ("code", "123456")];
        let answer = scene.post(&scene.form(), &cookie, "", &form).await;
        match status(&answer) {
            403 => looked_at += 1,
            429 => {
                assert!(field(&answer, "retry-after").is_some());
                told_to_wait += 1;
            }
            other => panic!("{other}: {answer}"),
        }
    }
    assert_eq!(looked_at + told_to_wait, 1000);
    assert!((10..100).contains(&looked_at), "{looked_at}");
    // Who has it right waits, too, so that no guess tells itself from the others.
    let answer = scene.enter(OWNER, PASSWORD, &scene.code(&totp, 1)).await;
    assert_eq!(status(&answer), 429);
    // Nothing of it touched what the account has.
    let password = Zeroizing::new(PASSWORD.to_owned());
    assert!(scene.rig.shared.control.log_in(OWNER, password, &codes[0]).await.is_ok());
}

/// Where the server is reached by TLS, the cookie is for that alone.
#[tokio::test]
async fn cookies_of_the_form_stay_here() {
    let rig = Rig::with_oidc(ConnectionLimits::default(), &[], crate::OidcConfig::default(), "https://vpn.test").await;
    let answer = rig.shared.control.register(machine(1), register(1), FROM).await;
    let id = rig.shared.control.login_id(&answer.auth_url).unwrap().to_owned();
    let page = rig.get(&format!("/login/{id}/password")).await;
    let cookie = field(&page, "set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-warren-login-"), "{cookie}");
    for part in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!(field(&page, "cache-control").as_deref(), Some("no-store"));
}
