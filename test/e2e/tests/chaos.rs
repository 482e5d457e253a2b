//! Everything at once, in random order: filters that wait, reply, fail, panic, leak and start again,
//! clients that leave and upstreams that break off, while the config changes; and whatever comes of
//! it, Envoy lives, each exchange ends once, and who did nothing wrong gets the right answer.
//!
//! The order is that of a seed, which a failure names; time and threads still have their say.
//! `CHAOS=10000` plays so many exchanges instead, and `CHAOS_SEED=1` others.

use std::sync::Arc;
use std::time::Duration;

use attache_e2e::{
    Broken, Call, Client, Cluster, Collected, Config, Envoy, ModuleFilter, Modules, OutBody,
    Protocol, Route, Update, Upstream, Version, eventually, header_map, module_path, response,
    within,
};
use bytes::Bytes;
use http::{Method, Response};
use serde_json::json;
use tempfile::TempDir;

/// How many exchanges a client plays, of how many clients.
const CLIENTS: u64 = 8;
const EACH: u64 = 40;

/// What hurts nobody, and leaves the body as it is.
const HARMLESS: &[u8] = b"ytoOdkKswbmpTlH";
/// What does: the client gets some end, and that is all that can be said.
const HARMFUL: &[u8] = b"cref|VDZNFGRSEPXQ";

/// A plain generator of numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick(&mut self, letters: &[u8]) -> char {
        char::from(letters[self.roll(letters.len() as u64) as usize])
    }

    /// What one filter is told to do.
    fn letters(&mut self, harmful: bool) -> String {
        let mut all = String::new();
        for part in 0..2 {
            if part == 1 {
                all.push('|');
            }
            for _ in 0..self.roll(4) {
                let letters = if harmful && self.roll(3) == 0 { HARMFUL } else { HARMLESS };
                match self.pick(letters) {
                    '|' => (),
                    // A message that has been piped or replaced is not there to be read as it was.
                    letter => all.push(letter),
                }
            }
        }
        all
    }
}

/// One exchange as it is to be.
#[derive(Debug)]
struct Plan {
    first: String,
    second: String,
    upstream: &'static str,
    /// The request's body, in so many pieces.
    pieces: u64,
    trailers: bool,
    /// What the client does, after so many microseconds.
    leaves: Option<u64>,
    harmless: bool,
}

impl Plan {
    fn new(dice: &mut Dice) -> Self {
        let harmful = dice.roll(2) == 0;
        let upstreams: &[&str] = match harmful {
            true => &["echo", "early", "cut", "empty", "large", "never", "gone"],
            false => &["echo", "large"],
        };
        Plan {
            first: dice.letters(harmful),
            second: dice.letters(harmful),
            upstream: upstreams[dice.roll(upstreams.len() as u64) as usize],
            pieces: dice.roll(4),
            trailers: dice.roll(4) == 0,
            leaves: (harmful && dice.roll(3) == 0).then(|| dice.roll(3000)),
            harmless: !harmful,
        }
    }

    fn body(&self) -> Vec<u8> {
        (0..self.pieces).flat_map(piece).collect()
    }

    fn call(&self) -> Call {
        let method = if self.pieces == 0 { Method::GET } else { Method::POST };
        let path = if self.harmless { "/" } else { "/hasty" };
        let call = Call::new(method, path)
            .header("x-chaos-1", &self.first)
            .header("x-chaos-2", &self.second)
            .header("x-up", self.upstream);
        let pieces = (0..self.pieces).map(piece);
        match (self.pieces, self.trailers) {
            (0, _) => call,
            (_, false) => call.chunks(pieces),
            (_, true) => {
                call.declare_trailers(&["x-end"]).chunks_and_trailers(pieces, &[("x-end", "1")])
            }
        }
    }

    /// What the client must get, where that can be told.
    fn expected(&self) -> Option<Vec<u8>> {
        match self.upstream {
            _ if !self.harmless => None,
            "echo" => Some(self.body()),
            "large" => Some(vec![b'l'; LARGE]),
            _ => None,
        }
    }
}

/// More than Envoy holds.
const LARGE: usize = 300_000;

fn piece(index: u64) -> Vec<u8> {
    vec![b'a' + index as u8; [1, 1000, 70_000, 30_000][index as usize]]
}

