//! What stock Envoy lets a dynamic module know of a stream, and set there.
//!
//! The C ABI has an enum of all attributes, but serves only some of them, and its answer does not
//! tell "not there" from "not served". Which are served is written down here, as read from the
//! sources of 1.39 (`filters/http/dynamic_modules/abi_impl.cc`,
//! `dynamic_modules/abi_context_accessors.cc`); for 1.40, as found by asking the released binary for
//! each number, as each kind, in the course of requests.

use std::rc::Rc;

use attache_core::facts::{
    Control, Denied, Fact, FactValue, Facts, HostHealth, LifeSpan, MetadataKind, MetadataSource,
    Sharing, StateForm, StateObject, TimePoint, TlsFact,
};
use attache_core::host::{Host, Map};
use attache_core::protobuf::one_field;
use attache_core::{Attribute, MetadataValue, Store};

use crate::abi::{EnvoyBuffer, ModuleBuffer, TimingInfo, metadata_source, sharing, timing};
use crate::state::life_span_of;
use crate::stream::Stream;

/// How the C ABI serves an attribute.
enum Served {
    Text,
    Number,
    Flag,
    Not,
}

fn served(attribute: Attribute) -> Served {
    use Attribute as A;
    match attribute {
        A::RequestPath
        | A::RequestUrlPath
        | A::RequestHost
        | A::RequestScheme
        | A::RequestMethod
        | A::RequestReferer
        | A::RequestUserAgent
        | A::RequestId
        | A::RequestProtocol
        | A::RequestQuery
        | A::ResponseCodeDetails
        | A::SourceAddress
        | A::DestinationAddress
        | A::ConnectionRequestedServerName
        | A::ConnectionTlsVersion
        | A::ConnectionSubjectLocalCertificate
        | A::ConnectionSubjectPeerCertificate
        | A::ConnectionDnsSanLocalCertificate
        | A::ConnectionDnsSanPeerCertificate
        | A::ConnectionUriSanLocalCertificate
        | A::ConnectionUriSanPeerCertificate
        | A::ConnectionSha256PeerCertificateDigest
        | A::ConnectionTransportFailureReason
        | A::ConnectionTerminationDetails
        | A::UpstreamAddress
        | A::UpstreamTlsVersion
        | A::UpstreamSubjectLocalCertificate
        | A::UpstreamSubjectPeerCertificate
        | A::UpstreamDnsSanLocalCertificate
        | A::UpstreamDnsSanPeerCertificate
        | A::UpstreamUriSanLocalCertificate
        | A::UpstreamUriSanPeerCertificate
        | A::UpstreamSha256PeerCertificateDigest
        | A::UpstreamLocalAddress
        | A::UpstreamTransportFailureReason
        | A::XdsRouteName
        | A::XdsVirtualHostName => Served::Text,
        A::ResponseCode
        | A::ResponseFlags
        | A::ResponseSize
        | A::SourcePort
        | A::DestinationPort
        | A::ConnectionId
        | A::UpstreamPort
        | A::UpstreamRequestAttemptCount => Served::Number,
        A::ConnectionMtls | A::HealthCheck => Served::Flag,
        _ => Served::Not,
    }
}

/// What the C ABI of 1.40 serves besides.
fn served_since_1_40(attribute: Attribute) -> Served {
    use Attribute as A;
    match attribute {
        A::RequestSize | A::RequestTotalSize | A::ResponseTotalSize | A::XdsListenerDirection => {
            Served::Number
        }
        A::XdsFilterChainName => Served::Text,
        _ => Served::Not,
    }
}

/// The number that the C ABI of 1.40 gives to `xds.virtual_cluster_name`, behind those of 1.39.
const VIRTUAL_CLUSTER_1_40: u32 = Attribute::HealthCheck as u32 + 2;

fn timing_index(point: TimePoint) -> Option<usize> {
    Some(match point {
        TimePoint::LastDownstreamRx => timing::LAST_DOWNSTREAM_RX,
        TimePoint::FirstUpstreamTx => timing::FIRST_UPSTREAM_TX,
        TimePoint::LastUpstreamTx => timing::LAST_UPSTREAM_TX,
        TimePoint::FirstUpstreamRx => timing::FIRST_UPSTREAM_RX,
        TimePoint::LastUpstreamRx => timing::LAST_UPSTREAM_RX,
        TimePoint::FirstDownstreamTx => timing::FIRST_DOWNSTREAM_TX,
        TimePoint::LastDownstreamTx => timing::LAST_DOWNSTREAM_TX,
        _ => return None,
    })
}

