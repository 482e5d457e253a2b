//! The functions that Envoy calls: thin, and no panic leaves them.
//!
//! Each is exported from every `cdylib` that links this crate. Pointers that Envoy hands back are
//! those that we gave it; Envoy calls the hooks of a stream on its worker thread, in order, and none
//! after destroy.

use std::any::Any;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use attache_core::PendingCall;
use attache_core::exchange::{self, Exchange};
use attache_core::host::{CallFailure, DataVerdict, Direction, Verdict};
use attache_core::registry::Registry;

use crate::abi::{
    ABI_VERSION_1_39, ABI_VERSION_1_40, ADDED_IN_1_40, Callbacks, EnvoyBuffer, EnvoyConfig,
    EnvoyFilter, EnvoyHeader, LOCAL_REPLY_CONTINUE, ModulePtr, body_status, headers_status,
    log_level, trailers_status,
};
use crate::callout::{self, ConfigCalls};
use crate::config::{ConfigStream, MainThread, ModuleConfig, RouteConfig, Sink, event};
use crate::log;
use crate::stream::Stream;
use crate::worker;

/// What the module is, once it is loaded.
struct Module {
    registry: Registry,
    api: Callbacks,
}

static MODULE: OnceLock<Module> = OnceLock::new();

fn module() -> &'static Module {
    MODULE.get().expect("Envoy initialises a module before it uses it")
}

/// Looks a symbol up in the whole program: Envoy's callbacks are in its executable.
fn find(name: &std::ffi::CStr) -> *mut std::ffi::c_void {
    // SAFETY: `name` is a C string.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// Keeps this library in memory: runtime threads run its code for as long as the process lives,
/// whatever `do_not_close` says.
fn pin() {
    // SAFETY: `Dl_info` is plain data, for which zero is a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let here = pin as fn() as *const std::ffi::c_void;
    // SAFETY: `here` is an address of this library, and `info` is ours. `dli_fname` is a C string
    // that lives as long as the library.
    unsafe {
        if libc::dladdr(here, &mut info) != 0 && !info.dli_fname.is_null() {
            let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
            libc::dlopen(info.dli_fname, flags);
        }
    }
}

/// What each `filters!` in this library has named.
static REGISTRIES: Mutex<Vec<fn() -> Registry>> = Mutex::new(Vec::new());

/// Called by each `filters!` when the library is loaded, before the entry point.
#[doc(hidden)]
pub fn register(registry: fn() -> Registry) {
    REGISTRIES.lock().unwrap_or_else(PoisonError::into_inner).push(registry);
}

fn load() -> Result<(), String> {
    if MODULE.get().is_some() {
        return Ok(());
    }
    let registries = REGISTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    if registries.is_empty() {
        return Err("it has no filters; name them with `attache::filters!`".into());
    }
    let registry = registries.iter().fold(Registry::new(), |all, next| all.merge(next()));
    // SAFETY: `find` looks the name up in the running program.
    let api = unsafe { Callbacks::load(find) }.map_err(|missing| {
        format!(
            "this Envoy does not have `{missing}`. Attaché runs in Envoy 1.39 and 1.40 with \
             dynamic modules"
        )
    })?;
    pin();
    attache_core::log::install(&MODULE.get_or_init(|| Module { registry, api }).api);
    Ok(())
}

/// The entry point of the module. Returns the ABI version, or null to refuse.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    match catch_unwind(load) {
        Ok(Ok(())) if !find(ADDED_IN_1_40).is_null() => ABI_VERSION_1_40,
        Ok(Ok(())) => ABI_VERSION_1_39,
        Ok(Err(reason)) => {
            // Envoy's log may be just what is missing.
            eprintln!("attache: the module cannot be loaded: {reason}");
            std::ptr::null()
        }
        // The panic hook has said why.
        Err(_) => std::ptr::null(),
    }
}

