//! The node's commands as users see them: the real program against a daemon that the test plays. What goes to standard
//! output, what to standard error, and the exit code are a contract.
#![cfg(feature = "node")]
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod node_cli {
    pub(crate) mod stub;
}

use std::net::IpAddr;

use node_cli::stub::{Output, Stub};
use serde_json::json;
use warren_node::local_api::types::{PeerStatus, PingResult, State, Status, Trouble, TroubleKind, UserProfile};
use warren_node::local_api::{Bus, Refusal};

fn node(name: &str, addresses: &[&str]) -> PeerStatus {
    PeerStatus {
        dns_name: format!("{name}.t.example."),
        host_name: format!("{name}-host"),
        os: "linux".into(),
        user_id: 7,
        tailscale_ips: addresses.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect(),
        last_seen: "0001-01-01T00:00:00Z".into(),
        online: true,
        ..PeerStatus::default()
    }
}

/// A tailnet as `status` may find it.
fn status() -> Status {
    let direct = PeerStatus {
        active: true,
        cur_addr: "192.0.2.7:41641".into(),
        relay: "home".into(),
        rx_bytes: 20,
        tx_bytes: 10,
        ..node("beta", &["100.64.0.2", "fd7a:115c:a1e0::2"])
    };
    let relayed = PeerStatus {
        active: true,
        relay: "home".into(),
        rx_bytes: 2,
        tx_bytes: 1,
        tags: vec!["tag:web".into()],
        ..node("gamma-with-a-long-name", &["100.64.0.3"])
    };
    let gone = PeerStatus { online: false, os: "windows".into(), ..node("delta", &["100.64.0.4"]) };
    let peers = [("nodekey:2", direct), ("nodekey:3", relayed), ("nodekey:4", gone)];
    let user = UserProfile { id: 7, login_name: "ann@t.example".into(), ..UserProfile::default() };
    Status {
        version: "1".into(),
        backend_state: "Running".into(),
        have_node_key: true,
        self_: node("alpha", &["100.64.0.1", "fd7a:115c:a1e0::1"]),
        peer: peers.map(|(key, peer)| (key.to_owned(), peer)).into(),
        user: [("7".to_owned(), user)].into(),
        ..Status::default()
    }
}

fn running(name: &str) -> Stub {
    let stub = Stub::new(name);
    stub.world().status = status();
    stub.bus(Bus { state: State::Running, ..Bus::default() });
    stub
}

fn expect(output: &Output, code: i32, stdout: &str, stderr: &str) {
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (code, stdout, stderr));
}

#[test]
fn status_is_a_table() {
    let stub = running("status");
    let table = "\
100.64.0.1  alpha                   ann@            linux    -
100.64.0.2  beta                    ann@            linux    active; direct 192.0.2.7:41641, tx 10 rx 20
100.64.0.4  delta                   ann@            windows  offline
100.64.0.3  gamma-with-a-long-name  tagged-devices  linux    active; relay \"home\", tx 1 rx 2
";
    expect(&stub.run(&["status"]), 0, table, "");
    stub.world().status.health = vec!["no relay answers".into()];
    let health = "\n# Health check:\n#     - no relay answers\n";
    expect(&stub.run(&["status"]), 0, &format!("{table}{health}"), "");
    let short = "100.64.0.1  alpha  ann@  linux  -\n";
    expect(&stub.run(&["status", "--no-peers"]), 0, &format!("{short}{health}"), "");
}

#[test]
fn status_of_a_node_that_does_not_run_is_one_line_and_a_code() {
    let stub = running("not-running");
    for (state, url, text) in [
        ("Stopped", "", "the node is stopped; start it with: warren up"),
        ("NeedsLogin", "", "logged out; log in with: warren up"),
        ("NeedsLogin", "https://s/register/1", "logged out; log in at https://s/register/1"),
        ("NeedsMachineAuth", "", "this machine waits for an administrator's approval (warren admin node approve)"),
        ("NoState", "", "the node is not connected yet"),
    ] {
        stub.world().status = Status { backend_state: state.into(), auth_url: url.into(), ..Status::default() };
        expect(&stub.run(&["status"]), 1, "", &format!("warren: {text}\n"));
        expect(&stub.run(&["ping", "beta"]), 1, "", &format!("warren: {text}\n"));
        expect(&stub.run(&["ip"]), 1, "", &format!("warren: {text}\n"));
        // Programs ask in every state.
        let output = stub.run(&["status", "--json"]);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(json["BackendState"], state);
    }
}

