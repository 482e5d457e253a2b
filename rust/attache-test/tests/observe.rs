//! What the runtime counts by itself, supervised tasks, and state per worker, with no Envoy.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use attache_core::{
    Body, ConfigError, Counter, Error, Filter, Next, PerWorker, Request, Response, Result, Setup,
};
use attache_test::{TestHost, TestRequest, TestResponse};
use http::StatusCode;
use serde::Deserialize;

/// Ends as the path says.
struct Ends;

impl Filter for Ends {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Ends)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        match &*req.path() {
            "/reply" => return Ok(Response::text(StatusCode::OK, "mine")),
            "/error" => return Err(Error::new("no")),
            "/panic" => panic!("on purpose"),
            "/sleep" => tokio::time::sleep(Duration::from_secs(1)).await,
            "/replace" => {
                drop(next.run(req).await?);
                return Ok(Response::text(StatusCode::OK, "mine"));
            }
            // The request has gone, so the reply's body is read to its end first: the engine goes on
            // with a future of its own.
            "/gathered" => {
                let second = Duration::from_secs(1);
                let _ = tokio::time::timeout(second, next.run(req)).await;
                let late = async move {
                    tokio::time::sleep(second).await;
                    Ok::<_, Error>("late".into())
                };
                let body = Body::from_stream(futures_util::stream::once(late));
                return Ok(Response::new(StatusCode::OK).with_body(body));
            }
            _ => (),
        }
        next.run(req).await
    }
}

/// exchanges, local_replies, errors, panics, cancelled, wakes; active, suspended
fn counts(host: &TestHost) -> ([u64; 6], [u64; 2]) {
    let names = ["exchanges", "local_replies", "errors", "panics", "cancelled", "wakes"];
    let counters = names.map(|name| host.counter(&format!("attache.test.{name}")));
    (counters, ["active", "suspended"].map(|name| host.gauge(&format!("attache.test.{name}"))))
}

#[test]
fn every_exchange_is_counted_by_how_it_ends() {
    let host = TestHost::new::<Ends>("");
    let run = |path: &str| host.request(TestRequest::get(path)).run();
    assert_eq!(counts(&host), ([0; 6], [0; 2]));
    run("/pass");
    assert_eq!(counts(&host), ([1, 0, 0, 0, 0, 0], [0, 0]));
    run("/reply");
    assert_eq!(counts(&host), ([2, 1, 0, 0, 0, 0], [0, 0]));
    run("/error");
    assert_eq!(counts(&host), ([3, 1, 1, 0, 0, 0], [0, 0]));
    run("/panic");
    assert_eq!(counts(&host), ([4, 1, 1, 1, 0, 0], [0, 0]));
    run("/sleep");
    assert_eq!(counts(&host), ([5, 1, 1, 1, 0, 1], [0, 0]));
    run("/replace");
    assert_eq!(counts(&host), ([6, 2, 1, 1, 0, 1], [0, 0]));
}

#[test]
fn gauges_tell_what_is_under_way() {
    let host = TestHost::new::<Ends>("");
    let sleeping = host.open(TestRequest::get("/sleep"));
    let waiting = host.open(TestRequest::get("/pass"));
    assert_eq!(counts(&host).1, [2, 2]);
    // `handle` is done, the exchange is not.
    waiting.respond(TestResponse::new(200).body("some").streaming());
    assert_eq!(counts(&host).1, [2, 1]);
    waiting.respond_last("more");
    assert_eq!(waiting.finish().text(), "somemore");
    assert_eq!(counts(&host).1, [1, 1]);
    sleeping.client_resets();
    drop(sleeping);
    assert_eq!(counts(&host), ([2, 0, 0, 0, 1, 0], [0, 0]));
}

#[test]
fn an_exchange_that_gathers_its_reply_is_suspended_until_it_has() {
    let host = TestHost::new::<Ends>("");
    let exchange = host.open(TestRequest::get("/gathered"));
    assert_eq!(counts(&host).1, [1, 1]);
    exchange.advance(Duration::from_millis(1001));
    assert_eq!(counts(&host).1, [1, 1]);
    exchange.advance(Duration::from_millis(1001));
    assert_eq!(exchange.finish().text(), "late");
    assert_eq!(counts(&host).1, [0, 0]);
    assert_eq!(host.counter("attache.test.local_replies"), 1);
}

