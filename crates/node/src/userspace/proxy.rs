//! The ways into the tailnet for programs of a machine without TUN device: SOCKS5 and HTTP.
//!
//! What does not lead into the tailnet goes as every program's connections do. Sources: RFC 1928; RFC 9110, section 9.3.6, and
//! RFC 9112, section 3.2; node.md, section 22.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::dialer::{DialError, Dialed, Dialer};
use super::network::Stream;

/// Connections of programs at a time; others wait.
const CONNECTIONS: usize = 256;
/// How long a program may take to say where it wants to go.
const GREETING: Duration = Duration::from_secs(15);
/// How long an address outside of the tailnet may take to answer.
const CONNECTING: Duration = Duration::from_secs(15);
/// How soon a connection is taken again after an error, such as too many open files: it lasts, and would be busy work.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest head of an HTTP request, in bytes, and most of its headers.
const HEAD: (usize, usize) = (16 * 1024, 64);
/// Longest name of a host. Source: RFC 1035, section 2.3.4.
const HOST: usize = 255;
/// Bytes on their way in each direction.
const BUFFER: usize = 64 * 1024;

/// Says what a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SOCKS5 without passwords.
    Socks5,
    /// HTTP: CONNECT, and requests with a whole URL.
    Http,
    /// Whichever the program begins with.
    Both,
}

/// Serves programs until the task is dropped.
pub async fn serve(listener: TcpListener, kind: Kind, dialer: Dialer) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let program = match listener.accept().await {
            Ok((program, _)) => program,
            Err(error) => {
                tracing::debug!(%error, "a proxy takes no connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let dialer = dialer.clone();
        tokio::spawn(async move {
            let _place = place;
            let _ = program.set_nodelay(true);
            if let Err(error) = connection(program, kind, &dialer).await {
                tracing::debug!(%error, "a connection of a proxy ended");
            }
        });
    }
}

async fn connection(mut program: TcpStream, kind: Kind, dialer: &Dialer) -> io::Result<()> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let is_socks = match kind {
        Kind::Socks5 => true,
        Kind::Http => false,
        Kind::Both => {
            let mut first = [0];
            timeout(GREETING, program.peek(&mut first)).await.map_err(late)??;
            first == [VERSION]
        }
    };
    if is_socks {
        let Some((host, port)) = timeout(GREETING, read_socks(&mut program)).await.map_err(late)?? else {
            return Ok(());
        };
        return match open(dialer, &host, port).await {
            Ok(mut there) => {
                program.write_all(&socks_reply(SUCCEEDED)).await?;
                there.carry(&mut program).await
            }
            Err(error) => {
                tracing::debug!(%error, "a SOCKS5 client is refused");
                program.write_all(&socks_reply(socks_code(&error))).await
            }
        };
    }
    let (head, rest) = timeout(GREETING, read_head(&mut program)).await.map_err(late)??;
    let request = match HttpRequest::parse(&head) {
        Ok(request) => request,
        Err(text) => return program.write_all(refusal("400 Bad Request", text, "").as_bytes()).await,
    };
    match open(dialer, &request.host, request.port).await {
        Ok(mut there) => {
            match &request.forwarded {
                Some(head) => there.write(head).await?,
                None => program.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
            }
            there.write(&rest).await?;
            there.carry(&mut program).await
        }
        Err(error) => {
            // Source: node.md, section 22.
            let text = error.to_string();
            let header = format!("Tailscale-Connect-Error: {}\r\n", text.replace(['\r', '\n'], " "));
            program.write_all(refusal("500 Internal Server Error", &text, &header).as_bytes()).await
        }
    }
}

/// Carries bytes both ways until both ends are done.
pub(crate) async fn carry<A, B>(one: &mut A, other: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(one, other, BUFFER, BUFFER).await.map(drop)
}

/// Is the other end of a proxy's connection.
enum There {
    Tailnet(Stream),
    Outside(TcpStream),
}

impl There {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tailnet(stream) => stream.write_all(bytes).await,
            Self::Outside(stream) => stream.write_all(bytes).await,
        }
    }

    async fn carry(&mut self, program: &mut TcpStream) -> io::Result<()> {
        match self {
            Self::Tailnet(stream) => {
                let carried = carry(stream, program).await;
                if carried.is_err() {
                    stream.abort();
                }
                carried
            }
            Self::Outside(stream) => carry(stream, program).await,
        }
    }
}

