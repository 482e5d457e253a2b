//! Random programs, random interleavings, and an oracle: what all tests of the engine
//! have in common.
//!
//! A [`Case`] is a filter's behaviour put together from small steps, a request, a response, and the
//! order in which things happen. [`run`] plays it against the strict model and checks every promise
//! of the engine; the first broken one is the error.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;
use std::thread::ThreadId;
use std::time::Duration;

use attache_core::host::Direction;
use attache_core::registry::Loaded;
use attache_core::{
    Attribute, AttributeValue, Body, Completion, ConfigError, Error, Filter, Next, Request,
    Response, Result, Setup, Stream, spawn,
};
use attache_test::model::{Fields, Kind, Model, Neighbour, Options, Received, Upstream};
use attache_test::{Clusters, TestHost};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::StatusCode;

pub(crate) const HUGE: usize = 1 << 20;

/// A wait of the filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wait {
    /// For nothing.
    No,
    /// For a poll that it asks for itself.
    Yield,
    /// For the clock.
    Sleep,
    /// For a spawned task.
    Spawn,
    /// For nothing, but its waker stays behind.
    Leave,
    /// For nothing, but all that have left a waker behind are woken.
    WakeAll,
}

/// What a filter does with a message before it lets it go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    Wait(Wait),
    Chunk,
    Buffer(usize),
    Collect(usize),
    Header,
}

/// What a message's body becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    Keep,
    Map,
    /// Bytes are passed on piece by piece, with a wait before each and one before the end.
    Pipe(Wait, Wait),
    /// As `Pipe`, but it stops reading after one chunk.
    PipeOne(Wait),
    /// As `Pipe`, and it ends with trailers.
    Trailers(Wait),
    Full,
    Empty,
    Stream(Wait),
}

/// A response of the filter's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Own {
    Empty,
    Full,
    Stream(Wait),
    /// The request's body (of what is left of it), streamed back.
    Echo,
    Trailers,
}

/// How a filter ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Finish {
    Return,
    Own(Own),
    /// A new head for the upstream's body.
    NewHead,
    Error,
    Panic,
    SpawnedPanic,
}

#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) before: Vec<Step>,
    /// `None` goes on; anything else ends before `next.run`.
    pub(crate) early: Option<Finish>,
    pub(crate) request: Change,
    pub(crate) request_trailers: bool,
    /// Give up waiting for the response after a sleep, and answer with this.
    pub(crate) gives_up: Option<Own>,
    pub(crate) after: Vec<Step>,
    pub(crate) response: Change,
    pub(crate) response_trailers: bool,
    pub(crate) finish: Finish,
    /// Holds a reply that was made elsewhere this long, and then lets it go on through itself.
    pub(crate) reply: Wait,
    /// A handle to the stream stays behind.
    pub(crate) keeps: bool,
}

impl Default for Program {
    fn default() -> Self {
        Program {
            before: vec![],
            early: None,
            request: Change::Keep,
            request_trailers: false,
            gives_up: None,
            after: vec![],
            response: Change::Keep,
            response_trailers: false,
            finish: Finish::Return,
            reply: Wait::No,
            keeps: false,
        }
    }
}

/// A message as one side sends it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) chunks: Vec<usize>,
    pub(crate) trailers: bool,
    /// The end comes as an empty frame of its own.
    pub(crate) late_end: bool,
    pub(crate) length: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    Client,
    Upstream,
    Scheduled,
    Tasks,
    Time,
    Watermark,
    UpstreamWatermark,
    Hold(bool, Direction),
    Release(bool, Direction),
    ClientReset,
    UpstreamReset,
    LocalReply,
    Flush,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) program: Program,
    pub(crate) head: bool,
    pub(crate) request: Script,
    pub(crate) response: Script,
    pub(crate) before: Option<Neighbour>,
    pub(crate) after: Option<Neighbour>,
    pub(crate) upstream: Upstream,
    pub(crate) limit: u64,
    pub(crate) late_end: bool,
    /// The filter's config says `fail_open`.
    pub(crate) fail_open: bool,
    /// A paused sender sends nothing.
    pub(crate) obedient: bool,
    pub(crate) events: Vec<Event>,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            kind: Kind::Stock,
            program: Program::default(),
            head: false,
            request: Script::default(),
            response: Script::default(),
            before: None,
            after: None,
            upstream: Upstream::Waits,
            limit: 1 << 20,
            late_end: false,
            fail_open: false,
            obedient: true,
            events: vec![],
        }
    }
}

