//! What a thread that serves exchanges keeps for all of them. An exchange looks it up once, when it
//! begins: no event of it has to search the thread's locals.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::exchange::Inner;
use crate::runtime;
use crate::stats;

pub(crate) struct Worker {
    /// The exchange that the thread is working for; see `current.rs`.
    pub(crate) current: Cell<Option<Rc<Inner>>>,
    /// Exchanges that have ended and wait for other streams; see `exchange/kept.rs`.
    kept: RefCell<Vec<Rc<Inner>>>,
    /// The thread ends: nothing is kept any more.
    ends: Cell<bool>,
    /// Where the thread counts; see `stats.rs`.
    pub(crate) number: usize,
    /// The thread has entered our runtime, for good.
    entered: Cell<bool>,
}

/// How many exchanges a worker keeps, of half a KiB each.
const KEPT: usize = 256;

struct Here(OnceCell<Rc<Worker>>);

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(worker) = self.0.get() {
            // They refer to the worker, which would keep them for ever.
            worker.ends.set(true);
            drop(worker.kept.take());
            if SERVING.fetch_sub(1, Ordering::AcqRel) == 1
                && let Some(ended) = WORKERS_ENDED.get()
            {
                ended();
            }
        }
    }
}

thread_local!(static WORKER: Here = const { Here(OnceCell::new()) });

/// How many threads have a [`Worker`].
static SERVING: AtomicUsize = AtomicUsize::new(0);
static WORKERS_ENDED: OnceLock<fn()> = OnceLock::new();

/// Has `ended` called when the last of the threads that have served exchanges ends, on that thread.
/// The first that is given is the one.
pub fn when_workers_end(ended: fn()) {
    WORKERS_ENDED.get_or_init(|| ended);
}

/// What a thread keeps for the exchanges that it serves: memory for the next ones, first of all.
///
/// For a host that has a faster way to a thread's own than a thread local. It stays on its thread.
#[derive(Clone)]
pub struct ThisWorker(pub(crate) Rc<Worker>);

impl std::fmt::Debug for ThisWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThisWorker({})", self.0.number)
    }
}

impl ThisWorker {
    /// That of this thread.
    pub fn here() -> Self {
        ThisWorker(Worker::here())
    }
}

impl Worker {
    fn new() -> Rc<Self> {
        Rc::new(Worker {
            current: Cell::new(None),
            kept: RefCell::default(),
            ends: Cell::new(false),
            number: stats::next_number(),
            entered: Cell::new(false),
        })
    }

    /// This thread's.
    pub(crate) fn here() -> Rc<Self> {
        // At the thread's end the locals may be gone; then it is one for this exchange alone.
        let made = || {
            SERVING.fetch_add(1, Ordering::AcqRel);
            Worker::new()
        };
        WORKER.try_with(|here| here.0.get_or_init(made).clone()).unwrap_or_else(|_| {
            let alone = Worker::new();
            alone.ends.set(true);
            alone
        })
    }

    /// Shows this thread's, if it has one.
    #[inline]
    pub(crate) fn look<R>(f: impl FnOnce(&Worker) -> R) -> Option<R> {
        WORKER.try_with(|here| here.0.get().map(|worker| f(worker))).ok()?
    }

    /// The exchange that the thread is working for. Only where there is one.
    #[inline]
    pub(crate) fn serving(&self) -> Rc<Inner> {
        let exchange = self.current.take().expect("an exchange is polled within itself");
        self.current.set(Some(exchange.clone()));
        exchange
    }

    /// An exchange that this thread has kept.
    #[inline]
    pub(crate) fn take_kept(&self) -> Option<Rc<Inner>> {
        self.kept.borrow_mut().pop()
    }

    /// Keeps an exchange that has ended, if there is room.
    #[inline]
    pub(crate) fn keep(&self, exchange: Rc<Inner>) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT && !self.ends.get() {
            kept.push(exchange);
        }
    }

    /// As [`runtime::enter`], at the price of a look.
    pub(crate) fn enter_runtime(&self) {
        if !self.entered.get() {
            self.entered.set(runtime::enter());
        }
    }
}
