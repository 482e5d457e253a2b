//! Every filter of this repository in one list: the ready-made ones, those that the conformance
//! scenarios, the end-to-end tests and the bench use, and those of the test of the bridge.

#![forbid(unsafe_code)]

mod bridge;

attache_cxx::filters! {
    api_key,
    attache_bench_filters,
    attache_conformance,
    attache_e2e_filters,
    bridge,
    echo,
    ext_authz,
    hello,
    jwt,
    redact,
}
