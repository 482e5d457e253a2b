//! Questions to a stream, as data: the name of one, and its arguments. The answer is a text: a value,
//! `none`, `ok`, or the kind of an error and what it says.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attache::prelude::*;
use attache::{
    Attribute, AttributeValue, ErrorKind, HostHealth, LifeSpan, Metadata, MetadataValue,
    SecretError, Sharing, TimePoint,
};
use serde_json::Value;

use crate::Conformance;
use crate::script::Ask;

/// What the filters of one exchange share.
struct Shared(String);

/// Asks; an error is an answer: its kind, and with `["why", question]` also what it says.
pub(crate) fn ask(filter: &Conformance, stream: &Stream, question: &Ask) -> String {
    let (question, why) = match &question[..] {
        [Value::String(word), Value::Array(question)] if word == "why" => (question, true),
        _ => (question, false),
    };
    let answer = answer(filter, stream, question).unwrap_or_else(|error| match error.kind() {
        ErrorKind::Filter => format!("bad question {question:?}: {error}"),
        kind if why => format!("{kind:?}: {error}"),
        kind => format!("{kind:?}"),
    });
    answer.replace(['\r', '\n'], " ")
}

fn found<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}

fn millis(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn metadata<'a>(stream: &'a Stream, source: &str) -> Result<Metadata<'a>> {
    Ok(match source {
        "dynamic" => stream.metadata(),
        "route" => stream.route_metadata(),
        "virtual_host" => stream.virtual_host_metadata(),
        "cluster" => stream.cluster_metadata(),
        "host" => stream.upstream_host_metadata(),
        "locality" => stream.upstream_locality_metadata(),
        other => return Err(Error::new(format!("there is no source {other}"))),
    })
}

fn life_span(name: &str) -> LifeSpan {
    match name {
        "request" => LifeSpan::Request,
        "connection" => LifeSpan::Connection,
        _ => LifeSpan::FilterChain,
    }
}

fn listed(names: Vec<String>) -> String {
    if names.is_empty() { "none".into() } else { names.join(",") }
}

fn sorted(mut names: Vec<String>) -> String {
    names.sort();
    names.join(",")
}

/// What has happened at some time, by name; and `in order`, or each pair of which the second cannot have
/// come before the first, but did.
fn times(stream: &Stream) -> Result<String> {
    use TimePoint::{
        FirstDownstreamTx, FirstUpstreamRx, FirstUpstreamTx, LastDownstreamRx, LastDownstreamTx,
        LastUpstreamRx, LastUpstreamTx,
    };
    let all = [
        LastDownstreamRx,
        FirstUpstreamTx,
        LastUpstreamTx,
        FirstUpstreamRx,
        LastUpstreamRx,
        FirstDownstreamTx,
        LastDownstreamTx,
    ];
    let mut known = Vec::new();
    for point in all {
        known.extend(stream.info().timing(point)?.map(|time| (point, time)));
    }
    let mut wrong = Vec::new();
    let time = |wanted| known.iter().find(|(point, _)| *point == wanted).map(|(_, time)| *time);
    for (first, second) in [
        (LastDownstreamRx, LastUpstreamTx),
        (FirstUpstreamTx, LastUpstreamTx),
        (FirstUpstreamTx, FirstUpstreamRx),
        (FirstUpstreamRx, LastUpstreamRx),
        (FirstUpstreamRx, FirstDownstreamTx),
        (FirstDownstreamTx, LastDownstreamTx),
    ] {
        if time(first).zip(time(second)).is_some_and(|(first, second)| second < first) {
            wrong.push(format!("{second:?} before {first:?}"));
        }
    }
    let whole = stream.info().duration()?;
    let last = known.iter().map(|(_, time)| *time).max();
    if whole.zip(last).is_some_and(|(whole, last)| whole < last) {
        wrong.push("longer than the whole".into());
    }
    let mut names: Vec<_> = known.iter().map(|(point, _)| format!("{point:?}")).collect();
    names.push(if wrong.is_empty() { "in order".into() } else { wrong.join(", ") });
    Ok(names.join(" "))
}

/// What the filter's secret is.
fn secret(filter: &Conformance) -> Result<String> {
    let secret = filter.secret.as_ref().context("the filter has no secret")?;
    let value = match secret {
        Ok(secret) => secret.try_get(),
        Err(error) => Err(error.clone()),
    };
    Ok(match value {
        Ok(value) => String::from_utf8_lossy(&value).into_owned(),
        Err(SecretError::Unsupported { .. }) => "Unsupported".into(),
        Err(error) => error.to_string(),
    })
}

