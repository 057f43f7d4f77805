//! Replays the corpora of all fuzz targets; see fuzz/README.md.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what it runs and stops where it fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Most bytes of all corpora together.
const CORPORA_MAX_BYTES: usize = 1 << 20;

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn names(folder: &Path) -> BTreeSet<String> {
    entries(folder).iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn corpora_of_all_targets_pass() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut size = 0;
    for (name, target) in warren_fuzz::TARGETS {
        let files = entries(&corpora.join(name));
        assert!(!files.is_empty(), "the corpus of {name} is empty");
        for path in files {
            println!("{}", path.display());
            let input = std::fs::read(path).unwrap();
            size += input.len();
            target(&input);
        }
    }
    assert!(size <= CORPORA_MAX_BYTES, "the corpora have {size} bytes");
}

#[test]
fn every_target_has_a_corpus_and_a_program_and_stands_in_order() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed: Vec<&str> = warren_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
    assert!(listed.is_sorted_by(|one, two| one < two));
    let listed: BTreeSet<String> = listed.into_iter().map(str::to_owned).collect();
    assert_eq!(names(&here.join("corpus")), listed);
    assert_eq!(names(&here.join("libfuzzer/src/bin")), listed);
}

/// The search takes longer inputs than the corpora hold; these are cheap to make and need no file.
#[test]
fn long_and_deep_inputs_pass() {
    let long = [vec![0; 70_000], vec![b'['; 70_000], b"{\"a\":".repeat(20_000), vec![0xff; 70_000]];
    for (name, target) in warren_fuzz::TARGETS {
        for input in &long {
            println!("{name}");
            for choice in 0..3 {
                target(&[&[choice], input.as_slice()].concat());
            }
        }
    }
}