// ---- the filter -----------------------------------------------------------------------------

#[derive(Default)]
struct Record {
    program: Program,
    started: u32,
    completed: u32,
    created: u32,
    dropped: u32,
    next: bool,
    gave_up: bool,
    returned: bool,
    /// What was read out of each message.
    taken: [Vec<u8>; 2],
    wrong: Vec<String>,
}

/// What filters have left behind, perhaps beyond their streams' ends.
#[derive(Default)]
pub(crate) struct LeftBehind {
    pub(crate) wakers: VecDeque<(Who, Waker)>,
    pub(crate) handles: Vec<(Who, Stream)>,
}

/// Which of the streams of a run: its path says so.
pub(crate) type Who = usize;

thread_local! {
    static RECORDS: RefCell<Vec<Record>> = RefCell::default();
    static LEFT: RefCell<LeftBehind> = RefCell::default();
    static WORLD: World = World::new();
}

fn record<R>(who: Who, f: impl FnOnce(&mut Record) -> R) -> R {
    RECORDS.with_borrow_mut(|all| f(&mut all[who]))
}

pub(crate) fn left<R>(f: impl FnOnce(&mut LeftBehind) -> R) -> R {
    LEFT.with_borrow_mut(f)
}

/// Drops what was left behind; an exchange may go with its handle.
pub(crate) fn forget_all() {
    drop(LEFT.take());
}

pub(crate) fn who(stream: &Stream) -> Who {
    let path = stream.attribute_value(Attribute::RequestPath);
    match path {
        Ok(Some(AttributeValue::Text(path))) => path[1..].parse().expect("a number"),
        other => panic!("ModelViolation: the path is {other:?}"),
    }
}

/// Something that the future owns.
struct Token(Who, ThreadId);

impl Token {
    fn new(who: Who) -> Self {
        record(who, |r| r.created += 1);
        Token(who, std::thread::current().id())
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        record(self.0, |r| {
            r.dropped += 1;
            if std::thread::current().id() != self.1 {
                r.wrong.push("dropped on another thread".into());
            }
        });
    }
}

async fn wait(who: Who, wait: Wait) -> Result<()> {
    match wait {
        Wait::No => (),
        Wait::Yield => {
            let mut asked = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut asked, true) {
                    return std::task::Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            })
            .await;
        }
        Wait::Sleep => tokio::time::sleep(Duration::from_millis(10)).await,
        Wait::Spawn => spawn(async { tokio::task::yield_now().await }).await?,
        Wait::Leave => {
            let waker = std::future::poll_fn(|cx| std::task::Poll::Ready(cx.waker().clone())).await;
            left(|left| left.wakers.push_back((who, waker)));
        }
        Wait::WakeAll => {
            let all: Vec<_> = left(|left| left.wakers.iter().map(|(_, w)| w.clone()).collect());
            all.iter().for_each(Waker::wake_by_ref);
        }
    }
    Ok(())
}

const OWN: &[u8] = b"the filter's own bytes";

fn mapped(bytes: &[u8]) -> Bytes {
    bytes.iter().map(|b| b ^ 0x80).collect::<Vec<_>>().into()
}

fn stream(who: Who, pause: Wait) -> Body {
    let stream = futures_util::stream::unfold(0, move |at| async move {
        let token = Token::new(who);
        if let Err(error) = wait(who, pause).await {
            return Some((Err(error), OWN.len()));
        }
        drop(token);
        let end = (at + 9).min(OWN.len());
        (at < end).then(|| (Ok(Bytes::from_static(&OWN[at..end])), end))
    });
    Body::from_stream::<_, Error>(stream)
}