#[test]
fn addresses_are_printed_one_a_line() {
    let stub = running("ip");
    expect(&stub.run(&["ip"]), 0, "100.64.0.1\nfd7a:115c:a1e0::1\n", "");
    expect(&stub.run(&["ip", "-4"]), 0, "100.64.0.1\n", "");
    expect(&stub.run(&["ip", "-6", "beta"]), 0, "fd7a:115c:a1e0::2\n", "");
    expect(&stub.run(&["ip", "BETA.t.example."]), 0, "100.64.0.2\nfd7a:115c:a1e0::2\n", "");
    expect(&stub.run(&["ip", "-6", "delta"]), 9, "", "warren: it has no address of this family\n");
    expect(&stub.run(&["ip", "nobody"]), 9, "", "warren: no node is called nobody; see: warren status\n");
}

#[test]
fn ping_says_which_way_the_answer_took() {
    let stub = running("ping");
    let pong = PingResult { node_name: "beta".into(), latency_seconds: 0.012_34, ..PingResult::default() };
    let ways = [
        (PingResult { endpoint: "192.0.2.7:41641".into(), ..pong.clone() }, "direct, 192.0.2.7:41641, 12.3 ms"),
        (PingResult { derp_region_code: "home".into(), ..pong.clone() }, "relayed through home, 12.3 ms"),
    ];
    for (answer, way) in ways {
        stub.world().ping = answer;
        let line = format!("pong from beta (100.64.0.2): {way}\n");
        expect(&stub.run(&["ping", "--count", "1", "beta"]), 0, &line, "");
    }
    // A direct answer is enough when no number was asked for.
    stub.world().ping = PingResult { endpoint: "192.0.2.7:41641".into(), ..pong };
    assert_eq!(stub.run(&["ping", "100.64.0.2"]).stdout.lines().count(), 1);
    stub.world().ping = PingResult { err: "no reply".into(), ..PingResult::default() };
    let silent = stub.run(&["ping", "-c", "1", "beta"]);
    let text = "warren: beta does not answer: no reply; see: warren status\n";
    expect(&silent, 6, "ping beta (100.64.0.2): no reply\n", text);
    expect(&stub.run(&["ping", "alpha"]), 0, "100.64.0.1 is this machine\n", "");
    assert_eq!(stub.run(&["ping", "nobody"]).code, 9);
}

#[test]
fn whois_names_machine_and_owner() {
    let stub = running("whois");
    let machine = "Machine:\n  Name:      beta.t.example\n  ID:        n2\n  Addresses: 100.64.0.2/32\n";
    let user = format!("{machine}User:\n  Name:      ann@t.example\n  ID:        7\n");
    for who in ["100.64.0.2", "100.64.0.2:80", "beta"] {
        expect(&stub.run(&["whois", who]), 0, &user, "");
    }
    let json: serde_json::Value = serde_json::from_str(&stub.run(&["whois", "--json", "beta"]).stdout).unwrap();
    assert_eq!(json["UserProfile"]["LoginName"], "ann@t.example");
    let text = "warren: no node has the address 100.64.9.9; see: warren status\n";
    expect(&stub.run(&["whois", "100.64.9.9"]), 9, "", text);
}

#[test]
fn netcheck_is_a_report() {
    let stub = running("netcheck");
    stub.world().netcheck = json!({
        "UDP": true, "IPv4": true, "GlobalV4": "192.0.2.1:41641", "GlobalV6": "", "MappingVariesByDestIP": false,
        "PreferredDERP": 900, "RegionLatency": {"900": 1_540_000},
        "Regions": {"900": {"Code": "home", "Name": "Home"}},
    });
    let text = "\
Report:
\t* UDP: true
\t* IPv4: yes, 192.0.2.1:41641
\t* IPv6: (no address found)
\t* MappingVariesByDestIP: false
\t* Nearest relay: Home
\t* Relay latency:
\t\t- home: 1.5ms (Home)
";
    expect(&stub.run(&["netcheck"]), 0, text, "");
}

#[test]
fn set_changes_what_is_named() {
    let stub = running("set");
    expect(&stub.run(&["set", "--accept-routes", "--hostname", "x"]), 0, "", "");
    let change = json!({"RouteAll": true, "RouteAllSet": true, "Hostname": "x", "HostnameSet": true});
    assert_eq!(stub.world().edits, [change]);
    expect(&stub.run(&["set"]), 2, "", "warren: nothing to set; see: warren set --help\n");
    stub.world().refusal = Some(Refusal::Forbidden);
    let denied = "warren: prefs access denied; use sudo, or once: sudo warren set --operator=$USER\n";
    expect(&stub.run(&["set", "--shields-up"]), 4, "", denied);
    stub.world().refusal = Some(Refusal::Bad("Hostname is not valid: too odd".into()));
    expect(&stub.run(&["set", "--hostname", "?"]), 2, "", "warren: Hostname is not valid: too odd\n");
    stub.world().refusal = Some(Refusal::Failed("the settings cannot be saved".into()));
    expect(&stub.run(&["set", "--shields-up=false"]), 1, "", "warren: the settings cannot be saved\n");
}

