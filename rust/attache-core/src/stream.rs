//! [`Stream`]: what is known of one exchange beside its messages, and what can be done to it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::attribute::{Attribute, AttributeValue};
use crate::error::{Error, ErrorKind, Result};
use crate::exchange::Inner;
use crate::extensions::Extensions;
use crate::facts::{Control, Denied, Fact, FactValue, MetadataSource};
use crate::filter::Filter;
use crate::filter_state::FilterState;
use crate::headers::Headers;
use crate::host::{Host, Map};
use crate::info::Info;
use crate::metadata::Metadata;
use crate::route::route_config;
use crate::runtime_flags::{Runtime, RuntimeUnsupported};

/// One exchange as Envoy sees it: a *stream*. Where [`Request`](crate::Request) and
/// [`Response`](crate::Response) are the messages, this is what is around them.
///
/// It is a handle: cheap to clone, and of use from the first line of
/// [`handle`](crate::Filter::handle) to [`on_complete`](crate::Filter::on_complete), also after
/// [`Next::run`](crate::Next::run) has taken the request. It stays on the exchange's worker (it is not
/// `Send`). After the exchange has ended every call fails with [`ErrorKind::Gone`].
///
/// | what | where |
/// |---|---|
/// | route, addresses, TLS, response code, timing | [`info`](Stream::info), or by name: [`attribute`](Stream::attribute) |
/// | values for other filters, access logs, configs | [`metadata`](Stream::metadata), [`filter_state`](Stream::filter_state) |
/// | typed values for other filters of this module | [`extensions`](Stream::extensions) |
/// | where the request goes | [`clear_route_cache`](Stream::clear_route_cache), [`refresh_route`](Stream::refresh_route), [`override_upstream_host`](Stream::override_upstream_host) |
/// | how it ends | [`drain_connection`](Stream::drain_connection), [`recreate`](Stream::recreate), [`Error::reset`] |
///
/// A filter that uses none of it pays for none of it.
///
/// ```
/// # use attache_core::{Filter, Next, Request, Response, Result, Setup, ConfigError};
/// # struct Audit;
/// # impl Filter for Audit { type Config = (); type RouteConfig = ();
/// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Audit) }
/// async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///     let stream = req.stream();
///     let resp = next.run(req).await?;
///     let cluster = stream.info().cluster_name()?.unwrap_or_default();
///     stream.metadata().set("com.example.audit", "cluster", cluster)?;
///     Ok(resp)
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Stream(Option<Rc<Inner>>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(exchange) => write!(f, "Stream({exchange:?})"),
            None => f.write_str("Stream(of no exchange)"),
        }
    }
}

fn denied(denied: Denied) -> Error {
    let (kind, why) = match denied {
        Denied::Unsupported(why) => (ErrorKind::Unsupported, why),
        Denied::WrongType(why) => (ErrorKind::WrongType, why),
        Denied::Refused(why) => (ErrorKind::Refused, why),
    };
    Error::make(kind, StatusCode::INTERNAL_SERVER_ERROR, why)
}

pub(crate) fn refused(why: &'static str) -> Error {
    denied(Denied::Refused(why.into()))
}

impl Stream {
    pub(crate) fn new(exchange: Option<Rc<Inner>>) -> Self {
        Stream(exchange)
    }

    pub(crate) fn exchange(&self) -> Result<&Rc<Inner>> {
        self.0.as_ref().ok_or_else(|| {
            Error::make(
                ErrorKind::Gone,
                StatusCode::INTERNAL_SERVER_ERROR,
                "a response that the filter made belongs to no exchange; take the request's stream",
            )
        })
    }

    pub(crate) fn ask<R>(&self, f: impl FnOnce(&dyn Host) -> Result<R, Denied>) -> Result<R> {
        self.exchange()?.read(f).ok_or_else(Error::gone)?.map_err(denied)
    }

    pub(crate) fn fact(&self, fact: Fact, f: &mut dyn FnMut(FactValue<'_>)) -> Result<()> {
        self.ask(|host| host.facts().fact(fact, f))
    }

    fn control(&self, control: Control<'_>) -> Result<()> {
        self.ask(|host| host.facts().control(control))
    }

    /// What is known of the stream, typed.
    pub fn info(&self) -> Info<'_> {
        Info(self)
    }

