//! A network whose users must log in before it lets them out.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Lab, wait_for};
use anyhow::{Result, ensure};

/// Where UDP is blocked and somebody else answers HTTP in the place of a relay, the node says so, and what to do; when that
/// is over it says so no more.
pub(super) fn captive(context: &Context) -> Result<()> {
    let lab = Lab::new("captive-portal", &["server", "relay", "alpha"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let address = lab.host("relay").address;
    let policy = format!(
        r#"{{
        "acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}],
        "derpMap": {{"Regions": {{"901": {{"RegionID": 901, "RegionCode": "far", "Nodes": [
            {{"Name": "901a", "RegionID": 901, "HostName": "{address}", "IPv4": "{address}", "CanPort80": true}},
        ]}}}}}},
    }}"#
    );
    let file = lab.dir().join("port80.hujson");
    std::fs::write(&file, policy)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    // Stands for the portal, which answers whatever is asked of whomever.
    let me = std::env::current_exe()?;
    let page = ["traffic", "http", "0.0.0.0:80", "log in here"];
    let mut portal = lab.host("relay").spawn("portal", &me, &page)?;
    portal.wait_log("listening", PATIENCE)?;
    lab.host("alpha").block_udp(true)?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&server.invite(&[])?, &[])?;
    let is_told = || Some(alpha.cli(&["status"]).ok()?.contains("captive portal"));
    wait_for("the portal to be found", PATIENCE, || {
        alpha.cli(&["netcheck"]).ok()?.contains("CaptivePortal: true").then_some(())
    })?;
    wait_for("the status to say it", PATIENCE, || is_told()?.then_some(()))?;
    portal.signal("KILL")?;
    portal.wait_end(PATIENCE)?;
    let report = alpha.cli(&["netcheck"])?;
    ensure!(!report.contains("CaptivePortal"), "there is no portal any more: {report}");
    wait_for("the status to say so no more", PATIENCE, || (!is_told()?).then_some(()))
}
