//! Random filters in random weather: no byte is lost, nothing is stuck, everything ends once.
//!
//! The cases are the same in every run. `ATTACHE_SEED=random` (or a number) asks for others, and
//! `ATTACHE_CASES` for more or fewer; a failure prints the smallest case that shows it.

use crate::support::*;
use attache_core::host::Direction;
use attache_test::model::{Kind, Neighbour, Upstream};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

const CASES: u32 = 2_000;
const SEED: u64 = 20_260_723;

fn waits() -> impl Strategy<Value = Wait> {
    let all = [Wait::No, Wait::Yield, Wait::Sleep, Wait::Spawn, Wait::Leave, Wait::WakeAll];
    (0..all.len()).prop_map(move |n| all[n])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => waits().prop_map(Step::Wait),
        3 => Just(Step::Chunk),
        2 => Just(Step::Buffer(HUGE)),
        1 => Just(Step::Buffer(20)),
        2 => Just(Step::Collect(HUGE)),
        1 => Just(Step::Collect(20)),
        1 => Just(Step::Header),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => Just(Change::Keep),
        3 => Just(Change::Map),
        4 => (waits(), waits()).prop_map(|(each, end)| Change::Pipe(each, end)),
        1 => waits().prop_map(Change::PipeOne),
        1 => waits().prop_map(Change::Trailers),
        2 => Just(Change::Full),
        1 => Just(Change::Empty),
        2 => waits().prop_map(Change::Stream),
    ]
}

fn own() -> impl Strategy<Value = Own> {
    prop_oneof![
        Just(Own::Empty),
        Just(Own::Full),
        waits().prop_map(Own::Stream),
        Just(Own::Echo),
        Just(Own::Trailers),
    ]
}

fn early() -> impl Strategy<Value = Option<Finish>> {
    prop_oneof![
        5 => Just(None),
        2 => own().prop_map(|o| Some(Finish::Own(o))),
        1 => Just(Some(Finish::Error)),
        1 => Just(Some(Finish::Panic)),
        1 => Just(Some(Finish::SpawnedPanic)),
    ]
}

fn finish() -> impl Strategy<Value = Finish> {
    prop_oneof![
        6 => Just(Finish::Return),
        2 => own().prop_map(Finish::Own),
        1 => Just(Finish::NewHead),
        1 => Just(Finish::Error),
        1 => Just(Finish::Panic),
        1 => Just(Finish::SpawnedPanic),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let before = proptest::collection::vec(step(), 0..4);
    let after = proptest::collection::vec(step(), 0..4);
    let gives_up = prop_oneof![6 => Just(None), 1 => own().prop_map(Some)];
    let request = (before, early(), change(), any::<bool>(), gives_up);
    let response = (after, change(), any::<bool>(), finish());
    (request, response, waits(), any::<bool>()).prop_map(|(req, resp, reply, keeps)| Program {
        before: req.0,
        early: req.1,
        request: req.2,
        request_trailers: req.3,
        gives_up: req.4,
        after: resp.0,
        response: resp.1,
        response_trailers: resp.2,
        finish: resp.3,
        reply,
        keeps,
    })
}

fn script() -> impl Strategy<Value = Script> {
    let chunks = proptest::collection::vec(0..40usize, 0..5);
    (chunks, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(chunks, trailers, late_end, length)| Script { chunks, trailers, late_end, length },
    )
}

fn direction() -> impl Strategy<Value = Direction> {
    any::<bool>().prop_map(|r| if r { Direction::Request } else { Direction::Response })
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Client),
        12 => Just(Event::Upstream),
        8 => Just(Event::Scheduled),
        4 => Just(Event::Tasks),
        6 => Just(Event::Time),
        2 => Just(Event::Watermark),
        2 => Just(Event::UpstreamWatermark),
        3 => (any::<bool>(), direction()).prop_map(|(b, d)| Event::Hold(b, d)),
        3 => (any::<bool>(), direction()).prop_map(|(b, d)| Event::Release(b, d)),
        1 => Just(Event::Flush),
    ]
}

pub(crate) fn disturbance() -> impl Strategy<Value = Event> {
    prop_oneof![Just(Event::ClientReset), Just(Event::UpstreamReset), Just(Event::LocalReply)]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let calm = || proptest::collection::vec(event(), 0..30);
    prop_oneof![
        3 => calm(),
        1 => (calm(), disturbance(), calm()).prop_map(|(mut first, event, rest)| {
            first.push(event);
            first.extend(rest);
            first
        }),
    ]
}

fn neighbour() -> impl Strategy<Value = Option<Neighbour>> {
    prop_oneof![
        5 => Just(None),
        4 => Just(Some(Neighbour::Passes)),
        2 => Just(Some(Neighbour::Buffers)),
        1 => Just(Some(Neighbour::Replies)),
    ]
}

pub(crate) fn case(kind: Kind) -> impl Strategy<Value = Case> {
    let upstream = prop_oneof![
        8 => Just(Upstream::Waits),
        1 => Just(Upstream::Refuses),
        1 => Just(Upstream::AnswersAtOnce),
    ];
    let chain = (neighbour(), neighbour(), upstream);
    let limit = prop_oneof![Just(1 << 20), Just(16u64), Just(50)];
    let rarely = || proptest::bool::weighted(0.1);
    let flags = (rarely(), limit, any::<bool>(), any::<bool>(), rarely());
    (program(), script(), script(), chain, flags, events()).prop_map(
        move |(program, request, response, chain, flags, events)| Case {
            kind,
            program,
            head: flags.0,
            request,
            response,
            before: chain.0,
            after: chain.1,
            upstream: chain.2,
            limit: flags.1,
            late_end: flags.2,
            obedient: flags.3,
            fail_open: flags.4,
            events,
        },
    )
}

pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn every_promise_holds_in_random_weather() {
    weather(Kind::Stock);
}

#[test]
fn every_promise_holds_in_random_weather_when_compiled_in() {
    weather(Kind::CompiledIn);
}

fn weather(kind: Kind) {
    hold(case(kind), CASES, |case| run(&case).map(drop));
}

/// Holds a promise against random cases.
pub(crate) fn hold<S: Strategy>(
    strategy: S,
    cases: u32,
    promise: impl Fn(S::Value) -> Result<(), String>,
) {
    let random = std::env::var("ATTACHE_SEED").is_ok_and(|seed| seed == "random");
    let config = Config {
        cases: number("ATTACHE_CASES", cases.into()) as u32,
        rng_seed: if random {
            RngSeed::Random
        } else {
            RngSeed::Fixed(number("ATTACHE_SEED", SEED))
        },
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&strategy, |case| promise(case).map_err(TestCaseError::fail));
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