fn change(who: Who, body: Body, change: Change) -> Body {
    let ends = matches!(change, Change::Trailers(_));
    let holder = |body: Body, each: Wait, end: Wait, one: bool| {
        let mut request = Response::new(StatusCode::OK).with_body(body);
        request.pipe_body(move |mut input, mut output| async move {
            let _token = Token::new(who);
            while let Some(chunk) = input.chunk().await? {
                wait(who, each).await?;
                output.send(mapped(&chunk)).await?;
                if one {
                    drop(input);
                    wait(who, each).await?;
                    return output.send(&b"."[..]).await;
                }
            }
            wait(who, end).await?;
            output.send(&b"."[..]).await?;
            if ends {
                let mut trailers = http::HeaderMap::new();
                trailers.insert("x-made", "1".parse().unwrap());
                output.send_trailers(trailers).await?;
            }
            Ok(())
        });
        request.take_body()
    };
    match change {
        Change::Keep => body,
        Change::Map => {
            let mut message = Response::new(StatusCode::OK).with_body(body);
            let token = Token::new(who);
            message.map_body(move |chunk| {
                let _ = &token;
                mapped(&chunk)
            });
            message.take_body()
        }
        Change::Pipe(each, end) => holder(body, each, end, false),
        Change::PipeOne(each) => holder(body, each, Wait::No, true),
        Change::Trailers(end) => holder(body, Wait::No, end, false),
        Change::Full => Body::from(OWN),
        Change::Empty => Body::empty(),
        Change::Stream(pause) => stream(who, pause),
    }
}

async fn steps(who: Who, steps: &[Step], side: usize, body: &mut Body) -> Result<bool> {
    let mut header = false;
    for step in steps {
        match *step {
            Step::Wait(how) => wait(who, how).await?,
            Step::Header => header = true,
            Step::Chunk => {
                if let Some(chunk) = body.chunk().await? {
                    record(who, |r| r.taken[side].extend_from_slice(&chunk));
                }
            }
            Step::Buffer(limit) => {
                let seen = body.buffer(limit).await?.to_bytes();
                record(who, |r| {
                    if side == 1 {
                        return;
                    }
                    let from = r.taken[side].len();
                    let want: Vec<u8> = (from..from + seen.len()).map(input).collect();
                    if seen != want {
                        r.wrong.push(format!("buffered {seen:?}, not {want:?}"));
                    }
                });
            }
            Step::Collect(limit) => {
                let all = body.collect(limit).await?;
                record(who, |r| r.taken[side].extend_from_slice(&all));
            }
        }
    }
    Ok(header)
}

fn own(who: Who, own: Own, request: Option<Body>) -> Response {
    let mut response = Response::new(StatusCode::ACCEPTED).with_header("x-own", "1");
    match own {
        Own::Empty => (),
        Own::Full => response.set_body(OWN),
        Own::Stream(pause) => response.set_body(stream(who, pause)),
        Own::Echo => response.set_body(request.unwrap_or_default()),
        Own::Trailers => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-last", "1".parse().unwrap());
            response = response.with_body(OWN).with_trailers(trailers);
        }
    }
    response
}

struct Random;

impl Filter for Random {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Random)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let stream = req.stream();
        let who = who(&stream);
        let program = record(who, |r| {
            r.started += 1;
            r.program.clone()
        });
        let _token = Token::new(who);
        if program.keeps {
            left(|left| left.handles.push((who, stream)));
        }
        if steps(who, &program.before, 0, req.body_mut()).await? {
            req.headers_mut().set("x-set", "1");
        }
        match program.early {
            None => (),
            Some(Finish::Own(how)) => {
                let body = req.take_body();
                record(who, |r| r.returned = true);
                return Ok(own(who, how, Some(body)));
            }
            Some(Finish::Panic) => panic!("program: panics"),
            Some(Finish::SpawnedPanic) => spawn(async { panic!("program: panics") }).await?,
            Some(_) => return Err(Error::status(StatusCode::IM_A_TEAPOT, "program")),
        }
        let body = req.take_body();
        req.set_body(change(who, body, program.request));
        if program.request_trailers {
            let token = Token::new(who);
            req.map_trailers(move |trailers| {
                drop(token);
                trailers.set("x-mapped", "1");
            });
        }
        record(who, |r| r.next = true);
        let mut resp = match program.gives_up {
            None => next.run(req).await?,
            Some(how) => {
                let run = std::pin::pin!(next.run(req));
                let sleep = std::pin::pin!(tokio::time::sleep(Duration::from_millis(15)));
                match select(run, sleep).await {
                    Either::Left((resp, _)) => resp?,
                    Either::Right(_) => {
                        record(who, |r| {
                            r.gave_up = true;
                            r.returned = true;
                        });
                        return Ok(own(who, how, None));
                    }
                }
            }
        };
        if steps(who, &program.after, 1, resp.body_mut()).await? {
            resp.headers_mut().set("x-set", "1");
        }
        match program.finish {
            Finish::Return => (),
            Finish::Own(how) => {
                drop(resp);
                record(who, |r| r.returned = true);
                return Ok(own(who, how, None));
            }
            Finish::NewHead => {
                record(who, |r| r.returned = true);
                let body = resp.take_body();
                return Ok(Response::new(StatusCode::ACCEPTED)
                    .with_header("x-new", "1")
                    .with_body(body));
            }
            Finish::Error => return Err(Error::status(StatusCode::IM_A_TEAPOT, "program")),
            Finish::Panic => panic!("program: panics"),
            Finish::SpawnedPanic => spawn(async { panic!("program: panics") }).await?,
        }
        let body = resp.take_body();
        resp.set_body(change(who, body, program.response));
        if program.response_trailers {
            resp.map_trailers(|trailers| trailers.set("x-mapped", "1"));
        }
        record(who, |r| r.returned = true);
        Ok(resp)
    }

    async fn handle_reply(&self, mut reply: Response) -> Result<Response> {
        let who = who(&reply.stream());
        let held = record(who, |r| r.program.reply);
        if held != Wait::No {
            wait(who, held).await?;
            reply.map_body(|chunk| chunk);
        }
        Ok(reply)
    }

    fn on_complete(&self, done: &Completion) {
        record(who(done.stream()), |r| r.completed += 1);
    }
}

