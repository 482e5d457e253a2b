//! [`Attribute`]: what Envoy calls the things that are known of a stream.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::error::{Error, ErrorKind, Result};
use crate::metadata::MetadataValue;

macro_rules! attributes {
    ($($variant:ident = $name:literal,)*) => {
        /// One of Envoy's [attributes], by the name that Envoy gives it (`source.address`).
        ///
        /// The number of each is the one that Envoy's dynamic modules know it by.
        ///
        /// [attributes]: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Attribute {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Attribute {
            /// All that there are, in Envoy's order.
            pub const ALL: &'static [Attribute] = &[$(Attribute::$variant,)*];

            /// The name, as in `request.url_path`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Attribute::$variant => $name,)*
                }
            }
        }
    };
}

attributes! {
    RequestPath = "request.path",
    RequestUrlPath = "request.url_path",
    RequestHost = "request.host",
    RequestScheme = "request.scheme",
    RequestMethod = "request.method",
    RequestHeaders = "request.headers",
    RequestReferer = "request.referer",
    RequestUserAgent = "request.useragent",
    RequestTime = "request.time",
    RequestId = "request.id",
    RequestProtocol = "request.protocol",
    RequestQuery = "request.query",
    RequestDuration = "request.duration",
    RequestSize = "request.size",
    RequestTotalSize = "request.total_size",
    ResponseCode = "response.code",
    ResponseCodeDetails = "response.code_details",
    ResponseFlags = "response.flags",
    ResponseGrpcStatus = "response.grpc_status",
    ResponseHeaders = "response.headers",
    ResponseTrailers = "response.trailers",
    ResponseSize = "response.size",
    ResponseTotalSize = "response.total_size",
    ResponseBackendLatency = "response.backend_latency",
    SourceAddress = "source.address",
    SourcePort = "source.port",
    DestinationAddress = "destination.address",
    DestinationPort = "destination.port",
    ConnectionId = "connection.id",
    ConnectionMtls = "connection.mtls",
    ConnectionRequestedServerName = "connection.requested_server_name",
    ConnectionTlsVersion = "connection.tls_version",
    ConnectionSubjectLocalCertificate = "connection.subject_local_certificate",
    ConnectionSubjectPeerCertificate = "connection.subject_peer_certificate",
    ConnectionDnsSanLocalCertificate = "connection.dns_san_local_certificate",
    ConnectionDnsSanPeerCertificate = "connection.dns_san_peer_certificate",
    ConnectionUriSanLocalCertificate = "connection.uri_san_local_certificate",
    ConnectionUriSanPeerCertificate = "connection.uri_san_peer_certificate",
    ConnectionSha256PeerCertificateDigest = "connection.sha256_peer_certificate_digest",
    ConnectionTransportFailureReason = "connection.transport_failure_reason",
    ConnectionTerminationDetails = "connection.termination_details",
    UpstreamAddress = "upstream.address",
    UpstreamPort = "upstream.port",
    UpstreamTlsVersion = "upstream.tls_version",
    UpstreamSubjectLocalCertificate = "upstream.subject_local_certificate",
    UpstreamSubjectPeerCertificate = "upstream.subject_peer_certificate",
    UpstreamDnsSanLocalCertificate = "upstream.dns_san_local_certificate",
    UpstreamDnsSanPeerCertificate = "upstream.dns_san_peer_certificate",
    UpstreamUriSanLocalCertificate = "upstream.uri_san_local_certificate",
    UpstreamUriSanPeerCertificate = "upstream.uri_san_peer_certificate",
    UpstreamSha256PeerCertificateDigest = "upstream.sha256_peer_certificate_digest",
    UpstreamLocalAddress = "upstream.local_address",
    UpstreamTransportFailureReason = "upstream.transport_failure_reason",
    UpstreamRequestAttemptCount = "upstream.request_attempt_count",
    UpstreamCxPoolReadyDuration = "upstream.cx_pool_ready_duration",
    UpstreamLocality = "upstream.locality",
    XdsNode = "xds.node",
    XdsClusterName = "xds.cluster_name",
    XdsClusterMetadata = "xds.cluster_metadata",
    XdsListenerDirection = "xds.listener_direction",
    XdsListenerMetadata = "xds.listener_metadata",
    XdsRouteName = "xds.route_name",
    XdsRouteMetadata = "xds.route_metadata",
    XdsVirtualHostName = "xds.virtual_host_name",
    XdsVirtualHostMetadata = "xds.virtual_host_metadata",
    XdsUpstreamHostMetadata = "xds.upstream_host_metadata",
    XdsFilterChainName = "xds.filter_chain_name",
    HealthCheck = "health_check",
}

