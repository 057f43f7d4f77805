//! Runs other programs: echoed, checked, never through a shell.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A command that prints itself and fails with its own name.
pub(crate) struct Run(Command);

impl Run {
    /// Prepares `program` in the workspace's root directory.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(root());
        Self(command)
    }

    /// Prepares the cargo that runs us.
    pub(crate) fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// Adds arguments, split at white space.
    pub(crate) fn args(mut self, words: &str) -> Self {
        self.0.args(words.split_whitespace());
        self
    }

    /// Adds one argument as it is.
    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.0.arg(word);
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Sets the working directory.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.0.current_dir(dir);
        self
    }

    /// Runs it with our standard streams and fails unless it exits with 0.
    pub(crate) fn go(mut self) -> Result<()> {
        let shown = self.shown();
        eprintln!("$ {shown}");
        let status = self.0.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{shown}`"))?;
        if !status.success() {
            bail!("`{shown}` failed: {status}");
        }
        Ok(())
    }

    /// Runs it silently and returns standard output; fails with standard error's text.
    pub(crate) fn output(mut self) -> Result<String> {
        let shown = self.shown();
        let output = self.0.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
        if !output.status.success() {
            bail!("`{shown}` failed: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it, keeps its standard output in a file and returns it; fails with the file's name.
    pub(crate) fn output_to(mut self, file: &Path) -> Result<String> {
        let shown = self.shown();
        let output = self.0.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
        std::fs::write(file, &output.stdout)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{shown}` failed: {}: {} See {}", output.status, words.trim(), file.display());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it with `text` as its standard input and returns standard output.
    pub(crate) fn input(mut self, text: &str) -> Result<String> {
        let shown = self.shown();
        let mut child = self.0.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let child = child.as_mut().map_err(|error| anyhow::anyhow!("cannot start `{shown}`: {error}"))?;
        // Dropped at once, so that the program sees the end of its input.
        child.stdin.take().with_context(|| format!("`{shown}` has no input"))?.write_all(text.as_bytes())?;
        let mut output = String::new();
        child.stdout.take().with_context(|| format!("`{shown}` has no output"))?.read_to_string(&mut output)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("`{shown}` failed: {status}");
        }
        Ok(output)
    }

    fn shown(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the workspace's root directory.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies one folder below the root").to_path_buf()
}

/// Returns cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Builds the `warren` program in the dev profile and returns its path.
pub(crate) fn build_warren() -> Result<PathBuf> {
    Run::cargo().args("build --quiet --locked --package warren").go()?;
    Ok(target().join("debug/warren"))
}

/// Builds the `warren` program optimised but with debug assertions, by which tests can have new keys each second; returns
/// its path and cargo's words for a build like that.
pub(crate) fn build_checked_warren() -> Result<(PathBuf, &'static str)> {
    let build = "--profile sim";
    Run::cargo().args("build --quiet --locked --package warren").args(build).go()?;
    Ok((target().join("sim/warren"), build))
}

/// Tells whether we are root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(Run::new("id").args("-u").output()?.trim() == "0")
}

/// Fails with what is missing unless we may make namespaces and TUN devices.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !is_root()? {
        bail!(
            "{what} makes network namespaces and TUN devices, which needs root: run it as `sudo -E env PATH=$PATH cargo xtask …`"
        );
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!("{what} needs /dev/net/tun: run `modprobe tun`, or give the container that device");
    }
    Ok(())
}
