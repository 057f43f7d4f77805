//! Reading and writing JSON documents of the control protocol, and the serde helpers its types share.

use super::lenient::Lenient;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// Largest document that [`from_json`] reads, in bytes.
///
/// The transport bounds request bodies far lower; this is the bound of a complete map of a large tailnet.
pub const DOCUMENT_MAX_BYTES: usize = 64 << 20;

/// Deepest nesting of lists and objects that is read; the deepest type of the protocol needs 8, raw values some more.
pub const DOCUMENT_MAX_DEPTH: usize = 48;

/// Most values that are read from a document of any length; longer ones may have one more for every [`VALUE_BYTES`].
///
/// A value of two bytes can become a structure of hundreds, so that length alone bounds no memory.
const VALUES_MAX: usize = 65_536;

/// Fewest bytes that a value has on average in long documents; in honest maps it has about 20.
const VALUE_BYTES: usize = 8;

/// Most entries that are read of a list in which places count; nobody has so many endpoints.
const LIST_MAX: usize = 1_024;

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
    /// The document is made of far more values than one of its length should be.
    #[error("more than {limit} values")]
    TooMany {
        /// Allowed number for this length.
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
/// [`JsonError`] if the document is too large or too deep, has too many values, or is not of this type.
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
    check_shape(document)?;
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

/// Counts brackets and commas outside strings.
fn check_shape(document: &[u8]) -> Result<(), JsonError> {
    let most_values = VALUES_MAX.saturating_add(document.len() / VALUE_BYTES);
    let mut values = 0_usize;
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
                values = values.saturating_add(1);
                if depth > DOCUMENT_MAX_DEPTH {
                    return Err(JsonError::TooDeep { limit: DOCUMENT_MAX_DEPTH });
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b',') => values = values.saturating_add(1),
            _ => {}
        }
    }
    if values > most_values { Err(JsonError::TooMany { limit: most_values }) } else { Ok(()) }
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

/// Reads a list, leaving out malformed entries; what is no list counts as absent.
pub(super) fn lossy_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    lossy_optional_list(from).map(Option::unwrap_or_default)
}

/// Reads a list that may be absent, leaving out malformed entries.
pub(super) fn lossy_optional_list<'de, D, T>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let raw = <&RawValue>::deserialize(from)?;
    Ok(entries(raw, usize::MAX, reread).unwrap_or_default())
}

/// Reads the first [`LIST_MAX`] entries of a list in which places count: `read` makes something of each.
pub(super) fn places<'de, D, T>(from: D, mut read: impl FnMut(&'de RawValue) -> T) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
{
    let raw = <&RawValue>::deserialize(from)?;
    Ok(entries(raw, LIST_MAX, |entry| Some(read(entry))).unwrap_or_default().unwrap_or_default())
}

/// Reads a list and leaves out malformed entries, so that one bad record does not spoil the others.
pub(super) fn sound_entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let raw = <&RawValue>::deserialize(from)?;
    match entries(raw, usize::MAX, reread) {
        Some(list) => Ok(list.unwrap_or_default()),
        None => Err(D::Error::custom("not a list")),
    }
}

/// Reads up to `max` entries of a list one by one; `Some(None)` for `null`, `None` for what is no list.
fn entries<'de, T>(
    raw: &'de RawValue,
    max: usize,
    read: impl FnMut(&'de RawValue) -> Option<T>,
) -> Option<Option<Vec<T>>> {
    struct Each<F, T> {
        max: usize,
        read: F,
        kind: PhantomData<T>,
    }

    impl<'de, T, F: FnMut(&'de RawValue) -> Option<T>> Visitor<'de> for Each<F, T> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(entry) = list.next_element::<&RawValue>()? {
                if found.len() < self.max {
                    found.extend((self.read)(entry));
                }
            }
            Ok(Some(found))
        }
    }

    let each = Each { max, read, kind: PhantomData };
    serde_json::Deserializer::from_str(raw.get()).deserialize_any(each).ok()
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

/// Reads a value as `T`, as leniently as a whole document.
pub(super) fn reread<'de, T: Deserialize<'de>>(raw: &'de RawValue) -> Option<T> {
    T::deserialize(Lenient(&mut serde_json::Deserializer::from_str(raw.get()))).ok()
}

/// Any JSON value, kept as text.
#[derive(Clone)]
pub struct RawJson(Box<RawValue>);

impl RawJson {
    /// Makes a raw value of JSON text.
    ///
    /// # Errors
    /// [`JsonError`] if the text is not one JSON value, is nested too deeply or has too many values.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        check_shape(text.as_bytes())?;
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
