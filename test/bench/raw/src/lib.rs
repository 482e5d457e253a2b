//! The yardstick of `make bench`: what a careful engineer would write straight on Envoy's dynamic
//! modules C ABI, with no runtime, no isolation of panics and no state per stream.
//!
//! One library, three filters, chosen by `filter_name`:
//!
//! | name          | does                                                                          |
//! |---------------|-------------------------------------------------------------------------------|
//! | `raw_pass`    | nothing; `raw_body_untouched` is the same, beside bodies                      |
//! | `raw_headers` | copies `x-bench-in` to `x-bench-out`, and sets `x-bench: 1` on the response   |
//! | `raw_hop`     | holds the request until a Tokio task on another thread has woken the stream   |
//!
//! It serves the requests that the bench sends and no others: `raw_hop` does not hold a body, so it
//! must see only requests without one.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// A stream of Envoy's, or a scheduler of one.
type Envoy = *mut c_void;

/// What this module hands Envoy as config and as filter: the number of the filter in the table
/// above, dressed up as a pointer that nobody follows.
type Mode = *const c_void;

const PASS: usize = 1;
const HEADERS: usize = 2;
const HOP: usize = 3;

const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;

const CONTINUE: u32 = 0;
const STOP_ITERATION: u32 = 1;

/// Bytes owned by Envoy or by this module; the ABI has one layout for both.
#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer {
    ptr: *const c_char,
    len: usize,
}

impl Buffer {
    const EMPTY: Buffer = Buffer { ptr: ptr::null(), len: 0 };

    const fn of(bytes: &'static str) -> Buffer {
        Buffer { ptr: bytes.as_ptr().cast(), len: bytes.len() }
    }
}

unsafe extern "C" {
    fn envoy_dynamic_module_callback_http_get_header(
        stream: Envoy,
        map: u32,
        key: Buffer,
        value: *mut Buffer,
        index: usize,
        count: *mut usize,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_header(
        stream: Envoy,
        map: u32,
        key: Buffer,
        value: Buffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_filter_scheduler_new(stream: Envoy) -> Envoy;
    fn envoy_dynamic_module_callback_http_filter_scheduler_commit(scheduler: Envoy, event: u64);
    fn envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler: Envoy);
    fn envoy_dynamic_module_callback_http_filter_continue_decoding(stream: Envoy);
}

/// Owns one scheduler on its way to a Tokio thread.
struct Scheduler(Envoy);

// SAFETY: Envoy's scheduler is made to be committed and deleted on any thread, and is never shared.
unsafe impl Send for Scheduler {}

impl Scheduler {
    fn commit(self) {
        // SAFETY: `self` is the only owner of a live scheduler, and gives it up here.
        unsafe {
            envoy_dynamic_module_callback_http_filter_scheduler_commit(self.0, 0);
            envoy_dynamic_module_callback_http_filter_scheduler_delete(self.0);
        }
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        // As many threads as Attaché's runtime has: what is compared is the way to Tokio and back,
        // not Tokio with itself.
        let threads = std::env::var("ATTACHE_RUNTIME_THREADS").ok().and_then(|n| n.parse().ok());
        let built =
            Builder::new_multi_thread().worker_threads(threads.unwrap_or(2)).enable_all().build();
        built.expect("a Tokio runtime")
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    c"v0.2.0".as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    _config: Envoy,
    name: Buffer,
    _settings: Buffer,
) -> Mode {
    // SAFETY: Envoy's buffer is valid for this call, and the name of a filter is not empty, so its
    // pointer is not null.
    let name = unsafe { std::slice::from_raw_parts(name.ptr.cast::<u8>(), name.len) };
    let mode = match name {
        b"raw_pass" | b"raw_body_untouched" => PASS,
        b"raw_headers" => HEADERS,
        b"raw_hop" => {
            runtime();
            HOP
        }
        // Null refuses the config.
        _ => 0,
    };
    ptr::without_provenance(mode)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(_config: Mode) {}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_new(config: Mode, _stream: Envoy) -> Mode {
    config
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    stream: Envoy,
    mode: Mode,
    _end: bool,
) -> u32 {
    match mode.addr() {
        HEADERS => {
            let mut value = Buffer::EMPTY;
            // SAFETY: `stream` is live during its hook. The value that was read is a view of another
            // header than the one that is set, so it stays valid while Envoy copies it.
            unsafe {
                if envoy_dynamic_module_callback_http_get_header(
                    stream,
                    REQUEST_HEADERS,
                    Buffer::of("x-bench-in"),
                    &mut value,
                    0,
                    ptr::null_mut(),
                ) {
                    envoy_dynamic_module_callback_http_set_header(
                        stream,
                        REQUEST_HEADERS,
                        Buffer::of("x-bench-out"),
                        value,
                    );
                }
            }
            CONTINUE
        }
        HOP => {
            // SAFETY: `stream` is live during its hook.
            let scheduler = Scheduler(unsafe {
                envoy_dynamic_module_callback_http_filter_scheduler_new(stream)
            });
            runtime().spawn(async move { scheduler.commit() });
            STOP_ITERATION
        }
        _ => CONTINUE,
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    stream: Envoy,
    _mode: Mode,
    _event: u64,
) {
    // SAFETY: Envoy calls this hook only for a live stream; only `raw_hop` schedules, once, after it
    // has stopped the request.
    unsafe { envoy_dynamic_module_callback_http_filter_continue_decoding(stream) }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    stream: Envoy,
    mode: Mode,
    _end: bool,
) -> u32 {
    if mode.addr() == HEADERS {
        // SAFETY: `stream` is live during its hook, and the buffers are static.
        unsafe {
            envoy_dynamic_module_callback_http_set_header(
                stream,
                RESPONSE_HEADERS,
                Buffer::of("x-bench"),
                Buffer::of("1"),
            );
        }
    }
    CONTINUE
}

// The rest of the hooks exist because Envoy refuses a module that lacks one.

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    _stream: Envoy,
    _mode: Mode,
    _end: bool,
) -> u32 {
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(
    _stream: Envoy,
    _mode: Mode,
) -> u32 {
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_response_body(
    _stream: Envoy,
    _mode: Mode,
    _end: bool,
) -> u32 {
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_response_trailers(
    _stream: Envoy,
    _mode: Mode,
) -> u32 {
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(_stream: Envoy, _mode: Mode) {}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_destroy(_mode: Mode) {}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_callout_done(
    _stream: Envoy,
    _mode: Mode,
    _callout: u64,
    _result: u32,
    _headers: *const c_void,
    _headers_len: usize,
    _body: *const c_void,
    _body_len: usize,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_headers(
    _stream: Envoy,
    _mode: Mode,
    _callout: u64,
    _headers: *const c_void,
    _headers_len: usize,
    _end: bool,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_data(
    _stream: Envoy,
    _mode: Mode,
    _callout: u64,
    _data: *const c_void,
    _data_len: usize,
    _end: bool,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_trailers(
    _stream: Envoy,
    _mode: Mode,
    _callout: u64,
    _trailers: *const c_void,
    _trailers_len: usize,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_complete(
    _stream: Envoy,
    _mode: Mode,
    _callout: u64,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_reset(
    _stream: Envoy,
    _mode: Mode,
    _callout: u64,
    _reason: u32,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(
    _stream: Envoy,
    _mode: Mode,
) {
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(
    _stream: Envoy,
    _mode: Mode,
) {
}
