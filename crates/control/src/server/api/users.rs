//! Users. Source: logs-and-api.md, section 15.

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{ApiError, Call, Reply};
use crate::admin::{Belongings, UserDeparture, UserView};

fn shown(user: &UserView, tailnet: &str) -> Value {
    let status = match (user.suspended, user.online) {
        (true, _) => "suspended",
        (false, true) => "active",
        (false, false) => "idle",
    };
    let mut value = json!({
        "id": user.id.to_string(),
        "displayName": user.display_name,
        "loginName": user.login,
        "profilePicUrl": "",
        "tailnetId": tailnet,
        "created": user.created,
        "type": "member",
        "role": user.role,
        "status": status,
        "deviceCount": user.nodes,
        "currentlyConnected": user.online,
    });
    if let (Some(seen), Some(object)) = (user.last_seen, value.as_object_mut()) {
        object.insert("lastSeen".to_owned(), json!(seen));
    }
    value
}

fn tailnet_id(call: &Call) -> String {
    call.desk.own_tailnet().map(|(id, _)| id.to_string()).unwrap_or_default()
}

pub(super) async fn list(call: &Call) -> Result<Reply, ApiError> {
    let none = match call.query("type") {
        None | Some("member" | "all") => false,
        // Nobody of another tailnet is a user here.
        Some("shared") => true,
        Some(_) => return Err(ApiError::bad("type: use member, shared or all")),
    };
    let role = call.query("role").filter(|role| *role != "all");
    if role.is_some_and(|role| crate::model::role::parse(role).is_none()) {
        return Err(ApiError::bad(
            "role: use owner, admin, it-admin, network-admin, billing-admin, auditor, member or all",
        ));
    }
    let id = tailnet_id(call);
    let users = call.desk.users(Some(&call.tailnet))?;
    let users = users.iter().filter(|user| !none && role.is_none_or(|role| user.role == role));
    let users: Vec<_> = users.map(|user| shown(user, &id)).collect();
    Ok(Reply::Json(json!({ "users": users })))
}

pub(super) async fn get(call: &Call) -> Result<Reply, ApiError> {
    let users = call.desk.users(Some(&call.tailnet))?;
    let user = users.iter().find(|user| user.id.to_string() == call.parameter(0));
    let user = user.ok_or_else(|| ApiError::new(http::StatusCode::NOT_FOUND, "user not found"))?;
    Ok(Reply::Json(shown(user, &tailnet_id(call))))
}

#[derive(Deserialize)]
struct Role {
    role: String,
}

pub(super) async fn role(call: &Call) -> Result<Reply, ApiError> {
    let Role { role } = call.json()?;
    call.desk.set_user_role(&call.tailnet, &call.id(), &role).await?;
    Ok(Reply::done())
}

pub(super) async fn approve(call: &Call) -> Result<Reply, ApiError> {
    get(call).await?;
    Ok(Reply::done())
}

pub(super) async fn suspend(call: &Call) -> Result<Reply, ApiError> {
    let left = call.desk.suspend_user(&call.tailnet, &call.id()).await?;
    Ok(departure(&left))
}

pub(super) async fn restore(call: &Call) -> Result<Reply, ApiError> {
    call.desk.restore_user(&call.tailnet, &call.id()).await?;
    Ok(Reply::done())
}

pub(super) async fn delete(call: &Call) -> Result<Reply, ApiError> {
    let left = call.desk.remove_user(&call.tailnet, &call.id(), Belongings::Remove).await?;
    Ok(departure(&left))
}

/// Tells, beyond the original, which OAuth clients of a user go on without them.
fn departure(left: &UserDeparture) -> Reply {
    if left.oauth_clients.is_empty() {
        Reply::done()
    } else {
        Reply::Json(json!({ "oauthClients": left.oauth_clients }))
    }
}
