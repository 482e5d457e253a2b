//! Plays one case against a running Envoy: as client, as upstream, and as onlooker.
//!
//! Without a `play`, the client sends its request, the upstream (where the scenario has one) reads
//! it to its end and answers, and the client collects the response. With one, each step is taken
//! when the one before is done, so a scenario proves an order of events and not a speed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attache_conformance::OPEN_HEADER;
use attache_e2e::{
    BodySender, Broken, Call, Client, Collected, Exchange, OutBody, Pending, Progress, Protocol,
    Reply, Turn, eventually, header_map,
};
use bytes::BytesMut;
use http::{HeaderMap, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::check::{
    check_message, expect_that, grown, no_difference, script, script_with, wrong_line, wrong_stats,
};
use crate::content::Content;
use crate::envoy::Running;
use crate::profile::SCRIPT_HEADERS;
use crate::scenario::{Case, Expect, ExpectClient, RequestSpec, UpstreamSpec};

/// Tells the requests of one cell from what an earlier one may have left behind.
const CELL_HEADER: &str = "x-cell";

/// How long one step may take, with nothing moving, before it counts as stuck.
const STUCK: Duration = Duration::from_secs(15);

/// Awaits a part of an exchange, and says which one it was that never ended.
async fn not_stuck<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: stuck for {STUCK:?}"),
    }
}

