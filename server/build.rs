//! Generates the wire types from `proto/` in pure Rust: protox parses, prost and tonic write the code.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "etcd/api/etcdserverpb/rpc.proto",
        "etcd/api/mvccpb/kv.proto",
        "etcd/api/authpb/auth.proto",
        "etcd/api/v3lockpb/v3lock.proto",
        "etcd/api/v3electionpb/v3election.proto",
        "sternpost/backups.proto",
        "sternpost/ranges.proto",
        "sternpost/usage.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // Read by tests that print any message by reflection.
    let set_path = std::path::Path::new(&std::env::var("OUT_DIR")?).join("etcd.descriptors");
    std::fs::write(set_path, prost::Message::encode_to_vec(&descriptors))?;
    // Keys and values are slices of the received frame all the way into the memtable: `bytes` is `Bytes`.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::wire::codec::EtcdCodec")
        // They hold passwords, hashes or tokens: their Debug is in wire/secret.rs.
        .skip_debug([
            ".etcdserverpb.AuthenticateRequest",
            ".etcdserverpb.AuthenticateResponse",
            ".etcdserverpb.AuthUserAddRequest",
            ".etcdserverpb.AuthUserChangePasswordRequest",
            ".authpb.User",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
