//! What the operator decides before the server starts.

use std::path::PathBuf;

use warren_wire::control::DerpMap;

/// What [`Control::open`](crate::Control::open) needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the database; made with mode 0700 if missing.
    pub state_dir: PathBuf,
    /// URL by which clients reach the server, without a slash at its end; login URLs begin with it.
    pub server_url: String,
    /// Domain under which every tailnet has a label of its own.
    pub base_domain: String,
    /// Relays that clients are told of; see also [`Control::set_derp_map`](crate::Control::set_derp_map).
    pub derp_map: DerpMap,
}