/// One step of a `play`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Play {
    /// The client does something.
    Client(ClientStep),
    /// The upstream does something.
    Upstream(UpstreamStep),
    /// Waits until a counter has grown by as much: a name as in `expect.stats`, and the growth.
    Until(String, u64),
    /// Opens a gate that the filter waits at.
    Open(String),
    /// From here on, Envoy's memory is watched.
    WatchMemory,
    /// Since then, Envoy has held at most this many bytes more, at any moment.
    GrownBy(u64),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClientStep {
    /// Sends the request's headers; its body follows by hand.
    Open,
    /// Sends the whole request, without waiting for anything.
    Send,
    /// Sends a piece of the body; returns when the connection has taken it.
    Data(Content),
    /// Sends this in the background, for as long as it takes, and ends the body.
    Flood(Content),
    /// At this moment the flood must have been held back before this many bytes.
    Held(usize),
    /// Ends the body.
    End,
    /// Ends the body with trailers.
    Trailers(Vec<(String, String)>),
    /// Waits for the response's headers.
    Head,
    /// Waits for these bytes of the response.
    Read(String),
    /// Waits for the rest of the response, which must be as the scenario says.
    Rest,
    /// No response may have come yet.
    Waiting,
    /// Closes the connection.
    Disconnect,
    /// Resets the stream (HTTP/2) or closes the connection (HTTP/1.1).
    Cancel,
    /// Writes to the upgraded stream.
    Write(String),
    /// Reads from the upgraded stream.
    ReadUpgraded(String),
    /// Ends the upgraded stream.
    Close,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UpstreamStep {
    /// Waits for the request's headers.
    Accept,
    /// Waits for these bytes of the request.
    Read(String),
    /// Reads the request to its end.
    ReadEnd,
    /// Reads the request to its end and answers as the scenario says.
    Answer,
    /// Starts the response that the scenario names; its body follows by hand.
    Head,
    /// Sends a piece of the response.
    Data(Content),
    /// Sends this in the background, for as long as it takes, and ends the response.
    Flood(Content),
    /// At this moment the flood must have been held back before this many bytes.
    Held(usize),
    /// Ends the response.
    End,
    /// Ends the response with trailers.
    Trailers(Vec<(String, String)>),
    /// Breaks the exchange off.
    Reset,
    /// The client asks for an upgrade to `websocket`, and the upstream accepts.
    Upgrade,
    /// Writes to the upgraded stream.
    Write(String),
    /// Reads from the upgraded stream.
    ReadUpgraded(String),
    /// The upgraded stream must end.
    ReadClose,
}

/// A body that is sent in the background.
struct Flood {
    task: JoinHandle<()>,
    sent: Arc<AtomicUsize>,
}

impl Flood {
    fn start(mut sender: BodySender, content: &Content) -> Self {
        let chunks = content.chunks();
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        let task = tokio::spawn(async move {
            for chunk in chunks {
                let length = chunk.len();
                if sender.data(chunk).await.is_err() {
                    return;
                }
                counter.fetch_add(length, Ordering::Relaxed);
            }
            // The receiver may be gone; whether that is right, the scenario sees at the other end.
            let _ = sender.finish().await;
        });
        Flood { task, sent }
    }

    fn held(&self, bytes: usize) {
        let sent = self.sent.load(Ordering::Relaxed);
        assert!(sent < bytes, "the sender should be held back before {bytes} bytes, sent {sent}");
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One exchange under way.
struct Stage<'a> {
    running: &'a Running,
    case: &'a Case,
    cell: &'a str,
    before: &'a BTreeMap<String, u64>,
    client: Option<Client>,
    request: Option<BodySender>,
    pending: Option<Pending>,
    reply: Option<Reply>,
    client_io: Option<TokioIo<Upgraded>>,
    turn: Option<Turn>,
    exchange: Option<Exchange>,
    response: Option<BodySender>,
    upstream_io: Option<TokioIo<Upgraded>>,
    floods: [Option<Flood>; 2],
    /// How many requests have opened gates: the filter counts them among its exchanges.
    opened: u64,
    /// What Envoy held when its memory began to be watched.
    memory: u64,
}

/// Plays a case; panics where something is not as it must be. The client's connection is taken
/// over and given back, if it still stands.
pub(crate) async fn play(
    running: &Running,
    case: &Case,
    cell: &str,
    client: Client,
) -> Option<Client> {
    let before = running.stats().await;
    let count = running.upstream.count();
    let mut opened = 0;
    let client = if case.scenario.times > 1 {
        play_many(running, case, cell, client, &before).await
    } else {
        let mut stage = Stage::new(running, case, cell, &before, client);
        let steps = case.scenario.play.clone();
        if steps.is_empty() {
            not_stuck("the exchange", stage.play_simple()).await;
        } else {
            for (index, step) in steps.iter().enumerate() {
                stage
                    .step_to_its_end(step)
                    .await
                    .unwrap_or_else(|trouble| panic!("step {index}, {step:?}: {trouble}"));
            }
        }
        not_stuck("the end at the client", stage.check_client()).await;
        not_stuck("the end at the upstream", stage.check_upstream(count)).await;
        opened = stage.opened;
        stage.client.take()
    };
    check_stats(running, &case.scenario.expect, &before, opened).await;
    for parts in &case.scenario.expect.log {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        running.envoy.wait_for_log(&parts).await;
    }
    if !case.scenario.expect.access_log.is_empty() {
        let line = running.envoy.wait_for_access_log(&[&format!("cell={cell} ")]).await;
        let missing = |part: &&String| !line.contains(part.as_str());
        let missing: Vec<_> = case.scenario.expect.access_log.iter().filter(missing).collect();
        assert!(missing.is_empty(), "the access log lacks {missing:?}: {line}");
    }
    match client {
        Some(client) if case.scenario.then_next => {
            // Envoy closes an HTTP/1.1 connection whose request it answered before it was all
            // there; then the worker has to serve the next one.
            let bodyless = case.scenario.request.body.bytes().is_empty();
            let may_close = client.protocol() == Protocol::Http1 && !bodyless;
            let client =
                if may_close && client.is_closed() { running.connect().await } else { client };
            Some(not_stuck("the next request", check_next(running, client)).await)
        }
        other => other,
    }
}

/// The same exchange many times over, all at once.
async fn play_many(
    running: &Running,
    case: &Case,
    cell: &str,
    client: Client,
    before: &BTreeMap<String, u64>,
) -> Option<Client> {
    let times = case.scenario.times;
    let mut stages = Vec::new();
    let mut first = Some(client);
    for index in 0..times {
        let client = match first.take() {
            Some(client) => client,
            None => running.connect().await,
        };
        let name = format!("{cell}-{index}");
        stages.push(async move {
            let mut stage = Stage::new(running, case, &name, before, client);
            stage.play_client().await;
            stage.check_client().await;
            stage.client.take()
        });
    }
    let upstream = async {
        for _ in 0..times {
            let mut turn = running.upstream.accept().await;
            turn.read_to_end().await;
            if let Some(spec) = &case.scenario.upstream {
                answer(&mut turn, spec);
            }
        }
    };
    let (clients, ()) = tokio::join!(futures_util::future::join_all(stages), upstream);
    clients.into_iter().next().flatten()
}

impl<'a> Stage<'a> {
    fn new(
        running: &'a Running,
        case: &'a Case,
        cell: &'a str,
        before: &'a BTreeMap<String, u64>,
        client: Client,
    ) -> Self {
        Stage {
            running,
            case,
            cell,
            before,
            client: Some(client),
            request: None,
            pending: None,
            reply: None,
            client_io: None,
            turn: None,
            exchange: None,
            response: None,
            upstream_io: None,
            floods: [None, None],
            opened: 0,
            memory: 0,
        }
    }

    /// Takes a step. It may take long, as long as a flood moves: then it is only a busy machine.
    async fn step_to_its_end(&mut self, step: &Play) -> Result<(), String> {
        let floods: Vec<_> = self.floods.iter().flatten().map(|flood| flood.sent.clone()).collect();
        let sent =
            || -> Vec<_> { floods.iter().map(|sent| sent.load(Ordering::Relaxed)).collect() };
        let mut step = std::pin::pin!(self.step(step));
        let mut before = sent();
        loop {
            if let Ok(done) = tokio::time::timeout(STUCK, &mut step).await {
                return done;
            }
            let now = sent();
            if now == before {
                return Err(format!("stuck for {STUCK:?}; floods sent {now:?}"));
            }
            before = now;
        }
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("the client has left")
    }

    fn upstream_spec(&self) -> UpstreamSpec {
        self.case.scenario.upstream.clone().expect("the scenario has an upstream")
    }

    /// The request without its body.
    fn call(&self) -> Call {
        let scenario = &self.case.scenario;
        let mut call = new_call(&scenario.request, self.cell)
            .header("x-scenario", header_text(&scenario.name));
        let first = script_with(
            &scenario.filter,
            &scenario.replies,
            &scenario.complete,
            self.case.flavour,
            self.cell,
        );
        call = call.header(SCRIPT_HEADERS[0], first);
        if let Some(steps) = &scenario.second {
            call = call.header(SCRIPT_HEADERS[1], script(steps, self.case.flavour, self.cell));
        }
        call
    }

    async fn play_client(&mut self) {
        let request = &self.case.scenario.request;
        let call = self.call().body(request.body.out_body(&request.trailers));
        self.pending = Some(self.client().start(call).await);
    }

    /// The whole exchange, with nothing by hand.
    async fn play_simple(&mut self) {
        self.play_client().await;
        if self.case.scenario.upstream.is_none() {
            return;
        }
        let pending = self.pending.take().expect("just started");
        let mut reply = Box::pin(pending.into_future());
        let mut arrived = None;
        tokio::select! {
            biased;
            turn = accept(self.running, self.cell) => self.accepted(turn),
            early = &mut reply => arrived = Some(early),
        }
        if let Some(mut turn) = self.turn.take() {
            not_stuck("the request at the upstream", turn.read_to_end()).await;
            let spec = self.upstream_spec();
            if !spec.cut {
                answer(&mut turn, &spec);
            }
        }
        let reply = match arrived {
            Some(reply) => reply,
            None => not_stuck("the response's headers", reply).await,
        };
        self.check_reply(not_stuck("the response's body", collect(reply)).await);
    }

    fn accepted(&mut self, turn: Turn) {
        self.exchange = Some(turn.exchange());
        self.turn = Some(turn);
    }

    async fn step(&mut self, step: &Play) -> Result<(), String> {
        match step {
            Play::Client(step) => self.client_step(step).await,
            Play::Upstream(step) => self.upstream_step(step).await,
            Play::Until(stat, growth) => {
                let what = format!("{stat} to grow by {growth}");
                eventually(&what, async || {
                    let now = self.running.stats().await;
                    grown(self.before, &now, stat) >= *growth
                })
                .await;
                Ok(())
            }
            Play::Open(gate) => {
                self.opened += 1;
                let name = format!("{gate}-{}", self.cell);
                let mut control = self.running.connect().await;
                let reply = control.fetch(Call::get("/").header(OPEN_HEADER, name)).await;
                expect_that(reply.text() == "open", || format!("the gate said {}", reply.status))
            }
            Play::WatchMemory => {
                self.memory = self.running.reset_peak_memory();
                Ok(())
            }
            Play::GrownBy(most) => {
                let grown = self.running.peak_memory().saturating_sub(self.memory);
                expect_that(grown <= *most, || {
                    format!("Envoy has grown by {grown} bytes, more than {most}")
                })
            }
        }
    }

    async fn client_step(&mut self, step: &ClientStep) -> Result<(), String> {
        match step {
            ClientStep::Open => {
                let (sender, call) = self.call().stream();
                self.request = Some(sender);
                self.pending = Some(self.client().start(call).await);
            }
            ClientStep::Send => self.play_client().await,
            ClientStep::Data(content) => {
                let sender = self.request.as_mut().ok_or("no request is open")?;
                send_all(sender, content).await?;
            }
            ClientStep::Flood(content) => {
                let sender = self.request.take().ok_or("no request is open")?;
                self.floods[0] = Some(Flood::start(sender, content));
            }
            ClientStep::Held(bytes) => {
                self.floods[0].as_ref().ok_or("nothing floods")?.held(*bytes);
            }
            ClientStep::End => {
                let sender = self.request.take().ok_or("no request is open")?;
                sender.finish().await.map_err(|error| error.to_string())?;
            }
            ClientStep::Trailers(trailers) => {
                let sender = self.request.take().ok_or("no request is open")?;
                sender.trailers(map(trailers)).await.map_err(|error| error.to_string())?;
            }
            ClientStep::Head => {
                let pending = self.pending.take().ok_or("no response is awaited")?;
                let reply = pending.await.map_err(|error| error.to_string())?;
                if let Some(ExpectClient::Whole(expected)) = &self.case.scenario.expect.client
                    && let Some(status) = &expected.status
                {
                    let got = reply.status().as_u16();
                    expect_that(status.allows(got), || {
                        format!("status {got}, expected {status:?}")
                    })?;
                }
                self.reply = Some(reply);
            }
            ClientStep::Read(text) => {
                let reply = self.reply.as_mut().ok_or("no response has begun")?;
                let got = reply.read(text.len()).await.map_err(|error| error.to_string())?;
                no_difference(text.as_bytes(), &got)?;
            }
            ClientStep::Rest => self.check_client().await,
            ClientStep::Waiting => {
                let pending = self.pending.as_mut().ok_or("no response is awaited")?;
                expect_that(pending.is_waiting(), || "the response has come already".into())?;
            }
            ClientStep::Disconnect => {
                self.client.take().ok_or("the client has left")?.disconnect();
                self.request = None;
                self.pending = None;
                self.reply = None;
            }
            ClientStep::Cancel => {
                // The body first: dropping its sender is what resets a request that is not over.
                self.request = None;
                self.pending = None;
                self.reply = None;
                if self.client().protocol() == Protocol::Http1 {
                    self.client = None;
                }
            }
            ClientStep::Write(text) => {
                let io = self.client_io.as_mut().ok_or("no upgraded stream")?;
                write(io, text).await?;
            }
            ClientStep::ReadUpgraded(text) => {
                let io = self.client_io.as_mut().ok_or("no upgraded stream")?;
                read(io, text).await?;
            }
            ClientStep::Close => {
                let mut io = self.client_io.take().ok_or("no upgraded stream")?;
                io.shutdown().await.map_err(|error| error.to_string())?;
                self.client = None;
            }
        }
        Ok(())
    }

    async fn upstream_step(&mut self, step: &UpstreamStep) -> Result<(), String> {
        let turn = self.turn.as_mut().ok_or("no request was accepted");
        match step {
            UpstreamStep::Accept => {
                let turn = accept(self.running, self.cell).await;
                self.accepted(turn);
            }
            UpstreamStep::Read(text) => {
                let got = turn?.read(text.len()).await;
                no_difference(text.as_bytes(), &got)?;
            }
            UpstreamStep::ReadEnd => {
                let seen = turn?.read_to_end().await;
                expect_that(seen.request == Progress::Complete, || {
                    format!("the request was cut after {} bytes", seen.body.len())
                })?;
            }
            UpstreamStep::Answer => {
                let turn = turn?;
                turn.read_to_end().await;
                let spec = self.case.scenario.upstream.clone().ok_or("there is no upstream")?;
                answer(turn, &spec);
            }
            UpstreamStep::Head => {
                let turn = turn?;
                let spec = self.case.scenario.upstream.clone().ok_or("there is no upstream")?;
                self.response = Some(turn.stream(head(&spec, None).body(()).expect("valid")));
            }
            UpstreamStep::Data(content) => {
                let sender = self.response.as_mut().ok_or("no response is open")?;
                send_all(sender, content).await?;
            }
            UpstreamStep::Flood(content) => {
                let sender = self.response.take().ok_or("no response is open")?;
                self.floods[1] = Some(Flood::start(sender, content));
            }
            UpstreamStep::Held(bytes) => {
                self.floods[1].as_ref().ok_or("nothing floods")?.held(*bytes);
            }
            UpstreamStep::End => {
                let sender = self.response.take().ok_or("no response is open")?;
                sender.finish().await.map_err(|error| error.to_string())?;
            }
            UpstreamStep::Trailers(trailers) => {
                let sender = self.response.take().ok_or("no response is open")?;
                sender.trailers(map(trailers)).await.map_err(|error| error.to_string())?;
            }
            UpstreamStep::Reset => {
                self.response = None;
                self.turn = None;
            }
            UpstreamStep::Upgrade => {
                // Both sides wait for each other here, so they are played together.
                let call = self.call();
                let client = self.client.take().ok_or("the client has left")?;
                let (client_io, (turn, upstream_io)) = tokio::join!(upgrade(client, call), async {
                    let mut turn = accept_any(self.running).await;
                    let io = turn.upgrade("websocket").await;
                    (turn, io)
                });
                let (client, io) = client_io?;
                self.client = Some(client);
                self.client_io = Some(io);
                self.accepted(turn);
                self.upstream_io = Some(upstream_io);
            }
            UpstreamStep::Write(text) => {
                let io = self.upstream_io.as_mut().ok_or("no upgraded stream")?;
                write(io, text).await?;
            }
            UpstreamStep::ReadUpgraded(text) => {
                let io = self.upstream_io.as_mut().ok_or("no upgraded stream")?;
                read(io, text).await?;
            }
            UpstreamStep::ReadClose => {
                let io = self.upstream_io.as_mut().ok_or("no upgraded stream")?;
                let mut rest = Vec::new();
                // A reset is an end as well.
                let _ = io.read_to_end(&mut rest).await;
                no_difference(b"", &rest)?;
            }
        }
        Ok(())
    }

    async fn check_client(&mut self) {
        if self.case.scenario.expect.client.is_none() {
            return;
        }
        let reply = match (self.reply.take(), self.pending.take()) {
            (Some(reply), _) => Ok(reply),
            (None, Some(pending)) => pending.await,
            (None, None) => return,
        };
        self.check_reply(collect(reply).await);
    }

    fn check_reply(&self, got: Result<Collected, Broken>) {
        match (&self.case.scenario.expect.client, got) {
            (None, _) => (),
            (Some(ExpectClient::Broken(_)), Err(_)) => (),
            (Some(ExpectClient::Broken(_)), Ok(got)) => {
                panic!("the client should get no whole response, and got {got:?}")
            }
            (Some(ExpectClient::Whole(_)), Err(broken)) => {
                panic!("the client should get a whole response, and got: {broken}")
            }
            (Some(ExpectClient::Whole(expected)), Ok(got)) => {
                let status = got.status.as_u16();
                check_message(
                    "at the client",
                    expected,
                    &got.headers,
                    &got.body,
                    got.trailers.as_ref(),
                    expected
                        .status
                        .as_ref()
                        .filter(|expected| !expected.allows(status))
                        .map(|expected| format!("status {status}, expected {expected:?}")),
                    self.case.scenario.request.method == "HEAD",
                );
            }
        }
    }

    async fn check_upstream(&mut self, count: usize) {
        let Some(expected) = &self.case.scenario.expect.upstream else {
            if self.case.scenario.upstream.is_none() {
                let arrived = self.running.upstream.count();
                assert_eq!(arrived, count, "a request has arrived at the upstream");
            }
            return;
        };
        let exchange = self.exchange.as_ref().expect("no request has arrived at the upstream");
        if let Some(turn) = &mut self.turn {
            turn.read_to_end().await;
        }
        let seen = exchange.request_over().await;
        assert_eq!(seen.request, Progress::Complete, "at the upstream: the request was cut");
        let line = wrong_line(expected, seen.method.as_str(), seen.path());
        check_message(
            "at the upstream",
            expected,
            &seen.headers,
            &seen.body,
            seen.trailers.as_ref(),
            line,
            false,
        );
    }
}

/// A header value must not hold every character that a name may.
fn header_text(name: &str) -> String {
    name.chars().filter(char::is_ascii).collect()
}

fn new_call(request: &RequestSpec, cell: &str) -> Call {
    let method = request.method.parse().expect("a method");
    let mut call = Call::new(method, &request.path).header(CELL_HEADER, cell);
    for (name, value) in &request.headers {
        call = call.header(name, value);
    }
    if request.with_length {
        call = call.header("content-length", request.body.bytes().len().to_string());
    }
    let names: Vec<&str> = request.trailers.iter().map(|(name, _)| name.as_str()).collect();
    if names.is_empty() { call } else { call.declare_trailers(&names) }
}

fn map(pairs: &[(String, String)]) -> HeaderMap {
    header_map(pairs.iter().map(|(name, value)| (name, value)))
}

async fn accept(running: &Running, cell: &str) -> Turn {
    loop {
        let turn = accept_any(running).await;
        if turn.seen().header(CELL_HEADER) == Some(cell) {
            return turn;
        }
    }
}

async fn accept_any(running: &Running) -> Turn {
    running.upstream.accept().await
}

async fn upgrade(mut client: Client, call: Call) -> Result<(Client, TokioIo<Upgraded>), String> {
    match client.upgrade_with(call, "websocket").await {
        Ok(io) => Ok((client, io)),
        Err(refusal) => Err(format!("the upgrade was refused with {}", refusal.status)),
    }
}

async fn collect(reply: Result<Reply, Broken>) -> Result<Collected, Broken> {
    reply?.collect().await
}

async fn send_all(sender: &mut BodySender, content: &Content) -> Result<(), String> {
    for chunk in content.chunks() {
        attache_e2e::within("a piece of a body to be taken", sender.data(chunk))
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn write(io: &mut TokioIo<Upgraded>, text: &str) -> Result<(), String> {
    io.write_all(text.as_bytes()).await.map_err(|error| error.to_string())?;
    io.flush().await.map_err(|error| error.to_string())
}

async fn read(io: &mut TokioIo<Upgraded>, text: &str) -> Result<(), String> {
    let mut got = vec![0; text.len()];
    attache_e2e::within("bytes of the upgraded stream", io.read_exact(&mut got))
        .await
        .map_err(|error| error.to_string())?;
    no_difference(text.as_bytes(), &got)
}

/// The head of the upstream's response.
fn head(spec: &UpstreamSpec, echoed: Option<&HeaderMap>) -> http::response::Builder {
    let mut head = Response::builder().status(spec.status);
    for (name, value) in &spec.headers {
        head = head.header(name, value);
    }
    let mut names: Vec<&str> = spec.trailers.iter().map(|(name, _)| name.as_str()).collect();
    names.extend(echoed.into_iter().flat_map(|map| map.keys().map(|name| name.as_str())));
    // HTTP/1.1 sends only the trailers that its headers have declared.
    if names.is_empty() { head } else { head.header("trailer", names.join(", ")) }
}

fn answer(turn: &mut Turn, spec: &UpstreamSpec) {
    let seen = turn.seen();
    if spec.echo {
        let trailers = seen.trailers.clone().unwrap_or_default();
        let body = OutBody::frames([BytesMut::freeze(seen.body)], trailers.clone());
        turn.respond(head(spec, Some(&trailers)).body(body).expect("a valid response"));
        return;
    }
    let mut head = head(spec, None);
    if spec.with_length {
        head = head.header("content-length", spec.body.bytes().len());
    }
    let body = spec.body.out_body(&spec.trailers);
    turn.respond(head.body(body).expect("a valid response"));
}

/// Waits until the counters say what they must, or fails with what is wrong in the end.
async fn check_stats(
    running: &Running,
    expect: &Expect,
    before: &BTreeMap<String, u64>,
    opened: u64,
) {
    let mut wrong = Vec::new();
    for _ in 0..400 {
        let now = running.stats().await;
        wrong = wrong_stats(expect, before, &now, opened);
        if wrong.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{}", wrong.join("\n"));
}

/// The next request on the same connection is served as if nothing had been.
async fn check_next(running: &Running, mut client: Client) -> Client {
    assert!(!client.is_closed(), "the connection was closed");
    let pending = client.start(Call::get("/next").header(CELL_HEADER, "next")).await;
    let mut turn = accept(running, "next").await;
    turn.reply(200, "next");
    let reply = collect(pending.await).await;
    let reply = reply.unwrap_or_else(|broken| panic!("the next request: {broken}"));
    assert_eq!((reply.status.as_u16(), reply.text()), (200, "next"), "the next request");
    client
}
