//! The filter that the test of the bridge steers, by the path of the request.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::UNIX_EPOCH;

use attache::prelude::*;
use attache::{
    CalloutError, Counter, Gauge, Histogram, LifeSpan, MetadataValue, ResetReason, Runtime, Secret,
    SecretSource, SharedCluster, TimePoint,
};
use futures_util::StreamExt;
use serde::Deserialize;

attache::filters! { "bridge" => Bridge }

/// See the [module docs](self).
pub(crate) struct Bridge {
    /// Exchanges whose future is there.
    live: Gauge,
    /// Futures that were dropped.
    dropped: Counter,
    /// Counted on a thread that is not the worker.
    elsewhere: Counter,
    /// By label.
    paths: Counter,
    lengths: Histogram,
    /// By name: those that the test has.
    shared: Vec<SharedCluster>,
    secret: Secret,
    runtime: Runtime,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    greeting: String,
}

/// Wakers that outlive what they wake.
static WAKERS: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Counts when an exchange's future is dropped, finished or not.
struct Life<'a>(&'a Bridge);

impl Drop for Life<'_> {
    fn drop(&mut self) {
        self.0.live.sub(1);
        self.0.dropped.inc();
    }
}

impl Filter for Bridge {
    type Config = ();
    type RouteConfig = Route;

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Bridge {
            live: setup.gauge("live")?,
            dropped: setup.counter("dropped")?,
            elsewhere: setup.counter("elsewhere")?,
            paths: setup.counter_with("paths", &["path"])?,
            lengths: setup.histogram("lengths")?,
            shared: CLUSTERS.map(|name| setup.cluster(name)).into(),
            secret: setup.secret(&SecretSource::Sds("key".into()))?,
            runtime: setup.runtime()?,
        })
    }

    /// All greetings, in order.
    fn merge_route(&self, levels: &[&Route]) -> Option<Route> {
        let greetings: Vec<_> = levels.iter().map(|level| &*level.greeting).collect();
        Some(Route { greeting: greetings.join(", ") })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        self.live.add(1);
        let _life = Life(self);
        let path = req.path();
        self.paths.inc_with(&[&path]);
        if let Some((cluster, path)) = path.strip_prefix("/call/").and_then(split) {
            return told(req.cluster(cluster).get(path.to_owned()).send().await);
        }
        if let Some((cluster, path)) = path.strip_prefix("/call-shared/").and_then(split) {
            return told(self.shared(cluster)?.get(path.to_owned()).send().await);
        }
        match path.as_str() {
            "/pass" => (),
            // The secret and the flags on another thread, and the flags here as well.
            "/envoy" => {
                let (secret, runtime) = (self.secret.clone(), self.runtime.clone());
                let told = move || {
                    let secret = String::from_utf8_lossy(&secret.get()).into_owned();
                    (secret, flags(&runtime))
                };
                let (secret, elsewhere) = attache::spawn_blocking(told).await?;
                let here = flags(req.stream().runtime()?);
                let same = if here == elsewhere { "" } else { " elsewhere" };
                return Ok(Response::text(StatusCode::OK, format!("{secret} {here}{same}")));
            }
            // The body goes through the service, and comes back.
            "/call-stream" => {
                let body = req.take_body();
                let call = req.cluster("service").post("/echo").body(body);
                return Ok(call.send_streaming().await?.into());
            }
            // Gives up a call that has begun.
            "/call-drop" => {
                let mut call = Box::pin(req.cluster("service").get("/yes").send());
                let _begun = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                drop(call);
                hop().await?;
            }
            // Panics with a call in its hands, while it looks at Envoy's memory.
            "/call-look" => {
                let mut call = Box::pin(req.cluster("service").get("/never").send());
                let _begun = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                req.headers().with(":path", move |_| {
                    let _call = call;
                    panic!("on purpose");
                });
            }
            "/call-shared-drop" => {
                let mut call = Box::pin(self.shared("service")?.get("/never").send());
                let _begun = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                drop(call);
                hop().await?;
            }
            // A task that belongs to no config goes on calling.
            "/call-outlives" => {
                let shared = self.shared("service")?.clone();
                attache::spawn(async move {
                    for _ in 0..2 {
                        let outcome = shared.get("/never").send().await;
                        let outcome =
                            outcome.map_or_else(|e| format!("{:?}", e.kind()), |_| "?".into());
                        OUTCOMES.lock().expect("nothing panics here").push(outcome);
                    }
                })
                .detach();
                return Ok(Response::text(StatusCode::OK, "out"));
            }
            // What each call of those has come to, and for how many tasks.
            "/call-outcomes" => {
                let outcomes = OUTCOMES.lock().expect("nothing panics here");
                let tasks = outcomes.len() / 2;
                let mut different = outcomes.clone();
                different.dedup();
                let all = different.first().map_or("none", |all| all);
                let all = if different.len() == 1 { all } else { "various" };
                let text = format!("{all} {all} {tasks}");
                return Ok(Response::text(StatusCode::OK, text));
            }
            // Waits for another thread, before and after the upstream.
            "/hop" => {
                hop().await?;
                let mut resp = next.run(req).await?;
                hop().await?;
                resp.headers_mut().set("x-hopped", "twice");
                return Ok(resp);
            }
            "/wait" => pending().await,
            // Leaves a waker behind, for other threads to use at any time.
            "/leave-waker" => {
                poll_fn(|cx| {
                    WAKERS.lock().expect("nothing panics here").push(cx.waker().clone());
                    Poll::Ready(())
                })
                .await;
                pending().await
            }
            // Uses all that were left, on this worker and on another thread, and drops them there.
            "/wake" => {
                let wakers = std::mem::take(&mut *WAKERS.lock().expect("nothing panics here"));
                wakers.iter().for_each(Waker::wake_by_ref);
                let woken = attache::spawn_blocking(move || {
                    for _ in 0..100 {
                        wakers.iter().for_each(Waker::wake_by_ref);
                    }
                    wakers.len()
                })
                .await?;
                return Ok(Response::text(StatusCode::OK, woken.to_string()));
            }
            // Is woken again and again while it goes on.
            "/storm" => {
                let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
                attache::spawn_blocking(move || (0..200).for_each(|_| waker.wake_by_ref()))
                    .detach();
                let resp = next.run(req).await?;
                hop().await?;
                return Ok(resp);
            }
            "/panic" => panic!("a panic before the first wait"),
            // The runtime will fail to make this worker's next exchange.
            #[cfg(debug_assertions)]
            "/lose-next" => attache_cxx::__private::fail_next_stream(),
            "/panic-later" => {
                hop().await?;
                panic!("a panic after a wait");
            }
            "/panic-response" => {
                let _resp = next.run(req).await?;
                panic!("a panic with the response in hand");
            }
            "/around" => return around(&req).map(|saw| Response::text(StatusCode::OK, saw)),
            "/refused" => return Err(Error::reset(ResetReason::Refused, "not_begun")),
            "/error" => return Err(Error::status(StatusCode::IM_A_TEAPOT, "on purpose")),
            "/reply" => return Ok(Response::text(StatusCode::OK, "at once")),
            "/reply-later" => {
                hop().await?;
                let reply = Response::text(StatusCode::OK, "later");
                return Ok(reply.with_header("x-empty", ""));
            }
            // A body of 64 pieces of 1 KiB, each after a hop.
            "/streamed-reply" => {
                let pieces = futures_util::stream::unfold(0, |piece| async move {
                    if piece == 64 {
                        return None;
                    }
                    Some((hop().await.map(|()| Bytes::from(vec![b'r'; 1024])), piece + 1))
                });
                return Ok(Response::new(StatusCode::OK).with_body(Body::from_stream(pieces)));
            }
            // Does not wait for the upstream, and answers piece by piece.
            "/give-up" => {
                // Only after this poll: the request goes on with the end of it.
                tokio::select! {
                    biased;
                    _ = next.run(req) => (),
                    () = tokio::task::yield_now() => (),
                }
                let pieces = futures_util::stream::iter(["not ", "the ", "upstream"])
                    .then(|piece| async move { hop().await.map(|()| Bytes::from(piece)) });
                let mut trailers = attache::http::HeaderMap::new();
                trailers.insert("x-pieces", 3.into());
                let reply = Response::new(StatusCode::OK).with_body(Body::from_stream(pieces));
                return Ok(reply.with_trailers(trailers));
            }
            // Takes the body piece by piece, with a hop between.
            "/upload" => {
                let mut length = 0;
                while let Some(piece) = req.body_mut().chunk().await? {
                    length += piece.len();
                    hop().await?;
                }
                self.lengths.record(length as u64);
                return Ok(Response::text(StatusCode::OK, length.to_string()));
            }
            // Changes both bodies as they go by.
            "/pipe" => {
                req.pipe_body(async |mut input, mut output| {
                    while let Some(piece) = input.chunk().await? {
                        hop().await?;
                        output.send(piece.to_ascii_uppercase()).await?;
                    }
                    Ok(())
                });
                let mut resp = next.run(req).await?;
                resp.map_body(|piece| piece.to_ascii_lowercase().into());
                return Ok(resp);
            }
            "/buffer" => {
                let length = req.body_mut().buffer(1 << 20).await?.len();
                req.headers_mut().set("x-length", length.to_string());
            }
            // Trailers where there were none.
            "/trailers" => {
                let mut resp = next.run(req).await?;
                resp.pipe_body(async |mut input, mut output| {
                    let mut length = 0;
                    while let Some(piece) = input.chunk().await? {
                        length += piece.len();
                        output.send(piece).await?;
                    }
                    let mut trailers = attache::http::HeaderMap::new();
                    trailers.insert("x-length", length.into());
                    output.send_trailers(trailers).await
                });
                return Ok(resp);
            }
            "/headers" => {
                let headers = req.headers_mut();
                let length: usize = headers.to_vec().iter().map(|(_, value)| value.len()).sum();
                headers.set("x-count", headers.len().to_string());
                headers.set("x-sum", length.to_string());
                headers.append("x-twice", "1");
                headers.append("x-twice", "2");
                headers.set("x-empty", "");
                headers.remove("x-unwanted");
            }
            "/route" => {
                let route = req.route_config::<Bridge>().context("there is no route config")?;
                return Ok(Response::text(StatusCode::OK, route.greeting.clone()));
            }
            "/count-elsewhere" => {
                let counter = self.elsewhere.clone();
                attache::spawn_blocking(move || (0..100).for_each(|_| counter.inc())).await?;
            }
            "/timer" => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            other => return Err(Error::new(format!("nobody knows the path {other}"))),
        }
        next.run(req).await
    }
}

