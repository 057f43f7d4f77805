//! What nodes are answered, and what is found.

use warren_ledger::{
    Batch, Direction, Event as What, Flow, LogSecret, Pass, Path, Receipt, Record, Start, Time, Writer,
};
use warren_wire::control::{Blob, CapabilityVersion, LogKeyBinding, LogKeyRequest};
use warren_wire::flows::{Submission, Verdict};
use warren_wire::key::NodeKey;

use super::FlowsRefusal;
use super::events::Event;
use crate::admin::{FlowCursor, FlowQuestion, NewAuthKey};
use crate::testing::{World, machine, node_key};

fn secret(number: u8) -> LogSecret {
    LogSecret::from_seed([number; 32])
}

fn start(flow: u64) -> Record {
    let event = What::Start(Start {
        flow: Flow(flow),
        direction: Direction::Outbound,
        protocol: 6,
        local: "100.64.0.1:50000".parse().unwrap(),
        remote: "100.64.0.2:443".parse().unwrap(),
        peer: NodeKey::from_bytes([2; 32]),
        pass: Pass::Opened,
        path: Path::None,
    });
    Record { at: Time::from_micros(1_795_000_000_000_000), event }
}

impl World {
    fn key_request(&self, number: u8, log: &LogSecret) -> LogKeyRequest {
        let binding = LogKeyBinding {
            server: self.control.noise_key(),
            machine: machine(number),
            node: node_key(number),
            log: *log.public().as_bytes(),
        };
        LogKeyRequest {
            version: CapabilityVersion(130),
            node_key: node_key(number),
            log_key: Blob(log.public().as_bytes().to_vec()),
            signature: Blob(log.sign(&binding.message()).as_bytes().to_vec()),
        }
    }

    async fn offer(&self, number: u8, log: &LogSecret) -> Result<(), FlowsRefusal> {
        self.control.register_log_key(machine(number), &self.key_request(number, log)).await.map(drop)
    }

    async fn send(&self, number: u8, batches: &[&Batch]) -> Vec<Verdict> {
        let batches = batches.iter().map(|batch| batch.bytes()).collect();
        let submission = Submission { node: node_key(number), batches };
        self.control.take_flows(machine(number), &submission).await.unwrap().0
    }

    /// A server with two nodes whose network wants flow logs.
    async fn with_flow_logs() -> Self {
        let world = Self::new().await;
        for number in [1, 2] {
            world.join(number, NewAuthKey::default()).await;
        }
        world.admin().set_flow_log("default", true).await.unwrap();
        world
    }

