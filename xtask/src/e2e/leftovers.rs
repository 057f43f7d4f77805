//! What a node changes on its machine comes back, whenever it is killed.

use super::Context;
use super::exit::{OPEN, network};
use super::routes::forward;
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Lab, wait_for};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// How often the node is killed, and in the long lane.
const KILLS: (u64, u64) = (10, 50);
/// The latest moment: by then everything that a command asked for has happened.
const LATEST: u64 = 500;

/// SIGKILL while the node starts, goes up, takes an exit node, gives it up, goes down: one `warren cleanup`, or one further
/// life, puts rules, routes, firewall and resolver back as they were.
pub(super) fn kills(context: &Context) -> Result<()> {
    let mut lab = Lab::new("kills", &["server", "alpha", "beta"])?;
    let _web = lab.add_web()?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let file = lab.dir().join("policy.hujson");
    std::fs::write(&file, OPEN)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    forward(&lab.host("beta"))?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    beta.up(&server.invite(&[])?, &["--advertise-exit-node", "--advertise-routes=10.91.0.0/25"])?;
    server.admin(&["node", "approve-routes", "beta", "0.0.0.0/0", "10.91.0.0/25"])?;

    let host = lab.host("alpha");
    forward(&host)?;
    let state = || Ok::<_, anyhow::Error>((network(&host)?, host.run("cat").arg("/etc/resolv.conf").output()?));
    let before = state()?;
    let mut alpha = Node::start(&context.warren, &host)?;
    // With firewall rules of its own, too.
    alpha.up(&server.invite(&[])?, &["--accept-routes", "--advertise-routes=192.168.77.0/24"])?;
    server.admin(&["node", "approve-routes", "alpha", "192.168.77.0/24"])?;
    ensure!(state()?.1 != before.1, "the resolver is as it was while the node is up");
    let moments = if context.long { KILLS.1 } else { KILLS.0 };
    for moment in 0..moments {
        // What there is before, and what is on its way when it ends.
        let (from, to): (&[&str], &[&str]) = match moment % 5 {
            0 => (&["up"], &["set", "--exit-node=beta"]),
            1 => (&["set", "--exit-node=beta"], &["set", "--exit-node="]),
            2 => (&["set", "--exit-node=beta"], &["down"]),
            3 => (&["down"], &["up"]),
            _ => (&["up"], &["set", "--exit-node=beta", "--exit-node-allow-lan-access"]),
        };
        let what = format!("killed in moment {moment}, on the way from {from:?} to {to:?}");
        alpha.cli(&["up", "--timeout", "30"]).with_context(|| what.clone())?;
        wait_for("what there is before", PATIENCE, || alpha.cli(from).ok()).with_context(|| what.clone())?;
        let wait = Duration::from_millis(moment * 137 % LATEST);
        std::thread::scope(|scope| {
            // It ends when the daemon does.
            scope.spawn(|| drop(alpha.cli(to)));
            // The moment itself: any other would do as well.
            std::thread::sleep(wait);
            alpha.process().signal("KILL")
        })?;
        alpha.wait_killed()?;
        if moment % 2 == 0 {
            alpha.cli(&["cleanup"]).with_context(|| what.clone())?;
        } else {
            alpha.start_again()?;
            ensure!(alpha.stop()?.success(), "{what}: the next life did not end cleanly");
        }
        let back = wait_for("everything to be as before", PATIENCE / 3, || (state().ok()? == before).then_some(()));
        if back.is_err() {
            let (now, was) = (state()?, &before);
            let line = |text: &str, other: &str| -> Vec<String> {
                text.lines().filter(|line| !other.lines().any(|one| one == *line)).map(str::to_owned).collect()
            };
            let more = (line(&now.0, &was.0), line(&now.1, &was.1));
            let less = (line(&was.0, &now.0), line(&was.1, &now.1));
            anyhow::bail!("{what}: left behind {more:?}, missing {less:?}");
        }
        alpha.start_again()?;
    }
    ensure!(alpha.stop()?.success(), "the daemon did not stop cleanly");
    ensure!(state()? == before, "a clean end leaves something: {:?}", state()?);
    Ok(())
}
