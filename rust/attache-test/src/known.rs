//! What a test lets a filter find around the messages, and what the filter has left there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use attache_core::facts::{
    Control, Denied, Fact, FactValue, Facts, LifeSpan, MetadataKind, MetadataSource, ResetReason,
    Sharing, StateForm, StateObject,
};
use attache_core::host::{Direction, Map};
use attache_core::{Attribute, MetadataValue, Store};
use bytes::Bytes;

use crate::model::ModelHost;

/// The value of a [`Fact`], for a test to set.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A point in time.
    Time(SystemTime),
    /// A span of time.
    Duration(Duration),
    /// The host does not know such things: the filter gets `Unsupported`.
    Unsupported,
}

impl From<&str> for Known {
    fn from(text: &str) -> Self {
        Known::Text(text.to_owned())
    }
}
impl From<u64> for Known {
    fn from(number: u64) -> Self {
        Known::Number(number)
    }
}
impl From<bool> for Known {
    fn from(flag: bool) -> Self {
        Known::Flag(flag)
    }
}
impl From<SystemTime> for Known {
    fn from(time: SystemTime) -> Self {
        Known::Time(time)
    }
}
impl From<Duration> for Known {
    fn from(time: Duration) -> Self {
        Known::Duration(time)
    }
}
impl From<Vec<&str>> for Known {
    fn from(texts: Vec<&str>) -> Self {
        Known::Texts(texts.into_iter().map(str::to_owned).collect())
    }
}

type MetadataKey = (String, String, String);

/// All that surrounds a stream's messages.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    facts: Vec<(Fact, Known)>,
    metadata: BTreeMap<MetadataKey, MetadataValue>,
    filter_state: BTreeMap<String, StateValue>,
}

#[derive(Clone, Debug)]
struct StateValue {
    value: Bytes,
    life_span: LifeSpan,
    sharing: Sharing,
}

fn metadata_key(source: MetadataSource, namespace: &str, key: &str) -> MetadataKey {
    (format!("{source:?}"), namespace.to_owned(), key.to_owned())
}

impl Surroundings {
    /// A value for a fact, in place of the one before.
    pub fn set(&mut self, fact: Fact, value: impl Into<Known>) {
        self.facts.retain(|(known, _)| *known != fact);
        self.facts.push((fact, value.into()));
    }

    /// A metadata value.
    pub fn set_metadata(
        &mut self,
        source: MetadataSource,
        namespace: &str,
        key: &str,
        value: impl Into<MetadataValue>,
    ) {
        self.metadata.insert(metadata_key(source, namespace, key), value.into());
    }

    /// Bytes in the filter state.
    pub fn set_filter_state(&mut self, key: &str, value: impl Into<Bytes>) {
        let value = StateValue {
            value: value.into(),
            life_span: LifeSpan::default(),
            sharing: Sharing::default(),
        };
        self.filter_state.insert(key.to_owned(), value);
    }
}

/// What a filter has done to a stream, beside its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// How often the route was forgotten.
    pub route_cleared: usize,
    /// How often the route's cluster was chosen again.
    pub cluster_refreshed: usize,
    /// The upstream host that was chosen, and whether strictly.
    pub upstream_host: Option<(String, bool)>,
    /// The client's connection drains.
    pub connection_drains: bool,
    /// Marks for the access log.
    pub custom_flags: Vec<String>,
    /// The stream was started again.
    pub recreated: bool,
    /// The stream was reset, why, and with which details.
    pub reset: Option<(ResetReason, String)>,
}

/// The surroundings of one stream, as it goes.
#[derive(Default)]
pub(crate) struct Around {
    pub(crate) given: RefCell<Surroundings>,
    objects: RefCell<BTreeMap<String, (StateObject, LifeSpan)>>,
    extensions: RefCell<Option<Rc<Store>>>,
    pub(crate) done: RefCell<Done>,
}

impl fmt::Debug for Around {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.given.borrow().fmt(f)
    }
}

impl Around {
    pub(crate) fn new(given: Surroundings) -> Self {
        Around { given: RefCell::new(given), ..Around::default() }
    }

    pub(crate) fn metadata(&self, namespace: &str, key: &str) -> Option<MetadataValue> {
        let key = metadata_key(MetadataSource::Dynamic, namespace, key);
        self.given.borrow().metadata.get(&key).cloned()
    }

    pub(crate) fn filter_state(&self, key: &str) -> Option<(Bytes, LifeSpan, Sharing)> {
        let given = self.given.borrow();
        given.filter_state.get(key).map(|v| (v.value.clone(), v.life_span, v.sharing))
    }

