//! What each path behind Noise answers.
//!
//! A node key in a request is only a name: the control core looks it up together with the machine key that the
//! handshake proved.

use std::sync::Arc;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use warren_wire::control::{
    self, AuditLogRequest, HealthChangeRequest, LOG_KEY_PATH, LogKeyRequest, MapRequest, MapRequestKind,
    QueryFeatureResponse, RegisterRequest, RegisterResponse, SshAction,
};

use warren_wire::flows::{FLOWS_PATH, Submission};

use super::answers::{self, Answer, AnswerBody};
use super::rpc::{Session, UnderWay};
use super::web::unread;
use crate::{FlowsRefusal, MapError, MapStream};

/// The oldest capability version that is served. Source: control.md §5.3; below it, maps would need fields of their own.
pub const MIN_CAPABILITY_VERSION: u16 = 113;

/// Answers a request of the machine at the other end; HEAD gets the same answer without its body.
pub(crate) async fn answer<B>(session: &Arc<Session>, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let bodiless = request.method() == Method::HEAD;
    let answer = answer_with_body(session, request).await;
    if bodiless { answers::empty(answer.status()) } else { answer }
}

async fn answer_with_body<B>(session: &Arc<Session>, request: Request<B>) -> Answer
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
        LOG_KEY_PATH if post => log_key(session, &body).await,
        FLOWS_PATH if post => flows(session, &body).await,
        "/machine/register" | "/machine/map" | LOG_KEY_PATH | FLOWS_PATH => answers::wrong_method("POST"),
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
        return answers::document(&RegisterResponse { error: sentence, ..RegisterResponse::default() });
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
    let (control, key) = (&session.arrival.shared.control, request.node_key);
    let response = control.register_on(caller.machine, request, caller.from, Some(caller.challenge)).await;
    if control.is_registered(&caller.machine, &key) {
        // A machine with too many connections stays among the strangers; what it asked for is done all the same.
        session.arrival.pass.identify(*caller.machine.as_bytes());
    }
    answers::document(&response)
}

