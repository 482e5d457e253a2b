//! What this thread keeps for its exchanges, found faster than through a thread local.
//!
//! In a library that is loaded at run time, a thread local takes a call into the dynamic loader, and
//! that goes through tables of its own: half a dozen lines of the cache that nothing else in Envoy
//! needs, for every stream. So a thread's own is also in a table here, which is searched by the
//! thread pointer. That is in a register, and no two threads have the same at the same time.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use attache_core::exchange::ThisWorker;

/// One thread's place in the table.
struct Slot {
    /// The thread's pointer; 0 in a place that is free.
    thread: AtomicUsize,
    /// Only the thread that `thread` names touches it.
    worker: UnsafeCell<Option<ThisWorker>>,
}

// SAFETY: `thread` may be shared. `worker` is touched only by the thread whose pointer is in `thread`:
// it has put that there itself while the place was free, and takes it away when it ends.
unsafe impl Sync for Slot {}

/// The places that a thread may have: one line of the cache.
#[repr(align(64))]
struct Bucket([Slot; 4]);

const BUCKETS: usize = 64;

static TABLE: [Bucket; BUCKETS] = [const {
    Bucket([const { Slot { thread: AtomicUsize::new(0), worker: UnsafeCell::new(None) } }; 4])
}; BUCKETS];

/// Calls `f` with this thread's own.
#[inline]
pub(crate) fn with<R>(f: impl FnOnce(&ThisWorker) -> R) -> R {
    // In one place, so that `f` becomes a part of whoever calls this.
    let claimed;
    let worker = match own() {
        Some(worker) => worker,
        None => {
            claimed = claim();
            &claimed
        }
    };
    f(worker)
}

/// This thread's, if the table has it.
#[inline]
fn own<'a>() -> Option<&'a ThisWorker> {
    let thread = thread_pointer();
    let slot = bucket(thread).iter().find(|slot| slot.thread.load(Ordering::Relaxed) == thread)?;
    // SAFETY: the place is this thread's, so nobody else touches it. It changes in `Held::drop` alone,
    // when the thread ends: no caller on this thread still uses the result then.
    unsafe { (*slot.worker.get()).as_ref() }
}

#[inline]
fn bucket(thread: usize) -> &'static [Slot] {
    // The pointers of threads are as far apart as their stacks.
    let hash = (thread as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    &TABLE[hash as usize % BUCKETS].0
}

/// Takes a free place for this thread, if there is one.
#[cold]
fn claim() -> ThisWorker {
    let worker = ThisWorker::here();
    // At the thread's end there is nobody left to give the place back.
    let _ = HELD.try_with(|held| {
        let thread = thread_pointer();
        if thread == 0 || held.0.get().is_some() {
            return;
        }
        let free = |slot: &&Slot| {
            let claim =
                slot.thread.compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed);
            claim.is_ok()
        };
        if let Some(slot) = bucket(thread).iter().find(free) {
            // SAFETY: the place is this thread's from here on, and nobody refers to what is in it.
            unsafe { *slot.worker.get() = Some(worker.clone()) };
            held.0.set(Some(slot));
        }
    });
    worker
}

thread_local!(static HELD: Held = const { Held(std::cell::Cell::new(None)) });

/// The place of a thread in the table, which it gives back when it ends.
struct Held(std::cell::Cell<Option<&'static Slot>>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            // SAFETY: the place is still this thread's, and nothing runs on it that uses what is there.
            let worker = unsafe { (*slot.worker.get()).take() };
            slot.thread.store(0, Ordering::Release);
            drop(worker);
        }
    }
}

/// What tells this thread from all others that there are; 0 where that is not known.
#[inline]
fn thread_pointer() -> usize {
    #[allow(unused_mut, unused_assignments)]
    let mut pointer = 0;
    #[cfg(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64"))]
    // SAFETY: the first word where `fs` points is that address itself, says the ABI for thread locals.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) pointer,
            options(pure, readonly, nostack, preserves_flags));
    }
    #[cfg(all(target_os = "linux", target_arch = "aarch64", target_pointer_width = "64"))]
    // SAFETY: it reads a register that programs may read.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer,
            options(pure, nomem, nostack, preserves_flags));
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// Where this thread's own is in the table.
    fn place() -> Option<usize> {
        own().map(|worker| std::ptr::from_ref(worker).addr())
    }

    fn taken() -> usize {
        let slots = TABLE.iter().flat_map(|bucket| &bucket.0);
        slots.filter(|slot| slot.thread.load(Ordering::Relaxed) != 0).count()
    }

    /// One test: it counts what is taken.
    #[test]
    fn each_thread_finds_its_own_and_gives_its_place_back() {
        let name = |worker: &ThisWorker| format!("{worker:?}");
        let here = with(name);
        assert_eq!(with(name), here);
        assert_eq!(with(name), format!("{:?}", ThisWorker::here()));
        let before = taken();

        // More than there is room for.
        let threads = 2 * 4 * BUCKETS;
        let all_there = Barrier::new(threads);
        let seen = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|_| {
                    std::thread::Builder::new()
                        .stack_size(64 << 10)
                        .spawn_scoped(scope, || {
                            let first = with(name);
                            all_there.wait();
                            assert_eq!(with(name), first, "with a place or without");
                            let place = place();
                            all_there.wait();
                            (first, place)
                        })
                        .unwrap()
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let mut names: Vec<_> = seen.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), threads);
        let mut places: Vec<_> = seen.iter().filter_map(|(_, place)| *place).collect();
        let with_place = places.len();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), with_place, "no two threads share a place");
        assert_eq!(with_place > 0, thread_pointer() != 0);
        assert_eq!(taken(), before, "a thread that has ended has none");
        assert_eq!(with(name), here);
    }
}
