//! The hand-off between whoever wakes an exchange and the worker that polls it.
//!
//! One byte tells where the exchange stands. A wake from any thread moves it, and only the step out
//! of `IDLE` posts to the worker, so any number of wakes between two polls costs one post. A wake
//! never polls: whoever drops or completes something may hold a lock that the filter wants.
//!
//! ```text
//!            wake: post                worker: enter
//!   IDLE ───────────────▶ SCHEDULED ───────────────▶ ACTIVE ◀──┐
//!    ▲ │                                              │  │     │ take
//!    │ └───────────── worker: enter ──────────────────┘  │wake │
//!    └──────── leave ────────────────────────────────────┤     │
//!                     SCHEDULED ◀── leave: post ── NOTIFIED ───┘
//! ```
//!
//! Any state goes to `DEAD` when the stream ends; a wake then does nothing.
//!
//! The number also counts the threads that are posting, since these are inside of Envoy, which keeps
//! the stream while they are: a thread that the system does not let run there could be the last to
//! let go of the stream, when its worker is gone, or all of Envoy. So the end waits for them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::fence;
use std::task::Waker;

use crate::host::{Host, Notify};
use crate::sync::{AtomicU32, Once, Ordering, yield_now};

const IDLE: u32 = 0;
const SCHEDULED: u32 = 1;
const ACTIVE: u32 = 2;
const NOTIFIED: u32 = 3;
const DEAD: u32 = 4;
/// The bits of the above; beyond are those that post.
const STATE: u32 = 7;
/// One that posts.
const POSTING: u32 = 8;

pub(crate) struct WakeState {
    state: AtomicU32,
    notify: Once<Box<dyn Notify>>,
}

impl WakeState {
    pub(crate) fn new() -> Self {
        WakeState { state: AtomicU32::new(IDLE), notify: Once::new() }
    }

    /// Changes the number. Gives what it was before, as an error if `step` has nothing for it.
    #[inline]
    fn update(&self, step: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        let mut now = self.state.load(Ordering::Acquire);
        while let Some(next) = step(now) {
            match self.state.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(before) => return Ok(before),
                Err(seen) => now = seen,
            }
        }
        Err(now)
    }

    /// As `update`, of the state alone: not of who is posting.
    fn change(&self, step: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        let changed = self.update(|now| step(now & STATE).map(|next| now & !STATE | next));
        changed.map(|before| before & STATE).map_err(|before| before & STATE)
    }

    /// Any thread: asks for a poll.
    pub(crate) fn wake(&self) {
        let asked = self.update(|now| match now & STATE {
            IDLE => Some((now & !STATE | SCHEDULED) + POSTING),
            ACTIVE => Some(now & !STATE | NOTIFIED),
            _ => None,
        });
        if asked.is_ok_and(|before| before & STATE == IDLE) {
            let _posting = Posting(&self.state);
            self.post();
        }
    }

    /// Worker: takes the exchange. Returns whether a wake was waiting, and so a poll is due.
    ///
    /// `shared` says that others may hold a waker. If none do, nobody else can touch the state, and
    /// it is changed without the price of an atomic exchange. So in `leave`.
    pub(crate) fn enter(&self, shared: bool) -> bool {
        if !shared {
            let before = self.state.load(Ordering::Acquire);
            if before != DEAD {
                self.state.store(ACTIVE, Ordering::Relaxed);
            }
            return before == SCHEDULED || before == NOTIFIED;
        }
        let entered = self.change(|now| (now != DEAD).then_some(ACTIVE));
        entered.is_ok_and(|before| before == SCHEDULED || before == NOTIFIED)
    }

    /// Worker, after `enter`: takes a wake that has come since.
    pub(crate) fn take(&self) -> bool {
        // A look costs less than an exchange; a wake that it misses is seen by `leave`.
        self.state.load(Ordering::Relaxed) & STATE == NOTIFIED
            && self.change(|now| (now == NOTIFIED).then_some(ACTIVE)).is_ok()
    }

    /// Worker: lets the exchange go. A wake that has come since `enter` is posted now.
    ///
    /// Only if others may hold a waker (`shared`), or for a wake to post, are the means to post
    /// made by `bind`: an exchange that waits for nothing outside Envoy never pays for them.
    #[inline]
    pub(crate) fn leave(&self, shared: bool, bind: impl Fn()) {
        if !shared && self.state.load(Ordering::Relaxed) == ACTIVE {
            return self.state.store(IDLE, Ordering::Relaxed);
        }
        self.leave_to_others(shared, bind);
    }

    #[cold]
    fn leave_to_others(&self, shared: bool, bind: impl Fn()) {
        if shared {
            bind();
        }
        let left = self.change(|now| match now {
            ACTIVE => Some(IDLE),
            NOTIFIED => Some(SCHEDULED),
            _ => None,
        });
        if left == Ok(NOTIFIED) {
            bind();
            self.post();
        }
    }

    fn post(&self) {
        self.notify.with(|n| n.notify());
    }

    /// Worker: the stream has ended; from now on a wake does nothing, and nobody is posting.
    pub(crate) fn kill(&self, shared: bool) {
        if !shared {
            return self.state.store(DEAD, Ordering::Relaxed);
        }
        let _ = self.change(|_| Some(DEAD));
        while self.state.load(Ordering::Acquire) >= POSTING {
            yield_now();
        }
    }
}

