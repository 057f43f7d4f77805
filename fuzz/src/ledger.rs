//! The ledger: batches of a node that may be hostile, somebody who edits a stream, checkpoints of a collector.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use warren_ledger::checkpoint::{Checkpoint, Verifier};
use warren_ledger::{
    Accepted, Batch, Chain, Counts, Direction, Event, Flow, LogSecret, Pass, Path, Receipt, Record, Start, Time,
    Update, Writer,
};
use warren_wire::flows::{Answer, Submission};
use warren_wire::key::NodeKey;

use crate::input::{Input, changed};

/// Batches of a story.
const BATCHES_MAX: usize = 16;
/// Steps of a story.
const STEPS_MAX: usize = 64;

fn secret() -> LogSecret {
    LogSecret::from_seed([1; 32])
}

const fn at(micros: u64) -> Time {
    Time::from_micros(1_795_000_000_000_000 + micros)
}

/// Reads a batch or a receipt as it comes; or signs the input as records behind a byte with their number, so that they are
/// read. What is read must be written the same.
pub fn batch(data: &[u8]) {
    let mut input = Input::new(data);
    if input.byte().is_multiple_of(2) {
        let bytes = input.rest();
        if let Ok(log) = Verifier::new("logs.example.com/family", secret().public()) {
            let _ = Receipt::open(bytes, &log);
        }
        if let Ok((batch, rest)) = Batch::parse_first(bytes) {
            assert_eq!([batch.bytes(), rest].concat(), bytes, "bytes are lost");
            let _ = batch.open();
        }
        return;
    }
    let count = input.byte();
    let signed = signed(count, input.rest());
    let Ok(opened) = Batch::parse(&signed).map(|batch| batch.open()) else { return };
    let Ok(opened) = opened else { return };
    assert_eq!(opened.records().len(), usize::from(count));
    let header = opened.header();
    let mut writer = Writer::new(secret(), header.epoch, header.previous);
    let again = writer.seal(opened.records(), header.made).expect("what was a batch is one");
    assert_eq!(again.bytes(), signed, "a record has two forms");
}

/// Reads what a node sends, or what a collector answers. What is read must be written the same.
pub fn flows(data: &[u8]) {
    let mut input = Input::new(data);
    if input.byte().is_multiple_of(2) {
        let bytes = input.rest();
        if let Ok(submission) = Submission::decode(bytes) {
            assert_eq!(submission.encode(), bytes, "a submission has two forms");
        }
    } else {
        let bytes = input.rest();
        if let Ok(answer) = Answer::decode(bytes) {
            assert_eq!(answer.encode(), bytes, "an answer has two forms");
        }
    }
}

/// Makes a batch with a valid signature of a body of `count` records, whatever it holds.
fn signed(count: u8, body: &[u8]) -> Vec<u8> {
    let time = at(0).as_micros().to_be_bytes();
    let header = [
        &[1],
        secret().public().as_bytes().as_slice(),
        &time,
        &[0; 16],
        &time,
        &[0; 32],
        &u32::from(count).to_be_bytes(),
        &u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes(),
        digest(&SHA256, body).as_ref(),
    ]
    .concat();
    let signature = secret().sign(&[b"warren ledger batch\0", header.as_slice()].concat());
    [header.as_slice(), signature.as_bytes(), body].concat()
}

/// A node writes batches, and somebody without its key repeats, leaves out, reorders and changes them. Only what the node
/// wrote is accepted, each batch once, in order.
pub fn chain(data: &[u8]) {
    let mut input = Input::new(data);
    let mut writer = Writer::new(secret(), at(0), [0; 32]);
    let batches: Vec<Batch> = (0..u64::try_from(input.below(BATCHES_MAX)).unwrap_or(0))
        .map(|number| {
            let counts = Counts { tx_packets: number, ..Counts::default() };
            let update = Update { flow: Flow(number), counts, path: Some(Path::Relay(1)) };
            let records = [start(number), Event::Update(update)].map(|event| Record { at: at(number), event });
            writer.seal(&records, at(number)).expect("two records fit a batch")
        })
        .collect();
    let mut chain = Chain::new(secret().public());
    let mut last = None;
    for _ in 0..STEPS_MAX {
        if input.is_empty() || batches.is_empty() {
            return;
        }
        let choice = input.byte();
        let number = input.below(batches.len());
        let original = &batches[number];
        let bytes =
            if choice.is_multiple_of(3) { changed(original.bytes(), input.bytes()) } else { original.bytes().to_vec() };
        let Ok(batch) = Batch::parse(&bytes) else { continue };
        let is_original = bytes == original.bytes();
        let before = chain.head().copied();
        match chain.accept(&batch) {
            Ok(Accepted::New(opened)) => {
                assert!(is_original, "an altered batch was accepted");
                assert_eq!(Some(number), last.map_or(Some(0), |last: usize| last.checked_add(1)), "out of order");
                assert_eq!(*opened.hash(), original.hash());
                last = Some(number);
            }
            Ok(Accepted::Again) => assert!(is_original && last.is_some_and(|last| number <= last)),
            Err(fault) => {
                assert_eq!(chain.head().copied(), before, "a refused batch changed something");
                assert!(!fault.to_string().is_empty());
                if choice.is_multiple_of(2) && chain.resume(&batch).is_ok() {
                    assert!(is_original && last.is_none_or(|last| number > last), "resumed into the past");
                    last = Some(number);
                }
            }
        }
    }
}

fn start(flow: u64) -> Event {
    Event::Start(Start {
        flow: Flow(flow),
        direction: Direction::Inbound,
        protocol: 17,
        local: ([100, 64, 0, 1], 53).into(),
        remote: ([100, 64, 0, 2], 5353).into(),
        peer: NodeKey::from_bytes([2; 32]),
        pass: Pass::Rule { rule: 3, filter: [4; 8] },
        path: Path::None,
    })
}

/// Signs the input as a collector would sign a checkpoint, or takes it as a whole one. What is read must be written the
/// same, and without the key nothing is.
pub fn checkpoint(data: &[u8]) {
    let mut input = Input::new(data);
    let verifier = Verifier::new("o", secret().public()).expect("a name");
    let is_signed = !input.byte().is_multiple_of(2);
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    if let Ok(verifier) = Verifier::parse(text) {
        assert_eq!(verifier.to_string(), text, "a key has two forms");
    }
    if !is_signed {
        assert!(Checkpoint::open(text, &verifier).is_err(), "forged");
        return;
    }
    let shown = verifier.to_string();
    let number = shown.split('+').nth(1).and_then(|hex| u32::from_str_radix(hex, 16).ok()).expect("eight digits");
    let signature = secret().sign(text.as_bytes());
    let line = STANDARD.encode([number.to_be_bytes().as_slice(), signature.as_bytes()].concat());
    if let Ok(read) = Checkpoint::open(&format!("{text}\n\u{2014} o {line}\n"), &verifier) {
        let again = read.sign(&secret()).expect("a name");
        let (again, _) = again.split_once("\n\n").expect("an empty line");
        assert!(text.starts_with(again), "a checkpoint has two forms");
    }
}
