//! Packets that this machine passes on between the tunnel and the networks behind it.
//!
//! # Why nothing is left behind
//! The rules live in an nftables table with the flag `owner`: the kernel removes it when the socket that made it is closed,
//! and nobody else can change it meanwhile. The socket belongs to an `nft` process that waits for more words on a pipe of
//! which this process alone has the other end. When this process ends, however it does, the pipe ends, hence `nft`,
//! hence the table.
//!
//! The switches for forwarding (`net.ipv4.ip_forward` and its sister) are read, never set: they open the machine for all
//! its interfaces, and nothing says whether somebody else has come to need them by the time we would set them back.

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::ifname::IfName;

/// Most bytes that are read of what `nft` says.
const SAID_MAX: u64 = 16 * 1024;
/// How often it is tried again, each time after [`PAUSE`]: the rules of a process that was killed a moment ago may be there.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(40);

/// Keeps the firewall rules of a router for one tunnel; they go when it is dropped.
#[derive(Debug)]
pub struct Passing {
    child: Child,
    /// `None` once it was closed.
    words: Option<ChildStdin>,
}

/// Says which packets out of the tunnel get an address of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// All.
    All,
    /// Those with an address of 100.115.92.0/23, which mean nothing outside: they were translated for a site.
    Translated,
    /// None.
    Nothing,
}

/// Says why there are no rules.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassingError {
    /// The program `nft` cannot be run.
    #[error("the program nft cannot be run ({0}); install the package nftables")]
    NoProgram(io::Error),
    /// The pipe to it broke.
    #[error("the program nft ended early: {0}")]
    Broken(io::Error),
    /// It, or the kernel, refused the rules.
    #[error("nft refused the rules: {0}; they need nftables and a kernel of version 5.12 or newer")]
    Refused(String),
    /// The interface has a name that cannot be written into rules.
    #[error("the interface {0} needs a name of letters, digits, dots, dashes and underscores")]
    Name(IfName),
}

impl Passing {
    /// Makes the rules for what is passed on from and to the tunnel `interface`; `masquerade` says which packets out of the
    /// tunnel get an address of this machine.
    ///
    /// Blocks until the kernel has them. Connections are told what fits into the tunnel. Packets with an address of a node that do not come out of the tunnel never
    /// enter it, and what came out of it does not go back into it.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn start(interface: &IfName, masquerade: Masquerade) -> Result<Self, PassingError> {
        let words = rules(interface, masquerade)?;
        let mut tries = 1;
        loop {
            match Self::start_once(&words) {
                Err(PassingError::Refused(_)) if tries < TRIES => std::thread::sleep(PAUSE),
                result => return result,
            }
            tries += 1;
        }
    }

    fn start_once(words: &str) -> Result<Self, PassingError> {
        let (said, say) = io::pipe().map_err(PassingError::Broken)?;
        let also = say.try_clone().map_err(PassingError::Broken)?;
        let mut command = Command::new("nft");
        command.arg("-i").stdin(Stdio::piped()).stdout(say).stderr(also);
        // Of its own, so that what interrupts this program from the keyboard leaves the order of the end to it.
        command.process_group(0).env("LC_ALL", "C");
        let mut child = command.spawn().map_err(PassingError::NoProgram)?;
        // The last copies of the writing end here, so that reading ends with the child.
        drop(command);
        let stdin = child.stdin.take();
        let mut passing = Self { child, words: stdin };
        passing.tell(words).map_err(PassingError::Broken)?;
        passing.wait_ready(BufReader::new(said.take(SAID_MAX)))?;
        Ok(passing)
    }

    /// Tells whether the rules are still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn tell(&mut self, words: &str) -> io::Result<()> {
        let Some(pipe) = &mut self.words else { return Err(io::ErrorKind::BrokenPipe.into()) };
        pipe.write_all(words.as_bytes())?;
        pipe.flush()
    }

    /// Reads until the table is listed, which is the last that was asked for.
    fn wait_ready(&self, mut said: impl io::BufRead) -> Result<(), PassingError> {
        let mut line = String::new();
        loop {
            line.clear();
            match said.read_line(&mut line) {
                Ok(0) => return Err(PassingError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) if line.starts_with("Error") => {
                    return Err(PassingError::Refused(line.trim().replace(|c: char| c.is_control(), " ")));
                }
                Ok(_) if line.trim_end() == "}" => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(PassingError::Broken(error)),
            }
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        drop(self.words.take());
        // It may be stuck in a call of the kernel at worst; the rules go with it in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the rules for `nft -i`, which takes one command a line.
fn rules(interface: &IfName, masquerade: Masquerade) -> Result<String, PassingError> {
    let name = interface.as_str();
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
        return Err(PassingError::Name(interface.clone()));
    }
    let table = format!("inet warren_{}", name.replace(['.', '-'], "_"));
    let mut forward = format!(
        "iifname \"{name}\" oifname \"{name}\" drop; \
         iifname != \"{name}\" oifname \"{name}\" ip saddr 100.64.0.0/10 counter drop; \
         iifname != \"{name}\" oifname \"{name}\" ip6 saddr fd7a:115c:a1e0::/48 counter drop; \
         oifname \"{name}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu;"
    );
    let mut postrouting = String::new();
    let which = match masquerade {
        Masquerade::All => Some(""),
        Masquerade::Translated => Some("ip saddr 100.115.92.0/23 "),
        Masquerade::Nothing => None,
    };
    if let Some(which) = which {
        // The interface that a packet came by is gone after routing; a mark stays. Source: node.md, section 21 (the bits of
        // official clients).
        forward += &format!(" iifname \"{name}\" {which}meta mark set meta mark & 0xff00ffff | 0x40000;");
        "chain postrouting { type nat hook postrouting priority srcnat; policy accept; \
         meta mark & 0xff0000 == 0x40000 masquerade; };"
            .clone_into(&mut postrouting);
    }
    // One line is one transaction: there is never a part of it.
    Ok(format!(
        "table {table} {{ flags owner; \
         chain forward {{ type filter hook forward priority filter; policy accept; {forward} }}; {postrouting} }}\n\
         list table {table}\n"
    ))
}

/// Tells which families this machine passes on at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub v4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub v6: bool,
}