/// Makes a module's filters known when the module is loaded.
///
/// It exports nothing: an exported function of a fixed name would let only one crate that names
/// filters into a program, and those for stock Envoy may be compiled into one as well.
#[doc(hidden)]
#[macro_export]
macro_rules! export_module {
    ($registry:path) => {
        const _: () = {
            #[cfg(panic = "abort")]
            compile_error!(
                "a module must be built with panic = \"unwind\": with \"abort\", a panic in one \
                 exchange would end the whole Envoy; change `panic` in the Cargo profile"
            );

            extern "C" fn register() {
                $crate::register($registry)
            }

            #[used]
            #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
            #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
            static REGISTER: extern "C" fn() = register;
        };
    };
}

/// Runs a hook. A panic here is a fault of the runtime (a filter's own are caught closer to it); it
/// must not unwind into Envoy, so the hook answers `safe`.
fn shielded<R>(what: &str, safe: R, f: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        runtime_panicked(what, panic);
        safe
    })
}

#[cold]
fn runtime_panicked(what: &str, panic: Box<dyn Any + Send>) {
    if let Some(module) = MODULE.get() {
        log::write(
            &module.api,
            log_level::CRITICAL,
            &format!("attache: the runtime panicked in {what}; this is a bug in Attaché"),
        );
    }
    // Its `Drop` may panic as well; there is nowhere to go with it.
    std::mem::forget(panic);
}

/// An exchange of ours, as Envoy keeps it.
type Shared = exchange::Inner;

/// Runs a hook of a stream.
///
/// # Safety
/// `stream` must come from `.._filter_new` and not be destroyed before this call.
unsafe fn with_stream<R>(
    what: &str,
    stream: ModulePtr,
    safe: R,
    f: impl FnOnce(&Exchange) -> R,
) -> R {
    // SAFETY: the caller's promise: it came from `Rc::into_raw`, and its reference is not given up
    // yet. The hook may destroy the stream before it returns, so it works on a reference of its own.
    let exchange = unsafe {
        let stream = stream.cast::<Shared>();
        Rc::increment_strong_count(stream);
        Exchange::from(Rc::from_raw(stream))
    };
    let answer = match catch_unwind(AssertUnwindSafe(|| f(&exchange))) {
        Ok(answer) => answer,
        Err(panic) => {
            runtime_panicked(what, panic);
            shielded(what, (), || exchange.abort());
            safe
        }
    };
    if exchange.is_last() {
        give_up(what, exchange);
    }
    answer
}

/// What a hook can see of a stream without a reference of its own: it must not run anybody's code.
///
/// # Safety
/// `stream` must come from `.._filter_new`, and not be destroyed while the result is used.
unsafe fn peek<'a>(stream: ModulePtr) -> &'a Shared {
    // SAFETY: the caller's promise: it came from `Rc::into_raw`, and its reference is not given up.
    unsafe { &*stream.cast::<Shared>() }
}

/// Gives up the last reference to an exchange: what it owns may panic when it is dropped.
#[cold]
fn give_up(what: &str, exchange: Exchange) {
    shielded(what, (), || drop(exchange));
}

fn headers_verdict(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Continue => headers_status::CONTINUE,
        Verdict::Stop => headers_status::STOP_ITERATION,
    }
}

fn body_verdict(verdict: DataVerdict) -> u32 {
    match verdict {
        DataVerdict::Continue => body_status::CONTINUE,
        DataVerdict::StopAndWatermark => body_status::STOP_ITERATION_AND_WATERMARK,
        DataVerdict::StopNoBuffer => body_status::STOP_ITERATION_NO_BUFFER,
    }
}

fn trailers_verdict(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Continue => trailers_status::CONTINUE,
        Verdict::Stop => trailers_status::STOP_ITERATION,
    }
}

// ---- configs --------------------------------------------------------------------------------

