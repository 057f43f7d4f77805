//! What this machine tells its server about itself.

use warren_os::HostFacts;
use warren_wire::control::Hostinfo;

use crate::netmap::printable;

/// Longest text that is taken from the system.
const MAX_TEXT: usize = 128;

/// Describes this machine; `hostname` replaces the machine's own name if it is not empty.
#[must_use]
pub fn collect(hostname: &str, shields_up: bool) -> Hostinfo {
    let facts = HostFacts::read();
    let text = |text: &str| printable(text, MAX_TEXT);
    Hostinfo {
        ipn_version: crate::VERSION.to_owned(),
        os: "linux".to_owned(),
        os_version: text(&facts.kernel_release),
        distro: text(&facts.distro),
        distro_version: text(&facts.distro_version),
        distro_codename: text(&facts.distro_code_name),
        hostname: text(if hostname.is_empty() { &facts.hostname } else { hostname }),
        machine: text(&facts.machine),
        go_arch: go_arch(std::env::consts::ARCH).to_owned(),
        container: Some(facts.in_container),
        shields_up,
        no_logs_no_support: true,
        ..Hostinfo::default()
    }
}

/// Returns the name that servers expect for an architecture.
fn go_arch(arch: &'static str) -> &'static str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "loongarch64" => "loong64",
        "powerpc64" => "ppc64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_name_wins() {
        let chosen = collect("chosen", true);
        assert_eq!((chosen.hostname.as_str(), chosen.shields_up), ("chosen", true));
        assert!(!collect("", false).hostname.is_empty());
    }
}
