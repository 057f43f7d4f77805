//! `warren cleanup`: puts back what a daemon that was killed has left on this machine.

use clap::Args;
use warren_node::local_api::types::Status;
use warren_os::{IfName, Netlink, NetlinkError, SystemResolver};

use super::Socket;
use crate::exit::{Exit, Failure, OrExit};

/// Arguments of `warren cleanup`.
#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// Name of the network interface that the daemon had.
    #[arg(long, value_name = "NAME", default_value = "warren0")]
    tun: IfName,
    #[command(flatten)]
    socket: Socket,
}

impl Cleanup {
    /// Removes routing rules and routes, and lets programs ask for names as before.
    pub(super) async fn run(self) -> Result<(), Failure> {
        if self.socket.client().get::<Status>("status?peers=false").await.is_ok() {
            let text = "the node is running, which cleans up behind itself; stop it first, or say: warren down";
            return Err(Failure::new(Exit::AlreadyRunning, text));
        }
        // Each for itself: one that fails keeps nothing else from being put back.
        let names = SystemResolver::new(self.tun).restore();
        let network = network().await;
        names.or_exit(Exit::General, "where programs ask for names is not put back")?;
        let exit = match &network {
            Err(NetlinkError::Denied { .. }) => Exit::Permission,
            Ok(()) | Err(_) => Exit::General,
        };
        network.or_exit(exit, "routing rules are left")
    }
}

async fn network() -> Result<(), NetlinkError> {
    let netlink = Netlink::connect()?;
    netlink.remove_rules().await?;
    netlink.sync_throws(&[]).await.map(drop)
}
