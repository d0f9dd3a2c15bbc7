//! Tools around Sternpost: the client and load generator `sternctl`, and the checks of this repository.
//!
//! May use everything below (engine, replication, the server's wire types); nothing uses this crate.
//!
//! Reading order: `ctl` (command line, connections, output), the commands in `kv`, `watch`, `lease`, `auth`, `endpoint`, `compare` and `snapshot`,
//! `inspect`, `verify`, `salvage`, `backup` and `recover` for data directories (with `progress`), the load generator in `bench`, the checks in `tidy`.
#![forbid(unsafe_code)]

mod auth;
mod backup;
pub mod bench;
mod compare;
pub mod ctl;
mod endpoint;
mod inspect;
mod kv;
mod lease;
mod progress;
mod recover;
mod remote_backup;
mod salvage;
mod snapshot;
pub mod tidy;
mod verify;
mod watch;
