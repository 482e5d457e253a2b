//! What every host compares: messages, and what the filter's counters say.

use std::collections::BTreeMap;

use attache_conformance::Flavour;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::content::difference;
use crate::scenario::{Expect, ExpectMessage, ExpectValue, Outcomes};

/// The script as the filter reads it. Its gates are this cell's own.
pub(crate) fn script(steps: &[Value], flavour: Flavour, cell: &str) -> String {
    script_with(steps, &[], &[], flavour, cell)
}

/// As [`script`], with steps for a reply made elsewhere, and questions for the end.
pub(crate) fn script_with(
    steps: &[Value],
    replies: &[Value],
    complete: &[Value],
    flavour: Flavour,
    cell: &str,
) -> String {
    fn name_gates(value: &mut Value, cell: &str) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(|value| name_gates(value, cell)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value {
                        Value::String(name) if key == "gate" => *name = format!("{name}-{cell}"),
                        value => name_gates(value, cell),
                    }
                }
            }
            _ => (),
        }
    }
    let flavour = match flavour {
        Flavour::AtOnce => "at_once",
        Flavour::Timer => "timer",
        Flavour::Thread => "thread",
    };
    let mut steps = Value::Array(steps.to_vec());
    name_gates(&mut steps, cell);
    let mut script = json!({"flavour": flavour, "steps": steps});
    if !replies.is_empty() {
        script["replies"] = json!(replies);
    }
    if !complete.is_empty() {
        script["complete"] = json!(complete);
    }
    script.to_string()
}

pub(crate) fn expect_that(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

pub(crate) fn no_difference(expected: &[u8], got: &[u8]) -> Result<(), String> {
    difference(expected, got).map_or(Ok(()), Err)
}

/// What is wrong with a request's line, if anything.
pub(crate) fn wrong_line(expected: &ExpectMessage, method: &str, path: &str) -> Option<String> {
    let wrong = |what: &str, got: &str, expected: &Option<String>| {
        expected
            .as_ref()
            .filter(|expected| *expected != got)
            .map(|expected| format!("{what} {got}, expected {expected}"))
    };
    wrong("method", method, &expected.method).or_else(|| wrong("path", path, &expected.path))
}

pub(crate) fn check_message(
    place: &str,
    expected: &ExpectMessage,
    headers: &HeaderMap,
    body: &[u8],
    trailers: Option<&HeaderMap>,
    line: Option<String>,
    head: bool,
) {
    let mut wrong: Vec<String> = line.into_iter().collect();
    wrong.extend(check_map("header", &expected.headers, headers));
    wrong.extend(check_map("trailer", &expected.trailers, trailers.unwrap_or(&HeaderMap::new())));
    if let Some(content) = &expected.body
        && let Some(how) = difference(&content.bytes(), body)
    {
        wrong.push(format!("the body: {how}"));
    }
    if let Some(length) = headers.get("content-length")
        && !head
        && length.as_bytes() != body.len().to_string().as_bytes()
    {
        wrong.push(format!("content-length {length:?} for a body of {} bytes", body.len()));
    }
    assert!(
        wrong.is_empty(),
        "{place}:\n{}\nheaders: {headers:?}\ntrailers: {trailers:?}",
        wrong.join("\n")
    );
}

fn check_map(what: &str, expected: &BTreeMap<String, ExpectValue>, map: &HeaderMap) -> Vec<String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    expected
        .iter()
        .filter_map(|(name, expected)| {
            let got: Vec<String> = map.get_all(name).iter().map(text).collect();
            let right = match expected {
                ExpectValue::One(value) => got == [value.as_str()],
                ExpectValue::All(values) => got == *values,
                ExpectValue::There(there) => *there != got.is_empty(),
                ExpectValue::Absent(()) => got.is_empty(),
            };
            (!right).then(|| format!("{what} {name}: expected {expected:?}, got {got:?}"))
        })
        .collect()
}

/// A stat. Ours are named by what follows Envoy's prefix for modules; compiled in, they have none.
fn value(stats: &BTreeMap<String, u64>, name: &str) -> u64 {
    let ours = stats.get(&format!("dynamicmodulescustom.{name}"));
    ours.or_else(|| stats.get(name)).copied().unwrap_or(0)
}

/// How much a stat has grown.
pub(crate) fn grown(
    before: &BTreeMap<String, u64>,
    now: &BTreeMap<String, u64>,
    name: &str,
) -> u64 {
    value(now, name).saturating_sub(value(before, name))
}

const OUTCOMES: [&str; 5] = ["responded", "replied", "failed", "panicked", "cancelled"];

pub(crate) fn wrong_stats(
    expect: &Expect,
    before: &BTreeMap<String, u64>,
    now: &BTreeMap<String, u64>,
    opened: u64,
) -> Vec<String> {
    let grown = |name: &str| grown(before, now, name);
    let mut wrong = Vec::new();
    let started = grown("conformance.started");
    let mut must = |what: &str, got: u64, expected: u64| {
        if got != expected {
            wrong.push(format!("{what}: {got}, expected {expected}"));
        }
    };
    must("exchanges still alive", value(now, "conformance.live"), 0);
    must("futures dropped, of those started", grown("conformance.dropped"), started);
    let ended = |name: &str| grown(&format!("conformance.{name}"));
    must("exchanges completed", OUTCOMES.iter().map(|name| ended(name)).sum(), started);
    for name in OUTCOMES {
        let expected = match &expect.outcome {
            None => continue,
            Some(Outcomes::One(all)) => {
                u64::from(all == name) * started.saturating_sub(opened).max(1)
            }
            Some(Outcomes::Each(list)) => {
                list.iter().filter(|outcome| *outcome == name).count() as u64
            }
        };
        let opened = if name == "replied" { opened } else { 0 };
        must(&format!("exchanges that ended as `{name}`"), ended(name), expected + opened);
    }
    for name in ["attache.conformance.panics", "attache.conformance.errors"] {
        must(name, grown(name), expect.stats.get(name).copied().unwrap_or(0));
    }
    for (name, expected) in &expect.stats {
        must(name, grown(name), *expected);
    }
    wrong
}
