//! Which keys are attached to which lease.
//!
//! The writer keeps it current with every change; readers ask for the keys of one lease. Leases themselves live
//! elsewhere: here they are opaque numbers.
//!
//! Invariant M5: a key is in the set of exactly the lease that its newest version names, and in none if that is 0
//! or the key does not exist.
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::RwLock;

/// See the module.
#[derive(Default)]
pub(crate) struct LeaseIndex {
    keys: RwLock<BTreeMap<i64, BTreeSet<Bytes>>>,
}

impl LeaseIndex {
    /// Moves a key from one lease to another; 0 stands for none.
    #[inline]
    pub(crate) fn change(&self, key: &Bytes, from: i64, to: i64) {
        if from != to {
            self.move_key(key, from, to);
        }
    }

    fn move_key(&self, key: &Bytes, from: i64, to: i64) {
        let mut leases = self.keys.write().expect("nothing panics while it holds this lock");
        if let Some(keys) = leases.get_mut(&from) {
            keys.remove(key);
            if keys.is_empty() {
                leases.remove(&from);
            }
        }
        if to != 0 {
            leases.entry(to).or_default().insert(key.clone());
        }
    }

    /// Keys attached to a lease, sorted.
    pub(crate) fn keys(&self, lease: i64) -> Vec<Bytes> {
        let leases = self.keys.read().expect("nothing panics while it holds this lock");
        leases.get(&lease).into_iter().flatten().cloned().collect()
    }
}