// ---- the world around it --------------------------------------------------------------------

pub(crate) struct World {
    runtime: tokio::runtime::Runtime,
    /// One that fails closed, and one that fails open.
    hosts: [TestHost; 2],
    loaded: [Loaded; 2],
}

impl World {
    fn new() -> Self {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let message = text.or(payload.downcast_ref::<String>().map(String::as_str));
            let message = message.unwrap_or_default();
            if !message.starts_with("program:") && !message.starts_with("ModelViolation") {
                hook(info);
            }
        }));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let hosts = [false, true].map(|fail_open| {
            let _entered = runtime.enter();
            let options = format!(r#"{{"fail_open": {fail_open}, "slow_poll_ms": 1000000}}"#);
            TestHost::new::<Random>(&format!(r#"{{"attache": {options}}}"#))
        });
        let loaded = [0, 1].map(|host| hosts[host].loaded());
        World { runtime, hosts, loaded }
    }

    /// How many exchanges count as under way, and as suspended.
    pub(crate) fn under_way(&self) -> [u64; 4] {
        let gauge = |host: usize, name| self.hosts[host].gauge(&format!("attache.test.{name}"));
        [gauge(0, "active"), gauge(1, "active"), gauge(0, "suspended"), gauge(1, "suspended")]
    }

    /// What a run needs: a record for each stream, and the runtime entered.
    fn begin(&self, streams: usize) -> tokio::runtime::EnterGuard<'_> {
        RECORDS.with_borrow_mut(|all| {
            all.clear();
            all.resize_with(streams, Record::default);
        });
        self.runtime.enter()
    }

    fn tasks(&self) {
        self.runtime.block_on(async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        });
    }

    fn time(&self) {
        self.runtime.block_on(tokio::time::advance(Duration::from_millis(10)));
        self.tasks();
    }
}

/// The byte at a place of what a sender sends.
fn input(at: usize) -> u8 {
    (at % 127) as u8
}

enum Piece {
    Headers(Fields, bool),
    Data(Vec<u8>, bool),
    Trailers,
}

fn pieces(mut headers: Fields, script: &Script) -> VecDeque<Piece> {
    let total: usize = script.chunks.iter().sum();
    let bare = script.chunks.is_empty() && !script.trailers && !script.late_end;
    if script.length && !bare {
        headers.push(("content-length".into(), total.to_string().into()));
    }
    let mut all = VecDeque::from([Piece::Headers(headers, bare)]);
    let mut at = 0;
    let last = script.chunks.len();
    for (i, len) in script.chunks.iter().enumerate() {
        let end = i + 1 == last && !script.trailers && !script.late_end;
        all.push_back(Piece::Data((at..at + len).map(input).collect(), end));
        at += len;
    }
    if script.trailers {
        all.push_back(Piece::Trailers);
    } else if script.late_end {
        all.push_back(Piece::Data(vec![], true));
    }
    all
}

