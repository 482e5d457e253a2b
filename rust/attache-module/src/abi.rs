//! Our own declarations of the part of Envoy's dynamic modules C ABI that HTTP hosting needs.
//!
//! The same in Envoy 1.38 to 1.40 (`source/extensions/dynamic_modules/abi/abi.h`). Callbacks are
//! looked up when the module is loaded rather than linked: an Envoy that lacks one is refused with
//! its name, and a filter's unit tests link without any Envoy.
//!
//! Names tell who owns the memory: `Envoy*` is Envoy's and valid only during the call or hook,
//! `Module*` is ours and is read by Envoy only during the call.

use std::ffi::{c_char, c_void};

/// Envoy's stream object.
pub(crate) type EnvoyFilter = *mut c_void;
/// Envoy's filter config object.
pub(crate) type EnvoyConfig = *mut c_void;
/// An object of ours that Envoy hands back to us.
pub(crate) type ModulePtr = *const c_void;
/// A scheduler that Envoy made for us, and that we delete.
pub(crate) type Scheduler = *mut c_void;

/// A tracing span: the stream's, or a child that is ours until we finish it.
pub(crate) type EnvoySpan = *mut c_void;

/// Bytes that Envoy owns.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct EnvoyBuffer {
    pub(crate) ptr: *const u8,
    pub(crate) len: usize,
}

impl EnvoyBuffer {
    pub(crate) const EMPTY: EnvoyBuffer = EnvoyBuffer { ptr: std::ptr::null(), len: 0 };

    /// # Safety
    /// The bytes must stay where they are for as long as `'a` says.
    pub(crate) unsafe fn as_slice<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: Envoy gives `len` initialised bytes at `ptr`; the caller answers for `'a`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// Bytes that we own.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ModuleBuffer {
    ptr: *const u8,
    len: usize,
}

impl From<&[u8]> for ModuleBuffer {
    fn from(bytes: &[u8]) -> Self {
        ModuleBuffer { ptr: bytes.as_ptr(), len: bytes.len() }
    }
}

impl From<&str> for ModuleBuffer {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

/// A header that Envoy owns.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct EnvoyHeader {
    pub(crate) name: EnvoyBuffer,
    pub(crate) value: EnvoyBuffer,
}

/// A header that we own.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ModuleHeader {
    pub(crate) name: ModuleBuffer,
    pub(crate) value: ModuleBuffer,
}

// The C structs are flat: {ptr, len} and {key ptr, key len, value ptr, value len}, eight bytes each.
const _: () = {
    assert!(size_of::<usize>() == 8 && size_of::<*const u8>() == 8);
    assert!(size_of::<EnvoyBuffer>() == 16 && align_of::<EnvoyBuffer>() == 8);
    assert!(size_of::<ModuleBuffer>() == 16 && align_of::<ModuleBuffer>() == 8);
    assert!(std::mem::offset_of!(EnvoyBuffer, ptr) == 0);
    assert!(std::mem::offset_of!(EnvoyBuffer, len) == 8);
    assert!(std::mem::offset_of!(ModuleBuffer, ptr) == 0);
    assert!(std::mem::offset_of!(ModuleBuffer, len) == 8);
    assert!(size_of::<EnvoyHeader>() == 32 && std::mem::offset_of!(EnvoyHeader, value) == 16);
    assert!(size_of::<ModuleHeader>() == 32 && std::mem::offset_of!(ModuleHeader, value) == 16);
};

/// What a headers hook returns. The two StopAll statuses are left out on purpose: Envoy's
/// `continue` does not undo them reliably.
pub(crate) mod headers_status {
    pub(crate) const CONTINUE: u32 = 0;
    pub(crate) const STOP_ITERATION: u32 = 1;
}

/// What a body hook returns.
pub(crate) mod body_status {
    pub(crate) const CONTINUE: u32 = 0;
    pub(crate) const STOP_ITERATION_AND_WATERMARK: u32 = 2;
    pub(crate) const STOP_ITERATION_NO_BUFFER: u32 = 3;
}

/// What a trailers hook returns.
pub(crate) mod trailers_status {
    pub(crate) const CONTINUE: u32 = 0;
    pub(crate) const STOP_ITERATION: u32 = 1;
}

