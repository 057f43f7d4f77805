//! One document of every type, with every field, and what must hold however it is changed.

use super::*;
use proptest::sample::Index;
use serde_json::Map;

/// A type under test: a document of it, spelt and ordered as we write it, and what reads it.
struct Sample {
    name: &'static str,
    text: String,
    check: fn(&[u8]) -> Option<Vec<u8>>,
}

/// Reads a document as `T`, demands that writing and reading it again changes nothing, and returns what was written.
fn canonical<T: DeserializeOwned + Serialize + PartialEq + Printed>(document: &[u8]) -> Option<Vec<u8>> {
    let read: T = from_json(document).ok()?;
    let written = to_json(&read).unwrap();
    let again: T = from_json(&written).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&written)));
    assert_eq!(again, read);
    assert_eq!(to_json(&again).unwrap(), written);
    Some(written)
}

macro_rules! samples {
    ($($kind:ident: $text:expr),* $(,)?) => {
        vec![$(Sample { name: stringify!($kind), text: $text.replace("KEY", &"a".repeat(64)), check: canonical::<$kind> }),*]
    };
}

const NODE: &str = r#"{"ID":1,"StableID":"s","Name":"n","User":2,"Sharer":3,"Key":"nodekey:KEY","KeyExpiry":"2026-01-02T03:04:05.5Z","KeySignature":"AAA=","Machine":"mkey:KEY","DiscoKey":"discokey:KEY","Addresses":["100.64.0.1/32"],"AllowedIPs":[],"Endpoints":["192.0.2.1:1","[2001:db8::1]:2"],"DERP":"127.3.3.40:1","HomeDERP":1,"Hostinfo":{"OS":"linux"},"Created":"2026-01-02T03:04:05Z","Cap":1,"Tags":["tag:a"],"PrimaryRoutes":["10.0.0.0/8"],"LastSeen":"2026-01-02T03:04:05Z","Online":false,"MachineAuthorized":true,"Capabilities":["c"],"CapMap":{"a":null,"b":[{"x":1},"y"]},"UnsignedPeerAPIOnly":true,"ComputedName":"a","ComputedNameWithHost":"b","DataPlaneAuditLogID":"d","Expired":true,"SelfNodeV4MasqAddrForThisPeer":"10.0.0.1","SelfNodeV6MasqAddrForThisPeer":"::1","IsWireGuardOnly":true,"IsJailed":true,"ExitNodeDNSResolvers":[{"Addr":"1.1.1.1","BootstrapResolution":["1.1.1.1"],"UseWithExitNode":true}]}"#;

const HOSTINFO: &str = r#"{"IPNVersion":"a","FrontendLogID":"a","BackendLogID":"a","OS":"a","OSVersion":"a","Container":true,"Env":"a","Distro":"a","DistroVersion":"a","DistroCodeName":"a","App":"a","Desktop":false,"Package":"a","DeviceModel":"a","PushDeviceToken":"a","Hostname":"a","ShieldsUp":true,"ShareeNode":true,"NoLogsNoSupport":true,"RemoteConfig":true,"WireIngress":true,"IngressEnabled":true,"AllowsUpdate":true,"Machine":"a","GoArch":"a","GoArchVar":"a","GoVersion":"a","RoutableIPs":["0.0.0.0/0"],"RequestTags":["tag:a"],"WoLMACs":["a"],"Services":[{"Proto":"tcp","Port":1,"Description":"d"}],"NetInfo":{"MappingVariesByDestIP":true,"WorkingIPv6":true,"OSHasIPv6":true,"WorkingUDP":true,"WorkingICMPv4":true,"HavePortMap":true,"UPnP":true,"PMP":true,"PCP":true,"PreferredDERP":1,"LinkType":"wired","DERPLatency":{"1-v4":0.5},"FirewallMode":"nft"},"sshHostKeys":["a"],"Cloud":"a","Userspace":true,"UserspaceRouter":true,"AppConnector":false,"ServicesHash":"a","PeerRelay":true,"ExitNodeID":"a","Location":{"Country":"a","CountryCode":"a","City":"a","CityCode":"a","Latitude":1.5,"Longitude":1.5,"Priority":1},"TPM":{"Manufacturer":"a","Vendor":"a","Model":1,"FirmwareVersion":18446744073709551615,"SpecRevision":1,"FamilyIndicator":"2.0"},"StateEncrypted":true}"#;

