//! The primitives of the waker, which `--cfg loom` swaps for loom's so that every interleaving can
//! be explored.

#[cfg(not(loom))]
mod real {
    pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
    pub(crate) use std::thread::yield_now;

    /// A cell that is written once.
    pub(crate) struct Once<T>(std::sync::OnceLock<T>);

    impl<T> Once<T> {
        pub(crate) fn new() -> Self {
            Once(std::sync::OnceLock::new())
        }
        pub(crate) fn set(&self, value: T) {
            let _ = self.0.set(value);
        }
        /// Shows the value. False if there is none yet.
        pub(crate) fn with(&self, f: impl FnOnce(&T)) -> bool {
            self.0.get().map(f).is_some()
        }
    }
}

#[cfg(loom)]
mod real {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
    pub(crate) use loom::thread::yield_now;

    /// A cell that is written once. Loom has no `OnceLock`; a mutex has the same ordering.
    pub(crate) struct Once<T>(loom::sync::Mutex<Option<T>>);

    impl<T> Once<T> {
        pub(crate) fn new() -> Self {
            Once(loom::sync::Mutex::new(None))
        }
        pub(crate) fn set(&self, value: T) {
            self.0.lock().unwrap().get_or_insert(value);
        }
        pub(crate) fn with(&self, f: impl FnOnce(&T)) -> bool {
            self.0.lock().unwrap().as_ref().map(f).is_some()
        }
    }
}

pub(crate) use real::*;