/// As an attribute, where the C ABI has one for it.
fn tls_attribute(upstream: bool, fact: TlsFact) -> Option<Attribute> {
    use Attribute as A;
    let (of_client, of_upstream) = match fact {
        TlsFact::Version => (A::ConnectionTlsVersion, A::UpstreamTlsVersion),
        TlsFact::PeerSubject => {
            (A::ConnectionSubjectPeerCertificate, A::UpstreamSubjectPeerCertificate)
        }
        TlsFact::PeerSha256 => {
            (A::ConnectionSha256PeerCertificateDigest, A::UpstreamSha256PeerCertificateDigest)
        }
        TlsFact::PeerDnsSans => {
            (A::ConnectionDnsSanPeerCertificate, A::UpstreamDnsSanPeerCertificate)
        }
        TlsFact::PeerUriSans => {
            (A::ConnectionUriSanPeerCertificate, A::UpstreamUriSanPeerCertificate)
        }
        TlsFact::LocalSubject => {
            (A::ConnectionSubjectLocalCertificate, A::UpstreamSubjectLocalCertificate)
        }
        TlsFact::LocalDnsSans => {
            (A::ConnectionDnsSanLocalCertificate, A::UpstreamDnsSanLocalCertificate)
        }
        TlsFact::LocalUriSans => {
            (A::ConnectionUriSanLocalCertificate, A::UpstreamUriSanLocalCertificate)
        }
        TlsFact::ServerName if !upstream => return Some(A::ConnectionRequestedServerName),
        // What Envoy calls so is whether a certificate was presented.
        TlsFact::PeerPresented if !upstream => return Some(A::ConnectionMtls),
        _ => return None,
    };
    Some(if upstream { of_upstream } else { of_client })
}

fn not_told(what: &str) -> Denied {
    Denied::Unsupported(
        format!("Envoy does not tell its dynamic modules {what}; see docs/hosts.md").into(),
    )
}

fn needs_1_40(what: &str) -> Denied {
    Denied::Unsupported(format!("{what} needs Envoy 1.40, and this one is older").into())
}

