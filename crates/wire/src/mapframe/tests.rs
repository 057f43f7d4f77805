use super::*;
use proptest::prelude::*;

/// Feeds `stream` in pieces of `step` bytes and collects the documents.
fn decode_all(decoder: &mut Decoder, stream: &[u8], step: usize) -> Result<Vec<Vec<u8>>, DecodeError> {
    let mut documents = Vec::new();
    for mut piece in stream.chunks(step) {
        while let Some(json) = decoder.next_document(&mut piece)? {
            documents.push(json);
        }
        assert!(piece.is_empty());
    }
    Ok(documents)
}

#[test]
fn plain_frame_is_length_and_text() {
    assert_eq!(encode(b"{}", Compression::None).unwrap(), b"\x02\0\0\0{}");
}

#[test]
fn empty_documents_are_not_framed() {
    assert_eq!(encode(b"", Compression::Zstd), Err(EncodeError::Empty));
    let mut input: &[u8] = &[0, 0, 0, 0];
    assert_eq!(Decoder::new(Compression::None).next_document(&mut input), Err(DecodeError::Empty));
}

#[test]
fn long_frames_are_refused_by_their_header() {
    let mut input: &[u8] = &[0xff, 0xff, 0xff, 0xff];
    let limit = PAYLOAD_MAX_BYTES;
    assert_eq!(
        Decoder::new(Compression::Zstd).next_document(&mut input),
        Err(DecodeError::PayloadTooLarge { size: 0xffff_ffff, limit })
    );
}

#[test]
fn documents_that_unpack_too_large_are_refused() {
    let bomb = encode(&vec![b' '; 1 << 20], Compression::Zstd).unwrap();
    assert!(bomb.len() < 1000);
    let exact = decode_all(&mut Decoder::with_limits(Compression::Zstd, 1000, 1 << 20), &bomb, 4096);
    assert_eq!(exact.unwrap()[0].len(), 1 << 20);
    let limit = (1 << 20) - 1;
    assert_eq!(
        decode_all(&mut Decoder::with_limits(Compression::Zstd, 1000, limit), &bomb, 4096),
        Err(DecodeError::DocumentTooLarge { limit })
    );
}

#[test]
fn cut_and_joined_zstd_frames_are_refused() {
    let whole = encode(br#"{"KeepAlive":true}"#, Compression::Zstd).unwrap();
    let payload = &whole[4..];
    let mut bad: Vec<Vec<u8>> = (1..payload.len()).map(|length| payload[..length].to_vec()).collect();
    bad.extend([[payload, payload].concat(), b"{}".to_vec()]);
    for bad in bad {
        let framed = frame(&bad).unwrap();
        assert_eq!(decode_all(&mut Decoder::new(Compression::Zstd), &framed, 4096), Err(DecodeError::Zstd));
    }
}

/// A frame header that states a window of 2 GiB.
#[test]
fn large_windows_are_refused() {
    let framed = frame(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00]).unwrap();
    assert_eq!(decode_all(&mut Decoder::new(Compression::Zstd), &framed, 4096), Err(DecodeError::Zstd));
}

#[test]
fn end_inside_a_frame_shows() {
    let mut decoder = Decoder::new(Compression::None);
    assert!(decoder.is_between_frames());
    assert_eq!(decode_all(&mut decoder, b"\x02\0\0\0{", 1), Ok(vec![]));
    assert!(!decoder.is_between_frames());
    assert_eq!(decode_all(&mut decoder, b"}", 1), Ok(vec![b"{}".to_vec()]));
    assert!(decoder.is_between_frames());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn streams_round_trip_however_they_are_cut(
        documents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..5),
        step in 1_usize..50,
        packed: bool,
    ) {
        let compression = if packed { Compression::Zstd } else { Compression::None };
        let mut encoder = Encoder::new(compression).unwrap();
        let stream: Vec<u8> = documents.iter().flat_map(|json| encoder.encode(json).unwrap()).collect();
        prop_assert_eq!(decode_all(&mut Decoder::new(compression), &stream, step), Ok(documents));
    }

    #[test]
    fn decoding_never_panics(stream in proptest::collection::vec(any::<u8>(), 0..200), header in 0_u8..60, packed: bool) {
        let compression = if packed { Compression::Zstd } else { Compression::None };
        let framed = [&[header, 0, 0, 0], stream.as_slice()].concat();
        let _ = decode_all(&mut Decoder::with_limits(compression, 1 << 16, 1 << 16), &framed, 7);
    }
}
