//! Stock Envoy host.

/// Exports the entry point of a dynamic module.
#[macro_export]
macro_rules! export_module {
    ($registry:path) => {};
}
