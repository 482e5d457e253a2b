#!/usr/bin/env python3
"""Counts what an exchange costs in instructions, by hook: see test/bench/README.md.

usage: count.py [FILTER ..]        such as attache_pass; all three pairs if none is named

It needs valgrind, and the libraries of the bench, built as `make bench` builds them.
"""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SHIP = HERE.parents[2] / "target" / "ship"
FILTERS = ["raw_pass", "attache_pass", "raw_headers", "attache_headers", "raw_hop", "attache_hop"]
# The first exchanges of a thread set up what the others find.
WARM, ALL = 100, 1100


def library(name):
    which = "raw" if name.startswith("raw_") else "filters"
    path = SHIP / f"libattache_bench_{which}.so"
    if not path.exists():
        sys.exit(f"there is no {path}: build it as `make bench` does (test/bench/README.md)")
    return path


def build_host(path, folder):
    """The host, with an answer for every callback that the library may look for."""
    names = set(re.findall(rb"envoy_dynamic_module_callback_[a-z0-9_]+", path.read_bytes()))
    stubs = folder / "stubs.c"
    stubs.write_text(
        "".join(f"__attribute__((weak)) long {n.decode()}(void) {{ return 0; }}\n" for n in sorted(names))
    )
    host = folder / f"host-{path.stem}"
    subprocess.run(
        ["cc", "-O1", "-rdynamic", "-w", "-o", host, HERE / "host.c", stubs, "-ldl", "-lpthread"], check=True
    )
    return host


def run(host, path, name, exchanges, folder):
    """What callgrind has counted: on the worker by object file, by hook, and which lines of code were
    run; and on the threads of the module's runtime, by object file."""
    out = folder / "out"
    for old in folder.glob("out*"):
        old.unlink()
    toggles = [f"--toggle-collect={function}" for function in ["begin", "finish", "background", "epoll_wait"]]
    subprocess.run(
        ["valgrind", "-q", "--tool=callgrind", "--dump-instr=yes", "--separate-threads=yes", *toggles]
        + [f"--callgrind-out-file={out}", host, path, name, str(exchanges)],
        check=True,
        env={**os.environ, "ATTACHE_RUNTIME_THREADS": "1"},
    )
    cost, hooks, lines = read(folder / "out-01")
    background = collections.Counter()
    for thread in folder.glob("out-*"):
        if thread.name != "out-01":
            background += read(thread)[0]
    return cost, hooks, lines, background


def read(counts):
    """What callgrind has counted on one thread."""
    names = {}

    def known(kind, text):
        number, _, name = text.partition(" ")
        if name:
            names[kind, number] = name
        return names[kind, number]

    cost, hooks, lines = collections.Counter(), collections.Counter(), set()
    function = called = image = None
    address, inclusive = 0, False
    for line in counts.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "fn":
            function = known("fn", value)
        elif key == "cfn":
            called = known("fn", value)
        elif key == "ob":
            image = known("ob", value)
        elif key == "cob":
            known("ob", value)
        elif key == "calls":
            inclusive = True
        elif match := re.match(r"(0x[0-9a-f]+|[+-]\d+|\*) \S+ (\d+)$", line):
            where, spent = match[1], int(match[2])
            if where.startswith("0x"):
                address = int(where, 16)
            elif where != "*":
                address += int(where)
            if not inclusive:
                cost[pathlib.Path(image).name] += spent
                if "attache" in image:
                    lines.add(address // 64)
            elif function in ("begin", "finish"):
                hooks[called.replace("envoy_dynamic_module_on_", "")] += spent
            inclusive = False
    return cost, hooks, lines


def main():
    if sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    for tool in ["valgrind", "cc"]:
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing: install it (test/need {tool} says how)")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        hosts = {}
        for name in sys.argv[1:] or FILTERS:
            path = library(name)
            if path not in hosts:
                hosts[path] = build_host(path, folder)
            first, first_hooks, _, first_background = run(hosts[path], path, name, WARM, folder)
            cost, hooks, lines, background = run(hosts[path], path, name, ALL, folder)
            each = lambda counter, before: {
                key: round((counter[key] - before[key]) / (ALL - WARM)) for key in counter
            }
            cost, hooks = each(cost, first), each(hooks, first_hooks)
            background = each(background, first_background)
            ours = sum(spent for image, spent in cost.items() if "libattache" in image)
            print(f"{name}: {sum(cost.values())} instructions, {ours} of them in the library", end="")
            print(f" ({len(lines)} lines of code)")
            for hook, spent in sorted(hooks.items(), key=lambda item: -item[1]):
                if spent:
                    print(f"    {spent:6} {hook}")
            if beside := sum(background.values()):
                print(f"    {beside:6} on the runtime's thread")


main()