/// A filter config is loaded. Null refuses it.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    envoy: EnvoyConfig,
    name: EnvoyBuffer,
    config: EnvoyBuffer,
) -> ModulePtr {
    shielded("config_new", std::ptr::null(), || {
        let module = module();
        // SAFETY: Envoy's buffers live during this call.
        let (name, config) = unsafe { (name.as_slice(), config.as_slice()) };
        let name = String::from_utf8_lossy(name);
        // SAFETY: `envoy` is being made by Envoy, further down the stack. So below.
        let main = Arc::new(unsafe { MainThread::new(envoy, &module.api) });
        // SAFETY: as above.
        let sink = Arc::new(unsafe { Sink::new(envoy, &module.api, main.clone()) });
        // SAFETY: as above.
        let calls = Arc::new(unsafe { ConfigCalls::new(envoy, &module.api, main) });
        let host = Box::new(ConfigStream {
            envoy,
            api: &module.api,
            sink: sink.clone(),
            calls: calls.clone(),
        });
        let loaded = module.registry.load(&name, config, host);
        sink.in_envoy.made();
        match loaded {
            Ok(loaded) => {
                Box::into_raw(Box::new(ModuleConfig { loaded, sink, calls })).cast_const().cast()
            }
            Err(reason) => {
                sink.queue.close();
                sink.in_envoy.close();
                calls.close();
                refuse(module, &reason)
            }
        }
    })
}

/// Envoy says only that it failed; the reason goes to its log first.
fn refuse(module: &Module, reason: &str) -> ModulePtr {
    log::write(&module.api, log_level::CRITICAL, &format!("attache: {reason}"));
    std::ptr::null()
}

/// A filter config goes. Any thread.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(config: ModulePtr) {
    shielded("config_destroy", (), || {
        // SAFETY: from `config_new`, and destroyed once.
        let config = unsafe { Box::from_raw(config.cast_mut().cast::<ModuleConfig>()) };
        // SAFETY: Envoy calls this at the beginning of its config's destructor: the config's metrics are
        // still there.
        unsafe { config.sink.end(&config.loaded) };
        config.sink.in_envoy.close();
        config.calls.close();
    });
}

/// The main thread runs what it was asked for: one of [`event`].
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_scheduled(
    _envoy: EnvoyConfig,
    config: ModulePtr,
    asked: u64,
) {
    if config.is_null() {
        return;
    }
    shielded("config_scheduled", (), || {
        // SAFETY: from `config_new`, not yet destroyed; Envoy holds its config during this call,
        // which is on its main thread.
        unsafe {
            let config = &*config.cast::<ModuleConfig>();
            match asked {
                event::CALLS => config.calls.flush(),
                event::LOOK => config.sink.in_envoy.look_now(),
                _ => config.sink.flush(),
            }
        }
    });
}

/// A per-route config is loaded. Null refuses it.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_per_route_config_new(
    name: EnvoyBuffer,
    config: EnvoyBuffer,
) -> ModulePtr {
    shielded("per_route_config_new", std::ptr::null(), || {
        let module = module();
        // SAFETY: Envoy's buffers live during this call.
        let (name, config) = unsafe { (name.as_slice(), config.as_slice()) };
        let name = String::from_utf8_lossy(name);
        match module.registry.load_route(&name, config) {
            Ok(config) => RouteConfig(config).into_raw(),
            Err(reason) => refuse(module, &reason),
        }
    })
}

/// A per-route config goes. Any thread.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_per_route_config_destroy(config: ModulePtr) {
    shielded("per_route_config_destroy", (), || {
        // SAFETY: from `RouteConfig::into_raw`, and destroyed once.
        drop(unsafe { Box::from_raw(config.cast_mut().cast::<RouteConfig>()) });
    });
}

// ---- streams --------------------------------------------------------------------------------

/// A stream begins. Never null: Envoy 1.39 would crash.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_new(
    config: ModulePtr,
    envoy: EnvoyFilter,
) -> ModulePtr {
    let config = config.cast::<ModuleConfig>();
    // SAFETY: from `config_new`; Envoy's stream holds its config.
    let loaded = unsafe { &(*config).loaded };
    let host = Stream::new(envoy, &module().api);
    let exchange = worker::with(|worker| Exchange::new_on(worker, loaded, host));
    Rc::into_raw(exchange.into_shared()).cast()
}

/// Request headers.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    end: bool,
) -> u32 {
    // SAFETY: a live stream of ours.
    unsafe {
        with_stream("request_headers", stream, headers_status::STOP_ITERATION, |exchange| {
            headers_verdict(exchange.headers(Direction::Request, end))
        })
    }
}