fn answer(filter: &Conformance, stream: &Stream, question: &Ask) -> Result<String> {
    let text = |index: usize| {
        let text = question.get(index).and_then(Value::as_str);
        text.context(format!("argument {index} should be a text"))
    };
    let done = |result: Result<()>| result.map(|()| "ok".to_owned());
    let info = stream.info();
    match text(0)? {
        "attribute" => Ok(found(stream.attribute(text(1)?)?)),
        // Whether it is a number of at least that.
        "at_least" => {
            let least = question.get(2).and_then(Value::as_u64).context("a number")?;
            Ok(found(
                stream.attribute_value(Attribute::from_name(text(1)?)?)?.map(
                    |value| matches!(value, AttributeValue::Number(number) if number >= least),
                ),
            ))
        }
        // Every attribute that there is: a count for each kind of answer.
        "all" => {
            let (mut values, mut none, mut unsupported) = (0, 0, 0);
            for attribute in Attribute::ALL {
                match stream.attribute_value(*attribute) {
                    Ok(Some(_)) => values += 1,
                    Ok(None) => none += 1,
                    Err(error) if error.kind() == ErrorKind::Unsupported => unsupported += 1,
                    Err(error) => return Err(error),
                }
            }
            Ok(format!("{values} values, {none} none, {unsupported} unsupported"))
        }
        "secret" => secret(filter),
        // A flag as each kind, with defaults.
        "runtime" => {
            let (runtime, key) = (stream.runtime()?, text(1)?);
            let (on, flag) = (runtime.feature_enabled(key, 0), runtime.boolean(key, true));
            Ok(format!("{on} {flag} {} {}", runtime.integer(key, 1), runtime.double(key, 0.5)))
        }
        "runtime_text" => Ok(match stream.runtime()?.string(text(1)?) {
            Ok(value) => found(value),
            Err(_) => "Unsupported".into(),
        }),
        "virtual_cluster" => Ok(found(info.virtual_cluster_name()?)),
        "virtual_host" => Ok(found(info.virtual_host_name()?)),
        "filter_chain" => Ok(found(info.filter_chain_name()?)),
        "route" => Ok(found(info.route_name()?)),
        "route_config" => {
            let config = stream.route_config::<Conformance>();
            Ok(found(config.as_ref().map(|levels| &levels.level)))
        }
        "cluster" => Ok(found(info.cluster_name()?)),
        "cluster_hosts" => Ok(found(info.cluster_hosts(HostHealth::Healthy)?)),
        "protocol" => Ok(found(info.protocol()?)),
        "code" => Ok(found(info.response_code()?.map(|code| code.as_u16()))),
        "details" => Ok(found(info.response_code_details()?)),
        "flags" => Ok(info.response_flags()?.to_string()),
        "attempts" => Ok(found(info.attempt_count()?)),
        "worker" => Ok(found(info.worker_index()?)),
        "request_id" => Ok(found(info.request_id()?)),
        "bytes_sent" => Ok(found(info.bytes_sent()?.map(|count| format!("{count} bytes")))),
        "bytes_received" => Ok(found(info.bytes_received()?.map(|count| format!("{count} bytes")))),
        // Whether the exchange has taken at least this many milliseconds.
        "lasted" => {
            let millis = question.get(1).and_then(Value::as_u64).context("milliseconds")?;
            Ok(found(info.duration()?.map(|took| took >= Duration::from_millis(millis))))
        }
        "times" => times(stream),
        "remote" => Ok(found(info.downstream_remote_address()?)),
        "direct_remote" => Ok(found(info.downstream_direct_remote_address()?)),
        "local" => Ok(found(info.downstream_local_address()?)),
        "upstream" => Ok(found(info.upstream_address()?)),
        "upstream_remote" => Ok(found(info.upstream_remote_address()?)),
        "upstream_local" => Ok(found(info.upstream_local_address()?)),
        "upstream_connection" => Ok(found(info.upstream_connection_id()?)),
        "tls" | "upstream_tls" => {
            let tls = match text(0)? {
                "tls" => info.downstream_tls(),
                _ => info.upstream_tls(),
            };
            Ok(match text(1)? {
                "version" => found(tls.version()?),
                "cipher" => found(tls.cipher()?),
                "sni" => found(tls.server_name()?),
                "presented" => found(tls.peer_certificate_presented()?),
                "validated" => found(tls.peer_certificate_validated()?),
                "subject" => found(tls.subject_peer_certificate()?),
                "digest" => found(tls.sha256_peer_certificate_digest()?),
                "pem" => found(tls.pem_peer_certificate()?),
                "issuer" => found(tls.issuer_peer_certificate()?),
                "session" => found(tls.session_id()?.map(|id| id.len())),
                "alpn" => found(tls.alpn()?),
                "valid_from" => found(tls.valid_from_peer_certificate()?.map(millis)),
                "expires" => found(tls.expiration_peer_certificate()?.map(millis)),
                "serial" => found(tls.serial_number_peer_certificate()?),
                "dns_sans" => listed(tls.dns_sans_peer_certificate()?),
                "uri_sans" => listed(tls.uri_sans_peer_certificate()?),
                "local_subject" => found(tls.subject_local_certificate()?),
                "local_dns_sans" => listed(tls.dns_sans_local_certificate()?),
                other => return Err(Error::new(format!("TLS has no {other}"))),
            })
        }
        "metadata" => {
            let (from, namespace, key) = (metadata(stream, text(1)?)?, text(2)?, text(3)?);
            Ok(match question.get(4).and_then(Value::as_str) {
                Some("text") => found(from.get::<String>(namespace, key)?),
                Some("number") => found(from.get::<f64>(namespace, key)?),
                Some("flag") => found(from.get::<bool>(namespace, key)?),
                Some("texts") => {
                    found(from.get::<Vec<String>>(namespace, key)?.map(MetadataValue::from))
                }
                _ => found(from.get::<MetadataValue>(namespace, key)?),
            })
        }
        "namespaces" => Ok(sorted(metadata(stream, text(1)?)?.namespaces()?)),
        "keys" => Ok(sorted(metadata(stream, text(1)?)?.keys(text(2)?)?)),
        what @ ("set_metadata" | "append_metadata" | "set_route_metadata") => {
            let value = question.get(3).context("a value is missing")?;
            let value: MetadataValue = serde_json::from_value(value.clone())?;
            let (namespace, key) = (text(1)?, text(2)?);
            done(match what {
                "set_metadata" => stream.metadata().set(namespace, key, value),
                "append_metadata" => stream.metadata().append(namespace, key, value),
                _ => stream.route_metadata().set(namespace, key, value),
            })
        }
        "state" => {
            let value = stream.filter_state().get(text(1)?)?;
            Ok(found(value.map(|value| String::from_utf8_lossy(&value).into_owned())))
        }
        "typed_state" => {
            let value = stream.filter_state().get_typed(text(1)?)?;
            Ok(found(value.map(|value| String::from_utf8_lossy(&value).into_owned())))
        }
        "set_state" => done(stream.filter_state().set(text(1)?, text(2)?)),
        "set_typed_state" => done(stream.filter_state().set_typed(text(1)?, text(2)?)),
        "set_state_for" => {
            let sharing = match text(4)? {
                "upstream" => Sharing::UpstreamConnection,
                "upstream_once" => Sharing::UpstreamConnectionOnce,
                _ => Sharing::None,
            };
            let state = stream.filter_state();
            done(state.set_for(text(1)?, text(2)?, life_span(text(3)?), sharing))
        }
        "object" => {
            Ok(found(stream.filter_state().object::<String>(text(1)?)?.map(|s| (*s).clone())))
        }
        "number_object" => Ok(found(stream.filter_state().object::<u64>(text(1)?)?)),
        "set_object" => {
            let object = Arc::new(text(2)?.to_owned());
            done(stream.filter_state().set_object(text(1)?, object, life_span(text(3)?)))
        }
        "share" => {
            let before = stream.extensions().insert(Shared(text(1)?.to_owned()))?;
            Ok(found(before.map(|shared| shared.0.clone())))
        }
        "shared" => Ok(found(stream.extensions().get::<Shared>()?.map(|s| s.0.clone()))),
        "take_shared" => Ok(found(stream.extensions().remove::<Shared>()?.map(|s| s.0.clone()))),
        "clear_route" => done(stream.clear_route_cache()),
        "refresh_route" => done(stream.refresh_route()),
        "refresh_cluster" => done(stream.refresh_route_cluster()),
        "override_host" => {
            let strict = question.get(2).and_then(Value::as_bool).unwrap_or(false);
            done(stream.override_upstream_host(text(1)?, strict))
        }
        "flag" => done(stream.add_custom_flag(text(1)?)),
        "limit" => Ok(stream.buffer_limit()?.to_string()),
        "set_limit" => {
            let bytes = question.get(1).and_then(Value::as_u64).context("a number of bytes")?;
            done(stream.set_buffer_limit(bytes))
        }
        other => Err(Error::new(format!("there is no question {other}"))),
    }
}
