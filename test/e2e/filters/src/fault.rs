//! Panics in every place where a filter's code runs, and blocks where it must not.

use std::fmt;
use std::time::Duration;

use attache::prelude::*;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::time::sleep;

/// Panics where its config or the path says.
#[derive(Deserialize)]
pub(crate) struct Fault {
    #[serde(default)]
    place: String,
}

/// Panics when it is dropped, with what it holds.
#[derive(Debug)]
struct Bomb(&'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        // A second panic while the first unwinds is the end of any Rust program.
        if !std::thread::panicking() {
            panic!("a bomb in {}", self.0);
        }
    }
}

/// An error that cannot say what it is.
#[derive(Debug)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a panic in Display")
    }
}

impl std::error::Error for Unspeakable {}

/// An error whose cause's cause cannot say what it is.
#[derive(Debug)]
struct Caused(Option<Box<dyn std::error::Error + Send + Sync>>);

impl fmt::Display for Caused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("something was caused")
    }
}

impl std::error::Error for Caused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_deref().map(|cause| cause as _)
    }
}

/// A body of one byte that panics when it is dropped.
fn explosive_body(what: &'static str) -> Body {
    let bomb = Bomb(what);
    Body::from_stream(futures_util::stream::iter([b"x"]).map(move |byte| {
        let _bomb = &bomb;
        Ok::<_, Error>(Bytes::from_static(byte))
    }))
}

/// An error that panics when it is dropped.
#[derive(Debug)]
struct Explosive(#[allow(dead_code)] Bomb);

impl fmt::Display for Explosive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an explosive error")
    }
}

impl std::error::Error for Explosive {}

/// Tells when it is dropped.
struct Stopped;

impl Drop for Stopped {
    fn drop(&mut self) {
        tracing::info!("the task of a refused config has stopped");
    }
}

impl Filter for Fault {
    type Config = Fault;
    type RouteConfig = ();

    fn new(config: Fault, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.place == "new" {
            let stopped = Stopped;
            setup.counter("fault_refused")?.inc();
            setup.spawn(async move {
                let _stopped = stopped;
                std::future::pending().await
            });
            // The filter is there, and goes with the panic.
            panic!("a panic in new");
        }
        if config.place == "background" {
            setup.spawn(async {
                tokio::task::yield_now().await;
                panic!("a panic in the background");
            });
        }
        Ok(config)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        match req.path().as_str() {
            "/handle" => panic!("a panic in handle"),
            "/payload" => std::panic::panic_any(Bomb("a payload")),
            "/local" => {
                let _bomb = Bomb("a local");
                tokio::task::yield_now().await;
            }
            "/held" => {
                let _bomb = Bomb("a held future");
                tracing::info!("holding a bomb");
                std::future::pending::<()>().await;
            }
            "/task" => attache::spawn(async { panic!("a panic in a task") }).await?,
            "/task-payload" => {
                attache::spawn(async { std::panic::panic_any(Bomb("a task's payload")) }).await?;
            }
            "/detached" => {
                attache::spawn(async { panic!("a panic that nobody waits for") }).detach();
            }
            "/blocks" => Handle::current().block_on(sleep(Duration::from_millis(50))),
            "/blocks-for-ever" => {
                tracing::info!("blocking for ever");
                let chunk = req.body_mut().chunk();
                Handle::current().block_on(chunk)?;
            }
            "/display" => return Err(Unspeakable.into()),
            "/cause" => return Err(Caused(Some(Unspeakable.into())).into()),
            "/error" => return Err(Explosive(Bomb("an error")).into()),
            "/event" => tracing::error!("{}", Unspeakable),
            "/pump" => {
                let mut resp = next.run(req).await?;
                resp.set_body(explosive_body("a body"));
                return Ok(resp);
            }
            "/reply" => {
                return Ok(Response::new(StatusCode::OK).with_body(explosive_body("a reply")));
            }
            _ => return next.run(req).await,
        }
        Ok(Response::text(StatusCode::OK, "unharmed"))
    }

    fn on_complete(&self, _: &Completion) {
        if self.place == "on_complete" {
            panic!("a panic in on_complete");
        }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        if self.place == "drop" {
            panic!("a panic in the filter's Drop");
        }
    }
}
