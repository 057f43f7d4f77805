//! Logins that wait for a person.
//!
//! They live in memory only: after a restart of the server the client's follow-up names a login that nobody knows, and
//! gets a new URL. All numbers are bounded, since strangers make them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use warren_wire::control::RegisterRequest;
use warren_wire::key::MachineKey;

use crate::admin::{LoginState, LoginView, PersonView};
use crate::clock::Clock;
use crate::oidc::Person;
use crate::store::audit::hex;
use crate::tailnet::bounds::bounded;

/// How long a login waits for a person.
pub(crate) const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How many logins there may be.
const ALL_MAX: usize = 4096;
/// How many a machine may have; one more ends its oldest.
const MACHINE_MAX: usize = 5;
/// How many may come from one address, or from one /64 network.
const ADDRESS_MAX: usize = 64;
/// Longest name of a tailnet that a login keeps, in characters; longer than any that there is.
const HINT_MAX: usize = 100;
/// How many a machine may begin within [`RATE_WINDOW`].
const RATE_MAX: usize = 10;
/// Span over which the logins of a machine are counted.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Says why no login can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginError {
    /// This machine began too many.
    #[error("this machine asked for too many logins; wait a minute and try again")]
    TooFast,
    /// The address or the server has too many.
    #[error("too many logins are waiting; finish one of them or wait a few minutes")]
    TooMany,
    /// The operating system gives no randomness.
    #[error("the server has no randomness; tell its operator")]
    Randomness,
}

/// What became of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Approved,
    Rejected,
    Gone,
}

/// All logins.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: HashMap<String, Pending>,
    begun: HashMap<MachineKey, Vec<Instant>>,
}

#[derive(Debug)]
struct Pending {
    machine: MachineKey,
    request: Box<RegisterRequest>,
    from: IpAddr,
    created: Timestamp,
    begun: Instant,
    /// Whether somebody is deciding it just now.
    claimed: bool,
    /// Who confirmed it and waits for an administrator.
    person: Option<Box<Person>>,
    state: watch::Sender<LoginState>,
}

/// The right to decide a login, which nobody else has meanwhile; given back on drop.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    logins: &'a Logins,
    id: String,
    /// Machine that wants to come in.
    pub(crate) machine: MachineKey,
    /// What it asked for.
    pub(crate) request: Box<RegisterRequest>,
    /// Who confirmed it and waits for an administrator.
    pub(crate) person: Option<Box<Person>>,
}

impl Claim<'_> {
    /// Remembers who confirmed the login, for the administrator who decides it.
    pub(crate) fn note_person(&self, person: Person) {
        if let Some(pending) = self.logins.lock().waiting.get_mut(&self.id) {
            pending.person = Some(Box::new(person));
        }
    }

    /// Tells those who wait what was decided.
    pub(crate) fn decide(self, decision: LoginState) {
        if let Some(pending) = self.logins.lock().waiting.get(&self.id) {
            pending.state.send_replace(decision);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(pending) = self.logins.lock().waiting.get_mut(&self.id) {
            pending.claimed = false;
        }
    }
}

