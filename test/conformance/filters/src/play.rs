//! Does what a script says.

use std::future::{Future, pending};
use std::task::Poll;
use std::time::Duration;

use attache::ResetReason;
use attache::bytes::BytesMut;
use attache::prelude::*;
use attache::{Caller, Callout, CalloutError};
use futures_util::stream;

use crate::ask::ask;
use crate::script::{Call, Edit, Flavour, Mapping, PipeStep, Reply, Script, Step};
use crate::{Conformance, Stats, gate};

/// What the log says of an error, and the client must not see.
const SECRET: &str = "secret detail 4711";

/// The message that the steps are about.
enum At {
    Request(Request, Next),
    Response(Response),
}

macro_rules! either {
    ($at:expr, $message:ident => $do:expr) => {
        match $at {
            At::Request($message, _) => $do,
            At::Response($message) => $do,
        }
    };
}

/// Plays the steps for a request.
pub(crate) async fn play(
    filter: &Conformance,
    script: Script,
    req: Request,
    next: Next,
) -> Result<Response> {
    play_steps(filter, script.flavour, script.steps, At::Request(req, next)).await
}

/// Plays the steps for a reply that was made elsewhere.
pub(crate) async fn play_reply(
    filter: &Conformance,
    script: Script,
    reply: Response,
) -> Result<Response> {
    play_steps(filter, script.flavour, script.replies, At::Response(reply)).await
}

async fn play_steps(
    filter: &Conformance,
    flavour: Flavour,
    steps: Vec<Step>,
    mut at: At,
) -> Result<Response> {
    let stats = &filter.stats;
    let stream = either!(&at, m => m.stream());
    let mut carried: Vec<(String, HeaderValue)> = Vec::new();
    // Taken before the request goes on, for calls after it, too. A reply made elsewhere has none.
    let clusters = match &at {
        At::Request(req, _) => Some((req.cluster("service"), req.cluster("nobody"))),
        At::Response(_) => None,
    };
    let made = |call: &Call| {
        let (service, nobody) = clusters.as_ref().context("only a request has clusters")?;
        let cluster = if call.unknown { nobody } else { service };
        Ok::<_, Error>(made(cluster.get(call.path.clone()), call))
    };
    let mut saw: Vec<String> = Vec::new();
    for step in steps {
        match step {
            Step::Wait => wait(flavour).await?,
            Step::Sleep(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Mark => stats.marks.inc(),
            Step::Gate(name) => gate::pass(&name).await,
            Step::Forever => pending().await,
            Step::Panic => panic!("{SECRET}"),
            Step::PanicInTask => panic_in_task().await?,
            Step::Error(status) => return Err(error(status)),
            Step::Ask(question) => {
                saw.push(ask(filter, &stream, &question));
                if let At::Response(resp) = &mut at {
                    saw.drain(..).for_each(|saw| resp.headers_mut().append("x-saw", saw));
                }
            }
            Step::Reset { details, refused } => {
                let reason = if refused { ResetReason::Refused } else { ResetReason::Local };
                return Err(Error::reset(reason, details));
            }
            Step::DrainConnection => stream.drain_connection().await?,
            Step::Recreate(mark) => {
                if let At::Request(req, _) = &mut at
                    && !req.headers().contains(&mark)
                {
                    req.headers_mut().set(&mark, "1");
                    let Err(error) = stream.recreate().await;
                    saw.push(format!("{:?}", error.kind()));
                }
            }
            Step::Run => {
                let At::Request(req, next) = at else {
                    return Err(Error::new("a script runs once"));
                };
                let mut resp = next.run(req).await?;
                saw.drain(..).for_each(|saw| resp.headers_mut().append("x-saw", saw));
                for (name, value) in carried.drain(..) {
                    resp.headers_mut().set(&name, &value);
                }
                at = At::Response(resp);
            }
            Step::RunAndDrop => {
                let At::Request(req, next) = at else {
                    return Err(Error::new("a script runs once"));
                };
                let mut run = Box::pin(next.run(req));
                let started = std::future::poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx)));
                let _ = started.await;
                return Ok(Response::text(StatusCode::ACCEPTED, "did not wait"));
            }
            Step::Reply(reply) => return reply_with(reply, flavour, stats, at, saw),
            Step::Call(call) => {
                let told = told(made(&call)?.send().await);
                either!(&mut at, m => m.headers_mut()).set("x-call", told);
            }
            Step::CallShared(call) => {
                let shared = self::made(filter.service.get(call.path.clone()), &call);
                let told = told(attache::spawn(shared.send()).await?);
                either!(&mut at, m => m.headers_mut()).set("x-call", told);
            }
            Step::CallStreaming(call) => {
                let At::Request(mut req, _) = at else {
                    return Err(Error::new("only a request is sent on"));
                };
                let made = made(&call)?.method(Method::POST).body(req.take_body());
                return Ok(made.send_streaming().await?.into());
            }
            Step::CallAndDrop(call, millis) => {
                let made = made(&call)?.send();
                let told = match tokio::time::timeout(Duration::from_millis(millis), made).await {
                    Ok(answer) => told(answer),
                    Err(_) => "dropped".to_owned(),
                };
                either!(&mut at, m => m.headers_mut()).set("x-call", told);
            }
            Step::Headers(edits) => either!(&mut at, m => edit(m.headers_mut(), &edits)),
            Step::Path(path) => {
                if let At::Request(req, _) = &mut at {
                    req.set_path(&path);
                }
            }
            Step::Method(method) => {
                if let At::Request(req, _) = &mut at {
                    req.headers_mut().set(":method", method);
                }
            }
            Step::Status(status) => {
                if let At::Response(resp) = &mut at {
                    resp.set_status(StatusCode::from_u16(status)?);
                }
            }
            Step::Carry(from, to) => {
                if let At::Request(req, _) = &at
                    && let Some(value) = req.headers().get(&from)
                {
                    carried.push((to, value));
                }
            }
            Step::Read(bytes) => read(either!(&mut at, m => m.body_mut()), bytes, stats).await?,
            Step::Drain => read(either!(&mut at, m => m.body_mut()), usize::MAX, stats).await?,
            Step::DrainTrailers(edits) => {
                if let Some(mut trailers) = either!(&mut at, m => m.body_mut()).trailers().await? {
                    edit(&mut trailers, &edits);
                }
            }
            Step::Buffer(limit) => {
                let body = either!(&mut at, m => m.body_mut());
                let length = body.buffer(limit).await?.len();
                either!(&mut at, m => m.headers_mut()).set("x-buffered", length.to_string());
            }
            Step::Whole(whole) => {
                let body = either!(&mut at, m => m.body_mut());
                let taken = body.collect(whole.limit).await?;
                if let Some(mut trailers) = body.trailers().await? {
                    edit(&mut trailers, &whole.trailers);
                }
                let mut all = BytesMut::from(whole.prefix.as_bytes());
                all.extend_from_slice(&taken);
                all.extend_from_slice(whole.suffix.as_bytes());
                either!(&mut at, m => m.set_body(all.freeze()));
            }
            Step::Body(text) => either!(&mut at, m => m.set_body(text)),
            Step::BodyStream(chunks) => {
                either!(&mut at, m => m.set_body(streamed(chunks, flavour)));
            }
            Step::Map(mapping) => {
                either!(&mut at, m => m.map_body(move |chunk| map(&mapping, &chunk)));
            }
            Step::Trailers(edits) => {
                either!(&mut at, m => m.map_trailers(move |trailers| edit(trailers, &edits)));
            }
            Step::Pipe(steps) => {
                let (marks, bytes) = (stats.marks.clone(), stats.read.clone());
                either!(&mut at, m => m.pipe_body(move |input, output| {
                    Pipe { input, output, flavour, marks, bytes }.play(steps)
                }));
            }
        }
    }
    let mut resp = match at {
        At::Request(req, next) => next.run(req).await?,
        At::Response(resp) => resp,
    };
    saw.drain(..).for_each(|saw| resp.headers_mut().append("x-saw", saw));
    Ok(resp)
}

