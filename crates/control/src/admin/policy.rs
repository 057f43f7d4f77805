//! The policy: its versions, and putting one in force.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::desk::Place;
use super::{AdminError, Desk, PolicyVersionView, PolicyView, invalid, not_found};
use crate::authority::{Scope, Standing};
use crate::model::{TailnetRecord, Unconfirmed};
use crate::store::audit::hex;
use crate::store::policies::{self, StoredPolicy};
use crate::tailnet::access::{self, PolicyInForce};
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::{NewVersion, Work};

/// Name of the text that a tailnet begins with, in place of its hash. Source: logs-and-api.md, section on the policy.
const NEVER_EDITED: &str = "ts-default";
/// Up to how many nodes two policies are compared: what each of them may do is looked at.
const COMPARED_MAX: usize = 10_000;
/// Longest reason, in bytes.
const REASON_MAX: usize = 1000;
/// Least and longest time to confirm a policy.
const CONFIRM_WITHIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// A policy that shall be put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPolicy {
    /// Where its text comes from.
    pub source: PolicySource,
    /// Why; up to 1,000 bytes.
    pub reason: Option<String>,
    /// The policy in force must have this tag: as [`PolicyView::etag`] shows it, with or without quotes; `*` is any.
    pub if_match: Option<String>,
    /// It is undone by itself unless it is confirmed within this time, one second to seven days.
    pub confirm_within: Option<Duration>,
}

/// Where the text of a policy comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicySource {
    /// From its author. Its own tests must pass.
    Text(String),
    /// From an earlier version. Its tests are not run: who goes back does so because something else is wrong.
    Version(u64),
}

impl From<&str> for NewPolicy {
    /// Makes a change without conditions.
    fn from(text: &str) -> Self {
        Self { source: PolicySource::Text(text.to_owned()), reason: None, if_match: None, confirm_within: None }
    }
}

