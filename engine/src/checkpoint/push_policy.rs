//! When what is pending goes down to its leaf: a function of sizes, without any I/O.
//!
//! **The trade.** A leaf costs a page when it is written, however little changes in it. What waits instead costs its own bytes again at
//! each checkpoint that changes its page of the pending tree, which with scattered changes is every one. Let a checkpoint bring `m`
//! bytes of changes to a leaf, let a leaf be written when `T` bytes wait for it, and let a page have `P` bytes. Then a leaf is written once
//! in `T / m` checkpoints, and `T / 2` bytes of it wait on average:
//!
//! ```text
//! bytes per leaf and checkpoint = P m / T  +  T / 2        least at  T = sqrt(2 m P)
//! ```
//!
//! `m` is taken as the run has it: bytes of its changes by leaves that they are in.
//!
//! **Spread.** Leaves that all began to fill together would all be due together, and one checkpoint in a dozen would write the whole tree.
//! So each is due at a size of its own between half of `T` and one and a half, drawn from the checksum in its reference: the same at
//! each look, another one when it has been written.
//!
//! **Bounds.** P1: a leaf for which more than one and a half times [`PushPolicy::bytes_max`] wait is due whenever a checkpoint changes
//! something in its range.
use crate::tree::PageRef;

/// Less is not worth the wait: `T` is at least the page by so many.
const PAGE_SHARE_MIN: u64 = 32;
/// What waits for a leaf by default, in percent of a page, at most: the pending tree is then about a sixth of the leaves at worst, which is
/// memory and disk, and a twelfth with changes that are spread evenly.
pub(super) const PENDING_PERCENT_MAX: u32 = 25;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PushPolicy {
    /// `T`; 0: a leaf is due at once.
    push_bytes: u64,
}

impl PushPolicy {
    /// For a run that brings `change_bytes` to `leaves` leaves of pages of `page_bytes`. At most `percent_max` of a page may wait for a leaf.
    pub(super) fn new(change_bytes: u64, leaves: u64, page_bytes: u64, percent_max: u32) -> Self {
        let bytes_max = page_bytes.saturating_mul(u64::from(percent_max)) / 100;
        let per_leaf = change_bytes / leaves.max(1);
        let best = per_leaf.saturating_mul(2).saturating_mul(page_bytes).isqrt();
        Self { push_bytes: best.clamp((page_bytes / PAGE_SHARE_MIN).min(bytes_max), bytes_max) }
    }

    /// So much may wait for this leaf, and no more.
    fn due_bytes(&self, leaf: &PageRef) -> u64 {
        // The checksum of a page is as good as drawn.
        let spread = self.push_bytes.saturating_mul(u64::from(leaf.crc >> 16)) >> 16;
        self.push_bytes / 2 + spread
    }

    /// True if the leaf is to be written, with so many bytes of changes waiting for it, new ones included.
    pub(super) fn is_due(&self, waiting_bytes: u64, leaf: &PageRef) -> bool {
        waiting_bytes >= self.due_bytes(leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 16 << 10;

    fn leaf(crc: u32) -> PageRef {
        PageRef { crc, ..PageRef::NOWHERE }
    }

    #[test]
    fn what_waits_is_the_root_of_what_it_costs() {
        let push_bytes = |change_bytes, leaves| PushPolicy::new(change_bytes, leaves, PAGE, 25).push_bytes;
        // 60,000 changes of 55 bytes: to 14,000 leaves, to 60,000, to one.
        assert_eq!(push_bytes(3_300_000, 14_000), 2_774);
        assert_eq!(push_bytes(3_300_000, 60_000), 1_342);
        assert_eq!(push_bytes(3_300_000, 1), PAGE / 4);
        assert_eq!(push_bytes(0, 0), PAGE / 32);
        assert_eq!(push_bytes(u64::MAX, 1), PAGE / 4);
    }

    #[test]
    fn each_leaf_is_due_at_a_size_of_its_own() {
        let policy = PushPolicy::new(3_300_000, 14_000, PAGE, 25);
        let (first, last) = (policy.due_bytes(&leaf(0)), policy.due_bytes(&leaf(u32::MAX)));
        assert_eq!(first, policy.push_bytes / 2);
        assert!(last > policy.push_bytes * 149 / 100 && last < policy.push_bytes * 3 / 2, "{last}");
        assert!(!policy.is_due(first - 1, &leaf(0)) && policy.is_due(first, &leaf(0)));
        // P1.
        assert!(policy.is_due(PAGE / 4 * 3 / 2, &leaf(u32::MAX)));
    }

    #[test]
    fn nothing_waits_where_nothing_may() {
        let policy = PushPolicy::new(3_300_000, 14_000, PAGE, 0);
        assert!(policy.is_due(0, &leaf(u32::MAX)));
    }
}