async fn open(dialer: &Dialer, host: &str, port: u16) -> Result<There, DialError> {
    match dialer.dial(host, port).await? {
        Dialed::Tailnet(stream) => Ok(There::Tailnet(stream)),
        Dialed::Outside(addresses) => outside(host, &addresses).await.map(There::Outside),
    }
}

/// Connects to the first of these addresses that takes it.
async fn outside(host: &str, addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut failed = DialError::NoSuchName(host.to_owned());
    for to in addresses {
        match timeout(CONNECTING, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(source)) => failed = DialError::Failed { to: *to, source },
            Err(_) => failed = DialError::Failed { to: *to, source: io::ErrorKind::TimedOut.into() },
        }
    }
    Err(failed)
}

// SOCKS5. Source: RFC 1928, sections 3 to 6.

const VERSION: u8 = 5;
const NO_PASSWORD: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;
const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const UNREACHABLE: u8 = 4;
const REFUSED: u8 = 5;
const COMMAND: u8 = 7;
const ADDRESS_KIND: u8 = 8;

/// Reads where a client wants to go; `None` if it was told that this cannot be.
async fn read_socks<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S) -> io::Result<Option<(String, u16)>> {
    if client.read_u8().await? != VERSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not SOCKS5"));
    }
    let mut methods = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&NO_PASSWORD) {
        client.write_all(&[VERSION, NO_METHOD]).await?;
        return Ok(None);
    }
    client.write_all(&[VERSION, NO_PASSWORD]).await?;
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    if version != VERSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not SOCKS5"));
    }
    let host = match kind {
        ADDRESS_V4 => {
            let mut address = [0; 4];
            client.read_exact(&mut address).await?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        ADDRESS_V6 => {
            let mut address = [0; 16];
            client.read_exact(&mut address).await?;
            std::net::Ipv6Addr::from(address).to_string()
        }
        ADDRESS_NAME => {
            let mut name = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no name"))?
        }
        _ => {
            client.write_all(&socks_reply(ADDRESS_KIND)).await?;
            return Ok(None);
        }
    };
    let port = client.read_u16().await?;
    if command != CONNECT {
        client.write_all(&socks_reply(COMMAND)).await?;
        return Ok(None);
    }
    Ok(Some((host, port)))
}

/// Returns a reply without an address, which no client of CONNECT needs.
fn socks_reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0]
}

