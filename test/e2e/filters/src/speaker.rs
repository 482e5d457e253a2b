//! Says things, so that the test can look for them in Envoy's log.

use std::time::Duration;

use attache::prelude::*;
use tokio::sync::{broadcast, mpsc};

/// What it says is named by the path.
pub(crate) struct Speaker {
    background: mpsc::UnboundedSender<String>,
    ended: broadcast::Sender<()>,
}

impl Filter for Speaker {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        tracing::info!("said in new");
        let (background, mut words) = mpsc::unbounded_channel::<String>();
        setup.spawn(async move {
            while let Some(word) = words.recv().await {
                tracing::info!(%word, "said in the background");
            }
        });
        Ok(Speaker { background, ended: broadcast::Sender::new(1) })
    }

    async fn handle(&self, req: Request, _: Next) -> Result<Response> {
        match req.path().as_str() {
            "/levels" => levels(),
            "/later" => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                tracing::info!("said after a wait");
            }
            "/spawned" => {
                attache::spawn(async {
                    tracing::info!("said in a task");
                    attache::spawn(async { tracing::info!("said in a task's task") }).await
                })
                .await??;
                attache::spawn_blocking(|| tracing::warn!("said on a thread")).await?;
            }
            // Says it when the exchange has long ended.
            "/detached" => {
                let ended = self.ended.subscribe();
                attache::spawn(async move {
                    let mut ended = ended;
                    let _ = ended.recv().await;
                    tracing::info!("said after the end");
                })
                .detach();
            }
            "/background" => self.background.send("psst".into())?,
            "/text" => {
                let span = tracing::info_span!("outer");
                let _entered = span.enter();
                tracing::info!(number = 7, "first line\nsecond line: äöü → 漢字 🦀\nlast line");
            }
            "/long" => tracing::info!("{}END", "é".repeat(100_000)),
            _ => (),
        }
        Ok(Response::text(StatusCode::OK, "said"))
    }

    fn on_complete(&self, _: &Completion) {
        tracing::info!("said in on_complete");
        // Nobody may be waiting.
        let _ = self.ended.send(());
    }
}

fn levels() {
    tracing::trace!("said at trace");
    tracing::debug!("said at debug");
    tracing::info!("said at info");
    tracing::warn!("said at warn");
    tracing::error!("said at error");
}