const DERP_MAP: &str = r#"{"HomeParams":{"RegionScore":{"1":0.5}},"Regions":{"1":{"RegionID":1,"RegionCode":"a","RegionName":"b","Latitude":1.5,"Longitude":1.5,"Avoid":true,"NoMeasureNoHome":true,"Nodes":[{"Name":"1a","RegionID":1,"HostName":"h","CertName":"c","IPv4":"none","IPv6":"none","STUNPort":-1,"STUNOnly":true,"DERPPort":443,"InsecureForTests":true,"STUNTestIP":"::1","CanPort80":true}]}},"omitDefaultRegions":true}"#;

const RULES: &str = r#"[{"SrcIPs":["*","10.0.0.1-10.0.0.9","cap:x"],"SrcBits":[32],"DstPorts":[{"IP":"*","Bits":1,"Ports":{"First":0,"Last":65535}}],"IPProto":[6,17]},{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"],"Caps":["c"],"CapMap":{"c":[{"a":1}]}}]}]"#;

const SSH_ACTION: &str = r#"{"message":"m","reject":true,"accept":true,"sessionDuration":3600000000000,"allowAgentForwarding":true,"holdAndDelegate":"u","allowLocalPortForwarding":true,"allowRemotePortForwarding":true,"recorders":["192.0.2.1:80"],"onRecordingFailure":{"RejectSessionWithMessage":"a","TerminateSessionWithMessage":"b","NotifyURL":"u"}}"#;

fn ssh_policy() -> String {
    r#"{"rules":[{"ruleExpires":"2026-01-02T03:04:05Z","principals":[{"node":"n","nodeIP":"100.64.0.1","userLogin":"u","any":true}],"sshUsers":{"*":"=","root":""},"action":ACTION,"acceptEnv":["LANG"]}]}"#.replace("ACTION", SSH_ACTION)
}

fn map_response() -> String {
    r#"{"MapSessionHandle":"a","Seq":1,"KeepAlive":true,"PingRequest":{"URL":"u","URLIsNoise":true,"Log":true,"Types":"c2n","IP":"1.1.1.1","Payload":"AAA="},"PopBrowserURL":"u","Node":NODE,"DERPMap":DERP,"Peers":[NODE],"PeersChanged":[NODE],"PeersRemoved":[1],"PeersChangedPatch":[{"NodeID":1,"DERPRegion":2,"Cap":3,"CapMap":{"a":null},"Endpoints":["192.0.2.1:1"],"Key":"nodekey:KEY","KeySignature":"AAA=","DiscoKey":"discokey:KEY","Online":true,"LastSeen":"2026-01-02T03:04:05Z","KeyExpiry":"0001-01-01T00:00:00Z"}],"PeerSeenChange":{"1":false},"OnlineChange":{"1":true},"DNSConfig":{"Resolvers":[{"Addr":"1.1.1.1"}],"Routes":{"x":[],"y":[{"Addr":"1.1.1.1"}]},"FallbackResolvers":[{"Addr":"1.1.1.1"}],"Domains":["d"],"Proxied":true,"Nameservers":["1.1.1.1"],"CertDomains":["d"],"ExtraRecords":[{"Name":"n","Type":"A","Value":"1.1.1.1"}],"ExitNodeFilteredSet":[".x"]},"Domain":"d","CollectServices":false,"PacketFilter":RULES,"PacketFilters":{"*":null,"base":RULES,"none":[]},"UserProfiles":[{"ID":1,"LoginName":"l","DisplayName":"d","ProfilePicURL":"p","Groups":["g"]}],"Health":["h"],"DisplayMessages":{"*":null,"a":{"Title":"t","Text":"x","Severity":"low","ImpactsConnectivity":true,"PrimaryAction":{"URL":"u","Label":"l"}}},"SSHPolicy":SSH,"ControlTime":"2026-01-02T03:04:05Z","TKAInfo":{"Head":"h","Disabled":true},"DomainDataPlaneAuditLogID":"x","Debug":{"SleepSeconds":1.5,"DisableLogTail":true,"Exit":1},"ControlDialPlan":{"Candidates":[{"IP":"1.1.1.1","ACEHost":"a","DialStartDelaySec":1.5,"DialTimeoutSec":1.5,"Priority":1}]},"ClientVersion":{"RunningLatest":true,"LatestVersion":"1","UrgentSecurityUpdate":true,"Notify":true,"NotifyURL":"u","NotifyText":"t"},"DefaultAutoUpdate":false}"#
        .replace("NODE", NODE)
        .replace(":DERP,", &format!(":{DERP_MAP},"))
        .replace("RULES", RULES)
        .replace(":SSH,", &format!(":{},", ssh_policy()))
}

