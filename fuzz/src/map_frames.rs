//! The framing and compression of the map stream.

use warren_wire::mapframe::{Compression, DecodeError, Decoder, encode};

use crate::input::Input;

/// Small enough for many inputs a second.
const PAYLOAD_MAX: usize = 64 << 10;
const JSON_MAX: usize = 256 << 10;

/// Reads `data`, behind a byte that chooses the compression and one for the size of pieces, as a stream, at once and in
/// pieces; then puts it into a frame and reads that.
pub fn map_frames(data: &[u8]) {
    let mut input = Input::new(data);
    let compression = if input.byte().is_multiple_of(2) { Compression::None } else { Compression::Zstd };
    let piece = usize::from(input.byte()) + 1;
    let data = input.rest();

    let whole = documents(data, data.len().max(1), compression);
    assert_eq!(documents(data, piece, compression), whole, "pieces of {piece} bytes read otherwise");

    if (1..PAYLOAD_MAX / 2).contains(&data.len()) {
        let frame = encode(data, compression).expect("a document of some bytes");
        assert_eq!(documents(&frame, piece, compression), (vec![data.to_vec()], Ok(true)));
    }
}

/// Returns the documents of a stream, and whether it ends between two frames or why it does not go on.
fn documents(stream: &[u8], piece: usize, compression: Compression) -> (Vec<Vec<u8>>, Result<bool, DecodeError>) {
    let mut decoder = Decoder::with_limits(compression, PAYLOAD_MAX, JSON_MAX);
    let mut found = Vec::new();
    for mut piece in stream.chunks(piece) {
        loop {
            match decoder.next_document(&mut piece) {
                Ok(Some(document)) => {
                    assert!(document.len() <= JSON_MAX);
                    found.push(document);
                }
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
        assert!(piece.is_empty(), "bytes are left though no document is complete");
    }
    (found, Ok(decoder.is_between_frames()))
}