#[test]
fn down_and_logout_are_silent() {
    let stub = running("down");
    stub.world().prefs.want_running = true;
    expect(&stub.run(&["down"]), 0, "", "");
    assert_eq!(stub.world().edits, [json!({"WantRunning": false, "WantRunningSet": true})]);
    stub.world().prefs.want_running = false;
    expect(&stub.run(&["down"]), 0, "", "The node is down already.\n");
    expect(&stub.run(&["logout"]), 0, "", "");
    stub.world().refusal = Some(Refusal::Failed("logged out here, but the server does not know yet: no route".into()));
    let text = "warren: logged out here, but the server does not know yet: no route\n";
    expect(&stub.run(&["logout"]), 1, "", text);
}

const KEY: &str = "wkey-0123456789ab-secretsecretsecret";
const SERVER: [&str; 2] = ["--login-server", "HTTP://Server.Example:8080/"];

#[test]
fn up_with_an_auth_key_is_silent_and_the_key_is_nowhere() {
    let file = std::env::temp_dir().join(format!("warren-cli-key-{}", std::process::id()));
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let from_file = format!("file:{}", file.display());
    let stub = running("up-key");
    for (words, environment) in [
        (vec!["--auth-key", KEY], None),
        (vec!["--auth-key", &from_file], None),
        (vec![], Some(KEY)),
        (vec![], Some(from_file.as_str())),
    ] {
        let mut arguments = vec!["up", SERVER[0], SERVER[1], "--hostname", "x"];
        arguments.extend(words);
        let output = stub.run_with(&arguments, &[("WARREN_AUTH_KEY", environment), ("WARREN_LOG", Some("trace"))]);
        assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{}", output.stderr);
        assert!(!output.stderr.contains("secretsecret"), "{}", output.stderr);
        let started = stub.world().started.pop().unwrap();
        assert_eq!(started.auth_key, KEY);
        let change = json!({
            "ControlURL": "http://server.example:8080", "ControlURLSet": true, "Hostname": "x", "HostnameSet": true,
        });
        assert_eq!(started.update_prefs, Some(change));
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_pin_goes_with_its_server() {
    let stub = running("up-pin");
    stub.world().prefs.control_url = "http://server.example:8080".into();
    stub.world().prefs.server_key = "mkey:old".into();
    // The same server in other words keeps its pin.
    stub.run(&["up", SERVER[0], SERVER[1]]);
    assert_eq!(stub.world().started.pop().unwrap().update_prefs.unwrap().get("ServerKey"), None);
    stub.run(&["up", "--login-server", "http://other.example"]);
    assert_eq!(stub.world().started.pop().unwrap().update_prefs.unwrap()["ServerKey"], "");
    stub.run(&["up", "--login-server", "http://other.example", "--server-key", "mkey:new"]);
    assert_eq!(stub.world().started.pop().unwrap().update_prefs.unwrap()["ServerKey"], "mkey:new");
}

#[test]
fn reset_names_every_default() {
    let stub = running("up-reset");
    stub.world().prefs.control_url = "http://server.example:8080".into();
    expect(&stub.run(&["up", "--reset", "--shields-up"]), 0, "", "");
    let change = stub.world().started.pop().unwrap().update_prefs.unwrap();
    let expected = json!({
        "Hostname": "", "HostnameSet": true, "RouteAll": false, "RouteAllSet": true,
        "ShieldsUp": true, "ShieldsUpSet": true, "AdvertiseRoutes": [], "AdvertiseRoutesSet": true,
        "NoSNAT": false, "NoSNATSet": true, "CorpDNS": true, "CorpDNSSet": true, "ExitNodeID": "", "ExitNodeIDSet": true,
        "ExitNodeIP": "", "ExitNodeIPSet": true, "AutoExitNode": "", "AutoExitNodeSet": true,
        "ExitNodeAllowLANAccess": false, "ExitNodeAllowLANAccessSet": true,
    });
    assert_eq!(change, expected);
}

#[test]
fn up_needs_a_server_that_can_be_one() {
    let stub = running("up-where");
    let output = stub.run(&["up"]);
    assert_eq!((output.code, output.stdout.as_str()), (2, ""));
    assert!(output.stderr.contains("--login-server URL") && output.stderr.lines().count() == 1, "{}", output.stderr);
    let output = stub.run(&["up", "--login-server", "server.example"]);
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("https://") && output.stderr.lines().count() == 1, "{}", output.stderr);
    assert!(stub.world().started.is_empty());
}

#[test]
fn up_shows_where_to_log_in_and_waits() {
    let stub = running("up-url");
    stub.world().prefs.control_url = "http://server.example:8080".into();
    let url = "https://server.example/register/abc";
    let page = Bus { state: State::NeedsLogin, browse_to_url: url.into(), logging_in: true, ..Bus::default() };
    let done = Bus { state: State::Running, logins: 1, ..Bus::default() };
    stub.bus_after_start(page.clone());
    let text = format!("\nTo log in, visit:\n\n\t{url}\n\nSuccess.\n");
    expect(&stub.run_and_then(&["up"], url, done.clone()), 0, "", &text);
    stub.bus_after_start(page.clone());
    let output = stub.run_and_then(&["up", "--json"], url, done);
    let lines: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&output.stdout).into_iter().map(Result::unwrap).collect();
    let wanted = [json!({"AuthURL": url, "BackendState": "NeedsLogin"}), json!({"BackendState": "Running"})];
    assert_eq!((output.code, &lines[..]), (0, &wanted[..]));
    // Nobody comes.
    stub.bus_after_start(page);
    let output = stub.run(&["up", "--timeout", "0.2"]);
    assert_eq!(output.code, 6);
    let last = output.stderr.lines().last().unwrap();
    assert!(last.starts_with("warren: not connected in time; ") && last.contains("warren down"), "{last}");
}

