//! The OpenAPI document, made of the same table that calls are looked up in.

use serde_json::{Map, Value, json};

use super::table::{ROUTES, Route};

/// Returns the document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "warren API v2",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Administration of one network, compatible with the Tailscale API v2 in what it offers.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": super::BASE }],
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "An API key, or a token of a client." },
            },
            "schemas": schemas(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<_> = route.parameters().map(parameter).collect();
    parameters.extend(route.query.iter().map(|(name, about)| {
        json!({ "name": name, "in": "query", "required": false, "description": about, "schema": query(name) })
    }));
    let rights: Vec<_> = route.rights.iter().map(ToString::to_string).collect();
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "description": format!("Takes one of the scopes {}.", rights.join(", ")),
        "parameters": parameters,
        "responses": responses(route),
    });
    if let (Some(body), Some(object)) = (route.body, operation.as_object_mut()) {
        let body = json!({ "required": true, "content": content(body) });
        object.insert("requestBody".to_owned(), body);
    }
    operation
}

fn parameter(name: &str) -> Value {
    let about = match name {
        "tailnet" => "`-` for the network of the credential, or its name or number.",
        "deviceId" => "`nodeId` or `id` of the device.",
        "userId" => "`id` of the user.",
        "keyId" => "`id` of the key.",
        "machineKey" => "Key of the machine.",
        _ => "Name of the attribute: `custom:` and letters, digits and `_`.",
    };
    let schema = match name {
        "tailnet" => json!({ "type": "string", "minLength": 1, "maxLength": 63 }),
        "machineKey" => json!({ "type": "string", "pattern": "^mkey:[0-9a-f]{64}$" }),
        "attributeKey" => json!({ "type": "string", "maxLength": 128, "pattern": "^custom:[A-Za-z0-9_:]+$" }),
        _ => json!({ "type": "string", "minLength": 1, "maxLength": 128 }),
    };
    json!({ "name": name, "in": "path", "required": true, "description": about, "schema": schema })
}

/// What a value of the query looks like.
fn query(name: &str) -> Value {
    match name {
        "fields" => json!({ "enum": ["all", "default"] }),
        "all" | "details" => json!({ "enum": ["true", "false"] }),
        "start" | "end" => json!({ "type": "string", "format": "date-time" }),
        "after" => json!({ "type": "string", "pattern": "^[0-9]+$" }),
        _ => json!({ "type": "string" }),
    }
}

fn responses(route: &Route) -> Value {
    let problem = |about: &str| json!({ "description": about, "content": { "application/json": { "schema": reference("Problem") } } });
    json!({
        "200": { "description": "Done.", "content": content(route.answer) },
        "400": problem("The call cannot be understood."),
        "401": problem("The credential is missing, or is none."),
        "403": problem("The credential may not do this."),
        "404": problem("There is no such thing for this credential."),
        "405": problem("The address takes other methods."),
        "409": problem("Something else stands in the way."),
        "412": problem("The policy was changed meanwhile."),
        "413": problem("The body is too long."),
        "429": problem("Too many calls; `Retry-After` says how long to wait."),
        "500": problem("The server failed."),
        "501": problem("This server does not offer that."),
        "503": problem("The server has too much to do at the moment."),
    })
}

/// Policies are HuJSON or JSON; all else is JSON.
fn content(shape: &str) -> Value {
    let schema = json!({ "schema": reference(shape) });
    match shape {
        "Policy" => json!({
            "application/json": schema,
            "application/hujson": { "schema": { "type": "string" } },
        }),
        _ => json!({ "application/json": schema }),
    }
}

fn reference(shape: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{shape}") })
}

/// Returns an object with these members, of which some must be there.
fn object(required: &[&str], members: &Value) -> Value {
    json!({ "type": "object", "required": required, "properties": members })
}

