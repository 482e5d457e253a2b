//! Secrets of a filter: where they come from, and how a new value arrives.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::filter::ConfigHost;
use crate::looking::LOOK;
use crate::runtime::{Tied, spawn_blocking};

/// Where a secret comes from, as a field of a filter's config. The names are those of Envoy's
/// `DataSource`, and what is after them is ours:
///
/// ```yaml
/// key: {filename: /run/secrets/key}           # watched for changes
/// key: {sds_file: {path: /etc/envoy/sds.json, name: key}}   # the same, as Envoy has secrets in files
/// key: {environment_variable: KEY}
/// key: {inline_string: "only for tests"}
/// key: {sds: key}                             # a static secret of Envoy's bootstrap
/// key: {sds_secret_config: {name: key, sds_config: {path_config_source: {path: /etc/envoy/sds.yaml}}}}
/// ```
///
/// The last two are Envoy's own. Stock Envoy has them for filters since 1.40; before, they are refused
/// with [`SecretError::Unsupported`].
///
/// [`Setup::secret`](crate::Setup::secret) makes a [`Secret`] of it.
#[derive(Clone, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum SecretSource {
    /// The contents of a file, without a newline at its end.
    Filename(PathBuf),
    /// A secret in a file of the form that Envoy reads its own from: a `DiscoveryResponse` as JSON,
    /// with a `generic_secret` of this name.
    SdsFile {
        /// The file.
        path: PathBuf,
        /// The secret's name in it.
        name: String,
    },
    /// An environment variable of Envoy's process. It never changes.
    EnvironmentVariable(String),
    /// The secret itself.
    InlineString(String),
    /// A generic secret among the static secrets of Envoy's bootstrap, by its name.
    Sds(String),
    /// A generic secret that Envoy gets by its secret discovery service: the message of the same name.
    SdsSecretConfig {
        /// The secret's name.
        name: String,
        /// Where Envoy gets it: a `ConfigSource` as JSON.
        sds_config: Value,
    },
}

/// Shows where the secret is, not the secret.
impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::Filename(path) => f.debug_tuple("Filename").field(path).finish(),
            SecretSource::SdsFile { path, name } => {
                f.debug_struct("SdsFile").field("path", path).field("name", name).finish()
            }
            SecretSource::EnvironmentVariable(name) => {
                f.debug_tuple("EnvironmentVariable").field(name).finish()
            }
            SecretSource::InlineString(_) => f.write_str("InlineString(..)"),
            SecretSource::Sds(name) => f.debug_tuple("Sds").field(name).finish(),
            SecretSource::SdsSecretConfig { name, .. } => {
                f.debug_struct("SdsSecretConfig").field("name", name).finish_non_exhaustive()
            }
        }
    }
}

/// Why there is no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read, or the variable is not set.
    Missing {
        /// What is missing.
        what: String,
        /// Why, if the system says.
        why: String,
    },
    /// The file has no secret of this name.
    NotInFile {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The file is not of the form that it should have.
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is empty.
    Empty {
        /// Where it came from.
        what: String,
    },
    /// Envoy refuses it: there is no such secret, or its `sds_config` is wrong.
    Refused {
        /// The secret's name.
        name: String,
        /// What Envoy says.
        why: String,
    },
    /// Envoy has not got it yet.
    Pending {
        /// The secret's name.
        name: String,
    },
    /// This host has no way to it.
    Unsupported {
        /// What would do instead.
        instead: &'static str,
    },
}

impl SecretError {
    /// What a host answers that has no way to Envoy's own secrets.
    pub const UNSUPPORTED: SecretError = SecretError::Unsupported {
        instead: "have it in a file, which Envoy's own resources can name too (`sds_file`), or use Envoy 1.40",
    };
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretError::Missing { what, why } => write!(f, "the secret is missing: {what}: {why}"),
            SecretError::NotInFile { path, name } => {
                write!(f, "{} has no generic secret `{name}`", path.display())
            }
            SecretError::Malformed { path, why } => {
                write!(f, "{} is no file of secrets: {why}", path.display())
            }
            SecretError::Empty { what } => write!(f, "the secret is empty: {what}"),
            SecretError::Refused { name, why } => write!(f, "the secret `{name}`: {why}"),
            SecretError::Pending { name } => write!(f, "Envoy has not got the secret `{name}` yet"),
            SecretError::Unsupported { instead } => {
                write!(f, "filters cannot get secrets of Envoy's secret discovery; {instead}")
            }
        }
    }
}

impl std::error::Error for SecretError {}