/// What the local-reply hook returns.
pub(crate) const LOCAL_REPLY_CONTINUE: u32 = 0;

/// Which header map.
pub(crate) mod header_type {
    pub(crate) const REQUEST_HEADER: u32 = 0;
    pub(crate) const REQUEST_TRAILER: u32 = 1;
    pub(crate) const RESPONSE_HEADER: u32 = 2;
    pub(crate) const RESPONSE_TRAILER: u32 = 3;
}

/// Which body.
pub(crate) mod body_type {
    pub(crate) const RECEIVED_REQUEST: u32 = 0;
    pub(crate) const BUFFERED_REQUEST: u32 = 1;
    pub(crate) const RECEIVED_RESPONSE: u32 = 2;
    pub(crate) const BUFFERED_RESPONSE: u32 = 3;
}

/// Log levels.
pub(crate) mod log_level {
    pub(crate) const TRACE: u32 = 0;
    pub(crate) const DEBUG: u32 = 1;
    pub(crate) const INFO: u32 = 2;
    pub(crate) const WARN: u32 = 3;
    pub(crate) const ERROR: u32 = 4;
    pub(crate) const CRITICAL: u32 = 5;
}

/// What a metrics callback returns.
pub(crate) const METRICS_SUCCESS: u32 = 0;
/// The metrics of a config are fixed once it is loaded.
pub(crate) const METRICS_FROZEN: u32 = 3;

/// `request.id`
pub(crate) const ATTRIBUTE_REQUEST_ID: u32 = 9;
/// `connection.id`
pub(crate) const ATTRIBUTE_CONNECTION_ID: u32 = 28;

/// Whose metadata.
pub(crate) mod metadata_source {
    /// The stream's, which filters can write.
    pub(crate) const DYNAMIC: u32 = 0;
    pub(crate) const ROUTE: u32 = 1;
    pub(crate) const CLUSTER: u32 = 2;
    pub(crate) const HOST: u32 = 3;
    pub(crate) const HOST_LOCALITY: u32 = 4;
}

/// How long a value of the filter state lives.
pub(crate) mod life_span {
    pub(crate) const FILTER_CHAIN: u32 = 0;
    pub(crate) const REQUEST: u32 = 1;
    pub(crate) const CONNECTION: u32 = 2;
}

/// Whom a value of the filter state is shared with.
pub(crate) mod sharing {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const UPSTREAM_CONNECTION: u32 = 1;
    pub(crate) const UPSTREAM_CONNECTION_ONCE: u32 = 2;
}

/// What starting a call to a cluster returns.
pub(crate) mod callout_init {
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const MISSING_REQUIRED_HEADERS: u32 = 1;
    pub(crate) const CLUSTER_NOT_FOUND: u32 = 2;
}

/// The times of a stream, by [`timing`]'s indices: nanoseconds after its start, but the start itself
/// since 1970. What is not known (yet) is 0 in `known`.
#[repr(C)]
pub(crate) struct TimingInfo {
    pub(crate) nanos: [i64; timing::COUNT],
    /// C's `bool`s.
    pub(crate) known: [u8; timing::COUNT],
}

impl TimingInfo {
    pub(crate) const UNKNOWN: Self =
        TimingInfo { nanos: [-1; timing::COUNT], known: [0; timing::COUNT] };

    /// The time at an index of [`timing`], if it is known.
    pub(crate) fn at(&self, index: usize) -> Option<u64> {
        (self.known[index] != 0).then(|| u64::try_from(self.nanos[index]).ok())?
    }
}

/// The places in [`TimingInfo`] of the times that we tell.
pub(crate) mod timing {
    pub(crate) const START: usize = 0;
    pub(crate) const LAST_DOWNSTREAM_RX: usize = 5;
    pub(crate) const FIRST_UPSTREAM_TX: usize = 9;
    pub(crate) const LAST_UPSTREAM_TX: usize = 10;
    pub(crate) const FIRST_UPSTREAM_RX: usize = 11;
    pub(crate) const LAST_UPSTREAM_RX: usize = 13;
    pub(crate) const FIRST_DOWNSTREAM_TX: usize = 14;
    pub(crate) const LAST_DOWNSTREAM_TX: usize = 15;
    pub(crate) const COMPLETE: usize = 17;
    pub(crate) const COUNT: usize = 19;
}

