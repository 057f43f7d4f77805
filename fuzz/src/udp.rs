//! What comes over UDP beside WireGuard: STUN and disco, and telling them apart.

use std::net::SocketAddr;
use std::sync::LazyLock;

use warren_wire::datagram::{Class, classify};
use warren_wire::key::{DiscoKey, DiscoSecret};
use warren_wire::nacl::SharedBox;
use warren_wire::{disco, geneve, stun};

/// Sorts a datagram, and checks what each class promises to whoever handles it.
pub fn datagram(data: &[u8]) {
    match classify(data) {
        Class::Stun => assert!(stun::is_stun(data)),
        Class::Disco => assert!(disco::peek(data).is_some(), "a disco envelope names its sender"),
        Class::GeneveDisco => assert!(data.get(geneve::HEADER_BYTES..).and_then(disco::peek).is_some()),
        Class::WireGuard | Class::GeneveWireGuard => {
            assert!(!stun::is_stun(data) && !disco::looks_like_disco(data));
        }
    }
    if let Some((header, rest)) = geneve::Header::decode(data) {
        assert!(header.vni <= geneve::MAX_VNI);
        assert_eq!(header.wrap(rest), data);
    }
}

/// The sender's key, and what both share.
static ALICE_TO_BOB: LazyLock<(DiscoKey, SharedBox)> = LazyLock::new(|| {
    let (alice, bob) = (DiscoSecret::from_bytes([1; 32]), DiscoSecret::from_bytes([2; 32]));
    let shared = alice.diffie_hellman(bob.public().as_bytes()).expect("two honest keys");
    (alice.public(), SharedBox::new(&shared))
});

/// Reads `data` as a message, then as an envelope of anybody, then the message sealed into an envelope of ours.
pub fn disco(data: &[u8]) {
    let (alice, shared) = &*ALICE_TO_BOB;
    if disco::peek(data).is_some() {
        let _ = disco::open(shared, data);
    }
    if let Ok(message) = disco::Message::decode(data) {
        let envelope = disco::seal(shared, alice, &[3; 24], &message);
        assert_eq!(disco::peek(&envelope), Some(*alice));
        assert_eq!(disco::open(shared, &envelope), Ok(message));
    }
}

/// Reads `data` as request and as answer; a request that is accepted and an address that is read must round-trip.
pub fn stun(data: &[u8]) {
    if let Ok(id) = stun::parse_request(data) {
        assert_eq!(stun::parse_request(&stun::request(&id)), Ok(id));
        let from = SocketAddr::from(([192, 0, 2, 1], 3478));
        assert_eq!(stun::parse_response(&stun::response(&id, from)), Ok((id, from)));
    }
    if let Ok((id, address)) = stun::parse_response(data) {
        assert_eq!(stun::parse_response(&stun::response(&id, address)), Ok((id, address)));
    }
}