/// Request body.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    end: bool,
) -> u32 {
    // SAFETY: a live stream of ours.
    if unsafe { peek(stream) }.data_passes(Direction::Request, end) {
        return body_status::CONTINUE;
    }
    // SAFETY: a live stream of ours.
    unsafe {
        with_stream("request_body", stream, body_status::STOP_ITERATION_NO_BUFFER, |exchange| {
            body_verdict(exchange.data(Direction::Request, end))
        })
    }
}

/// Request trailers.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
) -> u32 {
    // SAFETY: a live stream of ours.
    unsafe {
        with_stream("request_trailers", stream, trailers_status::STOP_ITERATION, |exchange| {
            trailers_verdict(exchange.trailers(Direction::Request))
        })
    }
}

/// Response headers.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    end: bool,
) -> u32 {
    // SAFETY: a live stream of ours.
    unsafe {
        with_stream("response_headers", stream, headers_status::STOP_ITERATION, |exchange| {
            headers_verdict(exchange.headers(Direction::Response, end))
        })
    }
}

/// Response body.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_response_body(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    end: bool,
) -> u32 {
    // SAFETY: a live stream of ours.
    if unsafe { peek(stream) }.data_passes(Direction::Response, end) {
        return body_status::CONTINUE;
    }
    // SAFETY: a live stream of ours.
    unsafe {
        with_stream("response_body", stream, body_status::STOP_ITERATION_NO_BUFFER, |exchange| {
            body_verdict(exchange.data(Direction::Response, end))
        })
    }
}

/// Response trailers.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_response_trailers(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
) -> u32 {
    // SAFETY: a live stream of ours.
    unsafe {
        with_stream("response_trailers", stream, trailers_status::STOP_ITERATION, |exchange| {
            trailers_verdict(exchange.trailers(Direction::Response))
        })
    }
}

/// A wake was posted.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    _event: u64,
) {
    // SAFETY: a live stream of ours.
    unsafe { with_stream("scheduled", stream, (), Exchange::scheduled) }
}

/// The client's connection takes no more for now.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
) {
    // SAFETY: a live stream of ours.
    unsafe { with_stream("watermark", stream, (), |exchange| exchange.downstream_watermark(true)) }
}

/// The client's connection takes more again.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
) {
    // SAFETY: a live stream of ours.
    unsafe { with_stream("watermark", stream, (), |exchange| exchange.downstream_watermark(false)) }
}

/// Somebody sends a local reply.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_local_reply(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    _code: u32,
    _details: EnvoyBuffer,
    _reset_imminent: bool,
) -> u32 {
    // SAFETY: a live stream of ours.
    if !unsafe { peek(stream) }.local_reply_passes() {
        // SAFETY: as above.
        unsafe { with_stream("local_reply", stream, (), Exchange::local_reply) }
    }
    LOCAL_REPLY_CONTINUE
}

/// The stream has ended; its memory is still there.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
) {
    // SAFETY: a live stream of ours.
    unsafe { with_stream("stream_complete", stream, (), Exchange::complete) }
}

/// The stream goes.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_destroy(stream: ModulePtr) {
    shielded("destroy", (), || {
        // SAFETY: from `.._filter_new`, and destroyed once. Taken back in here: dropping it may drop
        // the filter itself.
        let exchange = Exchange::from(unsafe { Rc::from_raw(stream.cast::<Shared>()) });
        exchange.destroy();
        exchange.retire();
    });
}

// ---- calls to clusters ----------------------------------------------------------------------

/// A whole-response callout is over. This host makes none: they cannot be cancelled.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_callout_done(
    _envoy: EnvoyFilter,
    _stream: ModulePtr,
    _callout: u64,
    _result: u32,
    _headers: *const EnvoyHeader,
    _headers_len: usize,
    _chunks: *const EnvoyBuffer,
    _chunks_len: usize,
) {
}

/// The response headers of a call.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_headers(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    call: u64,
    headers: *const EnvoyHeader,
    headers_len: usize,
    end: bool,
) {
    // SAFETY: a live stream of ours; Envoy's headers live during this hook.
    unsafe {
        with_stream("call_headers", stream, (), |exchange| {
            exchange.call_headers(call, end, callout::fields(headers, headers_len));
        })
    }
}