/// The clusters of the test; `nobody` is none of them.
const CLUSTERS: [&str; 5] = ["service", "sick", "busy", "shut", "nobody"];

/// What came of the calls of tasks that may outlive their config.
static OUTCOMES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A flag of each kind that is set, and one that is not.
fn flags(runtime: &Runtime) -> String {
    let all = ["set", "unset"].map(|key| {
        let feature = runtime.feature_enabled(key, 0);
        let boolean = runtime.boolean(key, false);
        let integer = runtime.integer(key, 1);
        let double = runtime.double(key, 1.5);
        let text = runtime.string(key).expect("told in this host");
        format!("{feature} {boolean} {integer} {double} {text:?}")
    });
    all.join(" ")
}

impl Bridge {
    fn shared(&self, name: &str) -> Result<&SharedCluster> {
        self.shared.iter().find(|cluster| cluster.name() == name).context("an unknown name")
    }
}

/// `cluster/path`.
fn split(rest: &str) -> Option<(&str, &str)> {
    Some((&rest[..rest.find('/')?], &rest[rest.find('/')?..]))
}

fn told(
    answer: std::result::Result<attache::http::Response<Bytes>, CalloutError>,
) -> Result<Response> {
    let text = match answer {
        Ok(answer) => {
            let body = String::from_utf8_lossy(answer.body());
            format!("{} {body}", answer.status().as_u16())
        }
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    Ok(Response::text(StatusCode::OK, text))
}

/// Panics when it goes.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a kept object's drop");
    }
}

