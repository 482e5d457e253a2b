//! What a thread that serves exchanges keeps for all of them. An exchange looks it up once, when it
//! begins: no event of it has to search the thread's locals.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use crate::exchange::Inner;
use crate::runtime;
use crate::stats;
use crate::wake::Pair;

pub(crate) struct Worker {
    /// The exchange that the thread is working for; see `current.rs`.
    pub(crate) current: Cell<Option<Rc<Inner>>>,
    /// Wakers that wait for the next exchanges; see `wake.rs`.
    pub(crate) wakers: RefCell<Vec<Pair>>,
    /// Where the thread counts; see `stats.rs`.
    pub(crate) number: usize,
    /// The thread has entered our runtime, for good.
    entered: Cell<bool>,
}

thread_local!(static WORKER: OnceCell<Rc<Worker>> = const { OnceCell::new() });

impl Worker {
    fn new() -> Rc<Self> {
        Rc::new(Worker {
            current: Cell::new(None),
            wakers: RefCell::default(),
            number: stats::next_number(),
            entered: Cell::new(false),
        })
    }

    /// This thread's.
    pub(crate) fn here() -> Rc<Self> {
        // At the thread's end the locals may be gone; then it is one for this exchange alone.
        WORKER
            .try_with(|worker| worker.get_or_init(Worker::new).clone())
            .unwrap_or_else(|_| Worker::new())
    }

    /// Shows this thread's, if it has one.
    pub(crate) fn look<R>(f: impl FnOnce(&Worker) -> R) -> Option<R> {
        WORKER.try_with(|worker| worker.get().map(|worker| f(worker))).ok()?
    }

    /// As [`runtime::enter`], at the price of a look.
    pub(crate) fn enter_runtime(&self) {
        if !self.entered.get() {
            self.entered.set(runtime::enter());
        }
    }
}
