//! Makes spans and events of `tracing` in every place, for tests of what Envoy's tracer gets of them.

use std::time::Duration;

use attache::prelude::*;
use tracing::{Instrument, field, info_span};

pub(crate) struct Traced;

fn text(value: &attache::http::HeaderValue) -> &str {
    value.to_str().unwrap_or("no text")
}

impl Filter for Traced {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        let _span = info_span!("in new").entered();
        tracing::info!("said in new");
        Ok(Traced)
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let trace = req.trace();
        trace.set_tag("tenant", "acme");
        tracing::warn!(number = 7, "said outside of spans");
        let outer = info_span!("look up", user = "ann", tries = field::Empty, outcome = ?Some(1));
        let inner = async {
            tracing::info!("said in a query");
            tokio::time::sleep(Duration::from_millis(1)).await;
            // After a wait, on a post of its own.
            tracing::info!(row = "äöü 漢字", "said after a wait");
            let headers = trace.headers();
            let texts = headers.iter().map(|(name, value)| format!("{name}={}", text(value)));
            (trace.traceparent(), texts.collect::<Vec<_>>().join(","))
        };
        let looked_up = async {
            let inner = inner.instrument(info_span!("query")).await;
            tracing::Span::current().record("tries", 3);
            (inner, trace.span_id())
        };
        let ((query, call), look_up) = looked_up.instrument(outer).await;

        // What other threads do is theirs.
        let elsewhere = async {
            let _span = info_span!("elsewhere").entered();
            tracing::info!("said elsewhere");
        };
        attache::spawn(elsewhere).await?;
        // A span that is closed elsewhere, and after the exchange.
        let left = info_span!("left open");
        attache::spawn(std::future::pending::<()>().instrument(left)).detach();
        // Too fine for a log at `info`.
        tracing::debug_span!("fine").in_scope(|| tracing::debug!("said finely"));

        let mut resp = next.run(req).await?;
        let headers = resp.headers_mut();
        for (name, value) in [
            ("x-on", Some(trace.is_on().to_string())),
            ("x-trace-id", trace.trace_id()),
            ("x-span-id", trace.span_id()),
            ("x-look-up", look_up),
            ("x-query", query),
            ("x-call", Some(call).filter(|call| !call.is_empty())),
            ("x-later", trace.traceparent()),
        ] {
            headers.set(name, value.unwrap_or_else(|| "none".to_owned()));
        }
        Ok(resp)
    }
}
