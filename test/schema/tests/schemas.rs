//! The schemas that are written down are those of the types, and the examples keep to them.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

const KIND: &str =
    "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter";

fn written(filter: &str) -> Value {
    let path = schemas::file(filter);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("a schema is JSON")
}

/// The configs of filters in an Envoy config: the filter's name, whether it is per route, the value.
fn configs(yaml: &Value, found: &mut Vec<(String, bool, Value)>) {
    match yaml {
        Value::Array(list) => list.iter().for_each(|value| configs(value, found)),
        Value::Object(fields) => {
            let kind = fields.get("@type").and_then(Value::as_str);
            let name = match kind.and_then(|kind| kind.strip_prefix(KIND)) {
                Some("") => Some(("filter_name", false)),
                Some("PerRoute") => Some(("per_route_config_name", true)),
                _ => None,
            };
            if let Some((name, per_route)) = name {
                let name = fields[name].as_str().expect("a filter's name").to_owned();
                let value =
                    fields.get("filter_config").map_or(json!({}), |any| any["value"].clone());
                found.push((name, per_route, value));
            }
            fields.values().for_each(|value| configs(value, found));
        }
        _ => (),
    }
}

fn validator(filter: &str, per_route: bool) -> jsonschema::Validator {
    let mut schema = written(filter);
    if per_route {
        schema["$ref"] = json!("#/$defs/route_config");
    }
    jsonschema::draft202012::meta::validate(&schema).expect("a schema is one of JSON Schema's");
    jsonschema::validator_for(&schema).expect("a schema")
}

#[test]
fn each_filter_has_one_and_it_is_current() {
    let mut folders: BTreeSet<String> = fs::read_dir(schemas::filters())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folder.join("envoy.yaml").exists())
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    for (filter, text) in schemas::all() {
        assert!(folders.remove(filter), "there is no filter {filter}");
        // Not as texts: the order of the fields is up to how serde_json was built.
        let current: Value = serde_json::from_str(&text).unwrap();
        let old = written(filter) != current;
        assert!(!old, "contrib/filters/{filter}/schema.json is old: `make schema`");
    }
    assert!(folders.is_empty(), "test/schema/src/lib.rs lacks {folders:?}");
}

#[test]
fn the_examples_keep_to_them() {
    for (filter, _) in schemas::all() {
        let path = schemas::filters().join(filter).join("envoy.yaml");
        let yaml: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut found = Vec::new();
        configs(&yaml, &mut found);
        let all: BTreeSet<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(all, [filter].into(), "{}", path.display());
        for (_, per_route, mut config) in found {
            let validator = validator(filter, per_route);
            let errors: Vec<_> = validator.iter_errors(&config).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{filter}: {config}: {errors:?}");
            config["nobody"] = json!(1);
            assert!(!validator.is_valid(&config), "{filter}: a field that is not there");
            config.as_object_mut().unwrap().remove("nobody");
            config["attache"] = json!({"fail_open": true});
            assert_eq!(validator.is_valid(&config), !per_route, "{filter}: the runtime's own key");
        }
    }
}

#[test]
fn a_wrong_type_is_refused_where_it_is() {
    let config = json!({"keys": [{"consumer": "alice", "sha256": "short"}]});
    let validator = validator("api-key", false);
    let places: Vec<_> =
        validator.iter_errors(&config).map(|error| error.instance_path().to_string()).collect();
    assert_eq!(places, ["/keys/0/sha256"]);
}