#[test]
fn what_all_workers_count_adds_up() {
    let host = TestHost::new::<Ends>("");
    host.on_workers(4, |worker, host| {
        for _ in 0..=worker {
            host.request(TestRequest::get("/reply")).run();
        }
    });
    assert_eq!(counts(&host), ([10, 10, 0, 0, 0, 0], [0, 0]));
}

/// Tells of exchanges that go on, once a second: as an access log with a flush interval does.
struct Periodic {
    told: Counter,
}

impl Filter for Periodic {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Periodic { told: setup.counter("told")? })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let second = Duration::from_secs(1);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + second, second);
        let mut response = std::pin::pin!(next.run(req));
        loop {
            tokio::select! {
                response = &mut response => return response,
                _ = ticks.tick() => self.told.inc(),
            }
        }
    }
}

#[test]
fn a_filter_can_tell_of_exchanges_that_go_on_at_an_interval() {
    let host = TestHost::new::<Periodic>("");
    let exchange = host.open(TestRequest::get("/"));
    for told in 1..=3 {
        exchange.advance(Duration::from_millis(1001));
        assert_eq!(host.counter("told"), told);
    }
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().status(), 200);
    assert_eq!(host.counter("told"), 3);
}

#[test]
fn poll_times_are_recorded_on_request() {
    let host = TestHost::new::<Ends>(r#"{"attache": {"stats": {"poll_time": true}}}"#);
    host.request(TestRequest::get("/reply")).run();
    assert_eq!(host.histogram("attache.test.poll_time_us").len(), 1);
    host.request(TestRequest::get("/sleep")).run();
    // At first, after the sleep, and for the response.
    assert_eq!(host.histogram("attache.test.poll_time_us").len(), 4);
}

#[test]
fn a_stats_config_that_is_wrong_is_refused() {
    let error = |stats: &str| {
        let config = format!(r#"{{"attache": {{"stats": {stats}}}}}"#);
        TestHost::try_new::<Ends>(&config).unwrap_err()
    };
    let interval = error(r#"{"interval_ms": 1}"#);
    assert!(
        interval
            .ends_with("field `attache.stats.interval_ms`: must be 10 or more, in milliseconds")
    );
    assert!(error(r#"{"poll_tmie": true}"#).contains("field `attache.stats.poll_tmie`"));
    assert!(error(r#"{"poll_time": 1}"#).contains("field `attache.stats.poll_time`"));
}

/// Its task fails as often and in the way that the config says.
#[derive(Deserialize)]
struct Failing {
    times: u64,
    how: String,
}

struct Supervised {
    starts: Arc<AtomicU64>,
}

impl Filter for Supervised {
    type Config = Failing;
    type RouteConfig = ();

    fn new(config: Failing, setup: &mut Setup) -> Result<Self, ConfigError> {
        let Failing { times, how } = config;
        let starts = Arc::new(AtomicU64::new(0));
        let done: Counter = setup.counter("done")?;
        let counted = starts.clone();
        setup.spawn_supervised("failing", move || {
            let start = counted.fetch_add(1, Ordering::SeqCst);
            let (how, done) = (how.clone(), done.clone());
            if how == "start" && start < times {
                panic!("in start");
            }
            async move {
                if how == "late" {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                match &*how {
                    _ if start >= times => done.inc(),
                    "error" => return Err(Error::new("no luck")),
                    "twice" => return Err(Twice.into()),
                    _ => panic!("in the task"),
                }
                Ok(())
            }
        })?;
        // A second one shares the counter.
        setup.spawn_supervised("fine", || async { Ok(()) })?;
        Ok(Supervised { starts })
    }

    async fn handle(&self, _: Request, _: Next) -> Result<Response> {
        let starts = self.starts.load(Ordering::SeqCst);
        Ok(Response::text(StatusCode::OK, starts.to_string()))
    }
}

/// An error that can neither be described nor dropped.
#[derive(Debug)]
struct Twice;

impl std::fmt::Display for Twice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("twice")
    }
}

impl std::error::Error for Twice {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        panic!("in source")
    }
}

impl Drop for Twice {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in Drop");
        }
    }
}

fn supervised(how: &str, times: u64) -> TestHost {
    TestHost::new::<Supervised>(&format!(r#"{{"times": {times}, "how": "{how}"}}"#))
}

fn starts(host: &TestHost) -> String {
    // What is due in the background runs between the steps of an exchange.
    host.request(TestRequest::get("/")).run();
    host.request(TestRequest::get("/")).run().text()
}

#[test]
fn a_task_that_fails_is_started_again_until_it_ends_well() {
    for (how, panics) in [("panic", 2), ("start", 2), ("error", 0), ("twice", 0)] {
        let host = supervised(how, 2);
        let after = |millis| {
            host.advance(Duration::from_millis(millis));
            starts(&host)
        };
        assert_eq!(after(0), "1", "{how}");
        assert_eq!(after(90), "1", "{how}");
        assert_eq!(after(20), "2", "{how}");
        assert_eq!(after(190), "2", "the delay grows");
        assert_eq!(after(20), "3", "{how}");
        assert_eq!(after(1_000_000), "3", "it has ended well");
        assert_eq!(host.counter("done"), 1);
        assert_eq!(host.counter("attache.test.task_restarts"), 2);
        assert_eq!(host.counter("attache.test.panics"), panics, "{how}");
    }
}

#[test]
fn the_delay_has_an_end_and_starts_anew_after_a_good_run() {
    let host = supervised("panic", u64::MAX);
    let mut last = 0;
    for _ in 0..40 {
        host.advance(Duration::from_secs(31));
        let now: u64 = starts(&host).parse().unwrap();
        assert!(now > last, "it is tried again after 30 seconds at the latest");
        last = now;
    }
    // Runs a minute each time: the delay stays the first one.
    let host = supervised("late", 3);
    starts(&host);
    for expected in ["2", "3", "4"] {
        host.advance(Duration::from_millis(60_010));
        starts(&host);
        host.advance(Duration::from_millis(110));
        assert_eq!(starts(&host), expected);
    }
}

#[test]
fn a_supervised_task_ends_with_its_config() {
    struct Held {
        _alive: Arc<()>,
    }
    thread_local!(static SEEN: Cell<Option<std::sync::Weak<()>>> = const { Cell::new(None) });
    impl Filter for Held {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
            let alive = Arc::new(());
            SEEN.set(Some(Arc::downgrade(&alive)));
            let theirs = alive.clone();
            setup.spawn_supervised("endless", move || {
                let theirs = theirs.clone();
                async move {
                    let _theirs = theirs;
                    std::future::pending().await
                }
            })?;
            Ok(Held { _alive: alive })
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            next.run(req).await
        }
    }
    let host = TestHost::new::<Held>("");
    host.advance(Duration::from_secs(1));
    let seen = SEEN.take().unwrap();
    assert_eq!(seen.strong_count(), 3, "the filter, the starter, the task");
    drop(host);
    assert_eq!(seen.strong_count(), 0);
}

/// State that may not be shared, of each worker.
struct Own {
    counts: PerWorker<Rc<Cell<u64>>>,
}

impl Filter for Own {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Own { counts: setup.per_worker(Rc::default) })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let count = self.counts.get();
        count.set(count.get() + 1);
        let mut resp = next.run(req).await?;
        resp.headers_mut().set("x-count", count.get().to_string());
        Ok(resp)
    }
}

#[test]
fn each_worker_has_state_of_its_own_and_each_filter_config_too() {
    let host = TestHost::new::<Own>("");
    let other = TestHost::new::<Own>("");
    let count = |host: &TestHost| {
        let reply = host.request(TestRequest::get("/")).run();
        reply.header_text("x-count").unwrap().to_owned()
    };
    assert_eq!([count(&host), count(&host), count(&other)], ["1", "2", "1"]);
    let there = host.on_workers(8, |worker, host| {
        (0..worker).for_each(|_| drop(count(host)));
        count(host)
    });
    assert_eq!(there, ["1", "2", "3", "4", "5", "6", "7", "8"]);
    assert_eq!(count(&host), "3");
}

#[test]
fn a_panic_on_one_worker_reaches_the_test() {
    let host = TestHost::new::<Own>("");
    let run =
        std::panic::AssertUnwindSafe(|| host.on_workers(2, |worker, _| assert_eq!(worker, 0)));
    assert!(std::panic::catch_unwind(run).is_err());
}
