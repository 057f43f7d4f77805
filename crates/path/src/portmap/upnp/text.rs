//! The texts of UPnP: search messages, HTTP, descriptions, calls. All that is read comes from a stranger: it is bounded
//! before it gets here, looked through for a few tags, and nothing of it is sent on that is not checked.
//!
//! Sources: UPnP Device Architecture 1.1; InternetGatewayDevice WANIPConnection:1 and :2.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Longest path of a URL.
const PATH_MAX: usize = 512;
/// Most services of a description that are looked at.
const SERVICES_MAX: usize = 64;

/// Services that map ports, best first.
///
/// Source: Tailscale `net/portmapper/upnp.go`; the last two are what old DSL routers call them.
const SERVICES: [&str; 5] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
    "urn:dslforum-org:service:WANPPPConnection:1",
    "urn:dslforum-org:service:WANIPConnection:1",
];

/// Whom a search asks to answer.
pub(super) const GATEWAYS: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
/// The same: everybody, since some gateways answer nothing else.
pub(super) const EVERYBODY: &str = "ssdp:all";

/// Makes a search for `target`.
pub(super) fn search(target: &str) -> Vec<u8> {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: {target}\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n\r\n"
    )
    .into_bytes()
}

/// Reads where an answer to a search says that the description is, and whether it says that it is of a gateway.
pub(super) fn read_answer(bytes: &[u8]) -> Option<(Url, bool)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let mut status = lines.next()?.split(' ');
    if !status.next()?.starts_with("HTTP/1.") || status.next()? != "200" {
        return None;
    }
    let location = lines.find_map(|line| header(line, "location"))?;
    Some((Url::parse(location)?, text.contains(":InternetGatewayDevice:")))
}

/// Returns the value of a header line with this name.
fn header<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = line.split_once(':')?;
    key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
}

/// What of a URL is used: its address is not, as only the gateway is talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) port: u16,
    /// Beginning with a slash, printable ASCII without blanks.
    pub(super) path: String,
}

impl Url {
    /// Reads `http://ADDRESS[:PORT]/path`; the host must be an IPv4 address.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let port = match host.parse::<Ipv4Addr>() {
            Ok(_) => 80,
            Err(_) => host.parse::<SocketAddrV4>().ok()?.port(),
        };
        (port != 0).then_some(())?;
        Some(Self { port, path: checked(path)? })
    }

    /// Reads a reference in a description that was found here.
    fn join(&self, reference: &str) -> Option<Self> {
        if reference.contains("://") {
            return Self::parse(reference);
        }
        let path = if reference.starts_with('/') { reference.to_owned() } else { format!("/{reference}") };
        Some(Self { port: self.port, path: checked(&path)? })
    }
}

/// Lets only paths through that cannot end a request line.
fn checked(path: &str) -> Option<String> {
    let is_fine = path.len() <= PATH_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
    is_fine.then(|| path.to_owned())
}

/// A service that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) kind: &'static str,
    pub(super) url: Url,
}

impl Service {
    /// Tells whether the gateway may choose another outside port by itself.
    pub(super) fn chooses(&self) -> bool {
        self.kind.ends_with("WANIPConnection:2")
    }
}

/// Finds the services of a description, which was found at `base`, best first.
pub(super) fn services(description: &str, base: &Url) -> Vec<Service> {
    let blocks = description.split("<service>").skip(1).take(SERVICES_MAX);
    let mut found: Vec<(usize, Service)> = blocks
        .filter_map(|block| {
            let named = tag(block, "serviceType")?;
            let rank = SERVICES.iter().position(|kind| *kind == named)?;
            let url = base.join(&tag(block, "controlURL")?.replace("&amp;", "&"))?;
            Some((rank, Service { kind: SERVICES.get(rank)?, url }))
        })
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, service)| service).collect()
}

/// Returns what the first tag of this name holds, whatever its namespace is called.
pub(super) fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        rest = rest.get(at + 1..)?;
        let (head, inside) = rest.split_once('>')?;
        let named = head.split_ascii_whitespace().next().unwrap_or_default();
        let local = named.rsplit(':').next().unwrap_or_default();
        if local == name && !head.ends_with('/') {
            return inside.split('<').next().map(str::trim);
        }
        rest = inside;
    }
    None
}

