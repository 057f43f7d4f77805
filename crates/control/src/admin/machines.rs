//! Enrolled machines: where a tailnet asks for it, they alone take part.

use std::collections::BTreeSet;

use warren_wire::key::MachineKey;

use super::credentials::described;
use super::{AdminError, Desk, MachineView, TailnetView, invalid, not_found};
use crate::authority::Scope;
use crate::model::MachineRecord;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::MACHINES_MAX;

/// Most machines of one call.
const AT_ONCE: usize = 1000;

impl Desk {
    /// Enrols machines, by the keys by which they know themselves; those that are enrolled stay as they are, and those whose
    /// enrolment was ended are enrolled again. `description` has letters, digits, spaces and dashes, 50 at most.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for too many machines or a description.
    pub async fn enrol_machines(
        &self,
        tailnet: &str,
        keys: &[MachineKey],
        description: &str,
    ) -> Result<Vec<MachineView>, AdminError> {
        let place = self.place(tailnet, Scope::DevicesCore.write())?;
        if keys.len() > AT_ONCE {
            return Err(invalid("number of machines: one call enrols 1000 at most", &keys.len().to_string()));
        }
        let (who, description) = (place.who(), described(description.to_owned())?);
        let keys: BTreeSet<_> = keys.iter().copied().collect();
        let wanted = keys.clone();
        place
            .change(move |work, _| {
                let known = &work.state.machines;
                // What an administrator enrols rests on no certificate any more.
                let is_by_hand = |record: &MachineRecord| record.proof.is_none() && record.ended.is_none();
                let is_new = |key: &&MachineKey| known.get(key).is_none_or(|record| !is_by_hand(record));
                let new = wanted.iter().filter(is_new).map(|key| MachineRecord {
                    key: *key,
                    tailnet: work.state.tailnet.id,
                    description: description.clone(),
                    enrolled: work.now,
                    proof: None,
                    ended: None,
                });
                let new: Vec<_> = new.collect();
                let number = known.len() + new.iter().filter(|record| !known.contains_key(&record.key)).count();
                if number > MACHINES_MAX {
                    let wanted = "number of machines: a network has 100000 at most, those that were ended included";
                    return Err(invalid(wanted, &number.to_string()));
                }
                work.enrol(&who, new);
                Ok(())
            })
            .await?;
        let snapshot = place.snapshot();
        let enrolled = keys.iter().filter_map(|key| snapshot.machines.get(key));
        Ok(enrolled.map(|record| view(&snapshot, record)).collect())
    }

    /// Returns the enrolled machines of a tailnet, or of all, by key, and those whose enrolment was ended.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn machines(&self, tailnet: Option<&str>) -> Result<Vec<MachineView>, AdminError> {
        let mut machines = Vec::new();
        for place in self.places(tailnet, Scope::DevicesCore.read())? {
            let snapshot = place.snapshot();
            machines.extend(snapshot.machines.values().map(|record| view(&snapshot, record)));
        }
        Ok(machines)
    }

    /// Ends the enrolment of a machine: where enrolled ones alone take part, nobody knows its nodes any more from then on. A
    /// certificate that enrolled it is revoked, since it may be on another machine by now, and no other one enrols it again.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn end_enrolment(&self, tailnet: &str, key: MachineKey) -> Result<MachineView, AdminError> {
        let place = self.place(tailnet, Scope::DevicesCore.write())?;
        let who = place.who();
        place
            .change(move |work, _| {
                let record = work.state.machines.get(&key).filter(|record| record.ended.is_none()).cloned();
                let record = record.ok_or_else(|| not_found("enrolled machine", &key.to_string()))?;
                if let Some(proof) = &record.proof
                    && let Some(ca) = work.state.machine_cas.get(&proof.ca)
                {
                    let mut ca = (**ca).clone();
                    if ca.revoked.insert(proof.serial.clone()) {
                        work.put_machine_ca(&who, "machine-ca.revoke", ca);
                    }
                }
                work.end_enrolment(&who, &record);
                Ok(())
            })
            .await?;
        let snapshot = place.snapshot();
        let record = snapshot.machines.get(&key).ok_or_else(|| not_found("enrolled machine", &key.to_string()))?;
        Ok(view(&snapshot, record))
    }

    /// Decides whether enrolled machines alone take part. Others may still be registered; nobody is told of them, and they
    /// of nobody, whatever login, auth key or approval let them in.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn set_only_enrolled(&self, tailnet: &str, needed: bool) -> Result<TailnetView, AdminError> {
        let right = Scope::FeatureSettings.write();
        self.set(tailnet, right, "tailnet.only-enrolled", move |record| record.only_enrolled = needed).await
    }
}

fn view(snapshot: &Snapshot, record: &MachineRecord) -> MachineView {
    let nodes = snapshot.nodes.iter().filter(|node| node.record.machine == record.key);
    MachineView {
        key: record.key,
        tailnet: snapshot.tailnet.name.clone(),
        description: record.description.clone(),
        enrolled: record.enrolled,
        proof: record.proof.clone(),
        ended: record.ended,
        nodes: nodes.map(|node| snapshot.fqdn(node).trim_end_matches('.').to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests;
