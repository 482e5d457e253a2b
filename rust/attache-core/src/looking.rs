//! Looking again and again at what tells nobody when it changes.

use std::sync::Weak;
use std::time::Duration;

use crate::runtime::beside;

/// How often is looked at the least.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// How soon for the first time: what is looked at may just be on its way.
const SOON: Duration = Duration::from_millis(10);

/// What tells nobody when it changes. Implemented by hosts.
pub trait Looking: Send + Sync {
    /// Looks, or asks a thread that can. `false`: there is nothing to look at any more. Any thread.
    fn look(&self) -> bool;
}

/// Has something looked at until it says that this is over, or has gone: soon, then less and less
/// often, down to once a second.
pub fn keep_looking(at: Weak<dyn Looking>) {
    beside(async move {
        let mut pause = SOON;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK);
            if !at.upgrade().is_some_and(|at| at.look()) {
                return;
            }
        }
    });
}
