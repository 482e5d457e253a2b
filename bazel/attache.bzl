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
load("@rules_cc//cc/common:cc_info.bzl", "CcInfo")
load("@rules_rust//rust:defs.bzl", "rust_static_library")

_LTO = "@rules_rust//rust/settings:lto"
_CODEGEN_UNITS = "@rules_rust//rust/settings:codegen_units"
_FLAGS = "@rules_rust//rust/settings:extra_rustc_flags"
_SETTINGS = [_CODEGEN_UNITS, _FLAGS, _LTO]

# What an exchange costs is the code that it brings into the caches, more than the instructions: many
# small functions lie in more of it than a few large ones.
_INLINE_MORE = "-Cllvm-args=-inline-threshold=1000"

def _whole_program_impl(settings, _attr):
    changed = {name: settings[name] for name in _SETTINGS}

    # What Bazel gives is no string: compared with one, it is never equal.
    if str(settings["//command_line_option:compilation_mode"]) == "opt":
        if changed[_LTO] == "unspecified":
            changed[_LTO] = "fat"
        if changed[_CODEGEN_UNITS] < 1:
            changed[_CODEGEN_UNITS] = 1
        if not any(["inline-threshold" in flag for flag in changed[_FLAGS]]):
            changed[_FLAGS] = changed[_FLAGS] + [_INLINE_MORE]
    return changed

# With `-c opt`, Rust is optimised as a whole: the runtime is many small functions in several crates.
# What the command line says about it stands.
_whole_program = transition(
    implementation = _whole_program_impl,
    inputs = ["//command_line_option:compilation_mode"] + _SETTINGS,
    outputs = _SETTINGS,
)

def _linkable_impl(ctx):
    # A list, since the attribute has a transition.
    return [ctx.attr.library[0][CcInfo]]

_linkable = rule(
    implementation = _linkable_impl,
    doc = "A Rust static library as the binary links it.",
    attrs = {
        "library": attr.label(
            mandatory = True,
            cfg = _whole_program,
            providers = [CcInfo],
        ),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
    },
)

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
    _linkable(
        name = name + "_rust",
        library = static_library,
    )
    envoy_cc_binary(
        name = name,
        repository = "@envoy",
        deps = deps + [
            name + "_rust",
            Label("//cc/config"),
            "@envoy//source/exe:envoy_main_entry_lib",
        ],
        **kwargs
    )
