//! Reading and writing JSON documents of the control protocol, and the serde helpers its types share.

use super::lenient::Lenient;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;

/// Largest document that [`from_json`] reads, in bytes.
///
/// The transport bounds request bodies far lower; this is the bound of a complete map of a large tailnet.
pub const DOCUMENT_MAX_BYTES: usize = 64 << 20;

/// Deepest nesting of lists and objects that is read; the deepest type of the protocol needs 8, raw values some more.
pub const DOCUMENT_MAX_DEPTH: usize = 48;

/// Says why a document was not read. Carries no text of the document, so it is safe to log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The document is longer than its reader allows.
    #[error("the document is {size} bytes long, {limit} are allowed")]
    TooLarge {
        /// Length in bytes.
        size: usize,
        /// Allowed length in bytes.
        limit: usize,
    },
    /// Lists and objects are nested too deeply.
    #[error("lists and objects are nested more than {limit} deep")]
    TooDeep {
        /// Allowed depth.
        limit: usize,
    },
    /// The text is not JSON, or a value is not of the kind that its place needs.
    #[error("{reason} at line {line} column {column}")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
        /// What was wrong, without quoting the document.
        reason: String,
    },
}

/// Reads a document of up to [`DOCUMENT_MAX_BYTES`]: names match without regard to ASCII case, `null` is absent, unknown names are ignored.
///
/// # Errors
/// [`JsonError`] if the document is too large, too deep, or not of this type.
pub fn from_json<T: DeserializeOwned>(document: &[u8]) -> Result<T, JsonError> {
    from_json_up_to(document, DOCUMENT_MAX_BYTES)
}

/// Reads a document as [`from_json`] does, but of at most `limit` bytes.
///
/// # Errors
/// As [`from_json`].
pub fn from_json_up_to<T: DeserializeOwned>(document: &[u8], limit: usize) -> Result<T, JsonError> {
    if document.len() > limit {
        return Err(JsonError::TooLarge { size: document.len(), limit });
    }
    if !nested_at_most(document, DOCUMENT_MAX_DEPTH) {
        return Err(JsonError::TooDeep { limit: DOCUMENT_MAX_DEPTH });
    }
    let mut reader = serde_json::Deserializer::from_slice(document);
    let value = T::deserialize(Lenient(&mut reader)).map_err(malformed)?;
    reader.end().map_err(malformed)?;
    Ok(value)
}

/// Writes a document: exact names, raw UTF-8, no escape that JSON does not demand.
///
/// # Errors
/// None for the types of this crate; a foreign `Serialize` may refuse, which comes back as [`JsonError::Malformed`].
pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, JsonError> {
    serde_json::to_vec(value).map_err(malformed)
}

fn malformed(error: serde_json::Error) -> JsonError {
    let text = error.to_string();
    // The part after a quotation mark may be a key or a token that stood in the wrong place.
    let reason = text
        .split(['"', '\u{201c}'])
        .next()
        .unwrap_or_default()
        .split(" at line ")
        .next()
        .unwrap_or_default()
        .trim_end()
        .to_owned();
    JsonError::Malformed { line: error.line(), column: error.column(), reason }
}

/// Counts brackets outside strings.
fn nested_at_most(document: &[u8], limit: usize) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in document {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth = depth.saturating_add(1);
                if depth > limit {
                    return false;
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// Tells whether a field holds its zero value and is left out.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads a field whose malformed value counts as absent.
pub(super) fn lossy<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    let raw = <&RawValue>::deserialize(from)?;
    Ok(reread(raw).unwrap_or_default())
}

/// Reads a list, leaving out malformed entries.
pub(super) fn lossy_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let raw = <&RawValue>::deserialize(from)?;
    let entries: Vec<&RawValue> = reread(raw).unwrap_or_default();
    Ok(entries.into_iter().filter_map(reread).collect())
}

/// Reads a list that may be absent, leaving out malformed entries.
pub(super) fn lossy_optional_list<'de, D, T>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let raw = <&RawValue>::deserialize(from)?;
    let entries: Option<Vec<&RawValue>> = reread(raw).unwrap_or_default();
    Ok(entries.map(|entries| entries.into_iter().filter_map(reread).collect()))
}

/// Reads a key that must be there: the all-zero key is refused.
pub(super) fn real_key<'de, D, K>(from: D) -> Result<K, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Default + PartialEq,
{
    let key = K::deserialize(from)?;
    if key == K::default() {
        return Err(D::Error::custom("the all-zero key stands for no key"));
    }
    Ok(key)
}

fn reread<'de, T: Deserialize<'de>>(raw: &'de RawValue) -> Option<T> {
    T::deserialize(Lenient(&mut serde_json::Deserializer::from_str(raw.get()))).ok()
}

/// Any JSON value, kept as text.
#[derive(Clone)]
pub struct RawJson(Box<RawValue>);

impl RawJson {
    /// Makes a raw value of JSON text.
    ///
    /// # Errors
    /// [`JsonError`] if the text is not one JSON value, or is nested too deeply.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        if !nested_at_most(text.as_bytes(), DOCUMENT_MAX_DEPTH) {
            return Err(JsonError::TooDeep { limit: DOCUMENT_MAX_DEPTH });
        }
        RawValue::from_string(text.to_owned()).map(Self).map_err(malformed)
    }

    /// Makes a raw value of anything that serialises.
    ///
    /// # Errors
    /// As [`to_json`].
    pub fn of<T: Serialize>(value: &T) -> Result<Self, JsonError> {
        serde_json::value::to_raw_value(value).map(Self).map_err(malformed)
    }

    /// Returns the JSON text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Reads the value as `T`, as leniently as [`from_json`].
    ///
    /// # Errors
    /// As [`from_json`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        from_json(self.text().as_bytes())
    }
}

impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for RawJson {}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(from).map(Self)
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}
