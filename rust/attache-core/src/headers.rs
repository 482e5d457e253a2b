//! [`Headers`]: a header or trailer map, live in Envoy or owned.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::exchange::Inner;
use crate::hint::rarely;
use crate::host::Map;

/// A header or trailer map.
///
/// The headers of a [`Request`](crate::Request) and of an upstream's [`Response`](crate::Response)
/// are *live*: each call reads or writes Envoy's own map, with no copy in between. Those of a
/// response that the filter made are owned.
///
/// Names are case-insensitive and must be valid HTTP names, or Envoy's pseudo headers by name
/// (`:method`, `:path`, `:authority`, `:scheme`, `:protocol`, `:status`).
///
/// Reading gives owned values ([`get`](Headers::get)) or a look without a copy
/// ([`with`](Headers::with), [`for_each`](Headers::for_each)). The look is a closure, so that
/// nothing borrowed from Envoy can be held across an `.await`. While it runs, nothing of the exchange
/// may be changed, by whatever handle: that panics.
///
/// After the exchange has ended, reads find nothing and writes do nothing.
pub struct Headers(Repr);

enum Repr {
    Live {
        exchange: Rc<Inner>,
        map: Map,
    },
    /// Boxed, to keep the live ones, of which there are many, small.
    Owned(Box<Owned>),
}

struct Owned {
    map: HeaderMap,
    /// The first header that was refused; the engine then refuses the message.
    invalid: Option<HeaderError>,
}

/// Why a header was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// Not a valid HTTP field name, nor a pseudo header that may be set here.
    InvalidName(String),
    /// The value has a byte that no field value may have (a control character), or is none that the
    /// pseudo header can have.
    InvalidValue(String),
    /// There is no such map: the message has no trailers, and this host cannot add them.
    NoSuchMap,
    /// The exchange has ended.
    Gone,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::InvalidName(name) if name.starts_with(':') => {
                write!(f, "the pseudo header {name:?} cannot be set here, nor added, nor removed")
            }
            HeaderError::InvalidName(name) => write!(f, "invalid header name {name:?}"),
            HeaderError::InvalidValue(name) if name == ":status" => {
                f.write_str("invalid status: that of a response is a number from 200 to 599")
            }
            HeaderError::InvalidValue(name) if name.starts_with(':') => write!(
                f,
                "invalid value for the pseudo header {name:?}: it is empty, or has spaces or control \
                 characters"
            ),
            HeaderError::InvalidValue(name) => write!(
                f,
                "invalid value for header {name:?}: control characters are not allowed in it"
            ),
            HeaderError::NoSuchMap => f.write_str(
                "the message has no trailers, and this Envoy host cannot add trailers to it",
            ),
            HeaderError::Gone => f.write_str("the exchange has ended"),
        }
    }
}

impl std::error::Error for HeaderError {}

impl Headers {
    pub(crate) fn live(exchange: Rc<Inner>, map: Map) -> Self {
        Headers(Repr::Live { exchange, map })
    }

    pub(crate) fn owned(map: HeaderMap) -> Self {
        Headers(Repr::Owned(Box::new(Owned { map, invalid: None })))
    }

    /// Whether this is `map` of `exchange`, live.
    pub(crate) fn is_live(&self, of: &Rc<Inner>, which: Map) -> bool {
        match &self.0 {
            Repr::Live { exchange, map } => Rc::ptr_eq(exchange, of) && *map == which,
            Repr::Owned(_) => false,
        }
    }

    /// As dropping it, for live ones.
    #[inline(always)]
    pub(crate) fn let_go(self) {
        match self.0 {
            Repr::Live { exchange, .. } => drop(exchange),
            Repr::Owned(owned) => {
                rarely();
                drop(owned);
            }
        }
    }

    /// The exchange whose headers these are, if they are live.
    pub(crate) fn exchange(&self) -> Option<&Rc<Inner>> {
        match &self.0 {
            Repr::Live { exchange, .. } => Some(exchange),
            Repr::Owned(_) => None,
        }
    }

    /// An owned copy without pseudo headers, or the first header that was refused.
    pub(crate) fn into_owned(self) -> Result<HeaderMap, HeaderError> {
        match self.0 {
            Repr::Owned(owned) => owned.invalid.map_or(Ok(owned.map), Err),
            Repr::Live { .. } => Ok(self.to_map()),
        }
    }

