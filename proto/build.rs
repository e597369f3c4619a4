//! Compiles the `.proto` files in Rust alone: nobody needs protoc to build.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let files = ["kv/v1/kv.proto", "kv/v1/cluster.proto", "kv/v1/peer.proto"];
    // Source information carries the comments: they become the documentation of the generated types.
    let descriptors = protox::compile(files, ["proto"])?;
    fs::write(out.join("kv_v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Shared slices: an answer is encoded without copying its values first.
        .bytes(".")
        // Many times as large as its neighbour.
        .boxed(".kv.v1.WatchResponse.item.snapshot")
        .compile_fds(descriptors)?;
    Ok(())
}
