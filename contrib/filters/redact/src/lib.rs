//! Replaces secrets in bodies as they stream through: a filter that rewrites a body of any size and
//! never holds more of it than a secret is long.

#![forbid(unsafe_code)]

mod redactor;

use std::sync::Arc;

use attache::{Counter, prelude::*};
use serde::Deserialize;

pub use redactor::{Redactor, Secrets};

/// Replaces every secret of its [`Config`] in the bodies of requests, responses or both.
pub struct Redact {
    secrets: Arc<Secrets>,
    requests: bool,
    responses: bool,
    content_types: Vec<String>,
    encoded: Encoded,
    replaced: Counter,
}

/// The config; the README has a table of it.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
pub struct Config {
    /// The secrets, literally.
    pub patterns: Vec<String>,
    /// What is put in their place.
    #[serde(default = "default_replacement")]
    pub replacement: String,
    /// Which bodies are looked at.
    #[serde(default = "default_directions")]
    pub directions: Vec<Direction>,
    /// Which content types are looked at: `type/subtype`, `type/*`, or `*/*` for all, and also for
    /// bodies that do not say what they are.
    #[serde(default = "default_content_types")]
    pub content_types: Vec<String>,
    /// What becomes of bodies that are compressed, in which no secret can be seen.
    #[serde(default)]
    pub encoded: Encoded,
}

/// Which bodies.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Those of requests.
    Request,
    /// Those of responses.
    Response,
}

/// What becomes of a body with a `content-encoding`.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(rename_all = "snake_case")]
pub enum Encoded {
    /// It is refused: a request with 415, a response with 502.
    #[default]
    Refuse,
    /// It goes on as it is.
    Pass,
}

fn default_replacement() -> String {
    "[redacted]".to_owned()
}

fn default_directions() -> Vec<Direction> {
    vec![Direction::Request, Direction::Response]
}

fn default_content_types() -> Vec<String> {
    vec!["text/*".to_owned(), "application/json".to_owned()]
}

/// Digests of the body as it was: they do not fit one that was changed.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

impl Filter for Redact {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let Config { patterns, replacement, directions, content_types, encoded } = config;
        if patterns.is_empty() {
            return Err(ConfigError::field("patterns", "name at least one secret"));
        }
        if let Some(index) = patterns.iter().position(String::is_empty) {
            return Err(ConfigError::field(format!("patterns[{index}]"), "must not be empty"));
        }
        let secrets = Secrets::new(&patterns, &replacement)
            .map_err(|error| ConfigError::field("patterns", error))?;
        if secrets.is_in(replacement.as_bytes()) {
            return Err(ConfigError::field("replacement", "must not itself contain a secret"));
        }
        for (index, kind) in content_types.iter().enumerate() {
            if kind.split('/').count() != 2 || kind.split('/').any(str::is_empty) {
                let why = format!("`{kind}` is neither `type/subtype`, `type/*` nor `*/*`");
                return Err(ConfigError::field(format!("content_types[{index}]"), why));
            }
        }
        let name = format!("{}.replaced", setup.filter_name());
        Ok(Redact {
            secrets: Arc::new(secrets),
            requests: directions.contains(&Direction::Request),
            responses: directions.contains(&Direction::Response),
            content_types: content_types.iter().map(|kind| kind.to_ascii_lowercase()).collect(),
            encoded,
            replaced: setup.counter_with(&name, &["direction"])?,
        })
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        if self.requests && self.wants(req.headers()) && !req.body().is_end_stream() {
            if is_encoded(req.headers()) {
                if self.encoded == Encoded::Refuse {
                    return Ok(Response::text(
                        StatusCode::UNSUPPORTED_MEDIA_TYPE,
                        "Send the body without a content-encoding.\n",
                    )
                    .with_header("accept-encoding", "identity"));
                }
            } else {
                forget_digests(req.headers_mut());
                let redactor = self.redactor("request");
                req.pipe_body(|input, output| redactor.run(input, output));
            }
        }
        if self.responses {
            // A compressed answer could not be read, and of a part of one a secret may have been
            // cut in two.
            req.headers_mut().set("accept-encoding", "identity");
            req.headers_mut().remove("range");
            req.headers_mut().remove("if-range");
        }
        let mut resp = next.run(req).await?;
        if self.responses && self.wants(resp.headers()) && !resp.body().is_end_stream() {
            if is_encoded(resp.headers()) {
                if self.encoded == Encoded::Refuse {
                    return Err(Error::status(
                        StatusCode::BAD_GATEWAY,
                        "the upstream encoded its response although it was asked not to",
                    ));
                }
            } else {
                forget_digests(resp.headers_mut());
                let redactor = self.redactor("response");
                resp.pipe_body(|input, output| redactor.run(input, output));
            }
        }
        Ok(resp)
    }
}

impl Redact {
    /// Whether bodies with these headers are looked at.
    fn wants(&self, headers: &Headers) -> bool {
        headers.with("content-type", |value| {
            let text = value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
            let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            self.content_types.iter().any(|wanted| match wanted.split_once('/') {
                Some(("*", "*")) => true,
                Some((family, "*")) => kind.split('/').next() == Some(family),
                _ => kind == *wanted,
            })
        })
    }

    fn redactor(&self, direction: &'static str) -> Redaction {
        Redaction {
            redactor: Redactor::new(self.secrets.clone()),
            replaced: self.replaced.clone(),
            direction,
        }
    }
}

/// One body on its way through.
struct Redaction {
    redactor: Redactor,
    replaced: Counter,
    direction: &'static str,
}

impl Redaction {
    async fn run(mut self, mut input: Body, mut output: BodyWriter) -> Result<()> {
        while let Some(chunk) = input.chunk().await? {
            output.send(self.redactor.push(chunk)).await?;
        }
        output.send(self.redactor.finish()).await
    }
}

impl Drop for Redaction {
    /// Counts, also what was replaced before an exchange broke off.
    fn drop(&mut self) {
        if self.redactor.replaced() > 0 {
            self.replaced.add_with(&[self.direction], self.redactor.replaced());
        }
    }
}

fn is_encoded(headers: &Headers) -> bool {
    let codings = headers.get_all("content-encoding");
    codings.iter().any(|coding| {
        let coding = coding.as_bytes().trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}

fn forget_digests(headers: &mut Headers) {
    for name in DIGESTS {
        headers.remove(name);
    }
}

attache::filters! { "redact" => Redact }
