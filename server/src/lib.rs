//! Sternpost's server: etcd's v3 API over replication and engine.
#![forbid(unsafe_code)]

pub mod config;
pub mod wire;
