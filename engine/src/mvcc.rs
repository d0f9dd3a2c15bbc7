//! etcd's data model: revisions, versions, transactions, compaction, history.
pub mod encoding;
pub mod operation;
pub mod store;

pub use operation::*;
pub use store::{
    AnyLease, EventBatch, HeadListener, Leases, RetainedRecord, Store, StoreOptions, StoreStats, StoreWriter,
    check_duplicate_keys,
};
