//! Every RPC of the server over a real socket, mostly with the state machine behind a replicator that applies at once;
//! `restart` runs over a log on disk.
//!
//! What is asserted here: headers, counts, codes and texts as etcd gives them, and that a restart keeps everything.
mod auth;
mod cluster;
mod faults;
mod kv;
mod lease;
mod maintenance;
mod permissions;
mod raw;
mod restart;
mod support;
