//! Which exchange this thread is working for, so that a log line can say so.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::rc::Rc;

use crate::exchange::Inner;

thread_local!(static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) });

/// Makes an exchange the current one until it is dropped.
pub(crate) struct Scope(Option<Rc<Inner>>);

impl Scope {
    pub(crate) fn enter(exchange: &Rc<Inner>) -> Self {
        Scope(CURRENT.with_borrow_mut(|c| c.replace(exchange.clone())))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let left = CURRENT.with_borrow_mut(|c| std::mem::replace(c, self.0.take()));
        drop(left);
    }
}

/// Writes the name of the filter and the stream that this thread is working for, as
/// `[filter][stream] `; nothing if it is not working for any.
///
/// # Errors
/// Only those of `out`.
pub fn write_current(out: &mut dyn Write) -> fmt::Result {
    CURRENT.with_borrow(|current| {
        let Some(exchange) = current else { return Ok(()) };
        write!(out, "[{}]", exchange.filter().meta().name)?;
        exchange.read(|host| host.stream_id(out)).unwrap_or(Ok(()))?;
        out.write_char(' ')
    })
}
