//! Routes that nodes may carry.

use ipnet::IpNet;

use super::{Admin, AdminError, NodeView, invalid};
use crate::model::ROUTES_MAX;

impl Admin {
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
        self.edit(tailnet, node, "node.approve-routes", move |record, _| {
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
        self.edit(tailnet, node, "node.revoke-routes", move |record, _| {
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