/// Part of the response body of a call.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_data(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    call: u64,
    chunks: *const EnvoyBuffer,
    chunks_len: usize,
    end: bool,
) {
    // SAFETY: a live stream of ours; Envoy's buffers live during this hook.
    unsafe {
        with_stream("call_data", stream, (), |exchange| {
            exchange.call_data(call, end, callout::slices(chunks, chunks_len));
        })
    }
}

/// The response trailers of a call.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_trailers(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    call: u64,
    trailers: *const EnvoyHeader,
    trailers_len: usize,
) {
    // SAFETY: a live stream of ours; Envoy's trailers live during this hook.
    unsafe {
        with_stream("call_trailers", stream, (), |exchange| {
            exchange.call_trailers(call, callout::fields(trailers, trailers_len));
        })
    }
}

/// A call has ended well.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_complete(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    call: u64,
) {
    // SAFETY: a live stream of ours.
    unsafe { with_stream("call_complete", stream, (), |exchange| exchange.call_complete(call)) }
}

/// A call was reset. Envoy's reason is always the same, so it is not looked at.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_reset(
    _envoy: EnvoyFilter,
    stream: ModulePtr,
    call: u64,
    _reason: u32,
) {
    // SAFETY: a live stream of ours.
    unsafe { with_stream("call_reset", stream, (), |exchange| exchange.call_failed(call, None)) }
}

/// Runs a hook of a config's call.
///
/// # Safety
/// `config` must come from `config_new` and not be destroyed before this call, which must be on
/// Envoy's main thread.
unsafe fn with_call(
    what: &str,
    config: ModulePtr,
    call: u64,
    f: impl FnOnce(&mut PendingCall) -> bool,
) {
    if config.is_null() {
        return;
    }
    shielded(what, (), || {
        // SAFETY: the caller's promise.
        unsafe { (*config.cast::<ModuleConfig>()).calls.report(call, f) }
    });
}

/// As [`with_call`], for a hook after which there is none.
///
/// # Safety
/// As [`with_call`].
unsafe fn finish_call(what: &str, config: ModulePtr, call: u64, f: impl FnOnce(&mut PendingCall)) {
    if config.is_null() {
        return;
    }
    shielded(what, (), || {
        // SAFETY: the caller's promise.
        unsafe { (*config.cast::<ModuleConfig>()).calls.finished(call, f) }
    });
}

/// The response headers of a config's call.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_headers(
    _envoy: EnvoyConfig,
    config: ModulePtr,
    call: u64,
    headers: *const EnvoyHeader,
    headers_len: usize,
    end: bool,
) {
    // SAFETY: a live config of ours, on the main thread; Envoy's headers live during this hook.
    unsafe {
        with_call("config_call_headers", config, call, |pending| {
            pending.headers(end, callout::fields(headers, headers_len))
        })
    }
}

/// Part of the response body of a config's call.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_data(
    _envoy: EnvoyConfig,
    config: ModulePtr,
    call: u64,
    chunks: *const EnvoyBuffer,
    chunks_len: usize,
    end: bool,
) {
    // SAFETY: a live config of ours, on the main thread; Envoy's buffers live during this hook.
    unsafe {
        with_call("config_call_data", config, call, |pending| {
            pending.data(end, callout::slices(chunks, chunks_len))
        })
    }
}

/// The response trailers of a config's call.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_trailers(
    _envoy: EnvoyConfig,
    config: ModulePtr,
    call: u64,
    _trailers: *const EnvoyHeader,
    _trailers_len: usize,
) {
    // SAFETY: a live config of ours, on the main thread.
    unsafe {
        with_call("config_call_trailers", config, call, |pending| {
            pending.trailers();
            true
        })
    }
}

/// A config's call has ended well.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_complete(
    _envoy: EnvoyConfig,
    config: ModulePtr,
    call: u64,
) {
    // SAFETY: a live config of ours, on the main thread.
    unsafe { finish_call("config_call_complete", config, call, PendingCall::complete) }
}

/// A config's call was reset.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_reset(
    _envoy: EnvoyConfig,
    config: ModulePtr,
    call: u64,
    _reason: u32,
) {
    // SAFETY: a live config of ours, on the main thread.
    unsafe {
        finish_call("config_call_reset", config, call, |pending| pending.failed(CallFailure::Reset))
    }
}