fn samples() -> Vec<Sample> {
    samples! {
        RegisterRequest: r#"{"Version":145,"NodeKey":"nodekey:KEY","OldNodeKey":"nodekey:KEY","NLKey":"nlpub:x","Auth":{"AuthKey":"k","Oauth2Token":{"a":1}},"Expiry":"2026-01-02T03:04:05Z","Followup":"f","Hostinfo":HOST,"Ephemeral":true,"NodeKeySignature":"AAA=","SignatureType":"signature-v1","Timestamp":"2026-01-02T03:04:05Z","DeviceCert":"AAA=","Signature":"AAA=","Tailnet":"t"}"#.replace("HOST", HOSTINFO),
        RegisterResponse: r#"{"User":{"ID":1,"DisplayName":"d","ProfilePicURL":"p","Created":"2026-01-02T03:04:05Z"},"Login":{"ID":1,"Provider":"p","LoginName":"l","DisplayName":"d","ProfilePicURL":"p"},"NodeKeyExpired":true,"MachineAuthorized":true,"AuthURL":"u","NodeKeySignature":"AAA=","Error":"e"}"#,
        MapRequest: r#"{"Version":145,"Compress":"zstd","KeepAlive":true,"NodeKey":"nodekey:KEY","DiscoKey":"discokey:KEY","HardwareAttestationKey":"hwattestpub:x","HardwareAttestationKeySignature":"AAA=","HardwareAttestationKeySignatureTimestamp":"2026-01-02T03:04:05Z","Stream":true,"Hostinfo":HOST,"MapSessionHandle":"h","MapSessionSeq":1,"Endpoints":["192.0.2.1:1"],"EndpointTypes":[2],"TKAHead":"h","ReadOnly":true,"OmitPeers":true,"DebugFlags":["f"],"ConnectionHandleForTest":"c"}"#.replace("HOST", HOSTINFO),
        MapResponse: map_response(),
        Node: NODE,
        Hostinfo: HOSTINFO,
        DerpMap: DERP_MAP,
        SshPolicy: ssh_policy(),
        SshAction: SSH_ACTION,
        PingRequest: r#"{"URL":"u","URLIsNoise":true,"Log":true,"Types":"c2n","IP":"1.1.1.1","Payload":"AAA="}"#,
        PingResponse: r#"{"Type":"disco","IP":"a","NodeIP":"a","NodeName":"a","Err":"a","LatencySeconds":1.5,"Endpoint":"a","PeerRelay":"a","DERPRegionID":1,"DERPRegionCode":"a","PeerAPIPort":1,"IsLocalIP":true}"#,
        SetDnsRequest: r#"{"Version":1,"NodeKey":"nodekey:KEY","Name":"n","Type":"TXT","Value":"v"}"#,
        TokenRequest: r#"{"CapVersion":1,"NodeKey":"nodekey:KEY","Audience":"a"}"#,
        TokenResponse: r#"{"id_token":"t"}"#,
        SetDeviceAttributesRequest: r#"{"Version":1,"NodeKey":"nodekey:KEY","Update":{"a":"x","b":1,"c":true,"d":null}}"#,
        HealthChangeRequest: r#"{"Subsys":"s","Error":"e","NodeKey":"nodekey:KEY"}"#,
        QueryFeatureRequest: r#"{"Feature":"serve","NodeKey":"nodekey:KEY"}"#,
        QueryFeatureResponse: r#"{"Complete":true,"Text":"t","URL":"u","ShouldWait":true}"#,
        WebClientAuthResponse: r#"{"ID":"i","URL":"u","Complete":true}"#,
        AuditLogRequest: r#"{"Version":1,"NodeKey":"nodekey:KEY","Action":"DISCONNECT_NODE","Details":"d","Timestamp":"2026-01-02T03:04:05Z"}"#,
        SshEventNotifyRequest: r#"{"EventType":1,"ConnectionID":"c","CapVersion":1,"NodeKey":"nodekey:KEY","SrcNode":1,"SSHUser":"u","LocalUser":"l","RecordingAttempts":[{"Recorder":"r","FailureMessage":"f"}]}"#,
        ServerKeys: r#"{"legacyPublicKey":"mkey:KEY","publicKey":"mkey:KEY"}"#,
        RelayAdmitRequest: r#"{"NodePublic":"nodekey:KEY","Source":"1.2.3.4"}"#,
        RelayAdmitResponse: r#"{"Allow":true}"#,
        RelayReviewRequest: r#"{"Clients":["nodekey:KEY"]}"#,
        RelayReviewResponse: r#"{"Gone":["nodekey:KEY"]}"#,
        TkaRequest: r#"{"Version":1,"NodeKey":"nodekey:KEY","GenesisAUM":"AAA=","Signatures":{"1":"AAA="},"SupportDisablement":"AAA=","Head":"h","Ancestors":["a"],"MissingAUMs":["AAA="],"Interactive":true,"DisablementSecret":"AAA=","Signature":"AAA=","KeyID":"AAA="}"#,
        TkaInitBeginResponse: r#"{"NeedSignatures":[{"NodeID":1,"NodePublic":"nodekey:KEY","RotationPubkey":"AAA="}]}"#,
        TkaBootstrapResponse: r#"{"GenesisAUM":"AAA=","DisablementSecret":"AAA="}"#,
        TkaSyncOfferResponse: r#"{"Head":"h","Ancestors":["a"],"MissingAUMs":["AAA="]}"#,
        TkaSyncSendResponse: r#"{"Head":"h"}"#,
        TkaSignaturesUsingKeyResponse: r#"{"Signatures":["AAA="]}"#,
    }
}

