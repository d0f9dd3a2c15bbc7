//! Sternpost's server: etcd's v3 API over replication and engine.
#![forbid(unsafe_code)]

pub mod apply;
pub mod config;
pub mod lease;
pub mod request;
pub mod services;
pub mod wire;
