//! The table of parity with Envoy's golang filter is true as far as a test can tell: every row names a
//! test, and that is there.

use std::collections::BTreeSet;
use std::fs;

use attache_e2e::workspace_root;
use serde_json::Value;

fn scenarios() -> BTreeSet<String> {
    let folder = workspace_root().join("test/conformance/scenarios");
    fs::read_dir(folder)
        .unwrap()
        .flat_map(|file| {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            serde_json::from_str::<Vec<Value>>(&text).unwrap()
        })
        .map(|scenario| scenario["name"].as_str().unwrap().to_owned())
        .collect()
}

/// What stands between two of these.
fn between(text: &str, mark: char) -> impl Iterator<Item = &str> + Clone {
    text.split(mark).skip(1).step_by(2)
}

#[test]
fn every_row_names_tests_that_are_there() {
    let root = workspace_root();
    let scenarios = scenarios();
    let page = fs::read_to_string(root.join("docs/parity.md")).unwrap();
    let rows: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .filter(|line| !line.ends_with("| shown by |"))
        .collect();
    assert!(rows.len() > 40, "only {} rows were found", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let columns: Vec<_> = row.trim_matches('|').split('|').collect();
        let [_, _, shown_by] = columns[..] else {
            wrong.push(format!("a row of other than three columns: {row}"));
            continue;
        };
        let (names, files) = (between(shown_by, '"'), between(shown_by, '`'));
        if names.clone().count() + files.clone().count() == 0 {
            wrong.push(format!("no test is named: {row}"));
        }
        for name in names.filter(|name| !scenarios.contains(*name)) {
            wrong.push(format!("there is no scenario {name:?}"));
        }
        for file in files {
            let scenarios = root.join("test/conformance/scenarios");
            if !root.join(file).exists() && !scenarios.join(file).exists() {
                wrong.push(format!("there is no {file}"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/parity.md:\n{}", wrong.join("\n"));
}