/// A call as a script describes it.
fn made<C: Caller>(mut callout: Callout<C>, call: &Call) -> Callout<C>
where
    String: Into<C::Body>,
{
    if let Some(body) = &call.body {
        callout = callout.method(Method::POST).body(body.clone());
    }
    if let Some(millis) = call.timeout_ms {
        callout = callout.timeout(Duration::from_millis(millis));
    }
    if let Some(limit) = call.limit {
        callout = callout.limit(limit);
    }
    callout
}

/// What came of a call: status and body, or the kind of the error.
fn told(answer: std::result::Result<attache::http::Response<Bytes>, CalloutError>) -> String {
    match answer {
        Ok(answer) => {
            let body = String::from_utf8_lossy(answer.body());
            format!("{} {body}", answer.status().as_u16())
        }
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Waits, as the flavour says.
async fn wait(flavour: Flavour) -> Result<()> {
    match flavour {
        Flavour::AtOnce => Ok(()),
        Flavour::Timer => {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(())
        }
        Flavour::Thread => {
            attache::spawn(tokio::task::yield_now()).await?;
            attache::spawn_blocking(|| ()).await
        }
    }
}

async fn panic_in_task() -> Result<()> {
    attache::spawn(async { panic!("{SECRET}") }).await
}

fn error(status: u16) -> Error {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Error::status(status, SECRET)
}

fn edit(headers: &mut Headers, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Set(name, value) => headers.set(name, value),
            Edit::Append(name, value) => headers.append(name, value),
            Edit::Remove(name) => {
                headers.remove(name);
            }
            Edit::Panic => panic!("{SECRET}"),
        }
    }
}

async fn read(body: &mut Body, bytes: usize, stats: &Stats) -> Result<()> {
    let mut taken = 0;
    while taken < bytes
        && let Some(chunk) = body.chunk().await?
    {
        stats.read.add(chunk.len() as u64);
        taken += chunk.len();
    }
    Ok(())
}

