//! Replies that take more than one call.
//!
//! *A long one, to a request that has not ended.* When a reply ends before its request, Envoy resets an
//! HTTP/2 stream as soon as it has sent what the client has room for, and the rest is lost
//! (`doEndStream` in its `conn_manager_impl.cc`, the deferred resets in `http2/codec_impl.cc`). So a whole
//! reply that may not fit is streamed, and its end, or that of a stream which does not read the request,
//! waits for the request's. A filter that still reads may be in a talk with the client, where the end of
//! the one is what the other waits for: it says itself when it ends.
//!
//! *A streamed one after the request has gone on, on hosts that emit at any time.* Once the router has
//! the request, the response that it gets would meet a streamed reply. A local reply makes the router
//! give the request up, but is sent whole. So it is sent with its headers alone, comes by here as any
//! response does, and gets its body here: pumped, flow-controlled, and with trailers if there are some.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{Effect, Inner, ReplyStream};
use crate::attribute::Attribute;
use crate::body::{Body, FrameStream};
use crate::facts::{Fact, FactValue};
use crate::flow::{Mode, Queue};
use crate::host::{Direction, LocalReply, Map};
use crate::message::pairs;

/// What a client of HTTP/2 has room for in a stream, unless it says otherwise.
const FITS: usize = 65_535;

impl ReplyStream {
    pub(super) fn new(body: FrameStream, trailers: Option<Box<HeaderMap>>) -> Self {
        let ready = Queue::default();
        ReplyStream { body, trailers, ready, ended: false, sent: 0, outlasts: false }
    }

    pub(super) fn waits_for_request(&self) -> bool {
        self.outlasts && self.sent > FITS
    }
}

impl Inner {
    pub(super) fn has_to_outlast(&self, bytes: usize) -> bool {
        bytes > FITS && self.outlasts_request()
    }

    /// Whether the end of a long reply has to wait for the request's. That of a tunnel, and often that
    /// of gRPC, comes after the answer's, if at all.
    fn outlasts_request(&self) -> bool {
        let state = self.state.borrow();
        let request = &state.request.flow;
        let early = !request.ended && !request.released && !state.response.flow.started;
        drop(state);
        early && self.is_http2() && !self.is_grpc() && !self.method_is(b"CONNECT")
    }

    fn is_http2(&self) -> bool {
        let mut http2 = false;
        let protocol = Fact::Attribute(Attribute::RequestProtocol);
        self.read(|host| {
            host.facts().fact(protocol, &mut |value| {
                http2 = matches!(value, FactValue::Text(b"HTTP/2"));
            })
        });
        http2
    }

    pub(super) fn streamed(
        &self,
        body: FrameStream,
        trailers: Option<Box<HeaderMap>>,
    ) -> Box<ReplyStream> {
        let mut reply = ReplyStream::new(body, trailers);
        reply.outlasts = !self.state.borrow().request.flow.reader && self.outlasts_request();
        Box::new(reply)
    }

    /// A whole reply, piece by piece, with the headers that Envoy gives to one.
    pub(super) fn start_whole_reply(
        &self,
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Effect {
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        headers
            .entry(header::CONTENT_TYPE)
            .or_insert_with(|| HeaderValue::from_static("text/plain"));
        let reply = self.streamed(Body::from(body).into_frames(), None);
        Effect::StartReply { status, headers, reply }
    }

    /// Whether a streamed reply can be sent although the request has gone on.
    ///
    /// A reply to gRPC is trailers only. And from the reply's headers on, Envoy brings no more of the
    /// request, which somebody (the reply's body, perhaps) may still want to read.
    pub(super) fn may_reply_as_response(&self) -> bool {
        if !self.any_time || self.is_grpc() {
            return false;
        }
        let state = self.state.borrow();
        let request = &state.request.flow;
        let wanted = request.reader && !request.ended;
        let arrived = state.response.flow.started;
        request.released && !arrived && !wanted && !self.response_is_on_its_way()
    }

    /// A later filter has a response and holds it: a local reply would go straight to the client.
    fn response_is_on_its_way(&self) -> bool {
        self.read(|host| host.headers(Map::ResponseHeaders, &mut |_, _| ())) == Some(true)
    }

    pub(super) fn reply_as_response(
        self: &Rc<Self>,
        status: StatusCode,
        headers: &HeaderMap,
        reply: Box<ReplyStream>,
    ) {
        self.drop_futures();
        self.state.borrow_mut().rare.reply_to_come = Some(reply);
        let list: Vec<(&[u8], &[u8])> =
            pairs(headers, |name| name != header::CONTENT_LENGTH).collect();
        let details = self.details("reply");
        let status = status.as_u16();
        let reply = LocalReply { status, headers: &list, body: &[], details: &details };
        self.read(|host| host.send_reply(&reply));
    }

    /// The headers of the reply come by. Returns whether that is nothing to the filter.
    pub(super) fn reply_comes(self: &Rc<Self>, reply: Box<ReplyStream>) -> bool {
        if self.is_head() {
            self.drop_safely(Some(reply));
            return true;
        }
        let ReplyStream { body, trailers, .. } = *reply;
        let mut state = self.state.borrow_mut();
        let side = &mut state.response;
        side.flow.mode = Mode::Pump;
        // What Envoy's own config may have put there (`local_reply_config`) is replaced.
        side.flow.reader = false;
        side.rare.pump = Some(body);
        side.rare.out_trailers = trailers;
        drop(state);
        self.set_content_length(Direction::Response, None);
        self.due.set(true);
        false
    }
}
