//! What Envoy punishes when a filter is compiled in.

use attache_test::model::Kind;
use bytes::Bytes;

use super::*;

fn options() -> Options {
    Options { kind: Kind::CompiledIn, ..Options::default() }
}

fn held() -> Stream {
    stream("/", options())
}

fn passing() -> Stream {
    stream("/pass", options())
}

fn with_earlier() -> Options {
    Options { before: Some(Neighbour::Passes), ..options() }
}

fn inject(host: &ModelHost, direction: Direction, data: &'static str, end: bool) {
    host.inject(direction, &mut [Bytes::from(data)].into_iter(), end);
}

fn caught_in_hook(f: fn(&ModelHost)) -> String {
    let test_host = TestHost::new::<NaughtyInHook>("");
    let model = Model::new(&test_host.loaded(), options());
    NAUGHTY.set(Some((model.host(), f)));
    model.client_headers(head("/"), true);
    model.violations().first().expect("it is on the list").to_string()
}

#[test]
fn an_injection_takes_held_headers_along_and_leaves_what_is_held() {
    let stream = held();
    stream.model.client_data("input", false);
    inject(&stream.host, Req, "", false);
    assert!(stream.model.upstream().headers.is_some());
    inject(&stream.host, Req, "out", false);
    inject(&stream.host, Req, "put", false);
    assert_eq!(stream.model.upstream().chunks, ["out", "put"]);
    assert_eq!(stream.model.buffered(Req), 5);
    stream.host.release(Req);
    assert_eq!(stream.model.upstream().body(), "outputinput");
    assert!(!stream.model.upstream().ended);
    inject(&stream.host, Req, "", true);
    assert!(stream.model.upstream().ended);
    assert_eq!(stream.model.violations(), []);
}

#[test]
fn an_injection_needs_no_stop() {
    let stream = passing();
    inject(&stream.host, Req, "out", false);
    stream.model.client_data("in", true);
    assert_eq!(stream.model.upstream().body(), "outin");
    assert!(stream.model.upstream().ended);
}

#[test]
fn a_resume_sends_what_is_held_and_the_end() {
    let stream = held();
    stream.model.client_data("a", false);
    stream.model.client_data("b", true);
    stream.host.resume(Req);
    assert_eq!(stream.model.upstream().body(), "ab");
    assert!(stream.model.upstream().ended);
    says(&violation(&stream, |h| h.resume(Req)), "after its end");
}

#[test]
fn a_resume_sends_what_is_held_and_the_trailers() {
    let stream = held();
    stream.model.client_data("a", false);
    stream.model.client_trailers(vec![("x-last".into(), "1".into())]);
    stream.host.resume(Req);
    assert_eq!(stream.model.upstream().body(), "a");
    assert!(stream.model.upstream().trailers.is_some());
    says(&violation(&stream, |h| inject(h, Req, "late", false)), "after its end");
}

#[test]
fn a_header_only_message_stays_one() {
    let test_host = TestHost::new::<Waits>("");
    let model = Model::new(&test_host.loaded(), options());
    model.client_headers(head("/"), true);
    model.host().resume(Req);
    let upstream = model.upstream();
    assert!(upstream.ended && upstream.headers.is_some());
}

#[test]
fn emission_inside_a_hook() {
    let calls: [fn(&ModelHost); 4] = [
        |h| inject(h, Req, "x", false),
        |h| inject(h, Resp, "x", false),
        |h| h.release(Req),
        |h| h.resume(Req),
    ];
    for call in calls {
        says(&caught_in_hook(call), "inside a hook of the filter's");
    }
}

#[test]
fn emission_before_the_headers_have_come() {
    says(&violation(&held(), |h| inject(h, Resp, "x", false)), "before its headers");
    says(&violation(&held(), |h| h.release(Resp)), "before its headers");
}

#[test]
fn emission_after_the_end() {
    let ends: [fn(&Stream); 2] =
        [|s| inject(&s.host, Req, "x", true), |s| s.model.client_data("x", true)];
    let calls: [fn(&ModelHost); 3] =
        [|h| inject(h, Req, "x", false), |h| h.release(Req), |h| h.resume(Req)];
    for end in ends {
        for call in calls {
            let stream = passing();
            end(&stream);
            assert!(stream.model.upstream().ended);
            says(&violation(&stream, call), "after its end");
        }
    }
}

