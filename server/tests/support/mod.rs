//! What the tests that run real server processes share.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

pub mod case_file;
pub mod cluster;
pub mod command;
pub mod forge;
pub mod process;
pub mod raw_client;
pub mod register;
pub mod session;
pub mod text;
pub mod tls;
