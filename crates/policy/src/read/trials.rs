//! The sections `tests` and `sshTests`. What an entry says is judged when it is run.

use super::json::{Fields, Shape, object};
use crate::hujson::Kind;
use crate::model::{ReachTest, SshTest};
use crate::problem::{Errors, Problem};
use crate::{AttributeValue, Attributes};

const TEST: Shape = Shape {
    place: "a test",
    fields: &["src", "proto", "accept", "deny", "srcPostureAttrs"],
    aliases: &[("allow", "accept")],
    remarks: false,
};
const SSH_TEST: Shape = Shape::new("an SSH test", &["src", "dst", "accept", "check", "deny", "srcPostureAttrs"]);

/// Reads `tests`.
pub(super) fn network(policy: &Fields<'_>, errors: &mut Errors<'_>) -> Vec<ReachTest> {
    let mut tests = Vec::new();
    for test in policy.list("tests", errors) {
        let Some(test) = Fields::read(test, &TEST, errors) else { continue };
        tests.push(ReachTest {
            at: test.at,
            source: text(&test, "src", errors),
            protocol: text(&test, "proto", errors),
            accept: test.owned_texts("accept", errors),
            deny: test.owned_texts("deny", errors),
            attributes: attributes(&test, errors),
        });
    }
    tests
}

/// Reads `sshTests`.
pub(super) fn logins(policy: &Fields<'_>, errors: &mut Errors<'_>) -> Vec<SshTest> {
    let mut tests = Vec::new();
    for test in policy.list("sshTests", errors) {
        let Some(test) = Fields::read(test, &SSH_TEST, errors) else { continue };
        tests.push(SshTest {
            at: test.at,
            source: text(&test, "src", errors),
            destinations: test.owned_texts("dst", errors),
            accept: test.owned_texts("accept", errors),
            check: test.owned_texts("check", errors),
            deny: test.owned_texts("deny", errors),
            attributes: attributes(&test, errors),
        });
    }
    tests
}

fn text(test: &Fields<'_>, field: &str, errors: &mut Errors<'_>) -> String {
    test.text(field, errors).map(|(_, text)| text.to_owned()).unwrap_or_default()
}

fn attributes(test: &Fields<'_>, errors: &mut Errors<'_>) -> Attributes {
    let Some(given) = test.get("srcPostureAttrs") else { return Attributes::new() };
    let mut attributes = Attributes::new();
    for member in object(given, "\"srcPostureAttrs\"", errors).unwrap_or_default() {
        let value = match &member.value.kind {
            Kind::Text(text) => AttributeValue::Text(text.clone()),
            Kind::Bool(value) => AttributeValue::Bool(*value),
            Kind::Number(number) if number.parse::<f64>().is_ok_and(f64::is_finite) => {
                AttributeValue::Number(number.parse().unwrap_or_default())
            }
            Kind::Number(_) | Kind::Null | Kind::List(_) | Kind::Object(_) => {
                let (name, found) = (member.name.clone(), member.value.kind.noun());
                errors.note(member.value.at, Problem::TestAttribute { name, found });
                continue;
            }
        };
        attributes.insert(member.name.trim().to_owned(), value);
    }
    attributes
}
