//! When leases end: a state machine without clock, lock or I/O.
//!
//! **Contract.** Time comes in with every call as microseconds of one monotonic clock. [`Lessor::take_due`] hands out leases that
//! ran out; the caller proposes their revocation and says with [`Lessor::revoke_failed`] if that did not work. A lease is gone
//! only when the state machine says so ([`Lessor::ended`]), on every member at the same place in the log.
//!
//! **Invariants.**
//! - L1: every lease has exactly one live entry in the heap, or is being revoked.
//! - L2: a lease is handed out at most once until its revocation failed.
//! - L3: a lease that ran out is never renewed; who tries waits for the outcome.
//!
//! **Cost.** A renewal is one look-up and one store: the heap keeps the old deadline and is put right when that comes up, so each
//! lease costs one heap operation per TTL however often it is renewed. Entries of leases that are gone are thrown away when
//! they outnumber the live ones.
//!
//! **Source**: `server/lease/lessor.go` of etcd 3.7.3: 500 at a time, 3 s until a failed revocation is tried again.
use crate::apply::command::LeaseExpiry;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Leases handed out by one call.
pub const DUE_MAX: usize = 500;
/// Until a revocation that failed is tried again.
const RETRY_US: u64 = 3_000_000;
const US_PER_SECOND: u64 = 1_000_000;

struct Lease {
    /// Seconds.
    ttl: i64,
    deadline_us: u64,
    granted_index: u64,
    /// Handed out, outcome unknown.
    is_revoking: bool,
}

/// (deadline as it was when pushed, lease, grant), earliest first.
type Entry = Reverse<(u64, i64, u64)>;

/// See the module.
#[derive(Default)]
pub struct Lessor {
    leases: HashMap<i64, Lease>,
    deadlines: BinaryHeap<Entry>,
}

/// What a renewal found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renewal {
    /// Runs for this many seconds again.
    Renewed(i64),
    /// There is no such lease.
    Unknown,
    /// It ran out and is being revoked: ask again when [`Lessor::ended`] or [`Lessor::revoke_failed`] was called for it.
    Ending,
}

/// What is left of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remaining {
    /// Whole seconds, 0 when it ran out.
    pub ttl: i64,
    /// Seconds granted.
    pub granted_ttl: i64,
}

fn deadline(now_us: u64, ttl: i64) -> u64 {
    now_us.saturating_add(u64::try_from(ttl).unwrap_or(0).saturating_mul(US_PER_SECOND))
}

impl Lessor {
    /// A lease was granted.
    pub fn granted(&mut self, now_us: u64, lease: i64, ttl: i64, granted_index: u64) {
        let deadline_us = deadline(now_us, ttl);
        self.leases.insert(lease, Lease { ttl, deadline_us, granted_index, is_revoking: false });
        self.push(deadline_us, lease, granted_index);
    }

    /// A lease is gone.
    pub fn ended(&mut self, lease: i64) {
        self.leases.remove(&lease);
    }

    /// Gives every lease its full TTL again: after a start, or when this member begins to keep the time.
    pub fn extend_all(&mut self, now_us: u64) {
        for lease in self.leases.values_mut() {
            lease.deadline_us = deadline(now_us, lease.ttl);
            lease.is_revoking = false;
        }
        self.rebuild();
    }

