//! Tools around Sternpost: the client and benchmark program `sternctl`, and the checks of this repository.
//!
//! May use everything below (engine, replication, the server's wire types); nothing uses this crate.
//!
//! Reading order: `tidy` (checks of the repository).
pub mod tidy;
