//! [`Callout`]: the request of a call, as it is built.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::error::{CalloutError, CalloutErrorKind};
use crate::headers::{check_name, check_value};
use crate::host::Map;

/// How long a call may take, unless the filter says otherwise: as long as an Envoy route.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// How many bytes of a response may wait for the filter, and how many a streamed request may have where
/// nobody tells how many of them wait, unless the filter says otherwise.
pub(crate) const DEFAULT_LIMIT: usize = 16 << 20;

/// Headers that belong to one connection: Envoy makes its own.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What makes calls: a [`Cluster`](crate::Cluster) or a [`SharedCluster`](crate::SharedCluster).
pub trait Caller: sealed::Sealed {
    /// What it can send.
    type Body: Default;
}

pub(crate) mod sealed {
    pub trait Sealed {
        fn name(&self) -> &str;
    }
}

/// A call to a cluster that is being made ready. Nothing happens until it is sent.
///
/// Its path is `/`, its authority the name of the cluster, its timeout 15 seconds, its
/// [`limit`](Callout::limit) 16 MiB and its body empty, unless said otherwise.
#[must_use = "a call does nothing until it is sent"]
#[derive(Debug)]
pub struct Callout<C: Caller = crate::Cluster> {
    pub(crate) caller: C,
    pub(crate) head: Head,
    pub(crate) body: C::Body,
}

impl<C: Caller> Callout<C> {
    pub(crate) fn new(caller: C, limits: Limits, method: Method, path: Cow<'static, str>) -> Self {
        let head = Head {
            method,
            path,
            scheme: None,
            authority: None,
            headers: Fields::default(),
            limits,
            invalid: None,
        };
        Callout { caller, head, body: C::Body::default() }
    }

    pub(crate) fn from_parts(caller: C, limits: Limits, parts: http::request::Parts) -> Self {
        let path = path_of(&parts.uri);
        let mut callout = Callout::new(caller, limits, parts.method, path.into());
        callout.head.scheme = parts.uri.scheme_str().map(str::to_owned);
        callout.head.authority = parts.uri.authority().map(|a| a.as_str().to_owned());
        let named = callout.head.authority.is_some();
        for (name, value) in &parts.headers {
            // The URI's authority goes before the header's, as in HTTP/1.1 (RFC 9112, 3.2.2).
            if !(named && name == header::HOST) {
                callout.head.push(name.as_str(), value.as_bytes());
            }
        }
        callout
    }

    /// Replaces the method.
    pub fn method(mut self, method: Method) -> Self {
        self.head.method = method;
        self
    }

    /// Replaces the path, query included.
    pub fn path(mut self, path: impl Into<Cow<'static, str>>) -> Self {
        self.head.path = path.into();
        self
    }

    /// Replaces the authority (`Host`).
    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.head.authority = Some(authority.into());
        self
    }

    /// Adds a header. `host` is the [authority](Callout::authority). Headers that belong to a
    /// connection (`content-length`, `transfer-encoding`, `connection` and the like) are left out:
    /// Envoy makes its own.
    ///
    /// An invalid name or value fails the call when it is sent, with
    /// [`CalloutErrorKind::InvalidRequest`].
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.head.push(name, value.as_ref());
        self
    }

    /// Adds headers, as [`header`](Callout::header) does one.
    pub fn headers<'a>(
        mut self,
        headers: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    ) -> Self {
        for (name, value) in headers {
            self.head.push(name.as_str(), value.as_bytes());
        }
        self
    }

    /// Replaces the body.
    pub fn body(mut self, body: impl Into<C::Body>) -> Self {
        self.body = body.into();
        self
    }

    /// How long the response may take, from when the whole request has been sent until the whole
    /// response is there. Rounded up to milliseconds; [`Duration::MAX`] is no limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.head.limits.timeout = timeout;
        self
    }

    /// How many bytes of the response may wait for the filter: all of a response that is waited for
    /// as a whole, what is not read yet of a streamed one (Envoy cannot slow its sender down).
    pub fn limit(mut self, bytes: usize) -> Self {
        self.head.limits.response = bytes;
        self
    }

    /// How many bytes a streamed request may have in all.
    ///
    /// A service that is slow to read holds the body back if the host tells of it
    /// ([`Capabilities::call_reports`](crate::host::Capabilities::call_reports)), and then there is no
    /// limit unless one is set here. Stock Envoy does not say how many bytes wait for a slow service, so
    /// there this is what bounds them, and it is 16 MiB unless set.
    pub fn request_limit(mut self, bytes: usize) -> Self {
        self.head.limits.request = Some(bytes);
        self
    }
}

