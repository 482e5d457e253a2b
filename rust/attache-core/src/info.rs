//! [`Info`]: what is known of a stream, typed.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::attribute::Attribute;
use crate::error::Result;
use crate::facts::{Fact, FactValue, HostHealth, TimePoint, TlsFact};
use crate::stream::Stream;

/// What is known of a stream; made by [`Stream::info`].
///
/// Every method reads it afresh, and answers `Ok(None)` for what is not there: not yet (the upstream
/// before the request has gone there), or not at all (TLS of a plain connection).
///
/// # Errors
/// [`ErrorKind::Gone`](crate::ErrorKind::Gone): the exchange has ended.
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): this host does not know; the message
/// says what does. `docs/hosts.md` has the table.
///
/// ```
/// # use attache_core::{Filter, Next, Request, Response, Result, Setup, ConfigError};
/// # struct Who;
/// # impl Filter for Who { type Config = (); type RouteConfig = ();
/// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Who) }
/// async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///     let stream = req.stream();
///     let from = stream.info().downstream_remote_address()?;
///     let resp = next.run(req).await?;
///     let to = stream.info().upstream_address()?;
///     tracing::info!(?from, ?to, code = ?stream.info().response_code()?, "routed");
///     Ok(resp)
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Info<'a>(pub(crate) &'a Stream);

macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident: $attribute:ident, $read:ident -> $type:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`Info`].
        pub fn $name(&self) -> Result<Option<$type>> {
            self.0.$read(Fact::Attribute(Attribute::$attribute))
        }
    )*};
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident: $fact:expr, $read:ident -> $type:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`Info`].
        pub fn $name(&self) -> Result<Option<$type>> {
            self.0.$read($fact)
        }
    )*};
}

impl<'a> Info<'a> {
    attributes! {
        /// The name of the route, if it has one.
        route_name: XdsRouteName, text -> String;
        /// The name of the virtual host.
        virtual_host_name: XdsVirtualHostName, text -> String;
        /// The name of the filter chain that took the connection.
        filter_chain_name: XdsFilterChainName, text -> String;
        /// The client's protocol: `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`, `HTTP/3`.
        protocol: RequestProtocol, text -> String;
        /// Why the response is what it is, as `%RESPONSE_CODE_DETAILS%` says it.
        response_code_details: ResponseCodeDetails, text -> String;
        /// Where the client is, as `ip:port`: what `x-forwarded-for` or the proxy protocol says, if
        /// Envoy is configured to trust them.
        downstream_remote_address: SourceAddress, text -> String;
        /// Where the client's connection has arrived, as `ip:port`.
        downstream_local_address: DestinationAddress, text -> String;
        /// The address of the chosen upstream host, as `ip:port`.
        upstream_address: UpstreamAddress, text -> String;
        /// Our end of the upstream connection, as `ip:port`.
        upstream_local_address: UpstreamLocalAddress, text -> String;
        /// Why the upstream connection failed, if it did.
        upstream_transport_failure_reason: UpstreamTransportFailureReason, text -> String;
        /// Why the client's TLS failed, if it did.
        downstream_transport_failure_reason: ConnectionTransportFailureReason, text -> String;
        /// Why Envoy has closed the client's connection, if it did.
        connection_termination_details: ConnectionTerminationDetails, text -> String;
        /// The cluster that the request goes to. Until the request goes on, this chooses the route if
        /// none is chosen.
        cluster_name: XdsClusterName, text -> String;
        /// The request's id, as `x-request-id` has it.
        request_id: RequestId, text -> String;
        /// The id of the client's connection, as in Envoy's log.
        connection_id: ConnectionId, number -> u64;
        /// How often the request was sent to an upstream; 0 before it was.
        attempt_count: UpstreamRequestAttemptCount, number -> u64;
        /// How many bytes of body have gone to the client.
        bytes_sent: ResponseSize, number -> u64;
        /// Whether this is a health check.
        is_health_check: HealthCheck, flag -> bool;
        /// When the request's first byte came.
        start_time: RequestTime, time -> SystemTime;
        /// How long the stream took; known at its end.
        duration: RequestDuration, duration -> Duration;
    }

