//! Holds exchanges, and tells what becomes of filters and their tasks when a config goes.

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use attache::Gauge;
use attache::prelude::*;
use serde::Deserialize;
use tokio::sync::watch;

/// What has happened to all keepers of this process, one line each.
static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether held exchanges may go.
static GATE: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

fn note(event: String) {
    tracing::info!("{event}");
    EVENTS.lock().expect("nobody panics in between").push(event);
}

/// Tells when it is dropped.
struct Bell(String);

impl Drop for Bell {
    fn drop(&mut self) {
        note(std::mem::take(&mut self.0));
    }
}

/// What is asked of it is in the path.
pub(crate) struct Keeper {
    name: String,
    held: Gauge,
    _dropped: Bell,
}

/// Which keeper it is.
#[derive(Deserialize)]
pub(crate) struct Config {
    name: String,
}

impl Filter for Keeper {
    type Config = Config;
    type RouteConfig = ();

    fn new(Config { name }: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let (held, beats) = (setup.gauge("keeper_held")?, setup.counter("keeper_beats")?);
        let stopped = Bell(format!("{name}: task stopped"));
        setup.spawn(async move {
            let _stopped = stopped;
            loop {
                beats.inc();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let _dropped = Bell(format!("{name}: dropped"));
        Ok(Keeper { name, held, _dropped })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let text = match req.path().as_str() {
            "/hold" => {
                self.held.add(1);
                GATE.subscribe().wait_for(|open| *open).await?;
                self.name.clone()
            }
            // Is woken from another thread all the time.
            "/restless" => {
                self.held.add(1);
                loop {
                    attache::spawn(tokio::time::sleep(Duration::from_micros(100))).await?;
                }
            }
            // A task that nobody ends goes on, whatever happens to the config.
            "/outlive" => {
                let held = self.held.clone();
                attache::spawn(async move {
                    let mut beat = 0;
                    loop {
                        tracing::info!("outlived beat {beat}.");
                        held.set(beat);
                        beat += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                })
                .detach();
                "it goes on".to_owned()
            }
            "/open" => {
                GATE.send_replace(true);
                "open".to_owned()
            }
            "/events" => EVENTS.lock().expect("nobody panics in between").join("\n"),
            _ => {
                let mut resp = next.run(req).await?;
                resp.headers_mut().set("x-keeper", &self.name);
                return Ok(resp);
            }
        };
        Ok(Response::text(StatusCode::OK, text))
    }

    fn on_complete(&self, done: &Completion) {
        note(format!("{}: {:?}", self.name, done.outcome()));
    }
}
