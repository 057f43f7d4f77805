//! The tunnel beside other programs and beside the bare minimum, on the same kind of lab, in turns.
//!
//! Each turn sets every subject up anew, in two namespaces with one switch between them, and takes every wanted figure
//! of it: A B C … A B C …. What is printed are medians over the turns and ratios; a program that is missing voids the run.

mod figure;
pub(crate) mod profile;
mod subject;

use super::{median, release_warren};
use crate::packages;
use crate::run::{Run, target};
use anyhow::{Result, bail};
use figure::Figure;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use subject::Subject;

/// The programs that are compared.
#[derive(Default)]
pub(super) struct Programs {
    warren: PathBuf,
    bare: PathBuf,
    boringtun: PathBuf,
    gotatun: PathBuf,
}

/// What is wanted of a run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many turns for each.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Only these figures, by the names in the output (tcp1, pps …).
    #[arg(long, value_delimiter = ',')]
    figures: Vec<String>,
    /// Only these subjects, by the names in the output (warren, bare-aws, gotatun …).
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Print one JSON object for each figure instead of a table.
    #[arg(long)]
    json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { runs: 5, figures: Vec::new(), subjects: Vec::new(), json: false }
    }
}

/// Measures, prints a line for each subject and turn as it goes, then the medians.
pub(super) fn measure(options: &Options) -> Result<()> {
    let figures = wanted(&Figure::ALL, &options.figures, Figure::name, "figure")?;
    let subjects = wanted(&Subject::ALL, &options.subjects, Subject::name, "subject")?;
    let programs = programs()?;
    let mut results: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for turn in 1..=options.runs {
        for subject in &subjects {
            let pair = subject.set_up(&programs)?;
            let mut line = format!("turn {turn}: {:<13}", subject.name());
            for figure in &figures {
                let values = figure.take(&pair, &programs.bare)?;
                for (name, value) in figure.names().iter().zip(values) {
                    line.push_str(&format!("  {name} {value:.*}", figure.digits()));
                    results.entry((name, subject.name())).or_default().push(value);
                }
            }
            eprintln!("{line}");
        }
    }
    if options.json {
        print_json(&figures, &mut results)
    } else {
        print_table(&figures, &subjects, &mut results)
    }
    Ok(())
}

/// Returns those of `all` that are named, or all.
fn wanted<T: Copy>(all: &[T], names: &[String], name: fn(&T) -> &'static str, what: &str) -> Result<Vec<T>> {
    if let Some(unknown) = names.iter().find(|wanted| !all.iter().any(|one| name(one) == **wanted)) {
        let known: Vec<&str> = all.iter().map(name).collect();
        bail!("there is no {what} {unknown}; there are {}", known.join(", "));
    }
    Ok(all.iter().copied().filter(|one| names.is_empty() || names.iter().any(|wanted| wanted == name(one))).collect())
}

fn programs() -> Result<Programs> {
    let warren = release_warren()?;
    Run::cargo().args("build --quiet --locked --release --package warren-node --example bare").go()?;
    packages::debian(&[
        ("wireguard-go", "wireguard-go"),
        ("wg", "wireguard-tools"),
        ("iperf3", "iperf3"),
        ("ping", "iputils-ping"),
    ])?;
    Ok(Programs {
        warren,
        bare: target().join("release/examples/bare"),
        boringtun: packages::cargo("boringtun-cli", "0.7.1", "boringtun-cli")?,
        gotatun: packages::cargo("gotatun-cli", "0.10.2", "gotatun")?,
    })
}

fn print_table(figures: &[Figure], subjects: &[Subject], results: &mut BTreeMap<(&str, &str), Vec<f64>>) {
    let names = figures.iter().flat_map(|figure| figure.names().iter().map(move |name| (name, figure)));
    for (name, figure) in names {
        println!("{name}, {}, median (least–most), of warren's:", figure.unit());
        let ours = results.get_mut(&(*name, Subject::WARREN)).map(|values| median(values));
        for subject in subjects {
            let Some(values) = results.get_mut(&(*name, subject.name())) else { continue };
            let middle = median(values);
            // Sorted by the median.
            let (least, most) =
                (values.first().copied().unwrap_or_default(), values.last().copied().unwrap_or_default());
            let ratio = ours.map(|ours| format!("  {:.2}", middle / ours)).unwrap_or_default();
            let digits = figure.digits();
            println!("  {:<13} {middle:.digits$} ({least:.digits$}–{most:.digits$}){ratio}", subject.name());
        }
    }
}

fn print_json(figures: &[Figure], results: &mut BTreeMap<(&str, &str), Vec<f64>>) {
    for figure in figures {
        for name in figure.names() {
            let of = |subject: &str| results.get(&(*name, subject)).map(|values| median(&mut values.clone()));
            let others: Map<String, Value> = Subject::ALL
                .iter()
                .map(Subject::name)
                .filter(|subject| *subject != Subject::WARREN)
                .filter_map(|subject| Some((subject.to_owned(), json!(of(subject)?))))
                .collect();
            let line = json!({
                "metric": name,
                "unit": figure.unit(),
                "warren": of(Subject::WARREN),
                "ceiling": of(Subject::CEILING),
                "others": others,
                "runs": results.get(&(*name, Subject::WARREN)),
            });
            println!("{line}");
        }
    }
}
