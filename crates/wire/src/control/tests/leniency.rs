//! What strange but honest clients send.

use super::*;

const KEY: &str = "nodekey:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn register(rest: &str) -> Result<RegisterRequest, JsonError> {
    from_json(format!(r#"{{"NodeKey":"{KEY}"{rest}}}"#).as_bytes())
}

fn map_request(rest: &str) -> Result<MapRequest, JsonError> {
    from_json(format!(r#"{{"NodeKey":"{KEY}"{rest}}}"#).as_bytes())
}

fn hostinfo(text: &str) -> Hostinfo {
    from_json(text.as_bytes()).unwrap()
}

#[test]
fn names_match_without_regard_to_case() {
    let request = register(
        r#","version":113,"HostInfo":{"IpnVersion":"1.0","Os":"linux","RoutableIps":["10.0.0.0/8"],"WolMacs":["aa:bb"],"SshHostKeys":["k"],"NetInfo":{"PreferredDerp":7,"DerpLatency":{"7-v4":0.5},"WorkingIpv6":false}}"#,
    )
    .unwrap();
    let hostinfo = request.hostinfo.unwrap();
    assert_eq!(request.version, CapabilityVersion(113));
    assert_eq!((hostinfo.ipn_version.as_str(), hostinfo.os.as_str()), ("1.0", "linux"));
    assert_eq!(hostinfo.routable_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(hostinfo.ssh_host_keys, ["k"]);
    let net_info = hostinfo.net_info.unwrap();
    assert_eq!(net_info.preferred_derp, RegionId(7));
    assert_eq!(net_info.working_ipv6, Some(false));
    assert_eq!(net_info.derp_latency["7-v4"], 0.5);
}

#[test]
fn null_is_absent_everywhere() {
    let request = register(
        r#","Version":null,"OldNodeKey":null,"NLKey":null,"Auth":null,"Expiry":null,"Followup":null,"Hostinfo":null,"NodeKeySignature":null,"Ephemeral":null"#,
    )
    .unwrap();
    assert_eq!(request, RegisterRequest { node_key: KEY.parse().unwrap(), ..RegisterRequest::default() });
    let response: MapResponse = from_json(
        br#"{"Node":null,"Peers":null,"PeersChanged":null,"OnlineChange":null,"PacketFilter":null,"PacketFilters":{"a":null},"UserProfiles":null,
            "DERPMap":{"Regions":{"1":null}},"Health":null,"ControlTime":null,"DNSConfig":{"Routes":{"x":null},"Resolvers":null},"Domain":null}"#,
    )
    .unwrap();
    assert_eq!(response.packet_filters["a"], None);
    assert_eq!(response.derp_map.unwrap().regions, Some([].into()));
    assert_eq!(response.dns_config.unwrap().routes["x"], []);
    assert_eq!((response.packet_filter, response.health, response.node), (None, None, None));
}

#[test]
fn zero_keys_and_zero_times_are_absent() {
    let zero = "0".repeat(64);
    let request = register(&format!(r#","OldNodeKey":"nodekey:{zero}","Expiry":"0001-01-01T00:00:00Z""#)).unwrap();
    assert_eq!((request.old_node_key, request.expiry), (None, None));
    let request = map_request(&format!(r#","DiscoKey":"discokey:{zero}""#)).unwrap();
    assert_eq!(request.disco_key, None);
}

#[test]
fn zero_node_key_is_refused() {
    let zero = "0".repeat(64);
    assert!(from_json::<RegisterRequest>(format!(r#"{{"NodeKey":"nodekey:{zero}"}}"#).as_bytes()).is_err());
    assert!(from_json::<MapRequest>(br#"{"NodeKey":null}"#).is_err());
    assert!(from_json::<MapRequest>(b"{}").is_err());
}

#[test]
fn unknown_names_are_ignored() {
    assert!(register(r#","Whatever":{"a":[1,{"b":null}]},"":3"#).is_ok());
}

#[test]
fn malformed_host_info_costs_only_its_own_field() {
    let info = hostinfo(
        r#"{"OS":5,"Hostname":"box","RoutableIPs":["10.0.0.0/8","nonsense",7],"RequestTags":"tag:x","Services":[{"Proto":"tcp","Port":70000},{"Proto":"udp","Port":53}],
            "NetInfo":{"PreferredDERP":-1,"WorkingUDP":"yes","WorkingIPv6":true},"TPM":7,"ShieldsUp":true}"#,
    );
    assert_eq!((info.os.as_str(), info.hostname.as_str()), ("", "box"));
    assert_eq!(info.routable_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert!(info.request_tags.is_empty() && info.tpm.is_none() && info.shields_up);
    assert_eq!(info.services.len(), 1);
    let net_info = info.net_info.unwrap();
    assert_eq!((net_info.preferred_derp, net_info.working_udp), (RegionId(0), None));
    assert_eq!(net_info.working_ipv6, Some(true));
    assert_eq!(register(r#","Hostinfo":[1,2]"#).unwrap().hostinfo, None);
}

#[test]
fn endpoints_and_their_kinds_stay_side_by_side() {
    let request = map_request(
        r#","Endpoints":["[fe80::1%eth0]:1","192.0.2.1:2","[fe80::2]:3","junk","[2001:db8::1]:4","0.0.0.0:5","10.0.0.1:0"],"EndpointTypes":[1,2,1,1,9]"#,
    )
    .unwrap();
    let usable: Vec<_> = request.usable_endpoints().collect();
    assert_eq!(
        usable,
        [
            ("192.0.2.1:2".parse().unwrap(), EndpointType::Stun),
            ("[2001:db8::1]:4".parse().unwrap(), EndpointType::Unknown),
        ]
    );
}

#[test]
fn malformed_endpoints_and_kinds_keep_their_places() {
    let request =
        map_request(r#","Endpoints":[7,"192.0.2.1:2",null,"192.0.2.2:2"],"EndpointTypes":["x",2,null,5]"#).unwrap();
    let usable: Vec<_> = request.usable_endpoints().collect();
    assert_eq!(
        usable,
        [
            ("192.0.2.1:2".parse().unwrap(), EndpointType::Stun),
            ("192.0.2.2:2".parse().unwrap(), EndpointType::Explicit),
        ]
    );
    assert_eq!(
        map_request(r#","Endpoints":["255.255.255.255:1","224.0.0.1:1"]"#).unwrap().usable_endpoints().count(),
        0
    );
}

#[test]
fn one_bad_record_does_not_spoil_the_map() {
    let good = format!(r#"{{"ID":4,"Key":"{KEY}"}}"#);
    let zero = format!(r#"{{"ID":5,"Key":"nodekey:{}"}}"#, "0".repeat(64));
    let peers = format!(r#"[{good},{zero},{{"ID":6}},{{"Key":"{KEY}"}},null,7,[1],{{"ID":"x","Key":"{KEY}"}}]"#);
    for field in ["Peers", "PeersChanged"] {
        let message: MapResponse = from_json(format!(r#"{{"{field}":{peers},"Domain":"d"}}"#).as_bytes()).unwrap();
        let read: Vec<NodeId> = message.peers.iter().chain(&message.peers_changed).map(|node| node.id).collect();
        assert_eq!((read, message.domain.as_str()), (vec![NodeId(4)], "d"), "{field}");
        assert!(from_json::<MapResponse>(format!(r#"{{"{field}":{{}}}}"#).as_bytes()).is_err(), "{field}");
    }
    // A change that is left out would be missing for ever: better a new stream.
    assert!(from_json::<MapResponse>(br#"{"PeersChangedPatch":[{"NodeID":1,"Key":"x"}]}"#).is_err());
}

#[test]
fn malformed_rules_are_left_out_and_never_allow_more() {
    let rules = r#"[{"SrcIPs":["*",7],"DstPorts":[{"IP":"*","Ports":{"First":1,"Last":70000}},{"IP":"*","Ports":{"First":1,"Last":2}}]},
        {"SrcIPs":["*"],"IPProto":["gre"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]},{"SrcIPs":"*"},3]"#;
    for text in [format!(r#"{{"PacketFilter":{rules}}}"#), format!(r#"{{"PacketFilters":{{"base":{rules}}}}}"#)] {
        let message: MapResponse = from_json(text.as_bytes()).unwrap();
        let rules = message.packet_filter.or_else(|| message.packet_filters["base"].clone()).unwrap();
        assert_eq!(rules.len(), 1, "a rule for all protocols must not come of one for a strange one");
        assert_eq!(rules[0].src_ips, ["*"]);
        assert_eq!(rules[0].dst_ports.iter().map(|to| to.ports.last).collect::<Vec<_>>(), [2]);
    }
    assert!(from_json::<MapResponse>(br#"{"PacketFilter":{}}"#).is_err(), "what is no list changes nothing silently");
    assert!(from_json::<SshAction>(br#"{"recorders":["nowhere"]}"#).is_err(), "a recorder must not get lost");
}

#[test]
fn a_rule_whose_end_cannot_be_read_has_ended() {
    let rule = |end: &str| from_json::<FilterRule>(format!(r#"{{"SrcIPs":["*"]{end}}}"#).as_bytes()).unwrap();
    let written = |rule: &FilterRule| String::from_utf8(to_json(rule).unwrap()).unwrap();
    for none in ["", r#","WarrenUntil":null"#] {
        assert_eq!(rule(none).until, None);
        assert!(!written(&rule(none)).contains("Until"), "official clients see no trace of it");
    }
    let sound = rule(r#","WarrenUntil":"2026-10-01T12:00:00+02:00""#);
    assert_eq!(sound.until, "2026-10-01T10:00:00Z".parse().ok());
    assert!(written(&sound).contains(r#""WarrenUntil":"2026-10-01T10:00:00Z""#));
    for malformed in ["7", "{}", r#""""#, r#""soon""#, r#""0001-01-01T00:00:00Z""#, r#""2026-13-01T00:00:00Z""#] {
        let end = rule(&format!(r#","WarrenUntil":{malformed}"#)).until;
        assert!(end.is_some_and(|end| end.unix_seconds() == 0), "{malformed}");
    }
}

#[test]
fn absent_addresses_may_be_written_as_empty_texts() {
    let ping: PingRequest = from_json(br#"{"URL":"u","IP":""}"#).unwrap();
    assert_eq!(ping.ip, None);
    let plan: ControlDialPlan = from_json(br#"{"Candidates":[{"IP":"","ACEHost":"a"}]}"#).unwrap();
    assert_eq!((plan.candidates[0].ip, plan.candidates[0].ace_host.as_str()), (None, "a"));
}

#[test]
fn strange_regions_cost_only_themselves() {
    let map: DerpMap = from_json(
        br#"{"Regions":{"1":{"RegionID":1,"Nodes":[{"Name":"1a","DERPPort":70000,"STUNPort":"x"}]},"70000":{"RegionID":70000},"-1":{},"3":7,"4":{"RegionName":5}}}"#,
    )
    .unwrap();
    let regions = map.regions.unwrap();
    assert_eq!(regions.keys().collect::<Vec<_>>(), [&RegionId(1)]);
    assert_eq!((regions[&RegionId(1)].nodes[0].derp_port, regions[&RegionId(1)].nodes[0].stun_port), (0, 0));
    let node: Node =
        from_json(format!(r#"{{"ID":1,"Key":"{KEY}","HomeDERP":70000,"Cap":70000,"Online":"true"}}"#).as_bytes())
            .unwrap();
    assert_eq!((node.home_derp, node.cap, node.online), (RegionId(0), CapabilityVersion(u16::MAX), None));
    assert_eq!(map_request(r#","Version":-1"#).unwrap().version, CapabilityVersion(0));
}

#[test]
fn endless_endpoints_end() {
    let request = map_request(&format!(r#","Endpoints":[{}"1.2.3.4:5"]"#, r#""1.2.3.4:5","#.repeat(2000))).unwrap();
    assert_eq!(request.endpoints.len(), 1024);
}

#[test]
fn small_values_cannot_become_a_flood() {
    let flood = |count: usize| format!(r#"{{"PacketFilter":[{}{{}}]}}"#, "{},".repeat(count));
    assert!(from_json::<MapResponse>(flood(20_000).as_bytes()).is_ok());
    assert!(matches!(from_json::<MapResponse>(flood(1_000_000).as_bytes()), Err(JsonError::TooMany { .. })));
    let text = format!(r#"{{"Domain":"{}"}}"#, ",[{".repeat(1_000_000));
    assert!(from_json::<MapResponse>(text.as_bytes()).is_ok(), "within a text they are no values");
    let removed: Vec<String> = (1_000_000..1_200_000).map(|id| id.to_string()).collect();
    assert!(from_json::<MapResponse>(format!(r#"{{"PeersRemoved":[{}]}}"#, removed.join(",")).as_bytes()).is_ok());
}

#[test]
fn lock_key_and_signature_type_of_any_form_are_taken() {
    let request = register(r#","NLKey":"tlpub:whatever","SignatureType":2"#).unwrap();
    assert_eq!(request.nl_key, "tlpub:whatever");
    assert!(register(r#","NLKey":7,"SignatureType":"signature-v1""#).is_ok());
}

#[test]
fn flags_read_alike_as_null_and_as_empty_list() {
    let caps: CapMap = from_json(br#"{"a":null,"b":[],"c":[1]}"#).unwrap();
    assert!(caps.has("a") && caps.has("b"));
    assert_eq!(to_json(&caps).unwrap(), br#"{"a":null,"b":null,"c":[1]}"#);
}

#[test]
fn size_and_depth_are_bounded() {
    let deep = format!(r#"{{"x":{}"#, "[".repeat(100_000));
    assert_eq!(from_json::<MapResponse>(deep.as_bytes()), Err(JsonError::TooDeep { limit: DOCUMENT_MAX_DEPTH }));
    let bracketed = format!(r#"{{"Domain":"{}"}}"#, "[".repeat(100));
    assert!(from_json::<MapResponse>(bracketed.as_bytes()).is_ok());
    assert_eq!(from_json_up_to::<MapResponse>(b"{      }", 7), Err(JsonError::TooLarge { size: 8, limit: 7 }));
}

#[test]
fn errors_do_not_quote_the_document() {
    let error = from_json::<RegisterRequest>(br#"{"Version":"tskey-secret"}"#).unwrap_err();
    assert!(!error.to_string().contains("tskey"), "{error}");
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn text_after_the_document_is_refused() {
    assert!(from_json::<MapResponse>(b"{} {}").is_err());
    assert!(from_json::<MapResponse>(b" {} \n").is_ok());
}
