//! [`Metadata`]: what filters and configs say about a stream, a route, a cluster or a host.

use std::collections::BTreeMap;
use std::fmt;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::facts::{MetadataKind, MetadataSource};
use crate::stream::Stream;

/// The namespace in which the runtime itself keeps notes.
pub(crate) const OWN_NAMESPACE: &str = "attache";

/// A metadata value: what a `google.protobuf.Value` can be.
///
/// It is made from texts, numbers, booleans and lists of them with `into()`, and from anything else
/// with serde.
///
/// ```
/// use attache_core::MetadataValue;
///
/// let tags: MetadataValue = vec!["a", "b"].into();
/// assert_eq!(tags.to_string(), r#"["a","b"]"#);
/// assert_eq!(MetadataValue::from(1.5).as_number(), Some(1.5));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetadataValue {
    /// Nothing.
    Null,
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<MetadataValue>),
    /// Fields with names.
    Struct(BTreeMap<String, MetadataValue>),
}

impl MetadataValue {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            MetadataValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            MetadataValue::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The flag, if it is one.
    pub fn as_flag(&self) -> Option<bool> {
        match self {
            MetadataValue::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_list(&self) -> Option<&[MetadataValue]> {
        match self {
            MetadataValue::List(list) => Some(list),
            _ => None,
        }
    }

    /// The fields, if it is a struct.
    pub fn as_struct(&self) -> Option<&BTreeMap<String, MetadataValue>> {
        match self {
            MetadataValue::Struct(fields) => Some(fields),
            _ => None,
        }
    }

    /// Whether it is of a kind.
    pub fn is(&self, kind: MetadataKind) -> bool {
        match kind {
            MetadataKind::Any => true,
            MetadataKind::Text => self.as_text().is_some(),
            MetadataKind::Number => self.as_number().is_some(),
            MetadataKind::Flag => self.as_flag().is_some(),
            MetadataKind::List => self.as_list().is_some(),
        }
    }
}

/// As JSON.
impl fmt::Display for MetadataValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

macro_rules! from {
    ($($from:ty => $variant:ident($value:ident) $make:expr;)*) => {$(
        impl From<$from> for MetadataValue {
            fn from($value: $from) -> Self {
                MetadataValue::$variant($make)
            }
        }
    )*};
}

from! {
    bool => Flag(value) value;
    f64 => Number(value) value;
    i32 => Number(value) value.into();
    u32 => Number(value) value.into();
    String => Text(value) value;
    &str => Text(value) value.to_owned();
    BTreeMap<String, MetadataValue> => Struct(value) value;
}

impl<T: Into<MetadataValue>> From<Vec<T>> for MetadataValue {
    fn from(list: Vec<T>) -> Self {
        MetadataValue::List(list.into_iter().map(Into::into).collect())
    }
}

/// What a metadata value can be read as: [`MetadataValue`] itself, `String`, `f64`, `bool`, and lists
/// of these.
pub trait FromMetadata: Sized + sealed::Sealed {
    /// What is asked for.
    const KIND: MetadataKind;
    /// From a value, if it is such a one.
    fn from_metadata(value: MetadataValue) -> Option<Self>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! readable {
    ($($type:ty, $kind:ident, $value:pat => $read:expr;)*) => {$(
        impl sealed::Sealed for $type {}
        impl FromMetadata for $type {
            const KIND: MetadataKind = MetadataKind::$kind;
            fn from_metadata(value: MetadataValue) -> Option<Self> {
                match value {
                    $value => Some($read),
                    #[allow(unreachable_patterns)]
                    _ => None,
                }
            }
        }
    )*};
}

readable! {
    MetadataValue, Any, value => value;
    String, Text, MetadataValue::Text(text) => text;
    f64, Number, MetadataValue::Number(number) => number;
    bool, Flag, MetadataValue::Flag(flag) => flag;
}

impl<T: FromMetadata> sealed::Sealed for Vec<T> {}
impl<T: FromMetadata> FromMetadata for Vec<T> {
    const KIND: MetadataKind = MetadataKind::List;
    fn from_metadata(value: MetadataValue) -> Option<Self> {
        match value {
            MetadataValue::List(list) => list.into_iter().map(T::from_metadata).collect(),
            _ => None,
        }
    }
}

/// Metadata of a stream ([`Stream::metadata`]), of its route, cluster or host.
///
/// The stream's own, dynamic, metadata is where filters leave values for each other, for the access
/// log (`%DYNAMIC_METADATA(namespace:key)%`), for rate limits and RBAC. It can be set until the
/// access log is written, which is after [`on_complete`](crate::Filter::on_complete).
///
/// Values are looked up by namespace and key. Each call fails with
/// [`ErrorKind::Gone`](crate::ErrorKind::Gone) after the exchange has ended.
///
/// ```
/// # use attache_core::{Filter, Next, Request, Response, Result, Setup, ConfigError, MetadataValue};
/// # struct Tagger;
/// # impl Filter for Tagger { type Config = (); type RouteConfig = ();
/// # fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Tagger) }
/// async fn handle(&self, req: Request, next: Next) -> Result<Response> {
///     let stream = req.stream();
///     stream.metadata().set("com.example.auth", "user", "ada")?;
///     let tier: Option<String> = stream.route_metadata().get("com.example.auth", "tier")?;
///     stream.metadata().set("com.example.auth", "paid", tier.as_deref() == Some("gold"))?;
///     next.run(req).await
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Metadata<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) source: MetadataSource,
}

impl Metadata<'_> {
    /// A value, or `None` if there is none, nor the object that it would belong to (no route, no
    /// upstream host yet).
    ///
    /// Numbers of a YAML config are whole: Envoy reads `2.5` there as a text.
    ///
    /// Ask for the type that you expect. On stock Envoy, asking for another one than there is (also
    /// with [`MetadataValue`], for anything but a list or a text) makes Envoy itself write a line
    /// into its log.
    ///
    /// # Errors
    /// [`ErrorKind::WrongType`]: there is a value of another type.
    /// [`ErrorKind::Unsupported`]: this host cannot read such values; stock Envoy cannot read structs
    /// and nulls, nor lists with anything but texts, numbers and booleans.
    pub fn get<T: FromMetadata>(&self, namespace: &str, key: &str) -> Result<Option<T>> {
        let source = self.source;
        let value =
            self.stream.ask(|host| host.facts().metadata(source, namespace, key, T::KIND))?;
        value
            .map(|value| {
                T::from_metadata(value).ok_or_else(|| {
                    Error::make(
                        ErrorKind::WrongType,
                        StatusCode::INTERNAL_SERVER_ERROR,
                        format!(
                            "the metadata value `{key}` of `{namespace}` is of another type than {}",
                            std::any::type_name::<T>()
                        ),
                    )
                })
            })
            .transpose()
    }

