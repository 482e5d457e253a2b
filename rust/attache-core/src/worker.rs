//! What a thread that serves exchanges keeps for all of them. An exchange looks it up once, when it
//! begins: no event of it has to search the thread's locals.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

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
        }
    }
}

thread_local!(static WORKER: Here = const { Here(OnceCell::new()) });

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
        WORKER.try_with(|here| here.0.get_or_init(Worker::new).clone()).unwrap_or_else(|_| {
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
    pub(crate) fn take_kept() -> Option<Rc<Inner>> {
        Worker::look(|worker| worker.kept.borrow_mut().pop())?
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
