//! Registration: login, restart, key rotation, expiry and logout are one call. Source: control.md, section 3.

mod join;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use warren_wire::control::{Login, RegisterRequest, RegisterResponse, User};
use warren_wire::key::{ChallengeKey, MachineKey, NodeKey};

use crate::control::Control;
use crate::login::Decision;
use crate::machine_proof::{self, ProofError, ShownCertificate};
use crate::map::{LEAST_CAPABILITY, too_old, view};
use crate::model::{Owner, TAGS_MAX, Who};
use crate::store::StoreError;
use crate::tailnet::Tailnet;
use crate::tailnet::nodes::Node;
use crate::tailnet::registry::Registered;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::{lease_end, work::Work};

pub(crate) use join::{Grant, Join};

/// Says why a machine is not let in; the text is shown to the person at the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refusal {
    #[error("{}", too_old(*found))]
    TooOld { found: u16 },
    #[error("this node key belongs to another machine")]
    OtherMachine,
    #[error("this node key belongs to another owner; log out first")]
    OtherOwner,
    #[error(transparent)]
    AuthKey(#[from] crate::auth_key::AuthKeyError),
    #[error("{tag:?} is no tag: tags are tag: and a letter, then letters, digits and dashes")]
    TagForm { tag: String },
    #[error("{found} tags are too many: a node can have {TAGS_MAX}")]
    Tags { found: usize },
    #[error("the tag {tag} is not yours to give; ask an administrator for an auth key with it")]
    Tag { tag: String },
    #[error("this server has no tailnet {name:?} for you")]
    Tailnet { name: String },
    #[error("the user is not known here any more")]
    User,
    #[error("the user is suspended; ask an administrator of this network")]
    Suspended,
    #[error(
        "the name {login} belongs to another account of this network; an administrator can let you in as that user"
    )]
    LoginTaken { login: String },
    #[error("that user is another person, or that person is another user of this network")]
    OtherPerson,
    #[error("no address is left in this tailnet")]
    Addresses,
    #[error("a key cannot be made to last longer than the server allows; log in again instead")]
    Extension,
    #[error("the login was rejected")]
    Rejected,
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(transparent)]
    Login(#[from] crate::login::LoginError),
    #[error("the server cannot store the registration now: {0}")]
    Store(#[from] StoreError),
}

/// Answers a register request. Refusals are texts in an ordinary answer, since that is what reaches the person.
pub(crate) async fn register(
    control: &Control,
    machine: MachineKey,
    request: RegisterRequest,
    from: IpAddr,
    challenge: Option<ChallengeKey>,
) -> RegisterResponse {
    let decided = async {
        let shown = machine_proof::shown(&request, challenge, control.noise_key(), machine)?;
        let key = request.node_key;
        let response = decide(control, machine, request, from).await?;
        match shown {
            Some(shown) => prove(control, (machine, key), shown, response).await,
            None => Ok(response),
        }
    };
    match decided.await {
        Ok(response) => response,
        Err(refusal) => {
            tracing::info!(machine = %machine.short(), %from, %refusal, "a registration is refused");
            RegisterResponse { error: refusal.to_string(), ..RegisterResponse::default() }
        }
    }
}

/// Lets a certificate enrol the machine of a node that is registered by now.
async fn prove(
    control: &Control,
    (machine, key): (MachineKey, NodeKey),
    shown: ShownCertificate,
    response: RegisterResponse,
) -> Result<RegisterResponse, Refusal> {
    let Some((tailnet, known)) = control.registered(&key).filter(|(_, known)| known.machine == machine) else {
        // A login is still open; the client shows it again afterwards.
        return Ok(response);
    };
    tailnet
        .change(move |work: &mut Work<'_>| {
            let admitted = shown.admit(&work.state.machine_cas, work.now);
            match admitted.and_then(|proof| proof.map_or(Ok(()), |proof| work.prove(machine, proof))) {
                Ok(()) => {}
                Err(error) if work.state.bars(&machine, work.now) => return Err(Refusal::from(error)),
                // It takes part without.
                Err(error) => tracing::info!(machine = %machine.short(), %error, "a certificate is not looked at"),
            }
            Ok(())
        })
        .await?;
    let is_in = response.auth_url.is_empty() && !response.node_key_expired;
    let machine_authorized = is_in && tailnet.snapshot().nodes.get(known.node).is_some_and(|node| node.is_admitted());
    Ok(RegisterResponse { machine_authorized, ..response })
}

