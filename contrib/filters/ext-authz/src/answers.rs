//! Answers to questions: remembered for a while, and asked for once at a time.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use attache::CalloutError;
use lru::LruCache;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

/// What makes a question the same as another: a hash, so that no secret of a client stays in memory,
/// and a long one, so that nobody can make two questions look the same.
pub(crate) struct Key(Sha256);

type Hash = [u8; 32];

impl Key {
    pub(crate) fn new() -> Self {
        Key(Sha256::new())
    }

    /// Adds a part. Its length goes with it: `ab`, `c` is not `a`, `bc`.
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }
}

/// An answer, as all who asked get it.
pub(crate) enum Shared<T> {
    Answer(Arc<T>),
    Failed(CalloutError),
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        match self {
            Shared::Answer(answer) => Shared::Answer(answer.clone()),
            Shared::Failed(error) => Shared::Failed(error.clone()),
        }
    }
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From the service.
    Asked,
    /// From an earlier question.
    Remembered,
    /// From a question that somebody else was asking.
    Joined,
}

/// The answers of one filter config, shared by all workers.
pub(crate) struct Answers<T> {
    ttl: Duration,
    refusal_ttl: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    known: LruCache<Hash, (Arc<T>, Instant)>,
    /// What is being asked, and where the answer will be.
    asked: HashMap<Hash, watch::Receiver<Option<Shared<T>>>>,
}

/// Asks for all who want to know. If it is dropped before there is an answer (its client has left),
/// another takes over.
struct Asking<'a, T> {
    answers: &'a Answers<T>,
    hash: Hash,
    to: watch::Sender<Option<Shared<T>>>,
}

impl<T> Drop for Asking<'_, T> {
    fn drop(&mut self) {
        self.answers.state().asked.remove(&self.hash);
    }
}

enum Role<'a, T> {
    Knows(Arc<T>),
    Asks(Asking<'a, T>),
    Waits(watch::Receiver<Option<Shared<T>>>),
}

impl<T> Answers<T> {
    pub(crate) fn new(entries: NonZeroUsize, ttl: Duration, refusal_ttl: Duration) -> Self {
        let state = State { known: LruCache::new(entries), asked: HashMap::new() };
        Answers { ttl, refusal_ttl, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn role(&self, hash: Hash) -> Role<'_, T> {
        let mut state = self.state();
        match state.known.get(&hash) {
            Some((answer, until)) if Instant::now() < *until => {
                return Role::Knows(answer.clone());
            }
            Some(_) => drop(state.known.pop(&hash)),
            None => (),
        }
        if let Some(waiting) = state.asked.get(&hash) {
            return Role::Waits(waiting.clone());
        }
        let (to, from) = watch::channel(None);
        state.asked.insert(hash, from);
        Role::Asks(Asking { answers: self, hash, to })
    }

    /// The answer, and where it came from. `ask` says whether it is a consent; failures are told to
    /// those who wait, and not remembered.
    pub(crate) async fn get(
        &self,
        key: Key,
        ask: impl AsyncFn() -> Result<(T, bool), CalloutError>,
    ) -> (Shared<T>, Source) {
        let hash = key.0.finalize().into();
        loop {
            match self.role(hash) {
                Role::Knows(answer) => return (Shared::Answer(answer), Source::Remembered),
                Role::Asks(asking) => {
                    let answer = match ask().await {
                        Ok((answer, consents)) => {
                            let ttl = if consents { self.ttl } else { self.refusal_ttl };
                            let answer = Arc::new(answer);
                            if !ttl.is_zero() {
                                let known = (answer.clone(), Instant::now() + ttl);
                                self.state().known.put(hash, known);
                            }
                            Shared::Answer(answer)
                        }
                        Err(error) => Shared::Failed(error),
                    };
                    asking.to.send_replace(Some(answer.clone()));
                    return (answer, Source::Asked);
                }
                Role::Waits(mut answer) => {
                    // Closed without an answer: whoever asked has left, so it is asked again.
                    if let Ok(answer) = answer.wait_for(Option::is_some).await
                        && let Some(answer) = answer.clone()
                    {
                        return (answer, Source::Joined);
                    }
                }
            }
        }
    }
}
