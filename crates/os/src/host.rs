//! Facts about this machine that a node tells its coordination server.

use std::path::Path;
use std::time::Duration;

/// Describes this machine; what cannot be found out is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// The host name as set, possibly with a domain.
    pub hostname: String,
    /// The kernel's release, like `6.12.9-amd64`.
    pub kernel_release: String,
    /// The machine as the kernel names it, like `x86_64`.
    pub machine: String,
    /// `ID` of os-release, like `debian`.
    pub distro: String,
    /// `VERSION_ID` of os-release, like `13`.
    pub distro_version: String,
    /// `VERSION_CODENAME` of os-release, like `trixie`.
    pub distro_code_name: String,
    /// Whether a container engine's mark was found.
    pub in_container: bool,
}

impl HostFacts {
    /// Collects the facts as they are now.
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        let os_release = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default();
        let field = |key| os_release_field(&os_release, key).unwrap_or_default();
        Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            distro: field("ID"),
            distro_version: field("VERSION_ID"),
            distro_code_name: field("VERSION_CODENAME"),
            in_container: ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists()),
        }
    }
}

/// Returns the time since this machine started, its sleep included. Nobody can set this clock.
pub fn time_since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanos = Duration::from_nanos(time.tv_nsec.unsigned_abs());
    Duration::from_secs(time.tv_sec.unsigned_abs()).saturating_add(nanos)
}

/// Returns the kernel's name for this start of the machine, from which [`time_since_boot`] counts; empty if it has none.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().chars().take(64).collect()
}

/// Finds a value in the text of an os-release file.
///
/// Source: os-release(5): shell assignments, values in double, single or no quotes, a backslash before `$`, quotes,
/// backslash and back quote.
fn os_release_field(text: &str, key: &str) -> Option<String> {
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?.trim();
    let quoted = |quote| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    if let Some(value) = quoted('\'') {
        return Some(value.to_owned());
    }
    let mut out = String::new();
    let mut characters = quoted('"').unwrap_or(value).chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => out.extend(characters.next()),
            character => out.push(character),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_every_quoting() {
        let text =
            "NAME=\"X\"\nID=debian\nVERSION_ID=\"13\"\n# ID=no\nVERSION_CODENAME='tri xie'\nODD=\"a\\\"b\\\\\"\n";
        assert_eq!(os_release_field(text, "ID").unwrap(), "debian");
        assert_eq!(os_release_field(text, "VERSION_ID").unwrap(), "13");
        assert_eq!(os_release_field(text, "VERSION_CODENAME").unwrap(), "tri xie");
        assert_eq!(os_release_field(text, "ODD").unwrap(), "a\"b\\");
        assert_eq!(os_release_field(text, "VERSION"), None);
    }

    #[test]
    fn this_machine_has_a_kernel() {
        let facts = HostFacts::read();
        assert!(!facts.kernel_release.is_empty() && !facts.machine.is_empty());
    }
}