fn source_of(source: MetadataSource) -> Result<u32, Denied> {
    Ok(match source {
        MetadataSource::Dynamic => metadata_source::DYNAMIC,
        MetadataSource::Route => metadata_source::ROUTE,
        MetadataSource::Cluster => metadata_source::CLUSTER,
        MetadataSource::Host => metadata_source::HOST,
        MetadataSource::HostLocality => metadata_source::HOST_LOCALITY,
        _ => return Err(not_told("the metadata of the virtual host")),
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Stream {
    /// Calls `f` with a text that Envoy owns, if `get` finds one.
    fn look(&self, get: impl FnOnce(*mut EnvoyBuffer) -> bool, f: &mut dyn FnMut(&[u8])) -> bool {
        let mut found = EnvoyBuffer::EMPTY;
        let there = get(&mut found);
        if there {
            let _view = self.views.look();
            // SAFETY: `get` is a callback that leaves a text there that lives until the stream
            // changes; while the view lives every method that could change it panics first.
            f(unsafe { found.as_slice() });
        }
        there
    }

    fn owned(&self, get: impl FnOnce(*mut EnvoyBuffer) -> bool) -> Option<String> {
        let mut owned = None;
        self.look(get, &mut |bytes| owned = Some(text(bytes)));
        owned
    }

    fn text_attribute(&self, id: u32, f: &mut dyn FnMut(FactValue<'_>)) {
        self.look(
            // SAFETY: the stream is valid (type invariant), and `out` is ours and live.
            |out| unsafe { (self.api.get_attribute_string)(self.envoy, id, out) },
            &mut |bytes| f(FactValue::Text(bytes)),
        );
    }

    fn number(&self, id: u32) -> Option<u64> {
        let mut number = 0;
        // SAFETY: the stream is valid (type invariant); the out-pointer is ours and live.
        let there = unsafe { (self.api.get_attribute_int)(self.envoy, id, &mut number) };
        there.then_some(number)
    }

    /// The length that the request has announced.
    fn content_length(&self) -> Option<u64> {
        let mut length = None;
        self.header(Map::RequestHeaders, "content-length", 0, &mut |value| {
            length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        });
        length
    }

    fn is_1_40(&self) -> bool {
        self.api.set_metadata_struct.is_some()
    }

    fn attribute(
        &self,
        attribute: Attribute,
        f: &mut dyn FnMut(FactValue<'_>),
    ) -> Result<(), Denied> {
        let id = attribute as u32;
        let served = match (served(attribute), served_since_1_40(attribute)) {
            (Served::Not, Served::Not) => Served::Not,
            (Served::Not, later) if self.is_1_40() => later,
            (Served::Not, _) => return Err(needs_1_40(&format!("`{attribute}`"))),
            (served, _) => served,
        };
        match (attribute, served) {
            (Attribute::XdsClusterName, _) => {
                self.look(
                    // SAFETY: the stream is valid (type invariant), and `out` is ours and live.
                    |out| unsafe { (self.api.get_cluster_name)(self.envoy, out) },
                    &mut |bytes| f(FactValue::Text(bytes)),
                );
            }
            (Attribute::RequestTime, _) => {
                if let Some(nanos) = self.times()?.at(timing::START) {
                    f(FactValue::Time(nanos));
                }
            }
            (Attribute::RequestDuration, _) => {
                if let Some(nanos) = self.times()?.at(timing::COMPLETE) {
                    f(FactValue::Duration(nanos));
                }
            }
            (Attribute::ResponseBackendLatency, _) => {
                let times = self.times()?;
                let (begin, end) =
                    (times.at(timing::FIRST_UPSTREAM_TX), times.at(timing::LAST_UPSTREAM_RX));
                if let Some(nanos) = end.zip(begin).and_then(|(end, begin)| end.checked_sub(begin))
                {
                    f(FactValue::Duration(nanos));
                }
            }
            // What the C ABI tells is what has come so far; Envoy means what will have come, if that
            // is known.
            (Attribute::RequestSize, _) => {
                if let Some(size) = self.content_length().or_else(|| self.number(id)) {
                    f(FactValue::Number(size));
                }
            }
            // In 1.39, the C ABI mistakes the virtual cluster for it.
            (Attribute::XdsVirtualHostName, _) if !self.is_1_40() => {
                return Err(needs_1_40("the virtual host's name"));
            }
            (_, Served::Text) => self.text_attribute(id, f),
            (_, Served::Number) => {
                if let Some(number) = self.number(id) {
                    f(FactValue::Number(number));
                }
            }
            (_, Served::Flag) => {
                let mut flag = false;
                // SAFETY: as above.
                if unsafe { (self.api.get_attribute_bool)(self.envoy, id, &mut flag) } {
                    f(FactValue::Flag(flag));
                }
            }
            (_, Served::Not) => return Err(not_told(&format!("`{attribute}`"))),
        }
        Ok(())
    }

    fn hosts(&self, health: HostHealth) -> Option<usize> {
        let (mut all, mut healthy, mut degraded) = (0, 0, 0);
        // SAFETY: the stream is valid (type invariant); the out-pointers are ours and live.
        let known = unsafe {
            (self.api.get_cluster_host_count)(self.envoy, 0, &mut all, &mut healthy, &mut degraded)
        };
        let count = match health {
            HostHealth::Healthy => healthy,
            HostHealth::Degraded => degraded,
            _ => all,
        };
        known.then_some(count)
    }

    fn metadata_text(&self, source: u32, namespace: &str, key: &str) -> Option<MetadataValue> {
        // SAFETY: the stream is valid (type invariant), and `out` is ours and live. So below.
        let get = |out| unsafe {
            (self.api.get_metadata_string)(self.envoy, source, namespace.into(), key.into(), out)
        };
        self.owned(get).map(MetadataValue::Text)
    }

    fn metadata_number(&self, source: u32, namespace: &str, key: &str) -> Option<MetadataValue> {
        let mut number = 0.0;
        // SAFETY: as above.
        let there = unsafe {
            (self.api.get_metadata_number)(
                self.envoy,
                source,
                namespace.into(),
                key.into(),
                &mut number,
            )
        };
        there.then_some(MetadataValue::Number(number))
    }

    fn metadata_flag(&self, source: u32, namespace: &str, key: &str) -> Option<MetadataValue> {
        let mut flag = false;
        // SAFETY: as above.
        let there = unsafe {
            (self.api.get_metadata_bool)(
                self.envoy,
                source,
                namespace.into(),
                key.into(),
                &mut flag,
            )
        };
        there.then_some(MetadataValue::Flag(flag))
    }

    fn metadata_list(
        &self,
        source: u32,
        namespace: &str,
        key: &str,
    ) -> Result<Option<MetadataValue>, Denied> {
        let mut size = 0;
        // SAFETY: as above.
        let is_list = unsafe {
            (self.api.get_metadata_list_size)(
                self.envoy,
                source,
                namespace.into(),
                key.into(),
                &mut size,
            )
        };
        if !is_list {
            return Ok(None);
        }
        let mut list = Vec::with_capacity(size);
        for index in 0..size {
            // Envoy logs each miss: begin with what the one before was.
            let mut kinds = [MetadataKind::Text, MetadataKind::Number, MetadataKind::Flag];
            if let Some(last) = list.last()
                && let Some(at) = kinds.iter().position(|kind| MetadataValue::is(last, *kind))
            {
                kinds.swap(0, at);
            }
            let found =
                kinds.iter().find_map(|kind| self.element(source, namespace, key, index, *kind));
            list.push(found.ok_or_else(|| {
                Denied::Unsupported(
                    format!(
                        "element {index} of the metadata list `{key}` of `{namespace}` is neither a \
                         text nor a number nor a boolean, and Envoy lets its dynamic modules read \
                         only those"
                    )
                    .into(),
                )
            })?);
        }
        Ok(Some(MetadataValue::List(list)))
    }

    fn element(
        &self,
        source: u32,
        namespace: &str,
        key: &str,
        index: usize,
        kind: MetadataKind,
    ) -> Option<MetadataValue> {
        let (api, envoy) = (self.api, self.envoy);
        let (namespace, key): (ModuleBuffer, ModuleBuffer) = (namespace.into(), key.into());
        match kind {
            MetadataKind::Text => {
                // SAFETY: the stream is valid (type invariant), and `out` is ours and live. So below.
                let get = |out| unsafe {
                    (api.get_metadata_list_string)(envoy, source, namespace, key, index, out)
                };
                self.owned(get).map(MetadataValue::Text)
            }
            MetadataKind::Number => {
                let mut number = 0.0;
                // SAFETY: as above.
                unsafe {
                    (api.get_metadata_list_number)(
                        envoy,
                        source,
                        namespace,
                        key,
                        index,
                        &mut number,
                    )
                }
                .then_some(MetadataValue::Number(number))
            }
            _ => {
                let mut flag = false;
                // SAFETY: as above.
                unsafe {
                    (api.get_metadata_list_bool)(envoy, source, namespace, key, index, &mut flag)
                }
                .then_some(MetadataValue::Flag(flag))
            }
        }
    }

    fn has_metadata(&self, source: MetadataSource, namespace: &str, key: &str) -> bool {
        let mut there = false;
        let listed = self.metadata_names(source, Some(namespace), &mut |name| there |= name == key);
        listed.is_ok() && there
    }

    /// Sets what only the whole-struct callback can.
    fn set_whole(&self, namespace: &str, key: &str, value: &MetadataValue) -> Result<(), Denied> {
        if let Some(set) = self.api.set_metadata_struct {
            let encoded = one_field(key, value);
            // SAFETY: the stream is valid (type invariant); Envoy parses the bytes during the call.
            unsafe { set(self.envoy, namespace.into(), encoded.as_slice().into()) };
            return Ok(());
        }
        let is_scalar = |value: &MetadataValue| {
            [MetadataKind::Text, MetadataKind::Number, MetadataKind::Flag]
                .iter()
                .any(|kind| value.is(*kind))
        };
        match value {
            MetadataValue::List(list) if !list.is_empty() && list.iter().all(is_scalar) => {
                if self.has_metadata(MetadataSource::Dynamic, namespace, key) {
                    return Err(needs_1_40("to put a list in the place of a metadata value"));
                }
                list.iter().try_for_each(|value| self.append_metadata(namespace, key, value))
            }
            MetadataValue::List(_) => {
                Err(needs_1_40("a metadata list that is empty, or has lists or structs in it,"))
            }
            MetadataValue::Struct(_) => Err(needs_1_40("a struct as a metadata value")),
            _ => Err(needs_1_40("a null as a metadata value")),
        }
    }

    fn times(&self) -> Result<TimingInfo, Denied> {
        let get = self.api.get_timing_info.ok_or_else(|| needs_1_40("when what has happened"))?;
        let mut times = TimingInfo::UNKNOWN;
        // SAFETY: the stream is valid (type invariant); Envoy writes into what is ours and live.
        unsafe { get(self.envoy, &mut times) };
        Ok(times)
    }

    fn later_address(
        &self,
        get: crate::abi::Later<
            unsafe extern "C" fn(crate::abi::EnvoyFilter, *mut EnvoyBuffer) -> bool,
        >,
        what: &str,
        f: &mut dyn FnMut(FactValue<'_>),
    ) -> Result<(), Denied> {
        let get = get.ok_or_else(|| needs_1_40(what))?;
        self.look(
            // SAFETY: the stream is valid (type invariant), and `out` is ours and live.
            |out| unsafe { get(self.envoy, out) },
            &mut |bytes| f(FactValue::Text(bytes)),
        );
        Ok(())
    }
}

impl Facts for Stream {
    fn fact(&self, fact: Fact, f: &mut dyn FnMut(FactValue<'_>)) -> Result<(), Denied> {
        match fact {
            Fact::Attribute(attribute) => return self.attribute(attribute, f),
            Fact::VirtualCluster if self.is_1_40() => {
                self.text_attribute(VIRTUAL_CLUSTER_1_40, f);
            }
            // What the C ABI of 1.39 serves under the virtual host's name is the virtual cluster's.
            Fact::VirtualCluster => {
                self.text_attribute(Attribute::XdsVirtualHostName as u32, f);
            }
            Fact::BytesReceived if self.is_1_40() => {
                if let Some(bytes) = self.number(Attribute::RequestSize as u32) {
                    f(FactValue::Number(bytes));
                }
            }
            Fact::BytesReceived => return Err(needs_1_40("how much has come from the client")),
            Fact::WorkerIndex => {
                // SAFETY: the stream is valid (type invariant). So below.
                let index = unsafe { (self.api.get_worker_index)(self.envoy) };
                f(FactValue::Number(index.into()));
            }
            Fact::UpstreamConnectionId => {
                // SAFETY: as above.
                let id = unsafe { (self.api.get_upstream_connection_id)(self.envoy) };
                // Envoy counts from 1; 0 is for none.
                if id != 0 {
                    f(FactValue::Number(id));
                }
            }
            Fact::ClusterHosts(health) => {
                if let Some(count) = self.hosts(health) {
                    f(FactValue::Number(count as u64));
                }
            }
            Fact::UpstreamRemoteAddress => {
                let get = self.api.get_upstream_remote_address;
                return self.later_address(get, "the remote address of the upstream", f);
            }
            Fact::DownstreamDirectRemoteAddress => {
                let get = self.api.get_downstream_direct_remote_address;
                return self.later_address(get, "the direct remote address of the client", f);
            }
            Fact::Timing(point) => {
                let index = timing_index(point).ok_or_else(|| not_told("this time"))?;
                if let Some(nanos) = self.times()?.at(index) {
                    f(FactValue::Duration(nanos));
                }
            }
            Fact::DownstreamTls(tls) | Fact::UpstreamTls(tls) => {
                let upstream = matches!(fact, Fact::UpstreamTls(_));
                let attribute = tls_attribute(upstream, tls)
                    .ok_or_else(|| not_told(&format!("this of TLS: {tls:?}")))?;
                return self.attribute(attribute, f);
            }
            other => return Err(not_told(&format!("this: {other:?}"))),
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
        let from = source_of(source)?;
        let found = match kind {
            MetadataKind::Text => self.metadata_text(from, namespace, key),
            MetadataKind::Number => self.metadata_number(from, namespace, key),
            MetadataKind::Flag => self.metadata_flag(from, namespace, key),
            MetadataKind::List => self.metadata_list(from, namespace, key)?,
            // A key that is not there is not asked for four times; and a list first, for Envoy logs
            // each other miss as an error.
            MetadataKind::Any if !self.has_metadata(source, namespace, key) => return Ok(None),
            MetadataKind::Any => self
                .metadata_list(from, namespace, key)?
                .or_else(|| self.metadata_text(from, namespace, key))
                .or_else(|| self.metadata_number(from, namespace, key))
                .or_else(|| self.metadata_flag(from, namespace, key)),
        };
        if found.is_some() || !self.has_metadata(source, namespace, key) {
            return Ok(found);
        }
        if kind == MetadataKind::Any {
            return Err(Denied::Unsupported(
                format!(
                    "the metadata value `{key}` of `{namespace}` is a struct or a null, which Envoy \
                     does not let its dynamic modules read"
                )
                .into(),
            ));
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
        source: MetadataSource,
        namespace: Option<&str>,
        f: &mut dyn FnMut(&str),
    ) -> Result<(), Denied> {
        let source = source_of(source)?;
        let (api, envoy) = (self.api, self.envoy);
        // SAFETY: the stream is valid (type invariant).
        let count = unsafe {
            match namespace {
                None => (api.get_metadata_namespaces_count)(envoy, source),
                Some(namespace) => (api.get_metadata_keys_count)(envoy, source, namespace.into()),
            }
        };
        if count == 0 {
            return Ok(());
        }
        let mut names = vec![EnvoyBuffer::EMPTY; count];
        let out = names.as_mut_ptr();
        // SAFETY: as above; Envoy writes `count` entries, and nothing has changed since it said so.
        let listed = unsafe {
            match namespace {
                None => (api.get_metadata_namespaces)(envoy, source, out),
                Some(namespace) => (api.get_metadata_keys)(envoy, source, namespace.into(), out),
            }
        };
        if listed {
            let _view = self.views.look();
            for name in names {
                // SAFETY: the names live until the metadata changes, and while the view lives every
                // method that could change it panics first.
                f(&String::from_utf8_lossy(unsafe { name.as_slice() }));
            }
        }
        Ok(())
    }

    fn set_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        self.views.none();
        let (api, envoy) = (self.api, self.envoy);
        // SAFETY: the stream is valid (type invariant); Envoy copies all texts.
        unsafe {
            match value {
                MetadataValue::Text(text) => (api.set_metadata_string)(
                    envoy,
                    namespace.into(),
                    key.into(),
                    text.as_str().into(),
                ),
                MetadataValue::Number(number) => {
                    (api.set_metadata_number)(envoy, namespace.into(), key.into(), *number)
                }
                MetadataValue::Flag(flag) => {
                    (api.set_metadata_bool)(envoy, namespace.into(), key.into(), *flag)
                }
                _ => return self.set_whole(namespace, key, value),
            }
        }
        Ok(())
    }

    fn append_metadata(
        &self,
        namespace: &str,
        key: &str,
        value: &MetadataValue,
    ) -> Result<(), Denied> {
        self.views.none();
        let (api, envoy) = (self.api, self.envoy);
        // SAFETY: the stream is valid (type invariant); Envoy copies all texts.
        let appended = unsafe {
            match value {
                MetadataValue::Text(text) => (api.add_metadata_list_string)(
                    envoy,
                    namespace.into(),
                    key.into(),
                    text.as_str().into(),
                ),
                MetadataValue::Number(number) => {
                    (api.add_metadata_list_number)(envoy, namespace.into(), key.into(), *number)
                }
                MetadataValue::Flag(flag) => {
                    (api.add_metadata_list_bool)(envoy, namespace.into(), key.into(), *flag)
                }
                _ => {
                    return Err(Denied::Unsupported(
                        "Envoy lets its dynamic modules append texts, numbers and booleans to a \
                         metadata list, and nothing else"
                            .into(),
                    ));
                }
            }
        };
        if appended {
            return Ok(());
        }
        Err(Denied::WrongType(
            format!("the metadata value `{key}` of `{namespace}` is there, and is no list").into(),
        ))
    }

    fn filter_state(
        &self,
        key: &str,
        form: StateForm,
        f: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Denied> {
        let get = match form {
            StateForm::Bytes => self.api.get_filter_state_bytes,
            StateForm::Typed => self.api.get_filter_state_typed,
        };
        // SAFETY: the stream is valid (type invariant), and `out` is ours and live.
        self.look(|out| unsafe { get(self.envoy, key.into(), out) }, f);
        Ok(())
    }

    fn set_filter_state(
        &self,
        key: &str,
        value: &[u8],
        form: StateForm,
        life_span: LifeSpan,
        shared: Sharing,
    ) -> Result<(), Denied> {
        self.views.none();
        let usual = life_span == LifeSpan::default() && shared == Sharing::default();
        // SAFETY: the stream is valid (type invariant); Envoy copies key and value.
        let set = unsafe {
            match form {
                StateForm::Typed => {
                    (self.api.set_filter_state_typed)(self.envoy, key.into(), value.into())
                }
                StateForm::Bytes if usual => {
                    (self.api.set_filter_state_bytes)(self.envoy, key.into(), value.into())
                }
                StateForm::Bytes => {
                    let set = self.api.set_filter_state_value.ok_or_else(|| {
                        needs_1_40("filter state with a life span or sharing of its own")
                    })?;
                    let shared = match shared {
                        Sharing::None => sharing::NONE,
                        Sharing::UpstreamConnection => sharing::UPSTREAM_CONNECTION,
                        Sharing::UpstreamConnectionOnce => sharing::UPSTREAM_CONNECTION_ONCE,
                    };
                    let life_span = life_span_of(life_span);
                    set(self.envoy, key.into(), value.into(), life_span, shared)
                }
            }
        };
        if form == StateForm::Typed {
            return set.then_some(()).ok_or_else(|| {
                Denied::Refused(
                    format!(
                        "Envoy knows no kind of object for the filter state's key `{key}`, or makes \
                         none of this text"
                    )
                    .into(),
                )
            });
        }
        // Envoy keeps what is there with another life span, and says nothing.
        let mut same = false;
        self.filter_state(key, StateForm::Bytes, &mut |now| same = now == value)?;
        (set && same).then_some(()).ok_or_else(|| {
            Denied::Refused(
                format!("the filter state has `{key}` already, with another life span").into(),
            )
        })
    }

    fn object(&self, key: &str) -> Result<Option<StateObject>, Denied> {
        Ok(self.get_object(key))
    }

    fn set_object(
        &self,
        key: &str,
        object: StateObject,
        life_span: LifeSpan,
    ) -> Result<(), Denied> {
        self.put_object(key, object, life_span)
    }

    fn extensions(&self) -> Result<Rc<Store>, Denied> {
        self.shared_store()
    }

    fn control(&self, control: Control<'_>) -> Result<(), Denied> {
        self.views.none();
        let (api, envoy) = (self.api, self.envoy);
        // SAFETY: the stream is valid (type invariant); Envoy copies all texts. Starting the stream
        // again destroys it inside the call, which the engine expects.
        unsafe {
            match control {
                Control::ClearRouteCache => (api.clear_route_cache)(envoy),
                Control::RefreshRouteCluster => (api.clear_route_cluster_cache)(envoy),
                Control::DrainConnection => (api.send_go_away_and_close)(envoy, true),
                Control::AddCustomFlag(flag) => (api.add_custom_flag)(envoy, flag.into()),
                Control::OverrideUpstreamHost { host, strict } => {
                    if !(api.set_upstream_override_host)(envoy, host.into(), strict) {
                        return Err(Denied::Refused(
                            format!("`{host}` is no address: give the host as `ip:port`").into(),
                        ));
                    }
                }
                Control::Recreate => {
                    if !(api.recreate_stream)(envoy, std::ptr::null(), 0) {
                        return Err(Denied::Refused(
                            "Envoy does not start this stream again: it has not got the whole \
                             request"
                                .into(),
                        ));
                    }
                }
                _ => return Err(Denied::here()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are Envoy's; these are where its list changes its subject.
    #[test]
    fn attributes_have_the_numbers_of_the_abi() {
        assert_eq!(Attribute::RequestPath as u32, 0);
        assert_eq!(Attribute::RequestId as u32, crate::abi::ATTRIBUTE_REQUEST_ID);
        assert_eq!(Attribute::ResponseCode as u32, 15);
        assert_eq!(Attribute::SourceAddress as u32, 24);
        assert_eq!(Attribute::ConnectionId as u32, crate::abi::ATTRIBUTE_CONNECTION_ID);
        assert_eq!(Attribute::UpstreamAddress as u32, 41);
        assert_eq!(Attribute::XdsNode as u32, 56);
        assert_eq!(Attribute::HealthCheck as u32, 67);
    }
}
