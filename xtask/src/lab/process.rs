//! A process in a host of the lab, with its output in a file, ended with the value.

use super::{Host, wait_for};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A running process; dropping it kills it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    /// Length of the log when the process began: what is before was said by earlier ones.
    log_start: usize,
    title: String,
}

impl Process {
    pub(super) fn start(host: &Host, title: &str, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let log = host.dir.join(format!("{}-{title}.log", host.name));
        let out = File::options().create(true).append(true).open(&log)?;
        let log_start = usize::try_from(out.metadata()?.len())?;
        let mut command = if host.namespace.is_empty() {
            Command::new(program)
        } else {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &host.namespace]).arg(program);
            command
        };
        let child = command
            .args(args)
            .envs(env.iter().copied())
            .current_dir(&host.dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {title} on {}", host.name))?;
        Ok(Self { child, log, log_start, title: format!("{title} on {}", host.name) })
    }

    /// Returns what the process and earlier ones of its title have printed so far, standard error included.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns what the process itself has printed so far.
    pub(crate) fn own_log(&self) -> String {
        self.log().get(self.log_start..).unwrap_or_default().to_owned()
    }

    /// Waits until the process has printed `text`; fails with the log's end if the process ends before.
    pub(crate) fn wait_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("{text:?} in the log of {}", self.title);
        let found = wait_for(&what, limit, || {
            if self.own_log().contains(text) {
                return Some(true);
            }
            matches!(self.child.try_wait(), Ok(Some(_))).then_some(false)
        });
        match found {
            Ok(true) => Ok(()),
            Ok(false) => anyhow::bail!("{} ended early; its log ends with:\n{}", self.title, self.tail()),
            Err(error) => Err(error.context(format!("the log ends with:\n{}", self.tail()))),
        }
    }

    /// Returns the number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, `TERM` or `KILL` for instance, to this process alone.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        crate::run::Run::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).output().map(drop)
    }

    /// Waits for the end of the process.
    pub(crate) fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.title);
        wait_for(&what, limit, || self.child.try_wait().ok().flatten())
    }

    /// Returns the resident memory of the process in KiB.
    pub(crate) fn memory_kib(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .with_context(|| format!("{} has ended", self.title))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in its status")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Returns the CPU time that the process has used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        // The name, in parentheses, may contain anything: count the fields after it. proc(5): user time is the 14th
        // field of all and system time the 15th, in ticks of 10 ms.
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .with_context(|| format!("{} has ended", self.title))?;
        let (_, fields) = text.rsplit_once(')').context("an unreadable /proc/…/stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / 100.0)
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
