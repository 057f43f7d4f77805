//! Settings of a tailnet. Source: logs-and-api.md, section 15.

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{ApiError, Call, Reply};
use crate::admin::TailnetView;
use crate::model::KeyLifetime;

const DAY: u64 = 86_400;

fn shown(view: &TailnetView) -> Value {
    let days = match view.key_lifetime {
        KeyLifetime::Seconds(seconds) => Some(seconds.div_ceil(DAY)),
        KeyLifetime::Never => None,
    };
    json!({
        "aclsExternallyManagedOn": false,
        "aclsExternalLink": "",
        "devicesApprovalOn": view.machine_approval,
        "devicesEnrolledOnlyOn": view.only_enrolled,
        "devicesAutoUpdatesOn": false,
        "devicesKeyDurationDays": days,
        "usersApprovalOn": false,
        "usersRoleAllowedToJoinExternalTailnets": "none",
        "networkFlowLoggingOn": view.flow_log,
        "regionalRoutingOn": false,
        "postureIdentityCollectionOn": false,
        "httpsEnabled": false,
    })
}

pub(super) async fn get(call: &Call) -> Result<Reply, ApiError> {
    Ok(Reply::Json(shown(&call.desk.tailnet(&call.tailnet)?)))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Patch {
    devices_approval_on: Option<bool>,
    devices_enrolled_only_on: Option<bool>,
    devices_key_duration_days: Option<u64>,
    network_flow_logging_on: Option<bool>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

pub(super) async fn patch(call: &Call) -> Result<Reply, ApiError> {
    let patch: Patch = call.json()?;
    let tailnet = &*call.tailnet;
    let before = shown(&call.desk.tailnet(tailnet)?);
    // A setting that is as asked is no question; one that this server does not have must not be taken for done.
    let unlike = |(name, value): &(&String, &Value)| {
        !value.is_null() && before.get(name.as_str()).is_some_and(|present| present != *value)
    };
    if let Some((name, _)) = patch.others.iter().find(unlike) {
        return Err(ApiError::not_offered(&format!("another value of {name}")));
    }
    if patch.devices_key_duration_days.is_some_and(|days| !(1..=180).contains(&days)) {
        return Err(ApiError::bad("devicesKeyDurationDays: 1 to 180"));
    }
    if let Some(needed) = patch.devices_approval_on {
        call.desk.set_machine_approval(tailnet, needed).await?;
    }
    if let Some(needed) = patch.devices_enrolled_only_on {
        call.desk.set_only_enrolled(tailnet, needed).await?;
    }
    if let Some(days) = patch.devices_key_duration_days {
        call.desk.set_key_lifetime(tailnet, KeyLifetime::Seconds(days * DAY)).await?;
    }
    if let Some(on) = patch.network_flow_logging_on {
        call.desk.set_flow_log(tailnet, on).await?;
    }
    get(call).await
}