async fn upstream() -> Upstream {
    Upstream::start(async |mut request: http::Request<attache_e2e::SeenBody>| {
        let kind = request.headers().get("x-up").map(|kind| kind.as_bytes().to_vec());
        let kind = kind.unwrap_or_default();
        if kind == b"early" {
            return response(200, "early");
        }
        if kind == b"never" {
            std::future::pending::<()>().await;
        }
        let mut all = Vec::new();
        while let Some(chunk) = request.body_mut().chunk().await {
            all.extend_from_slice(&chunk?);
        }
        match &kind[..] {
            b"gone" => Err("chaos".into()),
            b"cut" => {
                let (mut sender, body) = OutBody::channel();
                tokio::spawn(async move { sender.data("some, and then no more").await });
                Ok(Response::new(body))
            }
            b"empty" => response(204, ""),
            b"large" => {
                let chunks = vec![Bytes::from_static(&[b'l'; 10_000]); LARGE / 10_000];
                let trailers = header_map([("x-end", "1")]);
                let response = Response::builder().header("trailer", "x-end");
                Ok(response.body(OutBody::frames(chunks, trailers))?)
            }
            _ => response(200, all),
        }
    })
    .await
}

/// The filters, and the same in a module of its own, with a runtime of its own: in a chain, only Envoy
/// is between them. The folder keeps it.
fn modules() -> (Modules, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let twin = folder.path().join("libtwin.so");
    // A link would be the same module to the loader.
    std::fs::copy(module_path("attache-e2e-filters"), &twin).expect("a copy");
    (Modules::new().package("attache-e2e-filters").file("twin", &twin), folder)
}

/// The calm one is for those who do nothing wrong: a connection to the other may break at any time.
fn config(upstream: &Upstream, calm: &Upstream, version: u64) -> Config {
    let filter = |module: &str, name: &str| {
        ModuleFilter::new(module, "chaos").instance(name).config(json!({
            "header": name,
            // Another config each time.
            "attache": {"slow_poll_ms": 1000 + version},
        }))
    };
    let mark = |name: String| {
        ModuleFilter::new("attache_e2e_filters", "mark").config(json!({"name": name}))
    };
    // As do the routes' configs.
    let of_route = mark(format!("v{version}")).per_route();
    Config::new()
        .filter(mark("chain".into()))
        .filter(filter("attache_e2e_filters", "x-chaos-1"))
        .filter(filter("twin", "x-chaos-2"))
        .buffer_limit(64 * 1024)
        .upstream(upstream.address())
        // For those that wait for ever.
        .route(
            Route::prefix("/hasty")
                .to("upstream")
                .filter_config("mark", of_route.clone())
                .timeout(Duration::from_millis(400))
                .patch(|route| route["route"]["idle_timeout"] = json!("0.3s")),
        )
        .cluster(Cluster::new("calm", calm.address()))
        .route(Route::prefix("/").to("calm").filter_config("mark", of_route))
        .watched()
}

/// What of an exchange came to its client.
async fn play(connection: &mut Client, plan: &Plan) -> Option<Result<Collected, Broken>> {
    let reply = async { connection.send(plan.call()).await?.collect().await };
    match plan.leaves {
        None => Some(within("an end of any kind", reply).await),
        Some(micros) => tokio::time::timeout(Duration::from_micros(micros), reply).await.ok(),
    }
}

