//! What C++ and Rust call of each other.
//!
//! The C++ classes are declared, with the rules that go with them, in `cc/bridge/`. The header that
//! is generated from this file has the enums, structs and functions for C++; `cc/bridge/bridge.h`
//! includes all of it.
//!
//! # Rules for the C++ side
//!
//! * Nothing that Rust calls throws: all of it is `noexcept`. No panic leaves what C++ calls; where
//!   a function can fail it throws `rust::Error` with the reason.
//! * A `FilterConfig` is loaded on the main thread and may be dropped on any thread of Envoy's. It has
//!   to outlive its streams, and its `ConfigHost` has to outlive it.
//! * A `Stream` lives on one worker thread: made, called and dropped there. Its events come in
//!   Envoy's order, `onComplete` before `onDestroy`, and none after `onDestroy`. It must not be
//!   dropped while one of its events is further up the stack; `onDestroy` may come there.
//! * Whatever a `Stream` calls on its host may run other events of the same stream before it
//!   returns, `onDestroy` included.

use crate::calls::SharedCall;
use crate::config::{
    FilterConfig, RouteConfig, RouteLevels, filter_names, init, load_config, load_route_config,
};
use crate::envoy::SecretSlot;
use crate::facts::{FactSink, KeptObject};
use crate::stream::{Stream, new_stream};

#[cxx::bridge(namespace = "attache::bridge")]
#[allow(unreachable_pub, missing_docs, reason = "what cxx makes of this is pub, whatever it says")]
pub(crate) mod ffi {
    /// The direction in which a message travels.
    #[derive(Debug)]
    #[repr(u8)]
    enum Direction {
        /// From the client to the upstream (decode).
        Request,
        /// From the upstream to the client (encode).
        Response,
    }

    /// One of the four header maps of a stream.
    #[derive(Debug)]
    #[repr(u8)]
    enum HeaderMapType {
        RequestHeaders,
        RequestTrailers,
        ResponseHeaders,
        ResponseTrailers,
    }

    /// Where body bytes are while the filter has not let them go.
    #[derive(Debug)]
    #[repr(u8)]
    enum Area {
        /// The frame that the running `onData` is about. Empty outside of it.
        Frame,
        /// What this filter holds of a direction: a buffer of the host's for this filter alone, under
        /// watermarks.
        Buffer,
    }

    /// What `onHeaders` and `onTrailers` answer.
    #[derive(Debug)]
    #[repr(u8)]
    enum Verdict {
        /// Let it go on.
        Continue,
        /// Hold it until `resume`, `inject` or `release` sends it along.
        Stop,
    }

    /// What `onData` answers.
    #[derive(Debug)]
    #[repr(u8)]
    enum DataVerdict {
        /// Let the frame go on, with what `Area::Buffer` has in front of it.
        Continue,
        /// Move what is left of the frame to `Area::Buffer`, under the watermarks.
        StopAndWatermark,
        /// Hold; what is left of the frame is dropped.
        StopNoBuffer,
    }

    /// A level of Envoy's log.
    #[derive(Debug)]
    #[repr(u8)]
    enum LogLevel {
        Trace,
        Debug,
        Info,
        Warn,
        Error,
        Critical,
    }

    /// What kind of metric.
    #[derive(Debug)]
    #[repr(u8)]
    enum MetricKind {
        Counter,
        Gauge,
        Histogram,
    }

    /// How a metric changes.
    #[derive(Debug)]
    #[repr(u8)]
    enum MetricOp {
        /// Counter or gauge: plus.
        Add,
        /// Gauge: minus.
        Sub,
        /// Gauge: exactly.
        Set,
        /// Histogram: one value.
        Record,
    }

    /// What came of starting a call to a cluster.
    #[derive(Debug)]
    #[repr(u8)]
    enum CallStart {
        Started,
        UnknownCluster,
        /// `:method`, `:path` or `:authority` is missing.
        InvalidRequest,
        /// The cluster takes no request now, for another reason than the two below.
        Unavailable,
        /// No host of it is healthy.
        NoHealthyHost,
        /// A circuit breaker is open.
        Overflow,
    }

