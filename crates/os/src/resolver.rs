//! Where programs of this machine ask for names: `/etc/resolv.conf`, or the program that has it in hand.
//!
//! # What is left behind, and how it comes back
//! `systemd-resolved` forgets what it was told together with the interface. A record given to `resolvconf` has the interface's
//! name, by which it is taken back. Otherwise the file itself is written anew; it holds, in comments, what was there before, so
//! that there is no second file to lose, and whoever finds it can put everything back: [`SystemResolver::restore`], which
//! a daemon calls when it starts, too.
//!
//! A file that cannot be replaced, since it is mounted from elsewhere as in containers, is overwritten in one piece.

mod text;
mod watch;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::ifname::IfName;
pub use watch::SettingsWatch;

use text::{Before, Owner, cut, owner, resolved_is_asked, unwrap, wrap};

/// The settings of the machine's resolver.
const SETTINGS: &str = "/etc/resolv.conf";
/// Most bytes of a `resolv.conf` that is touched.
const FILE_MAX: usize = 64 * 1024;
/// Most bytes of one that we wrote, and of a file that is overwritten in one piece: ours holds one of those, with a bit before
/// each line.
const OURS_MAX: usize = 256 * 1024;
/// How long a program may take for what it is asked. Nothing else is decided meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of what a program says that are looked at.
const SAID_MAX: usize = 4096;

/// Says where programs shall ask for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameSettings {
    /// Who answers.
    pub servers: Vec<IpAddr>,
    /// Domains that are tried for short names. They must be names.
    pub search: Vec<String>,
    /// Domains whose names alone are asked there, where the machine can tell them apart; `None` for all names.
    pub domains: Option<Vec<String>>,
}

/// Says why programs ask elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolverError {
    /// The file cannot be read or written.
    #[error("cannot {step} {path}: {source}")]
    File {
        /// What was being done.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is longer than any of its kind, or no text.
    #[error("{0} is no resolv.conf of 64 KiB at most; it is left alone")]
    NotSettings(PathBuf),
    /// A program did not do what it was asked to.
    #[error("the program {program} failed: {reason}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        reason: String,
    },
}

/// How this machine's names are managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    /// By nobody: the file is ours to write.
    Direct,
    /// By systemd-resolved.
    Resolved,
    /// By Debian's resolvconf or openresolv.
    Resolvconf,
}

/// Changes where programs of this machine ask for names.
#[derive(Debug)]
pub struct SystemResolver {
    interface: IfName,
    /// The file.
    path: PathBuf,
    nsswitch: PathBuf,
    /// Where programs are looked for before the usual places.
    programs: Option<PathBuf>,
    patience: Duration,
    present: Option<(Manager, NameSettings)>,
}

impl SystemResolver {
    /// Takes charge for the tunnel `interface`; changes nothing yet.
    pub fn new(interface: IfName) -> Self {
        let (path, nsswitch) = (PathBuf::from(SETTINGS), PathBuf::from("/etc/nsswitch.conf"));
        Self { interface, path, nsswitch, programs: None, patience: PATIENCE, present: None }
    }

