//! Secrets: where they may come from, how a new value arrives, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attache_core::registry::Registry;
use attache_core::{
    ConfigError, ConfigHost, Filter, FirstLook, MetricId, MetricKind, MetricOp, MetricSink, Next,
    Request, Response, Result, Secret, SecretError, SecretSource, SecretUpdates, Setup,
};
use attache_test::{TestHost, TestRequest};
use http::StatusCode;
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    key: SecretSource,
}

/// Tells its secret to everybody.
struct Indiscreet(Secret);

impl Filter for Indiscreet {
    type Config = Config;
    type RouteConfig = ();

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let secret = setup.secret(&config.key).map_err(|error| ConfigError::field("key", error))?;
        let (mut watched, changes) = (secret.clone(), setup.counter("changes")?);
        setup.spawn(async move {
            while watched.changed().await {
                changes.inc();
            }
        });
        Ok(Indiscreet(secret))
    }

    async fn handle(&self, _: Request, _: Next) -> Result<Response> {
        Ok(Response::new(StatusCode::OK).with_body(self.0.get()))
    }
}

/// A directory of a test's own.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("attache-secret-{}-{}", name.0, name.1));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn host(key: &str) -> Result<TestHost, String> {
    TestHost::try_new::<Indiscreet>(&format!(r#"{{"key": {key}}}"#))
}

fn filename(path: &Path) -> String {
    format!(r#"{{"filename": {path:?}}}"#)
}

fn sds_file(path: &Path, name: &str) -> String {
    format!(r#"{{"sds_file": {{"path": {path:?}, "name": {name:?}}}}}"#)
}

fn error(key: &str) -> String {
    let error = host(key).unwrap_err();
    let (start, rest) = error.split_once("field `key`: ").unwrap_or_else(|| panic!("{error}"));
    assert_eq!(start, "filter `test`: config refused: ");
    rest.to_owned()
}

fn told(host: &TestHost) -> String {
    host.request(TestRequest::get("/")).run().text()
}

/// Lets the file be looked at, and what follows from it happen.
fn later(host: &TestHost) -> String {
    host.advance(Duration::from_millis(1001));
    told(host);
    told(host)
}

/// Puts a file in the place of another, as those do who rotate secrets.
fn rotate(path: &Path, value: &str) {
    let new = path.with_extension("new");
    fs::write(&new, value).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn a_file_is_watched_and_its_last_good_value_stays() {
    let directory = Directory::new();
    let path = directory.file("key");
    fs::write(&path, "first\n").unwrap();
    let host = host(&filename(&path)).unwrap();
    assert_eq!(told(&host), "first");
    rotate(&path, "second");
    assert_eq!(later(&host), "second");
    fs::write(&path, "third, written in place").unwrap();
    assert_eq!(later(&host), "third, written in place");
    assert_eq!(host.counter("changes"), 2);

    fs::remove_file(&path).unwrap();
    assert_eq!(later(&host), "third, written in place");
    fs::write(&path, "").unwrap();
    assert_eq!(later(&host), "third, written in place");
    // The same again is no change.
    rotate(&path, "third, written in place");
    assert_eq!(later(&host), "third, written in place");
    assert_eq!(host.counter("changes"), 2);
    rotate(&path, "fourth");
    assert_eq!(later(&host), "fourth");
    assert_eq!(host.counter("changes"), 3);
}

#[test]
fn a_link_that_leads_elsewhere_is_a_change() {
    let directory = Directory::new();
    let [old, new, link] = ["old", "new", "link"].map(|name| directory.file(name));
    fs::write(&old, "old").unwrap();
    fs::write(&new, "new").unwrap();
    std::os::unix::fs::symlink(&old, &link).unwrap();
    let host = host(&filename(&link)).unwrap();
    assert_eq!(told(&host), "old");
    let other = directory.file("other");
    std::os::unix::fs::symlink(&new, &other).unwrap();
    fs::rename(other, &link).unwrap();
    assert_eq!(later(&host), "new");
}

/// A file of secrets, in which others come first.
fn sds(source: &str) -> String {
    let resource = |name: &str, kind: &str, source: &str| {
        let secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        format!(r#"{{"@type": "{secret}", "name": "{name}", "{kind}": {{"secret": {source}}}}}"#)
    };
    let other = r#"{"inline_string": "other"}"#;
    let resources = [
        resource("key", "tls_certificate", other),
        resource("other", "generic_secret", other),
        resource("key", "generic_secret", source),
    ];
    format!(r#"{{"version_info": "1", "resources": [{}]}}"#, resources.join(", "))
}

#[test]
fn a_file_of_envoy_s_secrets_is_read_and_watched() {
    let directory = Directory::new();
    let [path, elsewhere] = ["sds.json", "key"].map(|name| directory.file(name));
    fs::write(&path, sds(r#"{"inline_string": "inline"}"#)).unwrap();
    let host = host(&sds_file(&path, "key")).unwrap();
    assert_eq!(told(&host), "inline");
    fs::write(&elsewhere, "elsewhere\n").unwrap();
    rotate(&path, &sds(&filename(&elsewhere)));
    assert_eq!(later(&host), "elsewhere");
    rotate(&path, &sds(r#"{"inline_bytes": "Ynl0ZXM="}"#));
    assert_eq!(later(&host), "bytes");
    rotate(&path, &sds(&filename(&elsewhere)));
    assert_eq!(later(&host), "elsewhere");
    // One that cannot be used.
    rotate(&path, "{");
    assert_eq!(later(&host), "elsewhere");
}

#[test]
fn other_sources_are_read_once() {
    assert_eq!(told(&host(r#"{"inline_string": "plain"}"#).unwrap()), "plain");
    // Cargo sets it for tests.
    let package = host(r#"{"environment_variable": "CARGO_PKG_NAME"}"#).unwrap();
    assert_eq!(told(&package), "attache-test");
}

#[test]
fn what_is_missing_or_wrong_is_refused_and_named() {
    let directory = Directory::new();
    let path = directory.file("key");
    let shown = path.display();
    let file = || error(&filename(&path));
    let named = |name: &str| error(&sds_file(&path, name));

    let missing = format!("the secret is missing: {shown}: No such file or directory (os error 2)");
    assert_eq!(file(), missing);
    assert_eq!(named("key"), missing);
    assert_eq!(
        error(r#"{"environment_variable": "ATTACHE_TEST_NOT_SET"}"#),
        "the secret is missing: $ATTACHE_TEST_NOT_SET: environment variable not found"
    );
    fs::write(&path, "\n").unwrap();
    assert_eq!(file(), format!("the secret is empty: {shown}"));
    fs::write(&path, sds(r#"{"inline_bytes": "!"}"#)).unwrap();
    assert_eq!(
        named("key"),
        format!(
            "{shown} is no file of secrets: the `inline_bytes` of the secret `key` are not base64"
        )
    );
    fs::write(&path, sds("{}")).unwrap();
    assert_eq!(named("none"), format!("{shown} has no generic secret `none`"));
    assert_eq!(
        named("key"),
        format!(
            "{shown} is no file of secrets: the secret `key` has none of `inline_string`, \
             `inline_bytes`, `filename` or `environment_variable`"
        )
    );
    fs::write(&path, "resources:\n- name: key\n").unwrap();
    let yaml = named("key");
    assert!(
        yaml.starts_with(&format!("{shown} is no file of secrets: it is not JSON (")),
        "{yaml}"
    );
    assert!(yaml.contains("YAML is not read here: write it as JSON"), "{yaml}");
    fs::write(&path, "[]").unwrap();
    assert_eq!(named("key"), format!("{shown} is no file of secrets: it has no list `resources`"));
    assert!(error(r#"{"flename": "key"}"#).contains("unknown variant `flename`"));
    let unnamed = host(r#"{"sds_file": {"path": "/key"}}"#).unwrap_err();
    assert!(unnamed.ends_with("field `key.sds_file`: missing field `name`"), "{unnamed}");
}

#[test]
fn errors_have_types_and_nothing_shows_a_secret() {
    struct Typed;
    impl Filter for Typed {
        type Config = Config;
        type RouteConfig = ();
        fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
            assert!(!format!("{:?}", config.key).contains("hidden"));
            match setup.secret(&config.key) {
                Ok(secret) => assert_eq!(format!("{secret:?}"), "Secret(..)"),
                Err(error) => assert!(matches!(error, SecretError::Missing { .. })),
            }
            Ok(Typed)
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            next.run(req).await
        }
    }
    TestHost::new::<Typed>(r#"{"key": {"inline_string": "hidden"}}"#);
    TestHost::new::<Typed>(r#"{"key": {"environment_variable": "ATTACHE_TEST_NOT_SET"}}"#);
    TestHost::new::<Typed>(
        r#"{"key": {"sds_secret_config": {"name": "key", "sds_config": {"x": "hidden"}}}}"#,
    );
}

/// As little as a host can be.
struct Bare;

impl MetricSink for Bare {
    fn update(&self, _: MetricId, _: MetricOp, _: u64, _: &[&str]) {}
}

impl ConfigHost for Bare {
    fn define(&mut self, kind: MetricKind, _: &str, _: &[&str]) -> Result<MetricId, String> {
        Ok(MetricId { kind, id: 0 })
    }
    fn sink(&self) -> Arc<dyn MetricSink> {
        Arc::new(Bare)
    }
}

#[test]
fn a_host_without_envoy_s_secrets_and_flags_says_so() {
    struct Flagged;
    impl Filter for Flagged {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
            setup.runtime()?;
            Ok(Flagged)
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            next.run(req).await
        }
    }
    let registry = Registry::new().with::<Indiscreet>("keyed").with::<Flagged>("flagged");
    let refusal = |name: &str, config: &str| {
        registry.load(name, config.as_bytes(), Box::new(Bare)).err().unwrap_or_default()
    };
    let sds = "filters cannot get secrets of Envoy's secret discovery; have it in a file";
    let discovered = r#"{"key": {"sds_secret_config": {"name": "key", "sds_config": {}}}}"#;
    for config in [r#"{"key": {"sds": "key"}}"#, discovered] {
        assert!(refusal("keyed", config).contains(sds), "{}", refusal("keyed", config));
    }
    let flags = refusal("flagged", "");
    assert!(flags.contains("filters cannot see Envoy's runtime flags in this host"), "{flags}");
}

#[test]
fn a_secret_of_envoy_s_comes_when_envoy_has_it_and_changes_at_once() {
    let static_one = host(r#"{"sds": "key"}"#).unwrap();
    assert_eq!(told(&static_one), "key");
    let config = r#"{"sds_secret_config": {"name": "key", "sds_config": {"ads": {}}}}"#;
    let host = host(config).unwrap();
    assert_eq!(told(&host), "", "not yet");
    for value in ["first", "second"] {
        host.set_secret("key", value);
        assert_eq!(told(&host), value);
    }
    // One that cannot be used.
    host.set_secret("key", "");
    assert_eq!(told(&host), "second");
}

#[test]
fn a_host_may_be_asked_for_a_first_value_and_only_for_that() {
    static UPDATES: Mutex<Option<Arc<SecretUpdates>>> = Mutex::new(None);
    static SECRET: Mutex<Option<Secret>> = Mutex::new(None);
    static LOOKS: AtomicUsize = AtomicUsize::new(0);
    /// A host that is not told of changes. What its looks find is "0", "1" and so on, but "0" is not there.
    struct Looking(Bare);
    impl ConfigHost for Looking {
        fn define(&mut self, kind: MetricKind, n: &str, l: &[&str]) -> Result<MetricId, String> {
            self.0.define(kind, n, l)
        }
        fn sink(&self) -> Arc<dyn MetricSink> {
            self.0.sink()
        }
        fn watch_secret(
            &mut self,
            _: &str,
            _: Option<&str>,
            updates: SecretUpdates,
        ) -> Result<Option<FirstLook>, SecretError> {
            let updates = Arc::new(updates);
            *UPDATES.lock().unwrap() = Some(updates.clone());
            Ok(Some(Arc::new(move || match LOOKS.fetch_add(1, Ordering::Relaxed) {
                0 => updates.first(b""),
                look => updates.first(look.to_string().as_bytes()),
            })))
        }
    }
    struct Keyed;
    impl Filter for Keyed {
        type Config = SecretSource;
        type RouteConfig = ();
        fn new(key: SecretSource, setup: &mut Setup) -> Result<Self, ConfigError> {
            *SECRET.lock().unwrap() = Some(setup.secret(&key)?);
            Ok(Keyed)
        }
        async fn handle(&self, req: Request, next: Next) -> Result<Response> {
            next.run(req).await
        }
    }
    let config = br#"{"sds_secret_config": {"name": "key", "sds_config": {}}}"#;
    let registry = Registry::new().with::<Keyed>("keyed");
    registry.load("keyed", config, Box::new(Looking(Bare))).unwrap();
    let secret = SECRET.lock().unwrap().take().unwrap();
    let updates = UPDATES.lock().unwrap().take().unwrap();
    assert_eq!(secret.try_get(), Err(SecretError::Pending { name: "key".into() }));
    assert_eq!(secret.get(), "1");
    assert_eq!(secret.try_get().unwrap(), "1");
    updates.set(b"told");
    updates.first(b"an old one");
    assert_eq!(secret.get(), "told");
    assert_eq!(LOOKS.load(Ordering::Relaxed), 2);
}

#[test]
fn runtime_flags_are_seen_from_an_exchange_until_it_ends() {
    /// The stream of an exchange that is over.
    static ENDED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    thread_local!(static STREAM: std::cell::RefCell<Option<attache_core::Stream>> = const {
        std::cell::RefCell::new(None)
    });
    struct Late;
    impl Filter for Late {
        type Config = ();
        type RouteConfig = ();
        fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Late)
        }
        async fn handle(&self, req: Request, _: Next) -> attache_core::Result<Response> {
            let stream = req.stream();
            let text = stream.runtime()?.string("flag")?.unwrap_or_default();
            STREAM.set(Some(stream));
            Ok(Response::text(StatusCode::OK, text))
        }
        fn on_complete(&self, done: &attache_core::Completion) {
            let flag = done.stream().runtime().map(|runtime| runtime.string("flag"));
            ENDED.lock().unwrap().push(format!("{flag:?}"));
        }
    }
    let host = TestHost::new::<Late>("");
    let got = || host.request(TestRequest::get("/")).run().text();
    assert_eq!(got(), "");
    host.set_runtime("flag", "on");
    assert_eq!(got(), "on");
    assert_eq!(*ENDED.lock().unwrap(), ["Ok(Ok(None))", r#"Ok(Ok(Some("on")))"#]);
    let stream = STREAM.take().unwrap();
    assert_eq!(stream.runtime().unwrap_err().kind(), attache_core::ErrorKind::Gone);
}
