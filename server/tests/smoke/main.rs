//! Every RPC of the server over a real socket, with the state machine behind a replicator that applies at once.
//!
//! What is asserted here: headers, counts, codes and texts as etcd gives them. Durability and restarts are not this file's.
mod cluster;
mod faults;
mod kv;
mod lease;
mod maintenance;
mod support;
