//! What is around the messages of a stream of the compiled-in Envoy, as the engine's [`Facts`].

use std::pin::Pin;
use std::rc::Rc;
use std::thread::ThreadId;

use attache_core::facts::{
    self, Denied, Fact, FactValue, Facts, HostHealth, MetadataKind, StateForm, StateObject,
    TimePoint, drop_quietly,
};
use attache_core::{Attribute, MetadataValue, Store, protobuf};

use crate::bridge::ffi::{
    Bytes, Changed, Control, FactId, LifeSpan, MetadataSource, Sharing, StreamFacts, TlsFact,
};
use crate::config::shielded;
use crate::stream::CxxHost;

/// Takes what C++ gives, while C++ is called.
pub(crate) struct FactSink<'a>(&'a mut dyn FnMut(FactValue<'_>));

impl FactSink<'_> {
    /// The engine's own code: it must not unwind into C++ all the same.
    fn give(&mut self, value: FactValue<'_>) {
        let _ = shielded("a fact", || (self.0)(value));
    }

    pub(crate) fn text(&mut self, text: Bytes) {
        // SAFETY: C++ keeps the bytes during this call.
        self.give(FactValue::Text(unsafe { text.as_slice() }));
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.give(FactValue::Number(number));
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.give(FactValue::Flag(flag));
    }

    pub(crate) fn time(&mut self, nanos: u64) {
        self.give(FactValue::Time(nanos));
    }

    pub(crate) fn duration(&mut self, nanos: u64) {
        self.give(FactValue::Duration(nanos));
    }

    pub(crate) fn message(&mut self, json: Bytes) {
        // SAFETY: C++ keeps the bytes during this call.
        self.give(FactValue::Message(unsafe { json.as_slice() }));
    }
}

