//! Postures: what a rule may demand of the device that a packet comes from.
//!
//! An assertion is `attribute operator value`, like `node:tsVersion >= '1.40'`. Source: policy.md, section 12.

use crate::problem::Problem;
use std::cmp::Ordering;
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
// Numbers come from JSON and from assertions, neither of which has a NaN.
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

/// Attributes that nodes tell themselves; others of `node:` do not exist.
pub(crate) const NODE_ATTRIBUTES: [&str; 6] = [
    "node:os",
    "node:osVersion",
    "node:tsVersion",
    "node:tsReleaseTrack",
    "node:tsAutoUpdate",
    "node:tsStateEncrypted",
];
/// Those of them that are true or false.
const SWITCHES: [&str; 2] = ["node:tsAutoUpdate", "node:tsStateEncrypted"];
/// Those of them that are versions, which have an order of their own.
const VERSIONS: [&str; 2] = ["node:osVersion", "node:tsVersion"];

impl Assertion {
    /// Reads an assertion.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let wrong = |what| Problem::Assertion { text: text.to_owned(), what };
        let (attribute, rest) =
            split_attribute(text.trim()).ok_or_else(|| wrong("it does not begin with an attribute"))?;
        if attribute.starts_with("node:") && !NODE_ATTRIBUTES.contains(&attribute) {
            return Err(Problem::UnknownAttribute { name: attribute.to_owned() });
        }
        let test = test(rest).map_err(wrong)?;
        if !fits(attribute, &test) {
            return Err(wrong("the value is of another kind than the attribute, or has no order"));
        }
        Ok(Self { attribute: attribute.to_owned(), test })
    }

    /// Tells whether a device with these attributes passes.
    pub(crate) fn holds(&self, attributes: &Attributes) -> bool {
        let Some(value) = attributes.get(&self.attribute) else {
            return self.test == Test::NotSet;
        };
        let order = |wanted: &AttributeValue| match (value, wanted) {
            (AttributeValue::Number(one), AttributeValue::Number(two)) => one.partial_cmp(two),
            (AttributeValue::Text(one), AttributeValue::Text(two)) => version_order(one, two),
            _ => None,
        };
        match &self.test {
            Test::Equal(wanted) => value == wanted,
            Test::NotEqual(wanted) => value != wanted,
            Test::In(wanted) => wanted.contains(value),
            Test::NotIn(wanted) => !wanted.contains(value),
            Test::Less(wanted) => order(wanted).is_some_and(Ordering::is_lt),
            Test::LessOrEqual(wanted) => order(wanted).is_some_and(Ordering::is_le),
            Test::Greater(wanted) => order(wanted).is_some_and(Ordering::is_gt),
            Test::GreaterOrEqual(wanted) => order(wanted).is_some_and(Ordering::is_ge),
            Test::IsSet => true,
            Test::NotSet => false,
        }
    }
}

/// Splits `namespace:name` off the front.
fn split_attribute(text: &str) -> Option<(&str, &str)> {
    let is_part = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, ':' | '_' | '-' | '.');
    let end = text.find(|sign| !is_part(sign)).unwrap_or(text.len());
    let (attribute, rest) = text.split_at_checked(end)?;
    let (namespace, name) = attribute.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty()).then_some((attribute, rest.trim_start()))
}

/// Reads operator and value.
fn test(rest: &str) -> Result<Test, &'static str> {
    type Make = fn(AttributeValue) -> Test;
    // Longer signs first.
    const SIGNS: [(&str, Make); 6] = [
        ("==", Test::Equal),
        ("!=", Test::NotEqual),
        ("<=", Test::LessOrEqual),
        (">=", Test::GreaterOrEqual),
        ("<", Test::Less),
        (">", Test::Greater),
    ];
    for (sign, make) in SIGNS {
        if let Some(text) = rest.strip_prefix(sign) {
            let (value, rest) = value(text)?;
            return if rest.trim().is_empty() { Ok(make(value)) } else { Err("something follows the value") };
        }
    }
    let (operator, list) = rest.split_once('[').map_or((rest, None), |(operator, list)| (operator, Some(list)));
    let words: Vec<String> = operator.split_whitespace().map(str::to_ascii_uppercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (words.as_slice(), list) {
        (["IN"], Some(list)) => values(list).map(Test::In),
        (["NOT", "IN"], Some(list)) => values(list).map(Test::NotIn),
        (["IS", "SET"], None) => Ok(Test::IsSet),
        (["NOT", "SET"], None) => Ok(Test::NotSet),
        (["IN"] | ["NOT", "IN"], None) => Err("a list in brackets must follow IN"),
        _ => Err("the operator is unknown"),
    }
}

/// Reads a value off the front.
fn value(text: &str) -> Result<(AttributeValue, &str), &'static str> {
    let text = text.trim_start();
    if let Some(quote) = text.chars().next().filter(|sign| matches!(sign, '\'' | '"')) {
        let inside = text.get(1..).unwrap_or_default();
        let (value, rest) = inside.split_once(quote).ok_or("a quotation mark is missing")?;
        return Ok((AttributeValue::Text(value.to_owned()), rest));
    }
    let end = text.find(|sign: char| sign.is_whitespace() || matches!(sign, ',' | ']')).unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    let value = match word {
        "" => return Err("a value is missing"),
        "true" => AttributeValue::Bool(true),
        "false" => AttributeValue::Bool(false),
        _ => match word.parse::<f64>() {
            Ok(number) if number.is_finite() && !word.starts_with('+') => AttributeValue::Number(number),
            _ => return Err("the value is neither a text in quotation marks, nor a number, nor true or false"),
        },
    };
    Ok((value, rest))
}

