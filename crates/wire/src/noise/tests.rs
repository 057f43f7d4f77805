use super::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The vector of the protocol page: keys are repeated bytes, version 145.
#[test]
fn handshake_and_records_equal_the_vector() {
    let client = MachineSecret::from_bytes([0x11; 32]);
    let server = MachineSecret::from_bytes([0x22; 32]);
    let (initiator, initiation) = Initiator::new(145, &client, &server.public(), [0x33; 32]).unwrap();
    assert_eq!(
        initiation.to_vec(),
        hex(
            "00910100607b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b1461d2949213e755bc180b5d5dbbd8c50a2a1beb69f8940d24cab4606a34cd5d41eebe5d833461d4b6b4658416ef6fdc3a92f6a14fa59d716285af13dddfd36d8f"
        )
    );
    let accepted = respond(&server, &initiation, [0x44; 32]).unwrap();
    assert_eq!(accepted.version, 145);
    assert_eq!(accepted.machine, client.public());
    assert_eq!(
        accepted.response.to_vec(),
        hex("020030ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6bab841131869e7156986c93b16af8a123")
    );
    let transport = initiator.finish(&accepted.response).unwrap();
    let hash = hex("a77464c2c58bd4e4170e80e37fff1de91d8a94d752b7a5763426e8684f74176a");
    assert_eq!(transport.handshake_hash().to_vec(), hash);
    assert_eq!(accepted.transport.handshake_hash().to_vec(), hash);

    let (mut sealer, _) = transport.split();
    let mut records = Vec::new();
    sealer.seal(b"hello", &mut records).unwrap();
    sealer.seal(b"hello", &mut records).unwrap();
    // The second record is the one that catches a little-endian counter.
    let expected = "0400158dbec8f77738728dd69aca7e58427c2321d84a26dd0400159a34eea1a726ca903114b745d1ab1163aa8ed5843e";
    assert_eq!(records, hex(expected));
    let (mut answerer, mut opener) = accepted.transport.split();
    let other_way: [u8; 32] =
        hex("df92698929c58533e6973a3e010a3c8e4e1d394f1c9c198788b496512c6bb48a").try_into().unwrap();
    let (mut answer, mut expected) = (Vec::new(), Vec::new());
    answerer.seal(b"hello", &mut answer).unwrap();
    Sealer::new(&other_way).seal(b"hello", &mut expected).unwrap();
    assert_eq!(answer, expected);
    for record in records.chunks_mut(24) {
        assert_eq!(record_length([record[0], record[1], record[2]]), Ok(21));
        assert_eq!(opener.open(&mut record[3..]).unwrap(), b"hello");
    }
}

/// An independent implementation of Noise accepts our first message and makes a response that we accept.
#[test]
fn snow_completes_our_handshake() {
    let client = MachineSecret::from_bytes([1; 32]);
    let server = MachineSecret::from_bytes([2; 32]);
    let (initiator, initiation) = Initiator::new(130, &client, &server.public(), [3; 32]).unwrap();
    let mut snow = snow::Builder::new("Noise_IK_25519_ChaChaPoly_BLAKE2s".parse().unwrap())
        .prologue(b"Tailscale Control Protocol v130")
        .unwrap()
        .local_private_key(server.expose_bytes())
        .unwrap()
        .build_responder()
        .unwrap();
    assert_eq!(snow.read_message(&initiation[5..], &mut [0; 64]), Ok(0));
    assert_eq!(snow.get_remote_static(), Some(client.public().as_bytes().as_slice()));
    let mut response = [0; 64];
    let length = snow.write_message(&[], &mut response).unwrap();
    let mut frame = vec![2, 0, 48];
    frame.extend_from_slice(&response[..length]);
    let transport = initiator.finish(&frame).unwrap();
    assert_eq!(snow.get_handshake_hash(), transport.handshake_hash());
}

#[test]
fn another_server_key_fails_without_a_hint() {
    let client = MachineSecret::from_bytes([1; 32]);
    let (_, initiation) = Initiator::new(130, &client, &MachineSecret::from_bytes([2; 32]).public(), [3; 32]).unwrap();
    let other = MachineSecret::from_bytes([9; 32]);
    assert_eq!(respond(&other, &initiation, [4; 32]).unwrap_err(), NoiseError::Decrypt);
}

#[test]
fn version_changed_on_the_way_fails() {
    let server = MachineSecret::from_bytes([2; 32]);
    let (_, mut initiation) =
        Initiator::new(130, &MachineSecret::from_bytes([1; 32]), &server.public(), [3; 32]).unwrap();
    initiation[1] -= 1;
    assert_eq!(respond(&server, &initiation, [4; 32]).unwrap_err(), NoiseError::Decrypt);
}

