//! The encryption of the control channel.

use warren_wire::key::MachineSecret;
use warren_wire::noise::{
    self, EARLY_HEADER_BYTES, EarlyPayload, HEADER_BYTES, INITIATION_BYTES, Initiator, Opener, PLAINTEXT_MAX,
    RESPONSE_BYTES, Sealer,
};

use crate::input::changed;

/// The first messages of both sides, and the early payload. The first byte chooses; the rest changes a valid message, or
/// replaces it where it is longer.
pub fn handshake(data: &[u8]) {
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
                if let Some(payload) = EarlyPayload::decode(json) {
                    let bytes = payload.encode();
                    let (header, json) = bytes.split_first_chunk().expect("a header was written");
                    assert_eq!(EarlyPayload::parse_header(*header), Some(json.len()));
                    assert_eq!(EarlyPayload::decode(json), Some(payload));
                }
            }
        }
    }
}

/// Reads `data` as a stream of records; then seals it and reads that.
pub fn records(data: &[u8]) {
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
