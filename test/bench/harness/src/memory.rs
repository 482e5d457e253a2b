//! What the runtime keeps in memory: bytes per suspended exchange, and allocations per body chunk.
//!
//! Both are counted by the allocator of the filter library itself, so that Envoy's own memory,
//! which is far larger and rounder, does not blur them. A second listener of the same Envoy reaches
//! the filter `attache_probe`, which tells the counts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use h2::client::{self, ResponseFuture};
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::envoy::{Envoy, Launcher};
use crate::load;
use crate::upstream::Upstream;
use crate::variant::{self, ATTACHE_LIBRARY, Listener};

/// What one connection carries at once; the config allows no more.
const STREAMS: usize = 1000;

const LIMIT: Duration = Duration::from_secs(60);

/// What the suspended exchanges took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspended {
    /// How many there were at once.
    pub(crate) exchanges: usize,
    /// Bytes of the runtime's own heap, per exchange.
    pub(crate) heap_each: f64,
    /// The same, still there when all of them were over: what the runtime holds on to.
    pub(crate) left_each: f64,
    /// Envoy's resident memory while they were suspended, in MiB.
    pub(crate) rss_mb: f64,
    /// What that grew by, per exchange: Envoy's streams included.
    pub(crate) rss_each: f64,
}

/// Allocations of the filter library per exchange, for two sizes of body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    /// With bodies of [`SMALL`] bytes.
    pub(crate) small: f64,
    /// With bodies of [`variant::BODY`] bytes.
    pub(crate) large: f64,
}

/// A body that arrives in one piece, or nearly so.
pub(crate) const SMALL: usize = 1 << 10;

/// The counts of the filter library's allocator.
#[derive(Clone, Copy, Debug)]
struct Counts {
    live: i64,
    allocations: i64,
    suspended: i64,
}

fn start(
    launcher: &Launcher,
    upstream: &Upstream,
    filter: &str,
    answer: Option<&'static str>,
) -> Result<Envoy> {
    let ours = |filter| variant::ours_in(launcher.host, ATTACHE_LIBRARY, filter);
    let listeners = vec![
        Listener { name: "bench", filters: vec![ours(filter)], answer },
        Listener { name: "probe", filters: vec![ours("attache_probe")], answer: Some("") },
    ];
    launcher.start(&format!("memory.{filter}"), &variant::config(listeners, upstream.address()))
}

fn probe(to: SocketAddr, path: &str) -> Result<Counts> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\n\r\n");
    let response = load::ask(to, request.as_bytes())?;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    let numbers: Vec<i64> = text.split(' ').filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [live, allocations, suspended] => Ok(Counts { live, allocations, suspended }),
        _ => Err(format!("attache_probe answered {:?}: {text}", response.status()).into()),
    }
}

/// Counts what the untouched body of an exchange costs the filter library's allocator.
pub(crate) fn chunks(launcher: &Launcher, upstream: &Upstream, exchanges: usize) -> Result<Chunks> {
    let envoy = start(launcher, upstream, "attache_body_untouched", None)?;
    let (bench, counts) = (envoy.listener("bench")?, envoy.listener("probe")?);
    let count = |body: usize| -> Result<f64> {
        let request = variant::post(body).request;
        // The first exchange pays for what is made once.
        load::ask(bench, &request)?;
        let empty = probe(counts, "/counts")?;
        let before = probe(counts, "/counts")?;
        for _ in 0..exchanges {
            let response = load::ask(bench, &request)?;
            if (response.status(), response.body_len()) != (Some(200), body as u64) {
                return Err("attache_body_untouched broke an exchange".into());
            }
        }
        let after = probe(counts, "/counts")?;
        // Each look at the counts is an exchange too, and allocates.
        let look = before.allocations - empty.allocations;
        Ok((after.allocations - before.allocations - look) as f64 / exchanges as f64)
    };
    Ok(Chunks { small: count(SMALL)?, large: count(variant::BODY)? })
}

/// Suspends `exchanges` exchanges at once, and looks at the memory that they take.
pub(crate) fn suspended(
    launcher: &Launcher,
    upstream: &Upstream,
    exchanges: usize,
) -> Result<Suspended> {
    let envoy = start(launcher, upstream, "attache_suspend", Some(""))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(suspend(&envoy, exchanges))
}

async fn suspend(envoy: &Envoy, exchanges: usize) -> Result<Suspended> {
    let (bench, counts) = (envoy.listener("bench")?, envoy.listener("probe")?);
    // One exchange there and back makes what is made once.
    let (tasks, waiting) = open(bench, 1).await?;
    wait_for(counts, 1).await?;
    finish(counts, waiting).await?;
    drop(tasks);
    wait_for(counts, 0).await?;

    let before = probe(counts, "/counts")?;
    let rss_before = envoy.rss()?;
    let (tasks, waiting) = open(bench, exchanges).await?;
    let during = wait_for(counts, exchanges).await?;
    let rss = envoy.rss()?;
    finish(counts, waiting).await?;
    drop(tasks);
    let after = wait_for(counts, 0).await?;
    let each = |bytes: f64| bytes / exchanges as f64;
    Ok(Suspended {
        exchanges,
        heap_each: each((during.live - before.live) as f64),
        left_each: each((after.live - before.live) as f64),
        rss_mb: rss as f64 / f64::from(1 << 20),
        rss_each: each(rss as f64 - rss_before as f64),
    })
}

/// Starts exchanges over HTTP/2, which needs few connections for many of them.
async fn open(to: SocketAddr, exchanges: usize) -> Result<(JoinSet<()>, Vec<ResponseFuture>)> {
    let mut tasks = JoinSet::new();
    let mut waiting = Vec::with_capacity(exchanges);
    while waiting.len() < exchanges {
        let (sender, connection) = client::handshake(TcpStream::connect(to).await?).await?;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection failed: {error}");
            }
        });
        for _ in waiting.len()..exchanges.min(waiting.len() + STREAMS) {
            let request = Request::get("http://bench/bench").body(())?;
            let mut ready = timeout(LIMIT, sender.clone().ready()).await??;
            waiting.push(ready.send_request(request, true)?.0);
        }
    }
    Ok((tasks, waiting))
}

/// Lets all suspended exchanges go, and waits for their responses.
async fn finish(counts: SocketAddr, waiting: Vec<ResponseFuture>) -> Result<()> {
    probe(counts, "/release")?;
    for response in waiting {
        let response = timeout(LIMIT, response).await??;
        if response.status() != 200 {
            return Err(format!("a suspended exchange ended with {}", response.status()).into());
        }
    }
    Ok(())
}

/// Waits until as many exchanges as wanted are suspended.
async fn wait_for(counts: SocketAddr, wanted: usize) -> Result<Counts> {
    let start = Instant::now();
    loop {
        let found = probe(counts, "/counts")?;
        if usize::try_from(found.suspended) == Ok(wanted) {
            return Ok(found);
        }
        if start.elapsed() > LIMIT {
            let found = found.suspended;
            return Err(format!("{found} exchanges are suspended, not {wanted}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
