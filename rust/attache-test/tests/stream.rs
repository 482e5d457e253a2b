//! What is around the messages, in a unit test: what a filter finds there, what it leaves there, and
//! what it does to the stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attache_core::facts::{Fact, HostHealth, MetadataSource, TimePoint, TlsFact};
use attache_core::{
    Attribute, AttributeValue, Completion, ConfigError, Error, ErrorKind, Filter, LifeSpan,
    MetadataValue, Next, Request, ResetReason, Response, Result, Setup, Sharing, Stream,
};
use attache_test::{Known, TestHost, TestRequest, TestResponse};
use http::{Method, StatusCode};

thread_local! {
    static LEFT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static KEPT: RefCell<Option<Stream>> = const { RefCell::new(None) };
}

fn leave(text: impl Into<String>) {
    LEFT.with_borrow_mut(|left| left.push(text.into()));
}

fn left() -> Vec<String> {
    LEFT.take()
}

/// A filter from an async block.
macro_rules! filter {
    ($name:ident, $req:ident, $next:ident => $body:block) => {
        filter!($name, $req, $next => $body, _done => {});
    };
    ($name:ident, $req:ident, $next:ident => $body:block, $done:ident => $end:block) => {
        struct $name;
        impl Filter for $name {
            type Config = ();
            type RouteConfig = ();
            fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
                Ok($name)
            }
            #[allow(unused_mut)]
            async fn handle(&self, mut $req: Request, $next: Next) -> Result<Response> $body
            fn on_complete(&self, $done: &Completion) $end
        }
    };
}

#[test]
fn facts_are_found_typed_and_by_name() {
    filter!(Asks, req, next => {
        let stream = req.stream();
        let info = stream.info();
        assert_eq!(info.downstream_remote_address()?.as_deref(), Some("10.0.0.1:50000"));
        assert_eq!(info.attempt_count()?, Some(2));
        assert_eq!(info.is_health_check()?, Some(true));
        assert_eq!(info.start_time()?, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(5)));
        assert_eq!(info.timing(TimePoint::FirstUpstreamRx)?, Some(Duration::from_millis(7)));
        assert_eq!(info.cluster_hosts(HostHealth::Healthy)?, Some(3));
        assert!(info.response_flags()?.contains("UH"));
        assert_eq!(info.worker_index()?, Some(0));
        let tls = info.downstream_tls();
        assert_eq!(tls.version()?.as_deref(), Some("TLSv1.3"));
        assert_eq!(tls.dns_sans_peer_certificate()?, ["a.example", "b.example"]);
        assert_eq!(tls.peer_certificate_validated()?, Some(true));
        // What is not set is not there, on either connection.
        assert_eq!(info.upstream_address()?, None);
        assert_eq!(info.upstream_tls().version()?, None);
        assert_eq!(info.upstream_tls().dns_sans_peer_certificate()?, [""; 0]);
        // What a host does not know is an error.
        assert_eq!(tls.cipher().unwrap_err().kind(), ErrorKind::Unsupported);

        let text = |text: &str| Some(AttributeValue::Text(text.into()));
        assert_eq!(stream.attribute("source.address")?, text("10.0.0.1:50000"));
        assert_eq!(stream.attribute("request.url_path")?, text("/a"));
        assert_eq!(stream.attribute("request.query")?, text("b=c"));
        assert_eq!(stream.attribute("xds.route_name")?, None);
        let Some(AttributeValue::Map(headers)) = stream.attribute("request.headers")? else {
            panic!("the request has headers");
        };
        assert!(headers.iter().any(|(name, value)| name == "x-one" && value == "1"));
        assert_eq!(stream.attribute("response.headers")?, None);
        let unknown = stream.attribute("source.adress").unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::UnknownAttribute);
        assert!(unknown.to_string().contains("`source.address`"), "{unknown}");

        let resp = next.run(req).await?;
        // Not used up with the request.
        assert_eq!(stream.attribute("response.grpc_status")?, Some(AttributeValue::Number(5)));
        assert_eq!(resp.stream().attribute("request.method")?, text("GET"));
        Ok(resp)
    });
    let host = TestHost::new::<Asks>("")
        .with(Attribute::SourceAddress, "10.0.0.1:50000")
        .with(Attribute::UpstreamRequestAttemptCount, 2)
        .with(Attribute::HealthCheck, true)
        .with(Attribute::RequestTime, SystemTime::UNIX_EPOCH + Duration::from_secs(5))
        .with(Attribute::ResponseFlags, 1 << 1)
        .with_surroundings(|s| {
            s.set(Fact::Timing(TimePoint::FirstUpstreamRx), Duration::from_millis(7));
            s.set(Fact::ClusterHosts(HostHealth::Healthy), 3);
            s.set(Fact::DownstreamTls(TlsFact::Version), "TLSv1.3");
            s.set(Fact::DownstreamTls(TlsFact::PeerDnsSans), vec!["a.example", "b.example"]);
            s.set(Fact::DownstreamTls(TlsFact::PeerValidated), true);
            s.set(Fact::DownstreamTls(TlsFact::Cipher), Known::Unsupported);
        });
    let response = host
        .request(TestRequest::get("/a?b=c").header("x-one", "1"))
        .upstream(|_| TestResponse::new(200).header("grpc-status", "5"))
        .run();
    assert_eq!(response.status(), 200, "{response:?}");
}

