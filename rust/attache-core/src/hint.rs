//! What the compiler is told of branches: code that is rarely run is put out of the way of the code
//! that every exchange runs, which then is in fewer lines of the cache.

/// Says that the branch which calls this is rarely taken.
#[cold]
#[inline(always)]
pub(crate) const fn rarely() {}
