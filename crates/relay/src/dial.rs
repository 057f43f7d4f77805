//! TCP connections to servers: to whichever address answers first, or through the HTTP proxy that the environment names.
//!
//! Sources: RFC 8305 (trying addresses side by side); RFC 9110, section 9.3.6 (CONNECT). The variables `HTTPS_PROXY`,
//! `HTTP_PROXY` and `NO_PROXY` mean what they mean to curl.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long one address of a host is tried before the next is tried beside it.
///
/// Source: RFC 8305, section 5.
const STAGGER: Duration = Duration::from_millis(250);
/// Most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long what was sent may stay unacknowledged. Source: paths.md, section 1.8.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// When a silent connection is asked whether it still stands: a NAT that was restarted knows it no more, and nobody would
/// notice before the next packet out.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);
/// Longest head of a proxy's answer.
const HEAD_MAX: usize = 8 << 10;
/// Port of a proxy whose address does not name one.
const PROXY_PORT: u16 = 80;

/// Finds the addresses of a host by its name.
pub type LookUp = fn(host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Says how this process reaches machines beside its own tunnels.
#[derive(Debug, Clone, Copy)]
pub struct Outside {
    /// Mark on the packets of its sockets (`SO_MARK`), by which the kernel keeps them out.
    pub mark: u32,
    /// Finds names without the tunnel's help.
    pub look_up: LookUp,
}

static OUTSIDE: OnceLock<Outside> = OnceLock::new();

/// Makes this process reach servers as `outside` says, from now on; the first call counts. A process without tunnels of its
/// own does without.
pub fn reach(outside: Outside) {
    let _ = OUTSIDE.set(outside);
}

/// Finds the addresses of `host`, a name or an address.
///
/// # Errors
/// Says that there are none, or why they cannot be found.
pub async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let with_port = |ip: IpAddr| SocketAddr::new(ip, port);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![with_port(ip)]);
    }
    match OUTSIDE.get() {
        Some(outside) => Ok((outside.look_up)(host.to_owned()).await?.into_iter().map(with_port).collect()),
        None => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
    }
}

/// Connects to an address.
///
/// # Errors
/// The kernel's answer.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(outside) = OUTSIDE.get()
        && let Err(error) = SockRef::from(&socket).set_mark(outside.mark)
    {
        tracing::debug!(%error, "packets of a connection are not marked");
    }
    socket.connect(address).await
}

/// Puts addresses into the order of trying: the system's, with the families taking turns; the first eight.
pub fn alternate(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut found = found.into_iter().peekable();
    let Some(family) = found.peek().map(SocketAddr::is_ipv6) else {
        return Vec::new();
    };
    let (first, second): (Vec<_>, Vec<_>) = found.partition(|address| address.is_ipv6() == family);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    while order.len() < MAX_ADDRESSES {
        let before = order.len();
        order.extend(first.next());
        order.extend(second.next());
        if order.len() == before {
            break;
        }
    }
    order.truncate(MAX_ADDRESSES);
    order
}

/// Connects to whichever address answers first; a later one starts when the one before fails or takes 250 ms.
/// The connection sends at once, and breaks when nothing is acknowledged for 15 s or, at rest, for 30 s.
///
/// # Errors
/// That of the last address that failed; `AddrNotAvailable` without any address.
pub async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut waiting = addresses.into_iter();
    let mut failed = io::ErrorKind::AddrNotAvailable.into();
    loop {
        let started = waiting.next().map(|address| attempts.spawn(connect(address)));
        let ended = match started {
            Some(_) => timeout(STAGGER, attempts.join_next()).await,
            None => Ok(attempts.join_next().await),
        };
        match ended {
            Ok(Some(Ok(Ok(stream)))) => return tuned(stream),
            Ok(Some(Ok(Err(error)))) => failed = error,
            Ok(Some(Err(error))) => failed = io::Error::other(error),
            Ok(None) => return Err(failed),
            Err(_) => {}
        }
    }
}

/// Lets a connection notice soon that it is dead; messages are small and waited for.
fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(stream)
}

/// Connects to `host`, a name or an address: through the proxy that the environment names for it, else straight.
///
/// # Errors
/// Those of [`race`] and of the proxy, or that the name does not resolve.
pub async fn dial(host: &str, port: u16, is_tls: bool) -> io::Result<TcpStream> {
    match through_proxy(host, port, is_tls).await {
        Some(stream) => stream,
        None => race(alternate(look_up(host, port).await?)).await,
    }
}

/// Connects to `host`, a name or an address, through the proxy that the environment names for it; `None` if there is
/// none. `is_tls` is what will be spoken. The name is left to the proxy to find.
pub async fn through_proxy(host: &str, port: u16, is_tls: bool) -> Option<io::Result<TcpStream>> {
    static PROXIES: LazyLock<Proxies> = LazyLock::new(|| Proxies::new(|name| std::env::var(name).ok()));
    match PROXIES.of(host, is_tls)? {
        Ok(proxy) => Some(proxy.connect(host, port).await),
        Err(error) => Some(Err(io::Error::new(io::ErrorKind::InvalidInput, error.clone()))),
    }
}