    facts! {
        /// The virtual cluster that the request matched; known once the request has gone on.
        virtual_cluster_name: Fact::VirtualCluster, text -> String;
        /// The worker that serves the stream, counted from 0.
        worker_index: Fact::WorkerIndex, number -> u64;
        /// Where the client's connection really comes from, as `ip:port`, whatever headers say.
        downstream_direct_remote_address: Fact::DownstreamDirectRemoteAddress, text -> String;
        /// The other end of the upstream connection, as `ip:port`.
        upstream_remote_address: Fact::UpstreamRemoteAddress, text -> String;
        /// The id of the upstream connection, as in Envoy's log.
        upstream_connection_id: Fact::UpstreamConnectionId, number -> u64;
        /// How many bytes of body have come from the client.
        bytes_received: Fact::BytesReceived, number -> u64;
    }

    /// The status of the response, once it is known to Envoy: at the end of the stream, or when the
    /// response's headers have passed.
    ///
    /// # Errors
    /// See [`Info`].
    pub fn response_code(&self) -> Result<Option<StatusCode>> {
        let code = self.0.number(Fact::Attribute(Attribute::ResponseCode))?;
        Ok(code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok()))
    }

    /// What Envoy has noted about the response, as `%RESPONSE_FLAGS%` shows it.
    ///
    /// # Errors
    /// See [`Info`].
    pub fn response_flags(&self) -> Result<ResponseFlags> {
        let bits = self.0.number(Fact::Attribute(Attribute::ResponseFlags))?;
        Ok(ResponseFlags(bits.unwrap_or(0)))
    }

    /// How many hosts the cluster has in its highest priority, of a health.
    ///
    /// # Errors
    /// See [`Info`].
    pub fn cluster_hosts(&self, health: HostHealth) -> Result<Option<u64>> {
        self.0.number(Fact::ClusterHosts(health))
    }

    /// When something happened, counted from the stream's start.
    ///
    /// # Errors
    /// See [`Info`].
    pub fn timing(&self, point: TimePoint) -> Result<Option<Duration>> {
        self.0.duration(Fact::Timing(point))
    }

    /// TLS of the client's connection.
    pub fn downstream_tls(&self) -> Tls<'a> {
        Tls { stream: self.0, fact: Fact::DownstreamTls }
    }

    /// TLS of the upstream's connection.
    pub fn upstream_tls(&self) -> Tls<'a> {
        Tls { stream: self.0, fact: Fact::UpstreamTls }
    }
}

/// What is known of a connection's TLS. Everything is `None` on a plain connection.
///
/// # Errors
/// See [`Info`].
#[derive(Clone, Debug)]
pub struct Tls<'a> {
    stream: &'a Stream,
    fact: fn(TlsFact) -> Fact,
}

macro_rules! tls {
    ($($(#[$doc:meta])* $name:ident: $fact:ident, $read:ident -> $type:ty;)*) => {
        impl Tls<'_> {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// See [`Info`].
            pub fn $name(&self) -> Result<$type> {
                self.stream.$read((self.fact)(TlsFact::$fact))
            }
        )*}
    };
}

tls! {
    /// The protocol version: `TLSv1.3`.
    version: Version, text -> Option<String>;
    /// The cipher suite, by OpenSSL's name.
    cipher: Cipher, text -> Option<String>;
    /// The session id, in hex.
    session_id: SessionId, text -> Option<String>;
    /// The negotiated application protocol.
    alpn: Alpn, text -> Option<String>;
    /// The server name that the client asked for (SNI); in stock Envoy, known where the listener has a
    /// TLS inspector.
    server_name: ServerName, text -> Option<String>;
    /// Whether the peer has presented a certificate.
    peer_certificate_presented: PeerPresented, flag -> Option<bool>;
    /// Whether the peer's certificate was validated.
    peer_certificate_validated: PeerValidated, flag -> Option<bool>;
    /// The subject of the peer's certificate.
    subject_peer_certificate: PeerSubject, text -> Option<String>;
    /// The issuer of the peer's certificate.
    issuer_peer_certificate: PeerIssuer, text -> Option<String>;
    /// The serial number of the peer's certificate.
    serial_number_peer_certificate: PeerSerial, text -> Option<String>;
    /// The SHA-256 digest of the peer's certificate, in hex.
    sha256_peer_certificate_digest: PeerSha256, text -> Option<String>;
    /// DNS names of the peer's certificate. Stock Envoy tells the first only.
    dns_sans_peer_certificate: PeerDnsSans, texts -> Vec<String>;
    /// URIs of the peer's certificate. Stock Envoy tells the first only.
    uri_sans_peer_certificate: PeerUriSans, texts -> Vec<String>;
    /// When the peer's certificate begins to be valid.
    valid_from_peer_certificate: PeerValidFrom, time -> Option<SystemTime>;
    /// When the peer's certificate expires.
    expiration_peer_certificate: PeerExpires, time -> Option<SystemTime>;
    /// The peer's certificate, PEM encoded.
    pem_peer_certificate: PeerPem, text -> Option<String>;
    /// The peer's whole chain, PEM encoded.
    pem_peer_certificate_chain: PeerChainPem, text -> Option<String>;
    /// The subject of our own certificate.
    subject_local_certificate: LocalSubject, text -> Option<String>;
    /// DNS names of our own certificate. Stock Envoy tells the first only.
    dns_sans_local_certificate: LocalDnsSans, texts -> Vec<String>;
    /// URIs of our own certificate. Stock Envoy tells the first only.
    uri_sans_local_certificate: LocalUriSans, texts -> Vec<String>;
}

