//! HuJSON: JSON with comments and trailing commas, and nothing else.

use crate::problem::{Errors, Problem};
use jsonc_parser::ast::{Object, StringLit, Value};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};
use std::collections::BTreeMap;

/// Largest policy file, in bytes.
pub const POLICY_MAX_BYTES: usize = 1 << 20;
/// Deepest nesting of lists and objects in a policy file.
pub const POLICY_MAX_DEPTH: usize = 32;

/// A value with its place in the text.
#[derive(Debug, PartialEq)]
pub(crate) struct Json {
    pub(crate) at: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool,
    Number,
    Text(String),
    List(Vec<Json>),
    Object(Vec<Member>),
}

/// A name and a value of an object.
#[derive(Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) at: usize,
    pub(crate) name: String,
    pub(crate) value: Json,
}

impl Kind {
    /// Says what it is, for messages.
    pub(crate) const fn noun(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Reads a text; `None` if it is no HuJSON at all. Smaller faults are noted and reading goes on.
pub(crate) fn read(text: &str, errors: &mut Errors<'_>) -> Option<Json> {
    if text.len() > POLICY_MAX_BYTES {
        errors.note(0, Problem::TooLarge { size: text.len(), limit: POLICY_MAX_BYTES });
        return None;
    }
    if let Some(at) = too_deep(text) {
        errors.note(at, Problem::TooDeep { limit: POLICY_MAX_DEPTH });
        return None;
    }
    let collect = CollectOptions { comments: CommentCollectionStrategy::Off, tokens: false };
    let strict = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let value = match parse_to_ast(text, &collect, &strict) {
        Ok(parsed) => parsed.value,
        Err(error) => {
            let what = error.kind().to_string();
            errors.note(error.range().start, Problem::Syntax { what });
            return None;
        }
    };
    let Some(value) = value else {
        errors.note(0, Problem::EmptyDocument);
        return None;
    };
    Some(convert(text, value, errors))
}

/// Returns where the nesting becomes too deep, before the parser sees the text.
///
/// Brackets in comments count as well when they are not closed there, which costs nobody anything.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                while let Some((_, inside)) = bytes.next() {
                    match inside {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'/' if bytes.next_if(|(_, next)| *next == b'/').is_some() => {
                for (_, inside) in bytes.by_ref() {
                    if inside == b'\n' {
                        break;
                    }
                }
            }
            b'/' if bytes.next_if(|(_, next)| *next == b'*').is_some() => {
                let mut star = false;
                for (_, inside) in bytes.by_ref() {
                    if star && inside == b'/' {
                        break;
                    }
                    star = inside == b'*';
                }
            }
            b'[' | b'{' => {
                depth = depth.saturating_add(1);
                if depth > POLICY_MAX_DEPTH {
                    return Some(at);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

fn convert(text: &str, value: Value<'_>, errors: &mut Errors<'_>) -> Json {
    let at = value.range().start;
    let kind = match value {
        Value::NullKeyword(_) => Kind::Null,
        Value::BooleanLit(_) => Kind::Bool,
        Value::NumberLit(_) => Kind::Number,
        Value::StringLit(literal) => Kind::Text(string(text, literal, errors)),
        Value::Array(list) => {
            Kind::List(list.elements.into_iter().map(|element| convert(text, element, errors)).collect())
        }
        Value::Object(object) => Kind::Object(members(text, object, errors)),
    };
    Json { at, kind }
}

fn members(text: &str, object: Object<'_>, errors: &mut Errors<'_>) -> Vec<Member> {
    let mut seen = BTreeMap::new();
    let mut members = Vec::with_capacity(object.properties.len());
    for property in object.properties {
        let at = property.range.start;
        let name = match property.name {
            jsonc_parser::ast::ObjectPropName::String(literal) => string(text, literal, errors),
            jsonc_parser::ast::ObjectPropName::Word(word) => word.value.to_owned(),
        };
        let value = convert(text, property.value, errors);
        if let Some(first) = seen.insert(name.clone(), at) {
            let first = errors.position(first);
            errors.note(at, Problem::DuplicateName { name, first });
            continue;
        }
        members.push(Member { at, name, value });
    }
    members
}

/// Returns a string's value; the parser lets raw control characters pass, JSON does not (RFC 8259, section 7).
fn string(text: &str, literal: StringLit<'_>, errors: &mut Errors<'_>) -> String {
    let start = literal.range.start;
    let raw = text.get(start..literal.range.end).unwrap_or_default();
    if let Some(inside) = raw.bytes().position(|byte| byte < 0x20) {
        errors.note(start.saturating_add(inside), Problem::ControlCharacter);
    }
    literal.value.into_owned()
}
