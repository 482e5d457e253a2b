//! Per-route configs of several levels: what a filter makes of them, and how often.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use attache_core::registry::Registry;
use attache_core::{
    Completion, ConfigError, Counter, Error, Filter, Next, Request, Response, Result, Setup,
};
use attache_test::model::{Kind, Neighbour, Options};
use attache_test::{Level, TestHost, TestRequest, TestResponse};
use http::StatusCode;
use serde::Deserialize;

/// Joins the names of all levels behind its own.
struct Names {
    name: String,
    merges: Counter,
    completed: Counter,
    /// A part of what was merged, to see what is kept.
    kept: Arc<()>,
    panics: AtomicBool,
}

#[derive(Deserialize)]
struct Name {
    name: String,
    #[serde(skip)]
    _kept: Option<Arc<()>>,
}

thread_local!(static KEPT: std::cell::RefCell<Weak<()>> = std::cell::RefCell::default());

fn kept() -> usize {
    KEPT.with_borrow(Weak::strong_count)
}

impl Filter for Names {
    type Config = Name;
    type RouteConfig = Name;

    fn new(config: Name, setup: &mut Setup) -> Result<Self, ConfigError> {
        let kept = Arc::new(());
        KEPT.set(Arc::downgrade(&kept));
        Ok(Names {
            panics: AtomicBool::new(config.name == "panics"),
            name: config.name,
            merges: setup.counter("merges")?,
            completed: setup.counter("completed")?,
            kept,
        })
    }

    fn merge_route(&self, levels: &[&Name]) -> Option<Name> {
        self.merges.inc();
        if self.panics.swap(false, Ordering::Relaxed) {
            panic!("no merge");
        }
        let names = [&*self.name].into_iter().chain(levels.iter().map(|level| &*level.name));
        let name = names.collect::<Vec<_>>().join(" ");
        Some(Name { name, _kept: Some(self.kept.clone()) })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let route = req.route_config::<Names>();
        let again = req.stream().route_config::<Names>();
        match (&route, &again) {
            (Some(one), Some(two)) if !Arc::ptr_eq(one, two) => {
                return Err(Error::new("two answers to one question"));
            }
            _ => (),
        }
        if req.route_config::<Specific>().is_some() {
            return Err(Error::new("another filter's config"));
        }
        let mut resp = next.run(req).await?;
        resp.headers_mut().set("x-name", route.map_or("none".into(), |route| route.name.clone()));
        Ok(resp)
    }

    async fn handle_reply(&self, mut reply: Response) -> Result<Response> {
        let route = reply.stream().route_config::<Names>();
        reply.headers_mut().set("x-name", route.map_or("none".into(), |route| route.name.clone()));
        Ok(reply)
    }

    fn on_complete(&self, done: &Completion) {
        if done.stream().route_config::<Names>().is_some() {
            self.completed.inc();
        }
    }
}

/// Says nothing of levels.
struct Specific;

impl Filter for Specific {
    type Config = ();
    type RouteConfig = Name;

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Specific)
    }

    async fn handle(&self, req: Request, _: Next) -> Result<Response> {
        let route = req.route_config::<Specific>();
        Ok(Response::text(StatusCode::OK, route.map_or("none".into(), |route| route.name.clone())))
    }
}