async fn decide(
    control: &Control,
    machine: MachineKey,
    request: RegisterRequest,
    from: IpAddr,
) -> Result<RegisterResponse, Refusal> {
    let known = control.registered(&request.node_key);
    let now = control.clock().now();
    // Logging out comes first of all, whatever else the request carries, and from however old a client.
    let wanted_expiry = request.expiry.map(|at| view::timestamp(at).unwrap_or(Timestamp::MAX));
    if wanted_expiry.is_some_and(|at| at <= now) {
        if let Some((tailnet, _)) = known.filter(|(_, known)| known.machine == machine) {
            log_out(&tailnet, machine, &request).await?;
        }
        return Ok(key_expired());
    }
    if request.version.0 < LEAST_CAPABILITY {
        return Err(Refusal::TooOld { found: request.version.0 });
    }
    if let Some((tailnet, known)) = known {
        if known.machine != machine {
            return Err(Refusal::OtherMachine);
        }
        let snapshot = tailnet.snapshot();
        if let Some(node) = snapshot.nodes.get(known.node) {
            if !node.record.expired_at(now) {
                return restart(control, &tailnet, known, machine, request).await;
            }
            // A node key stays in its tailnet: for another one the client must make a new key.
            let elsewhere = shown_key(&request)
                .and_then(|text| crate::auth_key::parse(crate::auth_key::AUTH_KEY, &text))
                .and_then(|shown| control.registry().auth_key(&shown.id))
                .is_some_and(|other| other != tailnet.id);
            if elsewhere || (shown_key(&request).is_none() && request.followup.is_empty()) {
                return Ok(key_expired());
            }
        }
    }
    if !request.followup.is_empty() {
        return follow_up(control, machine, request, from).await;
    }
    if let Some(text) = shown_key(&request) {
        return join_with_key(control, machine, &request, &text, from).await;
    }
    begin_login(control, machine, &request, from)
}

/// Ends the node's key now, or removes the node if it is ephemeral.
async fn log_out(tailnet: &Tailnet, machine: MachineKey, request: &RegisterRequest) -> Result<(), Refusal> {
    let key = request.node_key;
    tailnet
        .change(move |work: &mut Work<'_>| {
            let who = Who::machine(&machine);
            let node = find(work, |node| node.record.key == key && node.record.machine == machine);
            let Some(node) = node else { return Ok(()) };
            if node.record.ephemeral {
                work.remove_node(&who, "node.logout", node.id(), None);
            } else if !node.expired {
                let mut record = (*node.record).clone();
                record.key_expiry = Some(work.now);
                work.put_node(&who, "node.logout", &node, record);
            }
            Ok::<_, Refusal>(())
        })
        .await
}

/// A valid node starts again: it gets the present state, and at most a shorter key life.
async fn restart(
    control: &Control,
    tailnet: &Tailnet,
    known: Registered,
    machine: MachineKey,
    request: RegisterRequest,
) -> Result<RegisterResponse, Refusal> {
    // A key that would give the node to somebody else must not pass unnoticed; a spent or unknown one is not looked at.
    let shown = shown_key(&request).and_then(|text| crate::auth_key::parse(crate::auth_key::AUTH_KEY, &text));
    let other_tailnet = shown
        .as_ref()
        .and_then(|shown| control.registry().auth_key(&shown.id))
        .is_some_and(|other| other != tailnet.id);
    if other_tailnet {
        return Err(Refusal::OtherOwner);
    }
    let expiry = request.expiry.map(|at| view::timestamp(at).unwrap_or(Timestamp::MAX));
    let hostinfo = request.hostinfo;
    let node = tailnet
        .change(move |work: &mut Work<'_>| {
            let node = find(work, |node| node.id() == known.node).ok_or(Refusal::User)?;
            if let Some(key) = shown.as_ref().and_then(|shown| work.auth_key(shown))
                && key.owner != node.record.owner
            {
                return Err(Refusal::OtherOwner);
            }
            let mut node = node;
            if let Some(expiry) = expiry {
                if node.record.key_expiry.is_some_and(|stored| expiry > stored) {
                    return Err(Refusal::Extension);
                }
                let mut record = (*node.record).clone();
                record.key_expiry = Some(expiry);
                node = work.put_node(&Who::machine(&machine), "node.shorten-key", &node, record);
            }
            work.fresh.push(node.id());
            let mut state = (*node.state).clone();
            if let Some(hostinfo) = hostinfo.clone() {
                let label = crate::name::label(&hostinfo.hostname);
                crate::tailnet::report::apply_hostinfo(hostinfo, &mut state);
                let before = node.state.hostinfo.as_ref().map(|info| crate::name::label(&info.hostname));
                if before.is_some_and(|before| before != label) {
                    node = work.rename_after_host(&Who::machine(&machine), &node, &label);
                }
            }
            // Time to begin a poll, however long the node was away.
            if state.lease_until.is_some() {
                state.lease_until = Some(lease_end(work.now));
            }
            if state != *node.state {
                node = work.put_state(&node, state);
            }
            Ok(node)
        })
        .await?;
    Ok(success(&tailnet.snapshot(), &node))
}

