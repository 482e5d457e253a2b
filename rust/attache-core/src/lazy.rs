//! A part of an exchange that most exchanges never need.

use std::ops::{Deref, DerefMut};

/// What a [`Lazy`] shows while nobody has changed anything.
pub(crate) trait Unused: Default + 'static {
    const UNUSED: &'static Self;
}

/// A value that is not there until it is changed: until then it costs one pointer. Reading shows an
/// unused one.
pub(crate) struct Lazy<T>(Option<Box<T>>);

impl<T> Lazy<T> {
    pub(crate) const fn new() -> Self {
        Lazy(None)
    }

    /// Whether nobody has changed it.
    pub(crate) fn is_unused(&self) -> bool {
        self.0.is_none()
    }

    /// What there is, to take something out of it.
    pub(crate) fn used(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

impl<T: Unused> Deref for Lazy<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::UNUSED)
    }
}

impl<T: Unused> DerefMut for Lazy<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(Box::default)
    }
}