/// Makes the request for a description.
pub(super) fn get(to: SocketAddrV4, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// Makes the request that calls an action of a service.
pub(super) fn call(to: SocketAddrV4, service: &Service, action: &str, arguments: &[(&str, &str)]) -> Vec<u8> {
    let kind = service.kind;
    let mut body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">"
    );
    for (name, value) in arguments {
        // Writing to a string cannot fail.
        let _ = write!(body, "<{name}>{value}</{name}>");
    }
    let _ = write!(body, "</u:{action}></s:Body></s:Envelope>\r\n");
    let path = &service.url.path;
    format!(
        "POST {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         SOAPAction: \"{kind}#{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads a whole HTTP response: its status and its body.
pub(super) fn response(bytes: &[u8]) -> Option<(u16, String)> {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(bytes.get(..split)?).ok()?;
    let body = bytes.get(split + 4..)?;
    let mut lines = head.split("\r\n");
    let mut status = lines.next()?.split(' ');
    if !status.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status = status.next()?.parse().ok()?;
    let mut body = body.to_vec();
    for line in lines {
        if let Some(length) = header(line, "content-length") {
            body.truncate(length.parse().ok()?);
        } else if header(line, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            body = unchunked(&body)?;
        }
    }
    // Some routers speak Latin-1 in their names; what is looked for is ASCII.
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Puts chunks together. RFC 9112, section 7.1.
fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        bytes = bytes.get(end + 2..)?;
        if size == 0 {
            return Some(whole);
        }
        let (chunk, rest) = bytes.split_at_checked(size)?;
        whole.extend_from_slice(chunk);
        bytes = rest.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_is_read_of_gateways_and_others() {
        let answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
            LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n";
        let url = Url { port: 5000, path: "/rootDesc.xml".into() };
        assert_eq!(read_answer(answer), Some((url, true)));
        for bad in [
            &b"NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1:5000/x\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nLocation: http://router.lan:5000/x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nLocation: https://192.168.1.1/x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:0/x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1/a b\r\n\r\n",
            b"\xff\xff",
        ] {
            assert_eq!(read_answer(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn services_come_best_first_and_only_with_a_path_that_can_be_asked() {
        let base = Url { port: 5000, path: "/rootDesc.xml".into() };
        let text = "<root><service>\n<serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType>\
            <controlURL>/ppp</controlURL></service><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
            </serviceType><controlURL>ctl/IPConn?a=1&amp;b=2</controlURL></service>\
            <service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType>\
            <controlURL>/a\r\nX: y</controlURL></service></root>";
        let found: Vec<_> = services(text, &base).into_iter().map(|one| (one.kind, one.url.path)).collect();
        assert_eq!(found, [(SERVICES[1], "/ctl/IPConn?a=1&b=2".to_owned()), (SERVICES[2], "/ppp".to_owned())]);
    }

    #[test]
    fn bodies_are_read_by_length_by_chunks_and_to_the_end() {
        let body = |text: &str| response(text.as_bytes());
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nabc"), Some((200, "abc".into())));
        assert_eq!(body("HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nabc"), Some((500, "ab".into())));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(body(chunks), Some((200, "abc0123456789".into())));
        for bad in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"]
        {
            assert_eq!(body(bad), None, "{bad}");
        }
    }

    #[test]
    fn tags_are_found_in_any_namespace() {
        let text = "<?xml?><s:Body><u:X xmlns:u=\"a\"><NewReservedPort>4711</NewReservedPort><e/></u:X></s:Body>";
        assert_eq!(tag(text, "NewReservedPort"), Some("4711"));
        assert_eq!(tag("<m:errorCode xmlns=\"\"> 725 </m:errorCode>", "errorCode"), Some("725"));
        assert_eq!(tag("<errorCode/>", "errorCode"), None);
        assert_eq!(tag("<errorCode", "errorCode"), None);
    }
}