/// What the environment says of proxies.
#[derive(Debug)]
struct Proxies {
    /// For TLS, and for all else; an error if what is said makes no sense.
    tls: Option<Result<Proxy, String>>,
    plain: Option<Result<Proxy, String>>,
    except: Vec<Except>,
}

/// A host that is reached without a proxy.
#[derive(Debug, PartialEq, Eq)]
enum Except {
    All,
    Net(IpAddr, u8),
    /// A name, and all names below it; in small letters, without a dot in front.
    Domain(String),
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Proxy {
    /// A name or an address without brackets.
    host: String,
    port: u16,
    /// Value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxies {
    fn new(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(name).or_else(|| get(&name.to_ascii_lowercase())).filter(|text| !text.is_empty());
        let proxy = |name: &str| {
            let text = get(name)?;
            // What is wrong may be a password: it is not repeated.
            Some(Proxy::parse(&text).ok_or_else(|| format!("{name} is not http://[USER:PASSWORD@]HOST[:PORT]")))
        };
        let except = get("NO_PROXY").unwrap_or_default();
        let except = except.split(',').filter_map(|word| Except::parse(word.trim())).collect();
        Self { tls: proxy("HTTPS_PROXY"), plain: proxy("HTTP_PROXY"), except }
    }

    fn of(&self, host: &str, is_tls: bool) -> Option<&Result<Proxy, String>> {
        let proxy = if is_tls { self.tls.as_ref() } else { self.plain.as_ref() }?;
        let address = host.parse::<IpAddr>().ok();
        // A proxy's own loopback is not ours.
        let is_local = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let is_excepted = self.except.iter().any(|except| except.covers(host, address));
        (!is_local && !is_excepted).then_some(proxy)
    }
}

impl Except {
    fn parse(word: &str) -> Option<Self> {
        if word.is_empty() {
            return None;
        }
        if word == "*" {
            return Some(Self::All);
        }
        let (address, bits) = word.split_once('/').map_or((word, None), |(address, bits)| (address, Some(bits)));
        if let Ok(address) = address.parse::<IpAddr>() {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Some(longest), |bits| bits.parse().ok().filter(|bits| *bits <= longest))?;
            return Some(Self::Net(address, bits));
        }
        Some(Self::Domain(word.trim_start_matches('.').to_ascii_lowercase()))
    }

    fn covers(&self, host: &str, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::All, _) => true,
            (Self::Net(IpAddr::V4(net), bits), Some(IpAddr::V4(address))) => {
                let shift = 32 - u32::from(*bits);
                net.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            (Self::Net(IpAddr::V6(net), bits), Some(IpAddr::V6(address))) => {
                let shift = 128 - u32::from(*bits);
                net.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            (Self::Domain(domain), None) => {
                let host = host.to_ascii_lowercase();
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Self::Net(..) | Self::Domain(_), _) => false,
        }
    }
}

impl Proxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT][/]`.
    fn parse(text: &str) -> Option<Self> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) => scheme.eq_ignore_ascii_case("http").then_some(rest)?,
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, rest.strip_prefix(':'))
            }
            None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(PROXY_PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
        if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte)) {
            return None;
        }
        let authorization = match user {
            Some(user) => Some(format!("Basic {}", base64(&percent_decoded(user)?))),
            None => None,
        };
        Some(Self { host: host.to_owned(), port, authorization })
    }

    /// Asks the proxy for a connection to `host`.
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("the HTTP proxy {}:{}: {error}", self.host, self.port))
        };
        let found = look_up(&self.host, self.port).await.map_err(failed)?;
        let mut stream = race(alternate(found)).await.map_err(failed)?;
        stream.write_all(&self.request(host, port)).await.map_err(failed)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= HEAD_MAX {
                return Err(failed(io::Error::other("its answer is too long")));
            }
            // Byte by byte: what follows belongs to the connection.
            head.push(stream.read_u8().await.map_err(failed)?);
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut fields);
        match answer.parse(&head).map(|_| answer.code) {
            Ok(Some(200)) => Ok(stream),
            Ok(Some(407)) => Err(failed(io::Error::other("it wants another user or password"))),
            Ok(code) => Err(failed(io::Error::other(format!("it answered {}", code.unwrap_or_default())))),
            Err(_) => Err(failed(io::Error::other("what it answered is not HTTP"))),
        }
    }

    fn request(&self, host: &str, port: u16) -> Vec<u8> {
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let authorization = match &self.authorization {
            Some(value) => format!("Proxy-Authorization: {value}\r\n"),
            None => String::new(),
        };
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n").into_bytes()
    }
}

/// Takes `%41` for `A`; `None` if there is a `%` without a number.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    Some(decoded)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 4];
        three.iter_mut().skip(1).zip(chunk).for_each(|(to, from)| *to = *from);
        let bits = u32::from_be_bytes(three);
        for at in 0..4_u32 {
            let index = usize::try_from((bits >> (18 - 6 * at)) & 63).unwrap_or_default();
            let letter = LETTERS.get(index).copied().unwrap_or_default();
            text.push(if at as usize <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests;
