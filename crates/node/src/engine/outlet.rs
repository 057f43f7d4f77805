//! What the daemon must learn: the newest of each kind, however slow it is.

use tokio::sync::mpsc;

use super::Event;

/// Keeps the newest event of each kind until the daemon has room for it.
#[derive(Debug)]
pub(super) struct Outlet {
    events: mpsc::Sender<Event>,
    /// The daemon is gone.
    closed: bool,
    waiting: Vec<Event>,
    last: Vec<Event>,
}

impl Outlet {
    /// Makes an outlet into `events`.
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, closed: false, waiting: Vec::new(), last: Vec::new() }
    }

    /// Tells the daemon, unless it knows already.
    pub(super) fn tell(&mut self, event: Event) {
        let same_kind = |one: &Event| std::mem::discriminant(one) == std::mem::discriminant(&event);
        if self.last.iter().any(|last| is_news_worthless(last, &event)) {
            return;
        }
        self.last.retain(|one| !same_kind(one));
        self.waiting.retain(|one| !same_kind(one));
        self.last.push(event.clone());
        self.waiting.push(event);
    }

    /// Forgets what the daemon knows, so that everything is told anew.
    pub(super) fn forget(&mut self) {
        self.last.clear();
        self.waiting.retain(|event| matches!(event, Event::Fatal(_)));
    }

    /// Tells whether something waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() && !self.closed
    }

    /// Waits until the daemon has room and hands over the oldest event. May be dropped half way.
    pub(super) async fn deliver(&mut self) {
        match self.events.reserve().await {
            Ok(room) if !self.waiting.is_empty() => room.send(self.waiting.remove(0)),
            Ok(_) => {}
            Err(_) => self.closed = true,
        }
    }
}

/// Tells whether `next` says nothing that `last` did not say. Latencies change all the time and are told with the next
/// real change.
///
/// Source: Tailscale `tailcfg`, `NetInfo.BasicallyEqual`.
fn is_news_worthless(last: &Event, next: &Event) -> bool {
    match (last, next) {
        (Event::NetInfo(last), Event::NetInfo(next)) => {
            let mut last = last.clone();
            last.derp_latency.clone_from(&next.derp_latency);
            last == *next
        }
        // Peers do not care about the order; the server stores every change.
        (Event::Endpoints(last), Event::Endpoints(next)) => {
            last.len() == next.len() && next.iter().all(|endpoint| last.contains(endpoint))
        }
        (last, next) => last == next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_wire::control::NetInfo;

    #[tokio::test]
    async fn a_slow_daemon_gets_the_newest_of_each_kind() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut outlet = Outlet::new(sender);
        for peers in 0..100 {
            outlet.tell(Event::Live { relays: 1, peers });
            outlet.tell(Event::Health(vec![format!("trouble {peers}")]));
        }
        let mut heard = Vec::new();
        while outlet.is_waiting() {
            outlet.deliver().await;
            heard.push(receiver.recv().await.unwrap());
        }
        assert_eq!(heard, [Event::Live { relays: 1, peers: 99 }, Event::Health(vec!["trouble 99".into()])]);
        outlet.tell(Event::Live { relays: 1, peers: 99 });
        assert!(!outlet.is_waiting(), "the daemon knows that");
        drop(receiver);
        outlet.tell(Event::Live { relays: 0, peers: 0 });
        outlet.deliver().await;
        assert!(!outlet.is_waiting(), "nobody is there to wait for");
    }

    #[test]
    fn latencies_alone_are_no_news() {
        let mut outlet = Outlet::new(mpsc::channel(1).0);
        let info = NetInfo { working_udp: Some(true), ..NetInfo::default() };
        let mut slower = info.clone();
        slower.derp_latency.insert("900-v4".to_owned(), 0.2);
        outlet.tell(Event::NetInfo(Box::new(info)));
        outlet.tell(Event::NetInfo(Box::new(slower.clone())));
        assert!(matches!(outlet.waiting.as_slice(), [Event::NetInfo(info)] if info.derp_latency.is_empty()));
        slower.working_udp = Some(false);
        outlet.tell(Event::NetInfo(Box::new(slower.clone())));
        assert_eq!(outlet.waiting, [Event::NetInfo(Box::new(slower))]);
    }
}