fn map(mapping: &Mapping, chunk: &[u8]) -> Bytes {
    match mapping {
        Mapping::Upper => chunk.to_ascii_uppercase().into(),
        Mapping::Double => chunk.iter().flat_map(|byte| [*byte, *byte]).collect(),
        // To look at each byte on its own takes a debug build seconds for a large body.
        Mapping::Without(text) if text.bytes().all(|byte| !chunk.contains(&byte)) => {
            Bytes::copy_from_slice(chunk)
        }
        Mapping::Without(text) => {
            chunk.iter().copied().filter(|byte| !text.as_bytes().contains(byte)).collect()
        }
        Mapping::Drop => Bytes::new(),
        Mapping::Panic => panic!("{SECRET}"),
    }
}

fn streamed(chunks: Vec<String>, flavour: Flavour) -> Body {
    Body::from_stream(stream::unfold(chunks.into_iter(), move |mut chunks| async move {
        let chunk = chunks.next()?;
        let item = wait(flavour).await.map(|()| Bytes::from(chunk));
        Some((item, chunks))
    }))
}

fn header_map(pairs: &[(String, String)]) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name: attache::http::HeaderName = name.parse()?;
        map.append(name, value.parse()?);
    }
    Ok(map)
}

fn reply_with(
    reply: Reply,
    flavour: Flavour,
    stats: &Stats,
    at: At,
    saw: Vec<String>,
) -> Result<Response> {
    let status = StatusCode::from_u16(reply.status)?;
    let mut response = Response::new(status);
    for (name, value) in &reply.headers {
        response = response.with_header(name, value);
    }
    for saw in saw {
        response = response.with_header("x-saw", saw);
    }
    if !reply.trailers.is_empty() {
        response = response.with_trailers(header_map(&reply.trailers)?);
    }
    if let Some(mut text) = reply.body {
        if let At::Request(req, _) = &at {
            text = text.replace("$path", &req.path()).replace("$method", req.method().as_str());
        }
        response = response.with_body(text);
    } else if let Some(chunks) = reply.chunks {
        response = response.with_body(streamed(chunks, flavour));
    } else if let Some(steps) = reply.pipe {
        response = response.with_body(match at {
            At::Request(mut req, _) => req.take_body(),
            At::Response(mut resp) => resp.take_body(),
        });
        let (marks, bytes) = (stats.marks.clone(), stats.read.clone());
        response.pipe_body(move |input, output| {
            Pipe { input, output, flavour, marks, bytes }.play(steps)
        });
    }
    Ok(response)
}

/// A pipe at work.
struct Pipe {
    input: Body,
    output: BodyWriter,
    flavour: Flavour,
    marks: attache::Counter,
    bytes: attache::Counter,
}

impl Pipe {
    async fn play(mut self, steps: Vec<PipeStep>) -> Result<()> {
        for step in steps {
            match step {
                PipeStep::Write(text) => self.output.send(text).await?,
                PipeStep::WriteMany(text, bytes, piece) => {
                    let all = text.into_bytes().into_iter().cycle().take(bytes);
                    let all = Bytes::from_iter(all);
                    let mut at = 0;
                    while at < bytes {
                        let end = bytes.min(at + piece.max(1));
                        self.output.send(all.slice(at..end)).await?;
                        at = end;
                    }
                }
                PipeStep::Copy => self.copy(usize::MAX, |chunk| chunk).await?,
                PipeStep::CopySome(bytes) => self.copy(bytes, |chunk| chunk).await?,
                PipeStep::Upper => {
                    self.copy(usize::MAX, |chunk| chunk.to_ascii_uppercase().into()).await?;
                }
                PipeStep::Drain => while self.input.chunk().await?.is_some() {},
                PipeStep::Gather => {
                    let all = self.input.collect(usize::MAX).await?;
                    wait(self.flavour).await?;
                    self.output.send(all).await?;
                }
                PipeStep::Trailers(edits) => {
                    let trailers = self.input.trailers().await?;
                    wait(self.flavour).await?;
                    if let Some(mut trailers) = trailers {
                        edit(&mut trailers, &edits);
                    }
                }
                PipeStep::SendTrailers(trailers) => {
                    self.output.send_trailers(header_map(&trailers)?).await?;
                }
                PipeStep::Wait => wait(self.flavour).await?,
                PipeStep::Mark => self.marks.inc(),
                PipeStep::Gate(name) => gate::pass(&name).await,
                PipeStep::Forever => pending().await,
                PipeStep::Panic => panic!("{SECRET}"),
                PipeStep::Error(status) => return Err(error(status)),
            }
        }
        Ok(())
    }

    async fn copy(&mut self, bytes: usize, change: impl Fn(Bytes) -> Bytes) -> Result<()> {
        let mut taken = 0;
        while taken < bytes
            && let Some(chunk) = self.input.chunk().await?
        {
            taken += chunk.len();
            self.bytes.add(chunk.len() as u64);
            wait(self.flavour).await?;
            self.output.send(change(chunk)).await?;
        }
        Ok(())
    }
}
