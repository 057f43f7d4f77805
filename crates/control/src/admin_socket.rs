//! Administration over a unix socket: HTTP/1.1 with JSON, for root and the server's own user.
//!
//! Who calls is what the kernel says, and that goes into the audit log. Nothing here listens on TCP, and what a browser
//! would send along (`Origin`, a foreign `Host`) is refused.

mod client;
mod requests;
mod verbs;

use std::convert::Infallible;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::body::{Body, Bytes};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::server::answers::{self, Answer};
use crate::server::limits::BodyBudget;
use crate::{Control, Who};

pub use client::{CallError, call};
pub use requests::{
    DnsChange, ExpiryChange, NewApiKey, NewAuthKey, NewOauthClient, PolicyTerms, Request as AdminRequest,
};
pub(crate) use verbs::Facts;
pub use verbs::Refusal;

/// The only `Host` that is accepted.
const HOST: &str = "warren-server";

/// The path of all calls; the body says what is asked.
const PATH: &str = "/v1/admin";

/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;

/// How long the head of a request may take; also how long a connection may stay idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// How long a connection may live in all.
const LIFETIME: Duration = Duration::from_secs(120);

/// What all connections share.
#[derive(Debug)]
struct Shared {
    control: Control,
    facts: Facts,
    bodies: BodyBudget,
    own_uid: u32,
}

/// Makes the socket: the directory 0755 if it is missing, the socket 0600. A socket that nobody listens on is replaced.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] if somebody listens there; otherwise as the system says.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            if fs::symlink_metadata(path)?.file_type().is_socket() {
                fs::remove_file(path)?;
            }
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // Callers are checked by their uid in any case; the mode only makes the refusal plainer.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves administrators until the server stops.
pub(crate) async fn serve(listener: UnixListener, control: Control, facts: Facts, stop: CancellationToken) {
    let shared = Arc::new(Shared {
        control,
        facts,
        bodies: BodyBudget::new(8 * 1024),
        own_uid: rustix::process::geteuid().as_raw(),
    });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an administrator's connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("too many administrators' connections, one is refused");
            continue;
        };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            serve_one(shared, stream, stop).await;
            drop(place);
        });
    }
}

async fn serve_one(shared: Arc<Shared>, stream: UnixStream, stop: CancellationToken) {
    let uid = match stream.peer_cred() {
        Ok(credentials) => credentials.uid(),
        Err(error) => return tracing::warn!(%error, "the system does not tell who calls"),
    };
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, uid, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_headers(32)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        result = tokio::time::timeout(LIFETIME, connection) => {
            if let Ok(Err(error)) = result {
                tracing::debug!(%error, "an administrator's connection broke");
            }
        }
        () = stop.cancelled() => {}
    }
}

/// Answers one call of the user `uid`.
async fn answer<B>(shared: &Shared, uid: u32, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    if uid != 0 && uid != shared.own_uid {
        return refused(StatusCode::FORBIDDEN, "permission", "only root and the server's own user may administer it");
    }
    if !is_from_a_program(request.headers()) {
        return refused(StatusCode::FORBIDDEN, "browser", "requests of browsers are not accepted");
    }
    if request.uri().path() != PATH {
        return refused(StatusCode::NOT_FOUND, "path", "there is nothing here");
    }
    if request.method() != Method::POST {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "method", "this address takes POST");
    }
    let body = match shared.bodies.read(request.into_body()).await {
        Ok(body) => body,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "body", &error.to_string()),
    };
    let request: AdminRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "body", &format!("the call cannot be read: {error}")),
    };
    match verbs::run(&shared.control.admin(Who::local_user(uid)), &shared.facts, request).await {
        Ok(value) => answers::json(StatusCode::OK, &value),
        Err(refusal) => refused(refusal.status(), refusal.code(), &refusal.to_string()),
    }
}

/// Tells a program from a browser that was lured here.
fn is_from_a_program(headers: &HeaderMap) -> bool {
    let foreign_host = headers.get_all(header::HOST).iter().any(|host| host != HOST);
    let browser = [header::ORIGIN, header::REFERER, header::COOKIE].iter().any(|name| headers.contains_key(name));
    !foreign_host && !browser && !headers.contains_key("sec-fetch-site")
}

fn refused(status: StatusCode, code: &str, message: &str) -> Answer {
    answers::json(status, &json!({"code": code, "message": message}))
}

#[cfg(test)]
mod tests;