fn schemas() -> Value {
    let text = json!({ "type": "string" });
    let flag = json!({ "type": "boolean" });
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    let time = json!({ "type": "string", "format": "date-time" });
    let maybe_flag = json!({ "type": ["boolean", "null"] });
    let resolver = object(&["address"], &json!({ "address": text, "useWithExitNode": maybe_flag }));
    let resolvers = json!({ "type": "array", "items": resolver });
    let value = json!({ "type": ["string", "number", "boolean"] });
    let attribute = object(&["value"], &json!({ "value": value, "expiry": text, "comment": text }));
    let attributes = json!({ "type": "object", "additionalProperties": value });
    let maybe_texts = json!({ "type": ["array", "null"], "items": { "type": "string" } });
    let device = json!({
        "addresses": texts, "id": text, "nodeId": text, "user": text, "name": text, "hostname": text,
        "clientVersion": text, "updateAvailable": flag, "os": text, "created": time, "connectedToControl": flag,
        "lastSeen": time, "keyExpiryDisabled": flag, "expires": time, "authorized": flag, "isExternal": flag,
        "machineKey": text, "nodeKey": text, "blocksIncomingConnections": flag, "tags": texts,
        "tailnetLockError": text, "tailnetLockKey": text, "isEphemeral": flag, "multipleConnections": flag,
        "enabledRoutes": texts, "advertisedRoutes": texts, "clientConnectivity": { "type": "object" },
        "sshEnabled": flag, "distro": { "type": "object" },
    });
    let user = json!({
        "id": text, "displayName": text, "loginName": text, "profilePicUrl": text, "tailnetId": text, "created": time,
        "type": text, "role": text, "status": text, "deviceCount": { "type": "integer" }, "lastSeen": time,
        "currentlyConnected": flag,
    });
    let create = object(
        &[],
        &json!({
            "reusable": flag, "ephemeral": flag, "preauthorized": flag, "tags": maybe_texts,
        }),
    );
    let capabilities = object(&[], &json!({ "devices": object(&[], &json!({ "create": create })) }));
    let key = json!({
        "id": text, "key": text, "keyType": text, "description": text, "created": time, "expires": time,
        "revoked": time, "expirySeconds": { "type": "integer" }, "capabilities": capabilities, "scopes": texts,
        "tags": texts, "invalid": flag, "userId": text,
    });
    let settings = json!({
        "aclsExternallyManagedOn": maybe_flag, "aclsExternalLink": { "type": ["string", "null"] },
        "devicesApprovalOn": maybe_flag, "devicesEnrolledOnlyOn": maybe_flag, "devicesAutoUpdatesOn": maybe_flag,
        "devicesKeyDurationDays": { "type": ["integer", "null"], "minimum": 1, "maximum": 180 },
        "usersApprovalOn": maybe_flag, "usersRoleAllowedToJoinExternalTailnets": { "type": ["string", "null"] },
        "networkFlowLoggingOn": maybe_flag, "regionalRoutingOn": maybe_flag,
        "postureIdentityCollectionOn": maybe_flag, "httpsEnabled": maybe_flag,
    });
    json!({
        "Problem": object(&["message"], &json!({ "message": text, "data": {} })),
        "Done": { "type": "object" },
        "Devices": object(&["devices"], &json!({ "devices": { "type": "array", "items": reference("Device") } })),
        "Device": object(&["id", "nodeId", "name", "hostname", "addresses"], &device),
        "DeviceRoutes": object(&["advertisedRoutes", "enabledRoutes"], &json!({
            "advertisedRoutes": texts, "enabledRoutes": texts,
        })),
        "Machines": object(&["machines"], &json!({ "machines": { "type": "array", "items": { "type": "object" } } })),
        "NewMachines": object(&["machineKeys"], &json!({
            "machineKeys": { "type": "array", "items": { "type": "string", "pattern": "^mkey:[0-9a-f]{64}$" } },
            "description": text,
        })),
        "NewRoutes": object(&["routes"], &json!({ "routes": texts })),
        "Authorized": object(&["authorized"], &json!({ "authorized": flag })),
        "Name": object(&["name"], &json!({ "name": text })),
        "Tags": object(&["tags"], &json!({ "tags": {
            "type": "array", "items": { "type": "string", "pattern": "^tag:[A-Za-z][A-Za-z0-9-]*$" }, "minItems": 1,
        } })),
        "KeyExpiry": object(&["keyExpiryDisabled"], &json!({ "keyExpiryDisabled": flag })),
        "Address": object(&["ipv4"], &json!({ "ipv4": { "type": "string", "format": "ipv4" } })),
        "Attributes": object(&["attributes"], &json!({ "attributes": attributes, "expiries": { "type": "object" } })),
        "Attribute": attribute,
        "AttributePatch": object(&["nodes"], &json!({
            "nodes": { "type": "object", "additionalProperties": { "type": "object", "additionalProperties": {
                "type": ["object", "null"], "required": ["value"], "properties": { "value": value, "expiry": text },
            } } },
            "comment": text,
        })),
        "Keys": object(&["keys"], &json!({ "keys": { "type": "array", "items": reference("Key") } })),
        "Key": object(&["id", "keyType", "created", "invalid"], &key),
        "NewKey": object(&[], &json!({
            "keyType": { "enum": ["auth", "api", "client"] },
            "description": { "type": "string", "maxLength": 50, "pattern": "^[A-Za-z0-9 -]*$" },
            "capabilities": capabilities,
            "expirySeconds": { "type": "integer", "minimum": 0, "maximum": 7_776_000 },
            "scopes": texts, "tags": texts,
        })),
        "Users": object(&["users"], &json!({ "users": { "type": "array", "items": reference("User") } })),
        "User": object(&["id", "loginName", "displayName", "role", "status"], &user),
        "Role": object(&["role"], &json!({ "role": { "enum": [
            "owner", "admin", "it-admin", "network-admin", "billing-admin", "auditor", "member",
        ] } })),
        "Policy": { "type": "object" },
        "Trial": { "type": ["object", "array"] },
        "Verdict": object(&[], &json!({ "message": text, "data": { "type": "array" } })),
        "Preview": object(&["matches"], &json!({
            "matches": { "type": "array", "items": { "type": "object" } }, "type": text, "previewFor": text,
        })),
        "Nameservers": object(&["dns"], &json!({ "dns": texts, "magicDNS": flag })),
        "DnsPreferences": object(&["magicDNS"], &json!({ "magicDNS": flag })),
        "SearchPaths": object(&["searchPaths"], &json!({ "searchPaths": texts })),
        "SplitDns": { "type": "object", "additionalProperties": maybe_texts },
        "DnsConfiguration": object(&[], &json!({
            "nameservers": resolvers,
            "splitDNS": { "type": "object", "additionalProperties": {
                "type": ["array", "null"], "items": resolvers.get("items"),
            } },
            "searchPaths": texts,
            "preferences": object(&[], &json!({ "overrideLocalDNS": maybe_flag, "magicDNS": maybe_flag })),
        })),
        "Settings": object(&[], &settings),
        "Logs": object(&["logs"], &json!({
            "logs": { "type": "array", "items": { "type": "object" } }, "next": text,
        })),
    })
}