    pub(crate) fn extensions(&self) -> Rc<Store> {
        self.extensions.borrow_mut().get_or_insert_default().clone()
    }

    /// The stream goes: what lived as long as it goes too.
    pub(crate) fn forget(&self) {
        let extensions = self.extensions.borrow_mut().take();
        let objects = std::mem::take(&mut *self.objects.borrow_mut());
        drop((extensions, objects));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Facts for ModelHost {
    fn fact(&self, fact: Fact, f: &mut dyn FnMut(FactValue<'_>)) -> Result<(), Denied> {
        self.reads("fact");
        let stream = self.stream();
        let given = stream.around.given.borrow();
        let known = given.facts.iter().find(|(known, _)| *known == fact).map(|(_, v)| v.clone());
        drop(given);
        match known {
            Some(Known::Unsupported) => return Err(Denied::here()),
            Some(Known::Text(text)) => f(FactValue::Text(text.as_bytes())),
            Some(Known::Texts(texts)) => {
                texts.iter().for_each(|text| f(FactValue::Text(text.as_bytes())));
            }
            Some(Known::Number(number)) => f(FactValue::Number(number)),
            Some(Known::Flag(flag)) => f(FactValue::Flag(flag)),
            Some(Known::Time(time)) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                f(FactValue::Time(nanos(since)));
            }
            Some(Known::Duration(time)) => f(FactValue::Duration(nanos(time))),
            None => match fact {
                Fact::Attribute(attribute) => self.read_messages(attribute, f),
                Fact::WorkerIndex => f(FactValue::Number(0)),
                Fact::BytesReceived => f(FactValue::Number(self.stream().bytes_received())),
                _ => (),
            },
        }
        Ok(())
    }

    fn metadata(
        &self,
        source: MetadataSource,
        namespace: &str,
        key: &str,
        kind: MetadataKind,
    ) -> Result<Option<MetadataValue>, Denied> {
        self.reads("metadata");
        let stream = self.stream();
        let given = stream.around.given.borrow();
        match given.metadata.get(&metadata_key(source, namespace, key)) {
            Some(value) if !value.is(kind) => Err(Denied::WrongType(
                format!("the metadata value `{key}` of `{namespace}` is no {kind:?}").into(),
            )),
            value => Ok(value.cloned()),
        }
    }

    fn metadata_names(
        &self,
        source: MetadataSource,
        namespace: Option<&str>,
        f: &mut dyn FnMut(&str),
    ) -> Result<(), Denied> {
        self.reads("metadata_names");
        let source = format!("{source:?}");
        let stream = self.stream();
        let given = stream.around.given.borrow();
        let mut names: Vec<&str> = given
            .metadata
            .keys()
            .filter(|(of, _, _)| *of == source)
            .filter_map(|(_, in_namespace, key)| match namespace {
                None => Some(in_namespace.as_str()),
                Some(namespace) => (in_namespace == namespace).then_some(key.as_str()),
            })
            .collect();
        names.dedup();
        names.into_iter().for_each(f);
        Ok(())
    }

    fn set_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        self.reads("set_metadata");
        let stream = self.stream();
        let mut given = stream.around.given.borrow_mut();
        given.set_metadata(MetadataSource::Dynamic, namespace, key, value.clone());
        Ok(())
    }

    fn append_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        self.reads("append_metadata");
        let stream = self.stream();
        let mut given = stream.around.given.borrow_mut();
        let place = metadata_key(MetadataSource::Dynamic, namespace, key);
        match given.metadata.entry(place).or_insert(MetadataValue::List(Vec::new())) {
            MetadataValue::List(list) => {
                list.push(value.clone());
                Ok(())
            }
            _ => Err(Denied::WrongType(format!("`{key}` of `{namespace}` is no list").into())),
        }
    }