    /// A copy as an [`http::HeaderMap`], without pseudo headers (it cannot hold them).
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        self.for_each(|name, value| {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                map.append(name, value);
            }
        });
        map
    }

    /// The first value of `name`. A copy; see [`with`](Headers::with) for a look without one.
    pub fn get(&self, name: &str) -> Option<HeaderValue> {
        self.with(name, |v| v.and_then(|v| HeaderValue::from_bytes(v).ok()))
    }

    /// The first value of `name` as text. `None` if absent or not UTF-8.
    pub fn get_str(&self, name: &str) -> Option<String> {
        self.with(name, |v| v.and_then(|v| std::str::from_utf8(v).ok()).map(str::to_owned))
    }

    /// All values of `name`, in order.
    pub fn get_all(&self, name: &str) -> Vec<HeaderValue> {
        match &self.0 {
            Repr::Owned(owned) => owned.map.get_all(name).iter().cloned().collect(),
            Repr::Live { exchange, map } => lowered(name, |name| {
                let mut all = Vec::new();
                let mut index = 0;
                loop {
                    let count = exchange.read(|host| {
                        host.header(*map, name, index, &mut |v| {
                            all.extend(HeaderValue::from_bytes(v));
                        })
                    });
                    index += 1;
                    if index >= count.unwrap_or(0) {
                        return all;
                    }
                }
            }),
        }
    }

    /// Whether `name` has a value.
    pub fn contains(&self, name: &str) -> bool {
        self.with(name, |v| v.is_some())
    }

    /// Calls `f` with the first value of `name`, without a copy.
    ///
    /// The value cannot leave the closure:
    ///
    /// ```compile_fail
    /// # fn f(headers: &attache_core::Headers) {
    /// let value = headers.with("host", |v| v);
    /// # }
    /// ```
    pub fn with<R>(&self, name: &str, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        match &self.0 {
            Repr::Owned(owned) => f(owned.map.get(name).map(HeaderValue::as_bytes)),
            Repr::Live { exchange, map } => {
                let mut f = Some(f);
                let mut result = None;
                lowered(name, |name| {
                    exchange.read(|host| {
                        host.header(*map, name, 0, &mut |v| {
                            if let Some(f) = f.take() {
                                result = Some(f(Some(v)));
                            }
                        })
                    })
                });
                match (result, f) {
                    (Some(result), _) => result,
                    (None, Some(f)) => f(None),
                    (None, None) => unreachable!("the closure ran and left a result"),
                }
            }
        }
    }

    /// Calls `f` with each name and value, in order, without a copy. Pseudo headers are included.
    pub fn for_each(&self, mut f: impl FnMut(&[u8], &[u8])) {
        match &self.0 {
            Repr::Owned(owned) => {
                for (name, value) in &owned.map {
                    f(name.as_str().as_bytes(), value.as_bytes());
                }
            }
            Repr::Live { exchange, map } => {
                exchange.read(|host| host.headers(*map, &mut f));
            }
        }
    }

    /// A copy of all names and values, in order.
    pub fn to_vec(&self) -> Vec<(String, HeaderValue)> {
        let mut all = Vec::new();
        self.for_each(|name, value| {
            if let (Ok(name), Ok(value)) =
                (std::str::from_utf8(name), HeaderValue::from_bytes(value))
            {
                all.push((name.to_owned(), value));
            }
        });
        all
    }

    /// How many values there are, pseudo headers included.
    pub fn len(&self) -> usize {
        let mut count = 0;
        self.for_each(|_, _| count += 1);
        count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces all values of `name`.
    ///
    /// An invalid name or value does not go through: the exchange fails with a 500, and the log
    /// says which header it was. Use [`try_set`](Headers::try_set) for values that come from
    /// outside. On a host without
    /// [`empty_header_values`](crate::host::Capabilities::empty_header_values), an empty value
    /// removes the header.
    ///
    /// A `content-length` of a body that goes on as it is, is not compared with the body: leave it to
    /// the runtime, which corrects it where the body changes.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        if let Err(error) = self.try_set(name, value) {
            self.poison(error);
        }
    }

    /// Adds a value, keeping those that are there. Fails like [`set`](Headers::set).
    pub fn append(&mut self, name: &str, value: impl AsRef<[u8]>) {
        if let Err(error) = self.try_append(name, value) {
            self.poison(error);
        }
    }

    /// Replaces all values of `name`, or says why not.
    ///
    /// # Errors
    /// The name or the value is invalid, or there is no such map; nothing has changed then.
    pub fn try_set(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        self.write(name, value.as_ref(), false)
    }

    /// Adds a value, or says why not.
    ///
    /// # Errors
    /// As [`try_set`](Headers::try_set).
    pub fn try_append(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        self.write(name, value.as_ref(), true)
    }

    fn write(&mut self, name: &str, value: &[u8], append: bool) -> Result<(), HeaderError> {
        if let Repr::Live { exchange, map } = &self.0
            && is_lower_token(name)
            && !value.is_empty()
            && is_value(value)
        {
            let written = exchange.read(|host| match append {
                true => host.append_header(*map, name, value),
                false => host.set_header(*map, name, value),
            });
            return match written {
                Some(true) => Ok(()),
                Some(false) => Err(HeaderError::NoSuchMap),
                None => Err(HeaderError::Gone),
            };
        }
        self.write_unusual(name, value, append)
    }

    /// What has an empty value, a name with a colon or with letters to lower, or is refused; and what
    /// is not Envoy's.
    #[inline(never)]
    fn write_unusual(&mut self, name: &str, value: &[u8], append: bool) -> Result<(), HeaderError> {
        match &mut self.0 {
            Repr::Owned(owned) => {
                let map = &mut owned.map;
                let value = HeaderValue::from_bytes(value)
                    .map_err(|_| HeaderError::InvalidValue(name.to_owned()))?;
                let name = HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| HeaderError::InvalidName(name.to_owned()))?;
                if append {
                    map.append(name, value);
                } else {
                    map.insert(name, value);
                }
                Ok(())
            }
            Repr::Live { exchange, map } => checked(name, |name, is_token| {
                allow_name(name, is_token, *map, append)?;
                check_value(name, value, *map)?;
                if *map == Map::ResponseHeaders && name.starts_with(':') {
                    exchange.status_changed();
                }
                exchange
                    .read(|host| match (append, value.is_empty()) {
                        (true, true) if !host.capabilities().empty_header_values => true,
                        (true, _) => host.append_header(*map, name, value),
                        (false, true) if !host.capabilities().empty_header_values => {
                            host.remove_header(*map, name)
                        }
                        (false, _) => host.set_header(*map, name, value),
                    })
                    .ok_or(HeaderError::Gone)?
                    .then_some(())
                    .ok_or(HeaderError::NoSuchMap)
            }),
        }
    }

    /// Removes all values of `name`. Returns whether there were any.
    ///
    /// The pseudo headers that every message needs cannot be removed; trying to fails the exchange
    /// like an invalid [`set`](Headers::set).
    pub fn remove(&mut self, name: &str) -> bool {
        if name.starts_with(':') && name != ":protocol" {
            self.poison(HeaderError::InvalidName(name.to_owned()));
            return false;
        }
        match &mut self.0 {
            Repr::Owned(owned) => owned.map.remove(name).is_some(),
            Repr::Live { exchange, map } => lowered(name, |name| {
                exchange
                    .read(|host| {
                        host.header(*map, name, 0, &mut |_| ()) > 0
                            && host.remove_header(*map, name)
                    })
                    .unwrap_or(false)
            }),
        }
    }

    fn poison(&mut self, error: HeaderError) {
        match &mut self.0 {
            Repr::Live { exchange, .. } if error != HeaderError::Gone => exchange.poison(error),
            Repr::Live { .. } => (),
            Repr::Owned(owned) => {
                owned.invalid.get_or_insert(error);
            }
        }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.to_vec()).finish()
    }
}

