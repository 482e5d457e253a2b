//! The metrics of a filter under test, kept in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use attache_core::{
    FirstLook, MetricId, MetricKind, MetricOp, MetricSink, RuntimeFlags, SecretError,
    SecretUpdates, SharedCalls,
};

use crate::cluster::TestCalls;
use crate::in_envoy::InEnvoy;

/// What a filter has defined and recorded. Shared by clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(Arc<Mutex<Store>>);

#[derive(Debug, Default)]
struct Store {
    defined: Vec<(MetricKind, String, usize)>,
    values: HashMap<(usize, Vec<String>), Vec<u64>>,
}

impl Metrics {
    fn with<R>(&self, f: impl FnOnce(&mut Store) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The values of a metric: one of a counter or gauge, all of a histogram.
    pub(crate) fn values(&self, kind: MetricKind, name: &str, labels: &[&str]) -> Vec<u64> {
        self.with(|store| {
            let id = store.defined.iter().position(|(k, n, _)| *k == kind && n == name);
            let Some(id) = id else {
                panic!("the filter has defined no {kind:?} `{name}`; it has {:?}", store.defined)
            };
            let labels: Vec<String> = labels.iter().map(|&l| l.to_owned()).collect();
            assert_eq!(
                labels.len(),
                store.defined[id].2,
                "`{name}` has {} labels",
                store.defined[id].2
            );
            store.values.get(&(id, labels)).cloned().unwrap_or_default()
        })
    }
}

/// What a filter is offered while it is made.
pub(crate) struct TestConfig {
    pub(crate) metrics: Metrics,
    pub(crate) calls: Arc<TestCalls>,
    pub(crate) envoy: InEnvoy,
}

impl attache_core::ConfigHost for TestConfig {
    fn define(
        &mut self,
        kind: MetricKind,
        name: &str,
        labels: &[&str],
    ) -> Result<MetricId, String> {
        self.metrics.with(|store| {
            if store.defined.iter().any(|(_, n, _)| n == name) {
                return Err("it is already defined".to_owned());
            }
            store.defined.push((kind, name.to_owned(), labels.len()));
            Ok(MetricId { kind, id: store.defined.len() - 1 })
        })
    }

    fn sink(&self) -> Arc<dyn MetricSink> {
        Arc::new(self.metrics.clone())
    }

    fn calls(&self) -> Option<Arc<dyn SharedCalls>> {
        Some(self.calls.clone())
    }

    fn watch_secret(
        &mut self,
        name: &str,
        sds_config: Option<&str>,
        updates: SecretUpdates,
    ) -> Result<Option<FirstLook>, SecretError> {
        // A static one is there from the start.
        self.envoy.secrets.watch(name, sds_config.is_none().then_some(name), updates);
        Ok(None)
    }

    fn runtime_flags(&self) -> Option<Arc<dyn RuntimeFlags>> {
        Some(Arc::new(self.envoy.flags.clone()))
    }

    fn wants_stats(&self) -> bool {
        false
    }
}

impl MetricSink for Metrics {
    fn update(&self, metric: MetricId, op: MetricOp, value: u64, labels: &[&str]) {
        let labels = labels.iter().map(|&l| l.to_owned()).collect();
        self.with(|store| {
            let values = store.values.entry((metric.id, labels)).or_default();
            match op {
                MetricOp::Record => values.push(value),
                _ => {
                    let before = values.pop().unwrap_or(0);
                    values.push(match op {
                        MetricOp::Add => before.wrapping_add(value),
                        MetricOp::Sub => before.wrapping_sub(value),
                        MetricOp::Set | MetricOp::Record => value,
                    });
                }
            }
        });
    }
}
