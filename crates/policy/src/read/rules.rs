//! What `acls` and `grants` have in common.

use super::scope::Scope;
use crate::DESTINATIONS_MAX;
use crate::model::Grant;
use crate::problem::{Errors, Problem};
use crate::schedule::Validity;
use crate::selector::Selector;
use crate::service::Service;
use std::sync::Arc;
use warren_wire::control::PortRange;

/// The rules so far.
#[derive(Default)]
pub(super) struct Rules {
    grants: Vec<Grant>,
    places: Vec<usize>,
    /// Destinations as [`DESTINATIONS_MAX`] counts them.
    destinations: usize,
}

impl Rules {
    /// Adds a rule that stands at `at`; one without sources or destinations is none. Returns whether more may come.
    pub(super) fn add(&mut self, grant: Grant, at: usize, errors: &mut Errors<'_>) -> bool {
        if grant.sources.is_empty() || grant.destinations.is_empty() {
            return true;
        }
        let ports = grant.services.iter().map(|service| service.ports.len()).sum::<usize>();
        let each = ports.saturating_add(grant.app.len()).max(1);
        let before = self.destinations;
        self.destinations = before.saturating_add(grant.destinations.len().saturating_mul(each));
        if self.destinations > DESTINATIONS_MAX {
            if before <= DESTINATIONS_MAX {
                errors.note(at, Problem::TooManyDestinations { limit: DESTINATIONS_MAX });
            }
            return false;
        }
        self.grants.push(grant);
        self.places.push(at);
        true
    }

    /// Adds what holds when there are neither `acls` nor `grants`.
    pub(super) fn allow_all(&mut self, scope: &Scope<'_>) {
        self.grants.push(Grant {
            sources: Arc::new([Selector::Any]),
            destinations: vec![Selector::Any],
            services: vec![Service { protocol: None, ports: vec![PortRange::ALL] }],
            app: Arc::default(),
            via: Vec::new(),
            postures: scope.default_postures(),
            validity: Validity::default(),
        });
        self.places.push(0);
    }

    /// Returns the rules and their places.
    pub(super) fn finish(self) -> (Vec<Grant>, Vec<usize>) {
        (self.grants, self.places)
    }
}

/// Demands that only people are the sources of a rule to `autogroup:self`, and `also`.
pub(super) fn check_own_devices(sources: &[(usize, &str, Selector)], also: Option<&Selector>, errors: &mut Errors<'_>) {
    for (at, text, selector) in sources {
        if also != Some(selector) && !is_people(selector) {
            errors.note(*at, Problem::SelfWithOtherSources { source_selector: (*text).to_owned() });
        }
    }
}

const fn is_people(selector: &Selector) -> bool {
    match selector {
        Selector::User(_) | Selector::Group(_) | Selector::UsersOfDomain(_) | Selector::Members | Selector::Role(_) => {
            true
        }
        Selector::Any
        | Selector::Tag(_)
        | Selector::Tagged
        | Selector::Host(_)
        | Selector::Prefix(_)
        | Selector::IpSet(_)
        | Selector::Service(_)
        | Selector::Shared
        | Selector::Everywhere
        | Selector::Internet
        | Selector::OwnDevices => false,
    }
}
