//! From facts to the state that users see.

use crate::local_api::types::State;

/// Holds the facts that decide the state.
///
/// Source: Tailscale `ipn/ipnlocal/local.go`, `nextStateLocked`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) wanted: Wanted,
    pub(super) key: Key,
    pub(super) map: Option<MapFacts>,
    pub(super) login: Login,
}

/// Says what the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Wanted {
    #[default]
    Down,
    Up,
}

/// Says whether a node key is registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Key {
    #[default]
    Missing,
    Registered,
}

/// Says how the login stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Login {
    /// Nobody is logging in.
    #[default]
    Idle,
    /// The server is being asked.
    Asking,
    /// A person must visit a page, or the server refused.
    Waiting,
    /// The same, because the server does not take the registered key any more.
    Lost,
}

/// Says what the map says about this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MapFacts {
    pub(super) expired: bool,
    pub(super) authorised: bool,
    /// A relay or a peer has been reached since the node came up, or there is none to reach.
    pub(super) alive: bool,
}

/// Returns the state.
pub(super) fn state(facts: Facts) -> State {
    if facts.key == Key::Missing {
        return match (facts.wanted, facts.login) {
            (Wanted::Up, Login::Asking) => State::NoState,
            (Wanted::Up | Wanted::Down, _) => State::NeedsLogin,
        };
    }
    if facts.wanted == Wanted::Down {
        return State::Stopped;
    }
    if facts.login == Login::Lost {
        return State::NeedsLogin;
    }
    match facts.map {
        None if facts.login == Login::Waiting => State::NeedsLogin,
        None => State::Starting,
        Some(map) if map.expired => State::NeedsLogin,
        Some(map) if !map.authorised => State::NeedsMachineAuth,
        Some(map) if map.alive => State::Running,
        Some(_) => State::Starting,
    }
}

/// Tells whether the engine may carry packets in this state.
pub(super) fn carries_packets(state: State) -> bool {
    matches!(state, State::Starting | State::Running)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: MapFacts = MapFacts { expired: false, authorised: true, alive: false };
    const UP: Facts = Facts { wanted: Wanted::Up, key: Key::Registered, map: None, login: Login::Idle };

    #[test]
    fn a_new_machine_needs_a_login() {
        assert_eq!(state(Facts::default()), State::NeedsLogin);
        assert_eq!(state(Facts { wanted: Wanted::Up, login: Login::Waiting, ..Facts::default() }), State::NeedsLogin);
        assert_eq!(state(Facts { wanted: Wanted::Up, login: Login::Asking, ..Facts::default() }), State::NoState);
    }

    #[test]
    fn down_outranks_every_map() {
        let map = Some(MapFacts { expired: true, ..MAP });
        assert_eq!(state(Facts { wanted: Wanted::Down, map, ..UP }), State::Stopped);
    }

    #[test]
    fn the_way_up() {
        assert_eq!(state(UP), State::Starting);
        assert_eq!(state(Facts { login: Login::Waiting, ..UP }), State::NeedsLogin);
        assert_eq!(state(Facts { map: Some(MAP), ..UP }), State::Starting);
        assert_eq!(state(Facts { map: Some(MapFacts { alive: true, ..MAP }), ..UP }), State::Running);
    }

    #[test]
    fn a_login_by_choice_keeps_the_tunnels_and_one_that_the_server_wants_does_not() {
        let up = Facts { map: Some(MapFacts { alive: true, ..MAP }), ..UP };
        assert_eq!(state(Facts { login: Login::Waiting, ..up }), State::Running);
        assert_eq!(state(Facts { login: Login::Lost, ..up }), State::NeedsLogin);
    }

    #[test]
    fn an_expired_key_or_a_machine_not_approved_carries_nothing() {
        let expired = state(Facts { map: Some(MapFacts { expired: true, alive: true, ..MAP }), ..UP });
        let unapproved = state(Facts { map: Some(MapFacts { authorised: false, alive: true, ..MAP }), ..UP });
        assert_eq!((expired, unapproved), (State::NeedsLogin, State::NeedsMachineAuth));
        assert!(!carries_packets(expired) && !carries_packets(unapproved));
    }
}
