//! What the runtime needs of the proxy that it lives in.
//!
//! A host (stock Envoy's C ABI, the compiled-in Envoy, the test host) implements [`Host`] once per
//! stream and drives an [`Exchange`](crate::exchange::Exchange) with the stream's events. The trait
//! stays at the level of Envoy's filter manager: one shared buffer per direction, verdicts from the
//! hooks, and a single `resume` for every stop.
//!
//! # Rules that implementations keep
//!
//! * Every method is called on the worker thread that owns the stream, and never after
//!   [`Exchange::destroy`](crate::exchange::Exchange::destroy).
//! * `resume`, `inject`, `release`, `send_*`, `reset`, `reset_call`, `drain` and `append` may run other
//!   hooks of the same stream before they return. The engine holds no borrow while it calls them.
//! * Slices given to a callback are valid only inside it. An implementation must keep safe code
//!   from changing a map or a buffer while such a callback runs (the engine never does).

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;

use crate::facts::{Facts, NoFacts, ResetReason};
use crate::route::LoadedRoute;
pub use crate::span::HostSpan;

/// The direction in which a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the upstream (Envoy: decode).
    Request,
    /// From the upstream to the client (Envoy: encode).
    Response,
}

impl Direction {
    pub(crate) fn other(self) -> Self {
        match self {
            Direction::Request => Direction::Response,
            Direction::Response => Direction::Request,
        }
    }
    /// The map that holds the headers of this direction.
    pub fn headers(self) -> Map {
        match self {
            Direction::Request => Map::RequestHeaders,
            Direction::Response => Map::ResponseHeaders,
        }
    }

    /// The map that holds the trailers of this direction.
    pub fn trailers(self) -> Map {
        match self {
            Direction::Request => Map::RequestTrailers,
            Direction::Response => Map::ResponseTrailers,
        }
    }

    /// The other direction.
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Request => Direction::Response,
            Direction::Response => Direction::Request,
        }
    }
}

/// One of the four header maps of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Map {
    /// Request headers, pseudo headers included.
    RequestHeaders,
    /// Request trailers.
    RequestTrailers,
    /// Response headers, `:status` included.
    ResponseHeaders,
    /// Response trailers.
    ResponseTrailers,
}

/// Where body bytes are while the filter has not let them go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// The frame that the running data hook was called with. Empty outside a data hook.
    Frame,
    /// What is held of the direction: Envoy's buffer, shared by all filters of the chain; or, where
    /// output may be emitted at any time, the host's own buffer for this filter.
    Buffer,
}

/// What a headers or trailers hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it go on.
    Continue,
    /// Hold it. One later `resume` lets it go.
    Stop,
}

/// What a data hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataVerdict {
    /// Let the frame, and everything held before it, go on. A host with a private buffer puts that
    /// buffer's bytes in front of the frame; the engine answers so in a stopped direction only when
    /// nothing would be [overtaken](Host::others_hold).
    Continue,
    /// Move the frame into the buffer ([`Area::Buffer`]), under watermarks: over the limit, the
    /// sender is asked to pause.
    StopAndWatermark,
    /// Hold; what is left of the frame is dropped (the engine has taken what it wants).
    StopNoBuffer,
}

/// What the host can do beyond the common ground. A filter sees it through
/// [`Request::capabilities`](crate::Request::capabilities).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A header may have an empty value. Where not, setting one removes the header.
    pub empty_header_values: bool,
    /// Trailers may be added to a message that came with a body, but without them, if that body is
    /// piped or streamed. (One that came without a body ends with its headers.)
    ///
    /// To a response at any time. To a request only if they are ready in time: Envoy has a place for
    /// them only while the end of the message arrives. So the request must have been let go before
    /// that, and the new body must be complete as soon as the last of the old one has been read,
    /// without a wait in between. Too late, the exchange fails as where there is no such capability.
    /// (Trailers of a response that the filter makes itself are no such case.)
    pub new_trailers: bool,
    /// Body bytes may be emitted at any time, in any number of pieces. Where not, each arriving
    /// frame allows one emission, and what is produced after the last one leaves together.
    pub emit_any_time: bool,
    /// The per-route configs of all levels are known ([`Filter::merge_route`](crate::Filter::merge_route)):
    /// the route table's, the virtual host's, the route's and the weighted cluster's. Where not, only
    /// the most specific of them is.
    pub route_levels: bool,
    /// Of a call to a cluster, Envoy says why it failed, and when the service takes no more of a
    /// streamed request. Where not, the answer and the clock tell why, as well as they can, and
    /// [`Callout::request_limit`](crate::Callout::request_limit) bounds what waits to be sent.
    pub call_reports: bool,
}

