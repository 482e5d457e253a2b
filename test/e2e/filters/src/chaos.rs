//! Does what a header says, letter by letter: for `test/e2e/tests/chaos.rs`, which makes them up.
//!
//! The header is two words, `before|after`: what is done with the request, and what with its response.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use attache::prelude::*;
use attache::{Cluster, Counter, ResetReason, spawn, spawn_blocking};
use serde::Deserialize;
use tokio::time::sleep;

/// A limit that no body here comes near.
const LIMIT: usize = 1 << 22;

/// Obeys.
pub(crate) struct Chaos {
    header: String,
    started: Counter,
    completed: Counter,
    replies: Counter,
}

#[derive(Deserialize)]
pub(crate) struct Config {
    /// Where the letters are.
    header: String,
}

impl Filter for Chaos {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let beats = setup.counter("chaos_beats")?;
        setup.spawn(async move {
            loop {
                beats.inc();
                sleep(Duration::from_millis(1)).await;
            }
        });
        Ok(Chaos {
            header: config.header,
            started: setup.counter("chaos_started")?,
            completed: setup.counter("chaos_completed")?,
            replies: setup.counter("chaos_replies")?,
        })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        self.started.inc();
        let letters = req.headers().get_str(&self.header).unwrap_or_default();
        let (before, after) = letters.split_once('|').unwrap_or((&letters, ""));
        let cluster = req.cluster("calm");
        for letter in before.chars() {
            let headers = req.headers_mut();
            match letter {
                'w' => (0..50).for_each(|n| headers.set(&format!("x-w-{n}"), "w".repeat(n))),
                'c' => drop(req.body_mut().chunk().await?),
                'b' => _ = req.body_mut().buffer(LIMIT).await?,
                'l' => {
                    let all = req.body_mut().collect(LIMIT).await?;
                    req.set_body(all);
                }
                'm' => req.map_body(|chunk| chunk),
                'p' => req.pipe_body(copy),
                'r' => req.set_body("replaced"),
                'e' => req.set_body(Body::empty()),
                'h' => read(req.headers())?,
                'T' => req.map_trailers(|trailers| trailers.set("x-changed", "1")),
                'V' => req.map_trailers(|_| panic!("chaos in trailers")),
                'f' => std::mem::forget(req.stream()),
                'D' => req.stream().drain_connection().await?,
                'Z' => {
                    // Once: the new exchange reads what is left.
                    let header = self.header.clone();
                    req.headers_mut().set(&header, "|");
                    req.body_mut().buffer(LIMIT).await?;
                    req.stream().recreate().await?;
                }
                'N' => {
                    // Lets go, and gives up on the response.
                    let mut gone = pin!(next.run(req));
                    tokio::select! {
                        biased;
                        answered = &mut gone => drop(answered),
                        () = sleep(Duration::from_micros(500)) => (),
                    }
                    return Ok(Response::text(StatusCode::OK, "given up"));
                }
                'F' => {
                    let mut gone = Box::pin(next.run(req));
                    tokio::select! {
                        biased;
                        answered = &mut gone => drop(answered),
                        () = tokio::task::yield_now() => (),
                    }
                    std::mem::forget(gone);
                    return Ok(Response::text(StatusCode::OK, "forgotten"));
                }
                'G' => {
                    std::mem::forget((req, next));
                    return Ok(Response::text(StatusCode::OK, "forgotten"));
                }
                letter => match common(letter, &cluster).await? {
                    None => (),
                    Some(reply) => return Ok(reply),
                },
            }
        }
        let mut resp = next.run(req).await?;
        for letter in after.chars() {
            let headers = resp.headers_mut();
            match letter {
                'w' => (0..50).for_each(|n| headers.set(&format!("x-w-{n}"), "w".repeat(n))),
                'c' => drop(resp.body_mut().chunk().await?),
                'b' => _ = resp.body_mut().buffer(LIMIT).await?,
                'l' => {
                    let all = resp.body_mut().collect(LIMIT).await?;
                    resp.set_body(all);
                }
                'm' => resp.map_body(|chunk| chunk),
                'p' => resp.pipe_body(copy),
                'r' => resp.set_body("replaced"),
                'e' => resp.set_body(Body::empty()),
                'h' => read(resp.headers())?,
                'T' => resp.map_trailers(|trailers| trailers.set("x-changed", "1")),
                'V' => resp.map_trailers(|_| panic!("chaos in trailers")),
                'f' => std::mem::forget(resp.stream()),
                'G' => {
                    std::mem::forget(resp);
                    return Ok(Response::text(StatusCode::OK, "forgotten"));
                }
                letter => match common(letter, &cluster).await? {
                    None => (),
                    Some(reply) => return Ok(reply),
                },
            }
        }
        Ok(resp)
    }

    async fn handle_reply(&self, mut reply: Response) -> Result<Response> {
        self.replies.inc();
        sleep(Duration::from_millis(1)).await;
        reply.pipe_body(copy);
        Ok(reply)
    }

    fn on_complete(&self, _: &Completion) {
        self.completed.inc();
    }
}

