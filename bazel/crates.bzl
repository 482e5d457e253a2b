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

def attache_crates(packages = {}, cargo_lockfile = None, lockfile = None):
    """Defines @crates. After a change of Cargo.lock: `CARGO_BAZEL_REPIN=1 bazel sync --only=crates`.

    Args:
      packages: crates that filters of yours need and this repository does not: from the name to a
        `crate.spec`. They are `@crates//:name`, and share with the runtime what both depend on: there
        must be only one Tokio in an Envoy.
      cargo_lockfile: with `packages`, a Cargo.lock of yours that says which versions these are. It
        begins as a copy of this repository's, and the command above completes it.
      lockfile: with `packages`, a file of yours for the same command; at first it is empty.
    """
    if packages and not (cargo_lockfile and lockfile):
        fail("attache_crates: `packages` needs a `cargo_lockfile` and a `lockfile` of your own")
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
        cargo_lockfile = cargo_lockfile or Label("//:Cargo.lock"),
        lockfile = lockfile or Label("//bazel:crates.lock.json"),
        manifests = [Label("//:Cargo.toml")],
        packages = packages,
    )
