//! Addresses of relays that the map gives by name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for one look-up.
const DEADLINE: Duration = Duration::from_secs(2);
/// Time for which an answer is used again.
const FRESH: Duration = Duration::from_secs(300);
/// Most names that are remembered.
const CAPACITY: usize = 256;

/// Remembers names. The look-ups themselves are tasks of the caller.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeMap<(Arc<str>, bool), (IpAddr, Instant)>,
}

impl Names {
    /// Returns the address of a name in the wanted family.
    pub(super) fn get(&self, host: &Arc<str>, v6: bool, now: Instant) -> Option<IpAddr> {
        let (address, since) = self.known.get(&(Arc::clone(host), v6))?;
        (now.saturating_duration_since(*since) < FRESH).then_some(*address)
    }

    /// Remembers an answer.
    pub(super) fn insert(&mut self, host: Arc<str>, v6: bool, address: IpAddr, now: Instant) {
        if self.known.len() >= CAPACITY {
            self.known.retain(|_, (_, since)| now.saturating_duration_since(*since) < FRESH);
        }
        if self.known.len() < CAPACITY {
            self.known.insert((host, v6), (address, now));
        }
    }
}

/// Looks an address of the wanted family up.
pub(super) async fn look_up(host: &str, port: u16, v6: bool) -> Option<SocketAddr> {
    let found = tokio::time::timeout(DEADLINE, warren_relay::dial::look_up(host, port)).await.ok()?.ok()?;
    found.into_iter().find(|address| address.is_ipv6() == v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn names_are_forgotten_in_time_and_never_pile_up() {
        let start = Instant::now();
        let mut names = Names::default();
        let ip = IpAddr::from([192, 0, 2, 1]);
        for number in 0..1000 {
            names.insert(format!("relay{number}").into(), false, ip, start);
        }
        assert_eq!(names.known.len(), CAPACITY);
        let name: Arc<str> = "relay0".into();
        assert_eq!(names.get(&name, false, start), Some(ip));
        assert_eq!(names.get(&name, true, start), None);
        assert_eq!(names.get(&name, false, start + FRESH), None);
        names.insert("new".into(), false, ip, start + FRESH);
        assert_eq!(names.known.len(), 1);
    }
}
