//! Filters for tests in a real Envoy. This one does what a filter must not do; see
//! `test/e2e/tests/bad_input.rs`. Those in the modules are for `host.rs`, `callout.rs`,
//! `observe.rs` and `trace.rs` beside it.

#![forbid(unsafe_code)]

mod bulk;
mod caller;
mod chaos;
mod crowd;
mod fault;
mod flagged;
mod keeper;
mod keyed;
mod mark;
mod meter;
mod observed;
mod speaker;
mod traced;

use std::cell::RefCell;

use attache::prelude::*;
use serde::Deserialize;

/// Does what the path of the request names. Other paths pass.
pub struct Misbehave;

/// A config with something to get wrong at each level.
#[derive(Deserialize)]
pub struct Config {
    /// Must be there.
    pub mode: String,
    /// May be there.
    #[serde(default)]
    pub limits: Vec<Limit>,
}

/// Part of the config.
#[derive(Deserialize)]
pub struct Limit {
    /// Must be there.
    pub bytes: u32,
}

/// The per-route config.
#[derive(Deserialize)]
pub struct Route {
    /// Must be there.
    pub level: u8,
}

thread_local! {
    /// What an exchange left behind, after its end.
    static STASH: RefCell<Stash> = RefCell::default();
}

#[derive(Default)]
struct Stash {
    request: Option<(Request, Next)>,
    response: Option<Response>,
}

impl Filter for Misbehave {
    type Config = Config;
    type RouteConfig = Route;

    fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
        match config.mode.as_str() {
            "fine" => Ok(Misbehave),
            "refused" => Err(ConfigError::field("mode", "is refused by `new`")),
            "panics" => panic!("a panic in new"),
            other => Err(ConfigError::field("mode", format!("there is no mode {other}"))),
        }
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let status = |code| StatusCode::from_u16(code).map_err(Error::from);
        match req.path().as_str() {
            // Headers that are none.
            "/request-header-name" => req.headers_mut().set("bad name", "x"),
            "/request-header-value" => req.headers_mut().set("x-bad", "two\r\nlines: 2"),
            "/request-pseudo-header" => req.headers_mut().set(":status", "200"),
            "/request-header-removed" => drop(req.headers_mut().remove(":path")),
            "/try-set" => {
                let tried = req.headers_mut().try_set("x-bad", "a\0b");
                let why = tried.expect_err("a NUL is refused").to_string();
                return Ok(Response::text(StatusCode::OK, why));
            }
            "/response-header-name" => {
                let mut resp = next.run(req).await?;
                resp.headers_mut().append("", "x");
                return Ok(resp);
            }
            "/response-header-value" => {
                let mut resp = next.run(req).await?;
                resp.headers_mut().append("x-bad", "a\nb");
                return Ok(resp);
            }
            "/reply-header-name" => {
                return Ok(Response::new(StatusCode::OK).with_header("bad:name", "x"));
            }
            "/reply-header-value" => {
                return Ok(Response::new(StatusCode::OK).with_header("x-bad", "a\rb"));
            }

            // Statuses that cannot be.
            "/reply-101" => return Ok(Response::new(status(101)?)),
            "/reply-199" => return Ok(Response::new(status(199)?).with_body(stream("x"))),
            "/reply-700" => return Ok(Response::text(status(700)?, "x")),
            "/error-200" => return Err(Error::status(status(200)?, "an error that is none")),
            "/response-700" => {
                let mut resp = next.run(req).await?;
                resp.set_status(status(700)?);
                return Ok(resp);
            }
            "/response-101" => {
                let mut resp = next.run(req).await?;
                resp.set_status(status(101)?);
                return Ok(resp);
            }
            "/replace-700" => {
                drop(next.run(req).await?);
                return Ok(Response::text(status(700)?, "x"));
            }

            // Bodies where there can be none.
            "/reply-204" => return Ok(Response::text(status(204)?, "no body")),
            "/reply-304" => return Ok(Response::text(status(304)?, "no body")),
            "/reply-204-streamed" => {
                return Ok(Response::new(status(204)?).with_body(stream("no body")));
            }
            "/reply" => return Ok(Response::text(StatusCode::OK, "a body")),
            "/reply-streamed" => {
                return Ok(Response::new(StatusCode::OK).with_body(stream("a body")));
            }
            "/response-204" => {
                let mut resp = next.run(req).await?;
                resp.set_status(status(204)?);
                return Ok(resp);
            }
            "/response-304-with-body" => {
                let mut resp = next.run(req).await?;
                resp.set_status(status(304)?);
                resp.set_body("no body");
                return Ok(resp);
            }
            "/response-body" => {
                let mut resp = next.run(req).await?;
                resp.set_body("a new body");
                return Ok(resp);
            }
            "/replace-body" => {
                drop(next.run(req).await?);
                return Ok(Response::text(StatusCode::OK, "a new body"));
            }
            "/replace-204" => {
                drop(next.run(req).await?);
                return Ok(Response::text(status(204)?, "no body"));
            }

            // Bodies over a limit.
            "/collect" => drop(req.body_mut().collect(8).await?),
            "/buffer" => {
                req.body_mut().buffer(8).await?;
            }
            "/collect-response" => {
                let mut resp = next.run(req).await?;
                let all = resp.body_mut().collect(8).await?;
                resp.set_body(all);
                return Ok(resp);
            }
            "/buffer-response" => {
                let mut resp = next.run(req).await?;
                resp.body_mut().buffer(8).await?;
                return Ok(resp);
            }
            "/gather" => req.pipe_body(async |mut input, mut output| {
                while input.chunk().await?.is_some() {}
                for _ in 0..4 {
                    output.send(vec![b'x'; 1024]).await?;
                }
                Ok(())
            }),

            // What belongs to an exchange that is over.
            "/stash-request" => {
                STASH.with_borrow_mut(|stash| stash.request = Some((req, next)));
                return Ok(Response::text(StatusCode::OK, "stashed"));
            }
            "/stash-response" => {
                let resp = next.run(req).await?;
                STASH.with_borrow_mut(|stash| stash.response = Some(resp));
                return Ok(Response::text(StatusCode::OK, "stashed"));
            }
            "/use-request" => return use_stale_request().await,
            "/run-request" => {
                let (stale, _) = stashed_request()?;
                return next.run(stale).await;
            }
            "/use-response" => {
                let stale = STASH.with_borrow_mut(|stash| stash.response.take());
                return stale.context("nothing is stashed");
            }
            "/use-body" => {
                let (mut stale, _) = stashed_request()?;
                return Ok(Response::new(StatusCode::OK).with_body(stale.take_body()));
            }
            "/send-body" => {
                let (mut stale, _) = stashed_request()?;
                req.set_body(stale.take_body());
            }
            _ => (),
        }
        next.run(req).await
    }
}