/// What an exchange of `F` was, as its end is told: outcome, code, bytes that came and went, milliseconds.
mod ends {
    use super::*;

    filter!(Slow, req, next => {
        assert_eq!(req.stream().info().duration()?, None, "it is not over");
        let path = req.path();
        if path != "/pass" {
            req.body_mut().buffer(100).await?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        match &*path {
            "/reply" => Ok(Response::text(StatusCode::FORBIDDEN, "no")),
            "/error" => Err(Error::status(StatusCode::BAD_GATEWAY, "on purpose")),
            "/panic" => panic!("on purpose"),
            "/reset" => Err(Error::reset(ResetReason::Local, "on purpose")),
            _ => next.run(req).await,
        }
    }, done => {
        let info = done.stream().info();
        let code = info.response_code().unwrap().map(|code| code.as_u16());
        let took = info.duration().unwrap().map(|took| took.as_millis());
        let bytes = (info.bytes_received().unwrap(), info.bytes_sent().unwrap());
        leave(format!("{:?} {code:?} {bytes:?} {took:?}", done.outcome()));
    });

    fn ended(path: &str) -> String {
        let host = TestHost::new::<Slow>("");
        let request = TestRequest::post(path).chunk("good").chunk("bye");
        let exchange = host.request(request).upstream(|_| TestResponse::new(200).body("four"));
        drop(exchange.run());
        left().join(" and ")
    }

    #[test]
    fn the_end_is_told_with_bytes_and_time() {
        assert_eq!(ended("/pass"), "Responded Some(200) (Some(7), Some(4)) Some(20)");
        assert_eq!(ended("/reply"), "Replied Some(403) (Some(7), Some(2)) Some(20)");
        assert_eq!(ended("/error"), "Failed Some(502) (Some(7), Some(11)) Some(20)");
        assert_eq!(ended("/panic"), "Panicked Some(500) (Some(7), Some(21)) Some(20)");
    }

    #[test]
    fn the_end_of_what_broke_off_is_told_as_well() {
        let host = TestHost::new::<Slow>("");
        let exchange = host.open(TestRequest::post("/reset").chunk("good").chunk("bye"));
        exchange.advance(Duration::from_millis(20));
        drop(exchange);
        assert_eq!(left(), ["Reset None (Some(7), Some(0)) Some(20)"]);
        let exchange = host.open(TestRequest::post("/pass").chunk("good").streaming());
        exchange.advance(Duration::from_millis(15));
        exchange.client_resets();
        drop(exchange);
        assert_eq!(left(), ["Cancelled None (Some(4), Some(0)) Some(15)"]);
    }
}

#[test]
fn metadata_and_filter_state_are_read_and_left() {
    filter!(Writes, req, next => {
        let stream = req.stream();
        assert_eq!(stream.route_metadata().get::<String>("ns", "tier")?.as_deref(), Some("gold"));
        assert_eq!(stream.cluster_metadata().get::<String>("ns", "tier")?, None);
        assert_eq!(stream.upstream_host_metadata().keys("ns")?, [""; 0]);
        let metadata = stream.metadata();
        metadata.set("mine", "text", "a")?;
        metadata.set("mine", "list", vec![1, 2])?;
        metadata.append("mine", "list", 3)?;
        assert_eq!(metadata.get::<Vec<f64>>("mine", "list")?, Some(vec![1.0, 2.0, 3.0]));
        assert_eq!(metadata.namespaces()?, ["mine"]);
        let kind = |error: Error| error.kind();
        assert_eq!(metadata.get::<f64>("mine", "text").map_err(kind), Err(ErrorKind::WrongType));
        let texts = metadata.get::<Vec<String>>("mine", "list").map_err(kind);
        assert_eq!(texts, Err(ErrorKind::WrongType));
        assert_eq!(metadata.append("mine", "text", 1).map_err(kind), Err(ErrorKind::WrongType));
        assert_eq!(metadata.set("attache", "x", 1).map_err(kind), Err(ErrorKind::Refused));
        let of_route = stream.route_metadata().set("ns", "tier", "none").map_err(kind);
        assert_eq!(of_route, Err(ErrorKind::Refused));

        let state = stream.filter_state();
        assert_eq!(state.get("given")?.as_deref(), Some(&b"before"[..]));
        state.set("short", "s")?;
        state.set_for("long", "l", LifeSpan::Connection, Sharing::UpstreamConnection)?;
        let other_span = state.set("long", "x").map_err(kind);
        assert_eq!(other_span, Err(ErrorKind::Refused));
        state.set_object("object", Arc::new(7u32), LifeSpan::Request)?;
        assert_eq!(state.object::<u32>("object")?.as_deref(), Some(&7));
        assert_eq!(state.object::<u64>("object").map_err(kind), Err(ErrorKind::WrongType));
        assert_eq!(state.object::<u32>("nothing")?, None);
        next.run(req).await
    }, done => {
        let late = done.stream().metadata().set("mine", "late", true);
        leave(format!("{late:?} {:?}", done.stream().info().response_code().map_err(|e| e.kind())));
    });
    let host = TestHost::new::<Writes>("").with_surroundings(|s| {
        s.set_metadata(MetadataSource::Route, "ns", "tier", "gold");
        s.set_filter_state("given", "before");
    });
    let exchange = host.open(TestRequest::get("/"));
    exchange.respond(TestResponse::new(204));
    assert_eq!(exchange.metadata("mine", "text"), Some("a".into()));
    assert_eq!(exchange.metadata("mine", "list"), Some(vec![1, 2, 3].into()));
    assert_eq!(exchange.metadata("mine", "late"), Some(MetadataValue::Flag(true)));
    let state =
        |key| exchange.filter_state(key).map(|(value, span, with)| (value.len(), span, with));
    assert_eq!(state("short"), Some((1, LifeSpan::FilterChain, Sharing::None)));
    assert_eq!(state("long"), Some((1, LifeSpan::Connection, Sharing::UpstreamConnection)));
    assert_eq!(exchange.finish().status(), 204);
    assert_eq!(left(), ["Ok(()) Ok(Some(204))"]);
}

/// A value that panics when it goes, and counts that it went.
struct Bomb(Rc<Cell<u32>>);
impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
        panic!("a bomb");
    }
}