    fn filter_state(
        &self,
        key: &str,
        _form: StateForm,
        f: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Denied> {
        self.reads("filter_state");
        if let Some((value, ..)) = self.stream().around.filter_state(key) {
            f(&value);
        }
        Ok(())
    }

    fn set_filter_state(
        &self,
        key: &str,
        value: &[u8],
        _form: StateForm,
        life_span: LifeSpan,
        sharing: Sharing,
    ) -> Result<(), Denied> {
        self.reads("set_filter_state");
        let stream = self.stream();
        let mut given = stream.around.given.borrow_mut();
        if given.filter_state.get(key).is_some_and(|v| v.life_span != life_span) {
            return Err(taken(key));
        }
        let value = StateValue { value: Bytes::copy_from_slice(value), life_span, sharing };
        given.filter_state.insert(key.to_owned(), value);
        Ok(())
    }

    fn object(&self, key: &str) -> Result<Option<StateObject>, Denied> {
        self.reads("object");
        Ok(self.stream().around.objects.borrow().get(key).map(|(object, _)| object.clone()))
    }

    fn set_object(
        &self,
        key: &str,
        object: StateObject,
        life_span: LifeSpan,
    ) -> Result<(), Denied> {
        self.reads("set_object");
        let stream = self.stream();
        let mut objects = stream.around.objects.borrow_mut();
        if objects.get(key).is_some_and(|(_, span)| *span != life_span) {
            drop(objects);
            return Err(taken(key));
        }
        let old = objects.insert(key.to_owned(), (object, life_span));
        drop(objects);
        drop(old);
        Ok(())
    }

    fn extensions(&self) -> Result<Rc<Store>, Denied> {
        self.reads("extensions");
        Ok(self.stream().around.extensions())
    }

    fn control(&self, control: Control<'_>) -> Result<(), Denied> {
        self.writes("control");
        let done = &self.stream().around.done;
        match control {
            Control::ClearRouteCache => done.borrow_mut().route_cleared += 1,
            Control::RefreshRouteCluster => done.borrow_mut().cluster_refreshed += 1,
            Control::OverrideUpstreamHost { host, strict } => {
                if host.parse::<std::net::SocketAddr>().is_err() {
                    return Err(Denied::Refused(format!("`{host}` is no `ip:port`").into()));
                }
                done.borrow_mut().upstream_host = Some((host.to_owned(), strict));
            }
            Control::DrainConnection => {
                if self.stream().hooks_running() {
                    self.stream().violation(
                        "the connection is drained from within a hook: Envoy breaks the chain off",
                    );
                }
                done.borrow_mut().connection_drains = true;
            }
            Control::AddCustomFlag(flag) => {
                done.borrow_mut().custom_flags.push(flag.to_owned());
            }
            Control::Recreate => return self.recreate(),
            _ => return Err(Denied::here()),
        }
        Ok(())
    }
}

fn taken(key: &str) -> Denied {
    Denied::Refused(format!("the key `{key}` is taken, with another life span").into())
}

impl ModelHost {
    /// What Envoy reads from the messages.
    fn read_messages(&self, attribute: Attribute, f: &mut dyn FnMut(FactValue<'_>)) {
        let header = |name: &str, f: &mut dyn FnMut(&[u8])| {
            let value = match &*self.stream().map(Map::RequestHeaders).borrow() {
                Some(fields) => fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()),
                None => None,
            };
            if let Some(value) = value {
                f(&value);
            }
        };
        let mut text = |value: &[u8]| f(FactValue::Text(value));
        match attribute {
            Attribute::RequestPath => header(":path", &mut text),
            Attribute::RequestUrlPath => header(":path", &mut |path| {
                text(path.split(|b| *b == b'?').next().unwrap_or_default());
            }),
            Attribute::RequestQuery => header(":path", &mut |path| {
                if let Some(start) = path.iter().position(|b| *b == b'?') {
                    text(&path[start + 1..]);
                }
            }),
            Attribute::RequestHost => header(":authority", &mut text),
            Attribute::RequestScheme => header(":scheme", &mut text),
            Attribute::RequestMethod => header(":method", &mut text),
            Attribute::RequestReferer => header("referer", &mut text),
            Attribute::RequestUserAgent => header("user-agent", &mut text),
            Attribute::RequestId => header("x-request-id", &mut text),
            Attribute::ResponseCode => {
                if let Some(status) = self.stream().client_status() {
                    f(FactValue::Number(status.into()));
                }
            }
            Attribute::ResponseSize => f(FactValue::Number(self.stream().bytes_sent())),
            Attribute::RequestDuration => {
                if let Some(duration) = self.stream().duration() {
                    f(FactValue::Duration(nanos(duration)));
                }
            }
            _ => (),
        }
    }

    fn recreate(&self) -> Result<(), Denied> {
        let stream = self.stream();
        if stream.our_leg(Direction::Request).headers_continued.get() {
            stream.violation("the stream is started again, but its request has gone on");
        }
        if stream.hooks_running() {
            stream.violation(
                "the stream is started again from within a hook that holds a part of it",
            );
        }
        if !stream.request_is_complete() {
            return Err(Denied::Refused("Envoy has not got the whole request yet".into()));
        }
        stream.around.done.borrow_mut().recreated = true;
        stream.end_by_recreation();
        Ok(())
    }
}
