//! etcd's protobuf: generated messages, servers and clients of every service on the client port.
//!
//! **Layout.** One module per protobuf package, named as the package, side by side because the generated code refers
//! from one to the other. `bytes` fields are `bytes::Bytes`, so that a decoded key or value is a slice of the received frame.
//! prost spells `peerURLs` as `peer_ur_ls`; on the wire and in the proto files the names are etcd's.
//!
//! **Does not know** what a message means.
//!
//! **Source**: `proto/etcd`, after etcd 3.7.3; `proto/sternpost` is our own.
pub mod codec;
pub mod convert;
mod secret;
pub mod status;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod authpb {
    tonic::include_proto!("authpb");
}
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod sternpostpb {
    tonic::include_proto!("sternpostpb");
}
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
