//! One test for each promise that the engine was once found not to keep, as small as it gets.

use crate::support::*;
use attache_core::host::Direction;
use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
use attache_test::model::{Kind, Neighbour, Options, Upstream};
use attache_test::{TestHost, TestRequest, TestResponse};
use std::time::Duration;

fn check(case: &Case) {
    if let Err(broken) = run(case) {
        panic!("{broken}");
    }
}

fn body(chunks: &[usize]) -> Script {
    Script { chunks: chunks.to_vec(), ..Script::default() }
}

fn body_and_trailers(chunks: &[usize]) -> Script {
    Script { trailers: true, ..body(chunks) }
}

#[test]
fn an_echo_of_a_body_with_trailers_ends() {
    check(&Case {
        program: Program { early: Some(Finish::Own(Own::Echo)), ..Program::default() },
        request: body_and_trailers(&[3]),
        ..Case::default()
    });
}

/// A neighbour lets go headers, data and trailers in one call. Continuing at the data would send
/// the trailers twice.
#[test]
fn trailers_go_once_when_a_neighbour_lets_all_go() {
    check(&Case {
        program: Program { before: vec![Step::Wait(Wait::Yield)], ..Program::default() },
        request: body_and_trailers(&[3]),
        before: Some(Neighbour::Buffers),
        ..Case::default()
    });
}

/// A resume leaves an empty buffer behind; what is put there in a trailers hook stays there.
#[test]
fn output_at_the_trailers_is_not_left_in_the_buffer() {
    use Event::{Client, Scheduled};
    check(&Case {
        program: Program { request: Change::Pipe(Wait::Yield, Wait::No), ..Program::default() },
        request: body_and_trailers(&[3]),
        events: vec![Client, Client, Scheduled, Scheduled, Client],
        ..Case::default()
    });
}

/// The response came from a neighbour, and has passed; then the request's body fails.
#[test]
fn what_fails_when_the_response_has_passed_does_not_cut_it_off() {
    let request = Change::Trailers(Wait::Sleep);
    check(&Case {
        kind: Kind::CompiledIn,
        program: Program { before: vec![Step::Chunk], request, ..Program::default() },
        request: Script { late_end: true, ..Script::default() },
        after: Some(Neighbour::Replies),
        late_end: true,
        ..Case::default()
    });
}

/// The response has gone, all of it; then the request's body fails.
#[test]
fn what_fails_when_the_response_has_gone_is_not_taken_for_complete() {
    check(&Case {
        kind: Kind::CompiledIn,
        program: Program {
            request: Change::Trailers(Wait::Sleep),
            finish: Finish::Own(Own::Stream(Wait::Yield)),
            ..Program::default()
        },
        request: body(&[0]),
        response: body_and_trailers(&[0]),
        late_end: true,
        obedient: false,
        ..Case::default()
    });
}

/// The reply's headers are held, and its whole body is ready.
#[test]
fn a_reply_that_another_has_overtaken_is_not_sent_after_it() {
    use Event::{Client, LocalReply, Time};
    check(&Case {
        kind: Kind::CompiledIn,
        program: Program {
            request: Change::Full,
            gives_up: Some(Own::Trailers),
            ..Program::default()
        },
        request: Script { late_end: true, ..Script::default() },
        late_end: true,
        obedient: false,
        events: vec![Client, Time, Time, Client, LocalReply],
        ..Case::default()
    });
}

/// In a response hook, Envoy refuses bytes for a request buffer that it has not made.
#[test]
fn request_output_that_is_ready_in_a_response_hook_waits_for_its_end() {
    use Event::{Client, Time, Upstream};
    check(&Case {
        program: Program { request: Change::Stream(Wait::Sleep), ..Program::default() },
        request: body(&[3, 3]),
        response: body(&[3]),
        events: vec![Client, Client, Time, Upstream],
        ..Case::default()
    });
}