#[test]
fn every_field_is_read_and_written_as_it_is_spelt() {
    for sample in samples() {
        let written = (sample.check)(sample.text.as_bytes()).unwrap_or_else(|| panic!("{} is not read", sample.name));
        assert_eq!(String::from_utf8(written).unwrap(), sample.text, "{}", sample.name);
    }
}

/// Calls `visit` with every object and list inside `value`, innermost last.
fn walk(value: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    visit(value);
    match value {
        Value::Object(members) => members.values_mut().for_each(|value| walk(value, visit)),
        Value::Array(entries) => entries.iter_mut().for_each(|value| walk(value, visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Keys that a document of ours needs: who speaks, or what a record is about.
const NEEDED: [&str; 5] = ["NodeKey", "Key", "ID", "NodePublic", "NodeID"];

#[test]
fn null_is_taken_for_any_field() {
    for sample in samples() {
        let whole: Value = serde_json::from_str(&sample.text).unwrap();
        let mut fields = 0;
        walk(&mut whole.clone(), &mut |value| fields += value.as_object().map_or(0, Map::len));
        for chosen in 0..fields {
            let mut document = whole.clone();
            let (mut at, mut name) = (0, String::new());
            walk(&mut document, &mut |value| {
                for (key, member) in value.as_object_mut().into_iter().flatten() {
                    if at == chosen {
                        *member = Value::Null;
                        name.clone_from(key);
                    }
                    at += 1;
                }
            });
            let read = (sample.check)(&serde_json::to_vec(&document).unwrap());
            assert!(read.is_some() || NEEDED.contains(&name.as_str()), "{} without {name}", sample.name);
        }
    }
}

/// Objects whose names are data, not fields.
const MAPS: [&str; 11] = [
    "CapMap",
    "Routes",
    "PacketFilters",
    "DisplayMessages",
    "OnlineChange",
    "PeerSeenChange",
    "Regions",
    "RegionScore",
    "DERPLatency",
    "sshUsers",
    "Update",
];

/// Changes the case of all names of fields.
fn shout(value: &mut Value, is_map: bool, change: fn(&str) -> String) {
    match value {
        Value::Object(members) => {
            let old = std::mem::take(members);
            for (name, mut member) in old {
                // Below these is raw text that we hand on.
                if !matches!(name.as_str(), "CapMap" | "Update" | "Oauth2Token") {
                    shout(&mut member, MAPS.contains(&name.as_str()), change);
                }
                members.insert(if is_map { name } else { change(&name) }, member);
            }
        }
        Value::Array(entries) => entries.iter_mut().for_each(|entry| shout(entry, false, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn names_of_fields_match_in_any_case() {
    let changes: [fn(&str) -> String; 2] = [|name| name.to_lowercase(), |name| name.to_uppercase()];
    for sample in samples() {
        for change in changes {
            let mut document: Value = serde_json::from_str(&sample.text).unwrap();
            shout(&mut document, false, change);
            let written = (sample.check)(&serde_json::to_vec(&document).unwrap()).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), sample.text, "{}", sample.name);
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Remove,
    Replace(Value),
    Rename(String),
    Repeat(usize),
}

fn any_change() -> impl Strategy<Value = Change> {
    let scalars = [
        "null",
        "true",
        "0",
        "-1",
        "1",
        "1.5",
        "1e300",
        "65536",
        "9007199254740993",
        "18446744073709551615",
        "\"\"",
        "\"x\"",
        "\"true\"",
        "\"0001-01-01T00:00:00Z\"",
        "\"2026-01-01T00:00:00+01:00\"",
        "\"::ffff:1.2.3.4\"",
        "\"1.2.3.4:5\"",
        "\"10.0.0.1/8\"",
        "\"AA\"",
        "[]",
        "{}",
        "[null]",
        "[[1]]",
        "{\"\":1}",
    ];
    let value = proptest::sample::select(scalars.to_vec()).prop_map(|text| serde_json::from_str(text).unwrap());
    prop_oneof![
        1 => Just(Change::Remove),
        4 => value.prop_map(Change::Replace),
        1 => "[a-zA-Z]{0,6}".prop_map(Change::Rename),
        1 => (2_usize..5).prop_map(Change::Repeat),
    ]
}

/// Changes the `place`-th member or entry of the document.
fn apply(document: &mut Value, place: Index, change: Change) {
    let mut places = 0;
    let count = |value: &Value| value.as_object().map_or(0, Map::len) + value.as_array().map_or(0, Vec::len);
    walk(document, &mut |value| places += count(value));
    // Repetitions of repetitions would grow without bound.
    if places == 0 || places > 1_000 {
        return;
    }
    let chosen = place.index(places);
    let (mut before, mut change) = (0, Some(change));
    walk(document, &mut |value| {
        let here = chosen.checked_sub(before).filter(|&here| here < count(value));
        before += count(value);
        let Some((here, change)) = here.zip(change.take_if(|_| here.is_some())) else { return };
        match value {
            Value::Object(members) => {
                let name = members.keys().nth(here).unwrap().clone();
                match change {
                    Change::Remove => drop(members.remove(&name)),
                    Change::Replace(new) => drop(members.insert(name, new)),
                    Change::Rename(new) => {
                        let member = members.remove(&name).unwrap();
                        members.insert(new, member);
                    }
                    Change::Repeat(times) => {
                        let member = members[&name].clone();
                        members.insert(name, Value::Array(vec![member; times]));
                    }
                }
            }
            Value::Array(entries) => match change {
                Change::Remove => drop(entries.remove(here)),
                Change::Replace(new) => entries[here] = new,
                Change::Rename(text) => entries[here] = Value::String(text),
                Change::Repeat(times) => {
                    let entry = entries[here].clone();
                    entries.extend(std::iter::repeat_n(entry, times));
                }
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is read is written in one form, which reads the same.
    #[test]
    fn changed_documents_are_refused_or_round_trip(
        sample: Index,
        changes in proptest::collection::vec((any::<Index>(), any_change()), 0..6),
    ) {
        let samples = samples();
        let sample = sample.get(&samples);
        let mut document: Value = serde_json::from_str(&sample.text).unwrap();
        for (place, change) in changes {
            apply(&mut document, place, change);
        }
        (sample.check)(&serde_json::to_vec(&document).unwrap());
    }
}
