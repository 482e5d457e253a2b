//! An allocator that counts, once it is told to.
//!
//! Every variant of the bench runs through it, so counting is off by default and then costs one
//! load of a flag: the raw modules, which are compared with these filters, do not count either.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

static COUNTING: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);
static ALLOCATIONS: AtomicI64 = AtomicI64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Starts to count. What was allocated before is missing in the counts; only differences mean
/// anything.
pub(crate) fn start() {
    COUNTING.store(true, Relaxed);
}

/// Bytes allocated and not freed.
pub(crate) fn live() -> i64 {
    LIVE.load(Relaxed)
}

/// Allocations made; growing one in place is one too.
pub(crate) fn allocations() -> i64 {
    ALLOCATIONS.load(Relaxed)
}

fn note(allocations: i64, freed: usize, allocated: usize) {
    if COUNTING.load(Relaxed) {
        ALLOCATIONS.fetch_add(allocations, Relaxed);
        LIVE.fetch_add(allocated as i64 - freed as i64, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(1, 0, layout.size());
        // SAFETY: the caller keeps the contract, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(1, 0, layout.size());
        // SAFETY: the caller keeps the contract, which is the same one.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(1, layout.size(), size);
        // SAFETY: the caller keeps the contract, which is the same one.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note(0, layout.size(), 0);
        // SAFETY: the caller keeps the contract, which is the same one.
        unsafe { System.dealloc(memory, layout) }
    }
}