/// The trailers of a message, live in Envoy until they are let go.
#[derive(Debug)]
pub struct Trailers(pub(crate) Headers);

impl Deref for Trailers {
    type Target = Headers;
    fn deref(&self) -> &Headers {
        &self.0
    }
}

impl DerefMut for Trailers {
    fn deref_mut(&mut self) -> &mut Headers {
        &mut self.0
    }
}

/// RFC 9110 `tchar`.
const TOKEN: u8 = 1;
const UPPER_CASE: u8 = 2;
/// Of a token, and not of upper case.
const LOWER_TOKEN: u8 = 8;
/// May be in a field's value.
const VALUE: u8 = 4;

/// What each byte is: looked up, because every header that is read or set is checked by it.
static KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        kinds[at] = match byte {
            b'A'..=b'Z' => TOKEN | UPPER_CASE | VALUE,
            b'a'..=b'z' | b'0'..=b'9' => TOKEN | LOWER_TOKEN | VALUE,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
            | b'`' | b'|' | b'~' => TOKEN | LOWER_TOKEN | VALUE,
            b'\t' => VALUE,
            0x7f => 0,
            _ if byte >= b' ' => VALUE,
            _ => 0,
        };
        at += 1;
    }
    kinds
};

fn kind(byte: u8) -> u8 {
    KINDS[usize::from(byte)]
}

/// Whether it is a valid name, and in lower case already.
#[inline]
fn is_lower_token(name: &str) -> bool {
    name.bytes().fold(LOWER_TOKEN, |all, byte| all & kind(byte)) != 0 && !name.is_empty()
}

#[inline]
fn is_value(value: &[u8]) -> bool {
    value.iter().fold(VALUE, |all, &byte| all & kind(byte)) != 0
}

/// Runs `f` with the name in lower case; allocates only if it is not yet.
#[inline]
fn lowered<R>(name: &str, f: impl FnOnce(&str) -> R) -> R {
    let lower = if is_lower_token(name) { None } else { to_lower_case(name) };
    f(lower.as_deref().unwrap_or(name))
}

