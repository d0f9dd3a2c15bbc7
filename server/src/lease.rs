//! Leases in time: renewals, what is left, and the loop that revokes what ran out.
//!
//! **Contract.** [`Leases`] is the lessor behind a lock with a clock: the state machine tells it what was granted and
//! ended ([`Notices`]), clients renew through it without touching the log, and [`run_expiry`] revokes through the log what ran
//! out. Losing the process loses no lease, only the time: a start gives every lease its full TTL again, as etcd does.
//!
//! **Bounds.** Every [`EXPIRY_TICK`] at most [`lessor::DUE_MAX`] revocations, [`REVOKES_MAX`] of them at a time.
//!
//! **Who keeps the time**: the leader, once it has proved itself; every lease then gets its full TTL and an election timeout, as in etcd. A
//! revocation is proposed in the leader's term and in no other, and names the grant. Other members' clients are served through it, see
//! [`keeper`].
//!
//! **Why a barrier before revoking**: a member that was frozen, or that no longer leads without knowing, must not end leases that
//! others keep alive. One read barrier per tick proves it.
pub mod keeper;
pub mod lessor;

use crate::apply::command::LeaseExpiry;
use crate::apply::{Notice, Notices};
use crate::request::Pipeline;
use crate::wire::status::ApiError;
use lessor::{Lessor, Remaining, Renewal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sternpost_engine::base::clock::Clock;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often expired leases are looked for.
pub const EXPIRY_TICK: Duration = Duration::from_millis(500);
/// Revocations under way at a time.
pub const REVOKES_MAX: usize = 16;

/// See the module. Shared by the thread that applies and by the services.
pub struct Leases {
    lessor: Mutex<Lessor>,
    /// Moves whenever a revocation was decided; keepalives of ending leases wait for it.
    decided: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
    /// Added to every TTL when this member begins to keep the time.
    grace: Duration,
    /// The term in which it does.
    kept_term: Mutex<Option<u64>>,
}

impl Leases {
    /// No leases yet. `grace` is an election timeout where there are elections; `clock` is this process's alone.
    pub fn new(grace: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            lessor: Mutex::default(),
            decided: watch::Sender::new(0),
            clock,
            grace,
            kept_term: Mutex::default(),
        }
    }

    fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    fn lessor(&self) -> MutexGuard<'_, Lessor> {
        self.lessor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews a lease: its TTL, or 0 if there is no such lease. One that is being revoked is waited for, until `timeout`.
    pub async fn renew(&self, lease: i64, timeout: Duration) -> Result<i64, ApiError> {
        let answer = |renewal| match renewal {
            Renewal::Renewed(ttl) => Some(ttl),
            Renewal::Unknown => Some(0),
            Renewal::Ending => None,
        };
        let now_us = self.now_us();
        let first = answer(self.lessor().renew(now_us, lease));
        if let Some(ttl) = first {
            return Ok(ttl);
        }
        let mut decided = self.decided.subscribe();
        let outcome = async {
            loop {
                let now_us = self.now_us();
                let renewal = answer(self.lessor().renew(now_us, lease));
                if let Some(ttl) = renewal {
                    return ttl;
                }
                // The sender lives as long as `self`.
                let _ = decided.changed().await;
            }
        };
        tokio::time::timeout(timeout, outcome).await.map_err(|_| ApiError::Timeout)
    }

    /// What is left of a lease, none if there is no such lease.
    pub fn remaining(&self, lease: i64) -> Option<Remaining> {
        let now_us = self.now_us();
        self.lessor().remaining(now_us, lease)
    }

    /// Every lease, the one that ends first first.
    pub fn list(&self) -> Vec<i64> {
        self.lessor().list()
    }

    /// How many leases there are.
    pub fn count(&self) -> usize {
        self.lessor().count()
    }

    /// Gives every lease its full TTL from now on.
    pub fn extend_all(&self) {
        let now_us = self.now_us();
        self.lessor().extend_all(now_us);
    }

    /// This member leads in `term` and has proved it: from the first call in a term on the time is its own, and every lease has its full TTL
    /// and the grace. Until then its clock knew nothing of renewals; who waits for a lease that seemed to end looks again.
    pub fn take_over(&self, term: u64) {
        let mut kept_term = self.kept_term.lock().unwrap_or_else(PoisonError::into_inner);
        if *kept_term == Some(term) {
            return;
        }
        *kept_term = Some(term);
        let grace_us = u64::try_from(self.grace.as_micros()).unwrap_or(0);
        let now_us = self.now_us().saturating_add(grace_us);
        self.lessor().extend_all(now_us);
        self.decide();
    }

    fn decide(&self) {
        self.decided.send_modify(|count| *count += 1);
    }
}