    /// Why a call failed.
    #[derive(Debug)]
    #[repr(u8)]
    enum CallFailure {
        /// The connection could not be made, or broke, or the service reset the request.
        Reset,
        Timeout,
        /// A circuit breaker is open.
        Overflow,
        /// The cluster takes no request now.
        Unavailable,
    }

    /// Something that is known of a stream. First what Envoy calls its attributes, in its order (the
    /// numbers are those of `attache_core::Attribute`); then what it has no name for.
    #[derive(Debug)]
    #[repr(u8)]
    enum FactId {
        RequestPath,
        RequestUrlPath,
        RequestHost,
        RequestScheme,
        RequestMethod,
        RequestHeaders,
        RequestReferer,
        RequestUserAgent,
        RequestTime,
        RequestId,
        RequestProtocol,
        RequestQuery,
        RequestDuration,
        RequestSize,
        RequestTotalSize,
        ResponseCode,
        ResponseCodeDetails,
        ResponseFlags,
        ResponseGrpcStatus,
        ResponseHeaders,
        ResponseTrailers,
        ResponseSize,
        ResponseTotalSize,
        ResponseBackendLatency,
        SourceAddress,
        SourcePort,
        DestinationAddress,
        DestinationPort,
        ConnectionId,
        ConnectionMtls,
        ConnectionRequestedServerName,
        ConnectionTlsVersion,
        ConnectionSubjectLocalCertificate,
        ConnectionSubjectPeerCertificate,
        ConnectionDnsSanLocalCertificate,
        ConnectionDnsSanPeerCertificate,
        ConnectionUriSanLocalCertificate,
        ConnectionUriSanPeerCertificate,
        ConnectionSha256PeerCertificateDigest,
        ConnectionTransportFailureReason,
        ConnectionTerminationDetails,
        UpstreamAddress,
        UpstreamPort,
        UpstreamTlsVersion,
        UpstreamSubjectLocalCertificate,
        UpstreamSubjectPeerCertificate,
        UpstreamDnsSanLocalCertificate,
        UpstreamDnsSanPeerCertificate,
        UpstreamUriSanLocalCertificate,
        UpstreamUriSanPeerCertificate,
        UpstreamSha256PeerCertificateDigest,
        UpstreamLocalAddress,
        UpstreamTransportFailureReason,
        UpstreamRequestAttemptCount,
        UpstreamCxPoolReadyDuration,
        UpstreamLocality,
        XdsNode,
        XdsClusterName,
        XdsClusterMetadata,
        XdsListenerDirection,
        XdsListenerMetadata,
        XdsRouteName,
        XdsRouteMetadata,
        XdsVirtualHostName,
        XdsVirtualHostMetadata,
        XdsUpstreamHostMetadata,
        XdsFilterChainName,
        HealthCheck,
        /// Text.
        VirtualCluster,
        /// Number.
        WorkerIndex,
        /// Text.
        DownstreamDirectRemoteAddress,
        /// Text.
        UpstreamRemoteAddress,
        /// Number.
        UpstreamConnectionId,
        /// Number.
        BytesReceived,
        /// Numbers: the hosts of the cluster's highest priority.
        ClusterHosts,
        HealthyClusterHosts,
        DegradedClusterHosts,
        /// Durations since the stream's start.
        LastDownstreamRx,
        FirstUpstreamTx,
        LastUpstreamTx,
        FirstUpstreamRx,
        LastUpstreamRx,
        FirstDownstreamTx,
        LastDownstreamTx,
    }

    /// Something that is known of a TLS connection.
    #[derive(Debug)]
    #[repr(u8)]
    enum TlsFact {
        Version,
        Cipher,
        SessionId,
        Alpn,
        ServerName,
        /// Flag, and the next.
        PeerPresented,
        PeerValidated,
        PeerSubject,
        PeerIssuer,
        PeerSerial,
        PeerSha256,
        /// Each of them, and of the next.
        PeerDnsSans,
        PeerUriSans,
        /// Time, and the next.
        PeerValidFrom,
        PeerExpires,
        PeerPem,
        PeerChainPem,
        LocalSubject,
        LocalDnsSans,
        LocalUriSans,
    }

