//! The one log: ordered, durable, typed records. The embedded database writes its operations to it, replication
//! its entries; a checkpoint will decide how much of it is still needed.
//!
//! **Contract.** `append` puts a record into the filling group and says at which position it will be. A group goes
//! to disk as soon as one of the slots for groups in flight is free. A record is durable when its position is below
//! [`Wal::durable_lsn`], which only moves forward and only in order. After a failed write or sync the log is
//! poisoned: nothing more is written or acknowledged until it is recovered anew.
//!
//! **Does not know** the bodies of records, pages, keys, or what a vote or a leader is. Of a caller's record it reads
//! the group id and the index; of a `HardState` record the index is the commit index, the second witness of what
//! was acknowledged.
pub mod format;