fn trailers() -> Fields {
    vec![("x-trailer".into(), "1".into())]
}

pub(crate) struct Play<'a> {
    pub(crate) who: Who,
    case: &'a Case,
    pub(crate) model: Model,
    world: &'a World,
    client: VecDeque<Piece>,
    upstream: VecDeque<Piece>,
    response: Script,
    above: bool,
    upstream_above: bool,
    disturbed: bool,
}

impl<'a> Play<'a> {
    pub(crate) fn new(who: Who, case: &'a Case, world: &'a World) -> Self {
        let program = case.program.clone();
        record(who, |r| *r = Record { program, ..Record::default() });
        let method = if case.head { "HEAD" } else { "POST" };
        let path = format!("/{who}");
        let head: Fields =
            [(":method", method), (":path", &path), (":scheme", "http"), (":authority", "t")]
                .map(|(n, v)| (n.to_owned(), Bytes::copy_from_slice(v.as_bytes())))
                .into();
        let mut response = case.response.clone();
        if case.head {
            response = Script::default();
        }
        // The head has gone by itself; the rest must end.
        response.late_end |= case.upstream == Upstream::AnswersAtOnce && !response.trailers;
        let status = vec![(":status".to_owned(), Bytes::from("200")), ("x-up".into(), "1".into())];
        let model = Model::new(
            &world.loaded[usize::from(case.fail_open)],
            Options {
                kind: case.kind,
                before: case.before,
                after: case.after,
                buffer_limit: case.limit,
                upstream: case.upstream,
                late_end: case.late_end,
                surroundings: attache_test::Surroundings::default(),
                route_configs: BTreeMap::new(),
                clusters: Clusters::default(),
            },
        );
        Play {
            who,
            case,
            model,
            world,
            client: pieces(head, &case.request),
            upstream: pieces(status, &response),
            response,
            above: false,
            upstream_above: false,
            disturbed: false,
        }
    }

    /// Plays it to its end.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        self.drain();
        let checked = check(self.case, self, &self.response);
        self.model.client_reset();
        self.model.flush();
        self.drain();
        checked
    }

    /// After the end: what must have come of it.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        record(self.who, |r| {
            if let Some(wrong) = r.wrong.first() {
                return Err(wrong.clone());
            }
            if r.completed != r.started {
                return Err(format!("on_complete ran {} times for {}", r.completed, r.started));
            }
            if r.created != r.dropped {
                return Err(format!("{} were made, {} dropped", r.created, r.dropped));
            }
            Ok(())
        })?;
        let kept = left(|left| left.handles.iter().any(|(who, _)| *who == self.who));
        if !kept && !self.model.is_freed() {
            return Err("the exchange was not freed".into());
        }
        Ok(())
    }
}

