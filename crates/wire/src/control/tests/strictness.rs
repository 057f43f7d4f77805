//! What we write, to the letter.

use super::*;

fn written<T: Serialize>(value: &T) -> String {
    String::from_utf8(to_json(value).unwrap()).unwrap()
}

#[test]
fn register_response_always_has_every_field() {
    assert_eq!(
        written(&RegisterResponse::default()),
        r#"{"User":{"ID":0,"DisplayName":""},"Login":{"ID":0,"Provider":"","LoginName":"","DisplayName":""},"NodeKeyExpired":false,"MachineAuthorized":false,"AuthURL":"","NodeKeySignature":null,"Error":""}"#
    );
}

#[test]
fn register_request_writes_what_go_always_writes() {
    let zero = "0".repeat(64);
    let request = RegisterRequest {
        node_key: NodeKey::from_bytes([0xaa; 32]),
        version: CapabilityVersion(130),
        ..RegisterRequest::default()
    };
    assert_eq!(
        written(&request),
        format!(
            r#"{{"Version":130,"NodeKey":"{}","OldNodeKey":"nodekey:{zero}","NLKey":"nlpub:{zero}","Expiry":"0001-01-01T00:00:00Z","Followup":"","NodeKeySignature":null}}"#,
            request.node_key
        )
    );
}

#[test]
fn empty_map_message_has_no_fields() {
    assert_eq!(written(&MapResponse::default()), "{}");
    assert_eq!(written(&PeerChange::default()), r#"{"NodeID":0}"#);
    assert_eq!(written(&Hostinfo::default()), "{}");
    assert_eq!(written(&DnsConfig::default()), "{}");
}

#[test]
fn explicitly_empty_is_written_as_empty() {
    let message = MapResponse {
        packet_filter: Some(Vec::new()),
        packet_filters: [("base".to_owned(), Some(Vec::new())), ("old".to_owned(), None)].into(),
        health: Some(Vec::new()),
        dns_config: Some(DnsConfig {
            routes: [("tail.example".to_owned(), Vec::new())].into(),
            ..DnsConfig::default()
        }),
        peers_changed_patch: vec![PeerChange {
            node_id: NodeId(3),
            endpoints: Some(Vec::new()),
            key_expiry: Some(ExpiryChange::Never),
            ..PeerChange::default()
        }],
        ..MapResponse::default()
    };
    assert_eq!(
        written(&message),
        r#"{"PeersChangedPatch":[{"NodeID":3,"Endpoints":[],"KeyExpiry":"0001-01-01T00:00:00Z"}],"DNSConfig":{"Routes":{"tail.example":[]}},"PacketFilter":[],"PacketFilters":{"base":[],"old":null},"Health":[]}"#
    );
    round_trips(&message);
    let nothing_routed = Node { key: NodeKey::from_bytes([1; 32]), allowed_ips: Some(Vec::new()), ..Node::default() };
    assert!(written(&nothing_routed).contains(r#""AllowedIPs":[]"#));
    round_trips(&nothing_routed);
}

#[test]
fn nothing_avoidable_is_escaped() {
    let profile = UserProfile { display_name: "Änn <&> / \u{2028} 木".to_owned(), ..UserProfile::default() };
    assert!(written(&profile).contains("\"Änn <&> / \u{2028} 木\""));
}

#[test]
fn pings_always_carry_what_the_rust_client_demands() {
    assert_eq!(written(&PingRequest::default()), r#"{"URL":"","URLIsNoise":false,"Types":""}"#);
}

#[test]
fn ssh_policy_is_written_in_camel_case() {
    let policy = SshPolicy {
        rules: vec![SshRule {
            principals: vec![SshPrincipal { node_ip: "100.64.0.1".to_owned(), ..SshPrincipal::default() }],
            ssh_users: [("*".to_owned(), "=".to_owned()), ("root".to_owned(), String::new())].into(),
            action: Some(SshAction {
                accept: true,
                session_duration: 3_600_000_000_000,
                allow_agent_forwarding: true,
                on_recording_failure: Some(SshRecorderFailureAction {
                    notify_url: "https://x".to_owned(),
                    ..SshRecorderFailureAction::default()
                }),
                ..SshAction::default()
            }),
            ..SshRule::default()
        }],
    };
    assert_eq!(
        written(&policy),
        r#"{"rules":[{"principals":[{"nodeIP":"100.64.0.1"}],"sshUsers":{"*":"=","root":""},"action":{"accept":true,"sessionDuration":3600000000000,"allowAgentForwarding":true,"onRecordingFailure":{"NotifyURL":"https://x"}}}]}"#
    );
    round_trips(&policy);
}
