//! What the log says that members have promised, before it is applied.
//!
//! A mark at the end of a log is known to be committed only when somebody leads again. Who comes with an older disk by then would be let in, and would have everything soon: so
//! what marks say counts as soon as they are read. It is true whether the entry is committed or not.
//!
//! **Bounds.** [`MEMBERS_MAX`] members; of more nothing is kept.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

const MEMBERS_MAX: usize = 1024;

/// See the module. Member to (term, index).
#[derive(Default)]
pub struct Promises(Mutex<BTreeMap<u64, (u64, u64)>>);

impl Promises {
    /// A member has taken part in the term, and holds the log up to the index.
    pub fn raise(&self, member: u64, (term, index): (u64, u64)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MEMBERS_MAX && !known.contains_key(&member) {
            return;
        }
        let (known_term, known_index) = known.entry(member).or_default();
        *known_term = term.max(*known_term);
        *known_index = index.max(*known_index);
    }

    /// What is known of a member; zeros for nothing.
    pub fn of(&self, member: u64) -> (u64, u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&member).copied().unwrap_or_default()
    }
}
