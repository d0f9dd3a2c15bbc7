//! Watches: the hub against a naive model under random schedules, and a real server under clients that are slow, many, or rude.
//!
//! What a client may see of a single watch (ids, filters, fragments, progress, compaction) is in `api/watch_*.txt`, recorded from etcd.
mod support;
mod watching;