#[test]
fn an_injected_end_before_trailers() {
    let stream = held();
    stream.model.client_trailers(vec![("x-last".into(), "1".into())]);
    says(&violation(&stream, |h| inject(h, Req, "x", true)), "that has trailers");
}

#[test]
fn emission_after_a_reply_has_begun() {
    let stream = held();
    stream.host.send_reply_headers(&[(b":status", b"200")], false);
    says(&violation(&stream, |h| inject(h, Req, "x", false)), "after the filter has begun a reply");
}

#[test]
fn a_resume_or_a_release_of_what_is_not_stopped() {
    says(&violation(&passing(), |h| h.resume(Req)), "which is not stopped");
    says(&violation(&passing(), |h| h.release(Req)), "which is not stopped");
}

#[test]
fn a_resume_past_what_an_earlier_filter_holds() {
    let stream = stream("/", with_earlier());
    stream.model.hold(true, Req);
    stream.model.client_data("theirs", false);
    assert!(stream.host.others_hold(Req));
    says(&violation(&stream, |h| h.resume(Req)), "that others hold");
}

#[test]
fn a_resume_past_trailers_that_an_earlier_filter_holds() {
    let stream = stream("/", with_earlier());
    stream.model.hold(true, Req);
    stream.model.client_trailers(vec![("x-last".into(), "1".into())]);
    says(&violation(&stream, |h| h.resume(Req)), "before their hook");
}

#[test]
fn a_resume_while_an_earlier_filter_holds_the_end() {
    let stream = stream("/", with_earlier());
    stream.model.hold(true, Req);
    stream.model.client_data("", true);
    says(&violation(&stream, |h| h.resume(Req)), "whose end an earlier filter holds");
}

/// An injection goes past them, but Envoy then forgets that the message has ended: that is lost when
/// the earlier filter lets go.
#[test]
fn an_injection_past_an_end_that_an_earlier_filter_holds() {
    let stream = stream("/", with_earlier());
    stream.model.hold(true, Req);
    stream.model.client_data("theirs", true);
    inject(&stream.host, Req, "ours ", false);
    stream.model.release(true, Req);
    stream.host.release(Req);
    assert_eq!(stream.model.upstream().body(), "ours theirs");
    assert!(!stream.model.upstream().ended);
}

#[test]
fn an_append_to_the_private_buffer() {
    let stream = held();
    let message = violation(&stream, |h| h.append(Req, Area::Buffer, b"x"));
    says(&message, "which is for input");
}

#[test]
fn trailers_outside_of_the_hook_that_brings_the_end() {
    let message = violation(&held(), |h| {
        h.add_trailers(Req, false);
    });
    says(&message, "outside of the hook that brings its end");
}

#[test]
fn trailers_that_are_added_now_need_a_data_hook() {
    let message = caught_in_hook(|h| {
        h.add_trailers(Req, true);
    });
    says(&message, "twice, or never");
}

#[test]
fn trailers_that_are_added_for_later_need_a_stop() {
    let test_host = TestHost::new::<NaughtyInHook>("");
    let model = Model::new(&test_host.loaded(), options());
    NAUGHTY.set(Some((model.host(), |h| assert!(h.add_trailers(Req, false)))));
    let sent = catch_unwind(AssertUnwindSafe(|| model.client_headers(head("/"), true)));
    assert!(sent.is_err());
    says(&model.violations()[0].to_string(), "to go later, but the hook continues");
}

#[test]
fn empty_values_are_kept() {
    let stream = held();
    let map = Map::RequestHeaders;
    assert!(stream.host.set_header(map, "a", b""));
    assert!(stream.host.append_header(map, "a", b""));
    assert_eq!(stream.host.header(map, "a", 0, &mut |_| ()), 2);
}

/// Only the sender hears of it: the filter itself makes the room.
#[test]
fn a_full_private_buffer_pauses_the_client_until_half_of_it_is_free() {
    pauses_until_half_is_free(options());
}

#[test]
fn an_injection_makes_room_too() {
    let stream = stream("/", Options { buffer_limit: 10, ..options() });
    stream.model.client_data("0123456789a", false);
    assert!(stream.model.paused(Req));
    stream.host.release(Req);
    assert!(!stream.model.paused(Req));
}
