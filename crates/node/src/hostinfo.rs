//! What this machine tells its server about itself.

use warren_os::HostFacts;
use warren_wire::control::Hostinfo;

use crate::netmap::printable;
use crate::prefs::Prefs;

/// Longest text that is taken from the system.
const MAX_TEXT: usize = 128;

/// Describes this machine as the settings want it: their host name replaces the machine's own if it is not empty.
#[must_use]
pub fn collect(prefs: &Prefs) -> Hostinfo {
    let hostname = prefs.hostname.as_str();
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
        shields_up: prefs.shields_up,
        routable_ips: prefs.advertise_routes.clone(),
        peer_relay: prefs.relay_server_port.is_some(),
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
        let chosen = collect(&Prefs { hostname: "chosen".to_owned(), shields_up: true, ..Prefs::default() });
        assert_eq!((chosen.hostname.as_str(), chosen.shields_up, chosen.peer_relay), ("chosen", true, false));
        assert!(!collect(&Prefs::default()).hostname.is_empty());
        assert!(collect(&Prefs { relay_server_port: Some(0), ..Prefs::default() }).peer_relay);
    }
}
