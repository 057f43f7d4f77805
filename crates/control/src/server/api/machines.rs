//! Enrolled machines, which the original does not have.

use serde::Deserialize;
use serde_json::json;
use warren_wire::key::MachineKey;

use super::call::{ApiError, Call, Reply};
use crate::admin::MachineView;

fn list(machines: &[MachineView]) -> Reply {
    let shown = |machine: &MachineView| {
        json!({
            "machineKey": machine.key,
            "description": machine.description,
            "enrolled": machine.enrolled,
            "enrolledBy": if machine.proof.is_some() { "certificate" } else { "administrator" },
            "certificate": machine.proof.as_ref().map(|proof| {
                json!({ "authority": proof.ca, "serialNumber": proof.serial, "until": proof.until })
            }),
            "ended": machine.ended,
            "devices": machine.nodes,
        })
    };
    let machines: Vec<_> = machines.iter().map(shown).collect();
    Reply::Json(json!({ "machines": machines }))
}

pub(super) async fn all(call: &Call) -> Result<Reply, ApiError> {
    Ok(list(&call.desk.machines(Some(&call.tailnet))?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct New {
    machine_keys: Vec<MachineKey>,
    #[serde(default)]
    description: String,
}

pub(super) async fn enrol(call: &Call) -> Result<Reply, ApiError> {
    let New { machine_keys, description } = call.json()?;
    Ok(list(&call.desk.enrol_machines(&call.tailnet, &machine_keys, &description).await?))
}

pub(super) async fn end(call: &Call) -> Result<Reply, ApiError> {
    let key = call.parameter(0).parse();
    let key = key.map_err(|_| ApiError::new(http::StatusCode::NOT_FOUND, "machine not found"))?;
    call.desk.end_enrolment(&call.tailnet, key).await?;
    Ok(Reply::done())
}
