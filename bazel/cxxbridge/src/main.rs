//! Writes the C++ half of a cxx bridge: `attache-cxxbridge IN.rs OUT.h OUT.cc INCLUDE`, where INCLUDE
//! is how C++ includes the header.
//!
//! With Cargo, cxx-build does this in a build script. For Bazel it is an action, and this its tool.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, header, source, include] = arguments.as_slice() else {
        return Err("usage: attache-cxxbridge IN.rs OUT.h OUT.cc INCLUDE".into());
    };
    let tokens = fs::read_to_string(input)?.parse()?;
    let generated = cxx_gen::generate_header_and_cc(tokens, &cxx_gen::Opt::default())?;
    fs::write(header, generated.header)?;
    let include = format!("#include \"{include}\"\n").into_bytes();
    fs::write(source, [include, generated.implementation].concat())?;
    Ok(())
}
