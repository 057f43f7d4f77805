//! The listening side of the local API.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::access::{self, Caller, Denied, Need, Verb};
use super::body::{self, Answer};
use super::dial;
use super::types::{LoginFinished, Notify, StartOptions};
use crate::userspace::Dialer;

use super::{Authority, Bus, Peers, Refusal, Request, Who};

/// Path prefix of every verb.
const PREFIX: &str = "/localapi/v0/";

/// The only `Host` that is accepted, beside none: what official programs send over the socket. A browser that was
/// lured here cannot send it.
pub(super) const HOST: &str = "local-tailscaled.sock";

/// Connections that one user may have open.
const MAX_CONNECTIONS_PER_USER: usize = 32;

/// How long a caller may take to send the head of a request, and how long an idle connection stays.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest head of a request.
const MAX_HEAD: usize = 16 * 1024;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// Says why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another daemon answers there.
    #[error("another warren node answers on {0}; stop it first, or give this one another --socket")]
    InUse(PathBuf),
    /// Something that is no socket lies there.
    #[error("{0} exists and is no socket; give another path with --socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}; run as root, or give another path with --socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens the socket. One that a crashed daemon left behind is replaced; a living one is not touched.
///
/// Every local user may connect: what he may do is decided by who the kernel says he is.
///
/// # Errors
/// Refuses a socket on which another daemon answers.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Io { path: path.to_owned(), source };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ListenError::InUse(path.to_owned()));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        // Whatever else is there is not ours to delete.
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

/// Is what every connection needs.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Way to the daemon; bounded, callers wait when it is full.
    pub requests: mpsc::Sender<Request>,
    /// What watchers are told.
    pub bus: watch::Receiver<Bus>,
    /// Name of the operator in the settings, empty if none.
    pub operator: watch::Receiver<String>,
    /// User that the daemon runs as.
    pub daemon_uid: u32,
    /// Finds the way for the verb `dial`; without it there is none.
    pub dialer: Option<Dialer>,
}

/// Accepts and serves callers until the task is dropped.
pub async fn serve(listener: UnixListener, shared: Shared) {
    let open = Arc::new(Mutex::new(HashMap::<u32, usize>::new()));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "local socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Without credentials from the kernel there is no caller to judge.
        let Ok(credentials) = warren_os::peer_credentials(&stream) else {
            continue;
        };
        let uid = credentials.uid;
        let Some(slot) = Slot::take(&open, uid) else {
            tracing::debug!(uid, "too many local connections");
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            connection(stream, uid, shared).await;
            drop(slot);
        });
    }
}

/// Counts one open connection of a user, until it is dropped.
struct Slot {
    open: Arc<Mutex<HashMap<u32, usize>>>,
    uid: u32,
}

impl Slot {
    fn take(open: &Arc<Mutex<HashMap<u32, usize>>>, uid: u32) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_insert(0);
        if *count >= MAX_CONNECTIONS_PER_USER {
            return None;
        }
        *count += 1;
        Some(Self { open: Arc::clone(open), uid })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

async fn connection(stream: UnixStream, uid: u32, shared: Shared) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(with_headers(answer(request, uid, &shared).await)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "local connection ended");
    }
}

fn with_headers(mut response: Response<Answer>) -> Response<Answer> {
    let headers = response.headers_mut();
    headers.insert("Tailscale-Version", HeaderValue::from_static(crate::VERSION));
    headers.insert("Tailscale-Cap", HeaderValue::from(crate::CAPABILITY_VERSION));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn answer(request: http::Request<Incoming>, uid: u32, shared: &Shared) -> Response<Answer> {
    let headers = request.headers();
    let host_ok = headers.get(header::HOST).is_none_or(|host| host.is_empty() || host == HOST)
        && request.uri().authority().is_none_or(|authority| authority.as_str() == HOST);
    if !host_ok || headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) {
        return plain(StatusCode::FORBIDDEN, "invalid localapi request");
    }
    let Some(path) = request.uri().path().strip_prefix(PREFIX).map(str::to_owned) else {
        return plain(StatusCode::NOT_FOUND, "not found");
    };
    let caller = caller(uid, shared).await;
    let verb = match access::authorise(request.method(), &path, &caller) {
        Ok(verb) => verb,
        Err(Denied::NotFound) => return plain(StatusCode::NOT_FOUND, "not found"),
        Err(Denied::WrongMethod) => {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        Err(Denied::Forbidden) => return forbidden(&path),
    };
    if verb == Verb::Dial {
        return dial::serve(request, shared.dialer.as_ref()).await;
    }
    let query = request.uri().query().map(str::to_owned);
    let Some(body) = body::read(request.into_body()).await else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "body too long or too slow");
    };
    // The daemon is gone only while it shuts down.
    perform(verb, &path, query.as_deref(), &body, caller, shared)
        .await
        .unwrap_or_else(|| plain(StatusCode::SERVICE_UNAVAILABLE, "shutting down"))
}

