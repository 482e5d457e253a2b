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
    stream: Short,
}

impl Scope {
    /// For a filter, and no stream of it.
    pub(crate) fn of(filter: &'static str) -> Self {
        Scope { filter, stream: Short::default() }
    }

    /// That of whoever asks, as it is now: other threads cannot ask the stream itself.
    pub(crate) fn here() -> Option<Self> {
        look(|exchange| {
            let mut stream = Short::default();
            // It is as much of it as could be written.
            let _ = exchange.read(|host| host.stream_id(&mut stream));
            Scope { filter: exchange.filter().meta.name, stream }
        })
        .or_else(|| TASK.try_with(Clone::clone).ok().flatten())
    }
}

/// As long as the id of a stream usually is: `[C12345][a UUID]`, with any number.
const SHORT: usize = 62;

/// A text that needs memory of its own only if it is long.
#[derive(Clone)]
enum Short {
    In([u8; SHORT], u8),
    Out(String),
}

impl Default for Short {
    fn default() -> Self {
        Short::In([0; SHORT], 0)
    }
}

impl Short {
    fn as_str(&self) -> &str {
        match self {
            // Only whole texts were put there.
            Short::In(bytes, len) => {
                std::str::from_utf8(&bytes[..usize::from(*len)]).unwrap_or_default()
            }
            Short::Out(text) => text,
        }
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self {
            Short::In(bytes, len) => {
                let start = usize::from(*len);
                match bytes.get_mut(start..start + text.len()) {
                    Some(place) => {
                        place.copy_from_slice(text.as_bytes());
                        // At most `SHORT`.
                        *len += text.len() as u8;
                    }
                    None => *self = Short::Out(self.as_str().to_owned() + text),
                }
            }
            Short::Out(all) => all.push_str(text),
        }
        Ok(())
    }
}

/// A task of a scope's.
pub(crate) fn task_of<F: Future>(scope: Option<Scope>, task: F) -> impl Future<Output = F::Output> {
    TASK.scope(scope, task)
}

/// Runs `f` as a task of a scope's.
pub(crate) fn step_of<R>(scope: Option<Scope>, f: impl FnOnce() -> R) -> R {
    TASK.sync_scope(scope, f)
}

/// Runs `f` with `exchange` as the current one. An exchange is that only within its own events.
///
/// Always inline: around each poll, and a call would cost as much again.
#[inline(always)]
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
            Some(write!(out, "[{filter}]{} ", stream.as_str()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_may_become_a_long_one() {
        let mut short = Short::default();
        assert_eq!(short.as_str(), "");
        let mut expected = String::new();
        for piece in ["[C", "17", "]", "\u{e4}", &"x".repeat(SHORT - 8), "y", "z", "the rest"] {
            assert!(matches!(short, Short::In(..)) || expected.len() > SHORT);
            write!(short, "{piece}").unwrap();
            expected.push_str(piece);
            assert_eq!(short.as_str(), expected);
        }
        assert!(matches!(short, Short::Out(_)));
    }
}
