//! The control channel's encryption (ts2021): Noise IK, then records.
//!
//! `Noise_IK_25519_ChaChaPoly_BLAKE2s` with the prologue `Tailscale Control Protocol v<version>`; the client is the
//! initiator. Transport nonces count **big-endian**, unlike standard Noise. Source: Tailscale `control/controlbase`.
//!
//! | frame | bytes | layout |
//! | --- | --- | --- |
//! | initiation | 101 | version u16, type 1, length u16 = 96, ephemeral 32, sealed machine key 48, tag 16 |
//! | response | 51 | type 2, length u16 = 48, ephemeral 32, tag 16 |
//! | error | 3 + n | type 3, length u16, UTF-8 text; not authenticated |
//! | record | 3 + n | type 4, length u16, ciphertext |

mod early;
mod state;

pub use early::{EARLY_HEADER_BYTES, EARLY_MAGIC, EARLY_MAX_BYTES, EarlyPayload};

use std::fmt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::key::{MachineKey, MachineSecret};
use state::Symmetric;

/// Bytes of an initiation.
pub const INITIATION_BYTES: usize = 101;
/// Bytes of a response.
pub const RESPONSE_BYTES: usize = 51;
/// Bytes of the header of a response, error or record: type and length.
pub const HEADER_BYTES: usize = 3;
/// Most bytes of a record with its header.
pub const RECORD_MAX: usize = 4096;
/// Most bytes of a record's ciphertext.
pub const CIPHERTEXT_MAX: usize = RECORD_MAX - HEADER_BYTES;
/// Most bytes of plaintext in one record.
pub const PLAINTEXT_MAX: usize = CIPHERTEXT_MAX - TAG_BYTES;
/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;

/// Most bytes of an error frame's text that are read or written.
const ERROR_TEXT_MAX: usize = 1024;

const TYPE_INITIATION: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_ERROR: u8 = 3;
const TYPE_RECORD: u8 = 4;

/// Says why a handshake or a record failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// A handshake message of the wrong size.
    #[error("handshake message of {len} bytes, not {wanted}")]
    Size {
        /// Bytes received.
        len: usize,
        /// Bytes wanted.
        wanted: usize,
    },
    /// Another frame type than the one that is due.
    #[error("frame of type {found} where type {wanted} is due")]
    Type {
        /// Type byte received.
        found: u8,
        /// Type byte wanted.
        wanted: u8,
    },
    /// The length field does not fit the frame.
    #[error("the length field says {found}, not {wanted}")]
    Length {
        /// Length received.
        found: usize,
        /// Length wanted.
        wanted: usize,
    },
    /// A record longer than [`RECORD_MAX`].
    #[error("record of {len} bytes, {CIPHERTEXT_MAX} at most")]
    RecordTooLong {
        /// Bytes announced.
        len: usize,
    },
    /// Plaintext longer than [`PLAINTEXT_MAX`].
    #[error("{len} bytes do not fit in one record of {PLAINTEXT_MAX}")]
    PlaintextTooLong {
        /// Bytes given.
        len: usize,
    },
    /// The other side does not hold the key that it claims, or bytes were changed on the way.
    #[error("the message does not authenticate: the other side has another key, or bytes were changed on the way")]
    Decrypt,
    /// A public key of low order.
    #[error("a public key of the handshake is of low order")]
    WeakKey,
    /// The counter of a direction is used up.
    #[error("too many records on one connection")]
    Exhausted,
    /// The server refused with this text, which is not authenticated; without control characters.
    #[error("the server refused: {0}")]
    Refused(String),
}

/// Tells the length of the frame that these three bytes begin, of whatever type, and its type byte.
#[must_use]
pub fn parse_header(header: [u8; HEADER_BYTES]) -> (u8, usize) {
    let [kind, high, low] = header;
    (kind, usize::from(u16::from_be_bytes([high, low])))
}

/// Returns how many bytes of ciphertext follow a record's header.
///
/// # Errors
/// [`NoiseError::Type`] for any other frame, [`NoiseError::RecordTooLong`] above the limit.
pub fn record_length(header: [u8; HEADER_BYTES]) -> Result<usize, NoiseError> {
    match parse_header(header) {
        (TYPE_RECORD, len) if len <= CIPHERTEXT_MAX => Ok(len),
        (TYPE_RECORD, len) => Err(NoiseError::RecordTooLong { len }),
        (found, _) => Err(NoiseError::Type { found, wanted: TYPE_RECORD }),
    }
}

