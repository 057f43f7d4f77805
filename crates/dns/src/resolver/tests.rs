use super::*;
use crate::name::Name;
use crate::query::{Kind, NXDOMAIN, REFUSED, word};
use crate::reply::tests::{query, reply};
use crate::zone::{Config, Host};
use proptest::prelude::*;

const ONE: &str = "192.0.2.1:53";
const TWO: &str = "192.0.2.2:53";

/// A resolver with a clock, and what it wants of its caller.
struct Bench {
    resolver: Resolver,
    now: Instant,
    answers: Vec<(u64, Vec<u8>)>,
    open: BTreeMap<AttemptId, (SocketAddr, Transport, Vec<u8>)>,
    asked: Vec<(String, Transport)>,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn new(upstreams: &[&str]) -> Self {
        let mut resolver = Resolver::new([7; 32]);
        resolver.set_zone(zone(upstreams));
        Self { resolver, now: Instant::now(), answers: vec![], open: BTreeMap::new(), asked: vec![] }
    }

    fn ask(&mut self, client: u64, text: &str) {
        let message = asking(text);
        self.resolver.handle_query(ClientId(client), Transport::Udp, &message, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.resolver.poll_output() {
            match output {
                Output::Answer { client, message } => self.answers.push((client.0, message)),
                Output::Ask { attempt, upstream, transport, message } => {
                    self.asked.push((upstream.to_string(), transport));
                    self.open.insert(attempt, (upstream, transport, message));
                }
                Output::Close(attempt) => assert!(self.open.remove(&attempt).is_some(), "closed what is not open"),
            }
        }
        assert!(self.resolver.pending() <= MAX_PENDING);
        let known: Vec<_> = self.resolver.attempts.keys().collect();
        assert_eq!(known, self.open.keys().collect::<Vec<_>>());
    }

    /// The open attempt at an upstream.
    fn at(&self, upstream: &str) -> AttemptId {
        *self.open.iter().rev().find(|(_, (address, ..))| address.to_string() == upstream).unwrap().0
    }

    /// Lets an upstream reply.
    fn reply(&mut self, upstream: &str, code: u16, ttls: &[u32], soa: Option<u32>) {
        let attempt = self.at(upstream);
        let message = said(&self.open[&attempt].2, code, ttls, soa);
        self.say(attempt, &message);
    }

    fn say(&mut self, attempt: AttemptId, message: &[u8]) {
        self.resolver.handle_reply(attempt, message, self.now);
        self.drain();
    }

    fn fail(&mut self, upstream: &str) {
        let attempt = self.at(upstream);
        self.open.remove(&attempt);
        self.resolver.handle_failure(attempt, self.now);
        self.drain();
    }

    /// Lets time pass, acting on deadlines when they come.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.resolver.poll_timeout().filter(|at| *at <= end) {
            assert!(at > self.now || self.resolver.pending() > 0);
            self.now = at.max(self.now);
            self.resolver.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// The only answer since the last look: to whom, code, count of answers, and the first time to live.
    fn answer(&mut self) -> (u64, u16, u16, Option<u32>) {
        assert_eq!(self.answers.len(), 1, "{:?}", self.answers);
        let (client, message) = self.answers.remove(0);
        let asked = Query::decode(&asking("www.example.com")).unwrap();
        let ttl = crate::query::long(&message, 12 + asked.question.len() + 6);
        let count = word(&message, 6).unwrap();
        (client, word(&message, 2).unwrap() & 15, count, ttl.filter(|_| count > 0))
    }
}

fn zone(upstreams: &[&str]) -> Zone {
    let upstreams = upstreams.iter().map(|text| text.parse().unwrap()).collect();
    let name = |text| Name::parse(text).unwrap();
    let addresses = vec!["100.64.0.1".parse().unwrap()];
    let alpha = Host { name: name("alpha.t.example"), named: vec![], addresses, wildcard: false };
    Zone::new(Config { hosts: vec![alpha], local: vec![name("t.example")], routes: vec![(name("."), upstreams)] })
}

fn asking(text: &str) -> Vec<u8> {
    // Forwarded queries are queries.
    query(text, Kind::A, true).forwarded(0x1234)
}

/// Makes a reply to a message that was sent.
fn said(sent: &[u8], code: u16, ttls: &[u32], soa: Option<u32>) -> Vec<u8> {
    let asked = Query::decode(sent).unwrap();
    reply(&asked, asked.id, code, ttls, soa)
}

#[test]
fn names_of_the_tailnet_are_answered_at_once_and_nobody_is_asked() {
    let mut bench = Bench::new(&[ONE]);
    bench.ask(1, "alpha.t.example");
    bench.ask(2, "nobody.t.example");
    assert_eq!((bench.answers.len(), bench.asked.len()), (2, 0));
}

#[test]
fn a_reply_is_passed_on_and_remembered() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    assert_eq!(bench.asked, [(ONE.to_owned(), Transport::Udp)]);
    bench.reply(ONE, 0, &[300], None);
    assert_eq!(bench.answer(), (1, 0, 1, Some(300)));
    bench.pass(Duration::from_secs(100));
    bench.ask(2, "WWW.example.com");
    assert_eq!(bench.answer(), (2, 0, 1, Some(200)));
    assert_eq!((bench.asked.len(), bench.open.len()), (1, 0));
    bench.pass(Duration::from_secs(200));
    bench.ask(3, "www.example.com");
    assert_eq!(bench.asked.len(), 2, "its time has passed");
}

