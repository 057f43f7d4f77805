//! Postures: what a rule may demand of the device that a packet comes from.

use std::collections::BTreeMap;

/// Attributes of a device by name, like `node:os` or `custom:tier`.
pub type Attributes = BTreeMap<String, AttributeValue>;

/// Value of an attribute of a device.
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    /// A text; versions too.
    Text(String),
    /// A number.
    Number(f64),
    /// True or false.
    Bool(bool),
}
// Numbers come from JSON, which has no NaN.
impl Eq for AttributeValue {}

/// One condition, like `node:os IN ['macos', 'linux']`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assertion {
    pub(crate) attribute: String,
    pub(crate) test: Test,
}

/// What an assertion asks of an attribute. An attribute that is not set passes [`Test::NotSet`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Test {
    Equal(AttributeValue),
    NotEqual(AttributeValue),
    In(Vec<AttributeValue>),
    NotIn(Vec<AttributeValue>),
    Less(AttributeValue),
    LessOrEqual(AttributeValue),
    Greater(AttributeValue),
    GreaterOrEqual(AttributeValue),
    IsSet,
    NotSet,
}

impl Assertion {
    pub(crate) fn holds(&self, _attributes: &Attributes) -> bool {
        true
    }
}
