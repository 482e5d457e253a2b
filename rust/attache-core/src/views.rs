//! Keeps a host's memory unchanged while a callback looks at it.

use std::cell::Cell;

/// Counts the callbacks of one stream that look at the host's memory.
#[derive(Debug, Default)]
pub struct Views(Cell<u32>);

/// A callback is looking, for as long as this lives: even one that panics stops then.
#[derive(Debug)]
pub struct View<'a>(&'a Cell<u32>);

impl Views {
    /// A callback begins to look.
    pub fn look(&self) -> View<'_> {
        self.0.set(self.0.get() + 1);
        View(&self.0)
    }

    /// Comes before anything that may change or free what a callback sees.
    ///
    /// # Panics
    /// When one is looking.
    pub fn none(&self) {
        assert!(
            self.0.get() == 0,
            "headers or body were changed from within a closure that looks at them; copy first"
        );
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn nothing_changes_while_a_callback_looks() {
        let views = Views::default();
        views.none();
        let change = || catch_unwind(AssertUnwindSafe(|| views.none()));
        let view = views.look();
        assert!(change().is_err());
        drop(view);
        assert!(change().is_ok());
    }

    #[test]
    fn a_callback_that_panics_has_stopped_looking() {
        let views = Views::default();
        let looking = catch_unwind(AssertUnwindSafe(|| {
            let _view = views.look();
            panic!("looks no more");
        }));
        assert!(looking.is_err());
        views.none();
    }
}
