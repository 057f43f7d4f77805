//! Keys: those that let nodes in, those of users for this API, and OAuth clients. Source: logs-and-api.md, section 13.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{ApiError, Call, Reply};
use crate::admin::{AuthKeyView, CredentialView, KeyText, NewApiKey, NewAuthKey, NewOauthClient};
use crate::model::CredentialKind;

/// Longest life of a key that is made here, in seconds, and that of one that says nothing of it.
const LONGEST: u64 = 90 * 86_400;

/// A key of whichever kind.
enum Known {
    Auth(AuthKeyView),
    Api(CredentialView),
}

impl Known {
    fn id(&self) -> &str {
        match self {
            Self::Auth(key) => &key.id,
            Self::Api(key) => &key.id,
        }
    }

    fn valid(&self) -> bool {
        match self {
            Self::Auth(key) => key.valid,
            Self::Api(key) => key.valid,
        }
    }

    /// Tells whether a caller without `all` sees it: users theirs, clients all clients.
    fn is_of(&self, caller: Option<i64>) -> bool {
        match (self, caller) {
            (Self::Auth(key), Some(user)) => key.made_by == Some(user),
            (Self::Api(key), Some(user)) => key.user_id == Some(user),
            (Self::Api(key), None) => key.kind == CredentialKind::OauthClient,
            (Self::Auth(_), None) => false,
        }
    }

    fn json(&self, text: Option<&KeyText>) -> Value {
        let mut value = match self {
            Self::Auth(key) => auth(key),
            Self::Api(key) => api(key),
        };
        if let Some(object) = value.as_object_mut() {
            object.retain(|_, value| !value.is_null());
            if let Some(text) = text {
                object.insert("key".to_owned(), text.expose().into());
            }
        }
        value
    }
}

fn auth(key: &AuthKeyView) -> Value {
    let seconds = key.expires.map(|end| end.duration_since(key.created).as_secs());
    json!({
        "id": key.id,
        "keyType": "auth",
        "description": key.description,
        "created": key.created,
        "expires": key.expires,
        "expirySeconds": seconds,
        "capabilities": { "devices": { "create": {
            "reusable": key.reusable,
            "ephemeral": key.ephemeral,
            "preauthorized": key.pre_approved,
            "tags": key.tags,
        } } },
        "invalid": !key.valid,
        "userId": key.made_by.map(|user| user.to_string()),
    })
}

fn api(key: &CredentialView) -> Value {
    let kind = match key.kind {
        CredentialKind::ApiKey => "api",
        CredentialKind::OauthClient => "client",
    };
    json!({
        "id": key.id,
        "keyType": kind,
        "description": key.description,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "scopes": key.scopes,
        "tags": key.tags,
        "invalid": !key.valid,
        "userId": key.user_id.map(|user| user.to_string()),
    })
}

/// Returns all keys of the kinds that the caller may see.
fn all(call: &Call) -> Vec<Known> {
    let tailnet = Some(&*call.tailnet);
    let auth = call.desk.auth_keys(tailnet).unwrap_or_default().into_iter().map(Known::Auth);
    let kinds = [CredentialKind::ApiKey, CredentialKind::OauthClient].into_iter();
    let api = kinds.flat_map(|kind| call.desk.credentials(tailnet, kind).unwrap_or_default()).map(Known::Api);
    auth.chain(api).collect()
}

fn find(call: &Call) -> Result<Known, ApiError> {
    let id = call.parameter(0);
    let found = all(call).into_iter().find(|key| key.id() == id);
    found.ok_or_else(|| ApiError::new(http::StatusCode::NOT_FOUND, "key not found"))
}