/// How a stream is reset.
pub(crate) mod reset_reason {
    pub(crate) const LOCAL: u32 = 0;
    pub(crate) const LOCAL_REFUSED: u32 = 1;
}

/// A callback of a later Envoy than the oldest that is supported, if this one has it.
pub(crate) type Later<T> = Option<T>;

macro_rules! callbacks {
    (all: {
        $($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($arg:ty),* $(,)?) $(-> $ret:ty)?;)*
    } later: {
        $(
            $(#[$later_doc:meta])*
            $later:ident = $later_symbol:literal: fn($($later_arg:ty),* $(,)?) $(-> $later_ret:ty)?;
        )*
    }) => {
        /// Envoy's callbacks.
        pub(crate) struct Callbacks {
            $($(#[$doc])* pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            $(
                $(#[$later_doc])*
                pub(crate) $later: Later<unsafe extern "C" fn($($later_arg),*) $(-> $later_ret)?>,
            )*
        }

        impl Callbacks {
            /// Looks all callbacks up in the running program.
            ///
            /// # Errors
            /// The name of the first that is missing.
            ///
            /// # Safety
            /// `find` must give the address of the C function of that name, or null.
            pub(crate) unsafe fn load(
                find: impl Fn(&'static std::ffi::CStr) -> *mut c_void,
            ) -> Result<Self, &'static str> {
                Ok(Callbacks {
                    $($name: {
                        const NAME: &str = concat!("envoy_dynamic_module_callback_", $symbol, "\0");
                        let name = std::ffi::CStr::from_bytes_with_nul(NAME.as_bytes());
                        let address = find(name.expect("the name ends in its only NUL"));
                        if address.is_null() {
                            return Err(concat!("envoy_dynamic_module_callback_", $symbol));
                        }
                        // SAFETY: it is the address of the C function of this name, whose
                        // signature in every supported Envoy is the one declared here.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(address)
                        }
                    },)*
                    $($later: {
                        const NAME: &str =
                            concat!("envoy_dynamic_module_callback_", $later_symbol, "\0");
                        let name = std::ffi::CStr::from_bytes_with_nul(NAME.as_bytes());
                        // SAFETY: it is null, which is how `None` is stored, or the address of the C
                        // function of this name, whose signature in the Envoy that has it is the one
                        // declared here.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                Later<unsafe extern "C" fn($($later_arg),*) $(-> $later_ret)?>,
                            >(find(name.expect("the name ends in its only NUL")))
                        }
                    },)*
                })
            }
        }
    };
}