/// A secret whose value may change while the filter runs. Made by
/// [`Setup::secret`](crate::Setup::secret); cheap to clone, and usable from any thread.
///
/// ```
/// use attache_core::{ConfigError, Secret, SecretSource, Setup};
///
/// fn keys(source: &SecretSource, setup: &mut Setup) -> Result<Secret, ConfigError> {
///     let secret = setup.secret(source)?;
///     let mut watched = secret.clone();
///     // For what is derived from the secret.
///     setup.spawn(async move {
///         while watched.changed().await {
///             tracing::info!(bytes = watched.get().len(), "there is a new key");
///         }
///     });
///     // For each use: `secret.get()`.
///     Ok(secret)
/// }
/// ```
#[derive(Clone)]
pub struct Secret {
    value: watch::Receiver<Option<Bytes>>,
    /// Of a secret that may not be there yet.
    name: Option<Arc<str>>,
    first_look: Option<FirstLook>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The present value.
    ///
    /// Only one of [`SecretSource::SdsSecretConfig`] can have none yet, and is empty then; see
    /// [`try_get`](Secret::try_get).
    pub fn get(&self) -> Bytes {
        self.current().unwrap_or_default()
    }

    /// The present value, which is never empty.
    ///
    /// # Errors
    /// [`SecretError::Pending`]: Envoy has not got it yet. Envoy waits for a secret before it serves
    /// with the filter, but no longer than the `initial_fetch_timeout` of its `sds_config`.
    pub fn try_get(&self) -> Result<Bytes, SecretError> {
        let pending =
            || SecretError::Pending { name: self.name.as_deref().unwrap_or_default().to_owned() };
        self.current().ok_or_else(pending)
    }

    fn current(&self) -> Option<Bytes> {
        let value = || self.value.borrow().clone();
        value().or_else(|| {
            self.first_look.as_ref()?();
            value()
        })
    }

    /// Waits until there is another value than this handle has waited for before: `true`. `false` if
    /// there can be none any more: the source never changes, or the config has gone.
    ///
    /// Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.value.changed().await.is_ok()
    }
}

/// Has a host look whether Envoy has a first value of a secret by now, if this is a thread of Envoy's: it
/// is called whenever one is asked for and has not been told ([`SecretUpdates::first`]). For hosts that are
/// not told of changes themselves, so that no exchange lacks a secret that Envoy has.
pub type FirstLook = Arc<dyn Fn() + Send + Sync>;

/// Where a host tells of the values of a secret that Envoy has. Dropping it says that there will be no
/// more.
pub struct SecretUpdates {
    filter: String,
    name: String,
    sender: watch::Sender<Option<Bytes>>,
}

impl fmt::Debug for SecretUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretUpdates({})", self.name)
    }
}

impl SecretUpdates {
    /// There is a value. If it is empty, the last one stays, and that is logged.
    pub fn set(&self, value: &[u8]) {
        if value.is_empty() {
            return self.failed("it is empty");
        }
        put(&self.sender, Bytes::copy_from_slice(value));
    }

    /// A value has been seen where it may be an old one by now: it counts if there was none so far. An
    /// empty one is none.
    pub fn first(&self, value: &[u8]) {
        let put = |now: &mut Option<Bytes>| {
            let first = now.is_none() && !value.is_empty();
            if first {
                *now = Some(Bytes::copy_from_slice(value));
            }
            first
        };
        self.sender.send_if_modified(put);
    }

    /// There was to be a value, and there is none. The last one stays, and that is logged.
    pub fn failed(&self, why: &str) {
        let (filter, name) = (&self.filter, &self.name);
        tracing::warn!("filter `{filter}`: the secret `{name}`: {why}; the last value stays");
    }
}

/// Only another value is a change.
fn put(to: &watch::Sender<Option<Bytes>>, value: Bytes) {
    to.send_if_modified(|old| old.replace(value.clone()).is_none_or(|old| old != value));
}

/// A secret of Envoy's own, whose values the host tells.
pub(crate) fn watch_in_envoy(
    filter: &str,
    name: &str,
    sds_config: Option<&Value>,
    host: &mut dyn ConfigHost,
) -> Result<Secret, SecretError> {
    let (sender, mut value) = watch::channel(None);
    let updates = SecretUpdates { filter: filter.to_owned(), name: name.to_owned(), sender };
    let sds_config = sds_config.map(Value::to_string);
    let first_look = host.watch_secret(name, sds_config.as_deref(), updates)?;
    value.mark_unchanged();
    if sds_config.is_none() && value.borrow().is_none() {
        // It was there at once, and was of no use: the reason has been logged.
        return Err(SecretError::Empty { what: format!("`{name}`") });
    }
    Ok(Secret { value, name: Some(name.into()), first_look })
}

/// Reads a secret, and keeps it up to date for as long as the task lives.
pub(crate) fn open(
    filter: &str,
    source: &SecretSource,
) -> Result<(Secret, Option<Tied>), SecretError> {
    let path = match source {
        SecretSource::Filename(path) | SecretSource::SdsFile { path, .. } => Some(path.clone()),
        _ => None,
    };
    // Taken before the contents: what changes in between is seen at the next look.
    let seen = path.as_deref().and_then(Mark::of);
    let (sender, value) = watch::channel(Some(read(source)?));
    let secret = Secret { value, name: None, first_look: None };
    let Some(path) = path else { return Ok((secret, None)) };
    let watching = watch_file(filter.to_owned(), source.clone(), path, seen, sender);
    Ok((secret, Some(Tied::spawn(watching))))
}

