//! Attributes of devices as JSON: texts, numbers, true and false.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};
use warren_policy::{AttributeValue, Attributes};

/// Beginning of the names that administrators choose.
pub(crate) const CUSTOM: &str = "custom:";
/// Longest name that an administrator may choose, in bytes.
const NAME_MAX: usize = 128;
/// Longest text of an attribute, in bytes.
const TEXT_MAX: usize = 200;
/// How many attributes administrators may give to a node.
pub(crate) const CUSTOM_MAX: usize = 64;

/// Tells whether an administrator may choose this name: `custom:`, then letters, digits and `_`.
pub(crate) fn is_custom_name(name: &str) -> bool {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    name.len() <= NAME_MAX
        && name.strip_prefix(CUSTOM).is_some_and(|rest| !rest.is_empty() && rest.chars().all(allowed))
}

/// Returns a value as JSON.
pub(crate) fn to_json(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Text(text) => Value::String(text.clone()),
        // Those that JSON cannot say are refused before.
        AttributeValue::Number(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
        AttributeValue::Bool(bool) => Value::Bool(*bool),
    }
}

/// Reads a value; `None` if it is no text of fitting length, number, true or false.
pub(crate) fn from_json(value: &Value) -> Option<AttributeValue> {
    match value {
        Value::String(text) => (text.len() <= TEXT_MAX).then(|| AttributeValue::Text(text.clone())),
        Value::Number(number) => number.as_f64().filter(|number| number.is_finite()).map(AttributeValue::Number),
        Value::Bool(bool) => Some(AttributeValue::Bool(*bool)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

pub(super) fn serialize<S: Serializer>(attributes: &Attributes, to: S) -> Result<S::Ok, S::Error> {
    let values: BTreeMap<_, _> = attributes.iter().map(|(name, value)| (name, to_json(value))).collect();
    values.serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Attributes, D::Error> {
    let values = BTreeMap::<String, Value>::deserialize(from)?;
    let read = |(name, value): (String, Value)| {
        let value = from_json(&value).ok_or_else(|| serde::de::Error::custom("an attribute of a strange kind"))?;
        Ok((name, value))
    };
    values.into_iter().map(read).collect()
}