/// As `lowered`, and says whether all of the name's bytes are of a token.
fn checked<R>(name: &str, f: impl FnOnce(&str, bool) -> R) -> R {
    let both = |(all, any), byte| (all & kind(byte), any | kind(byte));
    let (all, any) = name.bytes().fold((TOKEN, 0), both);
    let is_token = all != 0;
    let lower = if any & UPPER_CASE == 0 { None } else { to_lower_case(name) };
    f(lower.as_deref().unwrap_or(name), is_token)
}

/// None if it is in lower case already.
#[cold]
fn to_lower_case(name: &str) -> Option<String> {
    name.bytes().any(|byte| byte.is_ascii_uppercase()).then(|| name.to_ascii_lowercase())
}

pub(crate) fn check_name(name: &str, map: Map, append: bool) -> Result<(), HeaderError> {
    checked(name, |name, is_token| allow_name(name, is_token, map, append))
}

fn allow_name(name: &str, is_token: bool, map: Map, append: bool) -> Result<(), HeaderError> {
    let valid = match name.strip_prefix(':') {
        // A pseudo header has one value and lives in one map.
        Some(pseudo) => {
            !append
                && match map {
                    Map::RequestHeaders => {
                        matches!(pseudo, "method" | "path" | "authority" | "scheme" | "protocol")
                    }
                    Map::ResponseHeaders => pseudo == "status",
                    Map::RequestTrailers | Map::ResponseTrailers => false,
                }
        }
        None => !name.is_empty() && is_token,
    };
    if valid { Ok(()) } else { Err(invalid_name(name)) }
}

#[cold]
fn invalid_name(name: &str) -> HeaderError {
    HeaderError::InvalidName(name.to_owned())
}

#[cold]
fn invalid_value(name: &str) -> HeaderError {
    HeaderError::InvalidValue(name.to_owned())
}

pub(crate) fn check_value(name: &str, value: &[u8], map: Map) -> Result<(), HeaderError> {
    let mut valid = is_value(value);
    if name.starts_with(':') {
        valid &= !value.is_empty() && !value.contains(&b' ');
        if map == Map::ResponseHeaders {
            valid &= value.len() == 3 && matches!(value[0], b'2'..=b'5') && value.is_ascii();
            valid &= value.iter().all(u8::is_ascii_digit);
        }
    }
    if valid { Ok(()) } else { Err(invalid_value(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_checked_before_they_reach_envoy() {
        assert!(check_name("x-ok", Map::RequestHeaders, true).is_ok());
        assert!(check_name("X-Ok", Map::RequestHeaders, false).is_ok());
        assert!(check_name("x bad", Map::RequestHeaders, false).is_err());
        assert!(check_name("X Bad", Map::RequestHeaders, false).is_err());
        assert!(check_name("", Map::RequestHeaders, false).is_err());
        assert!(check_name(":path", Map::RequestHeaders, false).is_ok());
        assert!(check_name(":path", Map::RequestHeaders, true).is_err());
        assert!(check_name(":path", Map::ResponseHeaders, false).is_err());
        assert!(check_value("a", b"tab\tis fine", Map::RequestHeaders).is_ok());
        assert!(check_value("a", b"line\r\nbreak", Map::RequestHeaders).is_err());
        assert!(check_value(":status", b"200", Map::ResponseHeaders).is_ok());
        assert!(check_value(":status", b"abc", Map::ResponseHeaders).is_err());
        assert!(check_value(":status", b"700", Map::ResponseHeaders).is_err());
        assert!(check_value(":status", b"101", Map::ResponseHeaders).is_err());
    }

    #[test]
    fn each_byte_is_of_the_kinds_that_the_standard_says() {
        for byte in 0..=u8::MAX {
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(kind(byte) & TOKEN != 0, token, "{byte}");
            let value = (byte >= b' ' && byte != 0x7f) || byte == b'\t';
            assert_eq!(kind(byte) & VALUE != 0, value, "{byte}");
            assert_eq!(kind(byte) & UPPER_CASE != 0, byte.is_ascii_uppercase(), "{byte}");
            let lower = token && !byte.is_ascii_uppercase();
            assert_eq!(kind(byte) & LOWER_TOKEN != 0, lower, "{byte}");
        }
    }

    #[test]
    fn an_owned_map_remembers_that_it_was_given_an_invalid_header() {
        let mut headers = Headers::owned(HeaderMap::new());
        headers.set("x-ok", "1");
        headers.set("bad name", "1");
        headers.set("x-later", "1");
        assert!(headers.contains("x-ok"));
        assert_eq!(headers.into_owned(), Err(HeaderError::InvalidName("bad name".into())));
    }
}
