//! The filters that `make bench` measures, each written the way its documentation tells a user to.
//!
//! | name                     | does                                                               |
//! |--------------------------|--------------------------------------------------------------------|
//! | `attache_pass`           | nothing                                                            |
//! | `attache_headers`        | copies `x-bench-in` to `x-bench-out`, sets `x-bench: 1` on the way back |
//! | `attache_hop`            | waits for a task on a Tokio thread                                 |
//! | `attache_body_untouched` | nothing, to bodies                                                 |
//! | `attache_body_mapped`    | flips the bits of both bodies                                      |
//! | `attache_callout`        | asks a service behind a cluster, and tells what it saw            |
//! | `attache_suspend`        | waits until `attache_probe` is asked to let everyone go            |
//! | `attache_probe`          | answers with what the library has allocated; no part of a measurement |

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use attache::prelude::*;
use tokio::sync::Notify;

mod count;

attache::filters! {
    "attache_pass" => Pass,
    "attache_headers" => SetHeaders,
    "attache_hop" => Hop,
    "attache_body_untouched" => Pass,
    "attache_body_mapped" => MapBodies,
    "attache_callout" => Callout,
    "attache_suspend" => Suspend,
    "attache_probe" => Probe,
}

struct Pass;

impl Filter for Pass {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Pass)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        next.run(req).await
    }
}

struct SetHeaders;

impl Filter for SetHeaders {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(SetHeaders)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        if let Some(value) = req.headers().get("x-bench-in") {
            req.headers_mut().set("x-bench-out", value);
        }
        let mut resp = next.run(req).await?;
        resp.headers_mut().set("x-bench", "1");
        Ok(resp)
    }
}

struct Hop;

impl Filter for Hop {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Hop)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        attache::spawn(async {}).await?;
        next.run(req).await
    }
}

struct MapBodies;

impl Filter for MapBodies {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(MapBodies)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        req.map_body(flip);
        let mut resp = next.run(req).await?;
        resp.map_body(flip);
        Ok(resp)
    }
}

fn flip(chunk: Bytes) -> Bytes {
    match chunk.try_into_mut() {
        Ok(mut mine) => {
            mine.iter_mut().for_each(|byte| *byte = !*byte);
            mine.freeze()
        }
        Err(shared) => shared.iter().map(|byte| !byte).collect(),
    }
}

/// What Envoy's `ext_authz` does with the config that it is measured with.
struct Callout;

impl Filter for Callout {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Callout)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let answer = req
            .cluster("upstream")
            .call(req.method(), "/check".to_owned() + &req.path())
            .authority(req.authority().unwrap_or_default())
            .header("x-bench-out", "some-value")
            .timeout(Duration::from_secs(5))
            .send()
            .await?;
        if answer.status() != StatusCode::OK {
            return Ok(Response::new(StatusCode::FORBIDDEN));
        }
        let mut resp = next.run(req).await?;
        if let Some(saw) = answer.headers().get("x-saw-out") {
            resp.headers_mut().set("x-saw-out", saw);
        }
        Ok(resp)
    }
}

/// Wakes all suspended exchanges.
static RELEASE: Notify = Notify::const_new();
static SUSPENDED: AtomicUsize = AtomicUsize::new(0);

struct Suspend;

impl Filter for Suspend {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Suspend)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        SUSPENDED.fetch_add(1, Relaxed);
        RELEASE.notified().await;
        SUSPENDED.fetch_sub(1, Relaxed);
        next.run(req).await
    }
}

struct Probe;

impl Filter for Probe {
    type Config = ();
    type RouteConfig = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self, ConfigError> {
        count::start();
        Ok(Probe)
    }

    async fn handle(&self, req: Request, _next: Next) -> Result<Response> {
        if req.path() == "/release" {
            RELEASE.notify_waiters();
        }
        let suspended = SUSPENDED.load(Relaxed);
        let counts = format!("{} {} {suspended}", count::live(), count::allocations());
        Ok(Response::text(StatusCode::OK, counts))
    }
}
