//! DERP: frames, and the introductions sealed in two of them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_wire::derp::{self, ClientInfo, Frame, Reader, ServerInfo};
use warren_wire::key::NodeSecret;
use warren_wire::nacl::{NONCE_BYTES, SharedBox};

use crate::input::Input;

/// Cuts `data`, behind a byte that chooses the reader, into frames; every frame must come back from its own bytes.
pub fn frames(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let reader = match choice % 4 {
        0 => Reader::ServerHandshake,
        1 => Reader::Server,
        2 => Reader::Mesh,
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
            drop(derp::open_info::<ClientInfo>(sealed, &secret, &key));
        }
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let (header, payload) = bytes.split_first_chunk().expect("an encoded frame has a header");
        let (kind, length) = derp::parse_header(*header, reader).expect("what was read is not over the limit");
        assert_eq!(length, payload.len());
        assert_eq!(Frame::decode(kind, payload), Ok(frame));
    }
}

/// Seals `data`, behind a byte that chooses whose it is, as an introduction; what can be read must round-trip.
pub fn info(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => introduction::<ClientInfo>(input.rest()),
        _ => introduction::<ServerInfo>(input.rest()),
    }
}

fn introduction<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(json: &[u8]) {
    let (alice, bob) = (NodeSecret::from_bytes([1; 32]), NodeSecret::from_bytes([2; 32]));
    let shared = SharedBox::new(&alice.diffie_hellman(bob.public().as_bytes()).expect("two honest keys"));
    let nonce = [3; NONCE_BYTES];
    let sealed = [nonce.as_slice(), &shared.seal(&nonce, json)].concat();
    if let Some(info) = derp::open_info::<T>(&sealed, &bob, &alice.public()) {
        let again = derp::seal_info(&info, &alice, &bob.public(), nonce).expect("two honest keys");
        assert_eq!(derp::open_info(&again, &bob, &alice.public()), Some(info));
    }
}
