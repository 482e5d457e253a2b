//! Calls the cluster `service`, in the way that the path names.

use std::time::Duration;

use attache::prelude::*;
use attache::{CalloutError, Cluster, Gauge, SharedCluster};
use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};
use serde::Deserialize;

/// See the paths.
pub(crate) struct Caller {
    shared: SharedCluster,
    timeout: Duration,
    read: Gauge,
}

/// How to call.
#[derive(Deserialize)]
pub(crate) struct Config {
    #[serde(default = "long")]
    timeout_ms: u64,
    /// Calls every so often from a background task, and logs what comes back.
    #[serde(default)]
    beat_ms: Option<u64>,
}

fn long() -> u64 {
    60_000
}

fn told(result: std::result::Result<http::Response<Bytes>, CalloutError>) -> Result<Response> {
    let text = match result {
        Ok(answer) => {
            let body = String::from_utf8_lossy(answer.body());
            format!("{} {}", answer.status().as_u16(), body)
        }
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    Ok(Response::text(StatusCode::OK, text))
}

async fn count(calls: impl Iterator<Item = impl Future<Output = bool>>) -> Result<Response> {
    let good = join_all(calls).await.into_iter().filter(|good| *good).count();
    Ok(Response::text(StatusCode::OK, good.to_string()))
}

impl Filter for Caller {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let timeout = Duration::from_millis(config.timeout_ms);
        let shared = setup.cluster("service").with_timeout(timeout);
        if let Some(beat) = config.beat_ms {
            let shared = shared.clone();
            setup.spawn(async move {
                loop {
                    match shared.get("/beat").send().await {
                        Ok(answer) => tracing::info!("beat: {}", answer.status()),
                        Err(error) => tracing::info!("no beat: {error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(beat)).await;
                }
            });
        }
        Ok(Caller { shared, timeout, read: setup.gauge("caller_read")? })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let service: Cluster = req.cluster("service").with_timeout(self.timeout);
        let path = req.path();
        match &*path {
            "/answer" => told(service.get("/up").header("x-in", "1").send().await),
            "/post" => told(service.post("/up").body("a body").send().await),
            "/limit" => told(service.get("/up").limit(4).send().await),
            "/question-mark" => {
                service.get("/up").send().await?;
                next.run(req).await
            }
            "/unknown" => told(req.cluster("nobody").get("/").send().await),
            "/stream" => {
                let call = service.post("/up").body(req.take_body());
                let answer = call.header("x-stream", "1").send_streaming().await?;
                Ok(answer.into())
            }
            // The whole answer, trailers and all, as the answer of this filter.
            "/frames" => {
                let answer = service.post("/up").body(req.take_body()).send_streaming().await?;
                let mut body = answer.into_body();
                let mut seen = String::new();
                let mut next_frame = async || {
                    std::future::poll_fn(|cx| {
                        http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)
                    })
                    .await
                };
                while let Some(frame) = next_frame().await {
                    match frame?.into_data() {
                        Ok(data) => seen += &String::from_utf8_lossy(&data),
                        Err(frame) => {
                            let trailers = frame.into_trailers().unwrap_or_default();
                            seen += &format!(" {trailers:?}");
                        }
                    }
                }
                Ok(Response::text(StatusCode::OK, seen))
            }
            // Reads a streamed answer until it fails, and says how far it came.
            "/read" => {
                let mut body = service.get("/up").send_streaming().await?.into_body();
                let mut seen = 0;
                while let Some(chunk) = body.next().await {
                    match chunk {
                        Ok(chunk) => {
                            seen += chunk.len();
                            self.read.set(seen as u64);
                        }
                        Err(error) => {
                            return Ok(Response::text(StatusCode::OK, format!("{seen}: {error}")));
                        }
                    }
                }
                Ok(Response::text(StatusCode::OK, format!("{seen}: whole")))
            }
            "/after" => {
                let mut resp = next.run(req).await?;
                let answer = service.get("/up").send().await?;
                resp.headers_mut().set("x-answer", answer.body());
                Ok(resp)
            }
            "/early" => {
                let call = Box::pin(service.get("/up").send());
                let timer = Box::pin(tokio::time::sleep(Duration::from_millis(50)));
                match select(call, timer).await {
                    Either::Left((answer, _)) => told(answer),
                    Either::Right(_) => Ok(Response::text(StatusCode::OK, "dropped")),
                }
            }
            "/early-body" => {
                let answer = service.get("/up").send_streaming().await?;
                let status = answer.status();
                drop(answer);
                Ok(Response::text(StatusCode::OK, format!("dropped {status}")))
            }
            "/panic" => {
                let _answer = service.get("/up").send_streaming().await?;
                panic!("while a call is out");
            }
            "/thousand" => {
                let calls = (0..1000).map(|i| service.get(format!("/{i}")).send());
                count(calls.map(async |call| call.await.is_ok_and(|a| a.body() == "up"))).await
            }
            "/shared" => told(self.shared.post("/up").body("shared").send().await),
            "/shared-task" => {
                let shared = self.shared.clone();
                told(attache::spawn(async move { shared.get("/up").send().await }).await?)
            }
            "/shared-early" => {
                let call = Box::pin(self.shared.get("/up").send());
                let timer = Box::pin(tokio::time::sleep(Duration::from_millis(50)));
                drop(select(call, timer).await);
                Ok(Response::text(StatusCode::OK, "dropped"))
            }
            "/shared-thousand" => {
                let calls = (0..1000).map(|i| self.shared.get(format!("/{i}")).send());
                count(calls.map(async |call| call.await.is_ok_and(|a| a.body() == "up"))).await
            }
            "/shared-outlives" => {
                let shared = self.shared.clone();
                attache::spawn(async move {
                    let told = shared.get("/up").send().await.map(|answer| answer.status());
                    tracing::info!("outlived: {told:?}");
                })
                .detach();
                Ok(Response::text(StatusCode::OK, "out"))
            }
            _ => next.run(req).await,
        }
    }
}
