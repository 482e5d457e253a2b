//! Posting to Envoy's main thread from threads that are not Envoy's, and the end of that.
//!
//! Envoy keeps the config while a commit of its scheduler is under way. A thread that the system does
//! not let run just then may be the last to let go of it, and destroys it there and then, with the
//! last of it that Envoy has. That is well as long as Envoy is there; when it has gone down meanwhile,
//! stats and all, it is a crash. So nothing is committed any more once Envoy goes down, and Envoy goes
//! on to do so only when what was under way is done.
//!
//! What tells of it is that the workers' threads end, which the main thread waits for before it takes
//! down what is left. A process in which no exchange was served knows of no worker: there, a commit in
//! the very moment of the end is as it would be without this.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

thread_local!(static COMMITTING: Cell<bool> = const { Cell::new(false) });

/// The gate of this process.
static GATE: Gate = Gate::new();

/// How long Envoy's end may wait. A commit takes less than a microsecond, but in one that ends a config
/// the filter's own code may run.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks Envoy to call back on the main thread: `post` commits an event to a config's scheduler. Not if
/// Envoy goes down.
///
/// Should everybody else have let go of the config, it is destroyed in here.
pub(crate) fn commit(post: impl FnOnce()) {
    GATE.pass(|| {
        let before = COMMITTING.replace(true);
        post();
        COMMITTING.set(before);
    });
}

/// Whether this thread is in a [`commit`]: then it is perhaps not one of Envoy's.
pub(crate) fn is_committing() -> bool {
    COMMITTING.get()
}

/// Envoy makes a config: it is there.
pub(crate) fn open() {
    attache_core::when_workers_end(|| GATE.close(PATIENCE));
    GATE.open();
}

/// Who is in, and whether others may come.
struct Gate(AtomicUsize);

const CLOSED: usize = 1;
const ONE: usize = 2;

impl Gate {
    const fn new() -> Self {
        Gate(AtomicUsize::new(0))
    }

    fn open(&self) {
        self.0.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    fn pass(&self, run: impl FnOnce()) {
        struct In<'a>(&'a Gate);
        impl Drop for In<'_> {
            fn drop(&mut self) {
                self.0.0.fetch_sub(ONE, Ordering::Release);
            }
        }
        let before = self.0.fetch_add(ONE, Ordering::AcqRel);
        let _in = In(self);
        if before & CLOSED == 0 {
            run();
        }
    }

    /// Lets nobody in any more, and returns when all are out, or `patience` is over.
    fn close(&self, patience: Duration) {
        let begun = Instant::now();
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) >= ONE && begun.elapsed() < patience {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn the_end_waits_for_who_is_in_and_lets_nobody_else_in() {
        let gate = Gate::new();
        let (is_in, may_go) = (Barrier::new(2), Barrier::new(2));
        let out = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.pass(|| {
                    is_in.wait();
                    may_go.wait();
                    out.store(true, Ordering::SeqCst);
                });
            });
            is_in.wait();
            gate.close(Duration::ZERO);
            gate.pass(|| panic!("it is closed"));
            assert!(!out.load(Ordering::SeqCst));
            may_go.wait();
            gate.close(Duration::MAX);
            assert!(out.load(Ordering::SeqCst));
        });
        gate.open();
        let mut passed = false;
        gate.pass(|| passed = true);
        assert!(passed);
    }
}