impl Desk {
    /// Returns the policy in force, or an earlier version.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Store`].
    pub async fn policy(&self, tailnet: &str, version: Option<u64>) -> Result<PolicyView, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let number = version.unwrap_or_else(|| place.snapshot().tailnet.policy_version);
        let stored = stored(&place, number).await?;
        Ok(view(&place.snapshot(), stored))
    }

    /// Returns up to `limit` versions, the newest first.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Store`].
    pub async fn policy_history(&self, tailnet: &str, limit: u32) -> Result<Vec<PolicyVersionView>, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let versions = place.read(move |connection, id| policies::newest(connection, id, limit)).await?;
        let in_force = place.snapshot().tailnet.policy_version;
        let shown = |stored: StoredPolicy| PolicyVersionView {
            version: stored.version,
            etag: etag(stored.version, &stored.text),
            at: stored.at,
            author: stored.author,
            reason: stored.reason,
            bytes: stored.text.len(),
            in_force: stored.version == in_force,
        };
        Ok(versions.into_iter().map(shown).collect())
    }

    /// Puts a policy in force, if it can be compiled and its tests pass; otherwise the old one stays as it is.
    ///
    /// It gets the next number, also if it is an earlier one's text; the last 1,000 versions are kept, as far as they have
    /// 64 MiB together. The text in force again is no new version, but a policy that waits to be confirmed counts as
    /// confirmed by it.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Policy`], [`AdminError::PolicyChanged`], [`AdminError::Invalid`],
    /// [`AdminError::Crowded`].
    pub async fn set_policy(&self, tailnet: &str, new: impl Into<NewPolicy>) -> Result<PolicyView, AdminError> {
        let new = new.into();
        let place = self.place(tailnet, Scope::PolicyFile.write())?;
        let reason = new.reason.unwrap_or_default();
        if reason.len() > REASON_MAX || reason.chars().any(|letter| letter.is_control() && letter != '\n') {
            return Err(invalid("reason: a text of 1000 bytes at most", &reason));
        }
        if let Some(within) = new.confirm_within.filter(|within| !CONFIRM_WITHIN.contains(within)) {
            return Err(invalid("time to confirm: one second to seven days", &format!("{}s", within.as_secs())));
        }
        let snapshot = place.snapshot();
        let (what, reason, text) = match new.source {
            PolicySource::Text(text) => ("policy.set", reason, text),
            PolicySource::Version(number) => {
                let stored = stored(&place, number).await?;
                let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                ("policy.rollback", format!("back to version {number}{because}"), stored.text)
            }
        };
        let now = place.now().as_second();
        let weighed = place.think(move || {
            let directory = access::directory(&snapshot.users, &snapshot.nodes);
            let policy = parse(&text)?;
            if what == "policy.set" {
                policy.check(&directory, now).map_err(|reason| AdminError::Policy { reason })?;
            }
            let difference = (directory.nodes.len() <= COMPARED_MAX).then(|| {
                let names = snapshot.nodes.iter().map(|node| (node.id(), node.record.name.clone())).collect();
                snapshot.policy.difference(&policy, &directory, &names)
            });
            Ok::<_, AdminError>((policy, difference))
        });
        let (policy, difference) = weighed.await??;
        let (who, policy) = (place.who(), Arc::new(policy));
        let (if_match, confirm_within) = (new.if_match, new.confirm_within);
        let changed = move |work: &mut Work<'_>, _: &Standing| {
            let record = &work.state.tailnet;
            let present = etag(record.policy_version, work.state.policy.text());
            if if_match.as_ref().is_some_and(|wanted| !matches(wanted, &present)) {
                return Err(AdminError::PolicyChanged { version: record.policy_version, etag: present });
            }
            if !policy.keeps_a_relay(&work.state.own_derp) {
                return Err(AdminError::Policy {
                    reason: "derpMap: no relay would be left, and no machine could join; keep one region".to_owned(),
                });
            }
            let back_to = record.unconfirmed.as_ref().map_or(record.policy_version, |open| open.back_to);
            if work.state.policy.text() == policy.text() {
                if confirm_within.is_none() && record.unconfirmed.is_some() {
                    let record = TailnetRecord { unconfirmed: None, ..(**record).clone() };
                    work.put_tailnet(&who, "policy.confirm", record);
                }
                return Ok(());
            }
            let until = confirm_within.and_then(|within| work.now.checked_add(within).ok());
            let unconfirmed = until.map(|until| Unconfirmed { until, back_to });
            let version = NewVersion { what, policy: Arc::clone(&policy), reason: reason.clone(), unconfirmed };
            work.put_policy(&who, version);
            Ok(())
        };
        place.change(changed).await?;
        let snapshot = place.snapshot();
        let stored = stored(&place, snapshot.tailnet.policy_version).await?;
        Ok(PolicyView { difference: difference.flatten(), ..view(&snapshot, stored) })
    }

    /// Keeps the policy in force, which would be undone otherwise.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::NothingToConfirm`].
    pub async fn confirm_policy(&self, tailnet: &str) -> Result<PolicyView, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.write())?;
        let who = place.who();
        let confirmed = move |work: &mut Work<'_>, _: &Standing| {
            // Too late is too late, even if the task has not come to it yet.
            let open = work.state.tailnet.unconfirmed.as_ref().filter(|open| work.now < open.until);
            if open.is_none() {
                return Err(AdminError::NothingToConfirm { version: work.state.tailnet.policy_version });
            }
            let record = TailnetRecord { unconfirmed: None, ..(*work.state.tailnet).clone() };
            work.put_tailnet(&who, "policy.confirm", record);
            Ok(())
        };
        place.change(confirmed).await?;
        let snapshot = place.snapshot();
        let stored = stored(&place, snapshot.tailnet.policy_version).await?;
        Ok(view(&snapshot, stored))
    }
}

async fn stored(place: &Place, number: u64) -> Result<StoredPolicy, AdminError> {
    let stored = place.read(move |connection, id| policies::version(connection, id, number)).await?;
    stored.ok_or_else(|| not_found("policy version", &number.to_string()))
}

fn parse(text: &str) -> Result<PolicyInForce, AdminError> {
    PolicyInForce::parse(text).map_err(|errors| AdminError::Policy { reason: errors.to_string() })
}

/// Returns the tag by which changes say what they build on: the SHA-256 of the text in hex.
fn etag(version: u64, text: &str) -> String {
    if version <= 1 { NEVER_EDITED.to_owned() } else { hex(&Sha256::digest(text)) }
}

fn matches(wanted: &str, present: &str) -> bool {
    let wanted = wanted.trim();
    let wanted = wanted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(wanted);
    wanted == "*" || wanted == present
}

fn view(snapshot: &Snapshot, stored: StoredPolicy) -> PolicyView {
    let record = &snapshot.tailnet;
    let in_force = stored.version == record.policy_version;
    PolicyView {
        tailnet: record.name.clone(),
        version: stored.version,
        etag: etag(stored.version, &stored.text),
        at: stored.at,
        author: stored.author,
        reason: stored.reason,
        in_force,
        unconfirmed: record.unconfirmed.clone().filter(|_| in_force),
        difference: None,
        text: stored.text,
    }
}

#[cfg(test)]
mod tests;
