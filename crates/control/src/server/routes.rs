//! What each path behind Noise answers.
//!
//! A node key in a request is only a name: the control core looks it up together with the machine key that the
//! handshake proved.

use std::sync::Arc;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Bytes, Frame};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use warren_wire::control::{self, MapRequest, RegisterRequest, RegisterResponse};
use warren_wire::key::NodeKey;

use super::answers::{self, Answer, AnswerBody};
use super::rpc::{Session, UnderWay};
use super::web::unread;
use crate::{MapError, MapStream};

/// The oldest capability version that is served. Source: control.md §5.3; below it, maps would need fields of their own.
pub const MIN_CAPABILITY_VERSION: u16 = 113;

/// Answers a request of the machine at the other end.
pub(crate) async fn answer<B>(session: &Arc<Session>, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let under_way = UnderWay::new(session);
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    tracing::trace!(machine = %session.caller.machine.short(), method = %head.method, path, "request");
    if session.caller.version < MIN_CAPABILITY_VERSION {
        return too_old(session.caller.version, path);
    }
    let body = match session.arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return unread(error),
    };
    let post = head.method == Method::POST;
    match path {
        "/machine/register" if post => register(session, &body).await,
        "/machine/map" if post => map(session, under_way, &body).await,
        "/machine/register" | "/machine/map" => answers::wrong_method("POST"),
        _ => other(session, &head.method, path, &body),
    }
}

/// Refuses a client that is too old: at registration in words that reach the user, elsewhere as an HTTP error.
fn too_old(version: u16, path: &str) -> Answer {
    let sentence = format!(
        "unsupported client version: this client's capability version is {version}, this server needs \
         {MIN_CAPABILITY_VERSION} or later; please update the client"
    );
    if path == "/machine/register" {
        let refusal = RegisterResponse { error: sentence, ..RegisterResponse::default() };
        return wire_json(&refusal);
    }
    answers::text(StatusCode::BAD_REQUEST, &sentence)
}

/// Registers, logs out, or waits for a login. Dropped when the client goes away, and the wait with it.
async fn register(session: &Session, body: &[u8]) -> Answer {
    let request: RegisterRequest = match control::from_json(body) {
        Ok(request) => request,
        Err(error) => return unreadable(&error),
    };
    let caller = &session.caller;
    let response = session.arrival.shared.control.register(caller.machine, request, caller.from).await;
    if response.error.is_empty() && response.auth_url.is_empty() {
        session.arrival.pass.identify();
    }
    wire_json(&response)
}

/// Answers the four shapes of a map request. Source: control.md §4.2.
async fn map(session: &Session, under_way: UnderWay, body: &[u8]) -> Answer {
    let request: MapRequest = match control::from_json(body) {
        Ok(request) => request,
        Err(error) => return unreadable(&error),
    };
    let machine = session.caller.machine;
    let shared = &session.arrival.shared;
    let answer = if request.stream {
        shared.control.map_stream(machine, request).await.map(|maps| {
            let body = map_body(maps, shared.stop.clone(), under_way);
            answers::with_body(StatusCode::OK, body)
        })
    } else if request.omit_peers && !request.read_only {
        shared.control.update(machine, request).await.map(|()| answers::empty(StatusCode::OK))
    } else {
        shared.control.map_once(machine, request).await.map(|map| {
            let body = http_body_util::Full::new(map).boxed_unsync();
            answers::with_body(StatusCode::OK, body)
        })
    };
    match answer {
        Ok(answer) => {
            session.arrival.pass.identify();
            answers::with_header(
                answer,
                header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/octet-stream"),
            )
        }
        Err(error) => no_map(&error),
    }
}

