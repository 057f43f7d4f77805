//! Names that the daemon itself needs: of its server, of relays, of a proxy.
//!
//! They must be found while everything else goes to an exit node that is away, and while this machine's own resolver is
//! us. The C library's packets cannot be marked, so the daemon asks by itself, over marked sockets: first the file
//! `/etc/hosts`, then the resolvers that this machine has apart from us. The C library is asked when those do not know, since
//! names can come from more sources than these.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use rand::RngExt as _;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use warren_dns::{Kind, Name, Question, upstream};
use warren_os::settings_before;

/// Most bytes that are read of `resolv.conf` and of `hosts`.
const FILE_MAX: u64 = 256 * 1024;
/// Resolvers of the machine that are used.
const RESOLVERS_MAX: usize = 8;
/// How long a resolver may take before the next is asked. Source: resolv.conf(5), `timeout`, which is 5 s there.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest message over UDP that is read: what a question without EDNS may get. Source: RFC 1035, section 2.3.4.
const DATAGRAM_MAX: usize = 512;

/// The settings of the machine's resolver.
const SETTINGS: &str = "/etc/resolv.conf";
/// Where systemd-resolved tells the resolvers that it asks itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Where systemd-resolved listens for programs. Source: systemd-resolved.service(8).
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// Finds the addresses of a host; for [`warren_relay::dial::Outside`].
pub(crate) fn outside(host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
    Box::pin(async move {
        let listed = in_hosts_file(&host);
        if !listed.is_empty() {
            return Ok(listed);
        }
        // A name of one label means what the search list says, which is the C library's business.
        let plain = host.trim_end_matches('.').contains('.').then(|| Name::parse(&host).ok()).flatten();
        if let Some(name) = plain {
            for resolver in system_resolvers() {
                let found = ask(resolver, &name).await;
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
        Ok(tokio::net::lookup_host((host.as_str(), 0)).await?.map(|found| found.ip()).collect())
    })
}

/// Returns what this machine knows of a name without asking anybody.
pub(crate) fn in_hosts_file(host: &str) -> Vec<IpAddr> {
    in_hosts(&read(Path::new("/etc/hosts")), host)
}

/// Asks a resolver for a name's addresses of both families; none if it does not answer in time.
async fn ask(resolver: SocketAddr, name: &Name) -> Vec<IpAddr> {
    let of = |kind| async move { timeout(PATIENCE, exchange(resolver, name, kind)).await };
    let (four, six) = tokio::join!(of(Kind::A), of(Kind::AAAA));
    [four, six].into_iter().filter_map(|answer| answer.ok()?.ok()).flatten().collect()
}

async fn exchange(resolver: SocketAddr, name: &Name, kind: Kind) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    warren_os::mark(&socket);
    socket.connect(resolver).await?;
    let question = Question::new(name, kind, rand::rng().random());
    socket.send(question.message()).await?;
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let message = buffer.get(..length).unwrap_or_default();
        // What answers nothing may come from a stranger: the right one may still come.
        if let Some(found) = question.addresses(message) {
            return Ok(found);
        }
    }
}

/// Returns the resolvers that this machine uses apart from ourselves.
pub(crate) fn system_resolvers() -> Vec<SocketAddr> {
    // While programs ask us, those that they asked before.
    let found = nameservers(&settings_before(&read(Path::new(SETTINGS))));
    // Its own packets cannot be told from those of programs.
    if !found.is_empty() && found.iter().all(|resolver| STUBS.contains(&resolver.ip())) {
        let behind = nameservers(&read(Path::new(RESOLVED)));
        if !behind.is_empty() {
            return behind;
        }
    }
    found
}

/// Reads a small file; nothing if it cannot be read.
fn read(path: &Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path);
    match file.and_then(|file| file.take(FILE_MAX).read_to_string(&mut text)) {
        Ok(_) => text,
        Err(_) => String::new(),
    }
}

/// Reads the resolvers in a `resolv.conf`, without ourselves.
pub(crate) fn nameservers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(str::split_whitespace);
    let servers = words.filter_map(|mut words| words.next().filter(|word| *word == "nameserver").and(words.next()));
    servers.filter_map(upstream).take(RESOLVERS_MAX).collect()
}

/// Finds a name in a `hosts` file. Source: hosts(5).
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let found = lines.filter_map(|mut words| {
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host)).then_some(address)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_resolvers_are_read_without_ourselves() {
        let text = "# nameserver 192.0.2.1\nsearch x\nnameserver 192.0.2.2\nnameserver 100.100.100.100\nnameserver\tfe80::1%eth0\nnameserver 2001:db8::1\n";
        assert_eq!(nameservers(text), ["192.0.2.2:53", "[2001:db8::1]:53"].map(|text| text.parse().unwrap()));
    }

    #[test]
    fn hosts_are_found_by_every_name_in_both_families() {
        let text = "127.0.0.1 localhost\n192.0.2.7\tserver.example server # 192.0.2.9\n2001:db8::7 Server.Example\n#192.0.2.8 server\nx server\n";
        let both: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(in_hosts(text, "server.example."), both);
        assert_eq!(in_hosts(text, "server"), both[..1]);
        assert!(in_hosts(text, "example").is_empty() && in_hosts("", "server").is_empty());
    }

    #[tokio::test]
    async fn a_resolver_is_asked_for_both_families_and_strangers_are_not_heard() {
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = resolver.local_addr().unwrap();
        let name = Name::parse("relay.example").unwrap();
        let answers = async {
            let mut buffer = [0; 512];
            for _ in 0..2 {
                let (length, from) = resolver.recv_from(&mut buffer).await.unwrap();
                let mut answer = buffer[..length].to_vec();
                let is_v4 = answer[length - 3] == 1;
                answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_v4)]);
                if is_v4 {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
                }
                let mut forged = answer.clone();
                forged[0] ^= 1;
                resolver.send_to(&forged, from).await.unwrap();
                resolver.send_to(&answer, from).await.unwrap();
            }
        };
        let (found, ()) = tokio::join!(ask(address, &name), answers);
        assert_eq!(found, [IpAddr::from([192, 0, 2, 7])]);
    }
}