#[test]
fn that_there_is_none_is_remembered_too() {
    let mut bench = Bench::new(&[ONE]);
    bench.ask(1, "www.example.com");
    bench.reply(ONE, NXDOMAIN, &[], Some(60));
    assert_eq!(bench.answer(), (1, NXDOMAIN, 0, None));
    bench.ask(2, "www.example.com");
    assert_eq!(bench.answer(), (2, NXDOMAIN, 0, None));
    assert_eq!(bench.asked.len(), 1);
}

#[test]
fn who_asks_the_same_shares_the_answer() {
    let mut bench = Bench::new(&[ONE]);
    for client in 0..100 {
        bench.ask(client, "www.example.com");
    }
    assert_eq!(bench.asked.len(), 1);
    bench.reply(ONE, 0, &[300], None);
    assert_eq!(bench.answers.len(), MAX_WAITING);
}

#[test]
fn a_silent_upstream_is_passed_over_and_avoided_after_that() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    bench.pass(PATIENCE);
    assert_eq!(bench.asked.last().unwrap().0, TWO);
    bench.reply(TWO, 0, &[300], None);
    assert_eq!(bench.answer(), (1, 0, 1, Some(300)));
    bench.ask(2, "www.example.org");
    assert_eq!((bench.asked.len(), bench.asked.last().unwrap().0.as_str()), (3, TWO));
    bench.pass(AVOIDED);
    bench.answers.clear();
    bench.ask(3, "www.example.net");
    assert_eq!(bench.open.len(), 1);
}

#[test]
fn a_late_reply_of_the_first_is_as_good() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    bench.pass(PATIENCE * 3 / 2);
    bench.reply(ONE, 0, &[300], None);
    assert_eq!(bench.answer(), (1, 0, 1, Some(300)));
    assert!(bench.open.is_empty());
}

#[test]
fn upstreams_that_refuse_are_asked_once_each_and_the_last_word_is_passed_on() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    bench.reply(ONE, SERVFAIL, &[], None);
    bench.reply(TWO, REFUSED, &[], None);
    assert_eq!(bench.answer(), (1, REFUSED, 0, None));
    assert_eq!(bench.asked.len(), 2);
}

#[test]
fn where_nobody_listens_the_next_is_asked_at_once() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    bench.fail(ONE);
    bench.fail(TWO);
    assert_eq!(bench.answer(), (1, SERVFAIL, 0, None));
}

#[test]
fn lies_are_not_believed_and_do_not_end_the_wait() {
    let mut bench = Bench::new(&[ONE]);
    bench.ask(1, "www.example.com");
    let attempt = bench.at(ONE);
    let sent = bench.open[&attempt].2.clone();
    let honest = said(&sent, 0, &[300], None);
    for bit in 0..16 {
        let mut lie = honest.clone();
        lie[bit / 8] ^= 1 << (bit % 8);
        bench.say(attempt, &lie);
    }
    let other = query("www.example.org", Kind::A, true);
    let id = word(&sent, 0).unwrap();
    bench.say(attempt, &reply(&other, id, 0, &[300], None));
    bench.say(attempt, &sent);
    assert_eq!((bench.answers.len(), bench.resolver.counters().foreign), (0, 18));
    bench.say(attempt, &honest);
    assert_eq!(bench.answer(), (1, 0, 1, Some(300)));
    bench.say(attempt, &honest);
    assert!(bench.answers.is_empty(), "it is over");
}

#[test]
fn a_truncated_reply_is_fetched_over_tcp_or_passed_on_as_it_is() {
    let mut bench = Bench::new(&[ONE]);
    for (client, text) in [(1, "www.example.com"), (2, "www.example.org")] {
        bench.ask(client, text);
        let attempt = bench.at(ONE);
        let mut short = said(&bench.open[&attempt].2, 0, &[], None);
        short[2] |= 2;
        bench.say(attempt, &short);
        assert_eq!(bench.asked.last(), Some(&(ONE.to_owned(), Transport::Tcp)));
        if client == 1 {
            bench.reply(ONE, 0, &[300; 40], None);
            assert_eq!(bench.answer(), (1, 0, 40, Some(300)));
        } else {
            bench.fail(ONE);
            assert_eq!(bench.answers.remove(0).1[2] & 2, 2);
        }
    }
}

