//! Per-route configs: what a host keeps for each level of a route, and what they are together.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use crate::exchange::Inner;
use crate::filter::Filter;
use crate::registry::LoadedFilter;

/// A per-route config, parsed: what a host keeps for a route, a virtual host or another level.
///
/// It may be dropped on any thread. What other levels are merged into is kept with the most specific
/// of them, so it goes when that does.
#[derive(Clone)]
pub struct LoadedRoute(Arc<dyn Any + Send + Sync>);

impl LoadedRoute {
    pub(crate) fn new<R: Send + Sync + 'static>(config: R) -> Self {
        LoadedRoute(Arc::new(Level { config: Arc::new(config), merged: RwLock::default() }))
    }
}

impl fmt::Debug for LoadedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadedRoute")
    }
}

struct Level<R> {
    config: Arc<R>,
    /// What this level makes with those above it. As many as there are filters and other levels that
    /// it is used with: mostly one.
    merged: RwLock<Vec<Merged<R>>>,
}

/// What a filter has made of a combination of levels. The weak references keep their places in
/// memory from being used again, so an address is enough to tell who it was.
struct Merged<R> {
    filter: Weak<LoadedFilter>,
    above: Box<[Weak<dyn Any + Send + Sync>]>,
    /// `None` is the most specific level, as it is.
    config: Option<Arc<R>>,
}

impl<R> Merged<R> {
    fn is_of<'a>(
        &self,
        filter: &Arc<LoadedFilter>,
        above: impl Iterator<Item = &'a LoadedRoute>,
    ) -> bool {
        let known = self.above.iter().map(|level| level.as_ptr().cast::<()>());
        std::ptr::addr_eq(self.filter.as_ptr(), Arc::as_ptr(filter))
            && known.eq(above.map(|level| Arc::as_ptr(&level.0).cast::<()>()))
    }

    fn is_in_use(&self) -> bool {
        self.filter.strong_count() > 0 && self.above.iter().all(|level| level.strong_count() > 0)
    }
}

impl<R: Send + Sync + 'static> Level<R> {
    fn of(level: &LoadedRoute) -> Option<&Level<R>> {
        level.0.downcast_ref()
    }

    fn find<'a>(
        &self,
        filter: &Arc<LoadedFilter>,
        above: impl Iterator<Item = &'a LoadedRoute> + Clone,
    ) -> Option<Arc<R>> {
        let merged = self.merged.read().unwrap_or_else(PoisonError::into_inner);
        let found = merged.iter().find(|merged| merged.is_of(filter, above.clone()))?;
        Some(found.config.as_ref().unwrap_or(&self.config).clone())
    }

    /// Keeps what was made, unless another worker was faster.
    fn keep(&self, filter: &Arc<LoadedFilter>, above: &[LoadedRoute], config: Option<R>) -> Arc<R> {
        let made = Merged {
            filter: Arc::downgrade(filter),
            above: above.iter().map(|level| Arc::downgrade(&level.0)).collect(),
            config: config.map(Arc::new),
        };
        let ours = made.config.as_ref().unwrap_or(&self.config).clone();
        // Before the lock, so that it is dropped after it: that is the filter's code.
        let mut gone = Vec::new();
        let mut merged = self.merged.write().unwrap_or_else(PoisonError::into_inner);
        let mut index = 0;
        while index < merged.len() {
            match merged[index].is_in_use() {
                true => index += 1,
                false => gone.push(merged.swap_remove(index)),
            }
        }
        if let Some(theirs) = merged.iter().find(|theirs| theirs.is_of(filter, above.iter())) {
            return theirs.config.as_ref().unwrap_or(&self.config).clone();
        }
        merged.push(made);
        drop(merged);
        ours
    }
}

/// What holds for a filter of type `F` on the exchange's route.
pub(crate) fn route_config<F: Filter>(exchange: &Inner) -> Option<Arc<F::RouteConfig>> {
    let filter = exchange.filter_handle();
    let typed = filter.filter_of::<F>()?;
    let mut found = None;
    let mut levels = Vec::new();
    exchange.read(|host| {
        host.route_configs(&mut |all| {
            // One of another type was loaded under the name of another filter.
            let mut above =
                all.iter().copied().filter(|level| Level::<F::RouteConfig>::of(level).is_some());
            let Some(specific) = above.next_back() else { return };
            found = Level::of(specific).and_then(|level| level.find(filter, above.clone()));
            if found.is_none() {
                levels.extend(above.chain([specific]).cloned());
            }
        });
    })?;
    if found.is_some() {
        return found;
    }
    // Nothing of the host's is borrowed while the filter's code runs.
    let (specific, above) = levels.split_last()?;
    let configs: Vec<&F::RouteConfig> =
        levels.iter().filter_map(Level::of).map(|level| &*level.config).collect();
    let merged = typed.merge_route(&configs);
    Level::of(specific).map(|level| level.keep(filter, above, merged))
}