/// A body whose length nobody knows beforehand.
fn stream(text: &'static str) -> Body {
    let chunk = Ok::<_, Error>(Bytes::from_static(text.as_bytes()));
    Body::from_stream(futures_util::stream::iter([chunk]))
}

fn stashed_request() -> Result<(Request, Next)> {
    STASH.with_borrow_mut(|stash| stash.request.take()).context("nothing is stashed")
}

/// Tries all that can be done with a request; says how it went.
async fn use_stale_request() -> Result<Response> {
    let (mut stale, next) = stashed_request()?;
    let mut report = format!("{} {:?} ", stale.headers().len(), stale.path());
    report += &format!("{:?} ", stale.headers_mut().try_set("x-late", "1"));
    stale.headers_mut().set("x-late", "1");
    stale.headers_mut().remove("x-late");
    report += &format!("{} ", stale.route_config::<Misbehave>().is_some());
    report += &format!("{:?} ", stale.body_mut().chunk().await.map_err(|e| e.kind()));
    report += &format!("{:?} ", stale.body_mut().buffer(9).await.map(|_| ()).map_err(|e| e.kind()));
    report += &format!("{:?}", next.run(stale).await.map(|_| ()).map_err(|e| e.kind()));
    Ok(Response::text(StatusCode::OK, report))
}

attache::filters! {
    "misbehave" => Misbehave,
    "bulk" => bulk::Bulk,
    "caller" => caller::Caller,
    "chaos" => chaos::Chaos,
    "crowd" => crowd::Crowd,
    "fault" => fault::Fault,
    "flagged" => flagged::Flagged,
    "keeper" => keeper::Keeper,
    "keyed" => keyed::Keyed,
    "mark" => mark::Mark,
    "meter" => meter::Meter,
    "observed" => observed::Observed,
    "speaker" => speaker::Speaker,
    "traced" => traced::Traced,
}
