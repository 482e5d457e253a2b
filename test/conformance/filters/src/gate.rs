//! Gates: an exchange waits at one until another exchange opens it. Once open it stays open, so
//! whoever comes first does not matter.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::sync::watch;

type Gates = Mutex<HashMap<String, Arc<watch::Sender<bool>>>>;

static GATES: LazyLock<Gates> = LazyLock::new(Gates::default);

fn gate(name: &str) -> Arc<watch::Sender<bool>> {
    let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
    gates.entry(name.to_owned()).or_insert_with(|| Arc::new(watch::Sender::new(false))).clone()
}

/// Opens a gate, for good.
pub(crate) fn open(name: &str) {
    gate(name).send_replace(true);
}

/// Waits until a gate is open.
pub(crate) async fn pass(name: &str) {
    let mut opened = gate(name).subscribe();
    // The sender lives in the static, so this ends only by the gate being open.
    let _ = opened.wait_for(|open| *open).await;
}
