//! End-to-end tests: the real program, real TUN devices, official clients, in network namespaces; one after another.

mod api;
mod deploy;
mod exit;
mod failures;
mod go_client;
mod ledger;
mod leftovers;
mod link;
mod login;
pub(crate) mod names;
mod nat;
mod path_mtu;
mod peer_relay;
mod policy;
mod portal;
pub(crate) mod relays;
mod routes;
mod rust_client;
mod two_nodes;
mod userspace;
mod whole;
mod wireguard_go;

use crate::{packages, run};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::time::Instant;

/// One test: its name says what must be true.
struct Test {
    name: &'static str,
    body: fn(&Context) -> Result<()>,
}

/// What every test may use.
pub(crate) struct Context {
    /// The `warren` program under test.
    pub(crate) warren: PathBuf,
    /// Whether tests take as long as they like.
    pub(crate) long: bool,
}

const TESTS: &[Test] = &[
    Test { name: "two_nodes_reach_each_other_directly", body: two_nodes::direct },
    Test { name: "two_nodes_without_udp_talk_over_the_relay", body: two_nodes::relayed },
    Test { name: "killed_node_leaves_nothing_and_comes_back", body: two_nodes::killed_node },
    Test { name: "node_that_was_down_hears_who_speaks_first", body: two_nodes::down_and_up },
    Test { name: "killed_server_drops_no_tunnel", body: two_nodes::killed_server },
    Test { name: "nodes_start_while_the_server_is_away", body: two_nodes::server_away },
    Test { name: "killed_relay_brings_its_sessions_back", body: two_nodes::killed_relay },
    Test { name: "strangers_get_no_byte_back", body: two_nodes::strangers },
    Test { name: "a_long_and_lossy_line_is_crossed_directly", body: link::far },
    Test { name: "easy_nats_are_punched_through", body: nat::easy_nats },
    Test { name: "hard_nat_is_met_from_an_easy_one", body: nat::hard_and_easy },
    Test { name: "port_mapping_leads_through_hard_nats", body: nat::port_mapping },
    Test { name: "port_mapping_by_upnp_leads_through_hard_nats", body: nat::upnp },
    Test { name: "peer_relay_behind_a_nat_is_found", body: peer_relay::behind_nat },
    Test { name: "a_forwarded_port_leads_through_hard_nats", body: nat::static_endpoint },
    Test { name: "peer_relay_leads_through_hard_nats", body: peer_relay::nodes },
    Test { name: "full_packets_avoid_a_path_that_swallows_them", body: path_mtu::narrow },
    Test { name: "captive_portals_are_told", body: portal::captive },
    Test { name: "failures_say_what_to_do", body: failures::messages },
    Test { name: "people_log_in_with_their_provider", body: login::with_provider },
    Test { name: "people_log_in_with_a_password", body: login::with_password },
    Test { name: "python_client_administers_a_network", body: api::python_client },
    Test { name: "api_keeps_to_its_document", body: api::document },
    Test { name: "go_clients_mesh_directly", body: go_client::two_direct },
    Test { name: "go_clients_mesh_over_the_relay", body: go_client::two_relayed },
    Test { name: "go_client_and_node_both_ways_directly", body: go_client::with_node_direct },
    Test { name: "go_client_and_node_both_ways_over_the_relay", body: go_client::with_node_relayed },
    Test { name: "go_client_survives_a_killed_server", body: go_client::killed_server },
    Test { name: "go_client_and_node_over_a_peer_relay", body: peer_relay::go_client },
    Test { name: "policy_changes_reach_a_go_client", body: policy::go_client },
    Test { name: "policy_ends_a_running_transfer_of_a_go_client", body: policy::go_transfer },
    Test { name: "policy_ends_running_transfers", body: policy::transfers },
    Test { name: "policy_ends_a_running_transfer_by_time", body: policy::by_time },
    Test { name: "packets_go_over_the_recipients_relay", body: relays::homes },
    Test { name: "relays_of_one_region_hand_packets_on", body: relays::mesh },
    Test { name: "moves_of_the_home_relay_lose_nothing", body: relays::moves },
    Test { name: "subnet_routers_lead_into_networks", body: routes::networks },
    Test { name: "subnet_routers_join_two_sites", body: routes::sites },
    Test { name: "killed_subnet_router_leaves_nothing_and_comes_back", body: routes::killed },
    Test { name: "a_second_subnet_router_takes_over", body: routes::second_router },
    Test { name: "a_router_that_passes_nothing_on_is_left_without_the_server", body: routes::stands_in },
    Test { name: "sites_with_the_same_network_are_told_apart", body: routes::clashing },
    Test { name: "go_client_is_told_of_a_subnet_router", body: routes::go_client },
    Test { name: "exit_nodes_lead_to_the_internet_and_nothing_past_them", body: exit::internet },
    Test { name: "the_tunnel_goes_around_itself", body: exit::no_loops },
    Test { name: "who_counts_from_the_same_range_stays_where_it_is", body: exit::same_range },
    Test { name: "any_exit_node_is_one_that_is_there", body: exit::any },
    Test { name: "killed_at_any_moment_a_node_leaves_nothing", body: leftovers::kills },
    Test { name: "programs_ask_the_node_for_names_and_the_others_again", body: names::system_resolver },
    Test { name: "names_of_the_tailnet_are_found_by_programs", body: names::programs },
    Test { name: "deployment_goes_as_its_document_says", body: deploy::document },
    Test { name: "split_dns_asks_the_resolver_inside_and_nobody_outside", body: names::split },
    Test { name: "names_go_through_the_exit_node", body: exit::names },
    Test { name: "nodes_without_tun_serve_and_reach_those_with_it", body: userspace::with_tun },
    Test { name: "nodes_without_tun_and_root_reach_each_other", body: userspace::two },
    Test { name: "node_inside_a_program_without_tun_listens_and_dials", body: userspace::inside },
    Test { name: "node_without_tun_and_go_client_both_ways", body: userspace::go_client },
    Test { name: "rust_client_fetches_from_go_client", body: rust_client::with_go_client },
    Test { name: "rust_client_echoes_with_node_and_go_client", body: rust_client::echoes },
    Test { name: "wireguard_go_talks_to_our_core", body: wireguard_go::interop },
    Test { name: "both_ends_write_connections_down", body: ledger::both_ends },
    Test { name: "edited_flow_logs_are_named", body: ledger::tampering },
    Test { name: "flow_log_with_a_go_client_is_one_sided", body: ledger::go_client },
    Test { name: "streams_stay_whole_over_a_bad_line", body: whole::usual },
    Test { name: "streams_stay_whole_without_offloads_on_one_side", body: whole::no_offload },
    Test { name: "streams_stay_whole_in_large_packets_over_ipv6", body: whole::large },
    Test { name: "streams_stay_whole_with_wireguard_go", body: whole::wireguard_go },
];

/// Runs the tests whose name contains `name`, all without one; with `long` what repeats something does so more often.
pub(crate) fn command(name: Option<&str>, list: bool, long: bool) -> Result<()> {
    if list {
        for test in TESTS {
            println!("{}", test.name);
        }
        return Ok(());
    }
    run::require_root("the end-to-end lane")?;
    packages::debian(&[
        ("ip", "iproute2"),
        ("ping", "iputils-ping"),
        ("nft", "nftables"),
        ("curl", "curl"),
        ("wireguard-go", "wireguard-go"),
        ("wg", "wireguard-tools"),
        ("faketime", "faketime"),
        ("miniupnpd", "miniupnpd-nftables"),
    ])?;
    let context = Context { warren: run::build_warren()?, long };
    let mut failed = Vec::new();
    let mut passed = 0;
    for test in TESTS.iter().filter(|test| name.is_none_or(|part| test.name.contains(part))) {
        let start = Instant::now();
        let result = (test.body)(&context);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok      {} ({seconds:.1} s)", test.name);
            }
            Err(error) => {
                println!("FAILED  {} ({seconds:.1} s): {error:#}", test.name);
                failed.push(test.name);
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        bail!("end-to-end tests failed: {}", failed.join(", "));
    }
    Ok(())
}