/// What tells one state of a file from another, also when another file takes its place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Mark {
    /// Of what the path leads to, through links; `None` if to nothing.
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Mark {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

async fn watch_file(
    filter: String,
    source: SecretSource,
    path: PathBuf,
    mut seen: Option<Mark>,
    sender: watch::Sender<Option<Bytes>>,
) {
    loop {
        tokio::time::sleep(LOOK).await;
        let (source, path) = (source.clone(), path.clone());
        // As above.
        let looked = spawn_blocking(move || {
            let mark = Mark::of(&path);
            (mark, (mark != seen).then(|| read(&source)))
        });
        let Ok((mark, read)) = looked.await else { return };
        seen = mark;
        match read {
            None => (),
            Some(Ok(value)) => put(&sender, value),
            Some(Err(error)) => tracing::warn!("filter `{filter}`: {error}; the last value stays"),
        }
    }
}

fn read(source: &SecretSource) -> Result<Bytes, SecretError> {
    match source {
        SecretSource::Filename(path) => filled(path.display(), trimmed(read_file(path)?)),
        SecretSource::SdsFile { path, name } => {
            let what = format!("`{name}` of {}", path.display());
            filled(what, in_sds_file(path, name)?)
        }
        SecretSource::EnvironmentVariable(name) => filled(format!("${name}"), variable(name)?),
        SecretSource::InlineString(value) => filled("`inline_string`", value.clone().into_bytes()),
        SecretSource::Sds(_) | SecretSource::SdsSecretConfig { .. } => {
            Err(SecretError::UNSUPPORTED)
        }
    }
}

fn filled(what: impl fmt::Display, value: Vec<u8>) -> Result<Bytes, SecretError> {
    match value.is_empty() {
        true => Err(SecretError::Empty { what: what.to_string() }),
        false => Ok(value.into()),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, SecretError> {
    std::fs::read(path).map_err(|error| SecretError::Missing {
        what: path.display().to_string(),
        why: error.to_string(),
    })
}

fn variable(name: &str) -> Result<Vec<u8>, SecretError> {
    std::env::var(name)
        .map(String::into_bytes)
        .map_err(|error| SecretError::Missing { what: format!("${name}"), why: error.to_string() })
}

/// Editors and `echo` end a file with a newline that is no part of the secret.
fn trimmed(mut value: Vec<u8>) -> Vec<u8> {
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    value
}

/// `{"resources": [{"name": .., "generic_secret": {"secret": DataSource}}]}`
fn in_sds_file(path: &Path, name: &str) -> Result<Vec<u8>, SecretError> {
    let malformed = |why: String| SecretError::Malformed { path: path.to_owned(), why };
    let file: Value = serde_json::from_slice(&read_file(path)?).map_err(|error| {
        malformed(format!(
            "it is not JSON ({error}); YAML is not read here: write it as JSON, which Envoy reads \
                 as well, or have the secret alone in a file (`filename`)"
        ))
    })?;
    let resources = file["resources"]
        .as_array()
        .ok_or_else(|| malformed("it has no list `resources`".to_owned()))?;
    let secret = resources
        .iter()
        .find(|secret| secret["name"] == name && secret["generic_secret"].is_object())
        .ok_or_else(|| SecretError::NotInFile { path: path.to_owned(), name: name.to_owned() })?;
    let source = &secret["generic_secret"]["secret"];
    let text = |field: &str| source[field].as_str();
    if let Some(value) = text("inline_string") {
        Ok(value.as_bytes().to_vec())
    } else if let Some(value) = text("inline_bytes") {
        base64(value).ok_or_else(|| {
            malformed(format!("the `inline_bytes` of the secret `{name}` are not base64"))
        })
    } else if let Some(file) = text("filename") {
        Ok(trimmed(read_file(Path::new(file))?))
    } else if let Some(name) = text("environment_variable") {
        variable(name)
    } else {
        let known = "`inline_string`, `inline_bytes`, `filename` or `environment_variable`";
        Err(malformed(format!("the secret `{name}` has none of {known}")))
    }
}

/// Bytes as JSON has those of a protobuf message: base64 of either alphabet, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if digits.len() % 4 == 1 || (padding > 0 && (!text.len().is_multiple_of(4) || padding > 2)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut value, mut bits) = (0_u32, 0);
    for digit in digits.bytes() {
        let digit = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        value = (value << 6 | u32::from(digit)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
        }
    }
    // What is left over of the last digit is no part of any byte.
    (value & ((1 << bits) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_read_in_either_alphabet_padded_or_not() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("aGk=", b"hi"),
            ("aGk", b"hi"),
            ("aGl5", b"hiy"),
            ("aA==", b"h"),
            ("+/8=", b"\xfb\xff"),
            ("-_8", b"\xfb\xff"),
        ] {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["a", "aGk==", "a GI", "aG=k", "aGl", "=", "aGk=\n", "aGl5===="] {
            assert_eq!(base64(text), None, "{text}");
        }
    }
}
