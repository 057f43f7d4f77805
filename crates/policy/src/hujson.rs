//! HuJSON: JSON with comments and trailing commas, and nothing else.

use crate::problem::{Errors, Problem};
use jsonc_parser::ast::{Object, StringLit, Value};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};
use std::collections::BTreeMap;

/// Largest policy file, in bytes: more than 4,000 rules fit, and the file fits into a request to the server.
pub const POLICY_MAX_BYTES: usize = 512 << 10;
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
    Bool(bool),
    /// As written.
    Number(String),
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

impl Json {
    /// Writes the value as JSON without blanks, comments and trailing commas.
    pub(crate) fn write(&self, out: &mut String) {
        match &self.kind {
            Kind::Null => out.push_str("null"),
            Kind::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Kind::Number(number) => out.push_str(number),
            Kind::Text(text) => write_text(text, out),
            Kind::List(elements) => {
                out.push('[');
                for (number, element) in elements.iter().enumerate() {
                    out.push_str(if number > 0 { "," } else { "" });
                    element.write(out);
                }
                out.push(']');
            }
            Kind::Object(members) => {
                out.push('{');
                for (number, member) in members.iter().enumerate() {
                    out.push_str(if number > 0 { "," } else { "" });
                    write_text(&member.name, out);
                    out.push(':');
                    member.value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

impl Kind {
    /// Says what it is, for messages.
    pub(crate) const fn noun(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
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
                    // The parser ends a comment at either.
                    if matches!(inside, b'\n' | b'\r') {
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
        Value::BooleanLit(literal) => Kind::Bool(literal.value),
        Value::NumberLit(literal) => {
            // Readers of arguments hold numbers as Go and JavaScript do.
            if !literal.value.parse().is_ok_and(f64::is_finite) {
                errors.note(at, Problem::Value { what: "a number out of range".to_owned() });
            }
            Kind::Number(literal.value.to_owned())
        }
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
            errors.note_duplicate(at, &name, first);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{PolicyErrors, Position};
    use proptest::prelude::*;

    fn read_one(text: &str) -> Result<Json, PolicyErrors> {
        let mut errors = Errors::new(text);
        let value = read(text, &mut errors);
        errors.finish(value)
    }

    fn only_error(text: &str) -> (Position, Problem) {
        let errors = read_one(text).unwrap_err();
        let [error] = errors.errors() else { panic!("{text}: {errors}") };
        (error.position, error.problem.clone())
    }

    fn at(line: usize, column: usize) -> Position {
        Position { line, column }
    }

    #[test]
    fn comments_and_trailing_commas_are_read() {
        let text = "// one\n{\"a\": [1, /* two */ \"x\\u0041\",], // three\n}\n/* four */";
        let Kind::Object(members) = read_one(text).unwrap().kind else { panic!() };
        let Kind::List(list) = &members[0].value.kind else { panic!() };
        assert_eq!((members[0].name.as_str(), members[0].at), ("a", 8));
        assert_eq!(list[1].kind, Kind::Text("xA".to_owned()));
    }

    #[test]
    fn whatever_json_does_not_know_is_refused() {
        for text in [
            "{a: 1}",
            "{'a': 1}",
            "[0x10]",
            "[+1]",
            "[.5]",
            "[NaN]",
            "[1 2]",
            "[01]",
            "{} {}",
            "\u{feff}{}",
            "[\"\\x41\"]",
            "[\"a]",
            "/* {}",
            "# {}",
            "{\"a\"}",
            "[,]",
            "tru",
        ] {
            let (_, problem) = only_error(text);
            assert!(matches!(problem, Problem::Syntax { .. }), "{text}: {problem}");
        }
        for text in ["", " ", "// only a comment"] {
            assert_eq!(only_error(text), (at(1, 1), Problem::EmptyDocument), "{text}");
        }
    }

    /// JSON forbids them (RFC 8259, section 7), the parser does not; they hide things from whoever reads the file.
    #[test]
    fn control_characters_inside_texts_are_refused() {
        assert_eq!(only_error("{\n\"a\": \"x\ty\"}"), (at(2, 8), Problem::ControlCharacter));
    }

    #[test]
    fn second_member_of_a_name_is_refused() {
        let problem = Problem::DuplicateName { name: "a".to_owned(), first: at(1, 2) };
        assert_eq!(only_error("{\"a\": 1,\n \"\\u0061\": 2}"), (at(2, 2), problem));
    }

    #[test]
    fn columns_count_characters() {
        let (position, _) = only_error("{\"é\": \"ü\", x}");
        assert_eq!(position, at(1, 12));
    }

    #[test]
    fn depth_is_limited_and_brackets_in_texts_and_comments_do_not_count() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        read_one(&nested(POLICY_MAX_DEPTH)).unwrap();
        let too_deep = (at(1, POLICY_MAX_DEPTH + 1), Problem::TooDeep { limit: POLICY_MAX_DEPTH });
        assert_eq!(only_error(&nested(POLICY_MAX_DEPTH + 1)), too_deep);
        assert_eq!(only_error(&"[".repeat(POLICY_MAX_BYTES)), too_deep);
        // A carriage return ends a comment, too.
        only_error(&format!("//\r{}", "[".repeat(POLICY_MAX_BYTES - 3)));
        let many = "[{".repeat(50);
        read_one(&format!("// {many}\n/* {many} */ [\"{many}\\\"{many}\"]")).unwrap();
    }

    #[test]
    fn size_is_limited() {
        let longest = format!("{{}}{}", " ".repeat(POLICY_MAX_BYTES - 2));
        read_one(&longest).unwrap();
        let (_, problem) = only_error(&format!("{longest} "));
        assert_eq!(problem, Problem::TooLarge { size: POLICY_MAX_BYTES + 1, limit: POLICY_MAX_BYTES });
        let (_, problem) = only_error(&"[".repeat(16 << 20));
        assert_eq!(problem, Problem::TooLarge { size: 16 << 20, limit: POLICY_MAX_BYTES });
    }

    proptest! {
        /// The standard parser is the judge for texts without our extensions.
        #[test]
        fn plain_json_is_read_as_the_standard_parser_does(
            text in proptest::collection::vec(
                proptest::sample::select(vec![
                    "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "null", "true", "1", "-2.5e3", " ", "\n", "\"", "\\", "é",
                ]),
                0..24,
            ).prop_map(|parts| parts.concat()),
        ) {
            let standard: Result<serde_json::Value, _> = serde_json::from_str(&text);
            match (read_one(&text), standard) {
                (Ok(ours), Ok(theirs)) => prop_assert!(same(&ours, &theirs), "{}", text),
                (Err(errors), Ok(_)) => {
                    let duplicate = |problem: &Problem| matches!(problem, Problem::DuplicateName { .. });
                    prop_assert!(errors.errors().iter().all(|error| duplicate(&error.problem)), "{}: {}", text, errors);
                }
                // A trailing comma is ours alone.
                (Ok(_), Err(_)) => prop_assert!(text.contains(','), "{}", text),
                (Err(_), Err(_)) => {}
            }
        }
    }

    fn same(ours: &Json, theirs: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (&ours.kind, theirs) {
            (Kind::Null, Value::Null) | (Kind::Number(_), Value::Number(_)) => true,
            (Kind::Bool(one), Value::Bool(two)) => one == two,
            (Kind::Text(one), Value::String(two)) => one == two,
            (Kind::List(one), Value::Array(two)) => {
                one.len() == two.len() && one.iter().zip(two).all(|(one, two)| same(one, two))
            }
            (Kind::Object(one), Value::Object(two)) => {
                one.len() == two.len()
                    && one.iter().all(|one| two.get(&one.name).is_some_and(|two| same(&one.value, two)))
            }
            _ => false,
        }
    }
}