/// A later filter's buffer is full: the reply goes straight to the client, and ours would cut it
/// off.
#[test]
fn a_reply_that_does_not_come_by_is_not_answered_again() {
    check(&Case {
        program: Program { gives_up: Some(Own::Empty), ..Program::default() },
        response: Script { late_end: true, ..body(&[17]) },
        after: Some(Neighbour::Buffers),
        limit: 16,
        late_end: true,
        ..Case::default()
    });
}

/// Once the request has gone on, a response may come: a streamed reply (and trailers need one) would
/// meet it.
#[test]
fn a_reply_with_trailers_after_the_request_has_gone_is_an_error() {
    check(&Case {
        program: Program { gives_up: Some(Own::Trailers), ..Program::default() },
        ..Case::default()
    });
}

/// Envoy tells that there is room while it still sends what made the room.
#[test]
fn a_reply_that_may_go_on_does_so_later() {
    use Event::{Client, Hold};
    check(&Case {
        program: Program { early: Some(Finish::Own(Own::Echo)), ..Program::default() },
        request: Script { late_end: true, ..body(&[17]) },
        before: Some(Neighbour::Passes),
        limit: 16,
        events: vec![Hold(true, Direction::Response), Client, Client, Client],
        ..Case::default()
    });
}

/// Envoy has paused the client; raising the limit alone does not make it go on.
#[test]
fn buffering_more_than_envoy_holds_by_itself_unpauses_the_client() {
    let before = vec![Step::Wait(Wait::Sleep), Step::Buffer(20)];
    check(&Case {
        program: Program { before, ..Program::default() },
        request: Script { late_end: true, ..body(&[17]) },
        limit: 16,
        events: vec![Event::Client, Event::Client],
        ..Case::default()
    });
}

/// Appending output may end the stream: a later filter collects, and its buffer is full.
#[test]
fn nothing_is_asked_of_a_stream_that_ended_while_output_left() {
    use Event::{Client, LocalReply};
    check(&Case {
        program: Program {
            request: Change::Stream(Wait::Yield),
            response: Change::Pipe(Wait::No, Wait::Sleep),
            ..Program::default()
        },
        request: Script { late_end: true, ..body(&[0]) },
        after: Some(Neighbour::Buffers),
        limit: 16,
        obedient: false,
        events: vec![Client, Client, Client, LocalReply],
        ..Case::default()
    });
}

/// As before, and the filter answers the answer.
#[test]
fn a_request_does_not_go_on_after_a_reply_that_its_own_output_caused() {
    use Event::{Client, Time};
    check(&Case {
        program: Program {
            request: Change::Stream(Wait::Sleep),
            finish: Finish::Error,
            ..Program::default()
        },
        request: Script { late_end: true, ..body(&[0, 0, 0]) },
        after: Some(Neighbour::Buffers),
        limit: 16,
        late_end: true,
        obedient: false,
        events: vec![Client, Time, Client, Client],
        ..Case::default()
    });
}

/// Somebody else has answered, and the filter is gone.
#[test]
fn a_request_that_was_to_be_changed_does_not_go_on_unchanged() {
    use Event::{Client, ClientReset, Scheduled};
    check(&Case {
        program: Program {
            request: Change::Pipe(Wait::No, Wait::No),
            request_trailers: true,
            response: Change::PipeOne(Wait::No),
            ..Program::default()
        },
        request: body_and_trailers(&[]),
        response: body(&[16]),
        before: Some(Neighbour::Buffers),
        upstream: Upstream::AnswersAtOnce,
        limit: 16,
        late_end: true,
        obedient: false,
        events: vec![Client, Client, Event::Upstream, Event::Upstream, Scheduled, ClientReset],
        ..Case::default()
    });
}

/// The filter fails at the response while the request is still being changed.
#[test]
fn failing_open_does_not_let_a_half_changed_request_go_on() {
    use Event::Client;
    check(&Case {
        program: Program {
            request: Change::PipeOne(Wait::No),
            request_trailers: true,
            finish: Finish::Error,
            ..Program::default()
        },
        request: body_and_trailers(&[0, 1]),
        fail_open: true,
        obedient: false,
        events: vec![Client, Client, Event::Upstream],
        ..Case::default()
    });
}