/// Reads the rest of a list, whose opening bracket is gone.
fn values(mut text: &str) -> Result<Vec<AttributeValue>, &'static str> {
    let mut values = Vec::new();
    loop {
        let (next, rest) = value(text)?;
        values.push(next);
        let rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix(',') {
            text = rest;
        } else {
            return match rest.strip_prefix(']').map(str::trim) {
                Some("") => Ok(values),
                Some(_) => Err("something follows the list"),
                None => Err("a comma or a bracket is missing in the list"),
            };
        }
    }
}

/// Tells whether an attribute can have the values that a test names.
fn fits(attribute: &str, test: &Test) -> bool {
    let of_kind = |value: &AttributeValue| match value {
        AttributeValue::Bool(_) => !attribute.starts_with("node:") || SWITCHES.contains(&attribute),
        AttributeValue::Text(_) => !SWITCHES.contains(&attribute),
        AttributeValue::Number(_) => !attribute.starts_with("node:"),
    };
    match test {
        Test::Equal(value) | Test::NotEqual(value) => of_kind(value),
        Test::In(values) | Test::NotIn(values) => values.iter().all(of_kind),
        Test::Less(value) | Test::LessOrEqual(value) | Test::Greater(value) | Test::GreaterOrEqual(value) => {
            match value {
                AttributeValue::Text(text) => VERSIONS.contains(&attribute) && !version(text).is_empty(),
                AttributeValue::Number(_) => of_kind(value),
                AttributeValue::Bool(_) => false,
            }
        }
        Test::IsSet | Test::NotSet => true,
    }
}

/// Compares versions by their numbers, where a missing one is zero; `None` if one has no number.
fn version_order(one: &str, two: &str) -> Option<Ordering> {
    let (mut one, mut two) = (version(one), version(two));
    if one.is_empty() || two.is_empty() {
        return None;
    }
    let length = one.len().max(two.len());
    one.resize(length, 0);
    two.resize(length, 0);
    Some(one.cmp(&two))
}

/// Returns the leading numbers of a version: 1, 40 and 2 of `v1.40.2-t1234`.
fn version(text: &str) -> Vec<u64> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let numbers = text.get(..end).unwrap_or_default().trim_end_matches('.').split('.');
    // Only digits are left: what does not parse is empty, or too long for the type.
    numbers.map_while(|number| (!number.is_empty()).then(|| number.parse().unwrap_or(u64::MAX))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attributes() -> Attributes {
        let text = |text: &str| AttributeValue::Text(text.to_owned());
        [
            ("node:os", text("linux")),
            ("node:tsVersion", text("1.40.2-t1234")),
            ("node:tsAutoUpdate", AttributeValue::Bool(true)),
            ("custom:tier", AttributeValue::Number(3.0)),
            ("custom:note", text("it's")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    #[test]
    fn assertions_hold_as_written() {
        for (text, wanted) in [
            ("node:os == 'linux'", true),
            ("node:os=='linux'", true),
            ("node:os != \"linux\"", false),
            ("node:os IN ['macos', 'linux']", true),
            ("node:os not in ['macos','linux']", false),
            ("node:os NOT IN['macos']", true),
            ("node:os IS SET", true),
            ("node:os NOT SET", false),
            ("custom:note == \"it's\"", true),
            ("node:tsAutoUpdate == true", true),
            ("custom:tier >= 3", true),
            ("custom:tier < 3", false),
            ("custom:tier == '3'", false),
            ("node:tsVersion >= '1.40'", true),
            ("node:tsVersion > '1.40.2'", false),
            ("node:tsVersion <= '1.40.2'", true),
            ("node:tsVersion < '1.100'", true),
            // What is not set passes one test only.
            ("custom:none != 'x'", false),
            ("custom:none NOT IN ['x']", false),
            ("custom:none IS SET", false),
            ("custom:none NOT SET", true),
            ("node:osVersion < '1'", false),
        ] {
            assert_eq!(Assertion::parse(text).unwrap().holds(&attributes()), wanted, "{text}");
        }
    }

    #[test]
    fn malformed_assertions_are_refused() {
        for text in [
            "",
            "os == 'linux'",
            "node: == 1",
            "node:os",
            "node:os = 'linux'",
            "node:os == linux",
            "node:os == 'linux",
            "node:os == 'linux' x",
            "node:os IN",
            "node:os IN []",
            "node:os IN ['a' 'b']",
            "node:os IN ['a'] x",
            "node:os IS UNSET",
            "node:os > 'linux'",
            "node:os == 1",
            "node:tsAutoUpdate == 'true'",
            "node:tsVersion > 'new'",
            "node:tsVersion > 1.4",
            "custom:a > true",
            "custom:a == nan",
            "custom:a == 1e999",
            "node:OS == 'linux'",
        ] {
            assert!(Assertion::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(node:os|custom:a| |==|IN|NOT|SET|\\[|\\]|'|\"|,|1|\\.|é){0,9}") {
            let _ = Assertion::parse(&text).map(|assertion| assertion.holds(&attributes()));
        }

        #[test]
        fn versions_are_in_the_order_of_their_numbers(one: [u16; 3], two: [u16; 3]) {
            let text = |[major, minor, patch]: [u16; 3]| format!("{major}.{minor}.{patch}-x");
            prop_assert_eq!(version_order(&text(one), &text(two)), Some(one.cmp(&two)));
        }
    }
}