    /// What is known of the stream, by the name that Envoy's documentation gives it
    /// (`source.address`). `None` if there is nothing, or nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownAttribute`]: Envoy has none of that name; the message lists near ones.
    /// [`ErrorKind::Unsupported`]: this host does not tell; `docs/hosts.md` has the list.
    /// [`ErrorKind::Gone`]: the exchange has ended.
    pub fn attribute(&self, name: &str) -> Result<Option<AttributeValue>> {
        self.attribute_value(Attribute::from_name(name)?)
    }

    /// As [`attribute`](Stream::attribute), with a name that cannot be wrong.
    ///
    /// # Errors
    /// As [`attribute`](Stream::attribute).
    pub fn attribute_value(&self, attribute: Attribute) -> Result<Option<AttributeValue>> {
        match attribute {
            Attribute::RequestHeaders => self.map(Map::RequestHeaders),
            Attribute::ResponseHeaders => self.map(Map::ResponseHeaders),
            Attribute::ResponseTrailers => self.map(Map::ResponseTrailers),
            Attribute::ResponseGrpcStatus => self.grpc_status(),
            other => {
                let mut found = None;
                self.fact(Fact::Attribute(other), &mut |value| {
                    if found.is_none() {
                        found = value_of(value);
                    }
                })?;
                Ok(found)
            }
        }
    }

    fn live(&self, map: Map) -> Result<Headers> {
        Ok(Headers::live(self.exchange()?.clone(), map))
    }

    fn map(&self, map: Map) -> Result<Option<AttributeValue>> {
        let exists = self.ask(|host| Ok(host.headers(map, &mut |_, _| ())))?;
        let map = self.live(map)?;
        Ok(exists.then(|| AttributeValue::Map(map.to_vec())))
    }

    fn grpc_status(&self) -> Result<Option<AttributeValue>> {
        self.ask(|_| Ok(()))?;
        let status = |map| Ok::<_, Error>(self.live(map)?.get_str("grpc-status"));
        let text = match status(Map::ResponseTrailers)? {
            Some(text) => Some(text),
            None => status(Map::ResponseHeaders)?,
        };
        Ok(text.and_then(|text| text.parse().ok()).map(AttributeValue::Number))
    }