/// What Envoy has noted about a response: `%RESPONSE_FLAGS%`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u64);

/// The short names that the access log uses, in the order of their bits.
const FLAGS: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR",
    "UDO",
];

impl ResponseFlags {
    /// From Envoy's bits.
    pub fn from_bits(bits: u64) -> Self {
        ResponseFlags(bits)
    }

    /// Envoy's bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a flag is set, by the short name that the access log shows: `UH` for no healthy
    /// upstream, `DC` for a client that left.
    pub fn contains(self, flag: &str) -> bool {
        self.names().any(|name| name == flag)
    }

    /// The short names of all that are set. Those that custom filters add are not among them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        FLAGS
            .iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, name)| *name)
    }
}

/// As in the access log: `UH,NR`, or `-`.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names().next().is_none() {
            return f.write_str("-");
        }
        for (i, name) in self.names().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseFlags({self})")
    }
}

/// Facts as values that live on.
impl Stream {
    fn one<T>(&self, fact: Fact, read: fn(FactValue<'_>) -> Option<T>) -> Result<Option<T>> {
        Ok(self.each(fact, read)?.into_iter().next())
    }

    fn each<T>(&self, fact: Fact, read: fn(FactValue<'_>) -> Option<T>) -> Result<Vec<T>> {
        let mut values = Vec::new();
        self.fact(fact, &mut |value| values.extend(read(value)))?;
        Ok(values)
    }

    fn text(&self, fact: Fact) -> Result<Option<String>> {
        self.one(fact, text)
    }

    fn texts(&self, fact: Fact) -> Result<Vec<String>> {
        self.each(fact, text)
    }

    fn number(&self, fact: Fact) -> Result<Option<u64>> {
        self.one(fact, |value| match value {
            FactValue::Number(number) => Some(number),
            _ => None,
        })
    }

    fn flag(&self, fact: Fact) -> Result<Option<bool>> {
        self.one(fact, |value| match value {
            FactValue::Flag(flag) => Some(flag),
            _ => None,
        })
    }

    fn time(&self, fact: Fact) -> Result<Option<SystemTime>> {
        self.one(fact, |value| match value {
            FactValue::Time(nanos) => {
                SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))
            }
            _ => None,
        })
    }

    fn duration(&self, fact: Fact) -> Result<Option<Duration>> {
        self.one(fact, |value| match value {
            FactValue::Duration(nanos) => Some(Duration::from_nanos(nanos)),
            _ => None,
        })
    }
}

fn text(value: FactValue<'_>) -> Option<String> {
    match value {
        FactValue::Text(text) if !text.is_empty() => {
            Some(String::from_utf8_lossy(text).into_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_flags_are_named_as_in_the_access_log() {
        assert_eq!(ResponseFlags::from_bits(0).to_string(), "-");
        let flags = ResponseFlags::from_bits(1 << 1 | 1 << 8);
        assert_eq!(flags.to_string(), "UH,NR");
        assert!(flags.contains("NR") && !flags.contains("DC"));
        assert_eq!(ResponseFlags::from_bits(1 << 14).to_string(), "DC");
    }
}
