//! A waker that is not ours: of a combinator of futures, or the filter's own. What it does, also when
//! it goes, may panic; that must not meet whoever has an event to tell.

use std::task::Waker;

use crate::current;
use crate::runtime::guarded;

pub(crate) struct Foreign(Option<Waker>);

impl Foreign {
    pub(crate) fn new(waker: &Waker) -> Self {
        Foreign(Some(waker.clone()))
    }

    /// Returns whether it did.
    pub(crate) fn wake(mut self) -> bool {
        self.0.take().is_some_and(|waker| contain("it woke", || waker.wake()))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            contain("it was dropped", || drop(waker));
        }
    }
}

fn contain(when: &str, f: impl FnOnce()) -> bool {
    let done = guarded(f);
    if let Err(message) = &done {
        current::with(|exchange| {
            exchange.filter().meta.panics.inc();
            Some(())
        });
        tracing::error!("a waker of the filter's own panicked when {when}: {message}");
    }
    done.is_ok()
}
