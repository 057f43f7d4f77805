//! The test lanes.

use crate::run::Run;
use crate::{check, e2e, fuzz, grid, packages, sanitize, sim, soak, whole};
use anyhow::Result;

/// What continuous integration runs: checks, unit and property tests, replay of the fuzz corpora, the
/// crates with `unsafe` under a sanitizer, 200 seeds of the
/// simulation, end to end, interop, six cells of the grid.
pub(crate) fn all() -> Result<()> {
    packages::debian(&[("cc", "build-essential")])?;
    check::all()?;
    Run::cargo().args("test --quiet --workspace --locked").go()?;
    sanitize::all()?;
    sim::few()?;
    e2e::command(None, false, false)?;
    grid::few()
}

/// What takes hours: 10,000 seeds of the simulation, faults without end, 10 GB over a bad line, every pair of places, then
/// every fuzz target for its share of 60 CPU minutes. Goes on where the last call was interrupted; the reports are kept in docs/reports/.
pub(crate) fn long() -> Result<()> {
    sim::many()?;
    soak::run()?;
    whole::long()?;
    grid::whole(None)?;
    fuzz::hour()
}
