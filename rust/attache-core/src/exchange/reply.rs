//! A streamed reply after the request has gone on, on hosts that emit at any time.
//!
//! Once the router has the request, the response that it gets would meet a streamed reply. A local
//! reply makes the router give the request up, but is sent whole. So it is sent with its headers
//! alone, comes by here as any response does, and gets its body here: pumped, flow-controlled, and
//! with trailers if there are some.

use std::rc::Rc;

use http::{HeaderMap, StatusCode, header};

use super::{Inner, ReplyStream};
use crate::flow::Mode;
use crate::host::{Direction, LocalReply, Map};
use crate::message::pairs;

impl Inner {
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