/// Builds an error frame; long texts are cut.
#[must_use]
pub fn error_frame(text: &str) -> Vec<u8> {
    let end = (0..=text.len().min(ERROR_TEXT_MAX)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default();
    let mut frame = vec![TYPE_ERROR];
    // At most ERROR_TEXT_MAX, which fits.
    frame.extend_from_slice(&u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// The client between initiation and response.
pub struct Initiator {
    symmetric: Symmetric,
    machine: MachineSecret,
    ephemeral: MachineSecret,
}

impl Initiator {
    /// Starts a handshake with the server whose key is `server` and returns the initiation to send.
    ///
    /// `ephemeral` must be fresh randomness.
    ///
    /// # Errors
    /// [`NoiseError::WeakKey`] if the server's key is of low order.
    pub fn new(
        version: u16,
        machine: &MachineSecret,
        server: &MachineKey,
        ephemeral: [u8; 32],
    ) -> Result<(Self, [u8; INITIATION_BYTES]), NoiseError> {
        let ephemeral = MachineSecret::from_bytes(ephemeral);
        let mut symmetric = Symmetric::new(version, server);
        symmetric.mix_hash(ephemeral.public().as_bytes());
        let key = symmetric.mix_dh(&ephemeral, server)?;
        let sealed_static = symmetric.seal(&key, machine.public().as_bytes());
        let key = symmetric.mix_dh(machine, server)?;
        let tag = symmetric.seal(&key, &[]);

        let mut message = Vec::with_capacity(INITIATION_BYTES);
        message.extend_from_slice(&version.to_be_bytes());
        message.extend_from_slice(&[TYPE_INITIATION, 0, 96]);
        message.extend_from_slice(ephemeral.public().as_bytes());
        message.extend_from_slice(&sealed_static);
        message.extend_from_slice(&tag);
        let message = <[u8; INITIATION_BYTES]>::try_from(message)
            .map_err(|bytes| NoiseError::Size { len: bytes.len(), wanted: INITIATION_BYTES })?;
        Ok((Self { symmetric, machine: machine.clone(), ephemeral }, message))
    }

    /// Finishes with the server's answer, a whole response or error frame.
    ///
    /// # Errors
    /// [`NoiseError::Refused`] with the text of an error frame; others for anything that is no valid response.
    pub fn finish(mut self, response: &[u8]) -> Result<Transport, NoiseError> {
        let (&header, body) = response
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(NoiseError::Size { len: response.len(), wanted: RESPONSE_BYTES })?;
        let (kind, length) = parse_header(header);
        if kind == TYPE_ERROR {
            let text = body.get(..length.min(body.len()).min(ERROR_TEXT_MAX)).unwrap_or_default();
            // Anybody on the way can write this, and somebody may print it on a terminal.
            let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
            return Err(NoiseError::Refused(String::from_utf8_lossy(text).chars().map(printable).collect()));
        }
        if kind != TYPE_RESPONSE {
            return Err(NoiseError::Type { found: kind, wanted: TYPE_RESPONSE });
        }
        if length != RESPONSE_BYTES - HEADER_BYTES {
            return Err(NoiseError::Length { found: length, wanted: RESPONSE_BYTES - HEADER_BYTES });
        }
        let (&theirs, tag) = body
            .split_first_chunk::<32>()
            .filter(|(_, tag)| tag.len() == TAG_BYTES)
            .ok_or(NoiseError::Size { len: response.len(), wanted: RESPONSE_BYTES })?;
        let theirs = MachineKey::from_bytes(theirs);
        self.symmetric.mix_hash(theirs.as_bytes());
        self.symmetric.mix_dh(&self.ephemeral, &theirs)?;
        let key = self.symmetric.mix_dh(&self.machine, &theirs)?;
        self.symmetric.open(&key, tag)?;
        let (client, server) = self.symmetric.split();
        Ok(Transport {
            sealer: Sealer::new(&client),
            opener: Opener::new(&server),
            handshake_hash: self.symmetric.hash(),
        })
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator(…)")
    }
}

/// What the server knows after a valid initiation.
#[derive(Debug)]
pub struct Accepted {
    /// Capability version that the client claims; the prologue proves that it was not changed on the way.
    pub version: u16,
    /// The client's machine key, whose private half it has proved to hold.
    pub machine: MachineKey,
    /// The response to send.
    pub response: [u8; RESPONSE_BYTES],
    /// Seals and opens from here on.
    pub transport: Transport,
}

/// Answers an initiation as the server whose key is `server`; `ephemeral` must be fresh randomness.
///
/// # Errors
/// [`NoiseError`] for anything but a valid initiation for this server's key. The first three kinds may be answered
/// with an [`error_frame`]; a failed decryption must just close.
pub fn respond(server: &MachineSecret, initiation: &[u8], ephemeral: [u8; 32]) -> Result<Accepted, NoiseError> {
    let wrong_size = NoiseError::Size { len: initiation.len(), wanted: INITIATION_BYTES };
    if initiation.len() != INITIATION_BYTES {
        return Err(wrong_size);
    }
    let Some((&[version_high, version_low, kind, high, low], rest)) = initiation.split_first_chunk() else {
        return Err(wrong_size);
    };
    if kind != TYPE_INITIATION {
        return Err(NoiseError::Type { found: kind, wanted: TYPE_INITIATION });
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length != rest.len() {
        return Err(NoiseError::Length { found: length, wanted: rest.len() });
    }
    let version = u16::from_be_bytes([version_high, version_low]);
    let Some((&theirs, rest)) = rest.split_first_chunk::<32>() else {
        return Err(wrong_size);
    };
    let Some((sealed_static, tag)) = rest.split_first_chunk::<48>() else {
        return Err(wrong_size);
    };
    let theirs = MachineKey::from_bytes(theirs);

    let mut symmetric = Symmetric::new(version, &server.public());
    symmetric.mix_hash(theirs.as_bytes());
    let key = symmetric.mix_dh(server, &theirs)?;
    let machine = symmetric.open(&key, sealed_static)?;
    let machine = <[u8; 32]>::try_from(machine.as_slice()).map_err(|_| NoiseError::Decrypt)?;
    let machine = MachineKey::from_bytes(machine);
    let key = symmetric.mix_dh(server, &machine)?;
    symmetric.open(&key, tag)?;

    let ephemeral = MachineSecret::from_bytes(ephemeral);
    let ours = ephemeral.public();
    symmetric.mix_hash(ours.as_bytes());
    symmetric.mix_dh(&ephemeral, &theirs)?;
    let key = symmetric.mix_dh(&ephemeral, &machine)?;
    let tag = symmetric.seal(&key, &[]);
    let mut response = [0; RESPONSE_BYTES];
    let head = [TYPE_RESPONSE, 0, 48];
    let bytes = head.iter().chain(ours.as_bytes()).chain(&tag);
    response.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);

    let (client, server) = symmetric.split();
    let transport =
        Transport { sealer: Sealer::new(&server), opener: Opener::new(&client), handshake_hash: symmetric.hash() };
    Ok(Accepted { version, machine, response, transport })
}

/// Both directions of a finished handshake.
#[derive(Debug)]
pub struct Transport {
    sealer: Sealer,
    opener: Opener,
    handshake_hash: [u8; 32],
}

impl Transport {
    /// Takes the two directions apart, each for its own half of a connection.
    #[must_use]
    pub fn split(self) -> (Sealer, Opener) {
        (self.sealer, self.opener)
    }

    /// Returns the hash of the whole handshake, equal on both sides and unique to the connection.
    #[must_use]
    pub fn handshake_hash(&self) -> &[u8; 32] {
        &self.handshake_hash
    }
}

/// The sending direction.
#[derive(Debug)]
pub struct Sealer(Direction);

impl Sealer {
    fn new(key: &[u8; 32]) -> Self {
        Self(Direction::new(key))
    }

    /// Appends one record with `plaintext`, at most [`PLAINTEXT_MAX`] bytes, to `out`.
    ///
    /// # Errors
    /// [`NoiseError::PlaintextTooLong`] and [`NoiseError::Exhausted`]; `out` is unchanged then.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let too_long = NoiseError::PlaintextTooLong { len: plaintext.len() };
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(too_long);
        }
        let nonce = self.0.next_nonce()?;
        let length = u16::try_from(plaintext.len() + TAG_BYTES).map_err(|_| too_long)?;
        out.push(TYPE_RECORD);
        out.extend_from_slice(&length.to_be_bytes());
        let start = out.len();
        out.extend_from_slice(plaintext);
        let body = out.get_mut(start..).unwrap_or_default();
        let Ok(tag) = self.0.key.seal_in_place_separate_tag(nonce, Aad::empty(), body) else {
            out.truncate(start - HEADER_BYTES);
            return Err(NoiseError::Exhausted);
        };
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The receiving direction.
#[derive(Debug)]
pub struct Opener(Direction);

impl Opener {
    fn new(key: &[u8; 32]) -> Self {
        Self(Direction::new(key))
    }

    /// Opens the ciphertext of one record in place and returns its plaintext.
    ///
    /// # Errors
    /// [`NoiseError::Decrypt`] if it is not the next record of the other side: the connection is dead then.
    pub fn open<'a>(&mut self, ciphertext: &'a mut [u8]) -> Result<&'a mut [u8], NoiseError> {
        let nonce = self.0.next_nonce()?;
        self.0.key.open_in_place(nonce, Aad::empty(), ciphertext).map_err(|_| NoiseError::Decrypt)
    }
}

/// One direction: its key and the counter of its next record.
struct Direction {
    key: LessSafeKey,
    counter: u64,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Self {
        Self { key: aead_key(key), counter: 0 }
    }

    fn next_nonce(&mut self) -> Result<Nonce, NoiseError> {
        let counter = self.counter;
        self.counter = counter.checked_add(1).ok_or(NoiseError::Exhausted)?;
        let mut nonce = [0; 12];
        nonce.iter_mut().skip(4).zip(counter.to_be_bytes()).for_each(|(to, from)| *to = from);
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direction").field("counter", &self.counter).finish_non_exhaustive()
    }
}

/// Loads a cipher key.
fn aead_key(key: &[u8; 32]) -> LessSafeKey {
    let unbound = UnboundKey::new(&CHACHA20_POLY1305, key);
    LessSafeKey::new(unbound.expect("a key of 32 bytes is what ChaCha20-Poly1305 takes"))
}

/// A key that is wiped when dropped.
type CipherKey = Zeroizing<[u8; 32]>;

#[cfg(test)]
mod tests;
