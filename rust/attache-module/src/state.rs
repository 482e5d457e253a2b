//! Objects of ours in Envoy's filter state.
//!
//! Envoy keeps a pointer and a destructor per key, and knows nothing of the type. So that a pointer
//! is only ever taken for what it is, keys carry a token that no other module in the process has.

use std::ffi::c_void;
use std::rc::Rc;
use std::thread::ThreadId;

use attache_core::Store;
use attache_core::facts::{Denied, LifeSpan, StateObject, drop_quietly};

use crate::abi::life_span;
use crate::stream::Stream;

/// Its address is this module's token. Not zero-sized, not constant: it has an address of its own.
static TOKEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

fn token() -> usize {
    std::ptr::from_ref(&TOKEN).addr()
}

fn object_key(key: &str) -> String {
    format!("attache.object.{:x}.{key}", token())
}

fn extensions_key() -> String {
    format!("attache.extensions.{:x}", token())
}

pub(crate) fn life_span_of(life_span: LifeSpan) -> u32 {
    match life_span {
        LifeSpan::FilterChain => life_span::FILTER_CHAIN,
        LifeSpan::Request => life_span::REQUEST,
        LifeSpan::Connection => life_span::CONNECTION,
    }
}

/// What Envoy destroys an object of [`Stream::put_object`] with.
extern "C" fn destroy_object(object: *mut c_void) {
    // SAFETY: from `Box::into_raw` in `put_object`, and destroyed once.
    let object = unsafe { Box::from_raw(object.cast::<StateObject>()) };
    drop_quietly("an object in the filter state", *object);
}

/// Values that must stay on their worker.
struct Pinned {
    thread: ThreadId,
    store: Rc<Store>,
}

/// What Envoy destroys the extensions with.
extern "C" fn destroy_extensions(pinned: *mut c_void) {
    // SAFETY: from `Box::into_raw` in `shared_store`, and destroyed once.
    let pinned = unsafe { Box::from_raw(pinned.cast::<Pinned>()) };
    if pinned.thread == std::thread::current().id() {
        // A `Store` keeps the panics of its values to itself.
        drop(pinned);
    } else {
        // Envoy destroys a stream on its worker. Should it ever not, values that are not `Send` are
        // better leaked than dropped.
        std::mem::forget(pinned);
    }
}

impl Stream {
    pub(crate) fn put_object(
        &self,
        key: &str,
        object: StateObject,
        life_span: LifeSpan,
    ) -> Result<(), Denied> {
        self.views.none();
        // Envoy destroys the object that was there, or the new one if it refuses it, in the middle of
        // changing its map. The last reference must not go there: a `drop` may do anything.
        let before = self.get_object(key);
        let new = object.clone();
        let raw = Box::into_raw(Box::new(object)).cast();
        let name = object_key(key);
        // SAFETY: the stream is valid (type invariant); Envoy copies the key, and owns the object
        // from here on, whatever it answers. The destructor fits the object, and does not unwind.
        let kept = unsafe {
            (self.api.set_filter_state_object)(
                self.envoy,
                name.as_str().into(),
                raw,
                destroy_object,
                life_span_of(life_span),
            )
        };
        drop_quietly("an object in the filter state", before);
        drop_quietly("an object in the filter state", new);
        if kept {
            return Ok(());
        }
        Err(Denied::Refused(
            format!("the filter state has `{key}` already, with another life span").into(),
        ))
    }

    pub(crate) fn get_object(&self, key: &str) -> Option<StateObject> {
        let name = object_key(key);
        // SAFETY: the stream is valid (type invariant).
        let raw = unsafe { (self.api.get_filter_state_object)(self.envoy, name.as_str().into()) };
        // SAFETY: null, or what `put_object` has left: nobody else uses keys with our token, and
        // Envoy keeps it at least until the key is set again, which is not now.
        unsafe { raw.cast::<StateObject>().as_ref() }.cloned()
    }

    pub(crate) fn shared_store(&self) -> Result<Rc<Store>, Denied> {
        let name = extensions_key();
        // SAFETY: as in `get_object`.
        let raw = unsafe { (self.api.get_filter_state_object)(self.envoy, name.as_str().into()) };
        // SAFETY: null, or what is left below, under a key that is ours alone.
        if let Some(pinned) = unsafe { raw.cast::<Pinned>().as_ref() } {
            if pinned.thread != std::thread::current().id() {
                return Err(Denied::Refused("the extensions belong to another worker".into()));
            }
            return Ok(pinned.store.clone());
        }
        self.views.none();
        let store = Rc::new(Store::default());
        let pinned = Pinned { thread: std::thread::current().id(), store: store.clone() };
        let raw = Box::into_raw(Box::new(pinned)).cast();
        // SAFETY: as in `put_object`. The store is still empty: nothing of it can run.
        let kept = unsafe {
            (self.api.set_filter_state_object)(
                self.envoy,
                name.as_str().into(),
                raw,
                destroy_extensions,
                life_span::FILTER_CHAIN,
            )
        };
        if kept { Ok(store) } else { Err(Denied::Refused("Envoy keeps no filter state".into())) }
    }
}