/// Sends maps as they come, until the client goes away, the core ends the stream or the server stops.
fn map_body(maps: MapStream, stop: CancellationToken, under_way: UnderWay) -> AnswerBody {
    let frames = futures_util::stream::unfold((maps, stop, under_way), |(mut maps, stop, under_way)| async move {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            next = maps.next() => next,
        };
        next.map(|bytes| (Ok(Frame::data(bytes)), (maps, stop, under_way)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn no_map(error: &MapError) -> Answer {
    let status = match error {
        MapError::UnknownNode => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    answers::text(status, &error.to_string())
}

/// Answers what is not offered, each in the way that does least harm at the client. Source: control.md §6.1.
fn other(session: &Session, method: &Method, path: &str, body: &[u8]) -> Answer {
    let not_offered = |what: &str| answers::text(StatusCode::NOT_IMPLEMENTED, &format!("this server does not offer {what}"));
    match (path, method) {
        // Only sent when a system policy asks for it; a client repeats it for ever unless it is taken.
        ("/machine/audit-log", &Method::POST) => client_note(session, body, "a client reports an action of its user"),
        ("/machine/update-health", &Method::POST) => client_note(session, body, "a client reports its health"),
        ("/machine/set-dns", &Method::POST) => not_offered("DNS records for certificates"),
        ("/machine/set-device-attr", &Method::PATCH | &Method::POST) => not_offered("device attributes"),
        ("/machine/id-token", &Method::POST) => not_offered("identity tokens"),
        ("/machine/feature/query", &Method::POST) => answers::json(
            StatusCode::OK,
            &json!({"Text": "This network's server does not offer this feature."}),
        ),
        ("/machine/whoami", &Method::GET) => answers::json(
            StatusCode::OK,
            &json!({"MachineKey": session.caller.machine, "CapabilityVersion": session.caller.version}),
        ),
        ("/machine/audit-log" | "/machine/update-health" | "/machine/set-dns" | "/machine/id-token", _) => {
            answers::wrong_method("POST")
        }
        ("/machine/feature/query", _) => answers::wrong_method("POST"),
        ("/machine/set-device-attr", _) => answers::wrong_method("PATCH"),
        ("/machine/whoami", _) => answers::wrong_method("GET"),
        (path, method) => {
            let under = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
            if under("/machine/tka/") && matches!(*method, Method::GET | Method::POST) {
                not_offered("a tailnet lock")
            } else if (under("/machine/webclient/init/") || under("/machine/webclient/wait/")) && *method == Method::POST {
                not_offered("the devices' web interface")
            } else if under("/machine/ssh/action/") && *method == Method::GET {
                // An error would make the client ask again until SSH gives up.
                answers::json(
                    StatusCode::OK,
                    &json!({"message": "this network's server does not offer SSH checks\r\n", "reject": true}),
                )
            } else {
                answers::nothing_here()
            }
        }
    }
}

/// Takes a client's report into the log, with the text cut and made harmless.
fn client_note(session: &Session, body: &[u8], what: &'static str) -> Answer {
    #[derive(Deserialize)]
    struct Note {
        #[serde(rename = "NodeKey", default)]
        node: Option<NodeKey>,
        #[serde(rename = "Action", alias = "Subsys", default)]
        subject: String,
        #[serde(rename = "Details", alias = "Error", default)]
        details: String,
    }
    const LONGEST: usize = 300;
    match serde_json::from_slice::<Note>(body) {
        Ok(note) => {
            tracing::info!(
                machine = %session.caller.machine.short(),
                node = note.node.map(|key| key.short()),
                subject = ?note.subject.chars().take(LONGEST).collect::<String>(),
                details = ?note.details.chars().take(LONGEST).collect::<String>(),
                "{what}"
            );
            answers::empty(StatusCode::NO_CONTENT)
        }
        Err(error) => unreadable(&error),
    }
}

fn wire_json(response: &RegisterResponse) -> Answer {
    answers::json_bytes(StatusCode::OK, control::to_json(response))
}

fn unreadable(error: &dyn std::fmt::Display) -> Answer {
    answers::text(StatusCode::BAD_REQUEST, &format!("the request cannot be read: {error}"))
}
