//! Which exchange this thread is working for, so that a log line can say so.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::rc::Rc;

use crate::exchange::Inner;

thread_local!(static CURRENT: Cell<Option<Rc<Inner>>> = const { Cell::new(None) });

/// Makes an exchange the current one until it is dropped.
pub(crate) struct Scope(Option<Rc<Inner>>);

impl Scope {
    pub(crate) fn enter(exchange: &Rc<Inner>) -> Self {
        Scope(CURRENT.replace(Some(exchange.clone())))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        drop(CURRENT.replace(self.0.take()));
    }
}

/// Writes the name of the filter and the stream that this thread is working for, as
/// `[filter][stream] `; nothing if it is not working for any.
///
/// # Errors
/// Only those of `out`.
pub fn write_current(out: &mut dyn Write) -> fmt::Result {
    let Some(exchange) = CURRENT.take() else { return Ok(()) };
    let written = write!(out, "[{}]", exchange.filter().meta().name)
        .and_then(|()| exchange.read(|host| host.stream_id(out)).unwrap_or(Ok(())))
        .and_then(|()| out.write_char(' '));
    CURRENT.set(Some(exchange));
    written
}