impl Attribute {
    /// The attribute of this name.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownAttribute`]: there is none; the message lists the nearest names.
    ///
    /// ```
    /// use attache_core::{Attribute, ErrorKind};
    ///
    /// assert_eq!(Attribute::from_name("response.code")?, Attribute::ResponseCode);
    /// let error = Attribute::from_name("response.cod").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::UnknownAttribute);
    /// assert!(error.to_string().contains("`response.code`"));
    /// # Ok::<_, attache_core::Error>(())
    /// ```
    pub fn from_name(name: &str) -> Result<Self> {
        let known = Attribute::ALL.iter().find(|attribute| attribute.name() == name);
        known.copied().ok_or_else(|| unknown(name))
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many names an error suggests.
const SUGGESTED: usize = 3;

fn unknown(name: &str) -> Error {
    let mut near: Vec<_> =
        Attribute::ALL.iter().map(|a| (distance(name, a.name()), a.name())).collect();
    near.sort_unstable();
    let near: Vec<_> = near.iter().take(SUGGESTED).map(|(_, n)| format!("`{n}`")).collect();
    Error::make(
        ErrorKind::UnknownAttribute,
        http::StatusCode::INTERNAL_SERVER_ERROR,
        format!("Envoy has no attribute `{name}`; the nearest are {}", near.join(", ")),
    )
}

/// How far a name is from a known one: edits as usual, but what follows the last dot counts most,
/// for that is what people remember.
fn distance(name: &str, known: &str) -> usize {
    let last = |name: &'_ str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let (tail, known_tail) = (last(name), last(known));
    let contains = !tail.is_empty() && (known.contains(&tail) || tail.contains(&known_tail));
    edits(name, known) + if contains { 0 } else { edits(&tail, &known_tail) }
}

/// The Levenshtein distance. Names that come from outside may be long: only their beginnings count.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<u8> = a.bytes().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cost = corner + usize::from(*x != y);
            corner = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

/// The value of an [`Attribute`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AttributeValue {
    /// A text. What is not UTF-8 is replaced.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// Headers or trailers, in order.
    Map(Vec<(String, http::HeaderValue)>),
    /// A point in time.
    Time(SystemTime),
    /// A span of time.
    Duration(Duration),
    /// A message of Envoy's (a node, a locality, all metadata of something): its fields, named as in
    /// protobuf's JSON.
    Message(MetadataValue),
}

impl AttributeValue {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            AttributeValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_number(&self) -> Option<u64> {
        match self {
            AttributeValue::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The answer, if it is one.
    pub fn as_flag(&self) -> Option<bool> {
        match self {
            AttributeValue::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The message, if it is one.
    pub fn as_message(&self) -> Option<&MetadataValue> {
        match self {
            AttributeValue::Message(message) => Some(message),
            _ => None,
        }
    }
}

/// Texts as they are, numbers and answers as they are written, maps as `name: value, ..`, messages as
/// JSON.
impl fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttributeValue::Text(text) => f.write_str(text),
            AttributeValue::Number(number) => number.fmt(f),
            AttributeValue::Flag(flag) => flag.fmt(f),
            AttributeValue::Message(message) => message.fmt(f),
            AttributeValue::Map(map) => {
                for (i, (name, value)) in map.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
                }
                Ok(())
            }
            AttributeValue::Time(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                write!(f, "{}.{:09}", since.as_secs(), since.subsec_nanos())
            }
            AttributeValue::Duration(time) => {
                write!(f, "{}.{:09}", time.as_secs(), time.subsec_nanos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_attribute() {
        for (number, attribute) in Attribute::ALL.iter().enumerate() {
            assert_eq!(Attribute::from_name(attribute.name()).unwrap(), *attribute);
            assert_eq!(*attribute as usize, number);
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_near_ones() {
        for (wrong, meant) in [
            ("source.adress", "source.address"),
            ("request.user_agent", "request.useragent"),
            ("route_name", "xds.route_name"),
            ("response.status", "response.grpc_status"),
            ("Request.Path", "request.path"),
            ("tls_version", "connection.tls_version"),
        ] {
            let error = Attribute::from_name(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownAttribute);
            assert!(error.to_string().contains(&format!("`{meant}`")), "{error}");
        }
        // Whatever comes from outside.
        let long = "x".repeat(100_000);
        assert!(Attribute::from_name(&long).is_err());
        assert!(Attribute::from_name("").is_err());
        assert!(Attribute::from_name("ключ").is_err());
    }
}
