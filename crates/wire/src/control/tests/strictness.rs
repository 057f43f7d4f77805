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

/// Every name of the tables that does not follow from the Rust name, read from a document that spells it exactly.
#[test]
fn exact_names_survive() {
    let zero_free = "a".repeat(64);
    round_trip_text::<Node>(&format!(
        r#"{{"ID":1,"StableID":"s","Name":"n","User":2,"Sharer":3,"Key":"nodekey:{zero_free}","KeySignature":"AAA=","Machine":"mkey:{zero_free}","Addresses":["100.64.0.1/32"],"DERP":"127.3.3.40:1","Cap":1,"PrimaryRoutes":["10.0.0.0/8"],"MachineAuthorized":true,"Capabilities":["c"],"UnsignedPeerAPIOnly":true,"ComputedName":"a","ComputedNameWithHost":"b","DataPlaneAuditLogID":"d","Expired":true,"SelfNodeV4MasqAddrForThisPeer":"10.0.0.1","SelfNodeV6MasqAddrForThisPeer":"::1","IsWireGuardOnly":true,"IsJailed":true,"ExitNodeDNSResolvers":[{{"Addr":"1.1.1.1","BootstrapResolution":["1.1.1.1"],"UseWithExitNode":true}}]}}"#
    ));
    round_trip_text::<Hostinfo>(
        r#"{"IPNVersion":"a","FrontendLogID":"a","BackendLogID":"a","OS":"a","OSVersion":"a","Container":true,"Env":"a","Distro":"a","DistroVersion":"a","DistroCodename":"a","App":"a","Desktop":false,"Package":"a","DeviceModel":"a","PushDeviceToken":"a","Hostname":"a","ShieldsUp":true,"ShareeNode":true,"NoLogsNoSupport":true,"RemoteConfig":true,"WireIngress":true,"IngressEnabled":true,"AllowsUpdate":true,"Machine":"a","GoArch":"a","GoArchVar":"a","GoVersion":"a","RoutableIPs":["0.0.0.0/0"],"RequestTags":["tag:a"],"WoLMACs":["a"],"Services":[{"Proto":"tcp","Port":1,"Description":"d"}],"NetInfo":{"MappingVariesByDestIP":true,"WorkingIPv6":true,"OSHasIPv6":true,"WorkingUDP":true,"WorkingICMPv4":true,"HavePortMap":true,"UPnP":true,"PMP":true,"PCP":true,"PreferredDERP":1,"LinkType":"wired","DERPLatency":{"1-v4":0.5},"FirewallMode":"nft"},"sshHostKeys":["a"],"Cloud":"a","Userspace":true,"UserspaceRouter":true,"AppConnector":false,"ServicesHash":"a","PeerRelay":true,"ExitNodeID":"a","Location":{"Country":"a","CountryCode":"a","City":"a","CityCode":"a","Latitude":1.5,"Longitude":1.5,"Priority":1},"TPM":{"Manufacturer":"a","Vendor":"a","Model":1,"FirmwareVersion":18446744073709551615,"SpecRevision":1,"FamilyIndicator":"2.0"},"StateEncrypted":true}"#,
    );
    round_trip_text::<DerpMap>(
        r#"{"HomeParams":{"RegionScore":{}},"Regions":{"1":{"RegionID":1,"RegionCode":"a","RegionName":"b","Latitude":1.5,"Longitude":1.5,"Avoid":true,"NoMeasureNoHome":true,"Nodes":[{"Name":"1a","RegionID":1,"HostName":"h","CertName":"c","IPv4":"none","IPv6":"none","STUNPort":-1,"STUNOnly":true,"DERPPort":443,"InsecureForTests":true,"STUNTestIP":"::1","CanPort80":true}]}},"omitDefaultRegions":true}"#,
    );
    round_trip_text::<MapResponse>(
        r#"{"MapSessionHandle":"a","Seq":1,"KeepAlive":true,"PingRequest":{"URL":"u","URLIsNoise":true,"Log":true,"Types":"c2n","IP":"1.1.1.1","Payload":"AAA="},"PopBrowserURL":"u","PeersRemoved":[1],"PeersChangedPatch":[{"NodeID":1,"DERPRegion":2,"Cap":3,"CapMap":{"a":null},"KeySignature":"AAA=","Online":true}],"PeerSeenChange":{"1":false},"DNSConfig":{"Resolvers":[{"Addr":"1.1.1.1"}],"FallbackResolvers":[{"Addr":"1.1.1.1"}],"Domains":["d"],"Proxied":true,"Nameservers":["1.1.1.1"],"CertDomains":["d"],"ExtraRecords":[{"Name":"n","Type":"A","Value":"1.1.1.1"}],"ExitNodeFilteredSet":[".x"]},"Domain":"d","CollectServices":false,"PacketFilter":[{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"],"Caps":["c"],"CapMap":{"c":[{"a":1}]}}]}],"UserProfiles":[{"ID":1,"LoginName":"l","DisplayName":"d","ProfilePicURL":"p","Groups":["g"]}],"DisplayMessages":{"*":null,"a":{"Title":"t","Text":"x","Severity":"low","ImpactsConnectivity":true,"PrimaryAction":{"URL":"u","Label":"l"}}},"SSHPolicy":{"rules":[]},"TKAInfo":{"Head":"h","Disabled":true},"DomainDataPlaneAuditLogID":"x","Debug":{"SleepSeconds":1.5,"DisableLogTail":true,"Exit":1},"ControlDialPlan":{"Candidates":[{"IP":"1.1.1.1","ACEHost":"a","DialStartDelaySec":1.5,"DialTimeoutSec":1.5,"Priority":1}]},"ClientVersion":{"RunningLatest":true,"LatestVersion":"1","UrgentSecurityUpdate":true,"Notify":true,"NotifyURL":"u","NotifyText":"t"},"DefaultAutoUpdate":false}"#,
    );
    round_trip_text::<PingResponse>(
        r#"{"Type":"disco","IP":"a","NodeIP":"a","NodeName":"a","Err":"a","LatencySeconds":1.5,"Endpoint":"a","PeerRelay":"a","DERPRegionID":1,"DERPRegionCode":"a","PeerAPIPort":1,"IsLocalIP":true}"#,
    );
}

fn round_trip_text<T: Serialize + DeserializeOwned>(text: &str) {
    assert_eq!(written(&from_json::<T>(text.as_bytes()).unwrap()), text);
}
