//! The JSON Schema of the config of each filter in `contrib/filters`. `make schema` writes them beside
//! the filters; the tests check that they are current, and that the examples keep to them.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use attache::schema::of;

/// Each filter by its name, and the text of its schema.
pub fn all() -> Vec<(&'static str, String)> {
    [
        ("api-key", of::<api_key::ApiKey>("api-key")),
        ("echo", of::<echo::Echo>("echo")),
        ("ext-authz", of::<ext_authz::ExtAuthz>("ext-authz")),
        ("hello", of::<hello::Hello>("hello")),
        ("jwt", of::<jwt::Jwt>("jwt")),
        ("redact", of::<redact::Redact>("redact")),
    ]
    .into_iter()
    .map(|(name, schema)| {
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
        (name, text + "\n")
    })
    .collect()
}

/// The folder of the filters.
pub fn filters() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/filters")
}

/// Where a filter's schema is.
pub fn file(filter: &str) -> PathBuf {
    filters().join(filter).join("schema.json")
}
