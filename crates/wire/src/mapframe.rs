//! Frames of a map stream: a little-endian 32-bit length, then one JSON document, plain or as one whole zstd frame.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 4 | length of what follows, little-endian, never zero |
//! | length | JSON text, or exactly one zstd frame that holds it |
//!
//! Frames share no compression context. Source: Tailscale `control/controlclient`, `direct.go`.

use std::fmt;
use zstd::stream::raw::{DParameter, InBuffer, Operation as _, OutBuffer};

/// Largest payload of a frame that is read, in bytes as transmitted.
pub const PAYLOAD_MAX_BYTES: usize = 16 << 20;
/// Largest JSON document that is read out of a frame, in bytes.
pub const JSON_MAX_BYTES: usize = 64 << 20;
/// Largest zstd window that is accepted, as a power of two: 16 MiB.
pub const WINDOW_LOG_MAX: u32 = 24;

/// Compression level; its window is 2 MiB at most, which every client accepts.
const LEVEL: i32 = 3;
const HEADER_BYTES: usize = 4;
/// How much room a decompressed document first gets; it grows as data really comes.
const FIRST_ROOM_BYTES: usize = 16 << 10;

/// How documents of a map stream are packed: exactly as the client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Bare JSON.
    #[default]
    None,
    /// One zstd frame a document.
    Zstd,
}

impl Compression {
    /// Reads the field `Compress` of a map request; `None` for a name that we do not know.
    #[must_use]
    pub fn from_request(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::None),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Says why a document was not put into a frame: our own limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The document is empty; a frame of length zero is an error to some readers.
    #[error("an empty document cannot be framed")]
    Empty,
    /// The payload does not fit the length field.
    #[error("a payload of {size} bytes is too long for a frame")]
    TooLarge {
        /// Length in bytes.
        size: usize,
    },
    /// The compressor failed, which it does only for want of memory.
    #[error("zstd did not compress")]
    Compress,
}

/// Says how a map stream broke the rules; the stream is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A frame says that it has no payload.
    #[error("a frame without payload")]
    Empty,
    /// A frame says that it is longer than allowed.
    #[error("a frame of {size} bytes, {limit} are allowed")]
    PayloadTooLarge {
        /// Length that the frame states, in bytes.
        size: usize,
        /// Allowed length in bytes.
        limit: usize,
    },
    /// The document inside is longer than allowed.
    #[error("a document of more than {limit} bytes")]
    DocumentTooLarge {
        /// Allowed length in bytes.
        limit: usize,
    },
    /// The payload is not exactly one zstd frame, or its window is too large.
    #[error("the payload is not one zstd frame within limits")]
    Zstd,
}

/// Puts documents into frames; keeps its compressor between calls.
pub struct Encoder {
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Encoder {
    /// Makes an encoder; the compressor's memory is taken at the first use.
    ///
    /// # Errors
    /// [`EncodeError::Compress`] if there is no memory for a compressor.
    pub fn new(compression: Compression) -> Result<Self, EncodeError> {
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd => Some(zstd::bulk::Compressor::new(LEVEL).map_err(|_| EncodeError::Compress)?),
        };
        Ok(Self { compressor })
    }

    /// Returns the whole frame of one document.
    ///
    /// # Errors
    /// [`EncodeError`] if the document is empty or too long.
    pub fn encode(&mut self, json: &[u8]) -> Result<Vec<u8>, EncodeError> {
        if json.is_empty() {
            return Err(EncodeError::Empty);
        }
        match &mut self.compressor {
            None => frame(json),
            Some(compressor) => frame(&compressor.compress(json).map_err(|_| EncodeError::Compress)?),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("compresses", &self.compressor.is_some()).finish()
    }
}

/// Puts one document into a frame; [`Encoder`] is cheaper for many.
///
/// # Errors
/// As [`Encoder::encode`].
pub fn encode(json: &[u8], compression: Compression) -> Result<Vec<u8>, EncodeError> {
    Encoder::new(compression)?.encode(json)
}

fn frame(payload: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let length = u32::try_from(payload.len()).map_err(|_| EncodeError::TooLarge { size: payload.len() })?;
    let mut framed = Vec::with_capacity(HEADER_BYTES.saturating_add(payload.len()));
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(payload);
    Ok(framed)
}

/// Takes a map stream apart, however its bytes are cut; holds one frame at most.
pub struct Decoder {
    compression: Compression,
    payload_max_bytes: usize,
    json_max_bytes: usize,
    header: Vec<u8>,
    /// Length of the payload, once the header is complete.
    expected: Option<usize>,
    payload: Vec<u8>,
}

impl Decoder {
    /// Makes a decoder with the limits [`PAYLOAD_MAX_BYTES`] and [`JSON_MAX_BYTES`].
    #[must_use]
    pub const fn new(compression: Compression) -> Self {
        Self::with_limits(compression, PAYLOAD_MAX_BYTES, JSON_MAX_BYTES)
    }