    /// The stream's dynamic metadata, to read and to set.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { stream: self, source: MetadataSource::Dynamic }
    }

    /// The metadata of the route's config.
    pub fn route_metadata(&self) -> Metadata<'_> {
        Metadata { stream: self, source: MetadataSource::Route }
    }

    /// The metadata of the virtual host's config. Stock Envoy does not tell.
    pub fn virtual_host_metadata(&self) -> Metadata<'_> {
        Metadata { stream: self, source: MetadataSource::VirtualHost }
    }

    /// The metadata of the cluster that the request goes to.
    pub fn cluster_metadata(&self) -> Metadata<'_> {
        Metadata { stream: self, source: MetadataSource::Cluster }
    }

    /// The metadata of the upstream host that was chosen; there once the request has gone there.
    pub fn upstream_host_metadata(&self) -> Metadata<'_> {
        Metadata { stream: self, source: MetadataSource::Host }
    }

    /// The metadata of the locality of the upstream host that was chosen.
    pub fn upstream_locality_metadata(&self) -> Metadata<'_> {
        Metadata { stream: self, source: MetadataSource::HostLocality }
    }

    /// Objects that live as long as the stream, the request or the connection.
    pub fn filter_state(&self) -> FilterState<'_> {
        FilterState(self)
    }

    /// Envoy's runtime flags: those of [`Setup::runtime`](crate::Setup::runtime), for code that has only the
    /// exchange.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: this host has no way to them: stock Envoy before 1.40.
    /// [`ErrorKind::Gone`]: the exchange has ended.
    ///
    /// ```
    /// # use attache_core::{Filter, Next, Request, Response, Result, Setup, ConfigError};
    /// # struct Trial;
    /// # impl Filter for Trial { type Config = (); type RouteConfig = ();
    /// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Trial) }
    /// async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
    ///     // In a host without flags, as if this one were off.
    ///     if req.stream().runtime().is_ok_and(|runtime| runtime.feature_enabled("trial.new_path", 0)) {
    ///         req.headers_mut().set("x-trial", "new");
    ///     }
    ///     next.run(req).await
    /// }
    /// # }
    /// ```
    pub fn runtime(&self) -> Result<&Runtime> {
        self.ask(|_| Ok(()))?;
        let unsupported =
            || denied(Denied::Unsupported(RuntimeUnsupported::FLAGS.to_string().into()));
        self.exchange()?.filter().meta.runtime.as_ref().ok_or_else(unsupported)
    }

    /// Typed values that the filters of this exchange share.
    pub fn extensions(&self) -> Extensions<'_> {
        Extensions(self)
    }

    /// The per-route config of this filter, as [`Request::route_config`](crate::Request::route_config)
    /// gives it, where there is no request: in [`handle_reply`](crate::Filter::handle_reply), in
    /// [`on_complete`](crate::Filter::on_complete), or after the route was chosen again. `None` also
    /// after the exchange has ended.
    pub fn route_config<F: Filter>(&self) -> Option<Arc<F::RouteConfig>> {
        route_config::<F>(self.0.as_ref()?)
    }

    /// Forgets the route that Envoy has chosen: it is chosen again, by the headers as they are then,
    /// when somebody next asks for it, at the latest when the request reaches the router. Call it
    /// after changing the path, the authority or a header that routes match on; Envoy does not do it
    /// by itself.
    ///
    /// After the request has gone on, it changes what is known of the route, not where the request
    /// went.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`]; [`ErrorKind::Unsupported`].
    pub fn clear_route_cache(&self) -> Result<()> {
        self.control(Control::ClearRouteCache)
    }

    /// Forgets the route and chooses again at once, so that [`info`](Stream::info), route metadata
    /// and [`route_config`](Stream::route_config) are those of the new one.
    ///
    /// # Errors
    /// As [`clear_route_cache`](Stream::clear_route_cache).
    pub fn refresh_route(&self) -> Result<()> {
        self.clear_route_cache()?;
        // Envoy chooses when it is asked.
        self.fact(Fact::Attribute(Attribute::XdsClusterName), &mut |_| ())
    }

    /// Keeps the route, and chooses its cluster again, where that depends on the request (by a header,
    /// by a cluster specifier).
    ///
    /// # Errors
    /// As [`clear_route_cache`](Stream::clear_route_cache).
    pub fn refresh_route_cluster(&self) -> Result<()> {
        self.control(Control::RefreshRouteCluster)
    }

    /// Sends the request to one host of its cluster, `ip:port`, instead of letting Envoy balance.
    ///
    /// If the cluster has no such host, or it is not healthy: with `strict`, the request fails with
    /// a 503; without, Envoy balances as usual. Call it before [`Next::run`](crate::Next::run).
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: not an IP address, or the request has gone on already.
    /// [`ErrorKind::Gone`]; [`ErrorKind::Unsupported`].
    pub fn override_upstream_host(&self, host: &str, strict: bool) -> Result<()> {
        if self.exchange()?.has_gone_on() {
            return Err(refused(
                "the request has gone on already; choose the host before `next.run`",
            ));
        }
        self.control(Control::OverrideUpstreamHost { host, strict })
    }

    /// Lets the client's connection take no new requests, and closes it when those it has are over:
    /// `connection: close` in HTTP/1.1, GOAWAY in HTTP/2 and 3. This exchange is not disturbed.
    ///
    /// It waits for a moment in which none of Envoy's filters is running (Envoy breaks off a chain
    /// that is told to drain from within), and holds the message until then. Dropping the future
    /// after its first poll does not undo it.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`]; [`ErrorKind::Unsupported`].
    pub async fn drain_connection(&self) -> Result<()> {
        self.defer(Deferrable::DrainConnection).await
    }

    /// Marks the stream with a word of one's own, which the access log shows as `%CUSTOM_FLAGS%`.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: it is empty, or has white space or a comma in it.
    /// [`ErrorKind::Gone`]; [`ErrorKind::Unsupported`].
    pub fn add_custom_flag(&self, flag: &str) -> Result<()> {
        if flag.is_empty() || flag.contains(|c: char| c.is_whitespace() || c == ',') {
            return Err(refused("a custom flag is a short word, with no white space or comma"));
        }
        self.control(Control::AddCustomFlag(flag))
    }

    /// How many bytes Envoy holds for this stream in each direction before it pauses the sender; 0
    /// for no limit.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`].
    pub fn buffer_limit(&self) -> Result<u64> {
        self.ask(|host| Ok(host.buffer_limit()))
    }

    /// Changes how many bytes Envoy holds for this stream. [`Body::buffer`](crate::Body::buffer)
    /// raises it by itself as far as it needs to.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`].
    pub fn set_buffer_limit(&self, bytes: u64) -> Result<()> {
        self.ask(|host| {
            host.set_buffer_limit(bytes);
            Ok(())
        })
    }

    /// Starts the stream again, as an internal redirect does: this exchange ends here, and another
    /// begins with the request as it now is (headers changed, body untouched), from the first filter
    /// of the chain on. The client notices nothing.
    ///
    /// It returns only if it fails. On success the future that awaits it is dropped, and
    /// [`on_complete`](crate::Filter::on_complete) is told
    /// [`Outcome::Recreated`](crate::Outcome::Recreated). The same filter sees the new stream, so
    /// leave a mark that ends the circle: a header, or an object with
    /// [`LifeSpan::Request`](crate::LifeSpan::Request) in the [filter state](Stream::filter_state).
    ///
    /// The request must not have gone on, must be complete and unread (await
    /// [`Body::buffer`](crate::Body::buffer) first), and have no trailers, which Envoy would lose.
    /// Dropping the future before it is polled does nothing; after that, the recreation happens.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: one of these does not hold, or Envoy refuses; the request is as it was.
    /// [`ErrorKind::Gone`]; [`ErrorKind::Unsupported`].
    pub async fn recreate(&self) -> Result<Infallible> {
        self.defer(Deferrable::Recreate).await?;
        // The stream is gone, and this future with it.
        pending().await
    }

    async fn defer(&self, what: Deferrable) -> Result<()> {
        let asked = Rc::new(Deferred::new(what));
        self.exchange()?.defer(asked.clone())?;
        poll_fn(|cx| match asked.done.borrow_mut().take() {
            Some(done) => Poll::Ready(done),
            None => {
                *asked.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// What Envoy does not allow inside its hooks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deferrable {
    Recreate,
    DrainConnection,
}

/// What was asked for, and how it went.
pub(crate) struct Deferred {
    pub(crate) what: Deferrable,
    done: RefCell<Option<Result<()>>>,
    waker: RefCell<Option<Waker>>,
}

impl Deferred {
    fn new(what: Deferrable) -> Self {
        Deferred { what, done: RefCell::new(None), waker: RefCell::new(None) }
    }

    /// `Err(None)` is for an exchange that is over in the meantime.
    pub(crate) fn done(&self, done: Result<(), Option<Denied>>) {
        let done = done.map_err(|why| why.map_or_else(Error::gone, denied));
        *self.done.borrow_mut() = Some(done);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn value_of(value: FactValue<'_>) -> Option<AttributeValue> {
    Some(match value {
        FactValue::Text(text) => AttributeValue::Text(String::from_utf8_lossy(text).into_owned()),
        FactValue::Number(number) => AttributeValue::Number(number),
        FactValue::Flag(flag) => AttributeValue::Flag(flag),
        FactValue::Time(nanos) => {
            let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))?;
            AttributeValue::Time(time)
        }
        FactValue::Duration(nanos) => AttributeValue::Duration(Duration::from_nanos(nanos)),
        FactValue::Message(json) => AttributeValue::Message(serde_json::from_slice(json).ok()?),
    })
}