    fn push(&mut self, deadline_us: u64, lease: i64, granted_index: u64) {
        self.deadlines.push(Reverse((deadline_us, lease, granted_index)));
        if self.deadlines.len() > 2 * self.leases.len() + 1024 {
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let live = self.leases.iter().filter(|(_, lease)| !lease.is_revoking);
        self.deadlines =
            live.map(|(id, lease)| Reverse((lease.deadline_us, *id, lease.granted_index))).collect();
    }

    /// Renews a lease for its granted TTL.
    pub fn renew(&mut self, now_us: u64, lease: i64) -> Renewal {
        match self.leases.get_mut(&lease) {
            None => Renewal::Unknown,
            Some(lease) if lease.is_revoking || lease.deadline_us <= now_us => Renewal::Ending,
            Some(lease) => {
                lease.deadline_us = deadline(now_us, lease.ttl);
                Renewal::Renewed(lease.ttl)
            }
        }
    }

    /// What is left of a lease, none if there is no such lease.
    pub fn remaining(&self, now_us: u64, lease: i64) -> Option<Remaining> {
        let lease = self.leases.get(&lease)?;
        let left_us = lease.deadline_us.saturating_sub(now_us);
        Some(Remaining { ttl: (left_us / US_PER_SECOND) as i64, granted_ttl: lease.ttl })
    }

    /// Every lease, the one that ends first first.
    pub fn list(&self) -> Vec<i64> {
        let mut leases: Vec<_> = self.leases.iter().map(|(id, lease)| (lease.deadline_us, *id)).collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    /// How many leases there are.
    pub fn count(&self) -> usize {
        self.leases.len()
    }

    /// Leases that ran out, at most [`DUE_MAX`], the longest ago first; their revocation is then under way.
    pub fn take_due(&mut self, now_us: u64) -> Vec<LeaseExpiry> {
        let mut due = Vec::new();
        while let Some(&Reverse((pushed_us, id, granted_index))) = self.deadlines.peek() {
            if pushed_us > now_us || due.len() == DUE_MAX {
                break;
            }
            self.deadlines.pop();
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            if lease.granted_index != granted_index || lease.is_revoking {
                continue;
            }
            if lease.deadline_us > now_us {
                let deadline_us = lease.deadline_us;
                self.push(deadline_us, id, granted_index);
                continue;
            }
            lease.is_revoking = true;
            due.push(LeaseExpiry { lease: id, granted_index });
        }
        due
    }

    /// A revocation that [`Lessor::take_due`] asked for did not happen: it comes up again later.
    pub fn revoke_failed(&mut self, now_us: u64, expiry: LeaseExpiry) {
        if let Some(lease) = self.leases.get_mut(&expiry.lease)
            && lease.granted_index == expiry.granted_index
            && lease.is_revoking
        {
            lease.is_revoking = false;
            self.push(now_us.saturating_add(RETRY_US), expiry.lease, expiry.granted_index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sternpost_engine::base::rng::Rng;

    const S: u64 = US_PER_SECOND;

    fn expiry(lease: i64, granted_index: u64) -> LeaseExpiry {
        LeaseExpiry { lease, granted_index }
    }

    #[test]
    fn a_lease_is_due_when_its_ttl_is_over_and_only_once() {
        let mut lessor = Lessor::default();
        lessor.granted(0, 7, 5, 2);
        assert_eq!(lessor.take_due(5 * S - 1), []);
        assert_eq!(lessor.take_due(5 * S), [expiry(7, 2)]);
        assert_eq!(lessor.take_due(50 * S), [], "L2");
        lessor.ended(7);
        assert_eq!(lessor.count(), 0);
    }

    #[test]
    fn renewal_moves_the_end_and_is_answered_with_the_granted_ttl() {
        let mut lessor = Lessor::default();
        lessor.granted(0, 7, 5, 2);
        assert_eq!(lessor.renew(4 * S, 7), Renewal::Renewed(5));
        assert_eq!(lessor.take_due(8 * S), []);
        assert_eq!(lessor.remaining(8 * S, 7), Some(Remaining { ttl: 1, granted_ttl: 5 }));
        assert_eq!(lessor.take_due(9 * S), [expiry(7, 2)]);
        assert_eq!(lessor.renew(0, 8), Renewal::Unknown);
        assert_eq!(lessor.remaining(0, 8), None);
    }

    #[test]
    fn what_ran_out_is_not_renewed_even_before_it_was_handed_out() {
        let mut lessor = Lessor::default();
        lessor.granted(0, 7, 5, 2);
        assert_eq!(lessor.renew(5 * S, 7), Renewal::Ending, "L3");
        assert_eq!(lessor.take_due(5 * S), [expiry(7, 2)]);
        assert_eq!(lessor.renew(6 * S, 7), Renewal::Ending, "L3");
        assert_eq!(lessor.remaining(6 * S, 7), Some(Remaining { ttl: 0, granted_ttl: 5 }));
        lessor.ended(7);
        assert_eq!(lessor.renew(6 * S, 7), Renewal::Unknown);
    }

    #[test]
    fn a_revocation_that_failed_is_tried_again_after_three_seconds() {
        let mut lessor = Lessor::default();
        lessor.granted(0, 7, 5, 2);
        let due = lessor.take_due(5 * S);
        lessor.revoke_failed(6 * S, due[0]);
        assert_eq!(lessor.take_due(9 * S - 1), []);
        assert_eq!(lessor.take_due(9 * S), due);
    }

    #[test]
    fn an_id_granted_again_is_another_lease() {
        let mut lessor = Lessor::default();
        lessor.granted(0, 7, 5, 2);
        lessor.ended(7);
        lessor.granted(S, 7, 60, 9);
        assert_eq!(lessor.take_due(10 * S), []);
        lessor.revoke_failed(10 * S, expiry(7, 2));
        assert_eq!(lessor.take_due(60 * S), []);
        assert_eq!(lessor.take_due(61 * S), [expiry(7, 9)]);
    }

    #[test]
    fn a_start_gives_every_lease_its_full_ttl() {
        let mut lessor = Lessor::default();
        lessor.granted(0, 7, 5, 2);
        assert_eq!(lessor.take_due(5 * S).len(), 1);
        lessor.extend_all(100 * S);
        assert_eq!(lessor.remaining(100 * S, 7), Some(Remaining { ttl: 5, granted_ttl: 5 }));
        assert_eq!(lessor.take_due(105 * S), [expiry(7, 2)]);
    }

    #[test]
    fn many_at_once_come_in_bounded_batches_and_the_list_is_by_end() {
        let mut lessor = Lessor::default();
        for lease in 1..=1200 {
            lessor.granted(0, lease, 2000 - lease, lease as u64);
        }
        assert_eq!(lessor.list(), (1..=1200).rev().collect::<Vec<_>>());
        let counts: Vec<_> = (0..4).map(|_| lessor.take_due(5000 * S).len()).collect();
        assert_eq!(counts, [500, 500, 200, 0]);
    }

    #[test]
    fn revoked_leases_with_long_ttls_do_not_pile_up() {
        let mut lessor = Lessor::default();
        for index in 0..100_000 {
            lessor.granted(0, 7, 9_000_000_000, index);
            lessor.ended(7);
        }
        assert!(lessor.deadlines.len() < 4096, "{} entries", lessor.deadlines.len());
    }

    /// The heap with its late corrections against an obvious table, under random grants, renewals, ends and failures.
    #[test]
    fn it_agrees_with_a_plain_table() {
        let mut rng = Rng::new(3);
        let mut lessor = Lessor::default();
        let mut table: HashMap<i64, (u64, i64, u64)> = HashMap::new();
        let mut now_us = 0;
        for step in 0..20_000_u64 {
            now_us += rng.below(400_000);
            let id = 1 + rng.below(40) as i64;
            match rng.below(4) {
                0 if !table.contains_key(&id) => {
                    let ttl = 2 + rng.below(20) as i64;
                    lessor.granted(now_us, id, ttl, step);
                    table.insert(id, (deadline(now_us, ttl), ttl, step));
                }
                1 => {
                    lessor.ended(id);
                    table.remove(&id);
                }
                2 => {
                    let renewal = lessor.renew(now_us, id);
                    match table.get_mut(&id) {
                        None => assert_eq!(renewal, Renewal::Unknown),
                        Some((end_us, ..)) if *end_us <= now_us => assert_eq!(renewal, Renewal::Ending),
                        Some((end_us, ttl, _)) => {
                            assert_eq!(renewal, Renewal::Renewed(*ttl));
                            *end_us = deadline(now_us, *ttl);
                        }
                    }
                }
                _ => {
                    let mut due = lessor.take_due(now_us);
                    let over = table.iter().filter(|(_, (end_us, ..))| *end_us <= now_us);
                    let mut expected: Vec<_> = over.map(|(id, (_, _, index))| expiry(*id, *index)).collect();
                    due.sort_by_key(|expiry| expiry.lease);
                    expected.sort_by_key(|expiry| expiry.lease);
                    assert_eq!(due, expected, "at {now_us}");
                    for expiry in due {
                        lessor.ended(expiry.lease);
                        table.remove(&expiry.lease);
                    }
                }
            }
        }
    }
}