impl Play<'_> {
    fn client(&mut self) -> bool {
        if self.case.obedient && self.model.paused(Direction::Request) {
            return false;
        }
        let Some(piece) = self.client.pop_front() else { return false };
        match piece {
            Piece::Headers(headers, end) => self.model.client_headers(headers, end),
            Piece::Data(data, end) => self.model.client_data(data, end),
            Piece::Trailers => self.model.client_trailers(trailers()),
        }
        true
    }

    fn upstream(&mut self) -> bool {
        if self.case.obedient && self.model.paused(Direction::Response) {
            return false;
        }
        if self.model.upstream().headers.is_none() {
            return false;
        }
        let Some(piece) = self.upstream.pop_front() else { return false };
        match piece {
            Piece::Headers(headers, end) => self.model.upstream_headers(headers, end),
            Piece::Data(data, end) => self.model.upstream_data(data, end),
            Piece::Trailers => self.model.upstream_trailers(trailers()),
        }
        true
    }

    /// Returns whether anything happened.
    pub(crate) fn event(&mut self, event: Event) -> bool {
        let over = self.model.is_over();
        match event {
            Event::Client => return self.client(),
            Event::Upstream => return self.upstream(),
            Event::Scheduled => return self.model.run_scheduled(),
            Event::Tasks => self.world.tasks(),
            Event::Time => self.world.time(),
            Event::Watermark => {
                self.above = !self.above;
                self.model.client_watermark(self.above);
            }
            Event::UpstreamWatermark => {
                self.upstream_above = !self.upstream_above;
                self.model.upstream_watermark(self.upstream_above);
            }
            // An earlier filter that begins to hold in the middle of a message cannot be told from a
            // later one: Envoy's shared buffer does not work with it.
            Event::Hold(before, direction)
                if before == (direction == Direction::Request) && self.has_begun(direction) =>
            {
                return false;
            }
            Event::Hold(before, direction) => self.model.hold(before, direction),
            Event::Release(before, direction) => {
                self.model.release(before, direction);
            }
            Event::ClientReset => {
                self.disturbed = true;
                self.model.client_reset();
            }
            Event::UpstreamReset => {
                self.disturbed = true;
                self.model.upstream_reset();
            }
            Event::LocalReply => {
                self.disturbed = true;
                self.model.local_reply(504, "elsewhere");
            }
            Event::Flush => self.model.flush(),
        }
        !over
    }

    fn has_begun(&self, direction: Direction) -> bool {
        let left = match direction {
            Direction::Request => &self.client,
            Direction::Response => &self.upstream,
        };
        let by_itself = direction == Direction::Response
            && self.case.upstream == Upstream::AnswersAtOnce
            && self.model.upstream().headers.is_some();
        by_itself || !matches!(left.front(), Some(Piece::Headers(..)))
    }

    /// Everything that is still to come, comes.
    fn drain(&mut self) {
        if self.above {
            self.event(Event::Watermark);
        }
        if self.upstream_above {
            self.event(Event::UpstreamWatermark);
        }
        let mut idle = 0;
        let mut turns = 0;
        let mut released = true;
        while idle < 5 {
            let mut moved = false;
            turns += 1;
            assert!(turns < 2_000, "livelock: the exchange wakes itself for ever");
            released = true;
            for before in [true, false] {
                released &= self.model.release(before, Direction::Request);
                released &= self.model.release(before, Direction::Response);
            }
            moved |= self.client();
            moved |= self.upstream();
            moved |= self.model.run_scheduled();
            self.world.time();
            moved |= self.model.has_scheduled();
            idle = if moved { 0 } else { idle + 1 };
        }
        if self.case.kind == Kind::CompiledIn && !released {
            // A neighbour that is full and cannot be released holds back what it waits for.
            self.disturbed = true;
        }
    }
}

/// What a change makes of what is left of a body.
fn changed(change: Change, rest: &[u8]) -> Option<Vec<u8>> {
    Some(match change {
        Change::Keep => rest.to_vec(),
        Change::Map => mapped(rest).to_vec(),
        Change::Pipe(..) | Change::Trailers(_) => [&mapped(rest)[..], b"."].concat(),
        // Which bytes are the first chunk depends on the timing.
        Change::PipeOne(_) => return None,
        Change::Full | Change::Stream(_) => OWN.to_vec(),
        Change::Empty => vec![],
    })
}

fn body_is(got: &Received, want: &[u8], what: &str) -> Result<(), String> {
    let body = got.body();
    if !want.starts_with(&body) || (got.ended && body.len() != want.len()) {
        return Err(format!("{what} got {body:?}, not {want:?} (ended: {})", got.ended));
    }
    Ok(())
}

fn framing_is_right(got: &Received, head: bool, what: &str) -> Result<(), String> {
    if let Some(length) = got.header("content-length")
        && got.ended
        && !head
        && length != got.body().len().to_string()
    {
        return Err(format!("{what}: content-length {length:?}, body {:?}", got.body()));
    }
    Ok(())
}

fn has(fields: &Option<Fields>, name: &str) -> bool {
    fields.as_ref().is_some_and(|f| f.iter().any(|(n, _)| n == name))
}

/// Plays a case. The error says which promise was broken; otherwise, whether the last event changed
/// anything.
pub(crate) fn run(case: &Case) -> Result<bool, String> {
    in_world(1, |world| {
        let mut play = Play::new(0, case, world);
        let played = guarded(|| {
            let mut moved = true;
            for event in &case.events {
                moved = play.event(*event);
            }
            play.end().map(|()| moved)
        });
        violated([&play])?;
        let moved = played?;
        forget_all();
        play.check_end()?;
        Ok(moved)
    })
}

