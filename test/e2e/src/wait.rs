//! Waiting with an end: nothing in a test may hang, and nothing may sleep and hope.

use std::time::Duration;

/// How long anything in a test may take before it counts as stuck. Generous, because it only
/// ever matters for a test that fails, and the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Awaits `future`, and fails the test with `what` in its message when it never finishes.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("gave up waiting for {what} after {LIMIT:?}"),
    }
}

/// Asks again and again until `check` says yes; for what can only be seen by looking (counters,
/// log lines, files).
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
