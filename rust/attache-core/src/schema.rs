//! JSON Schema of a filter's config, from its types.

use std::collections::BTreeSet;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};

use crate::filter::Filter;
use crate::registry::Options;

/// The JSON Schema (2020-12) of what a filter can be configured with, under `name` in `filters!`.
///
/// The schema itself is that of the filter's config, with the runtime's own key `attache` beside the
/// filter's fields; `#/$defs/route_config` is that of its per-route config. As Attaché does when it
/// loads a config, it refuses fields that are not there. The texts are the types' documentation.
///
/// It says no more than the types do: that a value is a header's name, say, is what `Filter::new`
/// checks.
///
/// ```
/// # use attache_core::{ConfigError, Filter, Next, Request, Response, Result, Setup};
/// use schemars::JsonSchema;
/// use serde::Deserialize;
///
/// /// Which header is set.
/// #[derive(Deserialize, JsonSchema)]
/// struct Config {
///     /// Its name.
///     header: String,
/// }
/// # struct Sets;
/// # impl Filter for Sets { type Config = Config; type RouteConfig = ();
/// # fn new(_: Config, _: &mut Setup) -> Result<Self, ConfigError> { Ok(Sets) }
/// # async fn handle(&self, req: Request, next: Next) -> Result<Response> { next.run(req).await } }
///
/// let schema = attache_core::schema::of::<Sets>("sets");
/// let config = &schema.as_value()["$defs"]["config"];
/// assert_eq!(config["required"][0], "header");
/// assert_eq!(config["properties"]["header"]["description"], "Its name.");
/// ```
pub fn of<F>(name: &str) -> Schema
where
    F: Filter,
    F::Config: JsonSchema,
    F::RouteConfig: JsonSchema,
{
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut config = fields_of::<F::Config>(&mut generator);
    let options = generator.subschema_for::<Options>();
    if let Some(Value::Object(fields)) = config.get_mut("properties") {
        fields.insert("attache".to_owned(), options.to_value());
    }
    let route_config = fields_of::<F::RouteConfig>(&mut generator);
    let mut definitions = generator.take_definitions(true);
    definitions.insert("config".to_owned(), config);
    definitions.insert("route_config".to_owned(), route_config);
    close(&mut definitions);
    json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "$ref": "#/$defs/config",
        "$defs": definitions,
    })
}

/// The schema of a whole config, which is always an object.
fn fields_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    let mut schema = T::json_schema(generator).to_value();
    // No config at all: `()`, or a unit struct.
    if schema["type"] == "null" {
        schema = json!({"type": "object"});
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.entry("properties").or_insert_with(|| json!({}));
    }
    schema
}

/// Refuses the fields that an object does not name. One that is put together from several schemas
/// refuses what none of them names; each of its parts must then let those of the others pass.
fn close(definitions: &mut Map<String, Value>) {
    let mut parts = BTreeSet::new();
    for schema in definitions.values_mut() {
        walk(schema, false, &mut |fields, part| {
            if let Some(Value::String(of)) = fields.get("$ref")
                && (part || fields.contains_key("properties"))
            {
                parts.insert(of.trim_start_matches(DEFINITIONS).to_owned());
            }
        });
    }
    for (name, schema) in definitions {
        walk(schema, parts.contains(name), &mut |fields, part| {
            if part {
                if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
                    fields.remove("additionalProperties");
                }
            } else if fields.contains_key("properties")
                && !fields.contains_key("additionalProperties")
            {
                let whole = !fields.contains_key("$ref")
                    && PARTS.iter().all(|parts| !fields.contains_key(*parts));
                let key = if whole { "additionalProperties" } else { "unevaluatedProperties" };
                fields.insert(key.to_owned(), Value::Bool(false));
            }
        });
    }
}

const DEFINITIONS: &str = "#/$defs/";

