//! Which certificates enrol a machine, and what ends it.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SerialNumber, SigningKey as _, date_time_ymd,
};
use warren_wire::control::{Blob, RawJson, RegisterResponse};

use super::*;
use crate::admin::NewAuthKey;
use crate::testing::{FROM, World, machine, node_key, register, with_key};

const NETWORK: &str = "default";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    ca_with(name, KeyPair::generate().unwrap())
}

fn ca_with(name: &str, key: KeyPair) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, key).unwrap()
}

/// A certificate with its key.
struct Held {
    der: Vec<u8>,
    key: KeyPair,
}

fn issue(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Held {
    let mut params = CertificateParams::new(vec!["laptop.example".to_owned()]).unwrap();
    params.serial_number = Some(SerialNumber::from(vec![0xab, 0xcd]));
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Held { der: params.signed_by(&key, ca).unwrap().der().to_vec(), key }
}

fn challenge(number: u8) -> ChallengeKey {
    ChallengeKey::from_bytes([number; 32])
}

/// A registration of the node 2 with a proof for that binding.
fn proved(world: &World, held: &Held, binding: impl FnOnce(&mut ProofBinding)) -> RegisterRequest {
    let mut bound = ProofBinding {
        challenge: challenge(1),
        server: world.control.noise_key(),
        machine: machine(2),
        node: node_key(2),
    };
    binding(&mut bound);
    RegisterRequest {
        signature_type: Some(RawJson::of(&MACHINE_PROOF).unwrap()),
        device_cert: Blob(held.der.clone()),
        signature: Blob(held.key.sign(&bound.message(&held.der)).unwrap()),
        ..register(2)
    }
}

/// A network that takes enrolled machines alone, with an authority, the node of an enrolled machine, and an auth key.
async fn world(ca: &Ca) -> (World, String, String) {
    let world = World::new().await;
    let admin = world.admin();
    admin.set_only_enrolled(NETWORK, true).await.unwrap();
    admin.enrol_machines(NETWORK, &[machine(1)], "").await.unwrap();
    world.join(1, NewAuthKey::default()).await;
    let id = admin.add_machine_ca(NETWORK, &ca.pem(), "laptops").await.unwrap().id;
    let key = world.auth_key(NewAuthKey { reusable: true, pre_approved: true, ..NewAuthKey::default() }).await;
    (world, id, key)
}

async fn ask(world: &World, request: RegisterRequest) -> RegisterResponse {
    world.control.register_on(machine(2), request, FROM, Some(challenge(1))).await
}

/// Tells whether others are told of the node 2.
fn is_published(world: &World) -> bool {
    let seen = !world.whole_map(1).names().is_empty();
    assert_eq!(seen, world.control.relay_admits(&node_key(2)));
    seen
}

#[tokio::test(start_paused = true)]
async fn a_certificate_enrols_the_machine_until_it_ends() {
    let authority = ca("one");
    let (world, _, key) = world(&authority).await;
    let held = issue(&authority, |params| params.not_after = date_time_ymd(2026, 11, 25));
    let answer = ask(&world, with_key(proved(&world, &held, |_| ()), &key)).await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", true), "{answer:?}");
    assert!(is_published(&world));
    let shown = world.admin().machines(None).unwrap();
    let proof = shown.iter().find_map(|machine| machine.proof.clone()).unwrap();
    assert_eq!((proof.serial.as_str(), proof.until.to_string().as_str()), ("abcd", "2026-11-25T00:00:00Z"));
    // Without anybody's doing, and over a restart.
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert!(is_published(&world));
    tokio::time::sleep(Duration::from_secs(2 * 86_400)).await;
    assert!(!is_published(&world));
    let late = ask(&world, proved(&world, &held, |_| ())).await;
    assert_eq!((late.error, late.machine_authorized), (ProofError::Time.to_string(), false));
    let renewed = issue(&authority, |_| ());
    assert!(ask(&world, proved(&world, &renewed, |_| ())).await.machine_authorized);
    assert!(is_published(&world));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_ended_while_the_server_was_away_enrols_nobody() {
    let authority = ca("one");
    let (world, _, key) = world(&authority).await;
    let held = issue(&authority, |params| params.not_after = date_time_ymd(2026, 11, 25));
    assert!(ask(&world, with_key(proved(&world, &held, |_| ()), &key)).await.machine_authorized);
    let world = world.restart(Duration::from_secs(7 * 86_400)).await;
    assert!(!is_published(&world));
}

#[tokio::test(start_paused = true)]
async fn no_other_certificate_or_proof_enrols_anybody() {
    let (authority, stranger) = (ca("one"), ca("one"));
    let (world, _, key) = world(&authority).await;
    let other_kind = ca_with("one", KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    let good = issue(&authority, |_| ());
    let signature = ProofError::Signature;
    let of = |held: &Held| proved(&world, held, |_| ());
    let mut swapped = of(&good);
    swapped.device_cert = Blob(issue(&authority, |_| ()).der);
    let mut unsigned = of(&good);
    unsigned.signature = Blob(Vec::new());
    let mut cut = of(&good);
    cut.device_cert.0.pop();
    let mut chain = of(&good);
    chain.device_cert.0.extend_from_slice(authority.der());
    let cases = [
        ("another authority of the same name", of(&issue(&stranger, |_| ())), ProofError::Issuer),
        ("and with a key of another kind", of(&issue(&other_kind, |_| ())), ProofError::Issuer),
        ("expired", of(&issue(&authority, |params| params.not_after = date_time_ymd(2026, 11, 1))), ProofError::Time),
        ("not yet", of(&issue(&authority, |params| params.not_before = date_time_ymd(2027, 1, 1))), ProofError::Time),
        ("of another connection", proved(&world, &good, |bound| bound.challenge = challenge(2)), signature.clone()),
        ("of another machine", proved(&world, &good, |bound| bound.machine = machine(3)), signature.clone()),
        ("of another node key", proved(&world, &good, |bound| bound.node = node_key(3)), signature.clone()),
        ("for another server", proved(&world, &good, |bound| bound.server = machine(9)), signature.clone()),
        ("somebody else's certificate", swapped, signature.clone()),
        ("without a signature", unsigned, signature.clone()),
        ("cut", cut, ProofError::Form),
        ("with more certificates than were signed", chain, signature.clone()),
    ];
    for (what, request, expected) in cases {
        let answer = ask(&world, with_key(request, &key)).await;
        assert_eq!((answer.error, answer.machine_authorized), (expected.to_string(), false), "{what}");
        if world.control.registered(&node_key(2)).is_some() {
            assert!(!is_published(&world), "{what}");
        }
    }
    // The right one on a connection that began with nothing.
    let answer = world.control.register(machine(2), with_key(of(&good), &key), FROM).await;
    assert_eq!(answer.error, signature.to_string());
    assert_eq!(world.admin().machines(None).unwrap().len(), 1);
    // For a server it is not, whoever issued it.
    let server =
        issue(&authority, |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
    let answer = ask(&world, with_key(of(&server), &key)).await;
    assert!(answer.error.contains("cannot be used") && !is_published(&world), "{}", answer.error);
    assert!(ask(&world, with_key(of(&good), &key)).await.machine_authorized && is_published(&world));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_certificate_and_an_authority_that_is_gone_cut_off_at_once() {
    let authority = ca("one");
    let (world, id, key) = world(&authority).await;
    let admin = world.admin();
    let held = issue(&authority, |_| ());
    assert!(ask(&world, with_key(proved(&world, &held, |_| ()), &key)).await.machine_authorized);
    let view = admin.revoke_certificate(NETWORK, &id, "AB:CD").await.unwrap();
    assert_eq!((view.machines, is_published(&world)), (0, false));
    let again = ask(&world, proved(&world, &held, |_| ())).await;
    assert_eq!((again.error, again.machine_authorized), (ProofError::Revoked.to_string(), false));
    let other = issue(&authority, |params| params.serial_number = Some(SerialNumber::from(vec![0, 0x80, 1])));
    assert!(ask(&world, proved(&world, &other, |_| ())).await.machine_authorized && is_published(&world));
    assert_eq!(admin.end_machine_ca(NETWORK, &id).await.unwrap().machines, 1);
    assert!(!is_published(&world));
    // Without any authority certificates are not looked at; who was enrolled by hand stays.
    let answer = ask(&world, proved(&world, &other, |_| ())).await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", false));
    admin.enrol_machines(NETWORK, &[machine(2)], "").await.unwrap();
    admin.add_machine_ca(NETWORK, &ca("two").pem(), "").await.unwrap();
    let answer = ask(&world, proved(&world, &other, |_| ())).await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", true), "nor of who was");
    admin.add_machine_ca(NETWORK, &authority.pem(), "").await.unwrap();
    assert!(ask(&world, proved(&world, &other, |_| ())).await.machine_authorized);
    admin.end_machine_ca(NETWORK, &id).await.unwrap();
    assert!(is_published(&world));
}

/// A stolen machine goes on asking, with the certificate that it has.
#[tokio::test(start_paused = true)]
async fn a_machine_that_is_ended_does_not_enrol_itself_again() {
    let authority = ca("one");
    let (world, _, key) = world(&authority).await;
    let held = issue(&authority, |_| ());
    assert!(
        ask(&world, with_key(proved(&world, &held, |_| ()), &key)).await.machine_authorized && is_published(&world)
    );
    world.admin().end_enrolment(NETWORK, machine(2)).await.unwrap();
    let again = ask(&world, proved(&world, &held, |_| ())).await;
    assert_eq!((again.error, again.machine_authorized), (ProofError::Revoked.to_string(), false));
    assert!(!is_published(&world));
}

/// Nor with one that nobody knows of; by hand it comes back.
#[tokio::test(start_paused = true)]
async fn a_machine_that_is_ended_does_not_come_back_with_another_certificate() {
    let authority = ca("one");
    let (world, id, key) = world(&authority).await;
    let other = issue(&authority, |params| params.serial_number = Some(SerialNumber::from(vec![7])));
    assert!(ask(&world, with_key(proved(&world, &issue(&authority, |_| ()), |_| ()), &key)).await.machine_authorized);
    let shown = |world: &World| {
        let machines = world.admin().machines(None).unwrap();
        machines.into_iter().find(|shown| shown.key == machine(2)).unwrap()
    };
    let proof = shown(&world).proof.unwrap();
    assert_eq!((proof.ca.as_str(), proof.serial.as_str()), (id.as_str(), "abcd"));
    let ended = world.admin().end_enrolment(NETWORK, machine(2)).await.unwrap();
    assert!(ended.ended.is_some() && ended.proof.is_none());
    assert_eq!(world.admin().tailnets()[0].enrolled, 1, "the first one alone");
    // Over a restart, too.
    let world = world.restart(Duration::from_secs(60)).await;
    for _ in 0..2 {
        let again = ask(&world, proved(&world, &other, |_| ())).await;
        assert_eq!((again.error, again.machine_authorized), (ProofError::Ended.to_string(), false));
        assert!(!is_published(&world));
    }
    assert!(shown(&world).ended.is_some());
    world.admin().enrol_machines(NETWORK, &[machine(2)], "it was found").await.unwrap();
    assert!(is_published(&world) && shown(&world).ended.is_none());
    // Ended by hand as enrolled by hand.
    world.admin().end_enrolment(NETWORK, machine(2)).await.unwrap();
    assert_eq!(ask(&world, proved(&world, &other, |_| ())).await.error, ProofError::Ended.to_string());
    // Where enrolment is not asked for it takes part as anybody.
    world.admin().set_only_enrolled(NETWORK, false).await.unwrap();
    let answer = ask(&world, proved(&world, &other, |_| ())).await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", true));
}

/// An authority that renewed its own certificate is known by two.
#[tokio::test(start_paused = true)]
async fn revoking_reaches_what_rests_on_another_certificate_of_the_same_authority() {
    let key = KeyPair::generate().unwrap();
    let twin = |key: &KeyPair| ca_with("one", KeyPair::from_pem(&key.serialize_pem()).unwrap());
    let (first, second) = (twin(&key), twin(&key));
    let (world, id, auth) = world(&first).await;
    let other = world.admin().add_machine_ca(NETWORK, &second.pem(), "").await.unwrap().id;
    assert_ne!(id, other);
    let held = issue(&first, |_| ());
    assert!(ask(&world, with_key(proved(&world, &held, |_| ()), &auth)).await.machine_authorized);
    let used = world.admin().machines(None).unwrap().into_iter().find_map(|machine| machine.proof).unwrap().ca;
    let unused = if used == id { &other } else { &id };
    world.admin().revoke_certificate(NETWORK, unused, "abcd").await.unwrap();
    assert!(!is_published(&world));
    assert_eq!(ask(&world, proved(&world, &held, |_| ())).await.error, ProofError::Revoked.to_string());
    // Another authority's certificate may have the same number.
    let stranger = ca("two");
    let third = world.admin().add_machine_ca(NETWORK, &stranger.pem(), "").await.unwrap().id;
    assert!(ask(&world, proved(&world, &issue(&stranger, |_| ()), |_| ())).await.machine_authorized);
    world.admin().revoke_certificate(NETWORK, &third, "abce").await.unwrap();
    world.admin().revoke_certificate(NETWORK, &used, "abcd").await.unwrap();
    assert!(is_published(&world));
}

/// What an authority in between issued falls with it at once.
#[tokio::test(start_paused = true)]
async fn revoking_an_authority_in_between_cuts_off_who_rests_on_it() {
    let root = ca("one");
    let (world, id, auth) = world(&root).await;
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "between");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serial_number = Some(SerialNumber::from(vec![0x42]));
    let between = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let mut held = issue(&between, |_| ());
    held.der.extend_from_slice(between.der());
    let answer = ask(&world, with_key(proved(&world, &held, |_| ()), &auth)).await;
    assert!(answer.machine_authorized && is_published(&world), "{answer:?}");
    world.admin().revoke_certificate(NETWORK, &id, "42").await.unwrap();
    assert!(!is_published(&world));
}

#[tokio::test(start_paused = true)]
async fn certificates_enrol_no_more_machines_than_a_network_may_have() {
    let authority = ca("one");
    let (world, _, key) = world(&authority).await;
    let number = |number: usize| {
        let mut bytes = [0xee; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        MachineKey::from_bytes(bytes)
    };
    let (admin, all) = (world.admin(), crate::tailnet::work::MACHINES_MAX);
    let keys: Vec<_> = (1..all).map(number).collect();
    for part in keys.chunks(1000) {
        admin.enrol_machines(NETWORK, part, "").await.unwrap();
    }
    assert!(admin.enrol_machines(NETWORK, &[number(all)], "").await.is_err());
    let held = issue(&authority, |_| ());
    let answer = ask(&world, with_key(proved(&world, &held, |_| ()), &key)).await;
    assert_eq!((answer.error, answer.machine_authorized), (ProofError::TooMany.to_string(), false));
    assert!(!is_published(&world));
}

/// The database fails, and time goes on.
#[tokio::test(start_paused = true)]
async fn a_certificate_that_ends_cuts_off_also_while_nothing_can_be_stored() {
    let authority = ca("one");
    let (world, _, key) = world(&authority).await;
    let held = issue(&authority, |params| params.not_after = date_time_ymd(2026, 11, 24));
    assert!(ask(&world, with_key(proved(&world, &held, |_| ()), &key)).await.machine_authorized);
    let store = world.control.store().clone();
    let set = async |statement: &'static str| {
        store.read(move |connection| Ok(connection.execute_batch(statement)?)).await.unwrap();
    };
    set("CREATE TEMP TRIGGER full BEFORE DELETE ON machine BEGIN SELECT RAISE(FAIL, 'the disk is full'); END").await;
    assert!(is_published(&world));
    let before = world.control.tailnets()[0].snapshot().number;
    tokio::time::sleep(Duration::from_secs(2 * 86_400)).await;
    assert!(!is_published(&world), "in memory it has ended");
    assert!(
        world.admin().machines(None).unwrap().iter().any(|machine| machine.proof.is_some()),
        "and not in the store"
    );
    assert!(world.control.tailnets()[0].snapshot().number < before + 20, "nobody is told again and again");
    set("DROP TRIGGER full").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!is_published(&world));
    assert!(world.admin().machines(None).unwrap().iter().all(|machine| machine.proof.is_none()), "then it is stored");
}

#[test]
fn an_authority_is_who_may_issue_certificates_to_clients() {
    use rcgen::{ExtendedKeyUsagePurpose as Purpose, KeyUsagePurpose as Usage};
    let pem = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new(vec!["one.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    };
    let no_authority = |params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa;
    let says_nothing = |params: &mut CertificateParams| params.is_ca = IsCa::NoCa;
    let constrained = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let usage = |usages: &'static [Usage]| move |params: &mut CertificateParams| params.key_usages = usages.to_vec();
    let purpose = |purposes: &'static [Purpose]| {
        move |params: &mut CertificateParams| params.extended_key_usages = purposes.to_vec()
    };
    let both = usage(&[Usage::DigitalSignature, Usage::KeyCertSign, Usage::CrlSign]);
    type Change<'a> = &'a dyn Fn(&mut CertificateParams);
    let cases: [(&str, Change<'_>, bool); 10] = [
        ("an ordinary one", &|_| (), true),
        ("of no authority", &no_authority, false),
        ("that says nothing", &says_nothing, false),
        ("of an authority without others below it", &constrained, true),
        ("for all that authorities do", &both, true),
        ("for signatures alone", &usage(&[Usage::DigitalSignature]), false),
        ("for lists of revoked ones alone", &usage(&[Usage::CrlSign]), false),
        ("for servers alone", &purpose(&[Purpose::ServerAuth]), false),
        ("for clients, too", &purpose(&[Purpose::ServerAuth, Purpose::ClientAuth]), true),
        ("for anything", &purpose(&[Purpose::Any]), true),
    ];
    for (what, change, expected) in cases {
        assert_eq!(read_ca(&pem(change)).is_some(), expected, "{what}");
    }
    let never = read_ca(&pem(&|params| params.not_after = date_time_ymd(9999, 12, 31))).unwrap();
    assert_eq!(never.until, Timestamp::MAX);
}

/// Whatever the bytes, it answers.
#[test]
fn a_certificate_that_is_cut_or_bent_is_read_without_a_panic() {
    let der = ca("one").der().to_vec();
    for length in 0..der.len() {
        assert_eq!(may_issue(&der[..length]), None, "cut at {length}");
    }
    for at in 0..der.len() {
        for value in [0, 1, 0x7f, 0x80, 0x82, 0xff] {
            let mut bent = der.clone();
            bent[at] = value;
            let _ = (may_issue(&bent), not_after(&bent));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn authorities_are_certificates_and_few() {
    let authority = ca("one");
    let (world, id, _) = world(&authority).await;
    let admin = world.admin();
    let add = async |pem: &str| admin.add_machine_ca(NETWORK, pem, "").await;
    for wrong in
        ["", "nonsense", &authority.pem().repeat(2), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    {
        assert!(add(wrong).await.is_err(), "{wrong}");
    }
    assert!(add(&authority.pem()).await.is_err(), "it is there already");
    for number in 1..9 {
        assert_eq!(add(&ca(&number.to_string()).pem()).await.is_ok(), number < 8, "{number}");
    }
    for wrong in ["", "0", "xyz", &"a".repeat(43)] {
        assert!(admin.revoke_certificate(NETWORK, &id, wrong).await.is_err(), "{wrong}");
    }
    drop(admin);
    let world = world.restart(Duration::from_secs(1)).await;
    let shown = world.admin().machine_cas(None).unwrap();
    assert!(shown.len() == 8 && shown.iter().any(|ca| ca.description == "laptops"), "{shown:?}");
}

#[test]
fn the_end_of_a_certificate_is_read_in_both_forms() {
    let authority = ca("one");
    for (year, text) in [(2049, "2049-05-06T00:00:00Z"), (2050, "2050-05-06T00:00:00Z"), (4096, "4096-05-06T00:00:00Z")]
    {
        let held = issue(&authority, |params| params.not_after = date_time_ymd(year, 5, 6));
        assert_eq!(not_after(&held.der).unwrap().to_string(), text);
    }
    // "99991231235959Z", by which RFC 5280 says that there is no end.
    let held = issue(&authority, |params| params.not_after = date_time_ymd(9999, 12, 31));
    assert_eq!(not_after(&held.der), Some(Timestamp::MAX));
    let der = issue(&authority, |_| ()).der;
    for length in 0..der.len() {
        assert_eq!(not_after(&der[..length]), None, "cut at {length}");
    }
}
