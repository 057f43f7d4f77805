//! Attributes of nodes, which postures of the policy look at.

use std::collections::BTreeMap;

use serde_json::Value;
use warren_policy::AttributeValue;
use warren_wire::control::NodeId;

use super::nodes::present;
use super::{AdminError, AttributesView, Desk, NodeView, invalid, not_found};
use crate::authority::Scope;
use crate::model::NodeRecord;
use crate::model::attributes::{self, CUSTOM_MAX};
use crate::tailnet::facts;

impl Desk {
    /// Returns all attributes of a node.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub fn node_attributes(&self, tailnet: Option<&str>, node: &str) -> Result<AttributesView, AdminError> {
        let (place, id) = self.find(tailnet, node, Scope::DevicesAttributes.read())?;
        let snapshot = place.snapshot();
        let found = snapshot.nodes.get(id).ok_or_else(|| not_found("node", node))?;
        let values = facts::attributes(found);
        Ok(AttributesView {
            node: snapshot.fqdn(found).trim_end_matches('.').to_owned(),
            attributes: values.iter().map(|(name, value)| (name.clone(), attributes::to_json(value))).collect(),
        })
    }

    /// Gives a node an attribute, `custom:…`, with a text of at most 200 bytes, a number, true or false.
    ///
    /// An attribute keeps the kind of its first value until it is taken away, so that a comparison in the policy does
    /// not stop working by a slip.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Invalid`].
    pub async fn set_node_attribute(
        &self,
        tailnet: Option<&str>,
        node: &str,
        name: &str,
        value: &Value,
    ) -> Result<NodeView, AdminError> {
        let new = NewAttribute::new(name, value)?;
        self.edit((tailnet, node), Scope::DevicesAttributes.write(), "node.attribute", move |record, _, _| {
            new.put(record)
        })
        .await
    }

    /// Takes an attribute away.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::NotFound`] also if the node has no such attribute.
    pub async fn unset_node_attribute(
        &self,
        tailnet: Option<&str>,
        node: &str,
        name: &str,
    ) -> Result<NodeView, AdminError> {
        let name = name.to_owned();
        self.edit((tailnet, node), Scope::DevicesAttributes.write(), "node.attribute", move |record, _, _| {
            record.attributes.remove(&name).map(drop).ok_or_else(|| not_found("attribute", &name))
        })
        .await
    }

    /// Changes attributes of several nodes, all or none: a value, or `None` to take it away where it is. Nodes are named by
    /// number or stable ID.
    ///
    /// # Errors
    /// As [`Self::set_node_attribute`]; [`AdminError::Invalid`] also for more than 10,000 values.
    pub async fn patch_attributes(
        &self,
        tailnet: &str,
        patches: &[(String, String, Option<Value>)],
    ) -> Result<(), AdminError> {
        let place = self.place(tailnet, Scope::DevicesAttributes.write())?;
        if patches.len() > PATCH_MAX {
            return Err(invalid("number of values: one patch changes 10000 at most", &patches.len().to_string()));
        }
        // One write for each node, however much of it changes.
        let mut edits: BTreeMap<NodeId, Vec<(String, Option<NewAttribute>)>> = BTreeMap::new();
        for (node, name, value) in patches {
            let number = node.strip_prefix('n').unwrap_or(node).parse().map(NodeId);
            let id = number.map_err(|_| not_found("node", node))?;
            let new = value.as_ref().map(|value| NewAttribute::new(name, value)).transpose()?;
            edits.entry(id).or_default().push((name.clone(), new));
        }
        let who = place.who();
        place
            .change(move |work, _| {
                for (id, changes) in &edits {
                    let node = present(work, *id)?;
                    let mut record = (*node.record).clone();
                    for (name, new) in changes {
                        match new {
                            Some(new) => new.put(&mut record)?,
                            None => drop(record.attributes.remove(name)),
                        }
                    }
                    if record != *node.record {
                        work.put_node(&who, "node.attribute", &node, record);
                    }
                }
                Ok(())
            })
            .await
    }
}

/// How many values one patch changes.
const PATCH_MAX: usize = 10_000;

/// An attribute whose name and value are in order.
struct NewAttribute {
    name: String,
    value: AttributeValue,
    /// The value as it came.
    shown: String,
}

impl NewAttribute {
    fn new(name: &str, value: &Value) -> Result<Self, AdminError> {
        if !attributes::is_custom_name(name) {
            return Err(invalid("attribute: write custom: and letters, digits or _, 128 bytes at most", name));
        }
        let shown = value.to_string();
        let value = attributes::from_json(value)
            .ok_or_else(|| invalid("value: a text of 200 bytes at most, a number, true or false", &shown))?;
        Ok(Self { name: name.to_owned(), value, shown })
    }

    fn put(&self, record: &mut NodeRecord) -> Result<(), AdminError> {
        let Self { name, value, shown } = self;
        let same = |other: &str| other.eq_ignore_ascii_case(name) && other != name;
        if record.attributes.keys().any(|other| same(other)) {
            return Err(invalid("new attribute: the node has one that differs in capital letters only", name));
        }
        match record.attributes.get(name) {
            Some(before) if kind(before) != kind(value) => {
                return Err(invalid("value of the kind that the attribute has; take it away first", shown));
            }
            None if record.attributes.len() >= CUSTOM_MAX => {
                return Err(invalid("new attribute: a node has 64 at most", name));
            }
            Some(_) | None => {}
        }
        record.attributes.insert(name.clone(), value.clone());
        Ok(())
    }
}

fn kind(value: &AttributeValue) -> std::mem::Discriminant<AttributeValue> {
    std::mem::discriminant(value)
}

#[cfg(test)]
mod tests;