/// What a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    pub(crate) response: usize,
    /// None: whatever the host needs.
    pub(crate) request: Option<usize>,
}

impl Limits {
    pub(crate) const DEFAULT: Limits =
        Limits { timeout: DEFAULT_TIMEOUT, response: DEFAULT_LIMIT, request: None };

    /// As the host wants it: none, or at least a millisecond.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        if self.timeout == Duration::MAX {
            return None;
        }
        let millis = self.timeout.as_nanos().div_ceil(1_000_000).max(1);
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

/// A request without its body.
#[derive(Debug)]
pub(crate) struct Head {
    method: Method,
    path: Cow<'static, str>,
    scheme: Option<String>,
    authority: Option<String>,
    headers: Fields,
    pub(crate) limits: Limits,
    /// The first thing that is wrong with it.
    invalid: Option<String>,
}

impl Head {
    fn push(&mut self, name: &str, value: &[u8]) {
        let lower = name.to_ascii_lowercase();
        if lower == "host" {
            match std::str::from_utf8(value) {
                Ok(authority) => self.authority = Some(authority.to_owned()),
                Err(_) => self.refuse("its authority is not text".into()),
            }
            return;
        }
        if HOP_BY_HOP.contains(&lower.as_str()) {
            return;
        }
        let checked = if lower.starts_with(':') {
            Err(format!("`{lower}` cannot be set as a header; there is a method for it"))
        } else {
            check_name(&lower, Map::RequestHeaders, true)
                .and_then(|()| check_value(&lower, value, Map::RequestHeaders))
                .map_err(|error| error.to_string())
        };
        match checked {
            Ok(()) => self.headers.push(&lower, value),
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&mut self, why: String) {
        self.invalid.get_or_insert(why);
    }

    /// Envoy's client for clusters sends whatever it is given, so nothing invalid may get there.
    pub(crate) fn check(&self, cluster: &str) -> Result<(), CalloutError> {
        let is_clean = |text: &str| !text.is_empty() && text.bytes().all(|b| b > b' ' && b != 0x7f);
        let invalid = if let Some(why) = &self.invalid {
            why.clone()
        } else if self.method == Method::CONNECT {
            "CONNECT cannot be sent to a cluster".to_owned()
        } else if !is_clean(&self.path) || !(self.path.starts_with('/') || self.path == "*") {
            format!("{:?} is not a path", self.path)
        } else if let Some(authority) = &self.authority
            && !is_clean(authority)
        {
            format!("{authority:?} is not an authority")
        } else {
            return Ok(());
        };
        Err(CalloutError::new(CalloutErrorKind::InvalidRequest, cluster, invalid))
    }

    /// All headers, pseudo headers first. `length` is that of the body, where it is known.
    pub(crate) fn fields<'a>(
        &'a self,
        cluster: &'a str,
        length: Option<&'a str>,
    ) -> Vec<(&'a [u8], &'a [u8])> {
        let authority = self.authority.as_deref().unwrap_or(cluster);
        let mut all: Vec<(&[u8], &[u8])> = Vec::with_capacity(self.headers.ends.len() + 5);
        all.push((b":method", self.method.as_str().as_bytes()));
        all.push((b":path", self.path.as_bytes()));
        all.push((b":authority", authority.as_bytes()));
        if let Some(scheme) = &self.scheme {
            all.push((b":scheme", scheme.as_bytes()));
        }
        if let Some(length) = length {
            all.push((b"content-length", length.as_bytes()));
        }
        all.extend(self.headers.iter());
        all
    }

    pub(crate) fn is_bodyless(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
    }
}

/// Header fields in one piece of memory.
#[derive(Debug, Default)]
struct Fields {
    bytes: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<(usize, usize)>,
}

impl Fields {
    fn push(&mut self, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(name.as_bytes());
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((name_end, self.bytes.len()));
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(name_end, end)| {
            let field = (&self.bytes[start..name_end], &self.bytes[name_end..end]);
            start = end;
            field
        })
    }
}

fn path_of(uri: &Uri) -> String {
    uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()
}

/// Trailers as a host wants them.
pub(crate) fn trailer_fields(trailers: &HeaderMap) -> Vec<(&[u8], &[u8])> {
    trailers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect()
}