impl Capabilities {
    /// What every host can do.
    pub const COMMON: Capabilities = Capabilities {
        empty_header_values: false,
        new_trailers: false,
        emit_any_time: false,
        route_levels: false,
        call_reports: false,
    };

    /// What a host that is compiled into Envoy can do.
    pub const COMPILED_IN: Capabilities = Capabilities {
        empty_header_values: true,
        new_trailers: true,
        emit_any_time: true,
        route_levels: true,
        call_reports: true,
    };
}

/// A complete local reply.
#[derive(Debug)]
pub struct LocalReply<'a> {
    /// The HTTP status, 200 to 599.
    pub status: u16,
    /// Headers, without `:status` and `content-length`.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The whole body.
    pub body: &'a [u8],
    /// Goes to `%RESPONSE_CODE_DETAILS%`, never to the client. No white space.
    pub details: &'a str,
}

/// A call to a cluster that is to be started.
#[derive(Debug)]
pub struct CallStart<'a> {
    /// The name of the cluster.
    pub cluster: &'a str,
    /// All headers, `:method`, `:path` and `:authority` among them. They are valid.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// What there is of the body so far.
    pub body: &'a [u8],
    /// That is all of it.
    pub end_stream: bool,
    /// How long the response may take, in whole milliseconds, once the request has ended.
    pub timeout: Option<Duration>,
}

/// Why a call to a cluster was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallRefused {
    /// This host cannot.
    Unsupported,
    /// There is no such cluster.
    UnknownCluster,
    /// The request lacks something.
    InvalidRequest,
    /// The cluster takes no request now; the host does not know why.
    Unavailable,
    /// No host of the cluster is healthy.
    NoHealthyHost,
    /// A circuit breaker is open.
    Overflow,
    /// Whatever the call belonged to has ended.
    Gone,
}

/// Why a call to a cluster that was started failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallFailure {
    /// It was reset.
    Reset,
    /// Its time was over.
    Timeout,
    /// A circuit breaker is open.
    Overflow,
    /// The cluster takes no request now: no host of it is healthy, or it drops load.
    Unavailable,
    /// The response is larger than the host takes.
    TooLarge,
}

/// Wakes a stream from any thread: asks the worker to call
/// [`Exchange::scheduled`](crate::exchange::Exchange::scheduled).
///
/// It serves one stream after another, as the exchange does that has it.
pub trait Notify: Any + Send + Sync {
    /// Posts to the worker. The stream is there: its end waits while somebody is in here, so this must
    /// not wait for the worker.
    fn notify(&self);
    /// Lets go of the stream, which is gone; the next thing that is called is [`Host::bind`], or
    /// nothing. On the worker; no other thread calls anything meanwhile, nor before `bind` has returned.
    fn release(&self);
}

/// One stream of the proxy, seen from its worker thread. See the [module docs](self).
pub trait Host: Any {
    /// What this host can do.
    fn capabilities(&self) -> Capabilities;

    /// Calls `f` with the `index`-th value of `name` (lower case), if there is one. Returns how many
    /// values there are.
    fn header(&self, map: Map, name: &str, index: usize, f: &mut dyn FnMut(&[u8])) -> usize;
    /// Calls `f` with each name and value, in order. Returns whether the map exists.
    fn headers(&self, map: Map, f: &mut dyn FnMut(&[u8], &[u8])) -> bool;
    /// Replaces all values of `name`. Returns whether the map exists.
    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> bool;
    /// Adds a value. Returns whether it was added.
    fn append_header(&self, map: Map, name: &str, value: &[u8]) -> bool;
    /// Removes all values of `name`. Returns whether the map exists.
    fn remove_header(&self, map: Map, name: &str) -> bool;

