//! What the collector says its list is at a moment, signed, in a form that programs of others check, too.
//!
//! A checkpoint is three lines (origin, number of leaves, root in base64), further lines that we do not read, an empty line,
//! and one line for each signature: `— <name> <base64 of the key's number (4 bytes) and the signature>`.
//! Source: C2SP `tlog-checkpoint` and `signed-note`; Go `golang.org/x/mod/sumdb/note`.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::key::{LogKey, LogSecret, Signature};
use crate::merkle::Hash;

/// The most bytes of a checkpoint that is read.
pub const CHECKPOINT_BYTES_MAX: usize = 16 << 10;

/// The most signatures of a checkpoint that are looked at. Source: `note.Open` refuses more than 100.
const SIGNATURES_MAX: usize = 100;

/// Begins a line with a signature: an em dash and a space.
const SIGNATURE: &str = "\u{2014} ";

/// The number of Ed25519 among kinds of signatures of notes.
const ED25519: u8 = 1;

/// Says how many batches a collector has, and the root of the tree over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the list: the collector's and the tailnet's.
    pub origin: String,
    /// The number of leaves.
    pub size: u64,
    /// The root.
    pub root: Hash,
}

/// Names a signer: what stands in its lines, and its key. A collector's names one of its logs: the origin, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    key: LogKey,
}

/// Tells logs apart, in few bytes: a hash of the origin and the collector's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId([u8; 32]);

impl TreeId {
    /// Makes one of its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Says why a text is not a checkpoint of this signer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It is longer than [`CHECKPOINT_BYTES_MAX`].
    #[error("the checkpoint has more than {CHECKPOINT_BYTES_MAX} bytes")]
    TooLong,
    /// It does not have the form of a checkpoint.
    #[error("not a checkpoint: {0}")]
    Form(&'static str),
    /// The signer did not sign it.
    #[error("the checkpoint has no signature by the key that it must be signed with")]
    NotSigned,
    /// A line claims to be the signer's, and is not.
    #[error("the checkpoint's signature is wrong: it was altered, or forged")]
    Signature,
}

/// Says why a text names no signer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a verifier key (NAME+8 hex digits+base64), or the digits do not fit the key")]
pub struct VerifierError;

impl Verifier {
    /// Names the holder of a key.
    ///
    /// # Errors
    /// A name must not be empty, nor have spaces or a plus.
    pub fn new(name: &str, key: LogKey) -> Result<Self, VerifierError> {
        let is_fit = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+');
        if is_fit { Ok(Self { name: name.to_owned(), key }) } else { Err(VerifierError) }
    }

    /// Reads the text form, which [`std::fmt::Display`] writes.
    ///
    /// # Errors
    /// See [`VerifierError`].
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let (name, rest) = text.split_once('+').ok_or(VerifierError)?;
        let (_, encoded) = rest.split_once('+').ok_or(VerifierError)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| VerifierError)?;
        let (kind, key) = bytes.split_first().ok_or(VerifierError)?;
        let key: [u8; 32] = key.try_into().map_err(|_| VerifierError)?;
        let verifier = Self::new(name, LogKey::from_bytes(key))?;
        // The number, and one form for each key.
        if *kind == ED25519 && verifier.to_string() == text { Ok(verifier) } else { Err(VerifierError) }
    }

    /// Returns the name: of a log, its origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the key.
    #[must_use]
    pub const fn key(&self) -> &LogKey {
        &self.key
    }

    /// Returns what tells this log from others.
    #[must_use]
    pub fn tree(&self) -> TreeId {
        let mut id = [0; 32];
        id.iter_mut().zip(self.digest().as_ref()).for_each(|(to, from)| *to = *from);
        TreeId(id)
    }

    /// A name has no line break, so that no other name and key give the same.
    fn digest(&self) -> aws_lc_rs::digest::Digest {
        digest(&SHA256, &[self.name.as_bytes(), b"\n", &[ED25519], self.key.as_bytes()].concat())
    }

    /// Returns the key's number, which tells keys of one name apart.
    fn number(&self) -> [u8; 4] {
        let mut number = [0; 4];
        number.iter_mut().zip(self.digest().as_ref()).for_each(|(to, from)| *to = *from);
        number
    }

    /// Returns the text before the signatures, if this signer signed it.
    fn open<'t>(&self, note: &'t str) -> Result<&'t str, CheckpointError> {
        if note.len() > CHECKPOINT_BYTES_MAX {
            return Err(CheckpointError::TooLong);
        }
        if note.contains(|c: char| c.is_control() && c != '\n') {
            return Err(CheckpointError::Form("control characters"));
        }
        let (at, _) = note.rmatch_indices("\n\n").next().ok_or(CheckpointError::Form("no signatures"))?;
        let (text, signatures) = note.split_at(at + 1);
        let lines = signatures.strip_prefix('\n').and_then(|lines| lines.strip_suffix('\n'));
        let lines = lines.ok_or(CheckpointError::Form("the last line has no end"))?;
        let mut is_signed = false;
        for (count, line) in lines.split('\n').enumerate() {
            if count >= SIGNATURES_MAX {
                return Err(CheckpointError::Form("too many signatures"));
            }
            let malformed = CheckpointError::Form("a line that is no signature");
            let (name, encoded) =
                line.strip_prefix(SIGNATURE).and_then(|line| line.split_once(' ')).ok_or(malformed)?;
            let bytes = STANDARD.decode(encoded).map_err(|_| malformed)?;
            let (number, signature) = bytes.split_first_chunk::<4>().ok_or(malformed)?;
            if name != self.name || *number != self.number() || is_signed {
                continue;
            }
            let signature: [u8; 64] = signature.try_into().map_err(|_| CheckpointError::Signature)?;
            if !self.key.verifies(text.as_bytes(), &Signature::from_bytes(signature)) {
                return Err(CheckpointError::Signature);
            }
            is_signed = true;
        }
        if is_signed { Ok(text) } else { Err(CheckpointError::NotSigned) }
    }

    /// Signs a text, which must end a line.
    fn sign(&self, text: &str, secret: &LogSecret) -> String {
        let signature = secret.sign(text.as_bytes());
        let encoded = STANDARD.encode([self.number().as_slice(), signature.as_bytes()].concat());
        format!("{text}\n{SIGNATURE}{} {encoded}\n", self.name)
    }
}

