//! Every order of a few events, for the behaviours that filters usually have.
//!
//! A sequence is extended only while its last event changed something, so the tree stays small.
//! `ATTACHE_DEPTH` says how many events are put in every order; what is left comes after them, in
//! the usual one.

use crate::random::number;
use crate::support::*;
use attache_test::model::Kind;

const DEPTH: u64 = 5;

const EVENTS: [Event; 7] = [
    Event::Client,
    Event::Upstream,
    Event::Scheduled,
    Event::Time,
    Event::ClientReset,
    Event::UpstreamReset,
    Event::LocalReply,
];

fn disturbs(event: Event) -> bool {
    matches!(event, Event::ClientReset | Event::UpstreamReset | Event::LocalReply)
}

fn programs() -> Vec<Program> {
    let plain = Program::default;
    let early = |finish| Program { early: Some(finish), ..plain() };
    let request = |request| Program { request, request_trailers: true, ..plain() };
    let response = |response| Program { response, response_trailers: true, ..plain() };
    let finish = |finish| Program { after: vec![Step::Wait(Wait::Yield)], finish, ..plain() };
    vec![
        Program { before: vec![Step::Wait(Wait::Spawn)], ..plain() },
        Program { before: vec![Step::Wait(Wait::Sleep), Step::Header], ..plain() },
        Program { before: vec![Step::Chunk], after: vec![Step::Chunk], ..plain() },
        Program { before: vec![Step::Buffer(HUGE)], after: vec![Step::Buffer(HUGE)], ..plain() },
        Program { before: vec![Step::Collect(HUGE)], request: Change::Full, ..plain() },
        Program { before: vec![Step::Collect(4)], ..plain() },
        Program { after: vec![Step::Collect(HUGE)], response: Change::Full, ..plain() },
        request(Change::Map),
        request(Change::Pipe(Wait::Yield, Wait::Sleep)),
        request(Change::Stream(Wait::Sleep)),
        request(Change::PipeOne(Wait::Yield)),
        response(Change::Map),
        request(Change::Trailers(Wait::No)),
        response(Change::Pipe(Wait::Yield, Wait::Sleep)),
        response(Change::Trailers(Wait::Yield)),
        response(Change::Stream(Wait::Sleep)),
        response(Change::Empty),
        early(Finish::Own(Own::Full)),
        early(Finish::Own(Own::Echo)),
        early(Finish::Own(Own::Stream(Wait::Sleep))),
        early(Finish::Error),
        finish(Finish::Own(Own::Full)),
        finish(Finish::NewHead),
        finish(Finish::Panic),
        Program { gives_up: Some(Own::Full), ..plain() },
        Program { before: vec![Step::Wait(Wait::Sleep)], reply: Wait::Sleep, ..plain() },
        Program { before: vec![Step::Wait(Wait::Sleep)], reply: Wait::Yield, ..plain() },
    ]
}

fn explore(case: &mut Case, depth: u64, runs: &mut u32) {
    *runs += 1;
    match run(case) {
        Err(broken) => panic!("{broken}\n{case:?}"),
        Ok(changed) if !changed || depth == 0 => return,
        Ok(_) => (),
    }
    for event in EVENTS {
        let last = case.events.last().copied();
        let again = event == Event::Time && last == Some(event);
        if again || (disturbs(event) && case.events.iter().any(|e| disturbs(*e))) {
            continue;
        }
        case.events.push(event);
        explore(case, depth - 1, runs);
        case.events.pop();
    }
}

fn all_orders(kind: Kind, trailers: bool, late_end: bool) {
    let depth = number("ATTACHE_DEPTH", DEPTH);
    let script = Script { chunks: vec![3, 3], trailers, late_end: !trailers, length: false };
    let mut runs = 0;
    for program in programs() {
        let (request, response) = (script.clone(), script.clone());
        let mut case = Case { kind, program, request, response, late_end, ..Case::default() };
        explore(&mut case, depth, &mut runs);
    }
    println!("{runs} sequences");
}

#[test]
fn every_order_of_messages_that_end_with_data() {
    all_orders(Kind::Stock, false, false);
}

#[test]
fn every_order_of_messages_that_end_with_trailers() {
    all_orders(Kind::Stock, true, true);
}

#[test]
fn every_order_of_messages_that_end_with_data_when_compiled_in() {
    all_orders(Kind::CompiledIn, false, false);
}

#[test]
fn every_order_of_messages_that_end_with_trailers_when_compiled_in() {
    all_orders(Kind::CompiledIn, true, true);
}