#[test]
fn extensions_are_shared_and_go_with_the_stream() {
    filter!(Shares, req, next => {
        // Time for the test to leave something, as an earlier filter would.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let stream = req.stream();
        let before = stream.extensions().get::<String>()?.expect("left by another filter");
        assert_eq!(*before, "from before");
        assert_eq!(stream.extensions().insert(1u8)?, None);
        assert_eq!(stream.extensions().insert(2u8)?.as_deref(), Some(&1));
        next.run(req).await
    }, done => {
        let kept = done.stream().extensions().get::<u8>();
        leave(format!("{kept:?}"));
    });
    let gone = Rc::new(Cell::new(0));
    let exchange = TestHost::new::<Shares>("").open(TestRequest::get("/"));
    exchange.extensions().insert("from before".to_owned());
    exchange.extensions().insert(Bomb(gone.clone()));
    exchange.advance(Duration::from_secs(1));
    assert_eq!(exchange.extensions().get::<u8>().as_deref(), Some(&2));
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().status(), 200);
    assert_eq!(left(), ["Ok(Some(2))"]);
    assert_eq!(gone.get(), 1);
}

#[test]
fn routing_is_noted() {
    filter!(Routes, req, next => {
        let stream = req.stream();
        req.set_path("/other");
        stream.clear_route_cache()?;
        stream.refresh_route()?;
        stream.refresh_route_cluster()?;
        let refused = stream.override_upstream_host("somewhere", false).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        stream.override_upstream_host("10.0.0.9:80", true)?;
        stream.add_custom_flag("MINE")?;
        assert_eq!(stream.add_custom_flag("two words").unwrap_err().kind(), ErrorKind::Refused);
        stream.set_buffer_limit(4321)?;
        assert_eq!(stream.buffer_limit()?, 4321);
        stream.drain_connection().await?;
        let resp = next.run(req).await?;
        let late = stream.override_upstream_host("10.0.0.9:80", true).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Refused);
        Ok(resp)
    });
    let host = TestHost::new::<Routes>("");
    let exchange = host.open(TestRequest::get("/"));
    exchange.respond(TestResponse::new(200));
    let done = exchange.done();
    assert_eq!((done.route_cleared, done.cluster_refreshed), (2, 1));
    assert_eq!(done.upstream_host, Some(("10.0.0.9:80".into(), true)));
    assert!(done.connection_drains);
    assert_eq!(done.custom_flags, ["MINE"]);
    assert_eq!(exchange.finish().status(), 200);
}

