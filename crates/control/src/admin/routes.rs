//! Routes that nodes may carry.

use ipnet::IpNet;

use super::{AdminError, Desk, NodeView, invalid};
use crate::authority::Scope;
use crate::model::ROUTES_MAX;

impl Desk {
    /// Lets a node carry these routes, now if it offers them, otherwise when it does. A default route stands for both.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Invalid`] if the node would have more than 1,024.
    pub async fn approve_routes(
        &self,
        tailnet: Option<&str>,
        node: &str,
        routes: &[IpNet],
    ) -> Result<NodeView, AdminError> {
        let routes = whole(routes);
        self.edit((tailnet, node), Scope::DevicesRoutes.write(), "node.approve-routes", move |record, _, _| {
            record.approved_routes.extend_from_slice(&routes);
            record.approved_routes.sort_unstable();
            record.approved_routes.dedup();
            if record.approved_routes.len() > ROUTES_MAX {
                return Err(invalid("number of routes: a node has 1024 at most", &routes.len().to_string()));
            }
            Ok(())
        })
        .await
    }

    /// Lets a node carry these routes and no others.
    ///
    /// # Errors
    /// As [`Self::approve_routes`].
    pub async fn set_routes(&self, tailnet: &str, node: &str, routes: &[IpNet]) -> Result<NodeView, AdminError> {
        let mut routes = whole(routes);
        routes.sort_unstable();
        routes.dedup();
        self.edit((Some(tailnet), node), Scope::DevicesRoutes.write(), "node.approve-routes", move |record, _, _| {
            if routes.len() > ROUTES_MAX {
                return Err(invalid("number of routes: a node has 1024 at most", &routes.len().to_string()));
            }
            record.approved_routes.clone_from(&routes);
            Ok(())
        })
        .await
    }

    /// Returns the routes of a node: those that it offers, and those that it may carry.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub fn routes(&self, tailnet: &str, node: &str) -> Result<(Vec<IpNet>, Vec<IpNet>), AdminError> {
        let (place, id) = self.find(Some(tailnet), node, Scope::DevicesRoutes.read())?;
        let snapshot = place.snapshot();
        let view = super::nodes::shown(&snapshot, id)?;
        Ok((view.offered_routes, view.approved_routes))
    }

    /// Forbids a node to carry these routes. `autoApprovers` of the policy approve them anew when the node offers them
    /// anew, and not before.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn revoke_routes(
        &self,
        tailnet: Option<&str>,
        node: &str,
        routes: &[IpNet],
    ) -> Result<NodeView, AdminError> {
        let routes = whole(routes);
        self.edit((tailnet, node), Scope::DevicesRoutes.write(), "node.revoke-routes", move |record, _, _| {
            record.approved_routes.retain(|route| !routes.contains(route));
            Ok(())
        })
        .await
    }
}

/// Clears host bits; a default route of one family brings that of the other, since clients use both or none.
fn whole(routes: &[IpNet]) -> Vec<IpNet> {
    let mut whole: Vec<_> = routes.iter().map(IpNet::trunc).collect();
    if whole.iter().any(|route| route.prefix_len() == 0) {
        whole.extend(crate::model::exit_routes());
    }
    whole
}

#[cfg(test)]
mod tests;
