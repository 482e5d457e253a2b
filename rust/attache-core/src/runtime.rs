//! The Tokio runtime that drives I/O, timers and spawned tasks beside Envoy's workers.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::current::{self, Scope, step_of, task_of};
use crate::error::{Error, ErrorKind, Result, panic_message};
use crate::metrics::Counter;

/// How many threads the runtime has, unless `ATTACHE_RUNTIME_THREADS` says otherwise.
const DEFAULT_THREADS: usize = 2;

fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let threads = std::env::var("ATTACHE_RUNTIME_THREADS")
                .ok()
                .and_then(|n| n.parse().ok())
                .filter(|n| *n > 0)
                .unwrap_or(DEFAULT_THREADS);
            Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("attache-rt")
                .enable_all()
                .build()
                .expect("the system refused the runtime's threads")
        })
        .handle()
}

/// Enters the runtime on this thread, for as long as the thread lives: a poll then pays nothing for
/// it. A thread that is already inside a runtime (a test's, with its own clock) stays there.
///
/// Returns whether it is ours that the thread is in, for good.
#[cold]
pub(crate) fn enter() -> bool {
    thread_local!(static ENTERED: Cell<bool> = const { Cell::new(false) });
    if !ENTERED.get() && Handle::try_current().is_err() {
        ENTERED.set(true);
        // The guard would have to be dropped before the thread's other locals, which nobody can
        // promise on a thread that belongs to Envoy.
        std::mem::forget(runtime().enter());
    }
    ENTERED.get()
}

/// That of this thread, or ours.
fn handle() -> Handle {
    Handle::try_current().unwrap_or_else(|_| runtime().clone())
}

/// Runs a future on the runtime's own threads, beside the workers.
///
/// Awaiting the handle wakes the exchange when it is done. Dropping the handle cancels the task, as
/// dropping any future does; [`detach`](JoinHandle::detach) lets it go on alone.
///
/// In Envoy's log, the task's `tracing` events have the filter and the stream in front, as the
/// exchange's own have; also when it goes on after the exchange has ended.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let sum = attache_core::spawn(async { 1 + 1 }).await.unwrap();
/// assert_eq!(sum, 2);
/// # });
/// ```
///
/// So a handle that nobody keeps is a mistake, and the compiler says so:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// attache_core::spawn(async { /* it never gets here */ });
/// ```
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let task = task_of(Scope::here(), future);
    JoinHandle { task: handle().spawn(task), abort_on_drop: true }
}

/// Runs a closure that blocks on a thread where that harms nobody.
///
/// Dropping the handle gives up waiting; a closure that has started runs to its end. Its `tracing`
/// events have the filter and the stream in front, as those of [`spawn`] have.
pub fn spawn_blocking<F, R>(f: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    let scope = Scope::here();
    JoinHandle { task: handle().spawn_blocking(|| step_of(scope, f)), abort_on_drop: true }
}

/// The result of a spawned task, to await.
///
/// # Errors
/// A panic in the task becomes an error that, passed on with `?`, counts as the filter's own panic.
#[derive(Debug)]
#[must_use = "dropping it cancels the task: await it, or let the task go on with `detach`"]
pub struct JoinHandle<T> {
    task: tokio::task::JoinHandle<T>,
    abort_on_drop: bool,
}

impl<T: Send + 'static> JoinHandle<T> {
    /// Lets the task go on without anybody waiting, also after the exchange has ended.
    ///
    /// A panic in it is logged. It is counted as the filter's (`attache.<filter>.panics`) where this
    /// is called in an exchange, and not in a task.
    pub fn detach(mut self) {
        self.abort_on_drop = false;
        let panics = current::with(|exchange| Some(exchange.filter().meta.panics.clone()));
        let watch = async move {
            if let Err(error) = self.await
                && error.kind() == ErrorKind::Panicked
            {
                panics.inspect(Counter::inc);
                tracing::error!("{error}");
            }
        };
        handle().spawn(task_of(Scope::here(), watch));
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if self.abort_on_drop {
            self.task.abort();
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        Pin::new(&mut self.task).poll(cx).map(|joined| {
            // Nothing is left to cancel.
            self.abort_on_drop = false;
            joined.map_err(|error| match error.try_into_panic() {
                Ok(payload) => {
                    let message = panic_message(&*payload).to_owned();
                    drop_quietly(payload);
                    Error::panicked(format!("a spawned task panicked: {message}"))
                }
                Err(_) => Error::new("a spawned task was cancelled: the runtime is shutting down"),
            })
        })
    }
}

/// Runs `f`; a panic becomes its message. For hosts, which let no panic out.
///
/// # Errors
/// The panic's message.
pub fn guarded<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let message = panic_message(&*payload).to_owned();
        drop_quietly(payload);
        message
    })
}

/// Drops a panic's payload, whose own `Drop` may panic as well.
fn drop_quietly(payload: Box<dyn std::any::Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Nobody can do better with a payload that cannot be dropped than to leave it.
        std::mem::forget(second);
    }
}

/// Runs a task of the runtime's own, which ends by itself.
pub(crate) fn beside(task: impl Future<Output = ()> + Send + 'static) {
    drop(handle().spawn(task));
}

/// A task that is tied to something's life: aborted when dropped.
#[derive(Debug)]
pub(crate) struct Tied(tokio::task::JoinHandle<()>);

impl Tied {
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Tied(handle().spawn(future))
    }

    /// A task of a filter's, as its lines in the log say.
    pub(crate) fn spawn_for(
        filter: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Tied::spawn(task_of(Some(Scope::of(filter)), future))
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.0.abort();
    }
}