/// Plays this many streams.
pub(crate) fn in_world<R>(streams: usize, f: impl FnOnce(&World) -> R) -> R {
    WORLD.with(|world| {
        let _runtime = world.begin(streams);
        // Of a run that has failed, something may still be there.
        forget_all();
        f(world)
    })
}

/// A panic of the player's, or of the model's, is the answer.
pub(crate) fn guarded<R>(f: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("it panicked: {}", text.unwrap_or_default()))
    })
}

pub(crate) fn violated<'a>(plays: impl IntoIterator<Item = &'a Play<'a>>) -> Result<(), String> {
    let mut all = plays.into_iter().flat_map(|play| play.model.violations());
    all.next().map_or(Ok(()), |first| Err(first.to_string()))
}

fn check(case: &Case, play: &Play<'_>, response: &Script) -> Result<(), String> {
    let program = &case.program;
    let (mut client, mut upstream) = (play.model.client(), play.model.upstream());
    for got in [&mut client, &mut upstream] {
        // Place for trailers that then nobody made: the codecs just end the message.
        if case.kind == Kind::CompiledIn && got.trailers.as_ref().is_some_and(Vec::is_empty) {
            got.trailers = None;
        }
    }
    let total =
        |script: &Script| -> Vec<u8> { (0..script.chunks.iter().sum()).map(input).collect() };
    let inputs = [total(&case.request), total(response)];
    let (taken, next, gave_up, started, returned) =
        record(play.who, |r| (r.taken.clone(), r.next, r.gave_up, r.started > 0, r.returned));
    // Failing open lets the message go on as it came.
    let own_was_refused = gave_up || matches!(program.finish, Finish::Own(_) | Finish::NewHead);
    let failed_open = case.fail_open && (!returned || own_was_refused);
    let replies = [case.before, case.after].contains(&Some(Neighbour::Replies));
    let buffers = [case.before, case.after].contains(&Some(Neighbour::Buffers));
    let refuses = case.upstream == Upstream::Refuses;
    // The response that the filter saw may not be the upstream's.
    let foreign = replies || buffers || refuses || play.disturbed;
    for side in 0..2 {
        if side == 1 && foreign {
            continue;
        }
        if !inputs[side].starts_with(&taken[side]) {
            return Err(format!("side {side} read {:?}", taken[side]));
        }
    }
    framing_is_right(&upstream, false, "the upstream")?;
    framing_is_right(&client, case.head, "the client")?;

    // Request.
    let rest = &inputs[0][taken[0].len()..];
    let want = if next { changed(program.request, rest) } else { Some(inputs[0].clone()) };
    if upstream.headers.is_some() {
        if !next && started && !case.fail_open {
            return Err("the request went on without `next.run`".into());
        }
        if let Some(want) = &want {
            body_is(&upstream, want, "the upstream")?;
        }
        let made = next && matches!(program.request, Change::Trailers(_));
        let trailers = made || case.request.trailers;
        if upstream.ended && trailers != upstream.trailers.is_some() {
            return Err(format!("request trailers: {:?}", upstream.trailers));
        }
        if upstream.trailers.is_some()
            && (has(&upstream.trailers, "x-made") != made
                || has(&upstream.trailers, "x-trailer") == made
                || has(&upstream.trailers, "x-mapped") != (next && program.request_trailers))
        {
            return Err(format!("request trailers: {:?}", upstream.trailers));
        }
    }

    // Response.
    let from_upstream = has(&client.headers, "x-up")
        || (case.upstream == Upstream::AnswersAtOnce && client.status() == Some(200) && !foreign);
    let rest = inputs[1].get(taken[1].len()..).unwrap_or_default();
    let want = match () {
        () if case.head => Some(vec![]),
        () if failed_open => Some(inputs[1].clone()),
        () => changed(program.response, rest),
    };
    if from_upstream {
        if let Some(want) = &want {
            body_is(&client, want, "the client")?;
        }
        let bare = case.head || failed_open;
        let made = !bare && matches!(program.response, Change::Trailers(_));
        if client.ended && (made || response.trailers) != client.trailers.is_some() {
            return Err(format!("response trailers: {:?}", client.trailers));
        }
        if client.trailers.is_some() && has(&client.trailers, "x-made") != made {
            return Err(format!("response trailers: {:?}", client.trailers));
        }
        if client.trailers.is_some()
            && has(&client.trailers, "x-mapped") != (!failed_open && program.response_trailers)
        {
            return Err(format!("response trailers: {:?}", client.trailers));
        }
    }
    let chosen = if gave_up {
        program.gives_up
    } else {
        match (next, program.early, program.finish) {
            (false, Some(Finish::Own(own)), _) | (true, _, Finish::Own(own)) => Some(own),
            _ => None,
        }
    };
    if has(&client.headers, "x-own") {
        let echoed = if next { vec![] } else { inputs[0][taken[0].len()..].to_vec() };
        let want = match chosen {
            None => return Err("a reply that the program did not make".into()),
            _ if case.head => vec![],
            Some(Own::Empty) => vec![],
            Some(Own::Echo) => echoed,
            Some(_) => OWN.to_vec(),
        };
        body_is(&client, &want, "the client")?;
        let trailers = chosen == Some(Own::Trailers) && !case.head;
        if client.ended && has(&client.trailers, "x-last") != trailers {
            return Err(format!("the reply's trailers: {:?}", client.trailers));
        }
    }
    if has(&client.headers, "x-new") && !foreign {
        let want = if case.head { &[] } else { rest };
        body_is(&client, want, "the client")?;
    }

    // Nothing stuck: unless the world interfered, the exchange has ended, and as it should.
    if play.disturbed {
        return Ok(());
    }
    if buffers && case.limit < HUGE as u64 {
        // What we hold over the limit keeps the client paused; a filter that collects it then waits
        // for the rest in vain. Envoy's own filters do that to each other, too.
        return Ok(());
    }
    if !client.ended && !client.reset {
        return Err(format!("stuck: client {client:?}, upstream {upstream:?}"));
    }
    if replies || refuses || buffers {
        return Ok(());
    }
    let over = |steps: &[Step], side: usize| {
        // Chunks that were read before do not count.
        let mut left = inputs[side].len();
        steps.iter().any(|step| match *step {
            Step::Buffer(limit) => left > limit,
            Step::Collect(limit) => {
                let is = left > limit;
                left = 0;
                is
            }
            _ => false,
        })
    };
    // Whether they are ready in time is up to the timing.
    let made = |change, script: &Script| matches!(change, Change::Trailers(_)) && !script.trailers;
    let may_fail = over(&program.before, 0)
        || over(&program.after, 1)
        || taken_by_chunks(program)
        || made(program.request, &case.request)
        || made(program.response, response);
    let expect = |ok: bool, what: &str| {
        if ok || may_fail {
            return Ok(());
        }
        Err(format!("{what}: client {client:?}, upstream {upstream:?}"))
    };
    let fails = [program.early, Some(program.finish)]
        .into_iter()
        .flatten()
        .any(|finish| matches!(finish, Finish::Error | Finish::Panic | Finish::SpawnedPanic));
    if case.fail_open && fails {
        return Ok(());
    }
    let failed = |finish: Option<Finish>| match finish {
        Some(Finish::Error) => Some(418),
        Some(Finish::Panic | Finish::SpawnedPanic) => Some(500),
        _ => None,
    };
    if let Some(status) = failed(program.early) {
        return expect(client.status() == Some(status), "the failure's status");
    }
    if program.early.is_some() {
        return expect(has(&client.headers, "x-own") && client.ended, "the filter's own reply");
    }
    if gave_up {
        return expect(client.ended || client.reset, "giving up ends it");
    }
    if let Some(status) = failed(Some(program.finish)) {
        return expect(client.status() == Some(status) || client.reset, "the failure's status");
    }
    match program.finish {
        Finish::Own(Own::Trailers) => expect(client.ended, "a reply that cannot have trailers"),
        Finish::Own(_) => expect(has(&client.headers, "x-own") && client.ended, "the replacement"),
        Finish::NewHead => expect(has(&client.headers, "x-new") && client.ended, "the new head"),
        _ => expect(from_upstream && client.ended, "the upstream's response"),
    }
}

/// A chunk that is read before a limit is checked makes room that only the timing knows.
fn taken_by_chunks(program: &Program) -> bool {
    let mixed = |steps: &[Step]| {
        steps.contains(&Step::Chunk)
            && steps.iter().any(|s| matches!(s, Step::Buffer(l) | Step::Collect(l) if *l < HUGE))
    };
    mixed(&program.before) || mixed(&program.after)
}