fn socks_code(error: &DialError) -> u8 {
    match error {
        DialError::NoSuchName(_) | DialError::NoWay(_) => UNREACHABLE,
        DialError::Failed { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => REFUSED,
        DialError::Failed { source, .. } if source.kind() == io::ErrorKind::TimedOut => UNREACHABLE,
        DialError::Failed { .. } => FAILED,
    }
}

// HTTP.

/// Says where a request goes, and what of it.
#[derive(Debug, PartialEq, Eq)]
struct HttpRequest {
    host: String,
    port: u16,
    /// The head for the server; `None` for CONNECT.
    forwarded: Option<Vec<u8>>,
}

impl HttpRequest {
    /// Reads a head.
    ///
    /// A forwarded request asks the server to close the connection behind its answer, so that the next one comes to us again
    /// instead of to that server.
    ///
    /// # Errors
    /// Returns a text for whoever sent it.
    fn parse(head: &[u8]) -> Result<Self, &'static str> {
        let mut headers = [httparse::EMPTY_HEADER; HEAD.1];
        let mut request = httparse::Request::new(&mut headers);
        let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
            (request.parse(head), request.method, request.path)
        else {
            return Err("bad request");
        };
        let uri: Uri = target.parse().map_err(|_| "bogus RequestURI")?;
        let host = uri.host().filter(|host| (1..=HOST).contains(&host.len())).ok_or("bogus RequestURI")?.to_owned();
        if method == "CONNECT" {
            let port = uri.port_u16().ok_or("bogus RequestURI")?;
            return Ok(Self { host, port, forwarded: None });
        }
        if uri.scheme_str() != Some("http") {
            return Err("only http URLs are forwarded; use CONNECT");
        }
        let headers = &*request.headers;
        let count = |name: &str| headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
        // Proxy and server must agree on where a request ends, and whom it is for. Source: RFC 9112, sections 3.2 and 6.3.
        let lengths = count("content-length") + count("transfer-encoding");
        if count("host") > 1 || lengths > 1 {
            return Err("contradictory headers");
        }
        let nominated = nominated(headers);
        if FRAMING.iter().any(|name| nominated.iter().any(|one| one.eq_ignore_ascii_case(name))) {
            return Err("contradictory headers");
        }
        let is_hop = |name: &str| {
            HOP_HEADERS.iter().copied().chain(nominated.iter().copied()).any(|one| name.eq_ignore_ascii_case(one))
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        // Who it is for is what the request line says, whatever the header says. Source: RFC 9112, section 3.2.2.
        let port = uri.port_u16().map_or(String::new(), |port| format!(":{port}"));
        let mut forwarded =
            format!("{method} {target} HTTP/1.1\r\nConnection: close\r\nHost: {host}{port}\r\n").into_bytes();
        let passed = |name: &str| !name.eq_ignore_ascii_case("host") && !is_hop(name);
        for header in headers.iter().filter(|header| passed(header.name)) {
            forwarded.extend_from_slice(header.name.as_bytes());
            forwarded.extend_from_slice(b": ");
            forwarded.extend_from_slice(header.value);
            forwarded.extend_from_slice(b"\r\n");
        }
        forwarded.extend_from_slice(b"\r\n");
        Ok(Self { host, port: uri.port_u16().unwrap_or(80), forwarded: Some(forwarded) })
    }
}

/// Headers that are for the proxy. Source: RFC 9110, section 7.6.1.
const HOP_HEADERS: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-authentication-info",
    "te",
    "upgrade",
];

/// Headers that say where a request ends and whom it is for, which cannot be for the proxy alone.
const FRAMING: [&str; 4] = ["content-length", "transfer-encoding", "trailer", "host"];

/// Returns the names of further headers that the sender says are for the proxy.
fn nominated<'h>(headers: &[httparse::Header<'h>]) -> Vec<&'h str> {
    let lists = headers.iter().filter(|header| {
        header.name.eq_ignore_ascii_case("connection") || header.name.eq_ignore_ascii_case("proxy-connection")
    });
    let words = lists.filter_map(|header| std::str::from_utf8(header.value).ok()).flat_map(|list| list.split(','));
    words.map(str::trim).filter(|word| !word.is_empty()).collect()
}