/// One neighbour lets go a request without a body, the other holds the one that the filter adds.
#[test]
fn a_body_that_is_added_between_two_holding_neighbours_arrives() {
    check(&Case {
        program: Program { request: Change::Pipe(Wait::No, Wait::No), ..Program::default() },
        before: Some(Neighbour::Passes),
        after: Some(Neighbour::Passes),
        events: vec![
            Event::Hold(true, Direction::Request),
            Event::Hold(false, Direction::Request),
            Event::Client,
        ],
        ..Case::default()
    });
}

struct Sleeper;

impl Filter for Sleeper {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Sleeper)
    }
    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        req.map_body(|chunk| chunk.to_ascii_uppercase().into());
        next.run(req).await
    }
}

/// The buffer is shared: letting the headers go would send the bytes that an earlier filter still
/// holds.
#[test]
fn bytes_that_an_earlier_filter_holds_do_not_slip_by() {
    let chain = Options { before: Some(Neighbour::Passes), ..Options::default() };
    let host = TestHost::new::<Sleeper>("").in_chain(chain);
    let exchange = host.open(TestRequest::post("/").streaming());
    exchange.model().hold(true, Direction::Request);
    exchange.send("held ");
    exchange.advance(Duration::from_secs(2));
    exchange.model().release(true, Direction::Request);
    exchange.send_last("more");
    assert_eq!(exchange.upstream().unwrap().text(), "HELD MORE");
    exchange.respond(TestResponse::new(200));
    assert_eq!(exchange.finish().status(), 200);
}

/// As before, with trailers.
#[test]
fn trailers_that_an_earlier_filter_holds_do_not_slip_by() {
    let chain = Options { before: Some(Neighbour::Passes), ..Options::default() };
    let host = TestHost::new::<Sleeper>("").in_chain(chain);
    let exchange = host.open(TestRequest::post("/").streaming());
    exchange.send("data");
    exchange.model().hold(true, Direction::Request);
    exchange.send_trailers(&[("x-last", "1")]);
    exchange.advance(Duration::from_secs(2));
    exchange.model().release(true, Direction::Request);
    exchange.advance(Duration::ZERO);
    let upstream = exchange.upstream().unwrap();
    assert_eq!(upstream.text(), "DATA");
    assert_eq!(upstream.trailer_text("x-last"), Some("1"));
}

struct FailsAtTrailers;

impl Filter for FailsAtTrailers {
    type Config = ();
    type RouteConfig = ();
    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(FailsAtTrailers)
    }
    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let mut resp = next.run(req).await?;
        resp.map_trailers(|_| panic!("program: panics at the trailers"));
        Ok(resp)
    }
}

/// What was let go has not gone yet.
#[test]
fn a_trailer_hook_that_fails_ends_the_response() {
    for kind in [Kind::Stock, Kind::CompiledIn] {
        let host = TestHost::new::<FailsAtTrailers>("").on(kind);
        let exchange = host.open(TestRequest::get("/"));
        exchange.respond(TestResponse::new(200).body("body").trailer("x-last", "1"));
        assert!(exchange.finish().is_reset());
    }
}

/// They are refused when they are made, and again at the end of what they were to follow.
#[test]
fn trailers_without_a_place_fail_the_exchange_once() {
    check(&Case {
        program: Program {
            after: vec![Step::Chunk],
            response: Change::Trailers(Wait::No),
            ..Program::default()
        },
        upstream: Upstream::Refuses,
        late_end: true,
        ..Case::default()
    });
}

/// It does not know of the reset yet. (This was the model's fault.)
#[test]
fn a_streamed_reply_goes_on_until_its_stream_goes() {
    use Event::{Client, Hold, LocalReply, Scheduled};
    check(&Case {
        kind: Kind::CompiledIn,
        program: Program {
            early: Some(Finish::Own(Own::Stream(Wait::Yield))),
            ..Program::default()
        },
        before: Some(Neighbour::Passes),
        late_end: true,
        obedient: false,
        events: vec![Client, Scheduled, Hold(true, Direction::Response), Scheduled, LocalReply],
        ..Case::default()
    });
}