    /// Makes programs ask as `settings` say. Does nothing if they do already. Blocks.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn set(&mut self, settings: &NameSettings) -> Result<(), ResolverError> {
        let text = self.read()?;
        let wanted = (self.manager(text.as_deref().unwrap_or_default()), settings.clone());
        if self.present.as_ref() == Some(&wanted) && wanted.0 != Manager::Direct {
            return Ok(());
        }
        if self.present.as_ref().is_some_and(|(manager, _)| *manager != wanted.0) {
            // Somebody else has come to manage the names.
            self.restore()?;
        }
        match wanted.0 {
            Manager::Direct => self.set_direct(text, settings)?,
            Manager::Resolved => self.set_resolved(settings)?,
            Manager::Resolvconf => self.set_resolvconf(settings)?,
        }
        self.present = Some(wanted);
        Ok(())
    }

    /// Puts everything back as it was found, now or by an earlier process. Blocks.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn restore(&mut self) -> Result<(), ResolverError> {
        let text = self.read()?.unwrap_or_default();
        if let Some(before) = unwrap(&text) {
            match &before {
                Before::Nothing => self.remove(&text)?,
                Before::Link { target, text: old } => self.link(target, old, &text)?,
                Before::File(old) => self.write(old)?,
            }
        } else if let Some(kept) = cut(&text) {
            self.write(kept)?;
        }
        let text = self.read()?.unwrap_or_default();
        let manager = self.present.take().map_or_else(|| self.manager(&text), |(manager, _)| manager);
        match manager {
            Manager::Direct => Ok(()),
            // It may have forgotten the interface already.
            Manager::Resolved => {
                let told = self.tell("resolvectl", &["revert", self.interface.as_str()], "");
                told.or_else(|error| if self.has_interface() { Err(error) } else { Ok(()) })
            }
            Manager::Resolvconf => {
                // Who has no such record says so, which is fine.
                let _ = self.tell("resolvconf", &["-f", "-d", self.interface.as_str()], "");
                let _ = self.tell("resolvconf", &["-d", &self.record()], "");
                Ok(())
            }
        }
    }

    fn has_interface(&self) -> bool {
        Path::new("/sys/class/net").join(self.interface.as_str()).exists()
    }

    fn manager(&self, text: &str) -> Manager {
        match owner(text) {
            Owner::Resolved => {
                let nsswitch = fs::read_to_string(&self.nsswitch).unwrap_or_default();
                let is_asked = resolved_is_asked(text, &nsswitch) && self.find("resolvectl").is_some();
                if is_asked { Manager::Resolved } else { Manager::Direct }
            }
            Owner::Resolvconf if self.find("resolvconf").is_some() => Manager::Resolvconf,
            Owner::Resolvconf | Owner::Nobody => Manager::Direct,
        }
    }

    // The file.

    /// Reads the file; `None` if there is none.
    fn read(&self) -> Result<Option<String>, ResolverError> {
        let failed = |source| ResolverError::File { step: "read", path: self.path.clone(), source };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(OURS_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let is_ours = |text: &str| text.len() <= OURS_MAX && (unwrap(text).is_some() || cut(text).is_some());
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() <= FILE_MAX || is_ours(text));
        text.map(Some).ok_or(ResolverError::NotSettings(self.path.clone()))
    }

    fn set_direct(&self, text: Option<String>, settings: &NameSettings) -> Result<(), ResolverError> {
        let before = match (text.as_deref().and_then(unwrap), fs::read_link(&self.path)) {
            // Ours from before, or from an earlier life.
            (Some(before), _) => before,
            (None, Ok(target)) => Before::Link {
                target: target.to_str().ok_or(ResolverError::NotSettings(self.path.clone()))?.to_owned(),
                text: text.clone().unwrap_or_default(),
            },
            (None, Err(_)) => text.clone().map_or(Before::Nothing, Before::File),
        };
        let ours = wrap(&settings.servers, &settings.search, &before);
        if ours.len() > OURS_MAX {
            // It could not be read back.
            return Err(ResolverError::NotSettings(self.path.clone()));
        }
        if text.as_deref() == Some(ours.as_str()) { Ok(()) } else { self.write(&ours) }
    }

    /// Puts a text in the place of the file, or of a link: by another file that takes its name, or in one piece.
    fn write(&self, text: &str) -> Result<(), ResolverError> {
        let failed = |source| ResolverError::File { step: "write", path: self.path.clone(), source };
        let mode = fs::metadata(&self.path).map_or(0o644, |data| data.mode() & 0o7777);
        let beside = self.beside();
        let replaced = (|| {
            let mut file = File::create(&beside)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)
        })();
        if replaced.is_ok() {
            return Ok(());
        }
        let _ = fs::remove_file(&beside);
        self.overwrite(text).map_err(failed)
    }

    /// Overwrites the file in one piece, so that it is whole whenever this process ends.
    fn overwrite(&self, text: &str) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        let old = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(OURS_MAX);
        let mut bytes = text.as_bytes().to_vec();
        if bytes.len() < old {
            bytes.extend_from_slice(text::TAIL.as_bytes());
            bytes.resize(bytes.len().max(old), b'#');
        }
        file.write_all_at(&bytes, 0)?;
        file.set_len(text.len() as u64)
    }

    fn remove(&self, ours: &str) -> Result<(), ResolverError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // It cannot be taken away, so it is left empty.
            Err(_) if !ours.is_empty() => self.write(""),
            Err(source) => Err(ResolverError::File { step: "remove", path: self.path.clone(), source }),
        }
    }

    fn link(&self, target: &str, old: &str, ours: &str) -> Result<(), ResolverError> {
        let beside = self.beside();
        let _ = fs::remove_file(&beside);
        let linked = std::os::unix::fs::symlink(target, &beside).and_then(|()| fs::rename(&beside, &self.path));
        if linked.is_ok() {
            return Ok(());
        }
        let _ = fs::remove_file(&beside);
        // The link cannot be had back; what it said can.
        if ours.is_empty() { Ok(()) } else { self.write(old) }
    }

    fn beside(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".warren-new");
        name.into()
    }

    // Programs.

    fn set_resolved(&self, settings: &NameSettings) -> Result<(), ResolverError> {
        let name = self.interface.as_str();
        let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
        let mut domains = settings.search.clone();
        match &settings.domains {
            // A tilde means: asked there, and not tried for short names.
            Some(routed) => domains.extend(
                routed.iter().filter(|domain| !settings.search.contains(domain)).map(|domain| format!("~{domain}")),
            ),
            None => domains.push("~.".to_owned()),
        }
        let with = |verb: &'static str, words: &[String]| -> Vec<String> {
            [verb.to_owned(), name.to_owned()].into_iter().chain(words.iter().cloned()).collect()
        };
        let every = if settings.domains.is_none() { "yes" } else { "no" };
        let off = ["no".to_owned()];
        for line in [
            with("dns", &servers),
            with("domain", &domains),
            with("default-route", &[every.to_owned()]),
            with("llmnr", &off),
            with("mdns", &off),
            with("dnssec", &off),
            with("dnsovertls", &off),
        ] {
            self.tell("resolvectl", &line.iter().map(String::as_str).collect::<Vec<_>>(), "")?;
        }
        self.tell("resolvectl", &["flush-caches"], "")
    }

    fn set_resolvconf(&self, settings: &NameSettings) -> Result<(), ResolverError> {
        let mut text: String = settings.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if !settings.search.is_empty() {
            text += &format!("search {}\n", settings.search.join(" "));
        }
        // Openresolv: first of all, and nobody else's.
        let exclusive = self.tell("resolvconf", &["-m", "0", "-x", "-a", self.interface.as_str()], &text);
        exclusive.or_else(|_| self.tell("resolvconf", &["-a", &self.record()], &text))
    }

    /// Debian's resolvconf sorts records by their name, and takes this one for a tunnel's.
    fn record(&self) -> String {
        format!("tun-{}.inet", self.interface)
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        let usual = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let usual: &[PathBuf] = if self.programs.is_some() { &[] } else { &usual };
        let places = self.programs.iter().chain(usual);
        places.map(|place| place.join(program)).find(|path| path.is_file())
    }

    fn tell(&self, program: &'static str, words: &[&str], input: &str) -> Result<(), ResolverError> {
        let failed = |reason: String| ResolverError::Program { program, reason };
        let path = self.find(program).ok_or_else(|| failed("it is not there".to_owned()))?;
        let mut command = Command::new(path);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).env("LC_ALL", "C");
        // Its children end with it if it must be killed.
        let mut child = command.process_group(0).spawn().map_err(|error| failed(error.to_string()))?;
        if let Some(mut pipe) = child.stdin.take() {
            // Who does not read it says so by its end. A pipe has room for all that we say.
            let _ = pipe.write_all(input.as_bytes());
        }
        let Some(status) = wait(&mut child, self.patience).map_err(|error| failed(error.to_string()))? else {
            let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
            return Err(failed(format!("it has not ended within {} s", self.patience.as_secs_f32())));
        };
        if status.success() {
            return Ok(());
        }
        Err(failed(format!("{status}, {}", child.stderr.map(said).unwrap_or_default())))
    }
}

/// Waits for the end of a program; `None` if it takes too long.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = rustix::process::Pid::from_child(child);
    let end = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let [ready] = crate::wait::poll([Some(crate::Watched::readable(&end))], Some(patience))?;
    if ready.readable { child.wait().map(Some) } else { child.try_wait() }
}

/// Returns what a program that has ended said. A child that it left behind may hold the pipe; nobody waits for that.
fn said(mut pipe: ChildStderr) -> String {
    let mut bytes = vec![0; SAID_MAX];
    let length = rustix::io::ioctl_fionbio(&pipe, true).ok().and_then(|()| pipe.read(&mut bytes).ok()).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    text.trim().chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Returns the settings by which programs of this machine asked before we changed them, of the text of a `resolv.conf`: the
/// text itself if it is not ours.
pub fn settings_before(text: &str) -> String {
    unwrap(text).map_or_else(|| text.to_owned(), |before| before.text().to_owned())
}

#[cfg(test)]
mod tests;
