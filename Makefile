# Every command of this repository. `make` alone lists them.

# `make run`: which filter of contrib/filters, and where it listens.
FILTER ?= hello
FILTERS := $(notdir $(patsubst %/envoy.yaml,%,$(sort $(wildcard contrib/filters/*/envoy.yaml))))
PORT ?= 10000
ADMIN_PORT ?= 9901

# The custom Envoy: Bazel, and options for it, such as `BUILD_OPTS='-c opt --config=clang-local'`.
BAZEL ?= bazel
BUILD_OPTS ?=
IMAGE ?= attache-envoy
# `make test-e2e`: which suites; all, unless ENVOY names an Envoy: the others are about modules and the
# pinned Envoys.
E2E ?= $(if $(ENVOY),callout chaos host observe odd stream)
# What builds images: docker, podman or buildah.
DOCKER ?= docker

.DEFAULT_GOAL := help
.PHONY: help run test test-e2e test-bridge lint bench count conformance build-envoy test-envoy image schema doc fmt clean envoy tools

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: tools envoy ## serve the filter FILTER (hello) in a real Envoy, on PORT (10000)
	@test -f contrib/filters/$(FILTER)/envoy.yaml || \
		{ echo "there is no filter contrib/filters/$(FILTER); there are: $(FILTERS)" >&2; exit 1; }
	@exec cargo run -p attache-e2e --bin attache-run -- $(FILTER) $(PORT) $(ADMIN_PORT)

# LEAN: what one of the builds has left goes before the next begins. Their sum is 7 GB.
test: tools envoy ## run every test; ends in a line of counts. BRIDGE=1: test-bridge too; LEAN=1: in 3 GB of disk
	@test/tally \
		'cargo test --workspace --no-fail-fast' \
		$(if $(LEAN),'cargo clean --profile dev') \
		'cargo test --release --workspace --tests --no-fail-fast' \
		$(if $(LEAN),'cargo clean --profile release') \
		'env RUSTFLAGS=--cfg=loom cargo test --release -p attache-core --lib --target-dir target/loom' \
		$(if $(BRIDGE),'make -k -C test/bridge')

test-bridge: tools ## test the bridge between C++ and Rust under sanitizers; see test/bridge
	@test/tally 'make -k -C test/bridge'

lint: tools ## check formatting, clippy, docs (warnings denied) and the lock for Bazel
	@test/need rustfmt cargo-clippy
	cargo fmt --all --check
	test/cxx-format
	bazel/check-crates
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

bench: tools envoy ## measure what a filter costs; BENCH_FLAGS=--quick for a trial
	cargo build --profile ship -p attache-bench -p attache-bench-raw
	cargo rustc --profile ship -p attache-bench-filters --crate-type cdylib
	target/ship/attache-bench $(BENCH_FLAGS)

count: tools ## count an exchange's instructions by hook (valgrind); COUNT=attache_pass for one filter
	@test/need valgrind
	cargo build --profile ship -p attache-bench-raw
	cargo rustc --profile ship -p attache-bench-filters --crate-type cdylib
	test/bench/count/count.py $(COUNT)

conformance: tools envoy ## run the conformance scenarios and show the report, scenario x host
	cargo run --release -p attache-conformance

build-envoy: ## build an Envoy with the filters compiled in: bazel-bin/envoy (BUILD_OPTS=..)
	@test/need $(BAZEL)
	$(BAZEL) build $(BUILD_OPTS) //:envoy

test-e2e: tools envoy ## the end-to-end tests alone, also on an Envoy of one's own (ENVOY=..)
	cargo test -p attache-e2e --no-fail-fast $(E2E:%=--test %)

test-envoy: ## test the C++ filter with Envoy's own test libraries (BUILD_OPTS=..)
	@test/need $(BAZEL)
	$(BAZEL) test $(BUILD_OPTS) //test/envoy/...

image: build-envoy ## a container image of that Envoy, called IMAGE (attache-envoy)
	@test/need $(DOCKER)
	$(DOCKER) build --file contrib/deploy/Dockerfile --tag $(IMAGE) "$$(dirname "$$(realpath bazel-bin/envoy)")"

schema: tools ## write the JSON Schema of each filter's config into contrib/filters
	cargo run -p attache-schemas

doc: tools ## build the API docs and say where they are
	cargo doc --workspace --no-deps
	@echo "open target/doc/attache/index.html"

fmt: tools ## format all code
	cargo fmt --all
	test/cxx-format --write

clean: ## remove what was built; the fetched Envoys in .envoy stay
	cargo clean

# ENVOY names a binary to run and to test with instead of the pinned ones: a path, absolute or from
# here. The tests run in other directories.
ifdef ENVOY
override ENVOY := $(shell realpath -sm -- "$(ENVOY)")
export ENVOY
endif
envoy:
	@test -n "$(ENVOY)" || test/fetch-envoy

tools:
	@test/need cargo cc c++ python3
