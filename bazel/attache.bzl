"""An Envoy with filters compiled in, for this workspace and for others that depend on it.

    load("@attache//bazel:attache.bzl", "attache_envoy_binary")

    attache_envoy_binary(
        name = "envoy",
        filters = {"//my-filter": "my_filter"},
    )

The WORKSPACE of this repository shows what else such a workspace has to set up.
"""

load("@bazel_skylib//rules:write_file.bzl", "write_file")
load("@envoy//bazel:envoy_build_system.bzl", "envoy_cc_binary")
load("@rules_rust//rust:defs.bzl", "rust_static_library")

def attache_filters(name, filters, **kwargs):
    """The one Rust static library of a binary, with the filters of several crates.

    Args:
      name: of the library.
      filters: the crates, each a `rust_library` with its own `attache::filters!`: from the label to
        the name of the crate.
      **kwargs: for the library.
    """
    write_file(
        name = name + "_list",
        out = name + "_list.rs",
        content = [
            "//! Generated: the filters of this Envoy.",
            "attache_cxx::filters! {",
        ] + ["    {},".format(crate) for crate in filters.values()] + [
            "}",
            "",
        ],
    )
    rust_static_library(
        name = name,
        srcs = [name + "_list.rs"],
        crate_name = name.replace("-", "_"),
        edition = "2024",
        deps = filters.keys() + [Label("//rust/attache-cxx")],
        **kwargs
    )

def attache_envoy_binary(name, filters = {}, static_library = None, deps = [], **kwargs):
    """An Envoy with filters compiled in.

    Args:
      name: of the binary.
      filters: the crates with the filters, as `attache_filters` takes them.
      static_library: in place of `filters`, a `rust_static_library` that has `attache_cxx::filters!`.
        There can be only one in a binary: two would both bring Rust's standard library.
      deps: what else is linked in, such as extensions of Envoy.
      **kwargs: for the binary.
    """
    if not static_library:
        static_library = name + "_filters"
        attache_filters(
            name = static_library,
            filters = filters,
        )
    envoy_cc_binary(
        name = name,
        repository = "@envoy",
        deps = deps + [
            static_library,
            Label("//cc/config"),
            "@envoy//source/exe:envoy_main_entry_lib",
        ],
        **kwargs
    )
