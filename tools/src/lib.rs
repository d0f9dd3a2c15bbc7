//! Tools around Sternpost: the client and load generator `sternctl`, and the checks of this repository.
//!
//! May use everything below (engine, replication, the server's wire types); nothing uses this crate.
//!
//! Reading order: `ctl` (command line, connections, output), the commands in `kv`, `watch`, `lease`, `auth`, `endpoint`, `member`,
//! `maintenance`, `lock`, `elect` (with `session`), `mirror`, `check`, `compare`, `quota`, `warnings`, `heavy`, `top`, `about` and `snapshot`,
//! `inspect`, `verify`, `salvage`, `backup` and `recover` for data directories (with `progress`), the load generator in `bench`, the checks in `tidy`.
#![forbid(unsafe_code)]

mod about;
mod auth;
mod backup;
pub mod bench;
mod check;
mod compare;
pub mod ctl;
mod elect;
mod endpoint;
mod heavy;
mod inspect;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod member;
mod mirror;
mod progress;
mod quota;
mod recover;
mod remote_backup;
mod salvage;
mod session;
mod snapshot;
pub mod tidy;
mod top;
mod verify;
mod warnings;
mod watch;
