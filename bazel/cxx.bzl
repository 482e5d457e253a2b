"""The C++ half of a cxx bridge."""

load("@rules_cc//cc:defs.bzl", "cc_library")

def cxx_bridge(name, src, deps = [], **kwargs):
    """Generates and compiles the C++ code for a `#[cxx::bridge]`.

    Args:
      name: of the cc_library. Its header is `src` with `.h` behind it.
      src: the Rust file with the bridge.
      deps: what the bridge includes.
      **kwargs: for the cc_library.
    """
    header = src + ".h"
    source = src + ".cc"
    native.genrule(
        name = name + "_generated",
        srcs = [src],
        outs = [header, source],
        cmd = "$(execpath {tool}) $(execpath {src}) $(execpath {header}) $(execpath {source}) {include}".format(
            header = header,
            include = native.package_name() + "/" + header,
            source = source,
            src = src,
            tool = Label("//bazel/cxxbridge"),
        ),
        tools = [Label("//bazel/cxxbridge")],
    )
    cc_library(
        name = name,
        srcs = [source],
        hdrs = [header],
        # Rust calls it, and C++ does not.
        alwayslink = True,
        deps = deps + ["@crates//:cxx_cc"],
        **kwargs
    )