/// Calls `f` with each text that `ask` has C++ give.
fn texts(ask: impl FnOnce(&mut FactSink<'_>), f: &mut dyn FnMut(&[u8])) {
    ask(&mut FactSink(&mut |value| {
        if let FactValue::Text(text) = value {
            f(text);
        }
    }));
}

/// An object of ours in Envoy's filter state.
pub(crate) enum KeptObject {
    /// Of a filter.
    Filters(Option<StateObject>),
    /// What the filters of a stream share, which must stay on its worker.
    Shared { thread: ThreadId, store: Option<Rc<Store>> },
}

impl Drop for KeptObject {
    fn drop(&mut self) {
        match self {
            KeptObject::Filters(object) => {
                drop_quietly("an object in the filter state", object.take());
            }
            // A `Store` keeps the panics of its values to itself.
            KeptObject::Shared { thread, .. } if *thread == std::thread::current().id() => {}
            // Envoy destroys a stream on its worker. Should it ever not, values that are not `Send` are
            // better leaked than dropped.
            KeptObject::Shared { store, .. } => std::mem::forget(store.take()),
        }
    }
}

/// Keys of the filter state, each kind of object with its own.
fn object_key(key: &str) -> String {
    format!("object.{key}")
}
const EXTENSIONS_KEY: &str = "extensions";

fn taken(key: &str) -> Denied {
    Denied::Refused(
        format!("the filter state has `{key}` already, with another life span, or not of ours")
            .into(),
    )
}

fn not_a_list(namespace: &str, key: &str) -> Denied {
    Denied::WrongType(
        format!("the metadata value `{key}` of `{namespace}` is there, and is no list").into(),
    )
}

impl CxxHost {
    fn around(&self) -> Result<&StreamFacts, Denied> {
        // SAFETY: null, or C++'s, which keeps it until the stream is destroyed (type invariant).
        unsafe { self.facts_host().as_ref() }.ok_or_else(Denied::here)
    }

    /// Changes something there.
    fn change(&self, f: impl FnOnce(Pin<&mut StreamFacts>) -> Changed) -> Result<Changed, Denied> {
        self.views.none();
        // SAFETY: as in `around`; that there may be two such references is as in
        // `host_beside_views`.
        let around = unsafe { self.facts_host().as_mut() }.ok_or_else(Denied::here)?;
        // SAFETY: it is C++'s, and stays where it is.
        match f(unsafe { Pin::new_unchecked(around) }) {
            Changed::Unsupported => Err(Denied::here()),
            changed => Ok(changed),
        }
    }

    fn kept(&self, key: &str) -> Result<Option<&KeptObject>, Denied> {
        // SAFETY: null, or an object of ours that stays until the key is set again: users of this
        // are done with it before they do that.
        Ok(unsafe { self.around()?.object(key).as_ref() })
    }

    fn keep(
        &self,
        key: &str,
        object: KeptObject,
        life_span: facts::LifeSpan,
    ) -> Result<bool, Denied> {
        let mut kept = false;
        self.change(|around| {
            kept = around.set_object(key, Box::new(object), life_span.into());
            Changed::Done
        })?;
        Ok(kept)
    }
}

impl Facts for CxxHost {
    fn fact(&self, fact: Fact, f: &mut dyn FnMut(FactValue<'_>)) -> Result<(), Denied> {
        let around = self.around()?;
        let _view = self.views.look();
        let mut sink = FactSink(f);
        let known = match fact {
            Fact::DownstreamTls(of) => around.tls(false, tls_fact(of)?, &mut sink),
            Fact::UpstreamTls(of) => around.tls(true, tls_fact(of)?, &mut sink),
            other => around.fact(fact_id(other)?, &mut sink),
        };
        known.then_some(()).ok_or_else(Denied::here)
    }

    fn metadata(
        &self,
        source: facts::MetadataSource,
        namespace: &str,
        key: &str,
        kind: MetadataKind,
    ) -> Result<Option<MetadataValue>, Denied> {
        let (around, source) = (self.around()?, source_of(source)?);
        let mut found = None;
        texts(|sink| around.metadata(source, namespace, key, sink), &mut |value| {
            found = Some(protobuf::decode(value))
        });
        let Some(value) = found else { return Ok(None) };
        let value = value.ok_or_else(|| {
            Denied::Unsupported(
                format!("the metadata value `{key}` of `{namespace}` is nested too deep").into(),
            )
        })?;
        if value.is(kind) {
            return Ok(Some(value));
        }
        Err(Denied::WrongType(
            format!(
                "the metadata value `{key}` of `{namespace}` is there, but of another type than \
                 {kind:?}"
            )
            .into(),
        ))
    }

    fn metadata_names(
        &self,
        source: facts::MetadataSource,
        namespace: Option<&str>,
        f: &mut dyn FnMut(&str),
    ) -> Result<(), Denied> {
        let (around, source) = (self.around()?, source_of(source)?);
        let _view = self.views.look();
        texts(
            |sink| match namespace {
                Some(namespace) => around.metadata_keys(source, namespace, sink),
                None => around.metadata_namespaces(source, sink),
            },
            &mut |name| f(&String::from_utf8_lossy(name)),
        );
        Ok(())
    }

    fn set_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        let value = protobuf::encode(value);
        match self.change(|around| around.set_metadata(namespace, key, &value))? {
            Changed::Done => Ok(()),
            _ => Err(too_deep()),
        }
    }

    fn append_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        let value = protobuf::encode(value);
        match self.change(|around| around.append_metadata(namespace, key, &value))? {
            Changed::Done => Ok(()),
            Changed::WrongType => Err(not_a_list(namespace, key)),
            _ => Err(too_deep()),
        }
    }

    fn filter_state(
        &self,
        key: &str,
        form: StateForm,
        f: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Denied> {
        let around = self.around()?;
        let _view = self.views.look();
        texts(|sink| around.filter_state(key, form == StateForm::Typed, sink), f);
        Ok(())
    }

    fn set_filter_state(
        &self,
        key: &str,
        value: &[u8],
        form: StateForm,
        life_span: facts::LifeSpan,
        sharing: facts::Sharing,
    ) -> Result<(), Denied> {
        let changed = self.change(|around| match form {
            StateForm::Typed => around.set_typed_filter_state(key, value),
            StateForm::Bytes => {
                around.set_filter_state(key, value, life_span.into(), sharing.into())
            }
        })?;
        match changed {
            Changed::Done => Ok(()),
            Changed::WrongType => Err(Denied::Refused(
                format!(
                    "Envoy knows no kind of object for the filter state's key `{key}`, or makes none \
                     of this text"
                )
                .into(),
            )),
            _ => Err(taken(key)),
        }
    }

    fn object(&self, key: &str) -> Result<Option<StateObject>, Denied> {
        Ok(match self.kept(&object_key(key))? {
            Some(KeptObject::Filters(object)) => object.clone(),
            _ => None,
        })
    }

    fn set_object(
        &self,
        key: &str,
        object: StateObject,
        life_span: facts::LifeSpan,
    ) -> Result<(), Denied> {
        // The last reference to what was there, or to what is refused, must not go while Envoy changes
        // its map: a `drop` may do anything.
        let before = self.object(key)?;
        let new = object.clone();
        let kept = self.keep(&object_key(key), KeptObject::Filters(Some(object)), life_span);
        drop_quietly("an object in the filter state", before);
        drop_quietly("an object in the filter state", new);
        kept?.then_some(()).ok_or_else(|| taken(key))
    }

    fn extensions(&self) -> Result<Rc<Store>, Denied> {
        if let Some(KeptObject::Shared { thread, store: Some(store) }) =
            self.kept(EXTENSIONS_KEY)?
        {
            if *thread != std::thread::current().id() {
                return Err(Denied::Refused("the extensions belong to another worker".into()));
            }
            return Ok(store.clone());
        }
        let store = Rc::new(Store::default());
        let thread = std::thread::current().id();
        let shared = KeptObject::Shared { thread, store: Some(store.clone()) };
        if self.keep(EXTENSIONS_KEY, shared, facts::LifeSpan::FilterChain)? {
            Ok(store)
        } else {
            Err(taken(EXTENSIONS_KEY))
        }
    }

    fn control(&self, control: facts::Control<'_>) -> Result<(), Denied> {
        use facts::Control as C;
        let (what, text) = match control {
            C::ClearRouteCache => (Control::ClearRouteCache, ""),
            C::RefreshRouteCluster => (Control::RefreshRouteCluster, ""),
            C::DrainConnection => (Control::DrainConnection, ""),
            C::AddCustomFlag(flag) => (Control::AddCustomFlag, flag),
            C::OverrideUpstreamHost { host, strict: true } => {
                (Control::OverrideUpstreamHostStrictly, host)
            }
            C::OverrideUpstreamHost { host, .. } => (Control::OverrideUpstreamHost, host),
            C::Recreate => (Control::Recreate, ""),
            _ => return Err(Denied::here()),
        };
        if self.change(|around| around.control(what, text))? == Changed::Done {
            return Ok(());
        }
        Err(Denied::Refused(match control {
            C::AddCustomFlag(flag) => {
                format!("Envoy itself has a response flag `{flag}`: take another name").into()
            }
            C::OverrideUpstreamHost { host, .. } => {
                format!("`{host}` is no address: give the host as `ip:port`").into()
            }
            _ => "Envoy does not start this stream again: it has not got the whole request".into(),
        }))
    }
}

fn too_deep() -> Denied {
    Denied::Refused("Envoy takes no metadata value that is nested so deep".into())
}

fn fact_id(fact: Fact) -> Result<FactId, Denied> {
    Ok(match fact {
        Fact::Attribute(attribute) => attribute_id(attribute),
        Fact::VirtualCluster => FactId::VirtualCluster,
        Fact::WorkerIndex => FactId::WorkerIndex,
        Fact::DownstreamDirectRemoteAddress => FactId::DownstreamDirectRemoteAddress,
        Fact::UpstreamRemoteAddress => FactId::UpstreamRemoteAddress,
        Fact::UpstreamConnectionId => FactId::UpstreamConnectionId,
        Fact::BytesReceived => FactId::BytesReceived,
        Fact::ClusterHosts(HostHealth::Healthy) => FactId::HealthyClusterHosts,
        Fact::ClusterHosts(HostHealth::Degraded) => FactId::DegradedClusterHosts,
        Fact::ClusterHosts(_) => FactId::ClusterHosts,
        Fact::Timing(point) => match point {
            TimePoint::LastDownstreamRx => FactId::LastDownstreamRx,
            TimePoint::FirstUpstreamTx => FactId::FirstUpstreamTx,
            TimePoint::LastUpstreamTx => FactId::LastUpstreamTx,
            TimePoint::FirstUpstreamRx => FactId::FirstUpstreamRx,
            TimePoint::LastUpstreamRx => FactId::LastUpstreamRx,
            TimePoint::FirstDownstreamTx => FactId::FirstDownstreamTx,
            TimePoint::LastDownstreamTx => FactId::LastDownstreamTx,
            _ => return Err(Denied::here()),
        },
        _ => return Err(Denied::here()),
    })
}

fn attribute_id(attribute: Attribute) -> FactId {
    // The first of the list are the attributes, in the same order.
    FactId { repr: attribute as u8 }
}

fn tls_fact(fact: facts::TlsFact) -> Result<TlsFact, Denied> {
    use facts::TlsFact as T;
    Ok(match fact {
        T::Version => TlsFact::Version,
        T::Cipher => TlsFact::Cipher,
        T::SessionId => TlsFact::SessionId,
        T::Alpn => TlsFact::Alpn,
        T::ServerName => TlsFact::ServerName,
        T::PeerPresented => TlsFact::PeerPresented,
        T::PeerValidated => TlsFact::PeerValidated,
        T::PeerSubject => TlsFact::PeerSubject,
        T::PeerIssuer => TlsFact::PeerIssuer,
        T::PeerSerial => TlsFact::PeerSerial,
        T::PeerSha256 => TlsFact::PeerSha256,
        T::PeerDnsSans => TlsFact::PeerDnsSans,
        T::PeerUriSans => TlsFact::PeerUriSans,
        T::PeerValidFrom => TlsFact::PeerValidFrom,
        T::PeerExpires => TlsFact::PeerExpires,
        T::PeerPem => TlsFact::PeerPem,
        T::PeerChainPem => TlsFact::PeerChainPem,
        T::LocalSubject => TlsFact::LocalSubject,
        T::LocalDnsSans => TlsFact::LocalDnsSans,
        T::LocalUriSans => TlsFact::LocalUriSans,
        _ => return Err(Denied::here()),
    })
}

fn source_of(source: facts::MetadataSource) -> Result<MetadataSource, Denied> {
    use facts::MetadataSource as S;
    Ok(match source {
        S::Dynamic => MetadataSource::Dynamic,
        S::Route => MetadataSource::Route,
        S::Cluster => MetadataSource::Cluster,
        S::Host => MetadataSource::Host,
        S::HostLocality => MetadataSource::HostLocality,
        S::VirtualHost => MetadataSource::VirtualHost,
        _ => return Err(Denied::here()),
    })
}

impl From<facts::LifeSpan> for LifeSpan {
    fn from(life_span: facts::LifeSpan) -> Self {
        match life_span {
            facts::LifeSpan::FilterChain => LifeSpan::FilterChain,
            facts::LifeSpan::Request => LifeSpan::Request,
            facts::LifeSpan::Connection => LifeSpan::Connection,
        }
    }
}

impl From<facts::Sharing> for Sharing {
    fn from(sharing: facts::Sharing) -> Self {
        match sharing {
            facts::Sharing::None => Sharing::None,
            facts::Sharing::UpstreamConnection => Sharing::UpstreamConnection,
            facts::Sharing::UpstreamConnectionOnce => Sharing::UpstreamConnectionOnce,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are the bridge's; these are where the list changes its subject.
    #[test]
    fn attributes_have_the_numbers_of_the_bridge() {
        assert_eq!(attribute_id(Attribute::RequestPath), FactId::RequestPath);
        assert_eq!(attribute_id(Attribute::ResponseCode), FactId::ResponseCode);
        assert_eq!(attribute_id(Attribute::SourceAddress), FactId::SourceAddress);
        assert_eq!(attribute_id(Attribute::UpstreamAddress), FactId::UpstreamAddress);
        assert_eq!(attribute_id(Attribute::XdsNode), FactId::XdsNode);
        assert_eq!(attribute_id(Attribute::HealthCheck), FactId::HealthCheck);
        assert_eq!(Attribute::ALL.len(), usize::from(FactId::VirtualCluster.repr));
    }
}