#[test]
fn a_reset_is_no_error() {
    filter!(Resets, req, next => {
        if req.path() == "/later" {
            let _resp = next.run(req).await?;
            return Err(Error::reset(ResetReason::Local, "not that"));
        }
        Err(Error::reset(ResetReason::Refused, "too much"))
    }, done => { leave(format!("{:?}", done.outcome())) });
    let host = TestHost::new::<Resets>(r#"{"attache": {"fail_open": true}}"#);
    let exchange = host.open(TestRequest::get("/"));
    assert!(exchange.is_over());
    let reset = exchange.done().reset;
    assert_eq!(reset, Some((ResetReason::Refused, "attache.test.too_much".into())));
    drop(exchange);
    let exchange = host.open(TestRequest::get("/later"));
    exchange.respond(TestResponse::new(200).chunk("body").streaming());
    assert!(exchange.is_over());
    assert_eq!(exchange.done().reset, Some((ResetReason::Local, "attache.test.not_that".into())));
    drop(exchange);
    assert_eq!(left(), ["Reset", "Reset"]);
    assert_eq!(host.counter("attache.test.errors"), 0);
}

#[test]
fn a_stream_starts_again_or_says_why_not() {
    filter!(Again, req, next => {
        let stream = req.stream();
        match req.path().as_str() {
            "/gone" => {
                let resp = next.run(req).await?;
                let Err(error) = stream.recreate().await;
                assert_eq!(error.kind(), ErrorKind::Refused);
                return Ok(resp);
            }
            "/taken" => {
                req.body_mut().collect(100).await?;
                let Err(error) = stream.recreate().await;
                assert_eq!(error.kind(), ErrorKind::Refused);
                return next.run(req).await;
            }
            "/incomplete" => {
                let Err(error) = stream.recreate().await;
                assert_eq!(error.kind(), ErrorKind::Refused);
                return next.run(req).await;
            }
            _ => (),
        }
        req.body_mut().buffer(100).await?;
        req.set_path("/new");
        let Err(error) = stream.recreate().await;
        Err(error)
    }, done => { leave(format!("{:?}", done.outcome())) });
    let host = TestHost::new::<Again>("");
    for request in [
        TestRequest::get("/gone"),
        TestRequest::post("/taken").body("body"),
        TestRequest::post("/incomplete").chunk("bo").chunk("dy"),
    ] {
        assert_eq!(host.request(request).run().status(), 200);
    }
    left();
    // Not while the hook of its last byte runs; then at once.
    let exchange = host.open(TestRequest::post("/").streaming());
    exchange.send("good");
    assert!(!exchange.done().recreated);
    exchange.send_last("bye");
    assert!(exchange.done().recreated && exchange.is_over());
    drop(exchange);
    assert_eq!(left(), ["Recreated"]);
    assert_eq!(host.counter("attache.test.errors"), 0);
}

#[test]
fn what_is_asked_of_an_exchange_that_is_over_is_an_error() {
    filter!(Keeps, req, next => {
        KEPT.set(Some(req.stream()));
        next.run(req).await
    });
    assert_eq!(TestHost::new::<Keeps>("").request(TestRequest::get("/")).run().status(), 200);
    let stream = KEPT.take().expect("kept");
    let made = Response::new(StatusCode::OK);
    for stream in [stream, made.stream()] {
        let kinds = [
            stream.info().route_name().map(|_| ()),
            stream.info().response_flags().map(|_| ()),
            stream.attribute("request.path").map(|_| ()),
            stream.attribute("request.headers").map(|_| ()),
            stream.attribute("response.grpc_status").map(|_| ()),
            stream.metadata().get::<String>("a", "b").map(|_| ()),
            stream.metadata().set("a", "b", 1),
            stream.metadata().append("a", "b", 1),
            stream.route_metadata().namespaces().map(|_| ()),
            stream.filter_state().get("a").map(|_| ()),
            stream.filter_state().set("a", "b"),
            stream.filter_state().object::<u8>("a").map(|_| ()),
            stream.filter_state().set_object("a", Arc::new(1u8), LifeSpan::Request),
            stream.extensions().get::<u8>().map(|_| ()),
            stream.extensions().insert(1u8).map(|_| ()),
            stream.clear_route_cache(),
            stream.refresh_route(),
            stream.override_upstream_host("10.0.0.1:1", true),
            stream.add_custom_flag("X"),
            stream.buffer_limit().map(|_| ()),
            stream.set_buffer_limit(1),
        ]
        .map(|result| result.map_err(|error| error.kind()));
        for (index, kind) in kinds.into_iter().enumerate() {
            // A host that was chosen too late is an error of its own.
            let late = index == 17 && kind == Err(ErrorKind::Refused);
            assert!(late || kind == Err(ErrorKind::Gone), "{index}: {kind:?}");
        }
        // A clone is the same.
        assert!(stream.clone().buffer_limit().is_err());
    }
}

mod replies {
    //! Replies that were made elsewhere.

    use attache_test::model::{Neighbour, Options};

    use super::*;

    struct Changes;
    impl Filter for Changes {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Changes)
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            leave("handle");
            if req.path() == "/hold" || req.method() == Method::POST {
                std::future::pending::<()>().await;
            }
            next.run(req).await
        }
        async fn handle_reply(&self, mut reply: Response) -> Result<Response> {
            leave(format!("reply {}", reply.status().as_u16()));
            let path = reply.stream().attribute("request.path")?.map(|path| path.to_string());
            match path.as_deref() {
                Some("/error") => return Err(Error::status(StatusCode::BAD_GATEWAY, "no")),
                Some("/panic") => panic!("on purpose"),
                Some("/own") => return Ok(Response::text(StatusCode::FORBIDDEN, "mine")),
                Some("/wait") => tokio::time::sleep(Duration::from_secs(1)).await,
                _ => (),
            }
            reply.headers_mut().set("x-changed", "1");
            let body = reply.body_mut().collect(1000).await?;
            reply.set_body([b"<", &body[..], b">"].concat());
            Ok(reply)
        }
        fn on_complete(&self, done: &Completion) {
            leave(format!("{:?}", done.outcome()));
        }
    }

    fn behind_a_filter_that_replies() -> TestHost {
        let chain = Options { before: Some(Neighbour::Replies), ..Options::default() };
        TestHost::new::<Changes>("").in_chain(chain)
    }

    #[test]
    fn a_reply_by_an_earlier_filter_is_changed() {
        let host = behind_a_filter_that_replies();
        for path in ["/", "/wait"] {
            let response = host.request(TestRequest::get(path)).run();
            assert_eq!(response.header_text("x-changed"), Some("1"), "{path}: {response:?}");
            assert!(response.text().starts_with('<') && response.text().ends_with('>'));
            // `handle` never ran, so nothing is to be completed.
            assert_eq!(left(), [format!("reply {}", response.status())]);
        }
    }

    #[test]
    fn a_reply_is_replaced_and_failures_answer_as_usual() {
        let host = behind_a_filter_that_replies();
        for (path, status, body) in [
            ("/own", 403, "mine"),
            ("/error", 502, "Bad Gateway"),
            ("/panic", 500, "Internal Server Error"),
        ] {
            let response = host.request(TestRequest::get(path)).run();
            assert_eq!((response.status(), response.text().as_ref()), (status, body), "{path}");
        }
        left();
        assert_eq!(host.counter("attache.test.errors"), 1);
        assert_eq!(host.counter("attache.test.panics"), 1);
    }

    /// exchanges, local_replies, cancelled, handled_replies, errors, panics
    fn counts(host: &TestHost) -> [u64; 6] {
        ["exchanges", "local_replies", "cancelled", "handled_replies", "errors", "panics"]
            .map(|name| host.counter(&format!("attache.test.{name}")))
    }

    #[test]
    fn a_reply_is_counted_as_handled_and_not_as_an_exchange() {
        let host = behind_a_filter_that_replies();
        for (path, counted) in [
            ("/", [0, 0, 0, 1, 0, 0]),
            // Not a local reply in place of an exchange.
            ("/own", [0, 0, 0, 2, 0, 0]),
            ("/error", [0, 0, 0, 3, 1, 0]),
            ("/panic", [0, 0, 0, 4, 1, 1]),
        ] {
            host.request(TestRequest::get(path)).run();
            assert_eq!(counts(&host), counted, "{path}");
        }
        for gauge in ["active", "suspended"] {
            assert_eq!(host.gauge(&format!("attache.test.{gauge}")), 0, "{gauge}");
        }
        left();
    }

    #[test]
    fn an_exchange_that_a_reply_cut_short_is_counted_by_what_became_of_the_reply() {
        // The path is what `handle_reply` goes by, the body what `handle` does.
        let ends = |path: &str| {
            let host = TestHost::new::<Changes>("");
            let exchange = host.open(TestRequest::post(path).body("held").streaming());
            exchange.model().local_reply(408, "too late");
            exchange.advance(Duration::ZERO);
            exchange.finish();
            let outcome = left().pop().unwrap();
            (outcome, counts(&host))
        };
        assert_eq!(ends("/hold"), ("Cancelled".to_owned(), [1, 0, 1, 1, 0, 0]));
        assert_eq!(ends("/own"), ("Replied".to_owned(), [1, 1, 0, 1, 0, 0]));
        assert_eq!(ends("/error"), ("Failed".to_owned(), [1, 0, 0, 1, 1, 0]));
        assert_eq!(ends("/panic"), ("Panicked".to_owned(), [1, 0, 0, 1, 0, 1]));
    }

    #[test]
    fn a_reply_to_a_request_that_is_held_is_changed() {
        let host = TestHost::new::<Changes>("");
        let exchange = host.open(TestRequest::get("/hold"));
        exchange.model().local_reply(408, "too late");
        exchange.advance(Duration::ZERO);
        let response = exchange.finish();
        assert_eq!((response.status(), response.text().as_ref()), (408, "<too late>"));
        assert_eq!(response.header_text("x-changed"), Some("1"));
        assert_eq!(left(), ["handle", "reply 408", "Cancelled"]);
    }

    #[test]
    fn a_reply_to_a_request_that_has_gone_on_is_for_handle() {
        let host = TestHost::new::<Changes>("");
        let exchange = host.open(TestRequest::get("/"));
        exchange.model().local_reply(504, "too late");
        exchange.advance(Duration::ZERO);
        let response = exchange.finish();
        assert_eq!((response.status(), response.text().as_ref()), (504, "too late"));
        assert_eq!(left(), ["handle", "Responded"]);
    }

    #[test]
    fn the_client_may_leave_while_a_reply_is_held() {
        let host = behind_a_filter_that_replies();
        let exchange = host.open(TestRequest::get("/wait"));
        assert!(exchange.response().is_none());
        exchange.client_resets();
        assert!(exchange.is_over() && exchange.model().is_freed());
        left();
    }
}
