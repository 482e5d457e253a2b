//! [`Extensions`]: values that the filters of one exchange share.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use crate::error::Result;
use crate::facts::drop_quietly;
use crate::stream::Stream;

/// What the host keeps of them: values by their type.
#[derive(Default)]
pub struct Store(RefCell<HashMap<TypeId, Rc<dyn Any>>>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("len", &self.0.borrow().len()).finish()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Envoy's stream goes: a panic must not leave, and one value's must not cost the others.
        for (_, value) in std::mem::take(self.0.get_mut()) {
            drop_quietly("a value in an exchange's extensions", value);
        }
    }
}

impl Store {
    /// The value of a type. For tests that look at what a filter has left.
    pub fn get<T: 'static>(&self) -> Option<Rc<T>> {
        let value = self.0.borrow().get(&TypeId::of::<T>()).cloned()?;
        value.downcast().ok()
    }

    /// Puts a value in; gives the one that it replaces.
    pub fn insert<T: 'static>(&self, value: T) -> Option<Rc<T>> {
        // The old value leaves before the borrow ends, and is dropped by the caller.
        let old = self.0.borrow_mut().insert(TypeId::of::<T>(), Rc::new(value))?;
        old.downcast().ok()
    }

    fn remove<T: 'static>(&self) -> Option<Rc<T>> {
        let old = self.0.borrow_mut().remove(&TypeId::of::<T>())?;
        old.downcast().ok()
    }
}

/// Values that the Attaché filters of one exchange share, one for each type; made by
/// [`Stream::extensions`].
///
/// An earlier filter of the chain leaves a value, a later one finds it, also where both are the same
/// filter configured twice. They must be of the same module: another `.so` has types of its own, and
/// sees extensions of its own.
///
/// Values need not be `Send`: the exchange stays on its worker. They are dropped there when the
/// stream ends, after every filter's [`on_complete`](crate::Filter::on_complete); a panic in a `drop`
/// is logged, and costs nothing else. They do not survive a
/// [recreated](crate::Stream::recreate) stream; see
/// [`FilterState::set_object`](crate::FilterState::set_object) for what does.
///
/// Each call fails with [`ErrorKind::Gone`](crate::ErrorKind::Gone) after the exchange has ended, and
/// with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on a host without it.
///
/// ```
/// # use attache_core::{Filter, Next, Request, Response, Result, Setup, ConfigError};
/// struct User(String);
///
/// # struct Earlier;
/// # impl Filter for Earlier { type Config = (); type RouteConfig = ();
/// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Earlier) }
/// // The earlier filter:
/// async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///     req.stream().extensions().insert(User("ada".into()))?;
///     next.run(req).await
/// }
/// # }
/// # struct Later;
/// # impl Filter for Later { type Config = (); type RouteConfig = ();
/// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Later) }
/// // The later one:
/// async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
///     if let Some(user) = req.stream().extensions().get::<User>()? {
///         req.headers_mut().set("x-user", &user.0);
///     }
///     next.run(req).await
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Extensions<'a>(pub(crate) &'a Stream);

impl Extensions<'_> {
    fn store(&self) -> Result<Rc<Store>> {
        self.0.ask(|host| host.facts().extensions())
    }

    /// The value of a type, if somebody has put one in.
    ///
    /// # Errors
    /// See [`Extensions`].
    pub fn get<T: 'static>(&self) -> Result<Option<Rc<T>>> {
        Ok(self.store()?.get())
    }

    /// Puts a value in. Returns the one that it replaces.
    ///
    /// # Errors
    /// See [`Extensions`].
    pub fn insert<T: 'static>(&self, value: T) -> Result<Option<Rc<T>>> {
        Ok(self.store()?.insert(value))
    }

    /// Takes a value out.
    ///
    /// # Errors
    /// See [`Extensions`].
    pub fn remove<T: 'static>(&self) -> Result<Option<Rc<T>>> {
        Ok(self.store()?.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn one_value_for_each_type() {
        let store = Store::default();
        assert!(store.insert(1u32).is_none());
        assert!(store.insert("text").is_none());
        assert_eq!(store.insert(2u32).as_deref(), Some(&1));
        assert_eq!(store.get::<u32>().as_deref(), Some(&2));
        assert_eq!(store.get::<u64>(), None);
        assert_eq!(store.remove::<u32>().as_deref(), Some(&2));
        assert_eq!(store.get::<u32>(), None);
        assert_eq!(store.get::<&str>().as_deref(), Some(&"text"));
    }

    /// Panics when it goes, and counts that it went.
    struct Bomb<const N: usize>(Rc<Cell<u32>>);
    impl<const N: usize> Drop for Bomb<N> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
            panic!("bomb {N}");
        }
    }

    #[test]
    fn a_panic_in_one_value_s_drop_costs_nothing_else() {
        let gone = Rc::new(Cell::new(0));
        let store = Store::default();
        store.insert(Bomb::<1>(gone.clone()));
        store.insert(Bomb::<2>(gone.clone()));
        drop(store);
        assert_eq!(gone.get(), 2);
    }

    /// Uses the store from its own drop.
    struct Reenters(Rc<Store>);
    impl Drop for Reenters {
        fn drop(&mut self) {
            self.0.insert(1u8);
        }
    }

    #[test]
    fn a_value_may_use_the_store_while_it_is_dropped() {
        let store = Rc::new(Store::default());
        store.insert(Reenters(store.clone()));
        drop(store.remove::<Reenters>());
        assert_eq!(store.get::<u8>().as_deref(), Some(&1));
    }
}