    /// Whose metadata.
    #[derive(Debug)]
    #[repr(u8)]
    enum MetadataSource {
        /// The stream's own.
        Dynamic,
        Route,
        Cluster,
        /// The chosen upstream host's, and its locality's.
        Host,
        HostLocality,
        VirtualHost,
    }

    /// How long something in the filter state lives.
    #[derive(Debug)]
    #[repr(u8)]
    enum LifeSpan {
        FilterChain,
        Request,
        Connection,
    }

    /// Whom something in the filter state is shared with.
    #[derive(Debug)]
    #[repr(u8)]
    enum Sharing {
        None,
        UpstreamConnection,
        UpstreamConnectionOnce,
    }

    /// What is done to a stream.
    #[derive(Debug)]
    #[repr(u8)]
    enum Control {
        ClearRouteCache,
        RefreshRouteCluster,
        /// Never within an event, and so for `Recreate`.
        DrainConnection,
        /// The text is the flag.
        AddCustomFlag,
        /// The text is the host, `ip:port`.
        OverrideUpstreamHost,
        /// As that, and no other host will do.
        OverrideUpstreamHostStrictly,
        /// If it is done, the stream has been destroyed.
        Recreate,
    }

    /// What came of changing something.
    #[derive(Debug)]
    #[repr(u8)]
    enum Changed {
        /// This host, or this stream, has nothing of the kind.
        Unsupported,
        Done,
        /// There is something of another type.
        WrongType,
        /// It is not possible here and now.
        Refused,
    }

    /// How a stream is reset.
    #[derive(Debug)]
    #[repr(u8)]
    enum ResetReason {
        Local,
        /// As not begun: it may be sent again.
        Refused,
    }

    /// Bytes that whoever made this owns. How long they stay is said where it is passed.
    #[derive(Clone, Copy)]
    struct Bytes {
        data: *const u8,
        size: usize,
    }

    /// A header: two views.
    #[derive(Clone, Copy)]
    struct HeaderView {
        name: Bytes,
        value: Bytes,
    }

    /// What identifies a stream in Envoy's log.
    struct StreamId {
        /// Whether there is a downstream connection.
        has_connection: bool,
        connection: u64,
        /// The request's id (`x-request-id`); empty if it has none.
        request: Bytes,
    }

