//! Streams that arrive whole while keys change each second and the line loses and reorders; see [`crate::whole`].

use super::Context;
use crate::whole::{Case, cross};
use anyhow::Result;

/// Bytes of a test; the four together are 200 MB.
const BYTES: u64 = 50_000_000;

/// The usual MTU, over IPv4.
pub(super) fn usual(context: &Context) -> Result<()> {
    run(context, Case::Usual)
}

/// One side moves packets one by one.
pub(super) fn no_offload(context: &Context) -> Result<()> {
    run(context, Case::NoOffload)
}

/// An MTU of 1500, over IPv6.
pub(super) fn large(context: &Context) -> Result<()> {
    run(context, Case::Large)
}

/// Debian's wireguard-go is the other end.
pub(super) fn wireguard_go(context: &Context) -> Result<()> {
    run(context, Case::WireguardGo)
}

fn run(context: &Context, case: Case) -> Result<()> {
    println!("        {}", cross(&context.warren, "", case, BYTES)?);
    Ok(())
}
