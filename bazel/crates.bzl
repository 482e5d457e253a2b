"""The crates of Cargo.lock, as @crates."""

load("@rules_rust//crate_universe:defs.bzl", "crate", "crates_repository")

# What Rust's half of cxx needs of C++: the header `rust/cxx.h`, and the code behind it. Its build script
# would compile that with whatever compiler it finds.
_CXX = """
load("@rules_cc//cc:defs.bzl", "cc_library")

cc_library(
    name = "cxx_cc",
    srcs = ["src/cxx.cc"],
    hdrs = ["include/cxx.h"],
    include_prefix = "rust",
    strip_include_prefix = "include",
    alwayslink = True,
    visibility = ["//visibility:public"],
)
"""

def attache_crates():
    """Defines @crates. After a change of Cargo.lock: `CARGO_BAZEL_REPIN=1 bazel sync --only=crates`."""
    crates_repository(
        name = "crates",
        annotations = {
            "cxx": [crate.annotation(
                additive_build_file_content = _CXX,
                extra_aliased_targets = {"cxx_cc": "cxx_cc"},
                gen_build_script = False,
            )],
            # It would link the C++ library of the system's compiler. Envoy links its own.
            "link-cplusplus": [crate.annotation(gen_build_script = False)],
        },
        cargo_lockfile = Label("//:Cargo.lock"),
        lockfile = Label("//bazel:crates.lock.json"),
        manifests = [Label("//:Cargo.toml")],
    )