/// The state machine's end of [`Leases`].
pub struct LeaseNotices(pub Arc<Leases>);

impl Notices for LeaseNotices {
    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::LeaseGranted { lease, ttl, granted_index } => {
                let now_us = self.0.now_us();
                self.0.lessor().granted(now_us, lease, ttl, granted_index);
            }
            Notice::LeaseEnded { lease } => {
                self.0.lessor().ended(lease);
                self.0.decide();
            }
            Notice::Compacting
            | Notice::MembersChanged
            | Notice::Marked { .. }
            | Notice::TokenAssigned { .. }
            | Notice::TokensDropped { .. }
            | Notice::AuthDisabled => {}
        }
    }
}

/// Revokes what runs out, until it is dropped.
pub async fn run_expiry(leases: Arc<Leases>, pipeline: Arc<Pipeline>) {
    let mut ticks = tokio::time::interval(EXPIRY_TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut revokes = JoinSet::new();
        for (expiry, term) in take_due(&leases, &pipeline).await {
            if revokes.len() == REVOKES_MAX {
                let _ = revokes.join_next().await;
            }
            revokes.spawn(expire(Arc::clone(&leases), Arc::clone(&pipeline), expiry, term));
        }
        while revokes.join_next().await.is_some() {}
    }
}

/// What ran out and is for this member to revoke, with the term in which it may: it has proved that it leads. To be asked every [`EXPIRY_TICK`].
pub async fn take_due(leases: &Leases, pipeline: &Pipeline) -> Vec<(LeaseExpiry, u64)> {
    let Some(term) = pipeline.replicator().status().proved_term else { return Vec::new() };
    leases.take_over(term);
    let now_us = leases.now_us();
    let due = leases.lessor().take_due(now_us);
    if due.is_empty() {
        return Vec::new();
    }
    let is_proved =
        pipeline.read_barrier().await.is_ok() && pipeline.replicator().status().proved_term == Some(term);
    if !is_proved {
        due.into_iter().for_each(|expiry| leases.lessor().revoke_failed(now_us, expiry));
        return Vec::new();
    }
    due.into_iter().map(|expiry| (expiry, term)).collect()
}

/// Revokes one lease that ran out.
pub async fn expire(leases: Arc<Leases>, pipeline: Arc<Pipeline>, expiry: LeaseExpiry, term: u64) {
    // A lease that was revoked meanwhile is as gone as one that was revoked now.
    if let Err(error) = pipeline.lease_expire(expiry, term).await
        && error != ApiError::LeaseNotFound
    {
        tracing::warn!(lease = format!("{:016x}", expiry.lease), %error, "failed to revoke lease");
        let now_us = leases.now_us();
        leases.lessor().revoke_failed(now_us, expiry);
        leases.decide();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sternpost_engine::base::clock::MonotonicClock;

    /// A follower's clock knows nothing of renewals: leases that were kept for hours seem to have ended long ago when it begins to lead.
    #[tokio::test]
    async fn who_takes_over_ends_no_lease_that_was_kept_elsewhere() {
        let leases = Leases::new(Duration::from_hours(1), Arc::new(MonotonicClock::default()));
        leases.lessor().granted(0, 7, 0, 1);
        let early = tokio::time::timeout(Duration::ZERO, leases.renew(7, Duration::from_hours(1))).await;
        assert!(early.is_err(), "it seems to end");
        leases.take_over(5);
        assert_eq!(leases.lessor().renew(0, 7), Renewal::Renewed(0), "its full TTL and the grace");
        assert!(leases.lessor().take_due(leases.now_us()).is_empty());
        // Once in a term: the time that passes then counts.
        leases.lessor().granted(0, 8, 0, 2);
        leases.take_over(5);
        assert_eq!(leases.lessor().take_due(leases.now_us()).len(), 1);
    }
}
