//! A buffer of body bytes that remembers which filter holds which of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

/// The place of a filter in the chain.
pub(crate) type Place = usize;

/// Bytes on their way through the chain: a frame, or the one buffer that a direction has.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    chunks: RefCell<VecDeque<(Bytes, Option<Place>)>>,
    /// There is more in it than the limit.
    pub(crate) above: Cell<bool>,
    /// The sender has been told to stop because of that, and not yet to go on.
    pub(crate) paused: Cell<bool>,
}

impl Buffer {
    pub(crate) fn of(bytes: Bytes) -> Self {
        let buffer = Buffer::default();
        buffer.add(bytes, None);
        buffer
    }

    pub(crate) fn from_chunks(chunks: Vec<Bytes>) -> Self {
        let buffer = Buffer::default();
        chunks.into_iter().for_each(|chunk| buffer.add(chunk, None));
        buffer
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.borrow().iter().map(|(chunk, _)| chunk.len()).sum()
    }

    pub(crate) fn add(&self, bytes: Bytes, holder: Option<Place>) {
        if !bytes.is_empty() {
            self.chunks.borrow_mut().push_back((bytes, holder));
        }
    }

    /// Moves all bytes of `from` to the end of this buffer, held by `holder`.
    pub(crate) fn take_over(&self, from: &Buffer, holder: Place) {
        let chunks = from.chunks.take();
        self.chunks.borrow_mut().extend(chunks.into_iter().map(|(c, _)| (c, Some(holder))));
    }

    /// Puts all bytes of `from` in front.
    pub(crate) fn put_in_front(&self, from: &Buffer) {
        let mut chunks = from.chunks.take();
        chunks.append(&mut self.chunks.borrow_mut());
        *self.chunks.borrow_mut() = chunks;
    }

    /// From now on `holder` holds all that is here.
    pub(crate) fn hold(&self, holder: Place) {
        self.chunks.borrow_mut().iter_mut().for_each(|(_, h)| *h = Some(holder));
    }

    /// Drops bytes from the front. Returns the holders of the dropped bytes.
    pub(crate) fn drain(&self, mut bytes: usize) -> Vec<Option<Place>> {
        let mut chunks = self.chunks.borrow_mut();
        let mut holders = Vec::new();
        while bytes > 0 {
            let Some((chunk, holder)) = chunks.front_mut() else { break };
            holders.push(*holder);
            if chunk.len() > bytes {
                chunk.advance(bytes);
                break;
            }
            bytes -= chunk.len();
            chunks.pop_front();
        }
        holders
    }

    pub(crate) fn holders(&self) -> Vec<Option<Place>> {
        self.chunks.borrow().iter().map(|(_, holder)| *holder).collect()
    }

    /// The slices, as they lie in memory.
    pub(crate) fn slices(&self) -> Vec<Bytes> {
        self.chunks.borrow().iter().map(|(chunk, _)| chunk.clone()).collect()
    }

    /// Takes everything out.
    pub(crate) fn take(&self) -> Vec<Bytes> {
        self.chunks.take().into_iter().map(|(chunk, _)| chunk).collect()
    }
}
