//! Registration: one call for login, re-login, restart and logout.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;
use warren_wire::control::{
    self, CapabilityVersion, Hostinfo, MACHINE_PROOF, RawJson, RegisterAuth, RegisterRequest, RegisterResponse, Time,
};
use warren_wire::key::NodeKey;

use super::certificate::Proof;
use super::connect::{CallError, Connection, MAX_ANSWER, checked};

/// How long the server may take for an answer that no person is involved in.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Key expiry that means "log out": a moment in 1970, as the official client sends it.
const LOGOUT_EXPIRY: i64 = 123;

/// Is what a registration says.
pub(super) struct Ask<'a> {
    pub(super) key: NodeKey,
    pub(super) previous: Option<NodeKey>,
    pub(super) auth_key: Option<&'a str>,
    /// Login page whose end is waited for.
    pub(super) followup: Option<&'a str>,
    pub(super) hostinfo: &'a Hostinfo,
    pub(super) purpose: Purpose,
    /// Proof that the machine holds a certificate.
    pub(super) proof: Option<&'a Proof>,
}

/// Says what a registration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Login,
    Logout,
}

/// Is what to do after an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// Registered.
    Done(Box<RegisterResponse>),
    /// A person must visit this page.
    Visit(String),
    /// Make a new node key and register that.
    NewKey,
    /// The server says no, with its reason.
    Refused(String),
}

/// Registers once. With a follow-up this waits as long as the person takes.
pub(super) async fn register(connection: &Connection, ask: &Ask<'_>) -> Result<Outcome, CallError> {
    let request = RegisterRequest {
        version: CapabilityVersion(crate::CAPABILITY_VERSION),
        node_key: ask.key,
        old_node_key: ask.previous,
        auth: ask.auth_key.map(|key| RegisterAuth { auth_key: key.to_owned(), ..RegisterAuth::default() }),
        followup: ask.followup.unwrap_or_default().to_owned(),
        expiry: (ask.purpose == Purpose::Logout).then(|| Time::from_unix(LOGOUT_EXPIRY, 0)).flatten(),
        hostinfo: Some(ask.hostinfo.clone()),
        // A text always has a JSON form.
        signature_type: ask.proof.and_then(|_| RawJson::of(&MACHINE_PROOF).ok()),
        device_cert: ask.proof.map(|proof| proof.certificates.clone()).unwrap_or_default(),
        signature: ask.proof.map(|proof| proof.signature.clone()).unwrap_or_default(),
        ..RegisterRequest::default()
    };
    let body = control::to_json(&request).map_err(|error| CallError::Malformed(error.to_string()))?;
    let call = async {
        let response = connection.send(http::Method::POST, "/machine/register", Bytes::from(body)).await?;
        let response = checked(response).await?;
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| CallError::Broken(error.to_string()))
    };
    let body = if ask.followup.is_some() {
        call.await
    } else {
        timeout(ANSWER_TIMEOUT, call).await.map_err(|_| CallError::Silent)?
    };
    let body = match body {
        // Some servers refuse by status, and mean the same.
        Err(CallError::Status { status: status @ (401 | 403), text, .. }) => {
            let text = if text.trim().is_empty() { format!("status {status}") } else { text };
            return Ok(Outcome::Refused(text));
        }
        body => body?,
    };
    let response = control::from_json(&body).map_err(|error| CallError::Malformed(error.to_string()))?;
    Ok(interpret(response))
}

/// Reads an answer in the order of the official client.
///
/// Source: Tailscale `control/controlclient/direct.go`, `doLogin`.
fn interpret(response: RegisterResponse) -> Outcome {
    if !response.error.is_empty() {
        return Outcome::Refused(crate::netmap::printable(&response.error, 300));
    }
    if response.node_key_expired {
        return Outcome::NewKey;
    }
    if response.auth_url.is_empty() {
        return Outcome::Done(Box::new(response));
    }
    match web_page(&response.auth_url) {
        Some(url) => Outcome::Visit(url),
        None => Outcome::Refused("the server names a login page that is no web address".to_owned()),
    }
}

/// Returns `url` if it is a web address and harmless to print.
pub(super) fn web_page(url: &str) -> Option<String> {
    let harmless = url.len() <= 2048 && url.bytes().all(|byte| byte.is_ascii_graphic());
    (harmless && (url.starts_with("https://") || url.starts_with("http://"))).then(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> RegisterResponse {
        RegisterResponse { machine_authorized: true, ..RegisterResponse::default() }
    }

    #[test]
    fn an_error_outranks_everything() {
        let response = RegisterResponse {
            error: "no\u{1b}[2J".into(),
            node_key_expired: true,
            auth_url: "https://a/".into(),
            ..answer()
        };
        assert_eq!(interpret(response), Outcome::Refused("no[2J".into()));
    }

    #[test]
    fn an_expired_key_outranks_a_login_page() {
        let response = RegisterResponse { node_key_expired: true, auth_url: "https://a/".into(), ..answer() };
        assert_eq!(interpret(response), Outcome::NewKey);
    }

    #[test]
    fn an_answer_that_says_nothing_is_success() {
        assert!(matches!(interpret(RegisterResponse::default()), Outcome::Done(_)));
    }

    #[test]
    fn only_web_pages_are_shown() {
        for url in ["javascript:alert(1)", "file:///etc/passwd", "https://a/\u{1b}[31m", "https://a b"] {
            let response = RegisterResponse { auth_url: url.into(), ..answer() };
            assert!(matches!(interpret(response), Outcome::Refused(_)), "{url}");
        }
        let response = RegisterResponse { auth_url: "https://a/register/x".into(), ..answer() };
        assert_eq!(interpret(response), Outcome::Visit("https://a/register/x".into()));
    }
}
