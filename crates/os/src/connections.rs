//! What the kernel remembers of connections that it passes on and gives other addresses ("conntrack").

use std::io;
use std::net::Ipv4Addr;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

// Source: Linux, include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST` and `NLM_F_ACK`.
const FLAGS: u16 = 1 | 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_IP` and `CTA_IP_V4_SRC`, each within the one before.
const SOURCE: [u16; 3] = [1 | NESTED, 1 | NESTED, 1];
/// `CTA_FILTER` and `CTA_FILTER_ORIG_FLAGS` within it.
const FILTER: [u16; 2] = [25 | NESTED, 1];
/// `CTA_FILTER_FLAG(CTA_IP_SRC)`: the source counts, and nothing else.
const BY_SOURCE: u32 = 1;
/// `NLMSG_ERROR`, which is the acknowledgement, too.
const ANSWER: u16 = 2;

/// Makes the kernel forget all connections that `source` began through this machine, so that nothing which belongs to them
/// goes to whoever has that address next. Looks through all connections that the kernel remembers, so it may take milliseconds.
///
/// # Errors
/// Returns the kernel's answer: without the right to it, or without the module `nf_conntrack_netlink`, or before Linux 5.8.
pub fn forget_connections(source: Ipv4Addr) -> io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
    let message = message(source);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    let code = match *answer {
        [_, _, _, _, low, high, _, _, _, _, _, _, _, _, _, _, a, b, c, d, ..]
            if u16::from_ne_bytes([low, high]) == ANSWER =>
        {
            i32::from_ne_bytes([a, b, c, d])
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is not understood")),
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// Writes the request.
fn message(source: Ipv4Addr) -> Vec<u8> {
    let [tuple, ip, address] = SOURCE;
    let [filter, original] = FILTER;
    // Family AF_INET, a version of which the kernel takes the family as meant, and no resource.
    let mut body = vec![2, 1, 0, 0];
    body.extend(attribute(tuple, &attribute(ip, &attribute(address, &source.octets()))));
    body.extend(attribute(filter, &attribute(original, &BY_SOURCE.to_ne_bytes())));
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(DELETE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    // Sequence number and port of the sender, of which neither matters with one message.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Writes an attribute, whose content is a multiple of 4 bytes here.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Who gets the address next would get what was meant for the one before.
    #[test]
    fn connections_of_one_address_are_forgotten_and_no_others() {
        crate::testing::in_own_network(async || {
            let run = |program: &str, words: &[&str]| {
                Command::new(program).args(words).output().map(|out| out.status.success())
            };
            let track = "table ip t { chain o { type nat hook output priority 0; }; chain i { type filter hook input priority 0; ct state new accept; }; }";
            if !run("nft", &[track]).unwrap_or(false) {
                return println!("skipped: no nft, or a kernel that tracks no connections");
            }
            run("ip", &["link", "set", "lo", "up"]).unwrap();
            let [one, two] = [7, 8].map(|last| Ipv4Addr::new(100, 115, 92, last));
            for source in [one, two] {
                run("ip", &["addr", "add", &format!("{source}/32"), "dev", "lo"]).unwrap();
                let socket = std::net::UdpSocket::bind((source, 0)).unwrap();
                socket.send_to(b"x", "127.0.0.1:9").unwrap();
            }
            let known = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
            let knows = |source: Ipv4Addr| known().contains(&format!("src={source} dst=127.0.0.1"));
            assert!(knows(one) && knows(two), "{}", known());
            forget_connections(one).unwrap();
            assert!(!knows(one) && knows(two), "{}", known());
            forget_connections(one).expect("that there is none is no error");
        });
    }
}
