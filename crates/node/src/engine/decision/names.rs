//! Where programs of this machine ask for names, told by a task of its own: the programs that must be told (systemd-resolved,
//! resolvconf) may take seconds, and nothing else waits for them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use warren_os::{IfName, NameSettings, ResolverError, SystemResolver};

/// Tells the machine; of what is wanted meanwhile, the newest.
#[derive(Debug)]
pub(super) struct Names {
    wishes: watch::Sender<Wish>,
    done: watch::Receiver<Done>,
    /// What the task begins with, until it does.
    start: Option<Start>,
    task: Option<AbortHandle>,
}

type Start = (watch::Receiver<Wish>, watch::Sender<Done>, Box<dyn Tell>);

/// Changes where programs ask. It may take long, so it is used on threads that may wait.
trait Tell: Send + Sync + std::fmt::Debug {
    fn set(&mut self, settings: &NameSettings) -> Result<(), ResolverError>;
    fn restore(&mut self) -> Result<(), ResolverError>;
}

impl Tell for SystemResolver {
    fn set(&mut self, settings: &NameSettings) -> Result<(), ResolverError> {
        Self::set(self, settings)
    }

    fn restore(&mut self) -> Result<(), ResolverError> {
        Self::restore(self)
    }
}

/// Is what is wanted.
#[derive(Debug, Clone, Default)]
struct Wish {
    number: u64,
    /// `None`: put back what was there before.
    settings: Option<NameSettings>,
}

/// Is how far the task has come.
#[derive(Debug, Clone, Default)]
struct Done {
    number: u64,
    /// Why programs do not ask as wanted, for people.
    trouble: Option<String>,
}

impl Names {
    /// Takes charge for the tunnel `interface`; changes nothing yet.
    pub(super) fn new(interface: IfName) -> Self {
        Self::with(Box::new(SystemResolver::new(interface)))
    }

    fn with(tell: Box<dyn Tell>) -> Self {
        let (wishes, wished) = watch::channel(Wish::default());
        let (said, done) = watch::channel(Done::default());
        Self { wishes, done, start: Some((wished, said, tell)), task: None }
    }

    /// Has programs ask as wanted, or, if that is `None`, as they did before we changed it; makes good what others changed.
    /// Does not wait for it; must be called within a runtime.
    pub(super) fn set(&mut self, settings: Option<NameSettings>) {
        if settings.is_some() || self.wishes.borrow().settings.is_some() {
            self.wish(settings);
        }
    }

    /// Puts back what was there before, also what an earlier process has left, and waits until that is done. Returns why it is
    /// not.
    pub(super) async fn restore(&mut self) -> Option<String> {
        let number = self.wish(None);
        // The task ends no sooner than this.
        let done = self.done.wait_for(|done| done.number >= number).await;
        done.ok().and_then(|done| done.trouble.clone())
    }

    /// Returns why programs do not ask as wanted, as far as it is known.
    pub(super) fn trouble(&self) -> Option<String> {
        self.done.borrow().trouble.clone()
    }

    /// Waits until there is something new to know.
    pub(super) async fn changed(&mut self) {
        if self.done.changed().await.is_err() {
            // The task has begun to end, or has never begun.
            std::future::pending::<()>().await;
        }
    }

    fn wish(&mut self, settings: Option<NameSettings>) -> u64 {
        if let Some(start) = self.start.take() {
            self.task = Some(tokio::spawn(run(start)).abort_handle());
        }
        let mut number = 0;
        self.wishes.send_modify(|wish| {
            number = wish.number + 1;
            *wish = Wish { number, settings };
        });
        number
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn run((mut wished, said, tell): Start) {
    let tell = Arc::new(Mutex::new(tell));
    while wished.changed().await.is_ok() {
        let Wish { number, settings } = wished.borrow_and_update().clone();
        let tell = Arc::clone(&tell);
        let change = move || {
            let mut tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
            match settings {
                Some(settings) => tell.set(&settings),
                None => tell.restore(),
            }
        };
        // A thread that panicked has said so in the log.
        let result = tokio::task::spawn_blocking(change).await.unwrap_or(Ok(()));
        let trouble = result.err().map(|error| error.to_string());
        said.send_modify(|done| *done = Done { number, trouble });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Says what it is told, and takes as long as the test likes.
    #[derive(Debug)]
    struct Slow {
        told: tokio::sync::mpsc::Sender<Option<Vec<String>>>,
        go_on: Mutex<mpsc::Receiver<()>>,
    }

    impl Slow {
        fn tell(&self, what: Option<Vec<String>>) -> Result<(), ResolverError> {
            self.told.try_send(what).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
            Ok(())
        }
    }

    impl Tell for Slow {
        fn set(&mut self, settings: &NameSettings) -> Result<(), ResolverError> {
            self.tell(Some(settings.search.clone()))
        }

        fn restore(&mut self) -> Result<(), ResolverError> {
            self.tell(None)
        }
    }

    fn search(domain: &str) -> Option<NameSettings> {
        let search = vec![domain.to_owned()];
        Some(NameSettings { servers: vec![[100, 100, 100, 100].into()], search, domains: None })
    }

    /// Handshakes and paths are decided by whoever calls this; systemd-resolved may take 5 seconds.
    #[tokio::test]
    async fn nobody_waits_for_the_programs_that_are_told_and_the_newest_wish_counts() {
        let (told, mut heard) = tokio::sync::mpsc::channel(8);
        let (finish, go_on) = mpsc::sync_channel(8);
        let mut names = Names::with(Box::new(Slow { told, go_on: Mutex::new(go_on) }));
        names.set(None);
        assert!(names.start.is_some(), "nothing was changed, so nothing is put back");
        // Each of these returns although the first has not been done.
        names.set(search("one"));
        assert_eq!(heard.recv().await, Some(Some(vec!["one".to_owned()])));
        names.set(search("two"));
        names.set(None);
        names.set(search("three"));
        finish.send(()).unwrap();
        names.changed().await;
        assert_eq!(heard.recv().await, Some(Some(vec!["three".to_owned()])));
        finish.send(()).unwrap();
        finish.send(()).unwrap();
        // This one waits.
        assert_eq!(names.restore().await, None);
        assert_eq!(heard.try_recv(), Ok(None));
    }
}
