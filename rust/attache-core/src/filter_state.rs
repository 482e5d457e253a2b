//! [`FilterState`]: objects that live as long as a stream, a request or a connection.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use crate::error::{Error, ErrorKind, Result};
use crate::facts::{LifeSpan, Sharing, StateForm};
use crate::stream::Stream;

/// Envoy's filter state of a stream; made by [`Stream::filter_state`].
///
/// Where [metadata](crate::Metadata) is data that configs can match on, filter state is objects:
/// Envoy's own filters look for theirs under known keys, the access log shows them
/// (`%FILTER_STATE(key:PLAIN)%`), and they can outlive the stream. Values can be set until the access
/// log is written.
///
/// Each call fails with [`ErrorKind::Gone`](crate::ErrorKind::Gone) after the exchange has ended.
#[derive(Clone, Debug)]
pub struct FilterState<'a>(pub(crate) &'a Stream);

impl FilterState<'_> {
    /// A value that was set as bytes, by whichever filter.
    ///
    /// # Errors
    /// See [`FilterState`].
    pub fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.read(key, StateForm::Bytes)
    }

    /// The text of any object that can be written as one.
    ///
    /// # Errors
    /// See [`FilterState`].
    pub fn get_typed(&self, key: &str) -> Result<Option<Bytes>> {
        self.read(key, StateForm::Typed)
    }

    fn read(&self, key: &str, form: StateForm) -> Result<Option<Bytes>> {
        let mut value = None;
        self.0.ask(|host| {
            host.facts().filter_state(key, form, &mut |v| value = Some(Bytes::copy_from_slice(v)))
        })?;
        Ok(value)
    }

    /// Sets bytes, to live as long as this filter chain.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: the key is taken by something that cannot be replaced.
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(key, value.as_ref(), StateForm::Bytes, LifeSpan::default(), Sharing::default())
    }

    /// Sets bytes, for a life span, shared with whom.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: on stock Envoy 1.39, for anything but what [`set`](Self::set) does.
    /// [`ErrorKind::Refused`]: the key is taken, with another life span perhaps.
    pub fn set_for(
        &self,
        key: &str,
        value: impl AsRef<[u8]>,
        life_span: LifeSpan,
        sharing: Sharing,
    ) -> Result<()> {
        self.write(key, value.as_ref(), StateForm::Bytes, life_span, sharing)
    }

    /// Sets an object of Envoy's, from its text: the key must be one that Envoy knows how to make an
    /// object for, such as `envoy.network.upstream_server_name`.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: Envoy knows no such key, or cannot make an object from this text.
    pub fn set_typed(&self, key: &str, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(key, value.as_ref(), StateForm::Typed, LifeSpan::default(), Sharing::default())
    }

    fn write(
        &self,
        key: &str,
        value: &[u8],
        form: StateForm,
        life_span: LifeSpan,
        sharing: Sharing,
    ) -> Result<()> {
        self.0.ask(|host| host.facts().set_filter_state(key, value, form, life_span, sharing))
    }

    /// An object of one's own, set by [`set_object`](Self::set_object) in the same module.
    ///
    /// # Errors
    /// [`ErrorKind::WrongType`]: there is an object of another type.
    pub fn object<T: Any + Send + Sync>(&self, key: &str) -> Result<Option<Arc<T>>> {
        let object = self.0.ask(|host| host.facts().object(key))?;
        object
            .map(|object| {
                object.downcast().map_err(|_| {
                    Error::make(
                        ErrorKind::WrongType,
                        StatusCode::INTERNAL_SERVER_ERROR,
                        format!(
                            "the filter state's object `{key}` is not a {}",
                            std::any::type_name::<T>()
                        ),
                    )
                })
            })
            .transpose()
    }

    /// Keeps an object of one's own for a life span: across a recreated stream
    /// ([`LifeSpan::Request`]), or for all further requests of the client's connection
    /// ([`LifeSpan::Connection`]). For one stream, [`Stream::extensions`] is simpler, and needs
    /// neither a key nor `Send`.
    ///
    /// Keys are this module's own. The object is dropped when its life is over; a panic in its `drop`
    /// is logged.
    ///
    /// ```
    /// # use attache_core::{Filter, Next, Request, Response, Result, Setup, ConfigError, LifeSpan};
    /// # use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    /// # struct Counts;
    /// # impl Filter for Counts { type Config = (); type RouteConfig = ();
    /// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Counts) }
    /// async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
    ///     let stream = req.stream();
    ///     let requests = match stream.filter_state().object::<AtomicU64>("requests")? {
    ///         Some(requests) => requests,
    ///         None => {
    ///             let requests = Arc::new(AtomicU64::new(0));
    ///             let state = stream.filter_state();
    ///             state.set_object("requests", requests.clone(), LifeSpan::Connection)?;
    ///             requests
    ///         }
    ///     };
    ///     let number = requests.fetch_add(1, Ordering::Relaxed);
    ///     req.headers_mut().set("x-request-of-connection", number.to_string());
    ///     next.run(req).await
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: the key is taken, with another life span.
    pub fn set_object<T: Any + Send + Sync>(
        &self,
        key: &str,
        object: Arc<T>,
        life_span: LifeSpan,
    ) -> Result<()> {
        self.0.ask(|host| host.facts().set_object(key, object, life_span))
    }
}
