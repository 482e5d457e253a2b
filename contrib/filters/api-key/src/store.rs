//! Where keys are looked up: [`KeyStore`], and the stores that come with the filter.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attache::{Counter, Error, Result, ResultExt};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

/// Who a key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The name that the upstream gets to see.
    pub name: String,
    /// What the consumer may do.
    pub scopes: Vec<String>,
}

/// What a lookup comes to: nobody, if the key is not known.
pub type Lookup<'a> = Pin<Box<dyn Future<Output = Result<Option<Arc<Consumer>>>> + Send + 'a>>;

/// Where keys are looked up. The stores here are quick; one that asks a server fits as well.
pub trait KeyStore: Send + Sync + 'static {
    /// Whose key is it? An error means that the store cannot tell, and nobody gets through.
    fn lookup<'a>(&'a self, key: &'a [u8]) -> Lookup<'a>;
}

/// A key as configs and key files have it: only its hash, so that reading them lets nobody in.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(attache::schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(crate = "attache::schemars"))]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Whose it is.
    pub consumer: String,
    /// The SHA-256 of the key, in hexadecimal.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "String", regex(pattern = "^[0-9a-fA-F]{64}$"))
    )]
    pub sha256: Hash,
    /// What the consumer may do.
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// The SHA-256 of a key.
#[derive(Clone, Copy)]
pub struct Hash([u8; 32]);

impl Hash {
    fn of(key: &[u8]) -> Self {
        Hash(Sha256::digest(key).into())
    }

    fn from_hex(text: &str) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() {
            return None;
        }
        let (pairs, _) = text.as_bytes().as_chunks();
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
        }
        Some(Hash(hash))
    }

    fn index(&self) -> [u8; 8] {
        let mut index = [0; 8];
        index.copy_from_slice(&self.0[..8]);
        index
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Hash::from_hex(&text).ok_or_else(|| {
            // Not the text itself: somebody may have put the key there.
            D::Error::custom(
                "must be a SHA-256 in 64 hexadecimal digits (printf %s KEY | sha256sum)",
            )
        })
    }
}

/// Keys in memory.
#[derive(Default)]
pub struct Table {
    /// By the first bytes of the hash. The timing of that look tells something about a hash, which
    /// nobody can steer or turn into a key; the hash itself is compared in constant time.
    by_index: HashMap<[u8; 8], Vec<(Hash, Arc<Consumer>)>>,
}

impl Table {
    /// Of these keys.
    ///
    /// # Errors
    /// The number of an entry, and what is wrong with it.
    pub fn new(entries: Vec<Entry>) -> Result<Self, (usize, &'static str)> {
        let mut table = Table::default();
        for (number, Entry { consumer, sha256, scopes }) in entries.into_iter().enumerate() {
            if consumer.is_empty() || !consumer.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err((number, "the consumer's name must be visible ASCII, with no space"));
            }
            if table.find(&sha256).is_some() {
                return Err((number, "this key is there already"));
            }
            let consumer = Arc::new(Consumer { name: consumer, scopes });
            table.by_index.entry(sha256.index()).or_default().push((sha256, consumer));
        }
        Ok(table)
    }

    fn find(&self, hash: &Hash) -> Option<&Arc<Consumer>> {
        let candidates = self.by_index.get(&hash.index())?;
        candidates.iter().find(|(known, _)| known.0.ct_eq(&hash.0).into()).map(|(_, who)| who)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} keys)", self.by_index.values().map(Vec::len).sum::<usize>())
    }
}

impl KeyStore for Table {
    fn lookup<'a>(&'a self, key: &'a [u8]) -> Lookup<'a> {
        let found = self.find(&Hash::of(key)).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// Keys in a file: a JSON array of entries. A task keeps up with its changes.
#[derive(Debug)]
pub struct FileStore {
    /// Nothing until the file was read for the first time.
    table: watch::Receiver<Option<Arc<Table>>>,
}

/// The task that keeps a [`FileStore`] up to date.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    every: Duration,
    failures: Counter,
    table: watch::Sender<Option<Arc<Table>>>,
}

/// What tells one version of a file from the next.
type Stamp = (Option<SystemTime>, u64, u64);

impl FileStore {
    /// A store, and the task that fills it.
    pub fn new(path: PathBuf, every: Duration, failures: Counter) -> (Self, Reload) {
        let (sender, receiver) = watch::channel(None);
        (FileStore { table: receiver }, Reload { path, every, failures, table: sender })
    }
}

impl Reload {
    /// Reads the file, again whenever it has changed. A file that cannot be used changes nothing: the
    /// keys read before stay, and if there are none, lookups go on waiting.
    pub async fn run(self) {
        let mut last = None;
        loop {
            match self.read(last).await {
                Ok(None) => (),
                Ok(Some((stamp, table))) => {
                    tracing::info!(file = %self.path.display(), ?table, "the keys were read");
                    last = Some(stamp);
                    self.table.send_replace(Some(Arc::new(table)));
                }
                Err(error) => {
                    self.failures.inc();
                    tracing::error!(file = %self.path.display(), "no keys were read: {error:?}");
                }
            }
            tokio::time::sleep(self.every).await;
        }
    }

    async fn read(&self, last: Option<Stamp>) -> Result<Option<(Stamp, Table)>> {
        // The stamp is older than what is read after it, so no change is missed.
        let meta = tokio::fs::metadata(&self.path).await?;
        let stamp = (meta.modified().ok(), meta.len(), meta.ino());
        if last == Some(stamp) {
            return Ok(None);
        }
        let text = tokio::fs::read(&self.path).await?;
        let entries: Vec<Entry> = serde_json::from_slice(&text).context("not a list of keys")?;
        let table = Table::new(entries)
            .map_err(|(number, why)| Error::new(format!("entry {number}: {why}")))?;
        Ok(Some((stamp, table)))
    }
}

impl KeyStore for FileStore {
    fn lookup<'a>(&'a self, key: &'a [u8]) -> Lookup<'a> {
        Box::pin(async move {
            let mut receiver = self.table.clone();
            let table = receiver.wait_for(Option::is_some).await?.clone();
            Ok(table.and_then(|table| table.find(&Hash::of(key)).cloned()))
        })
    }
}
