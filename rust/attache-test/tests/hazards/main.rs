//! The model really punishes what Envoy punishes: one test for each hazard.
//!
//! Calls are made by hand, on the host side of a stream whose filter does nothing but wait; what the
//! model panics with is the assertion. What only a compiled-in host can do wrong is in
//! `compiled_in.rs`.

mod compiled_in;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use attache_core::host::{Area, CallRefused, CallStart, Direction, Host, LocalReply, Map};
use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
use attache_test::model::{Fields, Model, ModelHost, Neighbour, Options};
use attache_test::{ClusterAnswer, Clusters, TestHost};

use Direction::{Request as Req, Response as Resp};

/// Holds the request for ever, or lets everything pass.
struct Waits;

impl Filter for Waits {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Waits)
    }
    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        if req.path() != "/pass" {
            std::future::pending::<()>().await;
        }
        next.run(req).await
    }
}

struct Stream {
    model: Model,
    host: ModelHost,
    // Keeps the filter's runtime.
    _test_host: TestHost,
}

fn head(path: &str) -> Fields {
    [(":method", "POST"), (":path", path), (":authority", "t"), (":scheme", "http")]
        .map(|(n, v)| (n.to_owned(), v.to_owned().into()))
        .into()
}

/// A stream whose request's headers are held (`/`) or have gone (`/pass`).
fn stream(path: &str, options: Options) -> Stream {
    let test_host = TestHost::new::<Waits>("");
    let model = Model::new(&test_host.loaded(), options);
    let host = model.host();
    model.client_headers(head(path), false);
    Stream { model, host, _test_host: test_host }
}

fn held() -> Stream {
    stream("/", Options::default())
}

fn passing() -> Stream {
    stream("/pass", Options::default())
}

/// What the model says when `f` does what it must not do. It must say so twice: by a panic, and on
/// its list.
fn violation(stream: &Stream, f: impl FnOnce(&ModelHost)) -> String {
    assert_eq!(stream.model.violations(), []);
    let panic = catch_unwind(AssertUnwindSafe(|| f(&stream.host))).expect_err("no violation");
    let message = panic.downcast_ref::<String>().expect("a message").clone();
    let listed = stream.model.violations().first().expect("it is on the list").to_string();
    assert_eq!(message, listed);
    message
}