async fn caller(uid: u32, shared: &Shared) -> Caller {
    let operator = shared.operator.borrow().clone();
    let operator_uid = if operator.is_empty() {
        None
    } else {
        let passwd = tokio::fs::read_to_string(access::PASSWD).await.unwrap_or_default();
        access::uid_of(&operator, &passwd)
    };
    Caller { uid, daemon_uid: shared.daemon_uid, operator_uid }
}

/// Sends a request to the daemon and waits for its reply; `None` if the daemon is gone.
async fn ask<T>(shared: &Shared, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    shared.requests.send(request(reply)).await.ok()?;
    answer.await.ok()
}

async fn perform(
    verb: Verb,
    path: &str,
    query: Option<&str>,
    body: &Bytes,
    caller: Caller,
    shared: &Shared,
) -> Option<Response<Answer>> {
    let authority = if caller.may(Need::Root) { Authority::Root } else { Authority::Operator };
    Some(match verb {
        Verb::Status => {
            let peers = match body::query(query, "peers").as_deref() {
                Some("false") => Peers::Omitted,
                _ => Peers::Listed,
            };
            let mut status = ask(shared, |reply| Request::Status(peers, reply)).await?;
            if !caller.may(Need::Own) {
                // Whoever opens this page puts the machine into a tailnet of his choice.
                status.auth_url.clear();
            }
            json_answer(&*status)
        }
        Verb::WhoIs => {
            let Some(who) = body::query(query, "addr").as_deref().and_then(parse_who) else {
                return Some(plain(StatusCode::BAD_REQUEST, "missing or invalid 'addr' parameter"));
            };
            match ask(shared, |reply| Request::WhoIs(who, reply)).await? {
                Some(found) => json_answer(&found),
                None => plain(StatusCode::NOT_FOUND, "no match for IP:port"),
            }
        }
        Verb::Prefs => json_answer(&ask(shared, Request::Prefs).await?),
        Verb::EditPrefs => {
            let Ok(change) = serde_json::from_slice::<Value>(body) else {
                return Some(json_error(StatusCode::BAD_REQUEST, "invalid JSON body"));
            };
            match ask(shared, |reply| Request::EditPrefs(authority, change, reply)).await? {
                Ok(prefs) => json_answer(&prefs),
                Err(Refusal::Forbidden) => forbidden(path),
                Err(Refusal::Bad(text)) => json_error(StatusCode::BAD_REQUEST, &text),
                Err(Refusal::Failed(text)) => json_error(StatusCode::INTERNAL_SERVER_ERROR, &text),
            }
        }
        Verb::Start => {
            let options = if body.is_empty() { Ok(StartOptions::default()) } else { serde_json::from_slice(body) };
            let Ok(options) = options else {
                return Some(plain(StatusCode::BAD_REQUEST, "invalid JSON body"));
            };
            done(path, ask(shared, |reply| Request::Start(authority, options, reply)).await?)
        }
        Verb::LoginInteractive => done(path, ask(shared, Request::LoginInteractive).await?),
        Verb::Logout => done(path, ask(shared, Request::Logout).await?),
        Verb::ResetAuth => done(path, ask(shared, Request::ResetAuth).await?),
        Verb::Ping => {
            let Some(ip) = body::query(query, "ip").and_then(|text| text.parse::<IpAddr>().ok()) else {
                return Some(plain(StatusCode::BAD_REQUEST, "missing or invalid 'ip' parameter"));
            };
            match body::query(query, "type").as_deref() {
                None | Some("disco") => json_answer(&ask(shared, |reply| Request::Ping(ip, reply)).await?),
                Some(_) => plain(StatusCode::BAD_REQUEST, "this node answers only type=disco"),
            }
        }
        // Taken care of before, for it needs the whole request.
        Verb::Dial => plain(StatusCode::BAD_REQUEST, "bad ts-dial upgrade"),
        Verb::Netcheck => json_answer(&ask(shared, Request::Netcheck).await?),
        Verb::DerpMap => json_answer(&ask(shared, Request::DerpMap).await?),
        Verb::WatchBus => watch_bus(body::query(query, "mask").as_deref(), caller, shared).await?,
        Verb::Shutdown => {
            ask(shared, Request::Shutdown).await?;
            plain(StatusCode::OK, "")
        }
    })
}

