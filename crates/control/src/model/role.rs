//! Roles of users as text.

use serde::{Deserialize, Deserializer, Serializer};
use warren_policy::Role;

/// All roles with their names.
const NAMES: [(Role, &str); 7] = [
    (Role::Owner, "owner"),
    (Role::Admin, "admin"),
    (Role::ItAdmin, "it-admin"),
    (Role::NetworkAdmin, "network-admin"),
    (Role::BillingAdmin, "billing-admin"),
    (Role::Auditor, "auditor"),
    (Role::Member, "member"),
];

/// Returns the name of a role.
pub(crate) fn name(role: Role) -> &'static str {
    NAMES.iter().find(|(known, _)| *known == role).map_or("member", |(_, name)| name)
}

/// Finds a role by its name.
pub(crate) fn parse(text: &str) -> Option<Role> {
    NAMES.iter().find(|(_, name)| *name == text).map(|(role, _)| *role)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) fn serialize<S: Serializer>(role: &Role, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name(*role))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom(format_args!("{text:?} is no role")))
}
