//! Which exchange this thread is working for: a log line can say so, and a metric's update need not
//! leave the thread.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use crate::exchange::Inner;
use crate::metrics::MetricSink;

thread_local!(static CURRENT: Cell<Option<Rc<Inner>>> = const { Cell::new(None) });

thread_local!(static TASK_OF: RefCell<Option<Arc<str>>> = const { RefCell::new(None) });

/// Runs a step of a background task of a filter's.
pub(crate) fn in_task_of<R>(filter: &Arc<str>, f: impl FnOnce() -> R) -> R {
    /// Puts back the one before, also when `f` panics.
    struct Before(Option<Arc<str>>);
    impl Drop for Before {
        fn drop(&mut self) {
            let before = self.0.take();
            let _ = TASK_OF.try_with(|task| task.replace(before));
        }
    }
    let _before = Before(TASK_OF.replace(Some(filter.clone())));
    f()
}

/// Runs `f` with `exchange` as the current one. An exchange is that only within its own events.
pub(crate) fn within<R>(exchange: &Rc<Inner>, f: impl FnOnce() -> R) -> R {
    /// Puts back the one before, also when `f` panics.
    struct Before<'a>(&'a Cell<Option<Rc<Inner>>>, Option<Rc<Inner>>);
    impl Drop for Before<'_> {
        fn drop(&mut self) {
            drop(self.0.replace(self.1.take()));
        }
    }
    CURRENT.with(|current| {
        let _before = Before(current, current.replace(Some(exchange.clone())));
        f()
    })
}

/// Whether this thread is working for an exchange.
pub(crate) fn is_there() -> bool {
    look(|_| ()).is_some()
}

/// Shows the exchange that this thread is working for, if there is one. `f` must not run code of
/// others.
pub(crate) fn with<R>(f: impl FnOnce(&Rc<Inner>) -> Option<R>) -> Option<R> {
    look(f)?
}

fn look<R>(f: impl FnOnce(&Rc<Inner>) -> R) -> Option<R> {
    CURRENT
        .try_with(|current| {
            let exchange = current.take()?;
            let result = f(&exchange);
            current.set(Some(exchange));
            Some(result)
        })
        .ok()?
}

/// Writes the name of the filter and the stream that this thread is working for, as
/// `[filter][stream] `, or as `[filter] ` in a background task; nothing if it is not working for any.
///
/// # Errors
/// Only those of `out`.
pub fn write_current(out: &mut dyn Write) -> fmt::Result {
    look(|exchange| {
        write!(out, "[{}]", exchange.filter().meta().name)?;
        exchange.read(|host| host.stream_id(out)).unwrap_or(Ok(()))?;
        out.write_char(' ')
    })
    .unwrap_or_else(|| {
        let task = TASK_OF.try_with(|task| task.borrow().clone()).ok().flatten();
        task.map_or(Ok(()), |filter| write!(out, "[{filter}] "))
    })
}

/// Whether this thread is inside an event of an exchange whose filter's metrics go to `sink`.
///
/// For a host whose metrics can be touched only on its own threads, and only while the filter's
/// config lives: it keeps the config for as long as an event of one of its exchanges runs.
pub fn is_serving(sink: &dyn MetricSink) -> bool {
    look(|exchange| exchange.filter().meta().panics.goes_to(sink)).unwrap_or(false)
}