#[test]
fn error_frame_reaches_the_initiator() {
    let server = MachineSecret::from_bytes([2; 32]).public();
    let (initiator, _) = Initiator::new(130, &MachineSecret::from_bytes([1; 32]), &server, [3; 32]).unwrap();
    let refused = initiator.finish(&error_frame("client too old")).unwrap_err();
    assert_eq!(refused, NoiseError::Refused("client too old".to_owned()));
    let (initiator, _) = Initiator::new(130, &MachineSecret::from_bytes([1; 32]), &server, [3; 32]).unwrap();
    let refused = initiator.finish(&error_frame("\u{1b}[2Jpwned\r\n")).unwrap_err();
    assert_eq!(refused, NoiseError::Refused("\u{fffd}[2Jpwned\u{fffd}\u{fffd}".to_owned()));
}

#[test]
fn low_order_server_key_is_refused() {
    let error = Initiator::new(130, &MachineSecret::from_bytes([1; 32]), &MachineKey::default(), [3; 32]).unwrap_err();
    assert_eq!(error, NoiseError::WeakKey);
}

#[test]
fn long_plaintext_and_long_record_are_refused() {
    let (mut sealer, _) = pair().0.split();
    let error = sealer.seal(&[0; PLAINTEXT_MAX + 1], &mut Vec::new()).unwrap_err();
    assert_eq!(error, NoiseError::PlaintextTooLong { len: PLAINTEXT_MAX + 1 });
    assert_eq!(record_length([4, 0x0f, 0xfe]), Err(NoiseError::RecordTooLong { len: 4094 }));
    assert_eq!(record_length([5, 0, 16]), Err(NoiseError::Type { found: 5, wanted: 4 }));
}

#[test]
fn early_payload_is_told_from_http2() {
    let payload = EarlyPayload { node_key_challenge: Some(crate::key::ChallengeKey::from_bytes([7; 32])) };
    let bytes = payload.encode();
    let (header, json) = bytes.split_first_chunk().unwrap();
    assert_eq!(EarlyPayload::parse_header(*header), Some(json.len()));
    assert_eq!(json.len(), 95);
    assert_eq!(EarlyPayload::decode(json), Some(payload));
    // A SETTINGS frame of HTTP/2.
    assert_eq!(EarlyPayload::parse_header([0, 0, 6, 4, 0, 0, 0, 0, 0]), None);
}

fn pair() -> (Transport, Transport) {
    let server = MachineSecret::from_bytes([2; 32]);
    let (initiator, initiation) =
        Initiator::new(130, &MachineSecret::from_bytes([1; 32]), &server.public(), [3; 32]).unwrap();
    let accepted = respond(&server, &initiation, [4; 32]).unwrap();
    (initiator.finish(&accepted.response).unwrap(), accepted.transport)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_round_trip_in_order(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..500), 1..8)) {
        let (client, server) = pair();
        let (mut sealer, _) = client.split();
        let (_, mut opener) = server.split();
        for message in messages {
            let mut record = Vec::new();
            sealer.seal(&message, &mut record).unwrap();
            prop_assert_eq!(opener.open(&mut record[3..]).unwrap(), message.as_slice());
        }
    }

    #[test]
    fn changed_or_repeated_record_kills_the_direction(at in 0_usize..24, bit in 0_u8..8) {
        let (client, server) = pair();
        let (mut sealer, _) = client.split();
        let (_, mut opener) = server.split();
        let mut record = Vec::new();
        sealer.seal(b"12345678", &mut record).unwrap();
        let mut again = record.clone();
        opener.open(&mut record[3..]).unwrap();
        prop_assert_eq!(opener.open(&mut again.clone()[3..]).unwrap_err(), NoiseError::Decrypt);
        again[3 + at] ^= 1 << bit;
        prop_assert_eq!(opener.open(&mut again[3..]).unwrap_err(), NoiseError::Decrypt);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let server = MachineSecret::from_bytes([2; 32]);
        prop_assert!(respond(&server, &bytes, [4; 32]).is_err());
        let (initiator, _) = Initiator::new(130, &MachineSecret::from_bytes([1; 32]), &server.public(), [3; 32]).unwrap();
        prop_assert!(initiator.finish(&bytes).is_err());
    }

    /// A valid header in front, so that the cryptography behind it is reached.
    #[test]
    fn no_initiation_shaped_bytes_panic(body in proptest::collection::vec(any::<u8>(), 96)) {
        let server = MachineSecret::from_bytes([2; 32]);
        let mut bytes = vec![0, 130, 1, 0, 96];
        bytes.extend(body);
        prop_assert!(respond(&server, &bytes, [4; 32]).is_err());
    }
}