#[track_caller]
fn says(message: &str, expected: &str) {
    assert!(message.starts_with("ModelViolation: "), "{message}");
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

const REPLY: LocalReply<'_> =
    LocalReply { status: 403, headers: &[], body: b"no", details: "test" };

#[test]
fn resume_of_what_is_not_stopped() {
    let stream = passing();
    says(&violation(&stream, |host| host.resume(Req)), "which is not stopped");
}

#[test]
fn a_stop_buys_one_resume() {
    let stream = held();
    stream.host.resume(Req);
    assert!(stream.model.upstream().headers.is_some());
    says(&violation(&stream, |host| host.resume(Req)), "which is not stopped");
}

#[test]
fn resume_before_the_headers() {
    let stream = held();
    says(&violation(&stream, |host| host.resume(Resp)), "before its headers");
}

#[test]
fn any_call_after_destroy() {
    let calls: [fn(&ModelHost); 8] = [
        |h| assert_eq!(h.body_len(Req, Area::Buffer), 0),
        |h| assert_eq!(h.header(Map::RequestHeaders, "a", 0, &mut |_| ()), 0),
        |h| assert!(h.set_header(Map::RequestHeaders, "a", b"b")),
        |h| h.drain(Req, Area::Buffer, 0),
        |h| h.resume(Req),
        |h| h.send_reply(&REPLY),
        |h| h.reset("test"),
        |h| drop(h.notifier()),
    ];
    for call in calls {
        let stream = held();
        stream.model.client_reset();
        assert!(stream.model.is_destroyed());
        says(&violation(&stream, call), "after destroy");
    }
}

#[test]
fn a_reset_ends_the_stream_inside_the_call() {
    let stream = held();
    stream.host.reset("test");
    assert!(stream.model.is_destroyed());
    says(&violation(&stream, |h| h.drain(Req, Area::Buffer, 0)), "after destroy");
}

#[test]
fn a_reply_ends_the_stream_inside_the_call() {
    let stream = held();
    stream.host.send_reply(&REPLY);
    assert!(stream.model.is_destroyed());
    assert_eq!(stream.model.client().status(), Some(403));
    assert_eq!(stream.model.client().body(), "no");
}

#[test]
fn an_append_that_would_sit_unsent() {
    let stream = passing();
    let message = violation(&stream, |h| h.append(Req, Area::Buffer, b"late"));
    says(&message, "it would sit unsent");
}

#[test]
fn an_append_to_a_frame_outside_its_hook() {
    let stream = held();
    let message = violation(&stream, |h| h.append(Req, Area::Frame, b"x"));
    says(&message, "outside its hook");
}

#[test]
fn a_second_emission_after_the_end() {
    let stream = held();
    stream.model.client_data("all", true);
    stream.host.append(Req, Area::Buffer, b"!");
    stream.host.resume(Req);
    assert_eq!(stream.model.upstream().body(), "all!");
    assert!(stream.model.upstream().ended);
    let message = violation(&stream, |h| h.append(Req, Area::Buffer, b"?"));
    says(&message, "it would sit unsent");
}

#[test]
fn draining_what_is_not_there() {
    let stream = held();
    stream.model.client_data("abc", false);
    stream.host.drain(Req, Area::Buffer, 2);
    assert_eq!(stream.model.buffered(Req), 1);
    says(&violation(&stream, |h| h.drain(Req, Area::Buffer, 2)), "has 1");
}

#[test]
fn draining_what_another_filter_holds() {
    let options = Options { after: Some(Neighbour::Passes), ..Options::default() };
    let stream = stream("/pass", options);
    stream.model.hold(false, Req);
    stream.model.client_data("theirs", false);
    let message = violation(&stream, |h| h.drain(Req, Area::Buffer, 1));
    says(&message, "another filter holds");
}

#[test]
fn a_resume_past_what_an_earlier_filter_holds() {
    let options = Options { before: Some(Neighbour::Passes), ..Options::default() };
    let stream = stream("/", options);
    stream.model.hold(true, Req);
    stream.model.client_data("theirs", false);
    says(&violation(&stream, |h| h.resume(Req)), "they slip by");
}

#[test]
fn a_second_reply() {
    let stream = stream("/", Options { late_end: true, ..Options::default() });
    stream.host.send_reply(&REPLY);
    says(&violation(&stream, |h| h.send_reply(&REPLY)), "has already replied");
}

#[test]
fn decoding_on_after_a_reply_has_begun() {
    let stream = held();
    stream.host.send_reply_headers(&[(b":status", b"200")], false);
    says(&violation(&stream, |h| h.resume(Req)), "after the filter has begun a reply");
}

#[test]
fn a_streamed_reply_once_the_request_has_gone() {
    let stream = passing();
    let message = violation(&stream, |h| h.send_reply_headers(&[(b":status", b"200")], false));
    says(&message, "a response would meet it");
}

#[test]
fn reply_data_without_headers_or_after_the_end() {
    let stream = held();
    says(&violation(&stream, |h| h.send_reply_data(b"x", false)), "before the reply's headers");

    let stream = with_ended_reply();
    says(&violation(&stream, |h| h.send_reply_trailers(&[])), "after the reply's end");
}

fn with_ended_reply() -> Stream {
    let stream = stream("/", Options { late_end: true, ..Options::default() });
    stream.host.send_reply_headers(&[(b":status", b"200")], false);
    stream.host.send_reply_data(b"x", true);
    assert!(stream.model.client().ended);
    stream
}

#[test]
fn a_reply_after_response_headers_have_gone() {
    let stream = passing();
    stream.model.upstream_headers(vec![(":status".into(), "200".into())], false);
    // The filter returns the response when its wake is delivered; here it is let go at once.
    assert!(stream.model.client().headers.is_some());
    says(&violation(&stream, |h| h.send_reply(&REPLY)), "have gone to the client");
}

#[test]
fn a_reset_of_a_complete_response() {
    let stream = stream("/pass", Options { late_end: true, ..Options::default() });
    stream.model.upstream_headers(vec![(":status".into(), "204".into())], true);
    says(&violation(&stream, |h| h.reset("test")), "perhaps on its way");
}

#[test]
fn headers_that_change_after_they_have_gone() {
    let stream = passing();
    let message = violation(&stream, |h| {
        h.set_header(Map::RequestHeaders, "a", b"b");
    });
    says(&message, "have gone");
}

#[test]
fn a_map_that_changes_under_a_view() {
    let stream = held();
    let message = violation(&stream, |host| {
        host.headers(Map::RequestHeaders, &mut |_, _| {
            host.set_header(Map::RequestHeaders, "a", b"b");
        });
    });
    says(&message, "callback that looks at a view");
}

#[test]
fn a_buffer_that_changes_under_a_view() {
    let stream = held();
    stream.model.client_data("abc", false);
    let message = violation(&stream, |host| {
        host.body(Req, Area::Buffer, &mut |_| host.drain(Req, Area::Buffer, 1));
    });
    says(&message, "callback that looks at a view");
}

#[test]
fn looking_twice_at_once_is_fine() {
    let stream = held();
    let mut seen = Vec::new();
    stream.host.headers(Map::RequestHeaders, &mut |name, _| {
        let name = std::str::from_utf8(name).unwrap();
        stream.host.header(Map::RequestHeaders, name, 0, &mut |value| seen.push(value.to_vec()));
    });
    assert_eq!(seen.len(), 4);
    assert_eq!(stream.model.violations(), []);
}

#[test]
fn a_second_notifier() {
    let stream = held();
    drop(stream.host.notifier());
    says(&violation(&stream, |h| drop(h.notifier())), "a second notifier");
}

type Misdeed = (ModelHost, fn(&ModelHost));

thread_local! {
    /// What the next `Naughty` filter does behind the engine's back, and the host that it does it to.
    static NAUGHTY: RefCell<Option<Misdeed>> = RefCell::default();
}

fn misbehave() {
    let naughty = NAUGHTY.with_borrow_mut(Option::take);
    if let Some((host, f)) = naughty {
        f(&host);
    }
}

/// Misbehaves in its first poll, inside of the request-headers hook.
struct NaughtyInHook;

impl Filter for NaughtyInHook {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(NaughtyInHook)
    }
    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        misbehave();
        next.run(req).await
    }
}

