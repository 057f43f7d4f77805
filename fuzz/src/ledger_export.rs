//! Exports of a collector's log, as somebody hostile may have written them.

use std::sync::LazyLock;

use warren_ledger::checkpoint::{Checkpoint, Verifier};
use warren_ledger::export::Bundle;
use warren_ledger::merkle::Frontier;
use warren_ledger::{Batch, LogSecret, Time, Writer};

use crate::input::Input;

/// Batches of the log.
const BATCHES: usize = 5;

/// A log that does not change: its name, its batches, and the first line of an export of it.
static LOG: LazyLock<(Verifier, Vec<Batch>, String)> = LazyLock::new(|| {
    let secret = || LogSecret::from_seed([9; 32]);
    let verifier = Verifier::new("o", secret().public()).expect("a name");
    let at = Time::from_micros(1_795_000_000_000_000);
    let mut writer = Writer::new(LogSecret::from_seed([1; 32]), at, [0; 32]);
    let batches: Vec<Batch> = (0..BATCHES).map(|_| writer.seal(&[], at).expect("it fits")).collect();
    let mut tree = Frontier::new();
    batches.iter().for_each(|batch| tree.push(batch.hash(), |_, _, _| {}));
    let checkpoint = Checkpoint { origin: "o".into(), size: tree.size(), root: tree.root() };
    let note = checkpoint.sign(&secret()).expect("a name");
    (verifier, batches, format!("{{\"checkpoint\":{}}}\n", serde_json::Value::from(note)))
});

/// Reads an export as it comes, or the input as lines behind a signed checkpoint. What is proved must be in the log.
pub fn export(data: &[u8]) {
    let mut input = Input::new(data);
    let is_signed = !input.byte().is_multiple_of(2);
    let (verifier, batches, first) = &*LOG;
    let text = if is_signed { [first.as_bytes(), input.rest()].concat() } else { input.rest().to_vec() };
    let Ok(bundle) = Bundle::open(text.as_slice(), verifier) else {
        assert!(!is_signed, "the checkpoint is the collector's");
        return;
    };
    for one in bundle {
        // Nothing is read behind the first that does not prove anything.
        let Ok((position, opened)) = one else { return };
        let known = usize::try_from(position).ok().and_then(|position| batches.get(position));
        assert_eq!(known.map(Batch::hash).as_ref(), Some(opened.hash()), "proved, and not in the log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole exports are found where the corpus has them: the target reaches what it is about.
    #[test]
    fn the_corpus_holds_an_export_that_proves() {
        let bytes =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/ledger_export/whole")).expect("it is there");
        let (verifier, _, first) = &*LOG;
        let text = [first.as_bytes(), &bytes[1..]].concat();
        let bundle = Bundle::open(text.as_slice(), verifier).expect("the checkpoint is signed");
        let proved: Vec<u64> = bundle.map(|one| one.expect("it is proved").0).collect();
        assert_eq!(proved, [0, 3, 4]);
    }
}