/// Bits of `watch-ipn-bus` that this node knows; the others are accepted and add nothing.
const MASK_STATE: u64 = 1 << 1;
const MASK_PREFS: u64 = 1 << 2;

async fn watch_bus(mask: Option<&str>, caller: Caller, shared: &Shared) -> Option<Response<Answer>> {
    let Ok(mask) = mask.unwrap_or("0").parse::<u64>() else {
        return Some(plain(StatusCode::BAD_REQUEST, "invalid 'mask' parameter"));
    };
    let prefs = if mask & MASK_PREFS == 0 { None } else { Some(ask(shared, Request::Prefs).await?) };
    let mut bus = shared.bus.clone();
    let see_url = caller.may(Need::Own);
    let mut seen = bus.borrow_and_update().clone();
    let (lines, body) = mpsc::channel(1);
    tokio::spawn(async move {
        if mask & (MASK_STATE | MASK_PREFS) != 0 {
            let mut first = Notify { version: Some(crate::VERSION.to_owned()), prefs, ..Notify::default() };
            if mask & MASK_STATE != 0 {
                first =
                    Notify { version: first.version, prefs: first.prefs, ..changes(&Bus::default(), &seen, see_url) };
                first.login_finished = None;
                first.state = Some(seen.state.number());
            }
            if lines.send(line(&first)).await.is_err() {
                return;
            }
        }
        loop {
            tokio::select! {
                changed = bus.changed() => if changed.is_err() { return },
                () = lines.closed() => return,
            }
            let now = bus.borrow_and_update().clone();
            let notify = changes(&seen, &now, see_url);
            seen = now;
            if notify != Notify::default() && lines.send(line(&notify)).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Answer::Lines(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}

fn changes(before: &Bus, now: &Bus, see_url: bool) -> Notify {
    let url_changed = see_url && now.browse_to_url != before.browse_to_url;
    let trouble = (now.trouble != before.trouble).then(|| now.trouble.clone()).flatten();
    Notify {
        state: (now.state != before.state).then(|| now.state.number()),
        logging_in: (now.logging_in != before.logging_in).then_some(now.logging_in),
        login_finished: (now.logins != before.logins).then(LoginFinished::default),
        browse_to_url: (url_changed && !now.browse_to_url.is_empty()).then(|| now.browse_to_url.clone()),
        err_message: trouble.as_ref().map(|trouble| trouble.text.clone()),
        trouble,
        ..Notify::default()
    }
}

fn line(notify: &Notify) -> Bytes {
    let mut text = serde_json::to_vec(notify).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn parse_who(text: &str) -> Option<Who> {
    if text.starts_with("nodekey:") {
        return text.parse().ok().map(Who::Key);
    }
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| Who::Address(address.to_canonical()))
}

pub(super) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::text(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json_answer(value: &impl Serialize) -> Response<Answer> {
    let Ok(text) = serde_json::to_vec(value) else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "answer cannot be written");
    };
    let mut response = Response::new(Answer::text(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn json_error(status: StatusCode, text: &str) -> Response<Answer> {
    let mut response = json_answer(&json!({ "Error": text }));
    *response.status_mut() = status;
    response
}

fn forbidden(path: &str) -> Response<Answer> {
    plain(StatusCode::FORBIDDEN, format!("{path} access denied"))
}

fn done(path: &str, outcome: Result<(), Refusal>) -> Response<Answer> {
    match outcome {
        Ok(()) => plain(StatusCode::NO_CONTENT, ""),
        Err(Refusal::Forbidden) => forbidden(path),
        Err(Refusal::Bad(text)) => plain(StatusCode::BAD_REQUEST, text),
        Err(Refusal::Failed(text)) => plain(StatusCode::INTERNAL_SERVER_ERROR, text),
    }
}

#[cfg(test)]
mod tests;
