//! Work that keeps a processor busy, such as trying a policy: beside the runtime, and little of it at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// How many are at work at a time.
const AT_WORK: usize = 2;
/// How many there may be, with those that wait; each holds a policy in memory.
const PLACES: usize = 32;

/// Where such work is done.
#[derive(Debug)]
pub(crate) struct Thinking {
    at_work: Arc<Semaphore>,
    places: Semaphore,
}

impl Default for Thinking {
    fn default() -> Self {
        Self { at_work: Arc::new(Semaphore::new(AT_WORK)), places: Semaphore::new(PLACES) }
    }
}

impl Thinking {
    /// Does it when it is its turn; `None` if too many wait already. Who goes away before that costs nothing more.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _place = self.places.try_acquire().ok()?;
        // Nobody closes the semaphore.
        let turn = Arc::clone(&self.at_work).acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        // A panic of the work goes on here, as if it had been done here.
        match done.await {
            Ok(done) => Some(done),
            Err(error) => std::panic::resume_unwind(error.try_into_panic().ok()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn two_are_at_work_and_who_finds_no_place_is_turned_away() {
        let thinking = Arc::new(Thinking::default());
        let (go, wait) = mpsc::sync_channel::<()>(PLACES);
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let mut tasks = Vec::new();
        for _ in 0..PLACES {
            let (thinking, wait) = (Arc::clone(&thinking), Arc::clone(&wait));
            tasks.push(tokio::spawn(async move { thinking.run(move || wait.lock().unwrap().recv().is_ok()).await }));
        }
        while thinking.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(thinking.at_work.available_permits(), 0);
        assert_eq!(thinking.run(|| ()).await, None);
        (0..PLACES).for_each(|_| go.send(()).unwrap());
        for task in tasks {
            assert_eq!(task.await.unwrap(), Some(true));
        }
        assert_eq!(thinking.run(|| 7).await, Some(7), "there is room again");
    }
}