/// Answers the four shapes of a map request. Source: control.md §4.2.
async fn map(session: &Session, under_way: UnderWay, body: &[u8]) -> Answer {
    let request: MapRequest = match control::from_json(body) {
        Ok(request) => request,
        Err(error) => return unreadable(&error),
    };
    let machine = session.caller.machine;
    let shared = &session.arrival.shared;
    let answer = match request.kind() {
        MapRequestKind::Poll => shared.control.map_stream(machine, request).await.map(|maps| {
            let body = map_body(maps, shared.stop.clone(), under_way);
            answers::with_body(StatusCode::OK, body)
        }),
        MapRequestKind::Update => {
            shared.control.update(machine, request).await.map(|()| answers::empty(StatusCode::OK))
        }
        MapRequestKind::Fetch | MapRequestKind::ReadOnlyFetch => shared
            .control
            .map_once(machine, &request)
            .map(|map| answers::with_body(StatusCode::OK, Full::new(map).boxed_unsync())),
    };
    match answer {
        Ok(_) if !session.arrival.pass.identify(*machine.as_bytes()) => {
            answers::text(StatusCode::TOO_MANY_REQUESTS, "this machine has too many connections already")
        }
        Ok(answer) => answers::with_header(
            answer,
            header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/octet-stream"),
        ),
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

/// Takes the key with which a node signs its flow log.
async fn log_key(session: &Session, body: &[u8]) -> Answer {
    let request = match control::from_json::<LogKeyRequest>(body) {
        Ok(request) => request,
        Err(error) => return unreadable(&error),
    };
    match session.arrival.shared.control.register_log_key(session.caller.machine, &request).await {
        Ok(response) => answers::document(&response),
        Err(error) => no_flows(&error),
    }
}

/// Takes a piece of a node's flow log, and answers when it is stored for good.
async fn flows(session: &Session, body: &[u8]) -> Answer {
    let submission = match Submission::decode(body) {
        Ok(submission) => submission,
        Err(error) => return unreadable(&error),
    };
    match session.arrival.shared.control.take_flows(session.caller.machine, &submission).await {
        Ok(answer) => answers::with_body(StatusCode::OK, Full::new(answer.encode().into()).boxed_unsync()),
        Err(error) => no_flows(&error),
    }
}

fn no_flows(error: &FlowsRefusal) -> Answer {
    let status = match error {
        FlowsRefusal::UnknownNode => StatusCode::NOT_FOUND,
        FlowsRefusal::Off | FlowsRefusal::NoKey => StatusCode::FORBIDDEN,
        FlowsRefusal::Key | FlowsRefusal::Signature => StatusCode::BAD_REQUEST,
        FlowsRefusal::Taken => StatusCode::CONFLICT,
        FlowsRefusal::Later | FlowsRefusal::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    answers::text(status, &error.to_string())
}

fn no_map(error: &MapError) -> Answer {
    let status = match error {
        MapError::UnknownNode => StatusCode::NOT_FOUND,
        MapError::TooOld { .. } | MapError::Compression => StatusCode::BAD_REQUEST,
        MapError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    answers::text(status, &error.to_string())
}

/// Answers what is not offered, each in the way that does least harm at the client. Source: control.md §6.1.
fn other(session: &Session, method: &Method, path: &str, body: &[u8]) -> Answer {
    let not_offered =
        |what: &str| answers::text(StatusCode::NOT_IMPLEMENTED, &format!("this server does not offer {what}"));
    match (path, method) {
        ("/machine/audit-log", &Method::POST) => audit_log(session, body),
        ("/machine/update-health", &Method::POST) => update_health(session, body),
        ("/machine/set-dns", &Method::POST) => not_offered("DNS records for certificates"),
        ("/machine/set-device-attr", &Method::PATCH | &Method::POST) => not_offered("device attributes"),
        ("/machine/id-token", &Method::POST) => not_offered("identity tokens"),
        ("/machine/feature/query", &Method::POST) => answers::document(&QueryFeatureResponse {
            text: "This network's server does not offer this feature.".to_owned(),
            ..QueryFeatureResponse::default()
        }),
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
            } else if (under("/machine/webclient/init/") || under("/machine/webclient/wait/"))
                && *method == Method::POST
            {
                not_offered("the devices' web interface")
            } else if under("/machine/ssh/action/") && *method == Method::GET {
                // An error would make the client ask again until SSH gives up.
                answers::document(&SshAction {
                    message: "this network's server does not offer SSH checks\r\n".to_owned(),
                    reject: true,
                    ..SshAction::default()
                })
            } else {
                answers::nothing_here()
            }
        }
    }
}

/// Takes a user's reason for an action into the log. Clients send it only when a policy of their system asks for it,
/// and repeat it for ever unless it is taken.
fn audit_log(session: &Session, body: &[u8]) -> Answer {
    match control::from_json::<AuditLogRequest>(body) {
        Ok(request) => {
            tracing::info!(
                machine = %session.caller.machine.short(),
                node = %request.node_key.short(),
                action = ?shortened(&request.action),
                details = ?shortened(&request.details),
                "a client reports an action of its user"
            );
            answers::empty(StatusCode::OK)
        }
        Err(error) => unreadable(&error),
    }
}

/// Takes what an older client says of its health into the log.
fn update_health(session: &Session, body: &[u8]) -> Answer {
    match control::from_json::<HealthChangeRequest>(body) {
        Ok(request) => {
            tracing::debug!(
                machine = %session.caller.machine.short(),
                node = %request.node_key.short(),
                subsystem = ?shortened(&request.subsys),
                problem = ?shortened(&request.error),
                "a client reports its health"
            );
            answers::empty(StatusCode::NO_CONTENT)
        }
        Err(error) => unreadable(&error),
    }
}

/// Cuts a stranger's text for the log.
fn shortened(text: &str) -> String {
    text.chars().take(300).collect()
}

fn unreadable(error: &dyn std::fmt::Display) -> Answer {
    answers::text(StatusCode::BAD_REQUEST, &format!("the request cannot be read: {error}"))
}
