//! Secrets of a filter: where they come from, and how a new value arrives.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::runtime::{Tied, spawn_blocking};

/// How often the file of a secret is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where a secret comes from, as a field of a filter's config. The names are those of Envoy's
/// `DataSource`, and what is after them is ours:
///
/// ```yaml
/// key: {filename: /run/secrets/key}           # watched for changes
/// key: {sds_file: {path: /etc/envoy/sds.json, name: key}}   # the same, as Envoy has secrets in files
/// key: {environment_variable: KEY}
/// key: {inline_string: "only for tests"}
/// key: {sds: key}                             # refused: no host can do that yet
/// ```
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
    /// A secret that Envoy gets by its secret discovery service, by its name.
    Sds(String),
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
    /// This host has no way to it.
    Unsupported {
        /// What would do instead.
        instead: &'static str,
    },
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
pub struct Secret(watch::Receiver<Bytes>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The present value.
    pub fn get(&self) -> Bytes {
        self.0.borrow().clone()
    }

    /// Waits until there is another value than this handle has waited for before: `true`. `false` if
    /// there can be none any more: the source never changes, or the config has gone.
    ///
    /// Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
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
    let (sender, receiver) = watch::channel(read(source)?);
    let Some(path) = path else { return Ok((Secret(receiver), None)) };
    let watching = watch_file(filter.to_owned(), source.clone(), path, seen, sender);
    Ok((Secret(receiver), Some(Tied::spawn(watching))))
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
    sender: watch::Sender<Bytes>,
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
            Some(Ok(value)) => {
                sender.send_if_modified(|old| {
                    let new = *old != value;
                    *old = value;
                    new
                });
            }
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
        SecretSource::Sds(_) => Err(SecretError::Unsupported {
            instead: "have it in a file, which Envoy's own resources can name too (`sds_file`)",
        }),
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
    let file: Value = serde_json::from_slice(&read_file(path)?)
        .map_err(|error| malformed(format!("it is not JSON ({error})")))?;
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
    } else if let Some(file) = text("filename") {
        Ok(trimmed(read_file(Path::new(file))?))
    } else if let Some(name) = text("environment_variable") {
        variable(name)
    } else {
        let known = "`inline_string`, `filename` or `environment_variable`";
        Err(malformed(format!("the secret `{name}` has none of {known}")))
    }
}
