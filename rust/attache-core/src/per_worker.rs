//! [`PerWorker`]: state that each worker has for itself.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::runtime::guarded;

/// A value for each worker thread, made when the worker first asks for it. It may be neither `Send`
/// nor `Sync`: a `Cell`, an `Rc`, a scratch buffer, a cache with no lock.
///
/// Made by [`Setup::per_worker`](crate::Setup::per_worker), and kept as a field of the filter.
///
/// ```
/// use std::cell::{Cell, RefCell};
/// use attache_core::{ConfigError, Filter, Next, PerWorker, Request, Response, Result, Setup};
///
/// struct Numbered {
///     served: PerWorker<Cell<u64>>,
///     scratch: PerWorker<RefCell<Vec<u8>>>,
/// }
///
/// impl Filter for Numbered {
///     type Config = ();
///     type RouteConfig = ();
///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         Ok(Numbered {
///             served: setup.per_worker(|| Cell::new(0)),
///             scratch: setup.per_worker(|| RefCell::new(Vec::with_capacity(4096))),
///         })
///     }
///     async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///         let served = self.served.get();
///         served.set(served.get() + 1);
///         let path = req.path();
///         let length = self.scratch.with(|scratch| {
///             let mut scratch = scratch.borrow_mut();
///             scratch.clear();
///             scratch.extend_from_slice(path.as_bytes());
///             scratch.len()
///         });
///         let mut resp = next.run(req).await?;
///         // The same worker, before and after a wait.
///         resp.headers_mut().set("x-served", served.get().to_string());
///         resp.headers_mut().set("x-path-length", length.to_string());
///         Ok(resp)
///     }
/// }
/// ```
///
/// # When the values go
/// With the `PerWorker`, on the thread that drops it; on every other worker when that next makes a
/// value of any `PerWorker` (after a config update: when the new config serves its first exchange
/// there), or ends. Values are dropped on the thread that made them. A panic in a value's `Drop` is
/// caught and logged.
pub struct PerWorker<T: 'static> {
    key: Arc<Key>,
    make: Box<dyn Fn() -> T + Send + Sync>,
}

/// Says which `PerWorker` a value belongs to, and whether that is still there.
struct Key(u64);

enum Slot {
    /// Being made, further down the stack.
    Making,
    Made(Rc<dyn Any>),
}

#[derive(Default)]
struct Slots(RefCell<Vec<(Weak<Key>, u64, Slot)>>);

thread_local!(static SLOTS: Slots = Slots::default());

impl Slots {
    fn get(&self, key: u64) -> Option<Rc<dyn Any>> {
        let slots = self.0.borrow();
        match &slots.iter().find(|(_, k, _)| *k == key)?.2 {
            Slot::Made(value) => Some(value.clone()),
            Slot::Making => panic!("a `PerWorker` asked for its own value while it was made"),
        }
    }

    /// Takes out what matches. The values are dropped by the caller: their `Drop` may use slots.
    fn take(&self, goes: impl Fn(&Weak<Key>, u64) -> bool) -> Gone {
        let mut slots = self.0.borrow_mut();
        let all = std::mem::take(&mut *slots);
        let (gone, stay) = all.into_iter().partition(|(owner, key, _)| goes(owner, *key));
        *slots = stay;
        Gone(gone)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // The thread ends; a panic from here would end the process.
        drop(Gone(std::mem::take(self.0.get_mut())));
    }
}

/// Values that go, one by one and with care.
struct Gone(Vec<(Weak<Key>, u64, Slot)>);

impl Drop for Gone {
    fn drop(&mut self) {
        for slot in self.0.drain(..) {
            if let Err(message) = guarded(|| drop(slot)) {
                tracing::error!("a per-worker value panicked while it was dropped: {message}");
            }
        }
    }
}