impl Logins {
    /// Begins a login and returns its ID.
    pub(crate) fn begin(
        &self,
        clock: Clock,
        machine: MachineKey,
        request: &RegisterRequest,
        from: IpAddr,
    ) -> Result<String, LoginError> {
        let now = clock.instant();
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| LoginError::Randomness)?;
        let id = hex(&random);
        let mut inner = self.lock();
        inner.forget_old(now);
        let begun = inner.begun.entry(machine).or_default();
        if begun.len() >= RATE_MAX {
            return Err(LoginError::TooFast);
        }
        let network = network(from);
        let near = |pending: &&Pending| self::network(pending.from) == network;
        if inner.waiting.len() >= ALL_MAX || inner.waiting.values().filter(near).count() >= ADDRESS_MAX {
            return Err(LoginError::TooMany);
        }
        inner.begun.entry(machine).or_default().push(now);
        inner.end_oldest_of(machine);
        // Nothing secret is kept, and nothing that a stranger can make long.
        let request = Box::new(RegisterRequest {
            version: request.version,
            node_key: request.node_key,
            old_node_key: request.old_node_key,
            hostinfo: request.hostinfo.clone().map(bounded),
            ephemeral: request.ephemeral,
            tailnet: request.tailnet.chars().take(HINT_MAX).collect(),
            ..RegisterRequest::default()
        });
        let pending = Pending {
            machine,
            request,
            from,
            created: clock.now(),
            begun: now,
            claimed: false,
            person: None,
            state: watch::Sender::new(LoginState::Waiting),
        };
        inner.waiting.insert(id.clone(), pending);
        Ok(id)
    }

    /// Waits until a login of this machine for this node key is decided or gone.
    pub(crate) async fn decided(
        &self,
        clock: Clock,
        id: &str,
        machine: MachineKey,
        request: &RegisterRequest,
    ) -> Decision {
        let (mut state, end) = {
            let inner = self.lock();
            let ours = |pending: &&Pending| pending.machine == machine && pending.request.node_key == request.node_key;
            match inner.waiting.get(id).filter(ours) {
                Some(pending) => (pending.state.subscribe(), pending.begun + LIFETIME),
                None => return Decision::Gone,
            }
        };
        if clock.instant() >= end {
            return Decision::Gone;
        }
        let decided = tokio::time::timeout_at(end, state.wait_for(|state| *state != LoginState::Waiting)).await;
        match decided.map(|state| state.map(|state| *state)) {
            Ok(Ok(LoginState::Approved)) => Decision::Approved,
            Ok(Ok(LoginState::Rejected)) => Decision::Rejected,
            Ok(Ok(LoginState::Waiting) | Err(_)) | Err(_) => Decision::Gone,
        }
    }

    /// Takes a login that nobody has decided or is deciding.
    pub(crate) fn claim(&self, clock: Clock, id: &str) -> Option<Claim<'_>> {
        let mut inner = self.lock();
        inner.forget_old(clock.instant());
        let pending = inner.waiting.get_mut(id)?;
        if pending.claimed || *pending.state.borrow() != LoginState::Waiting {
            return None;
        }
        pending.claimed = true;
        let (machine, request, person) = (pending.machine, pending.request.clone(), pending.person.clone());
        Some(Claim { logins: self, id: id.to_owned(), machine, request, person })
    }

    /// Returns all logins, the oldest first.
    pub(crate) fn list(&self, clock: Clock, url: impl Fn(&str) -> String) -> Vec<LoginView> {
        let mut inner = self.lock();
        inner.forget_old(clock.instant());
        let mut list: Vec<_> = inner.waiting.iter().map(|(id, pending)| pending.view(id, url(id))).collect();
        list.sort_by(|one, two| (one.created, &one.id).cmp(&(two.created, &two.id)));
        list
    }

    /// Returns one login.
    pub(crate) fn view(&self, clock: Clock, id: &str, url: impl Fn(&str) -> String) -> Option<LoginView> {
        let mut inner = self.lock();
        inner.forget_old(clock.instant());
        inner.waiting.get(id).map(|pending| pending.view(id, url(id)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget_old(&mut self, now: Instant) {
        self.waiting.retain(|_, pending| now.saturating_duration_since(pending.begun) < LIFETIME);
        self.begun.retain(|_, begun| {
            begun.retain(|at| now.saturating_duration_since(*at) < RATE_WINDOW);
            !begun.is_empty()
        });
    }

    fn end_oldest_of(&mut self, machine: MachineKey) {
        let mut own: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, pending)| pending.machine == machine)
            .map(|(id, pending)| (pending.begun, id.clone()))
            .collect();
        if own.len() >= MACHINE_MAX {
            own.sort();
            if let Some((_, oldest)) = own.into_iter().next() {
                self.waiting.remove(&oldest);
            }
        }
    }
}

impl Pending {
    fn view(&self, id: &str, url: String) -> LoginView {
        let hostinfo = self.request.hostinfo.as_ref();
        let expires = self.created.checked_add(LIFETIME).unwrap_or(Timestamp::MAX);
        LoginView {
            id: id.to_owned(),
            url,
            hostname: hostinfo.map(|info| info.hostname.clone()).unwrap_or_default(),
            os: hostinfo.map(|info| info.os.clone()).unwrap_or_default(),
            machine_key: self.machine,
            node_key: self.request.node_key,
            from: self.from,
            tailnet_hint: (!self.request.tailnet.is_empty()).then(|| self.request.tailnet.clone()),
            requested_tags: hostinfo.map(|info| info.request_tags.clone()).unwrap_or_default(),
            person: self.person.as_ref().map(|person| PersonView {
                login: person.login.clone(),
                name: person.display_name.clone(),
                issuer: person.identity.issuer.clone(),
                subject: person.identity.subject.clone(),
            }),
            created: self.created,
            expires,
            state: *self.state.borrow(),
        }
    }
}

/// Returns what one customer of an access network can choose freely cut off: the last 64 bits of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}
