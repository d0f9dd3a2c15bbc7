//! What the tests that run real server processes share.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

pub mod case_file;
pub mod changes;
pub mod cluster;
pub mod command;
pub mod forge;
pub mod gateway_client;
pub mod history;
pub mod latency;
pub mod names;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod raw_client;
pub mod raw_http2;
pub mod register;
pub mod seconds;
pub mod seen;
pub mod session;
pub mod starvation;
pub mod text;
pub mod tls;
