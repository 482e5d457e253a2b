//! Which exchange this thread is working for: a log line can say so, and a metric's update need not
//! leave the thread.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::future::Future;
use std::rc::Rc;

use crate::exchange::Inner;
use crate::metrics::MetricSink;
use crate::worker::Worker;

tokio::task_local! {
    /// For whom a task works that runs beside the exchanges.
    static TASK: Option<Scope>;
}

/// For whom a step is done that is no event of an exchange: its lines in the log begin with that.
#[derive(Clone)]
pub(crate) struct Scope {
    filter: &'static str,
    /// Empty for what belongs to no stream.
    stream: String,
}

impl Scope {
    /// For a filter, and no stream of it.
    pub(crate) fn of(filter: &'static str) -> Self {
        Scope { filter, stream: String::new() }
    }

    /// That of whoever asks, as it is now: other threads cannot ask the stream itself.
    pub(crate) fn here() -> Option<Self> {
        look(|exchange| {
            let mut stream = String::with_capacity(STREAM_ID);
            exchange.read(|host| host.stream_id(&mut stream));
            Scope { filter: exchange.filter().meta.name, stream }
        })
        .or_else(|| TASK.try_with(Clone::clone).ok().flatten())
    }
}

/// How long the id of a stream usually is: `[C12345][a UUID]`, with room to spare.
const STREAM_ID: usize = 64;

/// A task of a scope's.
pub(crate) fn task_of<F: Future>(scope: Option<Scope>, task: F) -> impl Future<Output = F::Output> {
    TASK.scope(scope, task)
}

/// Runs `f` as a task of a scope's.
pub(crate) fn step_of<R>(scope: Option<Scope>, f: impl FnOnce() -> R) -> R {
    TASK.sync_scope(scope, f)
}

/// Runs `f` with `exchange` as the current one. An exchange is that only within its own events.
#[inline]
pub(crate) fn within<R>(exchange: &Rc<Inner>, f: impl FnOnce() -> R) -> R {
    /// Puts back the one before, also when `f` panics.
    struct Before<'a>(&'a Cell<Option<Rc<Inner>>>, Option<Rc<Inner>>);
    impl Drop for Before<'_> {
        fn drop(&mut self) {
            drop(self.0.replace(self.1.take()));
        }
    }
    let current = &exchange.worker().current;
    let _before = Before(current, current.replace(Some(exchange.clone())));
    f()
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
    Worker::look(|worker| {
        let exchange = worker.current.take()?;
        let result = f(&exchange);
        worker.current.set(Some(exchange));
        Some(result)
    })?
}

/// Writes the name of the filter and the stream that this thread is working for, as
/// `[filter][stream] `, or as `[filter] ` in a background task; nothing if it is not working for any.
///
/// # Errors
/// Only those of `out`.
pub fn write_current(out: &mut dyn Write) -> fmt::Result {
    look(|exchange| {
        write!(out, "[{}]", exchange.filter().meta.name)?;
        exchange.read(|host| host.stream_id(out)).unwrap_or(Ok(()))?;
        out.write_char(' ')
    })
    .or_else(|| {
        TASK.try_with(|scope| {
            let Scope { filter, stream } = scope.as_ref()?;
            Some(write!(out, "[{filter}]{stream} "))
        })
        .ok()?
    })
    .unwrap_or(Ok(()))
}

/// Whether this thread is inside an event of an exchange whose filter's metrics go to `sink`.
///
/// For a host whose metrics can be touched only on its own threads, and only while the filter's
/// config lives: it keeps the config for as long as an event of one of its exchanges runs.
pub fn is_serving(sink: &dyn MetricSink) -> bool {
    look(|exchange| exchange.filter().meta.panics.goes_to(sink)).unwrap_or(false)
}