    /// Makes a decoder with limits of its own, in bytes.
    #[must_use]
    pub const fn with_limits(compression: Compression, payload_max_bytes: usize, json_max_bytes: usize) -> Self {
        Self { compression, payload_max_bytes, json_max_bytes, header: Vec::new(), expected: None, payload: Vec::new() }
    }

    /// Takes bytes from the front of `input` until one document is complete and returns it, or `None` once `input` is used up.
    ///
    /// Call it again with what is left until it returns `None`.
    ///
    /// # Errors
    /// [`DecodeError`] if the server broke the rules; do not go on with this stream.
    pub fn next_document(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
        let expected = match self.expected {
            Some(expected) => expected,
            None => match self.read_header(input)? {
                Some(expected) => expected,
                None => return Ok(None),
            },
        };
        take(input, expected, &mut self.payload);
        if self.payload.len() < expected {
            return Ok(None);
        }
        self.expected = None;
        self.header.clear();
        let payload = std::mem::take(&mut self.payload);
        match self.compression {
            Compression::None => Ok(Some(payload)),
            Compression::Zstd => decompress(&payload, self.json_max_bytes).map(Some),
        }
    }

    /// Tells whether the stream stands between two frames, so that its end here is clean.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        self.header.is_empty()
    }

    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<usize>, DecodeError> {
        take(input, HEADER_BYTES, &mut self.header);
        let Ok(header) = <[u8; HEADER_BYTES]>::try_from(self.header.as_slice()) else {
            return Ok(None);
        };
        let size = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
        let limit = match self.compression {
            Compression::None => self.payload_max_bytes.min(self.json_max_bytes),
            Compression::Zstd => self.payload_max_bytes,
        };
        if size == 0 {
            return Err(DecodeError::Empty);
        }
        if size > limit {
            return Err(DecodeError::PayloadTooLarge { size, limit });
        }
        self.expected = Some(size);
        Ok(Some(size))
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("compression", &self.compression)
            .field("expected", &self.expected)
            .field("buffered", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// Moves bytes from the front of `input` until `into` is `length` bytes long.
fn take(input: &mut &[u8], length: usize, into: &mut Vec<u8>) {
    let missing = length.saturating_sub(into.len()).min(input.len());
    let (head, tail) = input.split_at(missing);
    into.extend_from_slice(head);
    *input = tail;
}

/// Unpacks exactly one zstd frame into at most `limit` bytes.
fn decompress(payload: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = zstd::stream::raw::Decoder::new().map_err(|_| DecodeError::Zstd)?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| DecodeError::Zstd)?;
    let mut source = InBuffer::around(payload);
    let mut json = vec![0; FIRST_ROOM_BYTES.min(limit.saturating_add(1))];
    let mut written = 0;
    loop {
        // The slice, not the vector: of a vector the decoder would set the length to what it has written.
        let mut target = OutBuffer::around_pos(json.as_mut_slice(), written);
        let before = (source.pos(), written);
        let missing = decoder.run(&mut source, &mut target).map_err(|_| DecodeError::Zstd)?;
        written = target.pos();
        if written > limit {
            return Err(DecodeError::DocumentTooLarge { limit });
        }
        if missing == 0 {
            break;
        }
        if written == json.len() {
            json.resize(json.len().saturating_mul(2).min(limit.saturating_add(1)), 0);
        } else if before == (source.pos(), written) {
            // Neither input nor output moved: the frame is cut short.
            return Err(DecodeError::Zstd);
        }
    }
    if source.pos() != payload.len() {
        return Err(DecodeError::Zstd);
    }
    json.truncate(written);
    Ok(json)
}

#[cfg(test)]
mod tests;