    /// The bytes in an area.
    fn body_len(&self, direction: Direction, area: Area) -> usize;
    /// Whether the running data hook was given Envoy's buffer itself as its frame. Never with a
    /// private buffer.
    fn frame_is_buffer(&self, direction: Direction) -> bool;
    /// Calls `f` with each slice of an area, in order.
    fn body(&self, direction: Direction, area: Area, f: &mut dyn FnMut(&[u8]));
    /// Drops bytes from the front of an area. A sender that was paused for what is held goes on when
    /// enough of it has gone.
    fn drain(&self, direction: Direction, area: Area, bytes: usize);
    /// Adds bytes to the end of an area.
    fn append(&self, direction: Direction, area: Area, data: &[u8]);
    /// Envoy's buffer limit for this stream, in bytes; 0 means unlimited.
    fn buffer_limit(&self) -> u64;
    /// Raises the buffer limit, which also holds for a private buffer.
    fn set_buffer_limit(&self, bytes: u64);

    /// Tells the later filters of this stream that the end of a message is kept back here, or not
    /// any more.
    ///
    /// For hosts where a resume sends the message's end as soon as Envoy has received it, even if
    /// an earlier filter still has bytes to send before it (Envoy up to 1.40).
    ///
    /// A host that emits at any time says so for the sake of later filters on hosts of the common
    /// kind, in the same place as those do.
    fn keep_end(&self, direction: Direction, kept: bool) {
        let _ = (direction, kept);
    }
    /// Whether an earlier filter has said so. A host that emits at any time counts only what filters
    /// on hosts of the common kind have said: those rely on Envoy's record of the end, which an
    /// injection would change.
    fn end_is_kept(&self, direction: Direction) -> bool {
        let _ = direction;
        false
    }

    /// Lets a stopped direction go on (`continueDecoding` / `continueEncoding`): held headers first,
    /// then what is in the buffer, then the message's end or trailers if they have come.
    ///
    /// Never called inside a hook of the same direction, and once for each stop; after it, hooks that
    /// answer Continue go on by themselves. A host with a private buffer
    /// * with the end having come in headers, and those still held, continues;
    /// * with the end having come with data, injects the buffer's bytes with the end, and does not
    ///   continue;
    /// * with trailers, injects the buffer's bytes without the end if there are any, and then continues
    ///   if the stream is still there;
    /// * with more to come, continues first, while Envoy has nothing to send along, and then injects the
    ///   buffer's bytes if there are any and the stream is still there.
    ///
    /// While more is to come it is called only when nothing would be overtaken by that
    /// ([`others_hold`](Host::others_hold), trailers whose hook has not run), and right after an
    /// injection without the end, so that Envoy has no end on record either. It is never called after
    /// the end was injected.
    fn resume(&self, direction: Direction);

    /// Emits output past this filter (`injectDecodedDataToFilterChain` /
    /// `injectEncodedDataToFilterChain`), in front of all that is held: the private buffer's bytes
    /// are input, and stay.
    ///
    /// Held headers go first. No bytes and no end release held headers alone. A direction that is
    /// stopped stays so. With `end_stream` the message ends here, and there is neither an `inject` nor
    /// a `resume` of the direction after it; a message with trailers ends with a `resume` instead.
    ///
    /// Called only where [`Capabilities::emit_any_time`] says so, after the headers hook of the
    /// direction, and while no hook of this filter is running.
    fn inject(
        &self,
        direction: Direction,
        data: &mut dyn Iterator<Item = Bytes>,
        end_stream: bool,
    ) {
        let _ = (direction, data, end_stream);
        unreachable!("only a host that emits at any time is asked to")
    }
    /// Lets held headers and the private buffer's bytes go on (an [`inject`](Host::inject) of them,
    /// without the end), and leaves the direction stopped: for when a `resume` would overtake
    /// something. Called where and when `inject` is.
    fn release(&self, direction: Direction) {
        let _ = direction;
        unreachable!("only a host that emits at any time is asked to")
    }
    /// Whether other filters have bytes in Envoy's own buffer of a direction, apart from the frame of
    /// the running hook. A continue would send those past the filters that are to see them first, or
    /// show them twice.
    fn others_hold(&self, direction: Direction) -> bool {
        let _ = direction;
        false
    }
    /// Gives a message that has come without trailers an empty map of them, for
    /// [`append_header`](Host::append_header) to fill before it goes. An empty map does no harm: the
    /// codecs then just end the message. Returns whether the map is there now.
    ///
    /// Called only where [`Capabilities::new_trailers`] says so, and only inside the hook that brings
    /// the end of the message (`end_stream`), once. `now` says that this is the data hook of a request,
    /// and that it will answer Continue in a direction that is not stopped, with the whole of the
    /// output in the frame: Envoy then sends the trailers after it. Otherwise the hook will stop; what
    /// is still to come is injected without an end, and a `resume` lets the trailers go.
    ///
    /// Envoy has a place for both, but not everywhere. Trailers that are added to a request in a data
    /// hook that stops leave at once, before the held data: there (`now` is false) the answer is
    /// `false`. Trailers that are added to a response in a data hook that continues are never seen by
    /// a later filter that stops there, so that is not asked for.
    fn add_trailers(&self, direction: Direction, now: bool) -> bool {
        let _ = (direction, now);
        false
    }

