//! Bodies as data: a text, chunks of text, or a generator for what is too long to write down.

use attache_e2e::{OutBody, header_map};
use bytes::Bytes;
use serde::Deserialize;

/// A body of a message.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Content {
    /// A text, in one piece.
    Text(String),
    /// Pieces of text.
    Chunks(Vec<String>),
    /// `{"repeat": "abc", "bytes": 1048576, "chunk": 16384}`.
    Repeat {
        /// What it is made of, over and over.
        repeat: String,
        /// How long it is.
        bytes: usize,
        /// How long each piece is; all of it if absent.
        #[serde(default)]
        chunk: Option<usize>,
    },
}

impl Default for Content {
    fn default() -> Self {
        Content::Text(String::new())
    }
}

impl Content {
    /// All of it.
    pub(crate) fn bytes(&self) -> Bytes {
        match self {
            Content::Text(text) => text.clone().into(),
            Content::Chunks(chunks) => chunks.concat().into(),
            Content::Repeat { repeat, bytes, .. } => {
                let mut all = repeat.repeat(bytes.div_ceil(repeat.len().max(1))).into_bytes();
                all.truncate(*bytes);
                all.into()
            }
        }
    }

    /// Its pieces.
    pub(crate) fn chunks(&self) -> Vec<Bytes> {
        match self {
            Content::Text(text) if text.is_empty() => Vec::new(),
            Content::Text(text) => vec![text.clone().into()],
            Content::Chunks(chunks) => chunks.iter().map(|chunk| chunk.clone().into()).collect(),
            Content::Repeat { bytes, chunk, .. } => {
                let all = self.bytes();
                let size = chunk.unwrap_or(*bytes).max(1);
                (0..*bytes).step_by(size).map(|at| all.slice(at..(*bytes).min(at + size))).collect()
            }
        }
    }

    /// As it is sent: whole where it is a text (with a `content-length`), in pieces otherwise.
    pub(crate) fn out_body(&self, trailers: &[(String, String)]) -> OutBody {
        match self {
            Content::Text(text) if trailers.is_empty() => text.clone().into(),
            _ => OutBody::frames(
                self.chunks(),
                header_map(trailers.iter().map(|(name, value)| (name, value))),
            ),
        }
    }
}

/// How a body is shown where it is not what it should be.
pub(crate) fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    if bytes.len() > SHOWN {
        format!("{text:?}.. ({} bytes)", bytes.len())
    } else {
        format!("{text:?}")
    }
}

/// Says how two bodies differ, if they do.
pub(crate) fn difference(expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let at = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    Some(format!(
        "expected {} bytes {}, got {} bytes {}; they differ from byte {at} on",
        expected.len(),
        show(expected),
        got.len(),
        show(got)
    ))
}