    /// The names of all namespaces, in no order.
    ///
    /// # Errors
    /// See [`Metadata`].
    pub fn namespaces(&self) -> Result<Vec<String>> {
        self.names(None)
    }

    /// The keys of a namespace, in no order.
    ///
    /// # Errors
    /// See [`Metadata`].
    pub fn keys(&self, namespace: &str) -> Result<Vec<String>> {
        self.names(Some(namespace))
    }

    fn names(&self, namespace: Option<&str>) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let source = self.source;
        self.stream.ask(|host| {
            host.facts().metadata_names(source, namespace, &mut |name| names.push(name.to_owned()))
        })?;
        Ok(names)
    }

    /// Sets a value of the stream's dynamic metadata, in place of what was there.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`]: this is not the stream's own metadata, or the namespace is `attache`,
    /// which is the runtime's.
    /// [`ErrorKind::Unsupported`]: this host cannot write such a value. Stock Envoy 1.39 writes
    /// texts, numbers, booleans, and lists of them where there is nothing yet; 1.40 writes all.
    pub fn set(&self, namespace: &str, key: &str, value: impl Into<MetadataValue>) -> Result<()> {
        self.check_writable(namespace)?;
        let value = value.into();
        self.stream.ask(|host| host.facts().set_metadata(namespace, key, &value))
    }

    /// Appends to a list of the stream's dynamic metadata; makes the list if there is nothing.
    ///
    /// # Errors
    /// As [`set`](Metadata::set). [`ErrorKind::WrongType`]: there is a value that is no list.
    pub fn append(
        &self,
        namespace: &str,
        key: &str,
        value: impl Into<MetadataValue>,
    ) -> Result<()> {
        self.check_writable(namespace)?;
        let value = value.into();
        self.stream.ask(|host| host.facts().append_metadata(namespace, key, &value))
    }

    fn check_writable(&self, namespace: &str) -> Result<()> {
        let refused = |why: String| {
            Err(Error::make(ErrorKind::Refused, StatusCode::INTERNAL_SERVER_ERROR, why))
        };
        if self.source != MetadataSource::Dynamic {
            return refused(format!("{:?} metadata comes from the config", self.source));
        }
        if namespace == OWN_NAMESPACE {
            return refused(format!(
                "the metadata namespace `{OWN_NAMESPACE}` is the runtime's own; use one of yours, \
                 such as `com.example.filter`"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_what_they_are() {
        let list: MetadataValue = vec![1, 2].into();
        assert_eq!(Vec::<f64>::from_metadata(list.clone()), Some(vec![1.0, 2.0]));
        assert_eq!(Vec::<String>::from_metadata(list.clone()), None);
        assert_eq!(String::from_metadata("a".into()), Some("a".into()));
        assert_eq!(String::from_metadata(true.into()), None);
        assert_eq!(MetadataValue::from_metadata(list.clone()), Some(list));
    }

    #[test]
    fn values_are_written_as_json() {
        let json = r#"{"a":[1.5,true,null,"x"],"b":{}}"#;
        let value: MetadataValue = serde_json::from_str(json).unwrap();
        assert_eq!(value.to_string(), json);
        assert_eq!(value.as_struct().unwrap()["b"], MetadataValue::Struct(BTreeMap::new()));
    }
}