/// Reads to the end of a request's head; returns the head and what came behind it.
async fn read_head<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((bytes, rest));
        }
        if bytes.len() >= HEAD.0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "head too long"));
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn refusal(status: &str, text: &str, header: &str) -> String {
    let length = text.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n{header}\r\n{text}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(head: &str) -> String {
        String::from_utf8(HttpRequest::parse(head.as_bytes()).unwrap().forwarded.unwrap()).unwrap()
    }

    #[test]
    fn requests_with_a_whole_url_are_forwarded_without_what_is_for_the_proxy() {
        let head = "GET http://beta:8080/a?b=c HTTP/1.1\r\nHost: beta:8080\r\nProxy-Connection: keep-alive\r\nAccept: */*\r\n\r\n";
        let request = HttpRequest::parse(head.as_bytes()).unwrap();
        assert_eq!((request.host.as_str(), request.port), ("beta", 8080));
        assert_eq!(
            forwarded(head),
            "GET /a?b=c HTTP/1.1\r\nConnection: close\r\nHost: beta:8080\r\nAccept: */*\r\n\r\n"
        );
        assert!(forwarded("GET http://beta HTTP/1.1\r\n\r\n").starts_with("GET / HTTP/1.1\r\n"));
        assert_eq!(
            forwarded(
                "GET http://beta/ HTTP/1.1\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nUpgrade: h2c\r\nA: b\r\n\r\n"
            ),
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: beta\r\nA: b\r\n\r\n",
            "what the sender says is for the proxy goes no further"
        );
    }

    /// Else a server would take it for another of its sites than the one that the proxy let through, or for two requests.
    #[test]
    fn servers_hear_of_the_host_and_the_end_that_the_proxy_saw() {
        for host in ["gamma", "gamma:81", ""] {
            let head = format!("GET http://beta:8080/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(forwarded(&head), "GET / HTTP/1.1\r\nConnection: close\r\nHost: beta:8080\r\n\r\n");
        }
        for headers in [
            "Host: a\r\nHost: b\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Connection: Content-Length\r\nContent-Length: 5\r\n",
            "Connection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
            "Connection: host\r\n",
        ] {
            let head = format!("POST http://beta/ HTTP/1.1\r\n{headers}\r\n");
            assert!(HttpRequest::parse(head.as_bytes()).is_err(), "{headers:?}");
        }
        let endless = "a".repeat(HOST + 1);
        assert!(HttpRequest::parse(format!("GET http://{endless}/ HTTP/1.1\r\n\r\n").as_bytes()).is_err());
        assert!(HttpRequest::parse(format!("CONNECT {endless}:80 HTTP/1.1\r\n\r\n").as_bytes()).is_err());
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        for (target, host) in [("beta:443", "beta"), ("[fd7a::1]:443", "[fd7a::1]"), ("100.64.0.1:443", "100.64.0.1")] {
            let head = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
            let request = HttpRequest::parse(head.as_bytes()).unwrap();
            assert_eq!(request, HttpRequest { host: host.to_owned(), port: 443, forwarded: None });
        }
    }

    /// A page in a browser can make it send such requests.
    #[test]
    fn requests_to_the_proxy_itself_are_refused() {
        for head in [
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            "CONNECT beta HTTP/1.1\r\n\r\n",
            "GET ftp://x/ HTTP/1.1\r\n\r\n",
            "\r\n\r\n",
            "x",
        ] {
            assert!(HttpRequest::parse(head.as_bytes()).is_err(), "{head:?}");
        }
    }

    /// Lets a client say `bytes`; returns what is understood and what it is told.
    async fn socks(bytes: &[u8]) -> (io::Result<Option<(String, u16)>>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(1024);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let read = read_socks(&mut server).await;
        drop(server);
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        (read, told)
    }

    #[tokio::test]
    async fn socks_clients_say_where_they_want_to_go() {
        let greeted = |request: &[u8]| [&[5, 2, 0, 2, 5, 1, 0], request].concat();
        for (request, host) in [
            (&[1, 100, 64, 0, 1, 0, 80][..], "100.64.0.1"),
            (&[3, 4, b'b', b'e', b't', b'a', 0, 80], "beta"),
            (&[4, 0xfd, 0x7a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80], "fd7a::1"),
        ] {
            let (read, told) = socks(&greeted(request)).await;
            assert_eq!((read.unwrap(), told), (Some((host.to_owned(), 80)), vec![5, 0]));
        }
        let (read, told) = socks(&greeted(&[9, 1, 2])).await;
        assert_eq!((read.unwrap(), told.get(3)), (None, Some(&ADDRESS_KIND)));
        // BIND.
        let (read, told) = socks(&[5, 1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 80]).await;
        assert_eq!((read.unwrap(), told.get(3)), (None, Some(&COMMAND)));
        // One that has nothing but a password to offer.
        let (read, told) = socks(&[5, 1, 2]).await;
        assert_eq!((read.unwrap(), told), (None, vec![5, NO_METHOD]));
        for short in [&b""[..], &[4], &[5], &[5, 1], &[5, 1, 0, 5, 1, 0, 3, 200, b'x'], b"GET / HTTP/1.1"] {
            assert!(socks(short).await.0.is_err(), "{short:?}");
        }
    }

    #[tokio::test]
    async fn heads_of_any_length_end_somewhere() {
        let (head, rest) = read_head(&mut &b"CONNECT a:1 HTTP/1.1\r\n\r\nrest"[..]).await.unwrap();
        assert_eq!((head.len(), &rest[..]), (24, &b"rest"[..]));
        let endless = vec![b'x'; 2 * HEAD.0];
        assert_eq!(read_head(&mut &endless[..]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_head(&mut &b"x\r\n"[..]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