/// What can be done at any time; a reply, if that ends it.
async fn common(letter: char, cluster: &Cluster) -> Result<Option<Response>> {
    let call = cluster.post("/call").header("x-up", "echo").body("call");
    match letter {
        'y' => tokio::task::yield_now().await,
        't' => sleep(Duration::from_millis(1)).await,
        'o' => spawn(async { tracing::trace!("elsewhere") }).await?,
        'O' => spawn_blocking(|| ()).await?,
        'd' => spawn(sleep(Duration::from_millis(2))).detach(),
        'k' => {
            call.send().await?;
        }
        'K' => {
            // Cancelled under way.
            tokio::select! {
                biased;
                answered = call.send() => drop(answered),
                () = sleep(Duration::from_micros(300)) => (),
            }
        }
        's' => {
            // Its body is dropped half-way.
            let mut answer = call.body(many()).send_streaming().await?;
            drop(answer.body_mut().chunk().await?);
        }
        'H' => std::thread::sleep(Duration::from_millis(2)),
        'R' => return Ok(Some(Response::text(StatusCode::IM_A_TEAPOT, "a reply"))),
        'S' => return Ok(Some(Response::new(StatusCode::OK).with_body(many()))),
        'E' => return Err(Error::status(StatusCode::CONFLICT, "chaos")),
        'P' => panic!("chaos"),
        'X' => return Err(Error::reset(ResetReason::default(), "chaos")),
        'Q' => pending().await,
        other => return Err(Error::new(format!("no such letter: {other}"))),
    }
    Ok(None)
}

/// Reads all headers in every way there is, and checks that each way tells the same.
fn read(headers: &Headers) -> Result<()> {
    let all = headers.to_vec();
    let mut seen = Vec::new();
    headers.for_each(|name, value| seen.push((name.to_vec(), value.to_vec())));
    let same = all.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let same = same.eq(seen.iter().map(|(name, value)| (&name[..], &value[..])));
    let plain = all.iter().filter(|(name, _)| !name.starts_with(':')).count();
    let each = all
        .iter()
        .all(|(name, value)| headers.get_all(name).contains(value) && headers.contains(name));
    if !same || !each || headers.len() != all.len() || headers.to_map().len() != plain {
        return Err(Error::new(format!("the headers differ: {all:?}")));
    }
    Ok(())
}

/// Copies, with a wait at every other chunk.
async fn copy(mut input: Body, mut output: BodyWriter) -> Result<()> {
    let mut waits = false;
    while let Some(chunk) = input.chunk().await? {
        if waits {
            tokio::task::yield_now().await;
        }
        waits = !waits;
        output.send(chunk).await?;
    }
    Ok(())
}

/// Some chunks, with waits between them.
fn many() -> Body {
    Body::from_stream(futures_util::stream::unfold(0, async |n| {
        if n == 5 {
            return None;
        }
        tokio::task::yield_now().await;
        Some((Ok::<_, Error>(Bytes::from(vec![b's'; 1000])), n + 1))
    }))
}