callbacks! {
    all: {
    log = "log": fn(u32, ModuleBuffer);
    log_enabled = "log_enabled": fn(u32) -> bool;

    define_counter = "http_filter_config_define_counter":
        fn(EnvoyConfig, ModuleBuffer, *const ModuleBuffer, usize, *mut usize) -> u32;
    define_gauge = "http_filter_config_define_gauge":
        fn(EnvoyConfig, ModuleBuffer, *const ModuleBuffer, usize, *mut usize) -> u32;
    define_histogram = "http_filter_config_define_histogram":
        fn(EnvoyConfig, ModuleBuffer, *const ModuleBuffer, usize, *mut usize) -> u32;
    increment_counter = "http_filter_config_increment_counter":
        fn(EnvoyConfig, usize, *const ModuleBuffer, usize, u64) -> u32;
    increment_gauge = "http_filter_config_increment_gauge":
        fn(EnvoyConfig, usize, *const ModuleBuffer, usize, u64) -> u32;
    decrement_gauge = "http_filter_config_decrement_gauge":
        fn(EnvoyConfig, usize, *const ModuleBuffer, usize, u64) -> u32;
    set_gauge = "http_filter_config_set_gauge":
        fn(EnvoyConfig, usize, *const ModuleBuffer, usize, u64) -> u32;
    record_histogram = "http_filter_config_record_histogram_value":
        fn(EnvoyConfig, usize, *const ModuleBuffer, usize, u64) -> u32;
    config_scheduler_new = "http_filter_config_scheduler_new": fn(EnvoyConfig) -> Scheduler;
    config_scheduler_delete = "http_filter_config_scheduler_delete": fn(Scheduler);
    config_scheduler_commit = "http_filter_config_scheduler_commit": fn(Scheduler, u64);

    get_header = "http_get_header":
        fn(EnvoyFilter, u32, ModuleBuffer, *mut EnvoyBuffer, usize, *mut usize) -> bool;
    get_headers_size = "http_get_headers_size": fn(EnvoyFilter, u32) -> usize;
    get_headers = "http_get_headers": fn(EnvoyFilter, u32, *mut EnvoyHeader) -> bool;
    set_header = "http_set_header": fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer) -> bool;
    add_header = "http_add_header": fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer) -> bool;

    get_body_size = "http_get_body_size": fn(EnvoyFilter, u32) -> usize;
    get_body_chunks_size = "http_get_body_chunks_size": fn(EnvoyFilter, u32) -> usize;
    get_body_chunks = "http_get_body_chunks": fn(EnvoyFilter, u32, *mut EnvoyBuffer) -> bool;
    append_body = "http_append_body": fn(EnvoyFilter, u32, ModuleBuffer) -> bool;
    drain_body = "http_drain_body": fn(EnvoyFilter, u32, usize) -> bool;
    received_buffered_request_body = "http_received_buffered_request_body":
        fn(EnvoyFilter) -> bool;
    received_buffered_response_body = "http_received_buffered_response_body":
        fn(EnvoyFilter) -> bool;
    get_buffer_limit = "http_get_buffer_limit": fn(EnvoyFilter) -> u64;
    set_buffer_limit = "http_set_buffer_limit": fn(EnvoyFilter, u64);

    continue_decoding = "http_filter_continue_decoding": fn(EnvoyFilter);
    continue_encoding = "http_filter_continue_encoding": fn(EnvoyFilter);
    send_response = "http_send_response":
        fn(EnvoyFilter, u32, *const ModuleHeader, usize, ModuleBuffer, ModuleBuffer);
    send_response_headers = "http_send_response_headers":
        fn(EnvoyFilter, *const ModuleHeader, usize, bool);
    send_response_data = "http_send_response_data": fn(EnvoyFilter, ModuleBuffer, bool);
    send_response_trailers = "http_send_response_trailers":
        fn(EnvoyFilter, *const ModuleHeader, usize);
    reset_stream = "http_filter_reset_stream": fn(EnvoyFilter, u32, ModuleBuffer);

    scheduler_new = "http_filter_scheduler_new": fn(EnvoyFilter) -> Scheduler;
    scheduler_delete = "http_filter_scheduler_delete": fn(Scheduler);
    scheduler_commit = "http_filter_scheduler_commit": fn(Scheduler, u64);

    start_http_stream = "http_filter_start_http_stream":
        fn(
            EnvoyFilter, *mut u64, ModuleBuffer, *const ModuleHeader, usize, ModuleBuffer, bool, u64,
        ) -> u32;
    reset_http_stream = "http_filter_reset_http_stream": fn(EnvoyFilter, u64);
    stream_send_data = "http_stream_send_data": fn(EnvoyFilter, u64, ModuleBuffer, bool) -> bool;
    stream_send_trailers = "http_stream_send_trailers":
        fn(EnvoyFilter, u64, *const ModuleHeader, usize) -> bool;
    config_start_http_stream = "http_filter_config_start_http_stream":
        fn(
            EnvoyConfig, *mut u64, ModuleBuffer, *const ModuleHeader, usize, ModuleBuffer, bool, u64,
        ) -> u32;
    config_reset_http_stream = "http_filter_config_reset_http_stream": fn(EnvoyConfig, u64);

    get_active_span = "http_get_active_span": fn(EnvoyFilter) -> EnvoySpan;
    span_spawn_child = "http_span_spawn_child":
        fn(EnvoyFilter, EnvoySpan, ModuleBuffer) -> EnvoySpan;
    child_span_finish = "http_child_span_finish": fn(EnvoySpan);
    span_set_tag = "http_span_set_tag": fn(EnvoySpan, ModuleBuffer, ModuleBuffer);
    span_set_operation = "http_span_set_operation": fn(EnvoySpan, ModuleBuffer);
    span_log = "http_span_log": fn(EnvoyFilter, EnvoySpan, ModuleBuffer);
    span_set_sampled = "http_span_set_sampled": fn(EnvoySpan, bool);
    span_get_trace_id = "http_span_get_trace_id": fn(EnvoySpan, *mut EnvoyBuffer) -> bool;
    span_get_span_id = "http_span_get_span_id": fn(EnvoySpan, *mut EnvoyBuffer) -> bool;
    span_get_baggage = "http_span_get_baggage":
        fn(EnvoySpan, ModuleBuffer, *mut EnvoyBuffer) -> bool;
    span_set_baggage = "http_span_set_baggage": fn(EnvoySpan, ModuleBuffer, ModuleBuffer);

    set_metadata_number = "http_set_dynamic_metadata_number":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, f64);
    get_metadata_number = "http_get_metadata_number":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, *mut f64) -> bool;
    get_most_specific_route_config = "get_most_specific_route_config":
        fn(EnvoyFilter) -> ModulePtr;
    get_attribute_string = "http_filter_get_attribute_string":
        fn(EnvoyFilter, u32, *mut EnvoyBuffer) -> bool;
    get_attribute_int = "http_filter_get_attribute_int":
        fn(EnvoyFilter, u32, *mut u64) -> bool;
    get_attribute_bool = "http_filter_get_attribute_bool":
        fn(EnvoyFilter, u32, *mut bool) -> bool;
    get_worker_index = "http_filter_get_worker_index": fn(EnvoyFilter) -> u32;
    get_cluster_name = "http_get_cluster_name": fn(EnvoyFilter, *mut EnvoyBuffer) -> bool;
    get_cluster_host_count = "http_get_cluster_host_count":
        fn(EnvoyFilter, u32, *mut usize, *mut usize, *mut usize) -> bool;
    get_upstream_connection_id = "http_get_upstream_connection_id": fn(EnvoyFilter) -> u64;

    set_metadata_string = "http_set_dynamic_metadata_string":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, ModuleBuffer);
    set_metadata_bool = "http_set_dynamic_metadata_bool":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, bool);
    get_metadata_string = "http_get_metadata_string":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, *mut EnvoyBuffer) -> bool;
    get_metadata_bool = "http_get_metadata_bool":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, *mut bool) -> bool;
    get_metadata_keys_count = "http_get_metadata_keys_count":
        fn(EnvoyFilter, u32, ModuleBuffer) -> usize;
    get_metadata_keys = "http_get_metadata_keys":
        fn(EnvoyFilter, u32, ModuleBuffer, *mut EnvoyBuffer) -> bool;
    get_metadata_namespaces_count = "http_get_metadata_namespaces_count":
        fn(EnvoyFilter, u32) -> usize;
    get_metadata_namespaces = "http_get_metadata_namespaces":
        fn(EnvoyFilter, u32, *mut EnvoyBuffer) -> bool;
    add_metadata_list_number = "http_add_dynamic_metadata_list_number":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, f64) -> bool;
    add_metadata_list_string = "http_add_dynamic_metadata_list_string":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, ModuleBuffer) -> bool;
    add_metadata_list_bool = "http_add_dynamic_metadata_list_bool":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, bool) -> bool;
    get_metadata_list_size = "http_get_metadata_list_size":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, *mut usize) -> bool;
    get_metadata_list_number = "http_get_metadata_list_number":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, usize, *mut f64) -> bool;
    get_metadata_list_string = "http_get_metadata_list_string":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, usize, *mut EnvoyBuffer) -> bool;
    get_metadata_list_bool = "http_get_metadata_list_bool":
        fn(EnvoyFilter, u32, ModuleBuffer, ModuleBuffer, usize, *mut bool) -> bool;

    set_filter_state_bytes = "http_set_filter_state_bytes":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer) -> bool;
    get_filter_state_bytes = "http_get_filter_state_bytes":
        fn(EnvoyFilter, ModuleBuffer, *mut EnvoyBuffer) -> bool;
    set_filter_state_typed = "http_set_filter_state_typed":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer) -> bool;
    get_filter_state_typed = "http_get_filter_state_typed":
        fn(EnvoyFilter, ModuleBuffer, *mut EnvoyBuffer) -> bool;
    set_filter_state_object = "http_set_filter_state_object":
        fn(EnvoyFilter, ModuleBuffer, *mut c_void, extern "C" fn(*mut c_void), u32) -> bool;
    get_filter_state_object = "http_get_filter_state_object":
        fn(EnvoyFilter, ModuleBuffer) -> *mut c_void;

    clear_route_cache = "http_clear_route_cache": fn(EnvoyFilter);
    clear_route_cluster_cache = "http_clear_route_cluster_cache": fn(EnvoyFilter);
    set_upstream_override_host = "http_set_upstream_override_host":
        fn(EnvoyFilter, ModuleBuffer, bool) -> bool;
    send_go_away_and_close = "http_filter_send_go_away_and_close": fn(EnvoyFilter, bool);
    recreate_stream = "http_filter_recreate_stream":
        fn(EnvoyFilter, *const ModuleHeader, usize) -> bool;
    add_custom_flag = "http_add_custom_flag": fn(EnvoyFilter, ModuleBuffer);

    }
    later: {

    // Envoy 1.40. Their effects are shown by `test/e2e/tests/stream.rs` and the conformance scenarios.
    // Two of them are in no header that we have read (`set_filter_state_value`,
    // `get_downstream_direct_remote_address`): their signatures are those of the machine code in the
    // released binary. The others are declared in envoyproxy/envoy at 2576039f, a commit of 1.40-dev.

    /// Merges a serialized `google.protobuf.Struct` into a namespace.
    set_metadata_struct = "http_set_dynamic_metadata_struct":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer);
    /// Key, value, life span, sharing.
    set_filter_state_value = "http_set_filter_state_value":
        fn(EnvoyFilter, ModuleBuffer, ModuleBuffer, u32, u32) -> bool;
    get_upstream_remote_address = "http_get_upstream_remote_address":
        fn(EnvoyFilter, *mut EnvoyBuffer) -> bool;
    get_downstream_direct_remote_address = "http_get_downstream_direct_remote_address":
        fn(EnvoyFilter, *mut EnvoyBuffer) -> bool;
    /// Writes the whole of it.
    get_timing_info = "http_get_timing_info": fn(EnvoyFilter, *mut TimingInfo);

    // As above: these are shown by `test/e2e/tests/observe.rs`, and their signatures are those of the
    // machine code in the released binary.

    /// Name, and a `ConfigSource` as JSON or nothing. Returns an id, or 0. Only while the config is made.
    subscribe_secret = "http_filter_config_generic_secret_subscribe":
        fn(EnvoyConfig, ModuleBuffer, ModuleBuffer) -> usize;
    /// What this thread of Envoy's knows: nothing at all if it is not there yet.
    get_secret = "http_filter_config_get_generic_secret":
        fn(EnvoyConfig, usize, *mut EnvoyBuffer) -> bool;
    /// Key and default, which is the answer on all threads but Envoy's main one. So below.
    get_runtime_bool = "get_runtime_bool": fn(ModuleBuffer, bool) -> bool;
    get_runtime_int = "get_runtime_int": fn(ModuleBuffer, u64) -> u64;
    get_runtime_number = "get_runtime_number": fn(ModuleBuffer, f64) -> f64;
    }
}

/// The ABI versions that Envoy compares with its own; a difference is only a warning in its log.
pub(crate) const ABI_VERSION_1_39: *const c_char = c"v0.1.0".as_ptr();
/// As above, since 1.40.
pub(crate) const ABI_VERSION_1_40: *const c_char = c"v0.2.0".as_ptr();
/// A callback that 1.40 added: how the two are told apart.
pub(crate) const ADDED_IN_1_40: &std::ffi::CStr = c"envoy_dynamic_module_callback_log_v2";
