//! The filters that are compiled into Envoy. To add one, name its crate here and among the
//! dependencies (for Bazel: of `BUILD.bazel`).

#![forbid(unsafe_code)]

attache_cxx::filters! {
    api_key,
    echo,
    ext_authz,
    hello,
    jwt,
    redact,
}
