//! How much of what a client says about its machine is kept: strangers fill it, the server stores it, peers receive it.

use warren_wire::control::{Hostinfo, NetInfo};

use crate::model::ROUTES_MAX;

/// Longest text that is kept, in bytes.
const TEXT_MAX: usize = 512;
/// Longest SSH host key that is kept, in bytes; a key that is cut is none.
const SSH_KEY_MAX: usize = 4096;
/// How many entries of any other list are kept; more than the tags that a node may have.
const ENTRIES_MAX: usize = 256;

/// Cuts what is longer than anything that a client has reason to say.
pub(crate) fn bounded(mut info: Hostinfo) -> Hostinfo {
    let texts = [
        &mut info.ipn_version,
        &mut info.frontend_log_id,
        &mut info.backend_log_id,
        &mut info.os,
        &mut info.os_version,
        &mut info.env,
        &mut info.distro,
        &mut info.distro_version,
        &mut info.distro_codename,
        &mut info.app,
        &mut info.package,
        &mut info.device_model,
        &mut info.push_device_token,
        &mut info.hostname,
        &mut info.machine,
        &mut info.go_arch,
        &mut info.go_arch_var,
        &mut info.go_version,
        &mut info.cloud,
        &mut info.services_hash,
        &mut info.exit_node_id,
    ];
    texts.into_iter().for_each(cut);
    info.routable_ips.truncate(ROUTES_MAX);
    for list in [&mut info.request_tags, &mut info.wol_macs] {
        list.truncate(ENTRIES_MAX);
        list.iter_mut().for_each(cut);
    }
    info.ssh_host_keys.retain(|key| key.len() <= SSH_KEY_MAX);
    info.ssh_host_keys.truncate(ENTRIES_MAX);
    info.services.truncate(ENTRIES_MAX);
    for service in &mut info.services {
        cut(&mut service.proto);
        cut(&mut service.description);
    }
    if let Some(place) = &mut info.location {
        [&mut place.country, &mut place.country_code, &mut place.city, &mut place.city_code].into_iter().for_each(cut);
    }
    if let Some(chip) = &mut info.tpm {
        [&mut chip.manufacturer, &mut chip.vendor, &mut chip.family_indicator].into_iter().for_each(cut);
    }
    if let Some(net) = &mut info.net_info {
        bound_net(net);
    }
    info
}

fn bound_net(net: &mut NetInfo) {
    cut(&mut net.link_type);
    cut(&mut net.firewall_mode);
    let mut kept = 0;
    net.derp_latency.retain(|region, _| {
        kept += 1;
        kept <= ENTRIES_MAX && region.len() <= TEXT_MAX
    });
}

/// Cuts a text at a character's end.
fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(TEXT_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_wire::control::{from_json, to_json};

    #[test]
    fn whatever_a_client_says_is_kept_within_bounds() {
        let long = format!("\"{}\"", "é".repeat(20_000));
        let many = format!("[{}]", vec![long.as_str(); 20].join(","));
        let routes = format!("[{}]", vec!["\"10.0.0.0/8\""; 5_000].join(","));
        let services =
            format!("[{}]", vec![format!(r#"{{"Proto":{long},"Port":1,"Description":{long}}}"#); 20].join(","));
        let texts = [
            "IPNVersion",
            "FrontendLogID",
            "BackendLogID",
            "OS",
            "OSVersion",
            "Env",
            "Distro",
            "DistroVersion",
            "DistroCodename",
            "App",
            "Package",
            "DeviceModel",
            "PushDeviceToken",
            "Hostname",
            "Machine",
            "GoArch",
            "GoArchVar",
            "GoVersion",
            "Cloud",
            "ServicesHash",
            "ExitNodeID",
        ];
        let texts = texts.map(|name| format!("\"{name}\":{long}")).join(",");
        let latencies: Vec<String> = (0..5_000).map(|number| format!("\"{number}-v4\":1")).collect();
        let json = format!(
            r#"{{{texts},"RoutableIPs":{routes},"RequestTags":{many},"WoLMACs":{many},"sshHostKeys":{many},
                "Services":{services},"Location":{{"Country":{long},"CountryCode":{long},"City":{long},"CityCode":{long}}},
                "TPM":{{"Manufacturer":{long},"Vendor":{long},"FamilyIndicator":{long}}},
                "NetInfo":{{"LinkType":{long},"FirewallMode":{long},"DERPLatency":{{{}}}}}}}"#,
            latencies.join(",")
        );
        let info: Hostinfo = from_json(json.as_bytes()).unwrap();
        assert_eq!(info.hostname.len(), 40_000);
        assert!(info.net_info.as_ref().unwrap().derp_latency.len() == 5_000 && info.services.len() == 20);
        let kept = to_json(&bounded(info)).unwrap();
        assert!(kept.len() < 90_000, "{}", kept.len());
    }

    #[test]
    fn an_ordinary_machine_is_kept_as_it_is() {
        let mut info = crate::testing::host("laptop");
        info.services = vec![warren_wire::control::Service { proto: "tcp".to_owned(), port: 22, ..Default::default() }];
        info.ssh_host_keys = vec!["ssh-rsa ".to_owned() + &"A".repeat(700)];
        assert_eq!(bounded(info.clone()), info);
    }
}