    unsafe extern "C++" {
        include!("cc/bridge/cluster_calls.h");
        include!("cc/bridge/notifier.h");
        include!("cc/bridge/config_host.h");
        include!("cc/bridge/log_sink.h");
        include!("cc/bridge/runtime_flags.h");
        include!("cc/bridge/span.h");
        include!("cc/bridge/stream_facts.h");
        include!("cc/bridge/stream_host.h");

        type Notifier;
        fn notify(self: &Notifier);

        type LogSink;
        fn enabled(self: &LogSink, level: LogLevel) -> bool;
        fn log(self: &LogSink, level: LogLevel, line: &str);

        type ConfigHost;
        #[cxx_name = "defineMetric"]
        fn define_metric(
            self: Pin<&mut ConfigHost>,
            kind: MetricKind,
            name: &str,
            labels: &[&str],
            id: &mut usize,
            error: &mut String,
        ) -> bool;
        #[cxx_name = "updateMetric"]
        fn update_metric(
            self: &ConfigHost,
            kind: MetricKind,
            id: usize,
            op: MetricOp,
            value: u64,
            labels: &[&str],
        );
        #[cxx_name = "makeNotifier"]
        fn make_notifier(self: Pin<&mut ConfigHost>) -> UniquePtr<Notifier>;

        type Span;
        fn child(self: Pin<&mut Span>, name: &str) -> UniquePtr<Span>;
        #[cxx_name = "setTag"]
        fn set_tag(self: Pin<&mut Span>, key: &str, value: &str);
        #[cxx_name = "setOperation"]
        fn set_operation(self: Pin<&mut Span>, name: &str);
        fn log(self: Pin<&mut Span>, event: &str);
        #[cxx_name = "setSampled"]
        fn set_sampled(self: Pin<&mut Span>, sampled: bool);
        #[cxx_name = "traceId"]
        fn trace_id(self: Pin<&mut Span>) -> String;
        #[cxx_name = "spanId"]
        fn span_id(self: Pin<&mut Span>) -> String;
        fn headers(self: Pin<&mut Span>) -> Vec<String>;
        fn baggage(self: Pin<&mut Span>, key: &str) -> String;
        #[cxx_name = "setBaggage"]
        fn set_baggage(self: Pin<&mut Span>, key: &str, value: &str);

        type StreamFacts;
        fn fact(self: &StreamFacts, id: FactId, sink: &mut FactSink<'_>) -> bool;
        fn tls(self: &StreamFacts, upstream: bool, fact: TlsFact, sink: &mut FactSink<'_>) -> bool;
        fn metadata(
            self: &StreamFacts,
            source: MetadataSource,
            name_space: &str,
            key: &str,
            sink: &mut FactSink<'_>,
        );
        #[cxx_name = "metadataNamespaces"]
        fn metadata_namespaces(self: &StreamFacts, source: MetadataSource, sink: &mut FactSink<'_>);
        #[cxx_name = "metadataKeys"]
        fn metadata_keys(
            self: &StreamFacts,
            source: MetadataSource,
            name_space: &str,
            sink: &mut FactSink<'_>,
        );
        #[cxx_name = "setMetadata"]
        fn set_metadata(
            self: Pin<&mut StreamFacts>,
            name_space: &str,
            key: &str,
            value: &[u8],
        ) -> Changed;
        #[cxx_name = "appendMetadata"]
        fn append_metadata(
            self: Pin<&mut StreamFacts>,
            name_space: &str,
            key: &str,
            value: &[u8],
        ) -> Changed;
        #[cxx_name = "filterState"]
        fn filter_state(self: &StreamFacts, key: &str, typed: bool, sink: &mut FactSink<'_>);
        #[cxx_name = "setFilterState"]
        fn set_filter_state(
            self: Pin<&mut StreamFacts>,
            key: &str,
            value: &[u8],
            life_span: LifeSpan,
            sharing: Sharing,
        ) -> Changed;
        #[cxx_name = "setTypedFilterState"]
        fn set_typed_filter_state(self: Pin<&mut StreamFacts>, key: &str, value: &[u8]) -> Changed;
        fn object(self: &StreamFacts, key: &str) -> *const KeptObject;
        #[cxx_name = "setObject"]
        fn set_object(
            self: Pin<&mut StreamFacts>,
            key: &str,
            object: Box<KeptObject>,
            life_span: LifeSpan,
        ) -> bool;
        fn control(self: Pin<&mut StreamFacts>, what: Control, text: &str) -> Changed;
        #[cxx_name = "makeClusterCalls"]
        fn make_cluster_calls(self: Pin<&mut ConfigHost>) -> UniquePtr<ClusterCalls>;

        #[cxx_name = "watchSecret"]
        fn watch_secret(
            self: Pin<&mut ConfigHost>,
            name: &str,
            sds_config: &str,
            slot: Box<SecretSlot>,
            error: &mut String,
        ) -> bool;
        #[cxx_name = "makeRuntimeFlags"]
        fn make_runtime_flags(self: &ConfigHost) -> UniquePtr<RuntimeFlags>;

        type RuntimeFlags;
        #[cxx_name = "featureEnabled"]
        fn feature_enabled(self: &RuntimeFlags, key: &str, default_percent: u64) -> bool;
        fn boolean(self: &RuntimeFlags, key: &str, default_value: bool) -> bool;
        fn integer(self: &RuntimeFlags, key: &str, default_value: u64) -> u64;
        #[cxx_name = "number"]
        fn double(self: &RuntimeFlags, key: &str, default_value: f64) -> f64;
        fn text(self: &RuntimeFlags, key: &str, value: &mut String) -> bool;

        type ClusterCalls;
        fn start(self: &ClusterCalls, call: Box<SharedCall>);
        fn cancel(self: &ClusterCalls, id: u64);

        type CallStarter;
        #[cxx_name = "startCall"]
        fn start_call(
            self: Pin<&mut CallStarter>,
            cluster: &str,
            headers: &[HeaderView],
            body: &[u8],
            timeout_ms: u64,
        );

        type StreamHost;
        fn header(
            self: &StreamHost,
            map: HeaderMapType,
            name: &str,
            index: usize,
            value: &mut Bytes,
        ) -> usize;
        fn headers(
            self: &StreamHost,
            map: HeaderMapType,
            out: &mut [HeaderView],
            count: &mut usize,
        ) -> bool;
        #[cxx_name = "setHeader"]
        fn set_header(
            self: Pin<&mut StreamHost>,
            map: HeaderMapType,
            name: &str,
            value: &[u8],
        ) -> bool;
        #[cxx_name = "appendHeader"]
        fn append_header(
            self: Pin<&mut StreamHost>,
            map: HeaderMapType,
            name: &str,
            value: &[u8],
        ) -> bool;
        #[cxx_name = "removeHeader"]
        fn remove_header(self: Pin<&mut StreamHost>, map: HeaderMapType, name: &str) -> bool;

        #[cxx_name = "bodyLength"]
        fn body_length(self: &StreamHost, direction: Direction, area: Area) -> usize;
        #[cxx_name = "bodySlices"]
        fn body_slices(
            self: &StreamHost,
            direction: Direction,
            area: Area,
            out: &mut [Bytes],
        ) -> usize;
        #[cxx_name = "drainBody"]
        fn drain_body(self: Pin<&mut StreamHost>, direction: Direction, area: Area, bytes: usize);
        #[cxx_name = "appendBody"]
        fn append_body(self: Pin<&mut StreamHost>, direction: Direction, area: Area, data: &[u8]);
        #[cxx_name = "bufferLimit"]
        fn buffer_limit(self: &StreamHost) -> u64;
        #[cxx_name = "setBufferLimit"]
        fn set_buffer_limit(self: Pin<&mut StreamHost>, bytes: u64);
        #[cxx_name = "othersHold"]
        fn others_hold(self: &StreamHost, direction: Direction) -> bool;
        #[cxx_name = "keepEnd"]
        fn keep_end(self: Pin<&mut StreamHost>, direction: Direction, kept: bool);
        #[cxx_name = "endIsKept"]
        fn end_is_kept(self: &StreamHost, direction: Direction) -> bool;
        #[cxx_name = "addTrailers"]
        fn add_trailers(self: Pin<&mut StreamHost>, direction: Direction, now: bool) -> bool;

        fn resume(self: Pin<&mut StreamHost>, direction: Direction);
        fn inject(
            self: Pin<&mut StreamHost>,
            direction: Direction,
            data: &[Bytes],
            end_stream: bool,
        );
        fn release(self: Pin<&mut StreamHost>, direction: Direction);
        #[cxx_name = "sendReply"]
        fn send_reply(
            self: Pin<&mut StreamHost>,
            status: u16,
            headers: &[HeaderView],
            body: &[u8],
            details: &str,
        );
        #[cxx_name = "sendReplyHeaders"]
        fn send_reply_headers(self: Pin<&mut StreamHost>, headers: &[HeaderView], end_stream: bool);
        #[cxx_name = "sendReplyData"]
        fn send_reply_data(self: Pin<&mut StreamHost>, data: &[u8], end_stream: bool);
        #[cxx_name = "sendReplyTrailers"]
        fn send_reply_trailers(self: Pin<&mut StreamHost>, trailers: &[HeaderView]);
        fn reset(self: Pin<&mut StreamHost>, reason: ResetReason, details: &str);

        fn facts(self: Pin<&mut StreamHost>) -> *mut StreamFacts;
        fn span(self: Pin<&mut StreamHost>) -> UniquePtr<Span>;

        #[cxx_name = "startCall"]
        fn start_call(
            self: Pin<&mut StreamHost>,
            cluster: &str,
            headers: &[HeaderView],
            body: &[u8],
            end_stream: bool,
            timeout_ms: u64,
            id: &mut u64,
        ) -> CallStart;
        #[cxx_name = "sendCallData"]
        fn send_call_data(
            self: Pin<&mut StreamHost>,
            id: u64,
            data: &[u8],
            end_stream: bool,
        ) -> bool;
        #[cxx_name = "sendCallTrailers"]
        fn send_call_trailers(self: Pin<&mut StreamHost>, id: u64, trailers: &[HeaderView])
        -> bool;
        #[cxx_name = "callIsFull"]
        fn call_is_full(self: &StreamHost, id: u64) -> bool;
        #[cxx_name = "resetCall"]
        fn reset_call(self: Pin<&mut StreamHost>, id: u64);

        #[cxx_name = "makeNotifier"]
        fn make_notifier(self: Pin<&mut StreamHost>) -> UniquePtr<Notifier>;
        #[cxx_name = "routeConfigs"]
        fn route_configs(self: &StreamHost, levels: &mut RouteLevels);
        #[cxx_name = "streamId"]
        fn stream_id(self: &StreamHost, id: &mut StreamId);
    }

    extern "Rust" {
        /// Makes the filters and the log ready. Once, before anything else; later calls do nothing.
        /// Lines that Rust logs go to `sink`, from any thread, until the process ends.
        ///
        /// Throws `rust::Error` if the list of filters is wrong in itself (two of one name).
        fn init(sink: UniquePtr<LogSink>) -> Result<()>;

        /// The names that a config can name.
        #[cxx_name = "filterNames"]
        fn filter_names() -> Vec<String>;

        /// A loaded filter: what streams are made from.
        type FilterConfig;

        /// Loads a filter. `config` is JSON (a Struct as JSON, or the bytes of a StringValue or
        /// BytesValue), or empty. `fail_open` holds unless the config itself has
        /// `attache: {fail_open: ..}`.
        ///
        /// `host` must outlive the returned config; if this throws, it is not used any more.
        /// Throws `rust::Error` with a text for the user: the filter, the field and the reason.
        #[cxx_name = "loadConfig"]
        unsafe fn load_config(
            name: &str,
            config: &[u8],
            fail_open: bool,
            host: *mut ConfigHost,
        ) -> Result<Box<FilterConfig>>;

        /// The main thread calls it for each `notify` of the notifier that `ConfigHost` made.
        #[cxx_name = "onScheduled"]
        fn on_scheduled(self: &FilterConfig);

        /// A call of a config's own, on its way through the host. It may be dropped on any thread, at
        /// any time: whoever waits is then told that the config has gone, if nothing else was told.
        type SharedCall;
        /// By which `ClusterCalls::cancel` names it.
        fn id(self: &SharedCall) -> u64;
        /// Gives the request to `starter`, within this call.
        fn send(self: &SharedCall, starter: Pin<&mut CallStarter>);
        /// What has come of it, as the events of a `Stream` below. These call nothing of the host's.
        /// The first two return false when more has come than may wait: the call is to be reset then.
        #[cxx_name = "onHeaders"]
        fn on_headers(self: &mut SharedCall, headers: &[HeaderView], end_stream: bool) -> bool;
        #[cxx_name = "onData"]
        fn on_data(self: &mut SharedCall, slices: &[Bytes], end_stream: bool) -> bool;
        #[cxx_name = "onTrailers"]
        fn on_trailers(self: &mut SharedCall);
        #[cxx_name = "onComplete"]
        fn on_complete(self: &mut SharedCall);
        /// It was not started; `why` is not `Started`.
        #[cxx_name = "onRefused"]
        fn on_refused(self: &mut SharedCall, why: CallStart);
        #[cxx_name = "onFailed"]
        fn on_failed(self: &mut SharedCall, failure: CallFailure, why: &[u8]);

        /// Where the values of a secret go. Dropping it says that there will be no more.
        type SecretSlot;
        /// There is a value; called on the main thread, as is the other.
        #[cxx_name = "set"]
        fn set(self: &SecretSlot, value: &[u8]);
        /// There was to be one, and there is none: the last one stays.
        #[cxx_name = "failed"]
        fn failed(self: &SecretSlot, why: &[u8]);

        /// A parsed per-route config. May be dropped on any thread.
        type RouteConfig;

        /// Parses a per-route config; `config` as for `loadConfig`, and it throws like that.
        #[cxx_name = "loadRouteConfig"]
        fn load_route_config(name: &str, config: &[u8]) -> Result<Box<RouteConfig>>;

        /// What `StreamHost::routeConfigs` fills.
        type RouteLevels;

        /// Adds a level's config; the most general first.
        fn add(self: &mut RouteLevels, config: &RouteConfig);

        /// Takes what `StreamFacts` gives. A view has to stay during the call only.
        type FactSink<'a>;
        fn text(self: &mut FactSink<'_>, text: Bytes);
        fn number(self: &mut FactSink<'_>, number: u64);
        fn flag(self: &mut FactSink<'_>, flag: bool);
        /// In nanoseconds since 1970.
        fn time(self: &mut FactSink<'_>, nanos: u64);
        /// In nanoseconds.
        fn duration(self: &mut FactSink<'_>, nanos: u64);
        /// A message, as JSON.
        fn message(self: &mut FactSink<'_>, json: Bytes);

        /// An object of Rust's in Envoy's filter state. Dropped on the worker.
        type KeptObject;

        /// One stream of Envoy, as the runtime has it.
        type Stream;

        /// Begins a stream. `config` and `host` must outlive it.
        #[cxx_name = "newStream"]
        unsafe fn new_stream(config: &FilterConfig, host: *mut StreamHost) -> Box<Stream>;

        /// Headers have arrived.
        #[cxx_name = "onHeaders"]
        fn on_headers(self: &Stream, direction: Direction, end_stream: bool) -> Verdict;
        /// A frame of body has arrived; `end_stream` also when it is empty.
        #[cxx_name = "onData"]
        fn on_data(self: &Stream, direction: Direction, end_stream: bool) -> DataVerdict;
        /// Trailers have arrived.
        #[cxx_name = "onTrailers"]
        fn on_trailers(self: &Stream, direction: Direction) -> Verdict;
        /// The worker calls it for each `notify` of the notifier that `StreamHost` made, unless the
        /// stream is gone.
        #[cxx_name = "onScheduled"]
        fn on_scheduled(self: &Stream);
        /// Somebody (Envoy, another filter, this one) sends a local reply.
        #[cxx_name = "onLocalReply"]
        fn on_local_reply(self: &Stream);
        /// The next hop of the response is full (`above`), or one of the reasons for that is gone.
        /// Balanced; without what this host's own buffer has caused, and without what filters of
        /// this host that are nearer to the upstream have caused.
        #[cxx_name = "onDownstreamWatermark"]
        fn on_downstream_watermark(self: &Stream, above: bool);
        /// The same for the next hop of the request; without what filters of this host that are
        /// nearer to the client have caused.
        #[cxx_name = "onUpstreamWatermark"]
        fn on_upstream_watermark(self: &Stream, above: bool);
        /// The headers of the response to a call have arrived, `:status` among them. What is passed
        /// here and below has to stay during the call. An id that Rust does not know any more is
        /// ignored.
        #[cxx_name = "onCallHeaders"]
        fn on_call_headers(self: &Stream, id: u64, headers: &[HeaderView], end_stream: bool);
        /// A piece of its body; `end_stream` also when it is empty.
        #[cxx_name = "onCallData"]
        fn on_call_data(self: &Stream, id: u64, slices: &[Bytes], end_stream: bool);
        /// Its trailers.
        #[cxx_name = "onCallTrailers"]
        fn on_call_trailers(self: &Stream, id: u64, trailers: &[HeaderView]);
        /// It is over, and all of it was reported.
        #[cxx_name = "onCallComplete"]
        fn on_call_complete(self: &Stream, id: u64);
        /// It is over, and has failed. `why` is Envoy's own text for it, or empty.
        #[cxx_name = "onCallFailed"]
        fn on_call_failed(self: &Stream, id: u64, failure: CallFailure, why: &[u8]);
        /// The service reads again, after `StreamHost::callIsFull` was true.
        #[cxx_name = "onCallDrained"]
        fn on_call_drained(self: &Stream, id: u64);

        /// The stream has ended; its host can still be called.
        #[cxx_name = "onComplete"]
        fn on_complete(self: &Stream);
        /// The stream goes. Its host is not called any more.
        #[cxx_name = "onDestroy"]
        fn on_destroy(self: &Stream);
    }
}
