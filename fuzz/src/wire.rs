//! Decoders of `warren-wire`.

use std::net::SocketAddr;

use warren_wire::datagram::{Class, classify};
use warren_wire::derp::{self, Frame, Reader};
use warren_wire::key::{DiscoSecret, MachineSecret, NodeSecret};
use warren_wire::nacl::SharedBox;
use warren_wire::noise::{
    self, EARLY_HEADER_BYTES, EarlyPayload, HEADER_BYTES, INITIATION_BYTES, Initiator, Opener, PLAINTEXT_MAX,
    RESPONSE_BYTES, Sealer,
};
use warren_wire::{disco, stun};

/// Every target by name, with its function.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("datagram", datagram),
    ("derp_frames", derp_frames),
    ("disco", disco),
    ("noise_handshake", noise_handshake),
    ("noise_records", noise_records),
    ("stun", stun),
];

/// Sorts a datagram, and checks what each class promises to whoever handles it.
pub fn datagram(data: &[u8]) {
    match classify(data) {
        Class::Stun => assert!(stun::is_stun(data)),
        Class::Disco => assert!(disco::peek(data).is_some(), "a disco envelope names its sender"),
        Class::GeneveDisco => assert!(data.get(8..).and_then(disco::peek).is_some()),
        _ => assert!(!stun::is_stun(data) && !disco::looks_like_disco(data)),
    }
}

/// Cuts `data`, behind a byte that chooses the reader, into frames; every frame must come back from its own bytes.
pub fn derp_frames(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let reader = match choice % 3 {
        0 => Reader::ServerHandshake,
        1 => Reader::Server,
        _ => Reader::Client,
    };
    let secret = NodeSecret::from_bytes([1; 32]);
    while let Some((header, behind)) = rest.split_first_chunk() {
        let Ok((kind, length)) = derp::parse_header(*header, reader) else { return };
        assert!(length <= reader.limit(kind));
        let Some((payload, behind)) = behind.split_at_checked(length) else { return };
        rest = behind;
        let Ok(frame) = Frame::decode(kind, payload) else { continue };
        if let Frame::ClientInfo { key, sealed } = frame {
            drop(derp::open_info::<derp::ClientInfo>(sealed, &secret, &key));
        }
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let (header, payload) = bytes.split_first_chunk().expect("an encoded frame has a header");
        let (kind, length) = derp::parse_header(*header, reader).expect("what was read is not over the limit");
        assert_eq!(length, payload.len());
        assert_eq!(Frame::decode(kind, payload), Ok(frame));
    }
}

/// Reads `data` as a message, then as an envelope of anybody, then the message sealed into an envelope of ours.
pub fn disco(data: &[u8]) {
    let alice = DiscoSecret::from_bytes([1; 32]);
    let bob = DiscoSecret::from_bytes([2; 32]);
    let shared = SharedBox::new(&alice.diffie_hellman(bob.public().as_bytes()).expect("two honest keys"));
    if disco::peek(data).is_some() {
        let _ = disco::open(&shared, data);
    }
    if let Ok(message) = disco::Message::decode(data) {
        let envelope = disco::seal(&shared, &alice.public(), &[3; 24], &message);
        assert_eq!(disco::peek(&envelope), Some(alice.public()));
        assert_eq!(disco::open(&shared, &envelope), Ok(message));
    }
}

/// The first messages of both sides, and the early payload. The first byte chooses; the rest changes a valid message, or
/// replaces it where it is longer.
pub fn noise_handshake(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let (server, machine) = (MachineSecret::from_bytes([2; 32]), MachineSecret::from_bytes([1; 32]));
    let (initiator, initiation): (_, [u8; INITIATION_BYTES]) =
        Initiator::new(130, &machine, &server.public(), [3; 32]).expect("two honest keys");
    match choice % 4 {
        0 => drop(noise::respond(&server, data, [4; 32])),
        1 => {
            let changed = changed(&initiation, data);
            let accepted = noise::respond(&server, &changed, [4; 32]);
            assert_eq!(accepted.is_ok(), changed == initiation, "a changed initiation is accepted");
        }
        2 => {
            let response: [u8; RESPONSE_BYTES] =
                noise::respond(&server, &initiation, [4; 32]).expect("an honest initiation").response;
            let changed = changed(&response, data);
            assert_eq!(initiator.finish(&changed).is_ok(), changed == response, "a changed response is accepted");
        }
        _ => {
            drop(initiator.finish(data));
            if let Some((header, json)) = data.split_first_chunk::<EARLY_HEADER_BYTES>() {
                let _ = EarlyPayload::parse_header(*header);
                let _ = EarlyPayload::decode(json);
            }
        }
    }
}

/// XORs `mask` over `bytes`; what is longer is appended.
fn changed(bytes: &[u8], mask: &[u8]) -> Vec<u8> {
    let over = bytes.iter().zip(mask.iter().chain(std::iter::repeat(&0))).map(|(byte, mask)| byte ^ mask);
    over.chain(mask.iter().skip(bytes.len()).copied()).collect()
}

/// Reads `data` as a stream of records; then seals it and reads that.
pub fn noise_records(data: &[u8]) {
    let (server, machine) = (MachineSecret::from_bytes([2; 32]), MachineSecret::from_bytes([1; 32]));
    let (initiator, initiation) = Initiator::new(130, &machine, &server.public(), [3; 32]).expect("two honest keys");
    let accepted = noise::respond(&server, &initiation, [4; 32]).expect("an honest initiation");
    let (mut sealer, mut strangers) = initiator.finish(&accepted.response).expect("an honest response").split();
    let (_, mut opener): (Sealer, Opener) = accepted.transport.split();

    assert!(read_records(&mut strangers, data.to_vec()).is_empty(), "a record that nobody sealed opens");
    let mut sealed = Vec::new();
    for chunk in data.chunks(PLAINTEXT_MAX) {
        sealer.seal(chunk, &mut sealed).expect("a chunk of the right size");
    }
    assert_eq!(read_records(&mut opener, sealed), data);
}

/// Opens records until one is not whole or does not open.
fn read_records(opener: &mut Opener, mut stream: Vec<u8>) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = stream.as_mut_slice();
    while let Some((header, behind)) = rest.split_first_chunk_mut::<HEADER_BYTES>() {
        let Ok(length) = noise::record_length(*header) else { break };
        let Some((record, behind)) = behind.split_at_mut_checked(length) else { break };
        rest = behind;
        let Ok(opened) = opener.open(record) else { break };
        plain.extend_from_slice(opened);
    }
    plain
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
