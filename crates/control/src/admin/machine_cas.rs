//! Authorities whose certificates enrol machines.

use super::credentials::described;
use super::{AdminError, Desk, MachineCaView, invalid, not_found};
use crate::authority::Scope;
use crate::machine_proof::{is_same_authority, read_ca, serial_number};
use crate::model::MachineCaRecord;
use crate::tailnet::snapshot::Snapshot;

/// Most authorities of a tailnet.
const CAS_MAX: usize = 8;
/// Most revoked certificates of an authority; more, and it is time for another authority.
const REVOKED_MAX: usize = 10_000;

impl Desk {
    /// Enrols an authority by its certificate, PEM; machines that prove to hold one that it issued are enrolled as long as
    /// both last.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for what is not one certificate, one of nobody who may issue
    /// certificates to clients, or one that has ended.
    pub async fn add_machine_ca(
        &self,
        tailnet: &str,
        pem: &str,
        description: &str,
    ) -> Result<MachineCaView, AdminError> {
        let place = self.place(tailnet, Scope::FeatureSettings.write())?;
        let found = read_ca(pem).filter(|found| found.until > place.now());
        let found = found.ok_or_else(|| {
            let wanted =
                "certificate of an authority: one in PEM that has not ended and may issue certificates to clients";
            invalid(wanted, "")
        })?;
        let (who, description, id) = (place.who(), described(description.to_owned())?, found.id.clone());
        place
            .change(move |work, _| {
                let known = &work.state.machine_cas;
                if known.contains_key(&found.id) {
                    return Err(AdminError::Taken { what: "machine authority", name: found.id.clone() });
                }
                if known.len() >= CAS_MAX {
                    return Err(invalid("number of authorities: a network has 8 at most", &known.len().to_string()));
                }
                let record = MachineCaRecord {
                    id: found.id.clone(),
                    tailnet: work.state.tailnet.id,
                    certificate: found.text.clone(),
                    description: description.clone(),
                    enrolled: work.now,
                    until: found.until,
                    revoked: std::collections::BTreeSet::new(),
                };
                work.put_machine_ca(&who, "machine-ca.enrol", record);
                Ok(())
            })
            .await?;
        shown(&place.snapshot(), &id)
    }

    /// Returns the authorities of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn machine_cas(&self, tailnet: Option<&str>) -> Result<Vec<MachineCaView>, AdminError> {
        let mut cas = Vec::new();
        for place in self.places(tailnet, Scope::FeatureSettings.read())? {
            let snapshot = place.snapshot();
            cas.extend(snapshot.machine_cas.values().map(|record| view(&snapshot, record)));
        }
        Ok(cas)
    }

    /// Forgets an authority, and ends the enrolment of every machine that its certificates enrolled.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn end_machine_ca(&self, tailnet: &str, id: &str) -> Result<MachineCaView, AdminError> {
        let place = self.place(tailnet, Scope::FeatureSettings.write())?;
        let view = shown(&place.snapshot(), id)?;
        let (who, id) = (place.who(), id.to_owned());
        place
            .change(move |work, _| {
                if !work.state.machine_cas.contains_key(&id) {
                    return Err(not_found("machine authority", &id));
                }
                work.remove_machine_ca(&who, &id);
                work.end_proofs(&who, |proof| proof.ca == id);
                Ok(())
            })
            .await?;
        Ok(view)
    }

    /// Takes a certificate of an authority back, by its serial number in hex digits, with or without colons; machines that
    /// it enrolled, or one that it issued, are enrolled no more.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`].
    pub async fn revoke_certificate(&self, tailnet: &str, id: &str, serial: &str) -> Result<MachineCaView, AdminError> {
        let place = self.place(tailnet, Scope::FeatureSettings.write())?;
        // One form, as that of certificates that are shown: without zeros before it.
        let digits = serial_number(&serial.replace(':', "").to_ascii_lowercase());
        if digits.is_empty() || digits.len() > 42 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid("serial number: write hex digits, 42 at most", serial));
        }
        let (who, wanted) = (place.who(), id.to_owned());
        place
            .change(move |work, _| {
                let known = work.state.machine_cas.get(&wanted);
                let mut record = (**known.ok_or_else(|| not_found("machine authority", &wanted))?).clone();
                if record.revoked.len() >= REVOKED_MAX {
                    return Err(invalid("number of revoked certificates: an authority has 10000 at most", ""));
                }
                if record.revoked.insert(digits.clone()) {
                    work.put_machine_ca(&who, "machine-ca.revoke", record);
                }
                // The same authority may be known by several certificates.
                let own = work.state.machine_cas.get(&wanted).cloned();
                let is_own = |ca: &&std::sync::Arc<MachineCaRecord>| {
                    own.as_ref().is_some_and(|own| is_same_authority(&own.certificate, &ca.certificate))
                };
                let same: Vec<_> = work.state.machine_cas.values().filter(is_own).map(|ca| ca.id.clone()).collect();
                work.end_proofs(&who, |proof| {
                    proof.rests_on(&digits) && (proof.ca == wanted || same.contains(&proof.ca))
                });
                Ok(())
            })
            .await?;
        shown(&place.snapshot(), id)
    }
}

fn shown(snapshot: &Snapshot, id: &str) -> Result<MachineCaView, AdminError> {
    let record = snapshot.machine_cas.get(id).ok_or_else(|| not_found("machine authority", id))?;
    Ok(view(snapshot, record))
}

fn view(snapshot: &Snapshot, record: &MachineCaRecord) -> MachineCaView {
    let rests = |machine: &&std::sync::Arc<crate::model::MachineRecord>| {
        machine.proof.as_ref().is_some_and(|proof| proof.ca == record.id)
    };
    MachineCaView {
        id: record.id.clone(),
        tailnet: snapshot.tailnet.name.clone(),
        description: record.description.clone(),
        enrolled: record.enrolled,
        until: record.until,
        revoked: record.revoked.iter().cloned().collect(),
        machines: snapshot.machines.values().filter(rests).count(),
    }
}
