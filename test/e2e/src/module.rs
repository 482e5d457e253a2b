//! Builds filter crates and lays their libraries out where Envoy looks for modules.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

/// The root of this workspace.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("test/e2e is in a workspace")
}

/// Builds the `cdylib` of a package of this workspace, in the profile that the running test was
/// built in, and says where it is. Once per process and package; fails the test when it
/// does not build.
pub fn module_path(package: &str) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    // Held while building, so that tests that run at once build each package once. A failed
    // build poisons nothing: the next test reports it again.
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    built
        .get_or_insert_default()
        .entry(package.to_owned())
        .or_insert_with(|| build(package))
        .clone()
}

fn build(package: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (target, profile) = target_and_profile();
    let output = Command::new(cargo)
        .current_dir(workspace_root())
        .args(["build", "--package", package, "--profile", &profile])
        .arg("--target-dir")
        .arg(target)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        // Progress and errors are for whoever waits.
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "the module {package} does not build, as cargo says above");

    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| is_cdylib_of(package, message))
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .rfind(|file| file.extension().is_some_and(|extension| extension == "so"))
        .unwrap_or_else(|| panic!("{package} has no cdylib target"))
}

fn is_cdylib_of(package: &str, message: &Value) -> bool {
    let kinds = message["target"]["crate_types"].as_array();
    let cdylib = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib"));
    // `path+file:///dir/name#1.2.3` or `path+file:///dir#name@1.2.3`.
    let id = message["package_id"].as_str().unwrap_or_default();
    let named = id.contains(&format!("/{package}#")) || id.contains(&format!("#{package}@"));
    cdylib && named
}

/// From where the running test binary is: `<target>/<profile>/deps/<test>`.
fn target_and_profile() -> (PathBuf, String) {
    let test = std::env::current_exe().expect("the path of this test");
    let mut directory = test.parent().expect("a directory");
    if directory.ends_with("deps") || directory.ends_with("examples") {
        directory = directory.parent().expect("a profile directory");
    }
    let name = directory.file_name().expect("a profile").to_string_lossy().into_owned();
    let target = directory.parent().expect("a target directory").to_owned();
    (target, if name == "debug" { "dev".into() } else { name })
}

/// A directory of modules, in the layout that `ENVOY_DYNAMIC_MODULES_SEARCH_PATH` wants.
#[derive(Debug)]
pub struct Modules {
    directory: TempDir,
}

impl Modules {
    /// No module yet.
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Builds `package` and offers it under the name of its library (the package's name, `-`
    /// as `_`, unless its `[lib]` has another).
    pub fn package(self, package: &str) -> Self {
        let library = module_path(package);
        let name = library.file_stem().expect("a library's name").to_string_lossy();
        let name = name.trim_start_matches("lib").to_owned();
        self.file(&name, &library)
    }

    /// Offers any library under a name.
    pub fn file(self, name: &str, library: &Path) -> Self {
        let link = self.directory.path().join(format!("lib{name}.so"));
        std::os::unix::fs::symlink(library, link).expect("a new link");
        self
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Default for Modules {
    fn default() -> Self {
        Self::new()
    }
}
