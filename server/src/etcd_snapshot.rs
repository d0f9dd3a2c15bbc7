//! etcd's snapshot file: what `etcdctl snapshot save` fetches and `etcdutl snapshot restore` takes, written and read.
//!
//! **Layout.** A database file of bbolt (see [`format`]), and behind it the 32 bytes of its SHA-256. Its buckets are etcd's (see [`buckets`]);
//! `server/docs/snapshot.md` says what of ours goes where.
//!
//! **Why here** and not a crate of its own: the file is etcd's wire format as much as its protobuf is, what it holds are the server's records,
//! and who else needs it (`sternctl`, a fuzzer) may use the server.
//!
//! **Reading order**: [`format`], [`write`], [`read`], [`buckets`], [`export`], [`import`], [`status`].
pub mod buckets;
pub mod export;
pub mod format;
pub mod import;
pub mod read;
pub mod status;
pub mod write;

#[cfg(test)]
mod tests;
