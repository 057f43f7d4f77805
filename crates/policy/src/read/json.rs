//! JSON values as the reader meets them: of the kind that their place demands, or an error is noted.

use crate::hujson::{Json, Kind, Member};
use crate::problem::{Errors, Problem};
use std::collections::BTreeMap;
use warren_wire::control::RawJson;

/// An object with known members, whose names match without regard to case.
pub(super) struct Shape {
    /// What it is, for messages.
    pub(super) place: &'static str,
    pub(super) fields: &'static [&'static str],
    /// Other names of fields, each with the name that it stands for.
    pub(super) aliases: &'static [(&'static str, &'static str)],
    /// Whether members whose name begins with `#` are remarks.
    pub(super) remarks: bool,
}

impl Shape {
    /// Makes a shape without other names and without remarks.
    pub(super) const fn new(place: &'static str, fields: &'static [&'static str]) -> Self {
        Self { place, fields, aliases: &[], remarks: false }
    }

    fn field(&self, name: &str) -> Option<&'static str> {
        let alias = self.aliases.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |(_, name)| name);
        self.fields.iter().find(|field| field.eq_ignore_ascii_case(name)).copied()
    }
}

/// The members of an object of a known shape.
pub(super) struct Fields<'a> {
    /// Where the object stands.
    pub(super) at: usize,
    found: BTreeMap<&'static str, &'a Member>,
}

impl<'a> Fields<'a> {
    /// Reads an object; notes members that are unknown or there twice. `null` has no members.
    pub(super) fn read(value: &'a Json, shape: &Shape, errors: &mut Errors<'_>) -> Option<Self> {
        let mut found: BTreeMap<&str, &Member> = BTreeMap::new();
        for member in object(value, shape.place, errors)? {
            if shape.remarks && member.name.starts_with('#') {
                continue;
            }
            let Some(field) = shape.field(&member.name) else {
                let name = member.name.clone();
                errors.note(member.at, Problem::UnknownField { name, known: shape.fields });
                continue;
            };
            // HuJSON already refused equal spellings; this catches those that differ in case, and other names.
            if let Some(first) = found.insert(field, member) {
                errors.note_duplicate(member.at, &member.name, first.at);
            }
        }
        Some(Self { at: value.at, found })
    }

    /// Returns the value of a field; `null` is none.
    pub(super) fn get(&self, field: &str) -> Option<&'a Json> {
        self.found.get(field).map(|member| &member.value).filter(|value| value.kind != Kind::Null)
    }

    /// Returns the fields that are there, `null` included, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &'a Json)> + '_ {
        self.found.iter().map(|(field, member)| (*field, &member.value))
    }

    /// Returns the text of a field, without blanks around it.
    pub(super) fn text(&self, field: &str, errors: &mut Errors<'_>) -> Option<(usize, &'a str)> {
        let value = self.get(field)?;
        text(value, &format!("{field:?}"), errors).map(|text| (value.at, text))
    }

    /// Returns the texts of a field, without blanks around them, each with its place.
    pub(super) fn texts(&self, field: &str, errors: &mut Errors<'_>) -> Vec<(usize, &'a str)> {
        self.get(field).map_or_else(Vec::new, |value| texts(value, &format!("{field:?}"), errors))
    }

    /// Returns the texts of a field as they are.
    pub(super) fn owned_texts(&self, field: &str, errors: &mut Errors<'_>) -> Vec<String> {
        self.texts(field, errors).into_iter().map(|(_, text)| text.to_owned()).collect()
    }

    /// Returns the elements of a field that is a list.
    pub(super) fn list(&self, field: &str, errors: &mut Errors<'_>) -> &'a [Json] {
        self.get(field).map_or(&[], |value| list(value, &format!("{field:?}"), errors))
    }

    /// Returns whether a field is true; absent is false.
    pub(super) fn switch(&self, field: &str, errors: &mut Errors<'_>) -> bool {
        let Some(value) = self.get(field) else { return false };
        if let Kind::Bool(value) = value.kind {
            return value;
        }
        wrong_kind(value, &format!("{field:?}"), "true or false", errors);
        false
    }
}

/// Returns the members of an object; `null` has none.
pub(super) fn object<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> Option<&'a [Member]> {
    match &value.kind {
        Kind::Object(members) => Some(members),
        Kind::Null => Some(&[]),
        Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) => {
            wrong_kind(value, place, "an object in braces", errors);
            None
        }
    }
}

/// Returns the members of an object that defines names, without blanks around the names; each name once.
pub(super) fn definitions<'a>(section: &'a Json, place: &str, errors: &mut Errors<'_>) -> Vec<(&'a str, &'a Member)> {
    let mut seen = BTreeMap::new();
    let mut found = Vec::new();
    for member in object(section, place, errors).unwrap_or_default() {
        let name = member.name.trim();
        match seen.insert(name, member.at) {
            Some(first) => errors.note_duplicate(member.at, name, first),
            None => found.push((name, member)),
        }
    }
    found
}

/// Returns the elements of a list; `null` has none.
pub(super) fn list<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> &'a [Json] {
    match &value.kind {
        Kind::List(elements) => elements,
        Kind::Null => &[],
        Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::Object(_) => {
            wrong_kind(value, place, "a list in brackets", errors);
            &[]
        }
    }
}

/// Returns a text without blanks around it.
pub(super) fn text<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> Option<&'a str> {
    if let Kind::Text(text) = &value.kind {
        return Some(text.trim());
    }
    wrong_kind(value, place, "a text in double quotes", errors);
    None
}

/// Returns the texts of a list with their places.
pub(super) fn texts<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> Vec<(usize, &'a str)> {
    let place = format!("an entry of {place}");
    // The list itself is named without "an entry of".
    let elements = list(value, place.trim_start_matches("an entry of "), errors);
    elements.iter().filter_map(|element| Some((element.at, text(element, &place, errors)?))).collect()
}

/// Returns a value as JSON text.
pub(super) fn raw(value: &Json, errors: &mut Errors<'_>) -> Option<RawJson> {
    let mut text = String::new();
    value.write(&mut text);
    noted(RawJson::parse(&text).map_err(|error| Problem::Value { what: error.to_string() }), value.at, errors)
}

pub(super) fn wrong_kind(value: &Json, place: &str, wanted: &'static str, errors: &mut Errors<'_>) {
    let (place, found) = (place.to_owned(), value.kind.noun());
    errors.note(value.at, Problem::WrongKind { place, wanted, found });
}

/// Notes what went wrong.
pub(super) fn noted<T>(outcome: Result<T, Problem>, at: usize, errors: &mut Errors<'_>) -> Option<T> {
    outcome.map_err(|problem| errors.note(at, problem)).ok()
}
