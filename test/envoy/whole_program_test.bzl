"""Tests, without building anything, that `-c opt` optimises Rust as a whole."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")

_Rustc = provider(
    doc = "How the Rust static library of a binary is compiled.",
    fields = {"arguments": "those of the compiler"},
)

def _rustc_impl(target, ctx):
    if ctx.rule.kind == "rust_static_library":
        [action] = [action for action in target.actions if action.mnemonic == "Rustc"]
        return [_Rustc(arguments = action.argv)]

    # A list, since the attribute has a transition.
    return [ctx.rule.attr.library[0][_Rustc]]

_rustc = aspect(
    implementation = _rustc_impl,
    attr_aspects = ["library"],
)

def _whole_program_test_impl(ctx):
    env = analysistest.begin(ctx)
    arguments = analysistest.target_under_test(env)[_Rustc].arguments
    given = [argument for argument in arguments if argument.startswith("-C")]
    for wanted in ["-Clto=fat", "-Ccodegen-units=1", "-Cllvm-args=-inline-threshold=1000"]:
        asserts.true(env, wanted in given, "no {} in {}".format(wanted, given))
    return analysistest.end(env)

whole_program_test = analysistest.make(
    _whole_program_test_impl,
    config_settings = {"//command_line_option:compilation_mode": "opt"},
    extra_target_under_test_aspects = [_rustc],
)