/// Everything that is around a request, once. What it saw, line by line.
fn around(req: &Request) -> Result<String> {
    let stream = req.stream();
    let info = stream.info();
    let mut saw = vec![
        format!("{:?}", info.downstream_remote_address()?),
        format!("{:?}", info.connection_id()?),
        format!("{:?}", info.is_health_check()?),
        format!("{:?}", info.start_time()?.map(|time| time.duration_since(UNIX_EPOCH).ok())),
        format!("{:?}", info.timing(TimePoint::FirstUpstreamTx)?),
        format!("{:?}", info.route_name()?),
        format!("{:?}", info.downstream_tls().dns_sans_peer_certificate()?),
        format!("{:?}", info.upstream_tls().dns_sans_peer_certificate()?),
        format!("{:?}", stream.attribute("xds.node")?.map(|node| node.to_string())),
        format!("{:?}", info.bytes_sent().unwrap_err().kind()),
    ];
    let metadata = stream.metadata();
    let inner = BTreeMap::from([("b".to_owned(), MetadataValue::from("c"))]);
    let list = MetadataValue::List(vec![1.into(), MetadataValue::Null, inner.into()]);
    let nested = BTreeMap::from([("a".to_owned(), list)]);
    metadata.set("com.example", "nested", nested)?;
    let nested = metadata.get::<MetadataValue>("com.example", "nested")?;
    saw.push(format!("{:?}", nested.map(|value| value.to_string())));
    saw.push(format!("{:?}", metadata.keys("com.example")?));
    saw.push(format!("{:?}", metadata.append("com.example", "nested", 1).unwrap_err().kind()));
    let state = stream.filter_state();
    state.set("bytes", [0xff, 0])?;
    saw.push(format!("{:?}", state.get("bytes")?));
    saw.push(format!("{:?}", state.set_typed("bytes", "x").unwrap_err().kind()));
    // An object that is replaced goes at once, one that is refused as well, the last with the stream.
    state.set_object("bomb", Arc::new(Bomb), LifeSpan::FilterChain)?;
    state.set_object("bomb", Arc::new(Bomb), LifeSpan::FilterChain)?;
    let refused = state.set_object("bomb", Arc::new(Bomb), LifeSpan::Request);
    saw.push(format!("{:?}", refused.unwrap_err().kind()));
    stream.extensions().insert(Rc::new(7))?;
    saw.push(format!("{:?}", stream.extensions().get::<Rc<i32>>()?));
    stream.clear_route_cache()?;
    stream.add_custom_flag("MINE")?;
    saw.push(format!("{:?}", stream.override_upstream_host("1.2.3.4:5", true).unwrap_err().kind()));
    saw.push(format!("{:?}", stream.refresh_route_cluster().unwrap_err().kind()));
    let trace = req.trace();
    trace.set_tag("key", "value");
    trace.log("an event");
    saw.push(format!("{:?} {:?} {:?}", trace.trace_id(), trace.span_id(), trace.baggage("b")));
    saw.push(format!("{:?} {:?}", trace.headers(), trace.traceparent()));
    Ok(saw.join("\n"))
}

/// To another thread and back.
async fn hop() -> Result<()> {
    attache::spawn(async {}).await
}
