//! What a command may take away from whoever gives it: the connection that they are on.

use std::net::IpAddr;
use std::path::Path;

use clap::ValueEnum;

use crate::exit::{Exit, Failure};

/// What sshd tells the programs of a session: addresses and ports of both ends, the client first.
const CONNECTION: &str = "SSH_CONNECTION";
/// Programs between this one and sshd that are looked at.
const DEPTH: usize = 16;

/// A risk that is taken knowingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Risk {
    /// The SSH session in which the command is given may break.
    LoseSsh,
}

/// Refuses what would break an SSH session from outside the tailnet, unless that was accepted.
pub(super) fn check(accepted: Option<Risk>, what: &str) -> Result<(), Failure> {
    match client() {
        Some(address) if accepted.is_none() && !in_tailnet(address) => {
            let text = format!(
                "{what} would break this SSH session, which comes from {address}: answers to it would go into the tunnel; to do it \
                 all the same add --accept-risk=lose-ssh"
            );
            Err(Failure::new(Exit::Usage, text))
        }
        Some(_) | None => Ok(()),
    }
}

fn in_tailnet(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(four) => four.is_loopback() || (four.octets()[0] == 100 && four.octets()[1] & 0xc0 == 64),
        IpAddr::V6(six) => six.is_loopback() || six.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0],
    }
}

/// Returns from where the session comes in which this program runs. `sudo` takes the variable away, so that the programs
/// above are looked at, too.
fn client() -> Option<IpAddr> {
    if let Some(text) = std::env::var_os(CONNECTION) {
        return first(text.to_str()?);
    }
    let mut pid = std::os::unix::process::parent_id();
    for _ in 0..DEPTH {
        let dir = Path::new("/proc").join(pid.to_string());
        let environment = std::fs::read(dir.join("environ")).unwrap_or_default();
        if let Some(found) = in_environment(&environment) {
            return found;
        }
        pid = parent(&std::fs::read_to_string(dir.join("status")).ok()?)?;
    }
    None
}

/// Finds the variable among those of a process.
fn in_environment(environment: &[u8]) -> Option<Option<IpAddr>> {
    let mut variables = environment.split(|&byte| byte == 0);
    let value = variables.find_map(|one| one.strip_prefix(CONNECTION.as_bytes())?.strip_prefix(b"="))?;
    Some(std::str::from_utf8(value).ok().and_then(first))
}

fn first(text: &str) -> Option<IpAddr> {
    text.split_whitespace().next()?.parse().ok()
}

fn parent(status: &str) -> Option<u32> {
    let pid = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    (pid > 1).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_the_environment_of_programs_above() {
        let home = Some(Some("192.0.2.7".parse().unwrap()));
        assert_eq!(in_environment(b"A=b\0SSH_CONNECTION=192.0.2.7 50000 192.0.2.1 22\0"), home);
        assert_eq!(in_environment(b"SSH_CONNECTION=\0"), Some(None));
        assert_eq!(in_environment(b"XSSH_CONNECTION=192.0.2.7 1 2 3\0"), None);
        assert_eq!((parent("Name:\tx\nPPid:\t42\n"), parent("PPid:\t1\n"), parent("")), (Some(42), None, None));
    }

    #[test]
    fn a_session_over_the_tailnet_or_this_machine_goes_on() {
        for inside in ["100.64.0.1", "100.127.255.255", "fd7a:115c:a1e0::1", "127.0.0.1", "::1", "::ffff:100.64.0.1"] {
            assert!(in_tailnet(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["192.0.2.1", "100.128.0.1", "100.63.0.1", "2001:db8::1", "fd7a:115c:a1e1::1"] {
            assert!(!in_tailnet(outside.parse().unwrap()), "{outside}");
        }
    }
}
