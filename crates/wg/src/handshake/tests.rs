use super::*;
use crate::session::{HEADROOM, Parts, Session, TAILROOM};
use snow::{Builder, HandshakeState, StatelessTransportState};
use std::time::Instant;

const TIME: Timestamp = [0x40, 0, 0, 0, 0x66, 1, 2, 3, 0, 0, 0, 9];

fn identity(number: u8) -> Identity {
    Identity::new(NodeSecret::from_bytes([number; 32]))
}

fn fresh(index: u32) -> Fresh {
    Fresh { ephemeral: Zeroizing::new([0x77; 32]), index, timestamp: TIME }
}

/// The other end, made by a general implementation of Noise.
fn oracle(own: &Identity, peer: Option<&NodeKey>) -> HandshakeState {
    let params = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().unwrap();
    let builder = Builder::new(params).prologue(IDENTIFIER).unwrap().psk(2, &[0; 32]).unwrap();
    let builder = builder.local_private_key(own.secret.expose_bytes()).unwrap();
    match peer {
        Some(peer) => builder.remote_public_key(peer.as_bytes()).unwrap().build_initiator().unwrap(),
        None => builder.build_responder().unwrap(),
    }
}

#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn session(finished: Finished, is_initiator: bool) -> (Session, Instant) {
    let Finished { sending, receiving, remote_index } = finished;
    let peer = NodeKey::default();
    let now = Instant::now();
    let session = Session::new(&Parts { peer, local_index: 1, remote_index, is_initiator, sending, receiving }, now);
    (session, now)
}

/// Sends packets both ways between our session and the oracle's.
fn exchange(session: &Session, now: Instant, oracle: &StatelessTransportState) {
    let send = |text: &[u8; 16], counter: u64| {
        let mut buffer = vec![0; HEADROOM + 16 + TAILROOM];
        buffer[HEADROOM..][..16].copy_from_slice(text);
        let length = session.seal(&mut buffer, 16, 1280, now).unwrap();
        assert_eq!(buffer[8..16], counter.to_le_bytes());
        let mut opened = [0; 64];
        let length = oracle.read_message(counter, &buffer[16..length], &mut opened).unwrap();
        assert_eq!(opened[..length], *text);
    };
    let receive = |text: &[u8], counter: u64| {
        let mut datagram = vec![0; 16 + text.len() + 16];
        datagram[0] = 4;
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        oracle.write_message(counter, text, &mut datagram[16..]).unwrap();
        let opened = session.open(&mut datagram, now).unwrap();
        assert_eq!(datagram[HEADROOM..][..opened.length], *text);
    };
    receive(b"sixteen bytes ->", 0);
    send(b"<- sixteen bytes", 0);
    send(b"<- and once more", 1);
    receive(b"", 7);
    receive(b"out of order", 3);
}

#[test]
fn initiator_agrees_with_a_general_noise_implementation() {
    let (us, them) = (identity(3), identity(4));
    let (pending, message) =
        initiate(&us, &them.public, &us.shared_with(&them.public).unwrap(), &fresh(0x0102_0304)).unwrap();
    assert_eq!(message.len(), INITIATION_BYTES - CODES_BYTES);
    assert_eq!(message[..8], [1, 0, 0, 0, 4, 3, 2, 1]);

    let mut oracle = oracle(&them, None);
    let mut payload = [0; 64];
    let length = oracle.read_message(&message[8..], &mut payload).unwrap();
    assert_eq!(payload[..length], TIME);
    assert_eq!(oracle.get_remote_static(), Some(us.public.as_bytes().as_slice()));

    let mut response = vec![2, 0, 0, 0, 0xaa, 0, 0, 0, 4, 3, 2, 1];
    let mut body = [0; 64];
    let length = oracle.write_message(&[], &mut body).unwrap();
    response.extend_from_slice(&body[..length]);
    assert_eq!(response.len(), RESPONSE_BYTES - CODES_BYTES);
    let finished = pending.finish(&us, &response).unwrap();
    assert_eq!(finished.remote_index, 0xaa);
    let (session, now) = session(finished, true);
    exchange(&session, now, &oracle.into_stateless_transport_mode().unwrap());
}

#[test]
fn responder_agrees_with_a_general_noise_implementation() {
    let (us, them) = (identity(5), identity(6));
    let mut oracle = oracle(&them, Some(&us.public));
    let mut initiation = vec![1, 0, 0, 0, 9, 0, 0, 0];
    let mut body = [0; 128];
    let length = oracle.write_message(&TIME, &mut body).unwrap();
    initiation.extend_from_slice(&body[..length]);
    initiation.resize(INITIATION_BYTES, 0);

    let claimed = read_claim(&us, &initiation).unwrap();
    assert_eq!((claimed.peer, claimed.sender_index), (them.public, 9));
    let proved = claimed.prove(&us.shared_with(&them.public).unwrap()).unwrap();
    assert_eq!(proved.timestamp, TIME);
    let (finished, response) = proved.respond(&Zeroizing::new([0x55; 32]), 0x0a0b_0c0d).unwrap();
    assert_eq!(response[..12], [2, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a, 9, 0, 0, 0]);
    assert_eq!(oracle.read_message(&response[12..], &mut [0; 16]), Ok(0));
    let (session, now) = session(finished, false);
    exchange(&session, now, &oracle.into_stateless_transport_mode().unwrap());
}

#[test]
fn every_changed_byte_is_noticed() {
    let (us, them) = (identity(7), identity(8));
    let shared = us.shared_with(&them.public).unwrap();
    let (pending, initiation) = initiate(&us, &them.public, &shared, &fresh(1)).unwrap();
    let initiation = [initiation, vec![0; CODES_BYTES]].concat();
    let prove = |message: &[u8]| read_claim(&them, message)?.prove(&shared);
    let (_, response) = prove(&initiation).unwrap().respond(&Zeroizing::new([1; 32]), 2).unwrap();
    assert!(pending.finish(&us, &response).is_some());
    // Type and indices are covered by the codes alone.
    for at in 8..INITIATION_BYTES - CODES_BYTES {
        let mut changed = initiation.clone();
        changed[at] ^= 1;
        assert!(prove(&changed).is_none(), "byte {at}");
    }
    for at in 12..RESPONSE_BYTES - CODES_BYTES {
        let mut changed = response.clone();
        changed[at] ^= 1;
        assert!(pending.finish(&us, &changed).is_none(), "byte {at}");
    }
}

#[test]
fn keys_of_low_order_make_no_secret() {
    let us = identity(9);
    for point in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        assert!(us.shared_with(&NodeKey::from_bytes(point)).is_none());
        let mut message = vec![0; INITIATION_BYTES];
        message[8..40].copy_from_slice(&point);
        assert!(read_claim(&us, &message).is_none());
    }
}