/// Misbehaves when it is dropped.
struct NaughtyInDrop;

impl Filter for NaughtyInDrop {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(NaughtyInDrop)
    }
    async fn handle(&self, _: Request, _: Next) -> Result<Response> {
        struct OnDrop;
        impl Drop for OnDrop {
            fn drop(&mut self) {
                misbehave();
            }
        }
        let _on_drop = OnDrop;
        std::future::pending().await
    }
}

/// The engine catches the panic as the filter's own; the list keeps it.
fn caught<F: Filter>(f: fn(&ModelHost), event: impl FnOnce(&Model)) -> String {
    let test_host = TestHost::new::<F>("");
    let model = Model::new(&test_host.loaded(), Options::default());
    NAUGHTY.set(Some((model.host(), f)));
    model.client_headers(head("/"), false);
    event(&model);
    model.violations().first().expect("it is on the list").to_string()
}

#[test]
fn resume_inside_the_same_hook() {
    says(&caught::<NaughtyInHook>(|h| h.resume(Req), |_| ()), "inside its own hook");
}

#[test]
fn an_append_whose_answer_leaves_it_unsent() {
    let test_host = TestHost::new::<NaughtyInHook>("");
    let model = Model::new(&test_host.loaded(), Options::default());
    NAUGHTY.set(Some((model.host(), |h| h.append(Req, Area::Buffer, b"x"))));
    let sent = catch_unwind(AssertUnwindSafe(|| model.client_headers(head("/"), false)));
    assert!(sent.is_err());
    says(&model.violations()[0].to_string(), "leaves them unsent");
}

#[test]
fn an_append_from_a_hook_of_the_other_direction() {
    let message = caught::<NaughtyInHook>(|h| h.append(Resp, Area::Buffer, b"x"), |_| ());
    says(&message, "it would sit unsent");
}

#[test]
fn a_reply_from_the_local_reply_hook() {
    let message = caught::<NaughtyInDrop>(|h| h.send_reply(&REPLY), |m| m.local_reply(504, "late"));
    says(&message, "from within the local-reply hook");
}

#[test]
fn a_call_that_sends_after_the_stream_has_completed() {
    let message = caught::<NaughtyInDrop>(|h| h.resume(Req), Model::client_reset);
    says(&message, "after the stream has completed");
}

