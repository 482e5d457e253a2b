//! Ends its exchanges in every way there is, and knows what this worker and all of them have served;
//! for tests of what the runtime counts, and of state that workers share or do not.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use attache::prelude::*;
use serde::Deserialize;
use tokio::sync::Notify;

#[derive(Deserialize)]
pub(crate) struct Config {
    /// How often its background task panics before it ends well.
    #[serde(default)]
    panics: u64,
}

/// The path says what happens.
pub(crate) struct Observed {
    released: Notify,
    all: AtomicU64,
    /// Neither `Send` nor `Sync`.
    mine: PerWorker<Rc<Cell<u64>>>,
}

impl Filter for Observed {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let recovered = setup.counter("observed_recovered")?;
        let mut left = config.panics;
        setup.spawn_supervised("unsteady", move || {
            let panics = left > 0;
            left = left.saturating_sub(1);
            let recovered = recovered.clone();
            async move {
                assert!(!panics, "on purpose");
                recovered.inc();
                Ok(())
            }
        })?;
        Ok(Observed {
            released: Notify::new(),
            all: AtomicU64::new(0),
            mine: setup.per_worker(Rc::default),
        })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        match req.path().as_str() {
            "/reply" => return Ok(Response::text(StatusCode::OK, "mine")),
            "/error" => return Err(Error::new("on purpose")),
            "/panic" => panic!("on purpose"),
            // Until `/release`.
            "/hold" => self.released.notified().await,
            "/release" => self.released.notify_waiters(),
            "/served" => {
                let all = self.all.fetch_add(1, Ordering::SeqCst) + 1;
                let mine = self.mine.get();
                mine.set(mine.get() + 1);
                let thread = std::thread::current().id();
                let mut resp = next.run(req).await?;
                // Still the same worker.
                assert_eq!(thread, std::thread::current().id());
                resp.headers_mut().set("x-worker", format!("{thread:?}"));
                resp.headers_mut().set("x-mine", mine.get().to_string());
                resp.headers_mut().set("x-all", all.to_string());
                return Ok(resp);
            }
            _ => (),
        }
        next.run(req).await
    }
}