/// Where an object's schema has others that it is put together from.
const PARTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// Shows a schema, and all in it; and whether it is a part of another's object.
fn walk(schema: &mut Value, part: bool, see: &mut dyn FnMut(&mut Map<String, Value>, bool)) {
    let Some(fields) = schema.as_object_mut() else { return };
    see(fields, part);
    let of_parts = part || fields.contains_key("properties");
    for (key, value) in fields {
        match (key.as_str(), value) {
            (key, Value::Array(list)) if PARTS.contains(&key) => {
                list.iter_mut().for_each(|schema| walk(schema, of_parts, see));
            }
            ("prefixItems", Value::Array(list)) => {
                list.iter_mut().for_each(|schema| walk(schema, false, see));
            }
            ("properties" | "patternProperties", Value::Object(named)) => {
                named.values_mut().for_each(|schema| walk(schema, false, see));
            }
            ("items" | "additionalProperties", schema) => walk(schema, false, see),
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::registry::{Defaults, parse, typed};
    use crate::{ConfigError, Next, Request, Response, Result, Setup};

    /// With this config, and none per route.
    struct With<C>(std::marker::PhantomData<fn(C)>);

    impl<C: serde::de::DeserializeOwned + 'static> Filter for With<C> {
        type Config = C;
        type RouteConfig = ();

        fn new(_: C, _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(With(std::marker::PhantomData))
        }

        async fn handle(&self, request: Request, next: Next) -> Result<Response> {
            next.run(request).await
        }
    }

    /// Whether the schema, and the loader, take a config.
    fn takes<C: serde::de::DeserializeOwned + JsonSchema + 'static>(config: &Value) -> bool {
        let schema = of::<With<C>>("test").to_value();
        let by_schema = jsonschema::validator_for(&schema).unwrap().is_valid(config);
        let by_loader = parse(config.to_string().as_bytes(), Defaults::default())
            .and_then(|(config, _)| typed::<C>(config))
            .is_ok();
        assert_eq!(by_schema, by_loader, "{config} by {schema:#}");
        by_schema
    }

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Plain {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
        map: Option<BTreeMap<String, Inner>>,
    }

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Inner {
        number: u32,
    }

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Flat {
        name: String,
        #[serde(flatten)]
        inner: Inner,
        #[serde(flatten)]
        choice: Choice,
    }

    #[derive(Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[allow(dead_code)]
    enum Choice {
        One { a: u32 },
        Two(Inner),
        Three,
    }

    #[derive(Deserialize, JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    #[allow(dead_code)]
    enum Tagged {
        One { a: u32 },
        Two(Inner),
    }

    #[test]
    fn fields_that_are_not_there_are_refused_at_every_depth() {
        assert!(takes::<Plain>(&json!({"name": "a"})));
        assert!(takes::<Plain>(&json!({"name": "a", "inner": [{"number": 1}]})));
        assert!(takes::<Plain>(&json!({"name": "a", "map": {"any": {"number": 1}}})));
        assert!(!takes::<Plain>(&json!({"name": "a", "nmae": "b"})));
        assert!(!takes::<Plain>(&json!({"name": "a", "inner": [{"number": 1, "x": 2}]})));
        assert!(!takes::<Plain>(&json!({"name": "a", "map": {"any": {"number": 1, "x": 2}}})));
        assert!(!takes::<Plain>(&json!({"name": 1})));
        assert!(!takes::<Plain>(&json!({})));
    }

    #[test]
    fn the_runtime_s_key_is_part_of_it() {
        let options = json!({"fail_open": true, "slow_poll_ms": 0.5, "stats": {"poll_time": true}});
        assert!(takes::<Plain>(&json!({"name": "a", "attache": options})));
        assert!(!takes::<Plain>(&json!({"name": "a", "attache": {"fail_opne": true}})));
        assert!(takes::<Choice>(&json!({"one": {"a": 1}, "attache": {"fail_open": true}})));
        assert!(takes::<()>(&json!({"attache": {}})));
    }

    #[test]
    fn no_config_is_an_empty_object() {
        assert!(takes::<()>(&json!({})));
        assert!(!takes::<()>(&json!({"a": 1})));
    }

    #[test]
    fn configs_may_be_flattened_and_tagged() {
        assert!(takes::<Flat>(&json!({"name": "a", "number": 1, "one": {"a": 1}})));
        assert!(!takes::<Flat>(&json!({"name": "a", "number": 1})));
        assert!(!takes::<Choice>(&json!({"one": {"a": 1, "b": 2}})));
        assert!(takes::<Tagged>(&json!({"kind": "one", "a": 1})));
        assert!(takes::<Tagged>(&json!({"kind": "two", "number": 1})));
        assert!(!takes::<Tagged>(&json!({"kind": "three"})));
        assert!(!takes::<Tagged>(&json!({"kind": "two"})));
    }
}
