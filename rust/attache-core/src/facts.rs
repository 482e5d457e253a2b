//! What the proxy knows of a stream beside its messages, and what can be set there: the part of a
//! host that most filters never use. See [`Facts`].

use std::any::Any;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use crate::attribute::Attribute;
use crate::extensions::Store;
use crate::metadata::MetadataValue;
use crate::runtime::guarded;

/// Why a host does not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// This host, or this version of Envoy, cannot. Says what it would take.
    Unsupported(Cow<'static, str>),
    /// There is a value, but of another type. Says what was expected.
    WrongType(Cow<'static, str>),
    /// It is not possible here and now. Says why.
    Refused(Cow<'static, str>),
}

impl Denied {
    /// This host cannot do it at all.
    pub fn here() -> Self {
        Denied::Unsupported("this host cannot do it".into())
    }
}

/// One thing that is known of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fact {
    /// What Envoy has a name for.
    Attribute(Attribute),
    /// The virtual cluster that the request matched, known once it has gone on. Text.
    VirtualCluster,
    /// The worker that serves the stream, counted from 0. Number.
    WorkerIndex,
    /// The address that the client's connection comes from, whatever headers say. Text.
    DownstreamDirectRemoteAddress,
    /// The address at the other end of the upstream connection. Text.
    UpstreamRemoteAddress,
    /// The id of the upstream connection. Number.
    UpstreamConnectionId,
    /// How many bytes of body have come from the client. Number.
    BytesReceived,
    /// How many hosts of a priority the cluster has. Number.
    ClusterHosts(HostHealth),
    /// A point in the life of the stream, as nanoseconds since its start. Duration.
    Timing(TimePoint),
    /// Of the client's connection.
    DownstreamTls(TlsFact),
    /// Of the upstream's connection.
    UpstreamTls(TlsFact),
}

/// Which hosts of a cluster are counted, in its highest priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostHealth {
    /// All of them.
    Any,
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
}

/// A point in the life of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimePoint {
    /// The whole request has come from the client.
    LastDownstreamRx,
    /// The first byte has gone to the upstream.
    FirstUpstreamTx,
    /// The last byte has gone to the upstream.
    LastUpstreamTx,
    /// The first byte has come from the upstream.
    FirstUpstreamRx,
    /// The last byte has come from the upstream.
    LastUpstreamRx,
    /// The first byte has gone to the client.
    FirstDownstreamTx,
    /// The last byte has gone to the client.
    LastDownstreamTx,
}

/// What is known of a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFact {
    /// The protocol version. Text.
    Version,
    /// The cipher suite, by OpenSSL's name. Text.
    Cipher,
    /// The session id, in hex. Text.
    SessionId,
    /// The negotiated application protocol. Text.
    Alpn,
    /// The server name that the client asked for. Text.
    ServerName,
    /// Whether the peer has presented a certificate. Flag.
    PeerPresented,
    /// Whether the peer's certificate was validated. Flag.
    PeerValidated,
    /// The subject of the peer's certificate. Text.
    PeerSubject,
    /// The issuer of the peer's certificate. Text.
    PeerIssuer,
    /// The serial number of the peer's certificate. Text.
    PeerSerial,
    /// The SHA-256 digest of the peer's certificate, in hex. Text.
    PeerSha256,
    /// DNS names of the peer's certificate. Texts.
    PeerDnsSans,
    /// URIs of the peer's certificate. Texts.
    PeerUriSans,
    /// When the peer's certificate begins to be valid. Time.
    PeerValidFrom,
    /// When the peer's certificate expires. Time.
    PeerExpires,
    /// The peer's certificate, PEM encoded. Text.
    PeerPem,
    /// The peer's whole chain, PEM encoded. Text.
    PeerChainPem,
    /// The subject of our own certificate. Text.
    LocalSubject,
    /// DNS names of our own certificate. Texts.
    LocalDnsSans,
    /// URIs of our own certificate. Texts.
    LocalUriSans,
}

/// The value of a [`Fact`], valid only inside the callback that gets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FactValue<'a> {
    /// A text.
    Text(&'a [u8]),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A point in time, in nanoseconds since 1970.
    Time(u64),
    /// A span of time, in nanoseconds.
    Duration(u64),
    /// A message of Envoy's, as JSON.
    Message(&'a [u8]),
}

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetadataSource {
    /// The stream's own, which filters can write.
    Dynamic,
    /// The route's.
    Route,
    /// The cluster's.
    Cluster,
    /// The chosen upstream host's.
    Host,
    /// That of the locality of the chosen upstream host.
    HostLocality,
    /// The virtual host's.
    VirtualHost,
}

/// What type of metadata value is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetadataKind {
    /// Whatever there is.
    Any,
    /// A text.
    Text,
    /// A number.
    Number,
    /// Yes or no.
    Flag,
    /// A list.
    List,
}

/// How a value of the filter state is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateForm {
    /// As it is: a string object, which `%FILTER_STATE(key:PLAIN)%` shows.
    Bytes,
    /// As the object that Envoy has registered for the key makes it from a text, and gives it back.
    Typed,
}

/// How long a value of the filter state lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LifeSpan {
    /// As long as this filter chain; not across a recreated stream.
    #[default]
    FilterChain,
    /// As long as the request, across recreated streams.
    Request,
    /// As long as the client's connection.
    Connection,
}

