//! Debian's wireguard-go against the `wg` core; the test itself lives with the crate.

use super::Context;
use crate::run::Run;
use anyhow::Result;

/// Handshake, data both ways, rekey and roaming.
pub(super) fn interop(_: &Context) -> Result<()> {
    Run::cargo().args("test --quiet --locked --package warren-wg --test wireguard_go").env("WARREN_E2E", "1").go()
}
