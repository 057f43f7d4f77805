//! What local programs ask of the daemon.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Daemon, status};
use crate::control_client::{AuthKey, Connector, Login, log_out};
use crate::engine::{Engine, Settings};
use crate::hostinfo;
use crate::local_api::access::local_user;
use crate::local_api::types::{PingResult, StartOptions, State};
use crate::local_api::{Authority, Peers, Refusal, Request};
use crate::netmap::Change;
use crate::prefs::{Prefs, PrefsError, Right};
use crate::state::{self, NodeKeys};

/// How long a logout waits for the server.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(10);

impl<E: Engine, C: Connector + Clone> Daemon<E, C> {
    /// Does what was asked, or has it done; a request never waits for the server.
    pub(super) fn handle_request(&mut self, request: Request) {
        // A caller that went away gets no answer; that is no failure.
        match request {
            Request::Status(peers, reply) => self.reply_status(peers, reply),
            Request::WhoIs(who, reply) => {
                let shields = self.settings().shields();
                drop(reply.send(status::who_is(&self.netmap, shields, who)));
            }
            Request::Prefs(reply) => drop(reply.send(self.disk.state.prefs.clone())),
            Request::EditPrefs(authority, change, reply) => drop(reply.send(self.edit_prefs(authority, &change))),
            Request::Start(authority, options, reply) => drop(reply.send(self.start(authority, &options))),
            Request::LoginInteractive(reply) => drop(reply.send(self.login_interactive())),
            Request::Logout(reply) => self.log_out(reply),
            Request::ResetAuth(reply) => drop(reply.send(self.forget_login())),
            Request::Ping(address, reply) => self.ping(address, reply),
            Request::Netcheck(reply) => {
                let engine = Arc::clone(&self.engine);
                let relays = self.netmap.relays().cloned();
                tokio::spawn(async move {
                    let report = engine.netcheck().await;
                    drop(reply.send(status::netcheck(&report, relays.as_deref())));
                });
            }
            Request::DerpMap(reply) => {
                let map = self.netmap.relays().and_then(|map| warren_wire::control::to_json(&**map).ok());
                let map = map.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
                drop(reply.send(map.unwrap_or_else(|| json!({ "Regions": {} }))));
            }
            Request::Shutdown(reply) => drop(reply.send(())),
        }
    }

    fn reply_status(&self, peers: Peers, reply: oneshot::Sender<Box<crate::local_api::types::Status>>) {
        let view = status::View::new(status::Facts {
            state: self.state(),
            prefs: &self.disk.state.prefs,
            netmap: &self.netmap,
            key: self.disk.state.keys.current.as_ref().map(|key| key.public()),
            auth_url: &self.login.url,
            trouble: self.login.trouble.as_ref(),
            engine_health: &self.engine_health,
            hostname: &self.out.report.borrow().hostinfo.hostname,
            peers,
            kept_map: self.kept_map((self.clock)()),
            now: (self.clock)(),
        });
        let (engine, clock) = (Arc::clone(&self.engine), self.clock);
        tokio::spawn(async move {
            let engine = engine.status().await;
            drop(reply.send(Box::new(view.finish(&engine, clock().wall))));
        });
    }

    fn edit_prefs(&mut self, authority: Authority, change: &Value) -> Result<Prefs, Refusal> {
        let before = self.disk.state.prefs.clone();
        let mut next = before.clone();
        let right = next.patch(change).map_err(|error: PrefsError| Refusal::Bad(error.to_string()))?;
        if right == Right::Root && authority != Authority::Root {
            return Err(Refusal::Forbidden);
        }
        if next.operator_user != before.operator_user && !next.operator_user.is_empty() {
            local_user(&next.operator_user).map_err(Refusal::Bad)?;
        }
        if next != before {
            // Keys are known to the old server only.
            let other_server = next.control_url != before.control_url && !before.control_url.is_empty();
            let keys = if other_server { NodeKeys::default() } else { self.disk.state.keys.clone() };
            let state = state::State { machine: Arc::clone(&self.disk.state.machine), keys, prefs: next };
            let settings = self.settings();
            self.replace_state(state)?;
            if other_server {
                self.stop_session();
                self.netmap.clear();
            }
            if other_server || self.disk.state.prefs.map_max_age == 0 {
                self.wipe_map();
            }
            self.prefs_changed(&before, &settings);
        }
        Ok(self.disk.state.prefs.clone())
    }

