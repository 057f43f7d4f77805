//! The section `autoApprovers`: routes that need no administrator.

use crate::selector::Selector;
use crate::{Owner, Reach};
use ipnet::IpNet;

impl Reach<'_> {
    /// Tells whether a route that a node of this owner offers is approved without an administrator.
    ///
    /// An entry for a prefix covers all longer ones. Default routes are approved by `exitNode` alone. Approval is a
    /// matter of the moment of the offer: whoever stores it keeps it when the policy changes (policy.md, section 14).
    #[must_use]
    pub fn auto_approves(&self, owner: &Owner, route: IpNet) -> bool {
        let approvers = &self.policy.sections.auto_approvers;
        let approved = |selectors: &[Selector]| selectors.iter().any(|selector| self.covers_owner(selector, owner));
        if route.prefix_len() == 0 {
            return approved(&approvers.exit_node);
        }
        approvers
            .routes
            .iter()
            .filter(|(prefix, _)| prefix.prefix_len() > 0 && prefix.contains(&route))
            .any(|(_, selectors)| approved(selectors))
    }

    /// Tells whether a node of this owner may host a service, `svc:…`, without an administrator.
    #[must_use]
    pub fn auto_approves_service(&self, owner: &Owner, service: &str) -> bool {
        let selectors = self.policy.sections.auto_approvers.services.get(service);
        selectors.into_iter().flatten().any(|selector| self.covers_owner(selector, owner))
    }
}
