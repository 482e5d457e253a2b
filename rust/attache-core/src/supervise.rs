//! Background tasks that are started again when they fail.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::Result;
use crate::metrics::Counter;
use crate::runtime::guarded;

/// How long a task that has failed waits for its next start, the first time in a row.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The most that it waits; a task that has run this long is taken to be well again.
const LAST_DELAY: Duration = Duration::from_secs(30);

/// What a supervised task is known and counted by.
pub(crate) struct Supervised {
    pub(crate) task: String,
    pub(crate) panics: Counter,
    pub(crate) restarts: Counter,
}

impl Supervised {
    /// Runs what `start` makes, again and again, until it ends well.
    pub(crate) async fn run<F, Fut>(self, mut start: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let Supervised { task, panics, restarts } = self;
        let mut delay = FIRST_DELAY;
        loop {
            let started = Instant::now();
            let ended = match guarded(&mut start) {
                Ok(future) => caught(future).await,
                Err(message) => Err(message),
            };
            let why = match ended {
                Ok(Ok(())) => return,
                // Its text and its end may be the filter's own code.
                Ok(Err(error)) => {
                    let text = guarded(|| format!("failed: {error:?}"));
                    let _ = guarded(|| drop(error));
                    text.unwrap_or_else(|message| {
                        format!("failed, and describing its error panicked: {message}")
                    })
                }
                Err(message) => {
                    panics.inc();
                    format!("panicked: {message}")
                }
            };
            if started.elapsed() >= LAST_DELAY {
                delay = FIRST_DELAY;
            }
            restarts.inc();
            tracing::error!("background task `{task}` {why}; it is started again in {delay:?}");
            sleep(delay).await;
            delay = (delay * 2).min(LAST_DELAY);
        }
    }
}

/// Awaits a future; a panic in it, or in dropping it, becomes its message.
async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = Some(Box::pin(future));
    let polled = poll_fn(|cx| {
        let future = future.as_mut().expect("dropped only below").as_mut();
        match guarded(|| future.poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(message) => Poll::Ready(Err(message)),
        }
    })
    .await;
    let dropped = guarded(|| drop(future.take()));
    polled.and_then(|value| dropped.map(|()| value))
}
