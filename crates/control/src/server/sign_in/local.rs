//! Logging in with an account of this server, and making one.
//!
//! `GET /login/ID/password` shows the form and gives the browser a cookie, which the form's token belongs to; a POST there
//! with name, password and code leads to the page that asks to confirm, with another cookie, so that nobody can plant one.
//! `GET /invite/TEXT` shows whose account a link makes, and only a POST there uses it up: those who look at links, such as
//! scanners of mail, use nothing up.

use std::collections::HashMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::{Body, Bytes};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Met, SignIn, redirect};
use crate::account::totp::Secret;
use crate::account::{AcceptError, LogInError, NewAccount};
use crate::oidc::digest;
use crate::server::answers::{self, Answer};
use crate::server::login_page;
use crate::server::shared::Arrival;
use crate::server::web::unread;

/// Longest login name that is looked for, in bytes.
const NAME_MAX: usize = 254;

/// Shows the form for name, password and code.
pub(crate) fn form(arrival: &Arrival, id: &str) -> Answer {
    show(arrival, id, StatusCode::OK, None)
}

fn show(arrival: &Arrival, id: &str, status: StatusCode, trouble: Option<&str>) -> Answer {
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    if control.admin(crate::Who::server()).login(id).is_err() {
        return login_page::gone();
    }
    let Some(browser) = random() else { return no_randomness(id) };
    sign_in.keep(id, &browser, login_page::password(status, id, &token(&browser), trouble))
}

/// Takes what somebody filled in.
pub(crate) async fn enter<B>(arrival: &Arrival, id: &str, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    if control.admin(crate::Who::server()).login(id).is_err() {
        return login_page::gone();
    }
    let (head, body) = request.into_parts();
    let from = arrival.client(&head.headers);
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return unread(error),
    };
    let form = fields(&body);
    let field = |name: &str| form.get(name).map(|value| value.as_str()).unwrap_or_default();
    let browser = sign_in.cookie(&head.headers, id).unwrap_or_default();
    let is_own = !browser.is_empty() && bool::from(digest(field("csrf")).ct_eq(&digest(&token(browser))));
    if !sign_in.is_from_here(&head.headers) || !is_own {
        let trouble = "This form is not from this page, or too old. Fill it in again.";
        return show(arrival, id, StatusCode::FORBIDDEN, Some(trouble));
    }
    let name = field("name").trim().to_lowercase();
    if name.len() > NAME_MAX {
        return show(arrival, id, StatusCode::FORBIDDEN, Some(&LogInError::Wrong.to_string()));
    }
    if let Err(wait) = arrival.shared.api.admit_password(&digest(&name), from, control.clock().instant()) {
        tracing::warn!(%from, "too many passwords are tried");
        return too_many(show(arrival, id, StatusCode::TOO_MANY_REQUESTS, Some(TOO_MANY)), wait);
    }
    let password = Zeroizing::new(field("password").to_owned());
    match Box::pin(control.log_in(&name, password, field("code"))).await {
        Ok(person) => {
            let (Some(fresh), Some(csrf)) = (random(), random()) else { return no_randomness(id) };
            tracing::info!(login = id, who = person.login, %from, "a person logged in with a password");
            let at = control.clock().instant();
            let provider = "an account on this server".to_owned();
            sign_in.remember(id, Met { browser: digest(&fresh), csrf: csrf.to_string(), person, provider, at });
            sign_in.keep(id, &fresh, redirect(&format!("{}/login/{id}", sign_in.base)))
        }
        Err(error) => {
            let status = match &error {
                LogInError::Wrong => StatusCode::FORBIDDEN,
                LogInError::Busy => StatusCode::SERVICE_UNAVAILABLE,
                LogInError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            tracing::info!(login = id, %from, %error, "a password lets nobody in");
            show(arrival, id, status, Some(&error.to_string()))
        }
    }
}

/// Shows whose account a link makes.
pub(crate) async fn invitation(arrival: &Arrival, text: &str) -> Answer {
    match (arrival.shared.control.invitation(text).await, Secret::generate()) {
        (Ok(Some(invited)), Ok(totp)) => login_page::invitation(StatusCode::OK, text, &invited, &totp, None),
        (Ok(None), _) => login_page::failed(StatusCode::NOT_FOUND, &AcceptError::Gone.to_string(), None),
        (Err(error), _) => login_page::failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None),
        (_, Err(_)) => {
            login_page::failed(StatusCode::INTERNAL_SERVER_ERROR, &AcceptError::Randomness.to_string(), None)
        }
    }
}