async fn client(envoy: Arc<Envoy>, seed: u64, count: u64, updated: bool) {
    let mut dice = Dice(seed);
    let protocol = Protocol::ALL[(seed % 2) as usize];
    // What is done on a connection may end it for whoever comes next.
    let mut connections = [None, None];
    for _ in 0..count {
        let plan = Plan::new(&mut dice);
        let slot = &mut connections[usize::from(plan.harmless)];
        let mut connection = match slot.take() {
            Some(connection) if !Client::is_closed(&connection) => connection,
            _ => envoy.connect(protocol).await,
        };
        let got = play(&mut connection, &plan).await;
        if let Some(expected) = plan.expected()
            && !updated
        {
            let got = got.as_ref().expect("it stays");
            let got = got.as_ref().unwrap_or_else(|broken| panic!("{plan:?}: {broken}"));
            assert_eq!(got.status.as_u16(), 200, "{plan:?}: {:?}", got.text());
            assert!(got.body == expected, "{plan:?}: {} bytes", got.body.len());
        }
        if matches!(got, Some(Ok(_))) {
            *slot = Some(connection);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_each_exchange_ends_once_and_envoy_lives() {
    in_chaos(false).await;
}

/// The connections of an old config are closed after a second, whatever is under way on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_while_the_config_changes_envoy_lives() {
    in_chaos(true).await;
}

async fn in_chaos(updated: bool) {
    let (modules, _folder) = modules();
    let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let each = number("CHAOS").map_or(EACH, |all| all / CLIENTS);
    let seeds = number("CHAOS_SEED").unwrap_or_default() * CLIENTS;
    for version in Version::all() {
        let (upstream, calm) = (upstream().await, upstream().await);
        let launch = version.launch().modules(&modules).concurrency(2).drain_seconds(1);
        let envoy = Arc::new(launch.start(&config(&upstream, &calm, 0)).await);
        let clients: Vec<_> = (seeds..seeds + CLIENTS)
            .map(|seed| tokio::spawn(client(envoy.clone(), seed, each, updated)))
            .collect();
        let mut updates = 0;
        while updated && !clients.iter().all(|client| client.is_finished()) {
            updates += 1;
            assert_eq!(envoy.update(&config(&upstream, &calm, updates)).await, Update::Accepted);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        for client in clients {
            client.await.expect("a client that got what it must");
        }
        let stat = async |name: &str| {
            envoy.stat(&format!("dynamicmodulescustom.{name}")).await.unwrap_or_default()
        };
        eventually("all to have ended", async || {
            stat("chaos_started").await == stat("chaos_completed").await
                && stat("attache.chaos.active").await == 0
                && stat("attache.chaos.suspended").await == 0
        })
        .await;
        assert!(stat("chaos_started").await >= CLIENTS * each);
        assert!(!envoy.log().contains("a bug in Attaché"), "{}", envoy.log());
        for protocol in Protocol::ALL {
            let mut client = envoy.connect(protocol).await;
            let reply = client.fetch(Call::post("/").body("fine")).await;
            assert_eq!(reply.text(), "fine");
            assert_eq!(reply.header("x-mark"), Some(&*format!("chain:v{updates}")));
        }
        // And it ends, with some of them under way.
        let mut client = envoy.connect(Protocol::Http2).await;
        let mut held = Vec::new();
        for letters in ["Q|", "|Q", "p|p", "kQ|"] {
            let call = Call::post("/").header("x-chaos-1", letters).header("x-up", "never");
            held.push(client.start(call).await);
        }
        let envoy = Arc::into_inner(envoy).expect("the clients have ended");
        envoy.finish().await;
    }
}

/// Ten thousand wait at once, and their clients go: by resetting their streams, or the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_waits_and_leaves_leaves_nothing_behind() {
    // Envoy lets an HTTP/2 connection have 1024 streams, unless it is told otherwise.
    const CONNECTIONS: u64 = 100;
    const CALLS: u64 = 100;
    let (modules, _folder) = modules();
    for version in Version::all() {
        let (upstream, calm) = (upstream().await, upstream().await);
        let launch = version.launch().modules(&modules).concurrency(2);
        let envoy = launch.start(&config(&upstream, &calm, 0)).await;
        let active = "dynamicmodulescustom.attache.chaos.suspended";
        let mut grown = Vec::new();
        for _ in 0..3 {
            let mut crowd = Vec::new();
            for connection in 0..CONNECTIONS {
                let mut client = envoy.connect(Protocol::Http2).await;
                let mut calls = Vec::new();
                for call in 0..CALLS {
                    // The second filter waits, too: for the first's response, or for ever.
                    let header = if call % 2 == 0 { "x-chaos-1" } else { "x-chaos-2" };
                    let call = Call::get("/").header(header, "totdQ|");
                    calls.push(client.start(call).await);
                }
                crowd.push((connection % 2 == 0, client, calls));
            }
            // Those whose second filter waits are suspended in both.
            envoy.wait_for_stat(active, CONNECTIONS * CALLS * 3 / 2).await;
            for (resets, client, calls) in crowd {
                if !resets {
                    client.disconnect();
                }
                drop(calls);
            }
            envoy.wait_for_stat(active, 0).await;
            envoy.wait_for_stat("http.ingress.downstream_rq_active", 0).await;
            grown.push(envoy.resident_bytes());
        }
        // The first crowd makes Envoy's allocator take what the others find.
        assert!(grown[2] < grown[0] + (16 << 20), "Envoy grows with each crowd: {grown:?}");
        envoy.finish().await;
    }
}