    fn prefs_changed(&mut self, before: &Prefs, settings: &Settings) {
        let prefs = self.disk.state.prefs.clone();
        self.out.operator.send_replace(prefs.operator_user.clone());
        let hostinfo = hostinfo::collect(&prefs);
        self.edit_report(|report| report.hostinfo = hostinfo);
        if self.settings() != *settings {
            self.tell_engine(Change { local: true, ..Change::default() });
        }
        let wanted = prefs.want_running && !prefs.logged_out;
        if !wanted {
            self.stop_session();
        } else if self.login.session.is_none() || prefs.server_key != before.server_key {
            self.start_session(Login::Resume);
        }
    }

    fn start(&mut self, authority: Authority, options: &StartOptions) -> Result<(), Refusal> {
        if let Some(change) = &options.update_prefs {
            self.edit_prefs(authority, change)?;
        }
        self.want_up()?;
        let state = self.state();
        let logged_in = self.netmap.local().is_some() && state != State::NeedsLogin;
        let login = if !options.auth_key.is_empty() && !logged_in {
            Login::AuthKey(AuthKey::new(&options.auth_key))
        } else if self.netmap.local_expired((self.clock)()) {
            Login::Interactive
        } else {
            Login::Resume
        };
        // A login that is under way, or over, is left alone, unless something keeps it from going on.
        let undisturbed = self.login.session.is_some() && self.login.trouble.is_none() && state != State::NeedsLogin;
        if !(undisturbed && matches!(login, Login::Resume)) {
            self.start_session(login);
        }
        Ok(())
    }

    fn login_interactive(&mut self) -> Result<(), Refusal> {
        self.want_up()?;
        self.start_session(Login::Interactive);
        Ok(())
    }

    fn want_up(&mut self) -> Result<(), Refusal> {
        let mut state = self.disk.state.clone();
        if state.prefs.control_url.is_empty() {
            return Err(Refusal::Bad("no login server is set; say: warren up --login-server URL".into()));
        }
        state.prefs.want_running = true;
        state.prefs.logged_out = false;
        self.replace_state(state)
    }

    /// Takes over `state` once it is on disk.
    fn replace_state(&mut self, state: state::State) -> Result<(), Refusal> {
        let before = std::mem::replace(&mut self.disk.state, state);
        if self.save() {
            return Ok(());
        }
        self.disk.state = before;
        Err(Refusal::Failed("the settings cannot be saved; see the log of warren node".into()))
    }

    fn log_out(&mut self, reply: oneshot::Sender<Result<(), Refusal>>) {
        let key = self.disk.state.keys.current.clone();
        let target = self.target();
        let outcome = self.forget_login();
        let (Some(key), Ok(target), Ok(())) = (key, target, &outcome) else {
            drop(reply.send(outcome));
            return;
        };
        let connector = self.connector.clone();
        let hostinfo = self.out.report.borrow().hostinfo.clone();
        tokio::spawn(async move {
            let told = timeout(LOGOUT_TIMEOUT, log_out(&connector, &target, key.public(), &hostinfo)).await;
            let outcome = match told {
                Ok(Ok(())) => Ok(()),
                Ok(Err(trouble)) => Err(trouble.text),
                Err(_) => Err("the server does not answer".to_owned()),
            };
            let outcome = outcome
                .map_err(|text| Refusal::Failed(format!("logged out here, but the server does not know yet: {text}")));
            drop(reply.send(outcome));
        });
    }

    fn forget_login(&mut self) -> Result<(), Refusal> {
        self.stop_session();
        self.netmap.clear();
        self.wipe_map();
        self.disk.state.keys = NodeKeys::default();
        self.disk.state.prefs.logged_out = true;
        self.disk.state.prefs.want_running = false;
        if self.save() { Ok(()) } else { Err(Refusal::Failed("the logout cannot be saved".into())) }
    }

    fn ping(&self, address: IpAddr, reply: oneshot::Sender<PingResult>) {
        let mut result = PingResult { ip: address.to_string(), ..PingResult::default() };
        let own = self.netmap.local().is_some_and(|node| node.addresses.iter().any(|own| own.addr() == address));
        if own {
            result.is_local_ip = true;
            result.err = format!("{address} is this machine");
            drop(reply.send(result));
            return;
        }
        let Some(peer) = self.netmap.peer_at(address).filter(|_| self.carrying).cloned() else {
            result.err = if self.carrying { "no such peer" } else { "the node is stopped" }.to_owned();
            drop(reply.send(result));
            return;
        };
        let engine = Arc::clone(&self.engine);
        let relays = self.netmap.relays().cloned();
        tokio::spawn(async move {
            let pong = engine.ping(peer.key()).await;
            drop(reply.send(status::ping_result(result, &peer, pong, relays.as_deref())));
        });
    }
}
