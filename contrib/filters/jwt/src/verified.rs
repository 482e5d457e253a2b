//! Tokens that were found to be valid, so that each is checked once: a signature costs more than a
//! hundred times what looking it up here does.

use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use attache::http::{HeaderName, HeaderValue};
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::keys::KeySet;

/// What the upstream is told of a token.
pub(crate) type Told = Rc<[(HeaderName, HeaderValue)]>;

/// A hash, so that no token stays in memory, and a long one, so that nobody can make a token that
/// passes for another.
type Hash = [u8; 32];

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// The valid tokens that one worker has seen. Only those are kept: whoever makes tokens up pushes
/// none of them out.
pub(crate) struct Verified {
    /// Whose signatures were checked.
    keys: Option<Arc<KeySet>>,
    known: LruCache<Hash, (Told, u64)>,
}

impl Verified {
    pub(crate) fn new(entries: NonZeroUsize) -> Self {
        Verified { keys: None, known: LruCache::new(entries) }
    }

    /// What the upstream is told of a token that these keys have verified, and that is still valid at
    /// `now`, in seconds since 1970.
    pub(crate) fn find(&mut self, token: &str, keys: &Arc<KeySet>, now: u64) -> Option<Told> {
        if !self.is_of(keys) {
            return None;
        }
        let hash = hash(token);
        match self.known.get(&hash) {
            Some((told, until)) if now <= *until => Some(told.clone()),
            Some(_) => {
                self.known.pop(&hash);
                None
            }
            None => None,
        }
    }

    /// Keeps a token that these keys have verified, and that is valid until `until`.
    pub(crate) fn keep(&mut self, token: &str, keys: &Arc<KeySet>, told: Told, until: u64) {
        if !self.is_of(keys) {
            // A key may have gone, and with it all that it has signed.
            self.known.clear();
            self.keys = Some(keys.clone());
        }
        self.known.put(hash(token), (told, until));
    }

    fn is_of(&self, keys: &Arc<KeySet>) -> bool {
        self.keys.as_ref().is_some_and(|own| Arc::ptr_eq(own, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Arc<KeySet> {
        Arc::new(KeySet::none())
    }

    fn told(user: &'static str) -> Told {
        [(HeaderName::from_static("x-user"), HeaderValue::from_static(user))].into()
    }

    fn cache(entries: usize) -> Verified {
        Verified::new(NonZeroUsize::new(entries).unwrap())
    }

    #[test]
    fn a_token_is_known_until_it_expires() {
        let (mut cache, keys) = (cache(2), keys());
        assert_eq!(cache.find("a", &keys, 10), None);
        cache.keep("a", &keys, told("alice"), 20);
        assert_eq!(cache.find("a", &keys, 20), Some(told("alice")));
        assert_eq!(cache.find("b", &keys, 20), None);
        assert_eq!(cache.find("a", &keys, 21), None);
        assert_eq!(cache.known.len(), 0, "it is of no use any more");
    }

    #[test]
    fn other_keys_know_no_token_and_forget_all() {
        let (mut cache, old, new) = (cache(2), keys(), keys());
        cache.keep("a", &old, told("alice"), 20);
        assert_eq!(cache.find("a", &new, 10), None);
        assert_eq!(cache.find("a", &old, 10), Some(told("alice")), "a worker may be late");
        cache.keep("b", &new, told("bob"), 20);
        assert_eq!(cache.find("a", &new, 10), None);
        assert_eq!(cache.find("a", &old, 10), None);
        assert_eq!(cache.find("b", &new, 10), Some(told("bob")));
    }

    #[test]
    fn no_more_are_kept_than_allowed_and_the_least_used_goes_first() {
        let (mut cache, keys) = (cache(2), keys());
        cache.keep("a", &keys, told("alice"), 20);
        cache.keep("b", &keys, told("bob"), 20);
        assert!(cache.find("a", &keys, 10).is_some());
        cache.keep("c", &keys, told("carol"), 20);
        assert_eq!(cache.known.len(), 2);
        assert!(cache.find("a", &keys, 10).is_some());
        assert_eq!(cache.find("b", &keys, 10), None);
    }
}