#[test]
fn login_is_over_when_the_person_is_done_though_the_node_runs_all_the_time() {
    let stub = running("login");
    stub.world().prefs.control_url = "http://server.example:8080".into();
    let url = "https://server.example/register/abc";
    let asking = Bus { state: State::Running, logging_in: true, ..Bus::default() };
    let page = Bus { browse_to_url: url.into(), ..asking.clone() };
    stub.bus_after_start(page);
    let done = Bus { state: State::Running, logins: 1, ..Bus::default() };
    let text = format!("\nTo log in, visit:\n\n\t{url}\n\nSuccess.\n");
    expect(&stub.run_and_then(&["login"], url, done), 0, "", &text);
    stub.bus_after_start(asking);
    assert_eq!(stub.run(&["login", "--timeout", "0.2"]).code, 6);
}

#[test]
fn what_keeps_up_from_succeeding_is_one_line_and_a_code() {
    let stub = running("up-trouble");
    stub.world().prefs.control_url = "http://server.example:8080".into();
    for (kind, attempts, code) in [
        (TroubleKind::Unreachable, 5, 3),
        (TroubleKind::Server, 5, 1),
        (TroubleKind::ServerKey, 1, 5),
        (TroubleKind::Refused, 1, 5),
        (TroubleKind::Clock, 1, 1),
        (TroubleKind::Local, 1, 1),
        (TroubleKind::Unreachable, 1, 6),
        (TroubleKind::Server, 1, 6),
    ] {
        let trouble = Some(Trouble { kind, text: "it says\nno\u{1b}[31m".into(), attempts });
        stub.bus_after_start(Bus { state: State::NoState, trouble, ..Bus::default() });
        // Nothing but a timeout takes time.
        let output = stub.run(&["up", "--timeout", if code == 6 { "2" } else { "60" }]);
        assert_eq!((output.code, output.stdout.as_str()), (code, ""), "{kind:?}: {}", output.stderr);
        assert!(output.stderr.contains("it says no?[31m") && output.stderr.lines().count() == 1, "{}", output.stderr);
    }
}

#[test]
fn without_a_daemon_every_command_says_how_to_start_one() {
    for words in [
        &["status"][..],
        &["ip"],
        &["ping", "x"],
        &["whois", "x"],
        &["netcheck"],
        &["set", "--shields-up"],
        &["up", "--login-server", "http://x"],
        &["login"],
        &["down"],
        &["logout"],
    ] {
        let output = node_cli::stub::run(&[words, &["--socket", "/nonexistent/node.sock"]].concat(), &[]);
        let text = "warren: no warren node answers at /nonexistent/node.sock; start it with: sudo warren node\n";
        expect(&output, 3, "", text);
    }
}

#[test]
fn the_program_describes_itself() {
    let version = node_cli::stub::run(&["version"], &[]);
    expect(&version, 0, &format!("{}\n", env!("CARGO_PKG_VERSION")), "");
    let json = node_cli::stub::run(&["version", "--json"], &[]).stdout;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["node"], true);
    let help = node_cli::stub::run(&["--help"], &[]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for word in ["up", "down", "login", "logout", "status", "ip", "ping", "whois", "netcheck", "set", "Exit codes:"] {
        assert!(help.stdout.contains(word), "{word}");
    }
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let script = node_cli::stub::run(&["completion", shell], &[]);
        assert_eq!(script.code, 0);
        assert!(script.stdout.contains("netcheck") && script.stdout.contains("accept-routes"), "{shell}");
    }
    for wrong in [&["nonsense"][..], &[], &["up", "--nonsense"], &["ping"], &["up", "--timeout", "soon"]] {
        let output = node_cli::stub::run(wrong, &[]);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{wrong:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child =
        node_cli::stub::command(&["completion", "bash"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
