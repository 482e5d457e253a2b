//! Where a filter keeps its state: one value for all workers, one for each, one for each exchange. The
//! filters are those of the section "State" in `attache`'s documentation.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use attache_core::{
    Completion, ConfigError, Filter, Next, PerWorker, Request, Response, Result, Setup,
};
use attache_test::{TestHost, TestRequest, TestResponse};

struct State {
    all: AtomicU64,
    here: PerWorker<Cell<u64>>,
}

/// Of one exchange, for those who are not in `handle`.
struct Number(u64);

static ENDED: Mutex<Option<Sender<u64>>> = Mutex::new(None);

impl Filter for State {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(State { all: AtomicU64::new(0), here: setup.per_worker(|| Cell::new(0)) })
    }

    async fn handle(&self, req: Request, next: Next) -> Result<Response> {
        let number = self.all.fetch_add(1, Ordering::Relaxed) + 1;
        req.stream().extensions().insert(Number(number))?;
        let here = self.here.with(|here| {
            here.set(here.get() + 1);
            here.get()
        });
        let mut resp = next.run(req).await?;
        resp.headers_mut().set("x-number", format!("{number} {here}"));
        Ok(resp)
    }

    fn on_complete(&self, done: &Completion) {
        if let Ok(Some(number)) = done.stream().extensions().get::<Number>()
            && let Some(ended) = &*ENDED.lock().unwrap_or_else(PoisonError::into_inner)
        {
            let _ = ended.send(number.0);
        }
    }
}

fn ended() -> Receiver<u64> {
    let (sender, receiver) = channel();
    *ENDED.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    receiver
}

#[test]
fn all_workers_share_one_each_has_its_own_and_each_exchange_has_its_own() {
    let ended = ended();
    let host = TestHost::new::<State>("");
    let number = |host: &TestHost| {
        let response = host.request(TestRequest::get("/")).run();
        let text = response.header_text("x-number").unwrap();
        let (all, here) = text.split_once(' ').unwrap();
        (all.parse::<u64>().unwrap(), here.parse::<u64>().unwrap())
    };
    let mut seen: Vec<_> =
        host.on_workers(2, |_, host| [number(host), number(host)]).into_iter().flatten().collect();
    seen.push(number(&host));
    let mut here: Vec<_> = seen.iter().map(|(_, here)| *here).collect();
    let mut all: Vec<_> = seen.iter().map(|(all, _)| *all).collect();
    here.sort_unstable();
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3, 4, 5], "one for all workers");
    assert_eq!(here, [1, 1, 1, 2, 2], "one for each worker");
    // Exchanges that are under way at once keep theirs apart.
    let (first, second) = (host.open(TestRequest::get("/")), host.open(TestRequest::get("/")));
    for exchange in [&second, &first] {
        exchange.respond(TestResponse::new(200));
    }
    assert_eq!(second.finish().header_text("x-number"), Some("7 3"));
    assert_eq!(first.finish().header_text("x-number"), Some("6 2"));
    let mut numbers: Vec<_> = ended.try_iter().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
}