/// Lets a machine in with an auth key.
async fn join_with_key(
    control: &Control,
    machine: MachineKey,
    request: &RegisterRequest,
    text: &str,
    from: IpAddr,
) -> Result<RegisterResponse, Refusal> {
    let unknown = crate::auth_key::AuthKeyError::Unknown;
    let shown = crate::auth_key::parse(crate::auth_key::AUTH_KEY, text).ok_or(unknown)?;
    let tailnet = control.registry().auth_key(&shown.id).and_then(|id| control.tailnet_by_id(id)).ok_or(unknown)?;
    check_tailnet_hint(request, &tailnet)?;
    let auth_key = shown.id.clone();
    let join = Join::new(machine, request, Grant::AuthKey(shown));
    let node = tailnet.change(move |work: &mut Work<'_>| join.carry_out(work)).await?;
    tracing::info!(tailnet = %tailnet.id, node = %node.id(), auth_key, %from, "a machine was let in by an auth key");
    Ok(success(&tailnet.snapshot(), &node))
}

/// A client may insist on a tailnet.
pub(crate) fn check_tailnet_hint(request: &RegisterRequest, tailnet: &Tailnet) -> Result<(), Refusal> {
    match request.tailnet.strip_prefix("required:") {
        Some(name) if name != &*tailnet.name => Err(Refusal::Tailnet { name: name.to_owned() }),
        _ => Ok(()),
    }
}

/// Waits until a person has decided.
async fn follow_up(
    control: &Control,
    machine: MachineKey,
    request: RegisterRequest,
    from: IpAddr,
) -> Result<RegisterResponse, Refusal> {
    let id = control.login_id(&request.followup).unwrap_or_default();
    let decision = control.logins().decided(control.clock(), id, machine, &request).await;
    match decision {
        Decision::Approved => {
            let found = control.registered(&request.node_key).filter(|(_, known)| known.machine == machine);
            if let Some((tailnet, known)) = found {
                let snapshot = tailnet.snapshot();
                if let Some(node) = snapshot.nodes.get(known.node) {
                    return Ok(success(&snapshot, node));
                }
            }
            begin_login(control, machine, &request, from)
        }
        Decision::Rejected => Err(Refusal::Rejected),
        Decision::Gone => begin_login(control, machine, &request, from),
    }
}

/// Answers with a URL that a person must visit.
fn begin_login(
    control: &Control,
    machine: MachineKey,
    request: &RegisterRequest,
    from: IpAddr,
) -> Result<RegisterResponse, Refusal> {
    let wishes = request.hostinfo.as_ref().map(|info| info.request_tags.as_slice()).unwrap_or_default();
    join::check_tag_form(wishes)?;
    let id = control.logins().begin(control.clock(), machine, request, from)?;
    Ok(RegisterResponse { auth_url: control.login_url(&id), ..RegisterResponse::default() })
}

/// Returns the auth key that a request carries.
fn shown_key(request: &RegisterRequest) -> Option<String> {
    let key = request.auth.as_ref()?.auth_key.trim();
    (!key.is_empty()).then(|| key.to_owned())
}

fn find(work: &Work<'_>, which: impl Fn(&Node) -> bool) -> Option<std::sync::Arc<Node>> {
    work.state.nodes.iter().find(|node| which(node)).cloned()
}

fn key_expired() -> RegisterResponse {
    RegisterResponse { node_key_expired: true, ..RegisterResponse::default() }
}

/// Tells a client who it is now.
fn success(snapshot: &Snapshot, node: &Node) -> RegisterResponse {
    let profile = view::profile(snapshot, view::owner(node.record.owner));
    let created = match node.record.owner {
        Owner::User(user) => snapshot.users.get(&user).map(|user| user.created),
        Owner::Tagged => None,
    };
    RegisterResponse {
        user: User {
            id: profile.id,
            display_name: profile.display_name.clone(),
            created: created.and_then(view::time),
            ..User::default()
        },
        login: Login {
            id: profile.id.0,
            provider: "warren".to_owned(),
            login_name: profile.login_name,
            display_name: profile.display_name,
            ..Login::default()
        },
        machine_authorized: node.is_admitted(),
        ..RegisterResponse::default()
    }
}