fn named(name: &str) -> String {
    format!(r#"{{"name": "{name}"}}"#)
}

fn names() -> TestHost {
    TestHost::new::<Names>(&named("filter")).on(Kind::CompiledIn)
}

/// What the filter says of its route.
fn said(host: &TestHost) -> String {
    let exchange = host.open(TestRequest::get("/"));
    exchange.respond(TestResponse::new(200));
    let response = exchange.finish();
    response.header_text("x-name").unwrap_or_default().to_owned()
}

const LEVELS: [(Level, &str); 4] = [
    (Level::RouteTable, "table"),
    (Level::VirtualHost, "host"),
    (Level::Route, "route"),
    (Level::WeightedCluster, "cluster"),
];

#[test]
fn all_levels_are_merged_the_most_general_first() {
    // In whatever order the config was read.
    let host = LEVELS
        .iter()
        .rev()
        .fold(names(), |host, (level, name)| host.on_level(*level, &named(name)));
    assert_eq!(said(&host), "filter table host route cluster");
    let some = names().on_level(Level::WeightedCluster, &named("cluster"));
    assert_eq!(said(&some.on_level(Level::VirtualHost, &named("host"))), "filter host cluster");
}

#[test]
fn where_only_the_most_specific_is_known_it_is_merged_with_the_filter_s_own() {
    let host =
        LEVELS.iter().fold(names(), |host, (level, name)| host.on_level(*level, &named(name)));
    assert_eq!(said(&host.on(Kind::Stock)), "filter cluster");
}

#[test]
fn without_a_merge_the_most_specific_wins() {
    let host = TestHost::new::<Specific>("").on(Kind::CompiledIn);
    let text = |host: &TestHost| host.request(TestRequest::get("/")).run().text();
    assert_eq!(text(&host), "none");
    let mut all = host;
    for (level, name) in LEVELS {
        all = all.on_level(level, &named(name));
        assert_eq!(text(&all), name);
        assert_eq!(text(&all), name, "from what was kept");
    }
}

#[test]
fn nothing_is_merged_where_no_level_has_a_config() {
    let host = names();
    assert_eq!(said(&host), "none");
    assert_eq!(host.counter("merges"), 0);
    assert_eq!(host.counter("completed"), 0);
}

#[test]
fn each_combination_of_levels_is_merged_once() {
    let host = names();
    let route = host.on_route(&named("route"));
    for _ in 0..3 {
        assert_eq!(said(&route), "filter route");
    }
    assert_eq!(host.counter("merges"), 1);
    // The same route, in two virtual hosts.
    let one = route.on_level(Level::VirtualHost, &named("one"));
    let two = route.on_level(Level::VirtualHost, &named("two"));
    for _ in 0..3 {
        assert_eq!(said(&one), "filter one route");
        assert_eq!(said(&two), "filter two route");
        assert_eq!(said(&route), "filter route");
    }
    assert_eq!(host.counter("merges"), 3);
    assert_eq!(host.counter("completed"), 12);
}

#[test]
fn two_configs_of_a_filter_merge_the_same_route_each_for_itself() {
    let registry = Registry::new().with::<Names>("test");
    let route = registry.load_route("test", named("route").as_bytes()).unwrap();
    let host = |name: &str| {
        TestHost::new::<Names>(&named(name)).in_chain(Options {
            route_configs: [(Level::Route, route.clone())].into(),
            ..Options::default()
        })
    };
    let (one, two) = (host("one"), host("two"));
    for _ in 0..2 {
        assert_eq!(said(&one), "one route");
        assert_eq!(said(&two), "two route");
    }
    assert_eq!((one.counter("merges"), two.counter("merges")), (1, 1));
}

#[test]
fn what_was_merged_goes_with_its_level() {
    let host = names();
    assert_eq!(kept(), 1, "the filter's own");
    let route = host.on_route(&named("route"));
    said(&route);
    assert_eq!(kept(), 2);
    // A new virtual host around the same route, as often as its config is updated.
    for update in 0..5 {
        said(&route.on_level(Level::VirtualHost, &named("host")));
        assert_eq!(kept(), 3, "after update {update}");
    }
    drop(route);
    assert_eq!(kept(), 1);
}

#[test]
fn what_was_merged_for_a_filter_that_is_gone_goes_too() {
    let registry = Registry::new().with::<Names>("test");
    let route = registry.load_route("test", named("route").as_bytes()).unwrap();
    let used = |name: &str| {
        let host = TestHost::new::<Names>(&named(name));
        let host = host.in_chain(Options {
            route_configs: [(Level::Route, route.clone())].into(),
            ..Options::default()
        });
        said(&host);
        KEPT.with_borrow(Weak::clone)
    };
    let first = used("first");
    assert_eq!(first.strong_count(), 1, "kept with the route");
    let second = used("second");
    assert_eq!((first.strong_count(), second.strong_count()), (0, 1));
}

#[test]
fn a_merge_that_panics_costs_the_exchange_and_is_tried_again() {
    let host = TestHost::new::<Names>(&named("panics")).on_route(&named("route"));
    assert_eq!(host.request(TestRequest::get("/")).run().status(), 500);
    assert_eq!(host.counter("attache.test.panics"), 1);
    assert_eq!(said(&host), "panics route");
    assert_eq!(host.counter("merges"), 2);
}

#[test]
fn a_reply_made_elsewhere_has_a_route_config_too() {
    let host = names().on_route(&named("route"));
    let host = host.in_chain(Options {
        kind: Kind::CompiledIn,
        before: Some(Neighbour::Replies),
        ..Options::default()
    });
    let reply = host.request(TestRequest::get("/")).run();
    assert_eq!(reply.header_text("x-name"), Some("filter route"));
}

#[test]
fn workers_may_merge_at_the_same_time() {
    let host = names().on_route(&named("route"));
    let said: Vec<_> =
        host.on_workers(4, |_, host| (0..20).map(|_| said(host)).collect::<Vec<_>>());
    assert!(said.iter().flatten().all(|name| name == "filter route"), "{said:?}");
    assert!((1..=4).contains(&host.counter("merges")));
}
