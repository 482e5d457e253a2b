//! What came out: a table scenario x host, for people and as `target/conformance/report.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde_json::json;

/// What came out of one case on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Ok,
    /// Not as expected, and how.
    Failed(String),
    /// It cannot be run there, and why.
    NotApplicable(String),
}

/// One case on one host.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The section of the scenario.
    pub section: String,
    /// The case.
    pub case: String,
    /// The host and the protocol.
    pub host: String,
    /// What came out.
    pub outcome: Outcome,
}

/// All cells of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    cells: Vec<Cell>,
}

impl Report {
    /// A report of these cells.
    pub fn new(cells: Vec<Cell>) -> Self {
        Report { cells }
    }

    /// Adds cells.
    pub fn extend(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.cells.extend(cells);
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.cells.iter().filter(|cell| is(&cell.outcome)).count()
    }

    /// True if nothing failed.
    pub fn is_ok(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The cells that failed.
    pub fn failures(&self) -> impl Iterator<Item = (&Cell, &str)> {
        self.cells.iter().filter_map(|cell| match &cell.outcome {
            Outcome::Failed(how) => Some((cell, how.as_str())),
            _ => None,
        })
    }

    /// `N cells: N ok, N failed, N not applicable`.
    pub fn counts(&self) -> String {
        format!(
            "{} cells: {} ok, {} failed, {} not applicable",
            self.cells.len(),
            self.count(|outcome| *outcome == Outcome::Ok),
            self.count(|outcome| matches!(outcome, Outcome::Failed(_))),
            self.count(|outcome| matches!(outcome, Outcome::NotApplicable(_))),
        )
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let cells: Vec<_> = self
            .cells
            .iter()
            .map(|cell| {
                let (outcome, text) = match &cell.outcome {
                    Outcome::Ok => ("ok", None),
                    Outcome::Failed(how) => ("failed", Some(how)),
                    Outcome::NotApplicable(why) => ("not applicable", Some(why)),
                };
                json!({
                    "section": cell.section, "case": cell.case, "host": cell.host,
                    "outcome": outcome, "text": text,
                })
            })
            .collect();
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let text = serde_json::to_string_pretty(&json!({"counts": self.counts(), "cells": cells}));
        std::fs::write(path, text.expect("strings only"))
    }
}

/// The table, then what failed and how, what is not applicable and why, and the counts.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: BTreeSet<_> = self.cells.iter().map(|cell| cell.host.as_str()).collect();
        let mut rows: Vec<(&str, &str)> = Vec::new();
        let mut table = BTreeMap::new();
        let mut known = BTreeSet::new();
        for cell in &self.cells {
            let row = (cell.section.as_str(), cell.case.as_str());
            if known.insert(row) {
                rows.push(row);
            }
            table.insert((row, cell.host.as_str()), &cell.outcome);
        }
        let width = rows.iter().map(|(_, case)| case.chars().count()).max().unwrap_or(0);
        let mut section = "";
        for row in rows {
            if row.0 != section {
                section = row.0;
                write!(f, "\n{section:width$}")?;
                for host in &hosts {
                    write!(f, "  {host}")?;
                }
                writeln!(f)?;
            }
            write!(f, "{:width$}", row.1)?;
            for host in &hosts {
                let word = match table.get(&(row, *host)) {
                    Some(Outcome::Ok) => "ok",
                    Some(Outcome::Failed(_)) => "FAILED",
                    Some(Outcome::NotApplicable(_)) => "n/a",
                    None => "",
                };
                write!(f, "  {word:0$}", host.chars().count())?;
            }
            writeln!(f)?;
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for cell in &self.cells {
            if let Outcome::NotApplicable(why) = &cell.outcome {
                *reasons.entry(why).or_default() += 1;
            }
        }
        if !reasons.is_empty() {
            writeln!(f, "\nnot applicable:")?;
        }
        for (why, count) in reasons {
            writeln!(f, "  {count} cells: {why}")?;
        }
        for (cell, how) in self.failures() {
            writeln!(
                f,
                "\nFAILED {} on {}:\n  {}",
                cell.case,
                cell.host,
                how.replace('\n', "\n  ")
            )?;
        }
        writeln!(f, "\n{}", self.counts())
    }
}