    fn findings(&self) -> Vec<String> {
        let path = self.folder.join("state").join("ledger").join("events.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().what).collect()
    }
}

async fn receipt(world: &World, verdict: &Verdict) -> Receipt {
    let Verdict::Stored(bytes) = verdict else { panic!("not stored: {verdict:?}") };
    Receipt::open(bytes, &world.control.collector().await.unwrap().verifier(crate::TailnetId(1)).unwrap()).unwrap()
}

#[tokio::test]
async fn a_node_proves_that_it_has_its_log_key() {
    let world = World::new().await;
    for number in [1, 2] {
        world.join(number, NewAuthKey::default()).await;
    }
    assert_eq!(world.offer(1, &secret(1)).await, Err(FlowsRefusal::Off));
    world.admin().set_flow_log("default", true).await.unwrap();
    // A key of somebody else, or a proof for another node.
    let stolen =
        LogKeyRequest { log_key: Blob(secret(2).public().as_bytes().to_vec()), ..world.key_request(1, &secret(1)) };
    assert_eq!(world.control.register_log_key(machine(1), &stolen).await, Err(FlowsRefusal::Signature));
    let other = LogKeyRequest { node_key: node_key(2), ..world.key_request(1, &secret(1)) };
    assert_eq!(world.control.register_log_key(machine(2), &other).await, Err(FlowsRefusal::Signature));
    assert_eq!(
        world.control.register_log_key(machine(2), &world.key_request(1, &secret(1))).await,
        Err(FlowsRefusal::UnknownNode)
    );
    world.offer(1, &secret(1)).await.unwrap();
    world.offer(1, &secret(1)).await.unwrap();
    assert_eq!(world.offer(2, &secret(1)).await, Err(FlowsRefusal::Taken));
    let audit = world.admin().audit(None, None, 50).await.unwrap();
    let bound: Vec<_> = audit.iter().filter(|entry| entry.what == "node.log-key").collect();
    assert_eq!(bound.len(), 1, "told twice, changed once");
    assert!(bound[0].after.as_ref().unwrap().contains(&secret(1).public().to_string()));
    assert_eq!(bound[0].who, crate::Who::machine(&machine(1)).as_str());
    assert!(world.findings().is_empty());
    world.offer(1, &secret(3)).await.unwrap();
    // The thread works in order.
    let batch = Writer::new(secret(3), Time::from_micros(1), [0; 32]).seal(&[], Time::from_micros(2)).unwrap();
    world.send(1, &[&batch]).await;
    assert_eq!(world.findings(), ["key.changed"]);
}

#[tokio::test]
async fn batches_are_stored_once_and_over_restarts() {
    let world = World::with_flow_logs().await;
    let mut writer = Writer::new(secret(1), Time::from_micros(1), [0; 32]);
    let batches: Vec<_> = (0..4).map(|flow| writer.seal(&[start(flow)], Time::from_micros(2)).unwrap()).collect();
    let submission = Submission { node: node_key(1), batches: vec![batches[0].bytes()] };
    assert_eq!(world.control.take_flows(machine(1), &submission).await, Err(FlowsRefusal::NoKey));
    world.offer(1, &secret(1)).await.unwrap();
    assert_eq!(world.control.take_flows(machine(2), &submission).await, Err(FlowsRefusal::UnknownNode));
    let first = world.send(1, &[&batches[0], &batches[1]]).await;
    let receipts = [receipt(&world, &first[0]).await, receipt(&world, &first[1]).await];
    assert_eq!(
        receipts.iter().map(|one| (one.position, one.hash)).collect::<Vec<_>>(),
        [(0, batches[0].hash()), (1, batches[1].hash()),]
    );
    assert_eq!(world.send(1, &[&batches[0], &batches[1]]).await, first, "the same receipts again");
    let world = world.restart(std::time::Duration::from_secs(1)).await;
    assert_eq!(world.send(1, &[&batches[1]]).await, first[1..], "known after a restart, too");
    let more = world.send(1, &[&batches[2], &batches[3]]).await;
    assert_eq!(receipt(&world, &more[1]).await.position, 3);
    assert!(world.findings().is_empty());
    world.admin().set_flow_log("default", false).await.unwrap();
    assert_eq!(world.control.take_flows(machine(1), &submission).await, Err(FlowsRefusal::Off));
}

#[tokio::test]
async fn what_is_wrong_with_a_chain_is_written_down_and_the_node_goes_on() {
    let world = World::with_flow_logs().await;
    world.offer(1, &secret(1)).await.unwrap();
    world.offer(2, &secret(2)).await.unwrap();
    let mut writer = Writer::new(secret(1), Time::from_micros(1), [0; 32]);
    let batches: Vec<_> = (0..4).map(|flow| writer.seal(&[start(flow)], Time::from_micros(2)).unwrap()).collect();
    world.send(1, &[&batches[0]]).await;
    let verdicts = world.send(1, &[&batches[2]]).await;
    assert_eq!(receipt(&world, &verdicts[0]).await.position, 1);
    assert_eq!(world.findings(), ["chain.gap"]);
    let mut bytes = batches[3].bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let altered = Batch::parse(&bytes).unwrap();
    let verdicts = world.send(1, &[&altered, &batches[3]]).await;
    assert!(matches!(verdicts[0], Verdict::Refused(_)), "{verdicts:?}");
    assert_eq!(receipt(&world, &verdicts[1]).await.position, 2);
    // A node hands in what another wrote.
    let verdicts = world.send(2, &[&batches[0]]).await;
    assert!(matches!(&verdicts[..], [Verdict::Refused(_)]), "{verdicts:?}");
    // A node tells two stories.
    let mut second = Writer::new(secret(1), Time::from_micros(1), [0; 32]);
    let other = second.seal(&[start(7)], Time::from_micros(2)).unwrap();
    assert!(matches!(world.send(1, &[&other]).await[..], [Verdict::Refused(_)]));
    let unreadable = Submission { node: node_key(1), batches: vec![b"nothing"] };
    let answer = world.control.take_flows(machine(1), &unreadable).await.unwrap();
    assert!(matches!(answer.0[..], [Verdict::Refused(_)]));
    assert_eq!(
        world.findings(),
        ["chain.gap", "batch.altered", "batch.other-key", "chain.rewritten", "batch.unreadable"]
    );
}

#[tokio::test]
async fn what_was_stored_is_found_page_by_page_and_verified() {
    let world = World::with_flow_logs().await;
    let nothing = world.admin().ask_flows("default", FlowQuestion { limit: 10, ..FlowQuestion::default() }).await;
    assert_eq!(nothing.unwrap().lines.len(), 0, "there is no log yet");
    world.offer(1, &secret(1)).await.unwrap();
    let mut writer = Writer::new(secret(1), Time::from_micros(1), [0; 32]);
    let records: Vec<_> = (0..5).map(start).collect();
    let batches = [
        writer.seal(&records[..3], Time::from_micros(2)).unwrap(),
        writer.seal(&records[3..], Time::from_micros(3)).unwrap(),
    ];
    world.send(1, &[&batches[0], &batches[1]]).await;
    let (mut flows, mut from, mut pages) = (Vec::new(), FlowCursor::default(), 0);
    loop {
        let question = FlowQuestion { limit: 2, from, parties: vec!["host1".to_owned()], ..FlowQuestion::default() };
        let answer = world.admin().ask_flows("default", question).await.unwrap();
        assert!(answer.lines.iter().all(|line| line["nodeId"] == "n1" && line["proto"] == 6), "{answer:?}");
        assert_eq!(answer.names["n1"], "host1");
        flows.extend(answer.lines.iter().map(|line| line["flow"].as_u64().unwrap()));
        (from, pages) = (answer.next, pages + 1);
        if !answer.more {
            break;
        }
    }
    assert_eq!((flows, pages), (vec![0, 1, 2, 3, 4], 3), "each once, over the border of a batch");
    // It is the other end of them.
    let of_peer = FlowQuestion { limit: 9, parties: vec!["host2".to_owned()], ..FlowQuestion::default() };
    assert_eq!(world.admin().ask_flows("default", of_peer.clone()).await.unwrap().lines.len(), 5);
    let udp = FlowQuestion { protocol: Some(17), ..of_peer };
    assert!(world.admin().ask_flows("default", udp).await.unwrap().lines.is_empty());
    let wrong = FlowQuestion { kinds: vec!["all".to_owned()], ..FlowQuestion::default() };
    assert!(world.admin().ask_flows("default", wrong).await.is_err());
    let verdict = world.admin().verify_flows("default").await.unwrap();
    assert_eq!((verdict.batches, verdict.records, verdict.breaks.len()), (2, 5, 0));
    // The node says that it was started anew without what it had sent.
    let again = Writer::new(secret(1), Time::from_micros(9), [0; 32]).seal(&[], Time::from_micros(10)).unwrap();
    world.send(1, &[&again]).await;
    let findings = world.admin().flow_findings("default", 10).await.unwrap();
    assert_eq!(
        (findings.len(), &findings[0]["what"], &findings[0]["node_name"]),
        (1, &"chain.restart".into(), &"host1".into())
    );
}

#[tokio::test]
async fn a_disk_that_refuses_makes_nodes_wait_and_ends_nothing() {
    let world = World::with_flow_logs().await;
    world.offer(1, &secret(1)).await.unwrap();
    let folder = world.folder.join("state").join("ledger");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("tailnet-1"), "in the way").unwrap();
    let batch = Writer::new(secret(1), Time::from_micros(1), [0; 32]).seal(&[start(0)], Time::from_micros(2)).unwrap();
    assert_eq!(world.send(1, &[&batch]).await, [Verdict::Later]);
    std::fs::remove_file(folder.join("tailnet-1")).unwrap();
    let world = world.restart(std::time::Duration::from_secs(1)).await;
    assert_eq!(receipt(&world, &world.send(1, &[&batch]).await[0]).await.position, 0);
}