pub(super) async fn list(call: &Call) -> Result<Reply, ApiError> {
    let everybodys = match call.query("all") {
        None | Some("false") => false,
        Some("true" | "") => true,
        Some(_) => return Err(ApiError::bad("all: use true or false")),
    };
    let caller = call.desk.caller(&call.tailnet)?;
    let keys = all(call).into_iter().filter(|key| key.valid() && (everybodys || key.is_of(caller)));
    let keys: Vec<_> = keys.map(|key| key.json(None)).collect();
    Ok(Reply::Json(json!({ "keys": keys })))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NewKey {
    key_type: Option<String>,
    description: Option<String>,
    capabilities: Option<Capabilities>,
    expiry_seconds: Option<u64>,
    scopes: Option<Vec<String>>,
    tags: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Capabilities {
    devices: Devices,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Devices {
    create: Create,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Create {
    reusable: bool,
    ephemeral: bool,
    preauthorized: bool,
    tags: Option<Vec<String>>,
}

impl NewKey {
    fn lifetime(&self) -> Result<Duration, ApiError> {
        match self.expiry_seconds.filter(|seconds| *seconds > 0) {
            None => Ok(Duration::from_secs(LONGEST)),
            Some(seconds) if seconds <= LONGEST => Ok(Duration::from_secs(seconds)),
            Some(_) => Err(ApiError::bad("expirySeconds: 7776000 (90 days) at most")),
        }
    }

    fn client(self) -> NewOauthClient {
        NewOauthClient {
            scopes: self.scopes.unwrap_or_default(),
            tags: self.tags.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
        }
    }
}

pub(super) async fn create(call: &Call) -> Result<Reply, ApiError> {
    let new: NewKey = call.json()?;
    let tailnet = &*call.tailnet;
    let (known, text) = match new.key_type.as_deref() {
        None | Some("" | "auth") => {
            let lifetime = Some(new.lifetime()?);
            let capabilities =
                new.capabilities.ok_or_else(|| ApiError::bad("capabilities.devices.create is missing"))?;
            let create = capabilities.devices.create;
            let new = NewAuthKey {
                tailnet: tailnet.to_owned(),
                user: None,
                tags: create.tags.unwrap_or_default(),
                reusable: create.reusable,
                ephemeral: create.ephemeral,
                pre_approved: create.preauthorized,
                lifetime,
                description: new.description.unwrap_or_default(),
            };
            let created = call.desk.create_auth_key(new).await?;
            (Known::Auth(created.view), created.text)
        }
        Some("client") => {
            let created = call.desk.create_oauth_client(tailnet, new.client()).await?;
            (Known::Api(created.view), created.text)
        }
        Some("api") => {
            let lifetime = new.lifetime()?;
            let (scopes, description) = (new.scopes.unwrap_or_default(), new.description.unwrap_or_default());
            let new = NewApiKey { user: None, scopes, description, lifetime };
            let created = call.desk.create_api_key(tailnet, new).await?;
            (Known::Api(created.view), created.text)
        }
        Some("federated") => return Err(ApiError::not_offered("federated identities")),
        Some(_) => return Err(ApiError::bad("keyType: use auth, client or api")),
    };
    Ok(Reply::Json(known.json(Some(&text))))
}

pub(super) async fn get(call: &Call) -> Result<Reply, ApiError> {
    Ok(Reply::Json(find(call)?.json(None)))
}

pub(super) async fn set(call: &Call) -> Result<Reply, ApiError> {
    let new: NewKey = call.json()?;
    match find(call)? {
        Known::Api(key) if key.kind == CredentialKind::OauthClient => {
            let view = call.desk.set_oauth_client(&key.id, new.client()).await?;
            Ok(Reply::Json(Known::Api(view).json(None)))
        }
        Known::Api(_) | Known::Auth(_) => Err(ApiError::bad("only OAuth clients can be changed")),
    }
}

pub(super) async fn delete(call: &Call) -> Result<Reply, ApiError> {
    match find(call)? {
        Known::Auth(key) => drop(call.desk.revoke_auth_key(&key.id).await?),
        Known::Api(key) => drop(call.desk.revoke_credential(&key.id, key.kind).await?),
    }
    Ok(Reply::done())
}
