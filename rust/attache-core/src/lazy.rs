//! A part of an exchange that most exchanges never need.

use std::ops::{Deref, DerefMut};

/// A value in a box that most often is not made. Dropping it then costs a look, and no call.
pub(crate) struct Rarely<T>(Option<Box<T>>);

impl<T> Rarely<T> {
    pub(crate) const NOT: Self = Rarely(None);

    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }

    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    pub(crate) fn get_or_make(&mut self, make: impl FnOnce() -> T) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(make()))
    }

    pub(crate) fn take(&mut self) -> Option<Box<T>> {
        self.0.take()
    }
}

impl<T> Drop for Rarely<T> {
    #[inline]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn drop_it<T>(it: Box<T>) {
            drop(it);
        }
        if let Some(it) = self.0.take() {
            drop_it(it);
        }
    }
}

/// What a [`Lazy`] shows while nobody has changed anything.
pub(crate) trait Unused: Default + 'static {
    const UNUSED: &'static Self;
}

/// A value that is not there until it is changed: until then it costs one pointer. Reading shows an
/// unused one.
pub(crate) struct Lazy<T>(Rarely<T>);

impl<T> Lazy<T> {
    pub(crate) const fn new() -> Self {
        Lazy(Rarely::NOT)
    }

    /// Whether nobody has changed it.
    pub(crate) fn is_unused(&self) -> bool {
        !self.0.is_there()
    }

    /// What there is, to take something out of it.
    pub(crate) fn used(&mut self) -> Option<&mut T> {
        self.0.get_mut()
    }
}

impl<T: Unused> Deref for Lazy<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.get().unwrap_or(T::UNUSED)
    }
}

impl<T: Unused> DerefMut for Lazy<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_make(T::default)
    }
}