/// While it is there, one thread more is posting.
struct Posting<'a>(&'a AtomicU32);

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(POSTING, Ordering::Release);
    }
}

/// The wake state of one exchange, and the waker of it.
///
/// It serves the next exchange as well, if nobody else holds the waker: the usual case then costs no
/// allocation and no atomic counting.
pub(crate) struct OwnWaker {
    state: Arc<WakeState>,
    waker: Waker,
    /// What posts does so to this exchange's stream.
    bound: Cell<bool>,
}

mod own {
    use super::*;

    /// How many references there are while nobody else holds the waker.
    const OWN: usize = 2;

    impl OwnWaker {
        pub(crate) fn new() -> Self {
            let state = Arc::new(WakeState::new());
            let waker = Waker::from(state.clone());
            OwnWaker { state, waker, bound: Cell::new(false) }
        }

        /// Makes it serve another exchange. False if it cannot: somebody still holds the waker.
        #[inline]
        pub(crate) fn renew(&mut self) -> bool {
            if self.is_shared() {
                return false;
            }
            if self.bound.take() {
                self.state.notify.with(|n| n.release());
            }
            self.state.state.store(IDLE, Ordering::Relaxed);
            true
        }

        #[inline]
        pub(crate) fn waker(&self) -> &Waker {
            &self.waker
        }

        /// Whether anybody else holds a waker.
        #[inline]
        fn is_shared(&self) -> bool {
            let shared = Arc::strong_count(&self.state) > OWN;
            // Whoever has dropped its waker has woken before: see that wake.
            fence(Ordering::Acquire);
            shared
        }

        /// Tells a test whether it is still there.
        #[cfg(test)]
        pub(crate) fn part(&self) -> std::sync::Weak<WakeState> {
            Arc::downgrade(&self.state)
        }

        pub(crate) fn wake(&self) {
            self.state.wake();
        }

        #[inline]
        pub(crate) fn enter(&self) -> bool {
            self.state.enter(self.is_shared())
        }

        #[inline]
        pub(crate) fn take_wake(&self) -> bool {
            self.state.take()
        }

        /// `alive` says that the host may still be called.
        #[inline]
        pub(crate) fn leave<'a>(&self, alive: bool, host: impl Fn() -> &'a dyn Host) {
            self.state.leave(alive && self.is_shared(), || self.bind(host()));
        }

        fn bind(&self, host: &dyn Host) {
            if self.bound.get() {
                return;
            }
            if !self.state.notify.with(|n| host.bind(&**n)) {
                self.state.notify.set(host.notifier());
            }
            self.bound.set(true);
        }

        pub(crate) fn kill(&self) {
            self.state.kill(self.is_shared());
        }
    }
}

