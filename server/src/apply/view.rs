//! What the thread that applies publishes for everybody else: term, size, alarms, users and roles, counters.
//!
//! **Contract.** One writer (the state machine), any number of readers, no locks on the paths that every request takes.
//! Values are as of the last flush of the state machine, alarms as of the last applied command.
use super::prefix_quota::PrefixUse;
use crate::auth::AuthState;
use crate::wire::etcdserverpb::{AlarmMember, AlarmType};
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes that an empty store reports. etcd's fresh database file has 5 pages of 4 KiB; clients divide by the size, so
/// it is never 0, and tests run with quotas as small as 13 pages.
pub const EMPTY_STORE_BYTES: i64 = 5 * 4096;

/// Counters of what was applied since the process started, replayed commands left out.
#[derive(Default, Debug)]
pub struct ApplyCounters {
    /// Puts, also those inside transactions.
    pub puts: AtomicU64,
    /// Keys deleted, by whatever command.
    pub keys_deleted: AtomicU64,
    /// Write transactions.
    pub txns: AtomicU64,
    /// Leases granted.
    pub leases_granted: AtomicU64,
    /// Leases revoked, expired ones among them.
    pub leases_revoked: AtomicU64,
    /// Leases whose expiry was applied.
    pub leases_expired: AtomicU64,
    /// Commands refused for the quota of a prefix.
    pub refused_by_prefix: AtomicU64,
}

/// See the module.
pub struct AppliedView {
    term: AtomicU64,
    /// Store size in bytes as reported to clients and compared with the quota.
    size_bytes: AtomicI64,
    /// Bit `1 << AlarmType` is set while an alarm of that type is active on any member.
    alarm_types: AtomicU64,
    alarms: Mutex<Vec<AlarmMember>>,
    auth: ArcSwap<AuthState>,
    prefix_quotas: ArcSwap<Vec<PrefixUse>>,
    /// What was applied so far.
    pub counters: ApplyCounters,
}

impl Default for AppliedView {
    fn default() -> Self {
        Self {
            term: AtomicU64::new(0),
            size_bytes: AtomicI64::new(EMPTY_STORE_BYTES),
            alarm_types: AtomicU64::new(0),
            alarms: Mutex::new(Vec::new()),
            auth: ArcSwap::default(),
            prefix_quotas: ArcSwap::default(),
            counters: ApplyCounters::default(),
        }
    }
}

impl AppliedView {
    /// Term of the last applied entry.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    pub(crate) fn set_term(&self, term: u64) {
        self.term.store(term, Ordering::Relaxed);
    }

    /// The store's size in bytes: never 0, falls when a compaction is applied.
    pub fn size_bytes(&self) -> i64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_size_bytes(&self, bytes: i64) {
        self.size_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Users and roles as of the last applied command.
    pub fn auth(&self) -> Guard<Arc<AuthState>> {
        self.auth.load()
    }

    pub(crate) fn set_auth(&self, state: Arc<AuthState>) {
        self.auth.store(state);
    }

    /// Quotas of prefixes and what they have, sorted by prefix.
    pub fn prefix_quotas(&self) -> Guard<Arc<Vec<PrefixUse>>> {
        self.prefix_quotas.load()
    }

    pub(crate) fn has_prefix_quotas(&self) -> bool {
        !self.prefix_quotas.load().is_empty()
    }

    pub(crate) fn set_prefix_quotas(&self, quotas: Vec<PrefixUse>) {
        self.prefix_quotas.store(Arc::new(quotas));
    }

    /// Active alarms, sorted by type, then by member.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        if self.alarm_types.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True while an alarm of `kind` is active on any member.
    pub fn has_alarm(&self, kind: AlarmType) -> bool {
        self.alarm_types.load(Ordering::Acquire) & (1 << kind as u64) != 0
    }

    pub(crate) fn set_alarms(&self, alarms: Vec<AlarmMember>) {
        let types = alarms.iter().fold(0, |bits, alarm| bits | 1_u64 << (alarm.alarm.clamp(0, 63)));
        *self.alarms.lock().unwrap_or_else(PoisonError::into_inner) = alarms;
        self.alarm_types.store(types, Ordering::Release);
    }
}
