//! Sternpost's server: etcd's v3 API over replication and engine.
#![forbid(unsafe_code)]

pub mod answers;
pub mod apply;
pub mod auth;
pub mod backups;
pub mod compactor;
pub mod comparison;
pub mod config;
pub mod corked;
pub mod diagnostics;
pub mod discovery;
pub mod etcd_snapshot;
pub mod first_turn;
pub mod gateway;
pub mod grpc;
pub mod grpc_limits;
pub mod http;
pub mod identity;
pub mod join;
pub mod large_answer;
pub mod lease;
pub mod listener;
pub mod logging;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod recipes;
pub mod request;
pub mod run;
pub mod server;
pub mod services;
pub mod supervisor;
pub mod tls;
pub mod watch;
pub mod wire;