#[test]
fn old_replies_serve_when_upstreams_are_dead_at_once_from_the_second_time_on() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    bench.reply(ONE, 0, &[60], None);
    bench.answers.clear();
    bench.pass(Duration::from_secs(3_600));
    bench.ask(2, "www.example.com");
    bench.pass(STALE_AFTER - Duration::from_millis(1));
    assert!(bench.answers.is_empty());
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.answer(), (2, 0, 1, Some(STALE_TTL_SECONDS)));
    bench.pass(DEADLINE);
    assert!(bench.open.is_empty() && bench.answers.is_empty());
    bench.ask(3, "www.example.com");
    assert_eq!(bench.answer(), (3, 0, 1, Some(STALE_TTL_SECONDS)));
    bench.reply(ONE, 0, &[60], None);
    bench.ask(4, "www.example.com");
    assert_eq!(bench.answer(), (4, 0, 1, Some(60)), "and all is well again");
}

#[test]
fn without_any_answer_the_asker_is_told_by_the_deadline() {
    let mut bench = Bench::new(&[ONE, TWO]);
    bench.ask(1, "www.example.com");
    bench.pass(DEADLINE);
    assert_eq!(bench.answer(), (1, SERVFAIL, 0, None));
    assert_eq!((bench.asked.len(), bench.open.len()), (2 * ROUNDS, 0));
    let mut nobody = Bench::new(&[]);
    nobody.ask(1, "www.example.com");
    assert_eq!(nobody.answer(), (1, SERVFAIL, 0, None));
}

#[test]
fn too_many_questions_are_dropped_and_new_upstreams_start_afresh() {
    let mut bench = Bench::new(&[ONE]);
    for client in 0..300 {
        bench.ask(client, &format!("n{client}.example.com"));
    }
    assert_eq!((bench.open.len(), bench.resolver.counters().dropped), (MAX_PENDING, 44));
    bench.resolver.set_zone(zone(&[TWO]));
    bench.drain();
    assert_eq!((bench.open.len(), bench.resolver.poll_timeout()), (0, None));
}

/// Something that happens to a resolver.
#[derive(Debug, Clone)]
enum Event {
    Ask(u8),
    Reply(u8, u16, Vec<u32>, Option<u32>),
    Noise(u8, Vec<u8>),
    Fail(u8),
    Pass(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0_u8..4).prop_map(Event::Ask),
        (any::<u8>(), 0_u16..6, proptest::collection::vec(0_u32..100, 0..3), proptest::option::of(0_u32..100))
            .prop_map(|(at, code, ttls, soa)| Event::Reply(at, code, ttls, soa)),
        (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, bytes)| Event::Noise(at, bytes)),
        any::<u8>().prop_map(Event::Fail),
        (0_u16..20_000).prop_map(Event::Pass),
    ]
}

proptest! {
    /// Whatever happens: who asks is answered once, by the deadline, and nothing is left behind.
    #[test]
    fn every_asker_is_answered_once(events in proptest::collection::vec(event(), 0..60)) {
        let mut bench = Bench::new(&[ONE, TWO]);
        let mut asked = 0;
        for event in events {
            let pick = |bench: &Bench, at: u8| {
                let count = bench.open.len().max(1);
                bench.open.iter().nth(usize::from(at) % count).map(|(id, open)| (*id, open.clone()))
            };
            match event {
                Event::Ask(number) => {
                    bench.ask(asked, &format!("n{number}.example.com"));
                    asked += 1;
                }
                Event::Reply(at, code, ttls, soa) => {
                    if let Some((id, (_, _, sent))) = pick(&bench, at) {
                        bench.say(id, &said(&sent, code, &ttls, soa));
                    }
                }
                Event::Noise(at, bytes) => {
                    if let Some((id, _)) = pick(&bench, at) {
                        bench.say(id, &bytes);
                    }
                }
                Event::Fail(at) => {
                    if let Some((_, (upstream, ..))) = pick(&bench, at) {
                        bench.fail(&upstream.to_string());
                    }
                }
                Event::Pass(millis) => bench.pass(Duration::from_millis(millis.into())),
            }
        }
        bench.pass(DEADLINE);
        let mut answered: Vec<u64> = bench.answers.iter().map(|(client, _)| *client).collect();
        answered.sort_unstable();
        let dropped = bench.resolver.counters().dropped;
        prop_assert_eq!(answered.len() as u64 + dropped, asked);
        answered.dedup();
        prop_assert_eq!(answered.len(), bench.answers.len());
        prop_assert!(bench.open.is_empty() && bench.resolver.pending() == 0 && bench.resolver.by_key.is_empty());
    }
}