#[test]
fn absent_trailers_cannot_be_made() {
    let stream = held();
    assert!(!stream.host.set_header(Map::RequestTrailers, "a", b"b"));
    assert!(!stream.host.headers(Map::RequestTrailers, &mut |_, _| ()));
}

#[test]
fn empty_values_remove_and_are_not_added() {
    let stream = held();
    let map = Map::RequestHeaders;
    assert!(stream.host.set_header(map, "a", b"1"));
    assert!(stream.host.set_header(map, "a", b""));
    assert_eq!(stream.host.header(map, "a", 0, &mut |_| ()), 0);
    assert!(!stream.host.append_header(map, "a", b""));
}

/// Holds ten bytes without a pause, and not one more.
fn pauses_until_half_is_free(options: Options) {
    let stream = stream("/", Options { buffer_limit: 10, ..options });
    stream.model.client_data("0123456789", false);
    assert!(!stream.model.paused(Req));
    stream.model.client_data("a", false);
    assert!(stream.model.paused(Req));
    stream.host.drain(Req, Area::Buffer, 5);
    assert!(stream.model.paused(Req));
    stream.host.drain(Req, Area::Buffer, 1);
    assert!(!stream.model.paused(Req));
}

#[test]
fn a_full_buffer_pauses_the_client_until_half_of_it_is_free() {
    pauses_until_half_is_free(Options::default());
}

#[test]
fn a_header_only_request_gets_a_body() {
    let test_host = TestHost::new::<Waits>("");
    let model = Model::new(&test_host.loaded(), Options::default());
    let host = model.host();
    model.client_headers(head("/"), true);
    host.append(Req, Area::Buffer, b"new");
    host.resume(Req);
    assert_eq!(model.upstream().body(), "new");
    assert!(model.upstream().ended);
}

// ---- calls to clusters ----------------------------------------------------------------------

fn call<'a>(headers: &'a [(&'a [u8], &'a [u8])], end_stream: bool) -> CallStart<'a> {
    CallStart { cluster: "c", headers, body: b"", end_stream, timeout: None }
}

const TO_C: [(&[u8], &[u8]); 3] = [(b":method", b"POST"), (b":path", b"/"), (b":authority", b"c")];

fn with_cluster() -> Stream {
    let clusters = Clusters::default();
    clusters.set("c", |_| ClusterAnswer::never());
    stream("/", Options { clusters, ..Options::default() })
}

#[test]
fn a_call_of_a_stream_that_has_ended() {
    let stream = with_cluster();
    stream.model.client_reset();
    let message = violation(&stream, |h| _ = h.start_call(&call(&TO_C, true)));
    says(&message, "start_call after destroy");
}

#[test]
fn more_of_a_call_s_request_after_its_end() {
    let stream = with_cluster();
    let id = stream.host.start_call(&call(&TO_C, true)).unwrap();
    says(&violation(&stream, |h| _ = h.send_call_data(id, b"x", true)), "after its end");

    let stream = with_cluster();
    let id = stream.host.start_call(&call(&TO_C, false)).unwrap();
    assert!(stream.host.send_call_trailers(id, &[]));
    says(&violation(&stream, |h| _ = h.send_call_trailers(id, &[])), "after its end");
}

#[test]
fn a_call_that_is_over_takes_no_more_and_can_be_reset_again() {
    let stream = with_cluster();
    let id = stream.host.start_call(&call(&TO_C, false)).unwrap();
    assert_eq!(stream.model.open_calls(), 1);
    stream.host.reset_call(id);
    stream.host.reset_call(id);
    assert!(!stream.host.send_call_data(id, b"x", false));
    assert_eq!(stream.model.open_calls(), 0);
    assert!(stream.model.violations().is_empty());
}

#[test]
fn a_call_that_lacks_a_header_or_a_cluster_is_refused() {
    let stream = with_cluster();
    let refused = stream.host.start_call(&call(&TO_C[..2], true));
    assert_eq!(refused, Err(CallRefused::InvalidRequest));
    let unknown = CallStart { cluster: "d", ..call(&TO_C, true) };
    assert_eq!(stream.host.start_call(&unknown), Err(CallRefused::UnknownCluster));
}