impl Forwarding {
    /// Reads the switches in the network namespace of this thread; one that cannot be read counts as off.
    pub fn read() -> Self {
        let on = |path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
        Self { v4: on("/proc/sys/net/ipv4/ip_forward"), v6: on("/proc/sys/net/ipv6/conf/all/forwarding") }
    }
}

/// Tells whether the kernel drops IPv4 packets that come in by an interface by which it would not answer, in the network
/// namespace of this thread. Source: the kernel's `ip-sysctl`, `rp_filter`: the greater value of the two counts.
pub fn is_strict(interface: &str) -> bool {
    if interface.contains('/') || interface.starts_with('.') {
        return false;
    }
    let value = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    value("all").max(value(interface)) == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_rules_are_refused() {
        let name: IfName = "a\"drop;".parse().unwrap();
        assert!(matches!(rules(&name, Masquerade::All), Err(PassingError::Name(_))));
        assert!(rules(&"w0.1-x_y".parse().unwrap(), Masquerade::All).unwrap().contains("inet warren_w0_1_x_y"));
    }

    #[test]
    fn rules_are_there_while_they_are_kept() {
        crate::testing::in_own_network(async || {
            let name: IfName = "wpass0".parse().unwrap();
            let list = || {
                let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            for masquerade in [Masquerade::All, Masquerade::Translated, Masquerade::Nothing] {
                let mut passing = match Passing::start(&name, masquerade) {
                    Err(PassingError::NoProgram(error)) => return println!("skipped: {error}"),
                    result => result.unwrap(),
                };
                assert!(passing.is_alive());
                assert!(list().contains("wpass0"), "{}", list());
                assert_eq!(list().contains("masquerade"), masquerade != Masquerade::Nothing);
                assert_eq!(list().contains("100.115.92.0/23"), masquerade == Masquerade::Translated);
                // Another process cannot have the same table, and says so.
                let second = Passing::start(&name, masquerade);
                assert!(matches!(second, Err(PassingError::Refused(_))), "{second:?}");
                drop(passing);
                assert_eq!(list(), "", "nothing is left");
            }
        });
    }

    #[test]
    fn only_a_masquerading_router_changes_addresses() {
        let name: IfName = "warren0".parse().unwrap();
        assert!(rules(&name, Masquerade::All).unwrap().contains("masquerade"));
        assert!(!rules(&name, Masquerade::Nothing).unwrap().contains("nat hook"));
    }
}
