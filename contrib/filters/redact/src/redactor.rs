//! Replaces literal secrets in bytes that come in pieces.
//!
//! Matches are found from left to right, never overlap, and of those that start at the same byte the
//! longest wins. The result is that of replacing in the whole, wherever the pieces were cut.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, BuildError, MatchKind};
use attache::bytes::{Bytes, BytesMut};

/// What to look for, and what to put there. Shared by all exchanges.
#[derive(Debug)]
pub struct Secrets {
    finder: AhoCorasick,
    /// Sorted, to find those that start with given bytes.
    sorted: Vec<Vec<u8>>,
    longest: usize,
    replacement: Vec<u8>,
}

impl Secrets {
    /// Prepares the search. No pattern may be empty.
    ///
    /// # Errors
    /// The patterns are too many or too long to be searched for.
    pub fn new(patterns: &[String], replacement: &str) -> Result<Self, BuildError> {
        let finder =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns)?;
        let mut sorted: Vec<Vec<u8>> = patterns.iter().map(|p| p.as_bytes().to_vec()).collect();
        sorted.sort();
        let longest = sorted.iter().map(Vec::len).max().unwrap_or_default();
        Ok(Secrets { finder, sorted, longest, replacement: replacement.into() })
    }

    /// Whether `bytes` contain a secret.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.finder.is_match(bytes)
    }

    /// Where the first secret could start, at `from` or later, of which `bytes` have only the
    /// beginning: what comes before is known. At most the longest pattern's length less one is left.
    fn undecided(&self, bytes: &[u8], from: usize) -> usize {
        let earliest = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        (from.max(earliest)..bytes.len())
            .find(|&start| {
                let tail = &bytes[start..];
                // The first pattern that is greater than the tail has it as a prefix, if any has.
                let next = self.sorted.partition_point(|pattern| pattern.as_slice() <= tail);
                self.sorted.get(next).is_some_and(|pattern| pattern.starts_with(tail))
            })
            .unwrap_or(bytes.len())
    }
}

/// Redacts one body.
#[derive(Debug)]
pub struct Redactor {
    secrets: Arc<Secrets>,
    /// The end of what has come so far, if a secret may start in it.
    carry: BytesMut,
    replaced: u64,
}

impl Redactor {
    /// For a new body.
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Redactor { secrets, carry: BytesMut::new(), replaced: 0 }
    }

    /// Takes the next piece, and returns what can go on. Held back is only the beginning of what may
    /// turn out to be a secret.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.carry.is_empty()
            && !self.secrets.is_in(&chunk)
            && self.secrets.undecided(&chunk, 0) == chunk.len()
        {
            return chunk;
        }
        self.carry.extend_from_slice(&chunk);
        self.scan(false)
    }

    /// Nothing comes any more: returns the rest.
    pub fn finish(&mut self) -> Bytes {
        self.scan(true)
    }

    /// How many secrets were replaced.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    fn scan(&mut self, last: bool) -> Bytes {
        let Redactor { secrets, carry, replaced } = self;
        let known = |from| if last { carry.len() } else { secrets.undecided(carry, from) };
        let mut out = BytesMut::with_capacity(carry.len());
        let mut from = 0;
        let mut until = known(from);
        for found in secrets.finder.find_iter(&carry[..]) {
            // It may yet become a longer one.
            if found.start() >= until {
                break;
            }
            out.extend_from_slice(&carry[from..found.start()]);
            out.extend_from_slice(&secrets.replacement);
            *replaced += 1;
            from = found.end();
            // Where a secret may start must not be in one that was just replaced.
            if from > until {
                until = known(from);
            }
        }
        out.extend_from_slice(&carry[from..until]);
        let rest = carry.split_off(until);
        *carry = rest;
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secrets(patterns: &[&str], replacement: &str) -> Arc<Secrets> {
        let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
        Arc::new(Secrets::new(&patterns, replacement).unwrap())
    }

    /// Leftmost-longest by the book, to compare with.
    fn whole(patterns: &[String], replacement: &str, text: &[u8]) -> (Vec<u8>, u64) {
        let (mut out, mut replaced, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            let longest = patterns
                .iter()
                .filter(|pattern| text[at..].starts_with(pattern.as_bytes()))
                .map(String::len)
                .max();
            match longest {
                Some(len) => {
                    out.extend_from_slice(replacement.as_bytes());
                    replaced += 1;
                    at += len;
                }
                None => {
                    out.push(text[at]);
                    at += 1;
                }
            }
        }
        (out, replaced)
    }

    #[test]
    fn a_secret_is_found_across_borders() {
        let mut redactor = Redactor::new(secrets(&["secret"], "*"));
        let mut push = |text: &'static str| redactor.push(Bytes::from_static(text.as_bytes()));
        assert_eq!(push("my sec"), "my ");
        assert_eq!(push("r"), "");
        assert_eq!(push("et is out; se"), "* is out; ");
        assert_eq!(push("nt"), "sent");
        assert_eq!(redactor.finish(), "");
        assert_eq!(redactor.replaced(), 1);
    }

    #[test]
    fn the_longest_of_those_that_start_together_wins() {
        let mut redactor = Redactor::new(secrets(&["ab", "abcd"], "*"));
        assert_eq!(redactor.push("xab".into()), "x");
        assert_eq!(redactor.push("c".into()), "");
        assert_eq!(redactor.push("ed".into()), "*ced");
        assert_eq!(redactor.push("abcd".into()), "*");
        assert_eq!(redactor.push("ab".into()), "");
        assert_eq!(redactor.finish(), "*");
    }

    #[test]
    fn what_has_no_secret_is_not_copied() {
        let chunk = Bytes::from_static(b"nothing to see");
        let out = Redactor::new(secrets(&["secret"], "*")).push(chunk.clone());
        assert_eq!(out.as_ptr(), chunk.as_ptr());
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_result_of_the_whole(
            patterns in prop::collection::vec("[ab]{1,6}|[abc]{3}", 1..5),
            replacement in "[ac]{0,2}|\\*",
            chunks in prop::collection::vec("[abc]{0,9}", 0..20),
        ) {
            let secrets = Arc::new(Secrets::new(&patterns, &replacement).unwrap());
            let mut redactor = Redactor::new(secrets.clone());
            let mut out = Vec::new();
            for chunk in &chunks {
                out.extend_from_slice(&redactor.push(chunk.clone().into()));
                prop_assert!(redactor.carry.len() < secrets.longest, "it holds too much");
            }
            out.extend_from_slice(&redactor.finish());
            let (expected, replaced) = whole(&patterns, &replacement, chunks.concat().as_bytes());
            prop_assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(expected).unwrap());
            prop_assert_eq!(redactor.replaced(), replaced);
        }
    }
}
