//! Generates the C++ half of the bridge and compiles it. Bazel has a rule of its own for that.

fn main() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // The paths by which Bazel includes them too.
    cxx_build::CFG.include_prefix = "rust/attache-cxx";
    cxx_build::bridge("src/bridge.rs").include(&root).std("c++17").compile("attache-cxx-bridge");
    println!("cargo:rerun-if-changed=src/bridge.rs");
    println!("cargo:rerun-if-changed={}", root.join("cc/bridge").display());
}