impl<T: 'static> PerWorker<T> {
    pub(crate) fn new(make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = Arc::new(Key(NEXT.fetch_add(1, Ordering::Relaxed)));
        PerWorker { key, make: Box::new(make) }
    }

    /// This worker's value.
    ///
    /// Cheap (a thread-local, a search through the few values that a worker has) once it is made.
    /// The `Rc` may be held across an `.await`: an exchange never leaves its worker. On a thread
    /// that is no worker (a spawned task's), the thread gets a value of its own.
    ///
    /// # Panics
    /// When making the value panics (the next call tries again), or asks for the same value.
    pub fn get(&self) -> Rc<T> {
        let key = self.key.0;
        let value = SLOTS.with(|slots| {
            if let Some(value) = slots.get(key) {
                return value;
            }
            drop(slots.take(|owner, _| owner.strong_count() == 0));
            slots.0.borrow_mut().push((Arc::downgrade(&self.key), key, Slot::Making));
            let unmade = Unmade { slots, key };
            let value: Rc<dyn Any> = Rc::new((self.make)());
            std::mem::forget(unmade);
            let mut list = slots.0.borrow_mut();
            let slot = list.iter_mut().find(|(_, k, _)| *k == key);
            slot.expect("put there above").2 = Slot::Made(value.clone());
            value
        });
        value.downcast().expect("a key has values of one type")
    }

    /// Shows this worker's value to a closure.
    ///
    /// # Panics
    /// As [`get`](PerWorker::get).
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.get())
    }
}

/// Takes the mark away when making a value panics.
struct Unmade<'a> {
    slots: &'a Slots,
    key: u64,
}

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        drop(self.slots.take(|_, key| key == self.key));
    }
}

impl<T: 'static> Drop for PerWorker<T> {
    fn drop(&mut self) {
        let key = self.key.0;
        // At the thread's end its values may be gone already.
        let gone = SLOTS.try_with(|slots| slots.take(|_, k| k == key));
        drop(gone);
    }
}

impl<T: 'static> fmt::Debug for PerWorker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerWorker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn each_thread_has_its_own_and_keeps_it() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let cells = PerWorker::new(move || Cell::new(counted.fetch_add(1, Ordering::SeqCst)));
        let mine = cells.get();
        mine.set(100);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let theirs = cells.with(Cell::get);
                    assert!((1..=3).contains(&theirs));
                    assert_eq!(cells.with(Cell::get), theirs);
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 4);
        assert_eq!(cells.with(Cell::get), 100);
        assert!(Rc::ptr_eq(&mine, &cells.get()));
    }

    #[test]
    fn values_go_with_their_owner_here_and_at_the_next_use_elsewhere() {
        struct Told(Arc<AtomicUsize>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let told = dropped.clone();
        let old = PerWorker::new(move || Told(told.clone()));
        drop(old.get());
        let (before, after) = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    drop(old.get());
                    // The owner goes on another thread than this one.
                    let here = dropped.clone();
                    std::thread::scope(|inner| inner.spawn(|| drop(old)).join().unwrap());
                    let before = here.load(Ordering::SeqCst);
                    PerWorker::new(|| 1).get();
                    (before, here.load(Ordering::SeqCst))
                })
                .join()
                .unwrap()
        });
        assert_eq!((before, after), (0, 1));
        PerWorker::new(|| 1).get();
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_panic_while_a_value_is_made_or_dropped_is_survived() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("a bomb");
            }
        }
        let tries = AtomicUsize::new(0);
        let tries: &'static AtomicUsize = Box::leak(Box::new(tries));
        let made = PerWorker::new(move || {
            assert!(tries.fetch_add(1, Ordering::SeqCst) > 0, "not at first");
            Bomb
        });
        assert!(catch_unwind(AssertUnwindSafe(|| drop(made.get()))).is_err());
        drop(made.get());
        drop(made);
        // At a thread's end, too.
        std::thread::spawn(|| drop(std::mem::ManuallyDrop::new(PerWorker::new(|| Bomb)).get()))
            .join()
            .unwrap();
    }

    #[test]
    fn a_value_may_use_others_but_not_itself() {
        let inner = Arc::new(PerWorker::new(|| 3));
        let other = inner.clone();
        let outer = PerWorker::new(move || *other.get() + 1);
        assert_eq!(*outer.get(), 4);

        let own: Arc<std::sync::OnceLock<PerWorker<u8>>> = Arc::default();
        let again = own.clone();
        let looping = own.get_or_init(|| PerWorker::new(move || *again.get().unwrap().get()));
        let message = guarded(|| drop(looping.get())).unwrap_err();
        assert!(message.contains("asked for its own value"), "{message}");
    }
}
