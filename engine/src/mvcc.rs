//! etcd's data model: revisions, versions, transactions, compaction, history.
mod bounded;
mod compaction;
mod duplicate_keys;
pub mod encoding;
mod flush;
mod found;
mod history;
mod lease_index;
mod load;
pub mod operation;
mod priors;
mod range;
mod range_counts;
mod range_parts;
mod range_sum;
pub mod scan;
mod state_sum;
pub mod store;
mod view_set;
mod write_txn;
mod writer;

pub use bounded::{BoundedRange, LargeRange};
pub use duplicate_keys::check_duplicate_keys;
pub use flush::CutPosition;
pub(crate) use flush::{CHANGE_SUM_KEY, LEASE_PREFIX, Run, lease_key};
pub(crate) use load::{LoadInto, LoadedVersion};
pub use operation::*;
pub use priors::ReplayPriors;
pub use range::{Outline, SizeOf};
pub use range_counts::COUNTED_RANGES_MAX;
pub use range_parts::{KeyFingerprint, KeyList, PARTS_MAX, RangePart};
pub use range_sum::RangeSum;
#[cfg(feature = "sim")]
pub use range_sum::SumWay;
pub use scan::Scan;
pub use state_sum::StateSum;
pub use store::{
    AnyLease, EventBatch, EventLimits, HeadListener, HeldHistory, Leases, RetainedRecord, Store,
    StoreOptions, StoreStats, Wanted,
};
pub(crate) use view_set::is_dead;
pub(crate) use writer::Changes;
pub use writer::StoreWriter;