impl std::task::Wake for WakeState {
    fn wake(self: std::sync::Arc<Self>) {
        WakeState::wake(&self);
    }
    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        WakeState::wake(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc as StdArc;
    use std::sync::atomic::{AtomicUsize, Ordering as StdOrdering};

    struct Count(StdArc<AtomicUsize>);
    impl Notify for Count {
        fn notify(&self) {
            self.0.fetch_add(1, StdOrdering::SeqCst);
        }
        fn release(&self) {}
    }

    fn counted() -> (WakeState, StdArc<AtomicUsize>) {
        let count = StdArc::new(AtomicUsize::new(0));
        (WakeState::new(), count)
    }

    fn leave(state: &WakeState, count: &StdArc<AtomicUsize>) {
        state.leave(true, || bind(state, Count(count.clone())));
    }

    fn bind(state: &WakeState, notify: impl Notify) {
        if !state.notify.with(|_| ()) {
            state.notify.set(Box::new(notify));
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn only_the_first_wake_posts() {
        let (state, count) = counted();
        state.enter(true);
        leave(&state, &count);
        state.wake();
        state.wake();
        assert_eq!(count.load(StdOrdering::SeqCst), 1);
        assert!(state.enter(true));
        leave(&state, &count);
        state.wake();
        assert_eq!(count.load(StdOrdering::SeqCst), 2);
    }

    #[cfg(not(loom))]
    #[test]
    fn a_wake_during_a_poll_posts_when_the_poll_ends() {
        let (state, count) = counted();
        assert!(!state.enter(true));
        state.wake();
        assert_eq!(count.load(StdOrdering::SeqCst), 0);
        leave(&state, &count);
        assert_eq!(count.load(StdOrdering::SeqCst), 1);
        assert!(state.enter(true));
    }

    #[cfg(not(loom))]
    #[test]
    fn a_dead_exchange_is_never_posted_to() {
        let (state, count) = counted();
        state.enter(true);
        state.wake();
        state.kill(true);
        leave(&state, &count);
        state.wake();
        assert!(!state.enter(true));
        assert_eq!(count.load(StdOrdering::SeqCst), 0);
    }

    /// Every interleaving of a waking thread and a polling worker: no wake is lost. After all is
    /// quiet, either the worker saw the flag that the waker raised before, or a post is outstanding.
    #[cfg(loom)]
    #[test]
    fn no_wake_is_lost() {
        loom::model(|| {
            let posts = StdArc::new(AtomicUsize::new(0));
            let state = loom::sync::Arc::new(WakeState::new());
            let raised = loom::sync::Arc::new(loom::sync::atomic::AtomicBool::new(false));
            let mut seen = false;
            // The worker's first poll is unconditional (an event of the stream). Nobody has a waker
            // before it; from it, the other thread gets one.
            state.enter(false);
            let waker = {
                let (state, raised) = (state.clone(), raised.clone());
                loom::thread::spawn(move || {
                    raised.store(true, Ordering::Release);
                    state.wake();
                })
            };
            seen |= raised.load(Ordering::Acquire);
            leave(&state, &posts);
            waker.join().unwrap();
            // Posts are delivered after the fact, in order.
            for _ in 0..posts.load(StdOrdering::SeqCst) {
                if state.enter(true) {
                    seen |= raised.load(Ordering::Acquire);
                }
                leave(&state, &posts);
            }
            assert!(seen, "the wake was lost");
        });
    }

    /// Whoever posts finds what the worker has bound, which the worker's leaving alone orders.
    #[cfg(loom)]
    #[test]
    fn a_post_goes_to_what_was_bound() {
        struct Bound(loom::sync::Arc<loom::sync::atomic::AtomicUsize>);
        impl Notify for Bound {
            fn notify(&self) {
                assert_eq!(self.0.load(Ordering::Relaxed), 1);
            }
            fn release(&self) {}
        }
        loom::model(|| {
            let state = loom::sync::Arc::new(WakeState::new());
            let stream = loom::sync::Arc::new(loom::sync::atomic::AtomicUsize::new(0));
            state.notify.set(Box::new(Bound(stream.clone())));
            state.enter(false);
            let waker = {
                let state = state.clone();
                loom::thread::spawn(move || state.wake())
            };
            state.leave(true, || stream.store(1, Ordering::Relaxed));
            waker.join().unwrap();
        });
    }

    /// Two wakers and the end of the stream: at most one post per idle period, none after the end.
    #[cfg(loom)]
    #[test]
    fn wakes_race_with_the_end() {
        loom::model(|| {
            let posts = StdArc::new(AtomicUsize::new(0));
            let state = loom::sync::Arc::new(WakeState::new());
            state.enter(true);
            leave(&state, &posts);
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let state = state.clone();
                    loom::thread::spawn(move || state.wake())
                })
                .collect();
            state.kill(true);
            for waker in wakers {
                waker.join().unwrap();
            }
            assert!(posts.load(StdOrdering::SeqCst) <= 1);
            state.wake();
            assert!(!state.enter(true));
            assert!(posts.load(StdOrdering::SeqCst) <= 1);
        });
    }

    /// A thread that posts is inside of Envoy: the end waits until it is out of there.
    #[cfg(loom)]
    #[test]
    fn nobody_is_posting_after_the_end() {
        struct Slow(StdArc<AtomicUsize>);
        impl Notify for Slow {
            fn notify(&self) {
                self.0.fetch_add(1, StdOrdering::SeqCst);
                loom::thread::yield_now();
                self.0.fetch_sub(1, StdOrdering::SeqCst);
            }
            fn release(&self) {}
        }
        loom::model(|| {
            let inside = StdArc::new(AtomicUsize::new(0));
            let state = loom::sync::Arc::new(WakeState::new());
            let slow = || bind(&state, Slow(inside.clone()));
            state.enter(true);
            state.leave(true, slow);
            let waker = {
                let state = state.clone();
                loom::thread::spawn(move || state.wake())
            };
            // The poll that was asked for may come while the thread is still posting.
            state.enter(true);
            state.leave(true, slow);
            state.kill(true);
            assert_eq!(inside.load(StdOrdering::SeqCst), 0);
            waker.join().unwrap();
        });
    }
}