impl std::fmt::Display for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let encoded = STANDARD.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        write!(f, "{}+{:08x}+{encoded}", self.name, u32::from_be_bytes(self.number()))
    }
}

impl Checkpoint {
    /// Writes the checkpoint with a signature by `secret`, whose name is the origin.
    ///
    /// # Errors
    /// The origin cannot be a name.
    pub fn sign(&self, secret: &LogSecret) -> Result<String, VerifierError> {
        let verifier = Verifier::new(&self.origin, secret.public())?;
        let text = format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root));
        Ok(verifier.sign(&text, secret))
    }

    /// Reads a checkpoint that `verifier` signed, which is about the list of its name.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(note: &str, verifier: &Verifier) -> Result<Self, CheckpointError> {
        let text = verifier.open(note)?;
        let mut lines = text.split('\n');
        let mut line = |missing| lines.next().filter(|line| !line.is_empty()).ok_or(CheckpointError::Form(missing));
        let origin = line("no origin")?.to_owned();
        if origin != verifier.name {
            return Err(CheckpointError::Form("it is about another list"));
        }
        let digits = line("no size")?;
        let size: u64 = digits.parse().map_err(|_| CheckpointError::Form("the size is no number"))?;
        if size.to_string() != digits {
            return Err(CheckpointError::Form("the size is not in its shortest form"));
        }
        let root = STANDARD.decode(line("no root")?).ok().and_then(|root| root.try_into().ok());
        let root = root.ok_or(CheckpointError::Form("the root is not 32 bytes in base64"))?;
        Ok(Self { origin, size, root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::secret;
    use proptest::prelude::*;

    /// Source: golang.org/x/mod/sumdb/note, `note_test.go` and the package's example.
    #[test]
    fn the_published_note_comes_out() {
        let verifier = Verifier::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap();
        let private = STANDARD.decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz").unwrap();
        let secret = LogSecret::from_seed(private[1..].try_into().unwrap());
        assert_eq!(secret.public(), verifier.key);
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let note = format!(
            "{text}\n\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
        );
        assert_eq!(verifier.sign(text, &secret), note);
        assert_eq!(verifier.open(&note), Ok(text));
    }

    #[test]
    fn every_mangled_verifier_key_is_refused() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        for place in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] += 1;
            assert_eq!(Verifier::parse(std::str::from_utf8(&bytes).unwrap()), Err(VerifierError), "{place}");
            assert_eq!(Verifier::parse(&text[..place]), Err(VerifierError), "cut at {place}");
        }
        // The number of another kind of key, which fits.
        let cosigner = "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(Verifier::parse(cosigner), Err(VerifierError));
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "logs.example.com/family".into(), size: 17, root: [5; 32] }
    }

    #[test]
    fn a_checkpoint_comes_back_and_every_altered_byte_is_found() {
        let note = checkpoint().sign(&secret(9)).unwrap();
        let verifier = Verifier::new(&checkpoint().origin, secret(9).public()).unwrap();
        assert_eq!(Checkpoint::open(&note, &verifier), Ok(checkpoint()));
        assert_eq!(Verifier::parse(&verifier.to_string()), Ok(verifier.clone()));
        for place in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[place] ^= 1;
            if let Ok(altered) = String::from_utf8(bytes) {
                assert!(Checkpoint::open(&altered, &verifier).is_err(), "byte {place}");
            }
        }
        let other = Verifier::new(&checkpoint().origin, secret(8).public()).unwrap();
        assert_eq!(Checkpoint::open(&note, &other), Err(CheckpointError::NotSigned));
    }

    /// Witnesses add lines of their own.
    #[test]
    fn lines_of_others_are_passed_over() {
        let note = checkpoint().sign(&secret(9)).unwrap();
        let verifier = Verifier::new(&checkpoint().origin, secret(9).public()).unwrap();
        let witness = Verifier::new("witness.example.com", secret(3).public()).unwrap();
        let text = verifier.open(&note).unwrap();
        let cosigned = witness.sign(text, &secret(3));
        let line = cosigned.rsplit_once("\n\n").unwrap().1;
        let both = format!("{note}{line}");
        assert_eq!(Checkpoint::open(&both, &verifier), Ok(checkpoint()));
        assert_eq!(witness.open(&both), Ok(text));
        assert_eq!(Checkpoint::open(&both, &witness), Err(CheckpointError::Form("it is about another list")));
    }

    #[test]
    fn a_size_has_one_form() {
        let verifier = Verifier::new("o", secret(9).public()).unwrap();
        for size in ["017", "+17", "-1", "18446744073709551616", ""] {
            let text = format!("o\n{size}\n{}\n", STANDARD.encode([0; 32]));
            assert!(Checkpoint::open(&verifier.sign(&text, &secret(9)), &verifier).is_err(), "{size:?}");
        }
    }

    proptest! {
        #[test]
        fn invented_checkpoints_are_refused(text in "(\u{2014} |o|\n|[0-9]|[a-z/+ ]){0,60}") {
            let verifier = Verifier::new("o", secret(9).public()).unwrap();
            prop_assert!(Checkpoint::open(&text, &verifier).is_err());
        }
    }
}
