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
    """Defines @crates: the crates of this repository's Cargo.lock, and more if you like.

    Args:
      packages: crates that filters of yours need and this repository does not: from the name to a
        `crate.spec`. They are `@crates//:name`, and share with the runtime what both depend on: there
        must be only one Tokio in an Envoy.
      cargo_lockfile: a Cargo.lock of yours, in place of this repository's. It begins as a copy of that
        one; `CARGO_BAZEL_REPIN=1 bazel sync --only=crates` adds what `packages` brings.
      lockfile: where that command writes what it has found out. Without it, that is found out anew
        whenever Bazel fetches @crates. It belongs to one workspace, so this repository's is of no use
        to another.
    """
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
        lockfile = lockfile,
        manifests = [Label("//:Cargo.toml")],
        packages = packages,
        # This repository's is not changed from elsewhere.
        skip_cargo_lockfile_overwrite = cargo_lockfile == None,
    )