    /// Sends a complete reply in place of whatever would come.
    ///
    /// On a host that emits at any time, the reply then comes by as any response does, and the
    /// exchange is told of it: one that is streamed after the request has gone is sent without a body,
    /// and gets it there.
    fn send_reply(&self, reply: &LocalReply<'_>);
    /// Starts a streamed reply. `headers` has `:status`.
    fn send_reply_headers(&self, headers: &[(&[u8], &[u8])], end_stream: bool);
    /// Goes on with a streamed reply.
    fn send_reply_data(&self, data: &[u8], end_stream: bool);
    /// Ends a streamed reply with trailers.
    fn send_reply_trailers(&self, trailers: &[(&[u8], &[u8])]);
    /// Resets the stream, both ways.
    fn reset(&self, details: &str);
    /// Resets the stream, for a reason.
    fn reset_for(&self, reason: ResetReason, details: &str) {
        let _ = reason;
        self.reset(details);
    }

    /// What is known of the stream beside its messages, and what can be set there.
    fn facts(&self) -> &dyn Facts {
        &NoFacts
    }

    /// Starts a call to a cluster. What comes of it is reported by
    /// [`Exchange::call_headers`](crate::exchange::Exchange::call_headers) and its relatives, after
    /// this has returned and until the call is over or reset.
    ///
    /// # Errors
    /// It was not started, and nothing will be reported.
    fn start_call(&self, call: &CallStart<'_>) -> Result<u64, CallRefused> {
        let _ = call;
        Err(CallRefused::Unsupported)
    }
    /// Sends more of a call's body. False if the call is over. It may report events of this call
    /// before it returns; so for all of these.
    fn send_call_data(&self, call: u64, data: &[u8], end_stream: bool) -> bool {
        let _ = (call, data, end_stream);
        false
    }
    /// Ends a call's request with trailers. False if the call is over.
    fn send_call_trailers(&self, call: u64, trailers: &[(&[u8], &[u8])]) -> bool {
        let _ = (call, trailers);
        false
    }
    /// Whether the service is slow to read, so that no more of a call's body should be sent for now.
    /// [`Exchange::call_drained`](crate::exchange::Exchange::call_drained) then says when to go on.
    fn call_is_full(&self, call: u64) -> bool {
        let _ = call;
        false
    }
    /// Cancels a call. Does nothing if it is over. Also called from within
    /// [`Exchange::complete`](crate::exchange::Exchange::complete).
    fn reset_call(&self, call: u64) {
        let _ = call;
    }

    /// The stream's own tracing span, if the host traces this stream. Asked at most once.
    fn span(&self) -> Option<Box<dyn HostSpan>> {
        None
    }

    /// A handle that wakes this stream. Called at most once, when the exchange first waits for
    /// something outside Envoy.
    fn notifier(&self) -> Box<dyn Notify>;
    /// Called in place of that, where a handle is there already: makes it wake this stream. A host of
    /// the same type has made it, and it has been [released](Notify::release).
    fn bind(&self, notifier: &dyn Notify);
    /// Shows the per-route configs of this filter, as
    /// [`Registry::load_route`](crate::registry::Registry::load_route) made them: those of all levels,
    /// the most specific last; or that one alone, where the host knows no more
    /// ([`Capabilities::route_levels`]). Does not call `look` if there are none. `look` calls nothing
    /// of the host's.
    fn route_configs(&self, look: &mut dyn FnMut(&[&LoadedRoute]));
    /// Writes what identifies the stream in Envoy's log.
    fn stream_id(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result;
}