/// Makes the account that a link is for.
pub(crate) async fn accept<B>(arrival: &Arrival, text: &str, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let (control, sign_in) = (&arrival.shared.control, &arrival.shared.sign_in);
    let (head, body) = request.into_parts();
    let from = arrival.client(&head.headers);
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return unread(error),
    };
    let gone = || login_page::failed(StatusCode::NOT_FOUND, &AcceptError::Gone.to_string(), None);
    if !sign_in.is_from_here(&head.headers) {
        return login_page::failed(StatusCode::FORBIDDEN, "This form is not from this page.", None);
    }
    let invited = match control.invitation(text).await {
        Ok(Some(invited)) => invited,
        Ok(None) => return gone(),
        Err(error) => return login_page::failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None),
    };
    let form = fields(&body);
    let field = |name: &str| form.get(name).map(|value| value.as_str()).unwrap_or_default();
    let Some(totp) = Secret::from_text(field("key")) else { return Box::pin(invitation(arrival, text)).await };
    let again = |status, trouble: &str| login_page::invitation(status, text, &invited, &totp, Some(trouble));
    if let Err(wait) = admit(arrival, &invited.record.id, from) {
        return too_many(again(StatusCode::TOO_MANY_REQUESTS, TOO_MANY), wait);
    }
    if field("password") != field("again") {
        return again(StatusCode::BAD_REQUEST, "The two passwords are not the same.");
    }
    let password = Zeroizing::new(field("password").to_owned());
    let new = NewAccount { password, totp: totp.clone(), code: field("code").to_owned() };
    match Box::pin(control.accept_invitation(text, new)).await {
        Ok(codes) => {
            tracing::info!(who = invited.record.login, %from, "a person made themselves an account");
            login_page::account_made(&invited, &codes)
        }
        Err(AcceptError::Gone) => gone(),
        Err(error) => {
            let status = match &error {
                AcceptError::Busy => StatusCode::SERVICE_UNAVAILABLE,
                AcceptError::Store(_) | AcceptError::Randomness => StatusCode::INTERNAL_SERVER_ERROR,
                AcceptError::Taken => StatusCode::CONFLICT,
                AcceptError::Gone | AcceptError::Password(_) | AcceptError::Code => StatusCode::BAD_REQUEST,
            };
            again(status, &error.to_string())
        }
    }
}

/// What somebody is told who tries too often.
const TOO_MANY: &str = "Too many tries from your network, or for this name. Wait a minute before the next one.";

fn admit(arrival: &Arrival, what: &str, from: IpAddr) -> Result<(), std::time::Duration> {
    arrival.shared.api.admit_password(&digest(what), from, arrival.shared.control.clock().instant())
}

fn too_many(answer: Answer, wait: std::time::Duration) -> Answer {
    answers::with_header(answer, header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1))
}

fn no_randomness(id: &str) -> Answer {
    let sentence = AcceptError::Randomness.to_string();
    login_page::failed(StatusCode::INTERNAL_SERVER_ERROR, &sentence, Some(id))
}

/// Reads a form; its values may be secrets.
fn fields(body: &[u8]) -> HashMap<String, Zeroizing<String>> {
    let pairs = form_urlencoded::parse(body).take(16);
    pairs.map(|(name, value)| (name.into_owned(), Zeroizing::new(value.into_owned()))).collect()
}

/// Returns the token of a form for the browser that has that cookie.
fn token(browser: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&format!("warren form {browser}")))
}

fn random() -> Option<Zeroizing<String>> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice()).ok()?;
    Some(Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice())))
}

impl SignIn {
    /// Tells whether a form came from a page of this server: browsers say it, and others have to know its token.
    pub(super) fn is_from_here(&self, headers: &HeaderMap) -> bool {
        let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
        origin.is_none_or(|origin| origin.eq_ignore_ascii_case(self.base.as_bytes()))
    }

    /// Gives a browser the cookie of a login.
    pub(super) fn keep(&self, id: &str, browser: &str, answer: Answer) -> Answer {
        let secure = if self.is_tls() { "; Secure" } else { "" };
        let cookie = format!(
            "{}={browser}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{secure}",
            self.cookie_name(id),
            2 * super::LIFETIME.as_secs()
        );
        match HeaderValue::try_from(cookie) {
            Ok(mut value) => {
                value.set_sensitive(true);
                answers::with_header(answer, header::SET_COOKIE, value)
            }
            // The text has ASCII letters only, so this does not happen; without a cookie nothing would come of it.
            Err(_) => answers::nothing_here(),
        }
    }
}
