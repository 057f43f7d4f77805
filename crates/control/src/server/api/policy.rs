//! The policy file. Source: logs-and-api.md, section 12.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use warren_policy::{Policy, PreviewRule, TESTS_FAILED, TestFailure};

use super::call::{ApiError, Call, Reply};
use crate::admin::{AdminError, Candidate, NewPolicy, PolicySource, PolicyView, Previewed, Trial};

pub(super) async fn get(call: &Call) -> Result<Reply, ApiError> {
    let policy = call.desk.policy(&call.tailnet, None).await?;
    match call.query("details") {
        Some("true") => {
            let text = json!({ "acl": STANDARD.encode(&policy.text), "warnings": [], "errors": [] }).to_string();
            Ok(Reply::Tagged { kind: "application/json", text, etag: policy.etag })
        }
        None | Some("false") => Ok(shown(call, policy)),
        Some(_) => Err(ApiError::bad("details: use true or false")),
    }
}

fn shown(call: &Call, policy: PolicyView) -> Reply {
    // What cannot be read is shown as it is, for somebody to mend it.
    let json = if call.wants_json { Policy::to_json(&policy.text).ok() } else { None };
    match json {
        Some(text) => Reply::Tagged { kind: "application/json", text, etag: policy.etag },
        None => Reply::Tagged { kind: "application/hujson", text: policy.text, etag: policy.etag },
    }
}

pub(super) async fn set(call: &Call) -> Result<Reply, ApiError> {
    let text = call.text()?;
    let new = NewPolicy {
        source: PolicySource::Text(text.to_owned()),
        reason: None,
        if_match: call.if_match.clone(),
        confirm_within: None,
    };
    match call.desk.set_policy(&call.tailnet, new).await {
        Ok(policy) => Ok(shown(call, policy)),
        Err(AdminError::Policy { reason }) => {
            // Once more, for an answer that tells the tests apart.
            let trial = call.desk.try_policy(&call.tailnet, Candidate::Policy(text.to_owned())).await?;
            let (message, data) = verdict(trial).unwrap_or((reason, None));
            Err(ApiError { status: StatusCode::BAD_REQUEST, message, data })
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn validate(call: &Call) -> Result<Reply, ApiError> {
    let text = call.text()?;
    let is_list = text.trim_start().starts_with('[');
    let candidate = if is_list { Candidate::Tests } else { Candidate::Policy };
    let trial = call.desk.try_policy(&call.tailnet, candidate(text.to_owned())).await?;
    let mut answer = json!({});
    if let (Some((message, data)), Some(object)) = (verdict(trial), answer.as_object_mut()) {
        object.insert("message".to_owned(), message.into());
        if let Some(data) = data {
            object.insert("data".to_owned(), data);
        }
    }
    Ok(Reply::Json(answer))
}

pub(super) async fn preview(call: &Call) -> Result<Reply, ApiError> {
    let (kind, asked) = (call.query("type").unwrap_or_default(), call.query("previewFor").unwrap_or_default());
    let of = match kind {
        "user" => Previewed::User(asked.to_owned()),
        "ipport" => {
            let to: SocketAddr =
                asked.parse().map_err(|_| ApiError::bad("previewFor: write an address with a port, 10.0.0.1:22"))?;
            Previewed::Destination(to.ip(), to.port())
        }
        _ => return Err(ApiError::bad("type: use user or ipport")),
    };
    let rules = call.desk.preview_policy(&call.tailnet, call.text()?.to_owned(), of).await?;
    let shown = |rule: &PreviewRule| {
        let mut shown = json!({ "users": rule.sources, "ports": rule.destinations, "lineNumber": rule.line });
        if let Some(object) = shown.as_object_mut().filter(|_| !rule.traffic.is_empty()) {
            object.insert("ip".to_owned(), json!(rule.traffic));
        }
        shown
    };
    let matches: Vec<_> = rules.iter().map(shown).collect();
    Ok(Reply::Json(json!({ "matches": matches, "type": kind, "previewFor": asked })))
}

/// Returns what is wrong, with the tests that failed.
fn verdict(trial: Trial) -> Option<(String, Option<Value>)> {
    match trial {
        Trial::Good => None,
        Trial::Malformed(message) => Some((message, None)),
        Trial::Failed(failures) => {
            let shown = |failure: &TestFailure| json!({ "user": failure.user, "errors": failure.errors });
            Some((TESTS_FAILED.to_owned(), Some(failures.iter().map(shown).collect())))
        }
    }
}
