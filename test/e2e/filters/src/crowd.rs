//! Waits for timers and for other threads, many times per exchange.

use std::time::Duration;

use attache::Counter;
use attache::prelude::*;
use tokio::sync::mpsc;

/// Counts beginnings and ends.
pub(crate) struct Crowd {
    started: Counter,
    completed: Counter,
    responded: Counter,
}

impl Filter for Crowd {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Crowd {
            started: setup.counter("crowd_started")?,
            completed: setup.counter("crowd_completed")?,
            responded: setup.counter("crowd_responded")?,
        })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        self.started.inc();
        let worker = std::thread::current().id();
        let sum = wait_for_others().await?;
        req.headers_mut().set("x-sum", sum.to_string());
        let mut resp = next.run(req).await?;
        let sum = sum + wait_for_others().await?;
        resp.headers_mut().set("x-sum", sum.to_string());
        resp.headers_mut().set("x-worker", format!("{worker:?}"));
        if worker != std::thread::current().id() {
            return Err(Error::new("the exchange was moved to another thread"));
        }
        Ok(resp)
    }

    fn on_complete(&self, done: &Completion) {
        self.completed.inc();
        if done.outcome() == Outcome::Responded {
            self.responded.inc();
        }
    }
}

/// The sum of 1 to 10, by detours.
async fn wait_for_others() -> Result<u32> {
    let (tell, mut told) = mpsc::channel(1);
    for number in 1..=10 {
        let tell = tell.clone();
        attache::spawn(async move {
            tokio::time::sleep(Duration::from_micros(100 * u64::from(number % 4))).await;
            tell.send(number).await
        })
        .detach();
    }
    drop(tell);
    let mut sum = 0;
    while let Some(number) = told.recv().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
        sum += attache::spawn_blocking(move || number).await?;
    }
    Ok(sum)
}