/// Whom a value of the filter state is shared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Nobody.
    #[default]
    None,
    /// The upstream connection, and streams that come from there.
    UpstreamConnection,
    /// The upstream connection, but not further.
    UpstreamConnectionOnce,
}

/// What can be done to a stream.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Control<'a> {
    /// Forget the chosen route.
    ClearRouteCache,
    /// Choose the route's cluster again, and keep the route.
    RefreshRouteCluster,
    /// Send the request to this host of the cluster.
    OverrideUpstreamHost {
        /// `address:port`
        host: &'a str,
        /// Fail if the host is not there, rather than balance as usual.
        strict: bool,
    },
    /// Drain the client's connection: it takes no new streams, and closes when those it has are over.
    /// Never asked for from within a hook of the stream's.
    DrainConnection,
    /// Mark the stream in the access log (`%CUSTOM_FLAGS%`).
    AddCustomFlag(&'a str),
    /// Start the stream again from the beginning, with the request as it now is. If this succeeds,
    /// the stream has been destroyed when it returns. Never asked for from within a hook of the
    /// stream's.
    Recreate,
}

/// How a stream is reset, as the peer gets to know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResetReason {
    /// The proxy has ended it (HTTP/2: `INTERNAL_ERROR`).
    #[default]
    Local,
    /// The proxy has not begun with it, so that it may be sent again (HTTP/2: `REFUSED_STREAM`).
    Refused,
}

/// A value that lives in the filter state without Envoy looking at it.
pub type StateObject = Arc<dyn Any + Send + Sync>;

/// What a host knows of a stream beside its messages, and what it lets a filter set. A host
/// implements what it can; everything else is denied.
///
/// The same rules hold as for [`Host`](crate::host::Host): called on the stream's worker, never
/// after destroy, and slices are valid only inside the callback that gets them.
pub trait Facts {
    /// Calls `f` with the value, or with each in order where there are several; not at all if there
    /// is none (yet).
    ///
    /// # Errors
    /// This host does not know such things.
    fn fact(&self, fact: Fact, f: &mut dyn FnMut(FactValue<'_>)) -> Result<(), Denied> {
        let _ = (fact, f);
        Err(Denied::here())
    }

    /// A metadata value.
    ///
    /// # Errors
    /// It is of another kind, or of one that this host cannot read.
    fn metadata(
        &self,
        source: MetadataSource,
        namespace: &str,
        key: &str,
        kind: MetadataKind,
    ) -> Result<Option<MetadataValue>, Denied> {
        let _ = (source, namespace, key, kind);
        Err(Denied::here())
    }

    /// Calls `f` with the names of the namespaces, or of the keys of one.
    ///
    /// # Errors
    /// This host cannot list them.
    fn metadata_names(
        &self,
        source: MetadataSource,
        namespace: Option<&str>,
        f: &mut dyn FnMut(&str),
    ) -> Result<(), Denied> {
        let _ = (source, namespace, f);
        Err(Denied::here())
    }

    /// Sets a dynamic metadata value.
    ///
    /// # Errors
    /// This host cannot write such a value.
    fn set_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        let _ = (namespace, key, value);
        Err(Denied::here())
    }

    /// Appends to a list in the dynamic metadata, and makes it if there is none.
    ///
    /// # Errors
    /// There is another value, or this host cannot write such a one.
    fn append_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        let _ = (namespace, key, value);
        Err(Denied::here())
    }

    /// Calls `f` with a value of the filter state, if it is there in this form.
    ///
    /// # Errors
    /// This host has no filter state.
    fn filter_state(
        &self,
        key: &str,
        form: StateForm,
        f: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Denied> {
        let _ = (key, form, f);
        Err(Denied::here())
    }

    /// Sets a value of the filter state.
    ///
    /// # Errors
    /// This host cannot, with this life span and sharing; or Envoy refuses it.
    fn set_filter_state(
        &self,
        key: &str,
        value: &[u8],
        form: StateForm,
        life_span: LifeSpan,
        sharing: Sharing,
    ) -> Result<(), Denied> {
        let _ = (key, value, form, life_span, sharing);
        Err(Denied::here())
    }

    /// An object of this module's in the filter state.
    ///
    /// # Errors
    /// This host cannot keep objects.
    fn object(&self, key: &str) -> Result<Option<StateObject>, Denied> {
        let _ = key;
        Err(Denied::here())
    }

    /// Puts an object into the filter state.
    ///
    /// # Errors
    /// As [`object`](Facts::object); or the key is taken with another life span.
    fn set_object(
        &self,
        key: &str,
        object: StateObject,
        life_span: LifeSpan,
    ) -> Result<(), Denied> {
        let _ = (key, object, life_span);
        Err(Denied::here())
    }

    /// What the filters of this module share in this stream; made if it is not there yet. It goes
    /// with the stream, on its worker.
    ///
    /// # Errors
    /// This host cannot keep it.
    fn extensions(&self) -> Result<Rc<Store>, Denied> {
        Err(Denied::here())
    }

    /// Does something to the stream.
    ///
    /// # Errors
    /// This host cannot, or Envoy refuses it.
    fn control(&self, control: Control<'_>) -> Result<(), Denied> {
        let _ = control;
        Err(Denied::here())
    }
}

/// Drops what belongs to filters. A panic stays here, and is logged.
pub fn drop_quietly<T>(what: &str, value: T) {
    if let Err(message) = guarded(|| drop(value)) {
        tracing::error!("{what} panicked while it was dropped: {message}");
    }
}

/// Knows nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoFacts;

impl Facts for NoFacts {}
