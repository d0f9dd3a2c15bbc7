//! Quotas of prefixes: how many keys may begin with certain bytes. Replicated, kept until they are taken back.
//!
//! **Contract.** A command that would create a key beyond a quota is refused as a whole, on every member alike: a quota is a system record, and what a prefix has is
//! counted by the engine (C1 there), so both follow from the log alone (A1). What changes or deletes keys is never refused, nor is anything where a quota is
//! lower than what is there: it only keeps more from coming.
//!
//! **Cost.** Nothing without quotas. With them a put looks at the prefixes of its key; whether it creates it is asked only where a prefix is full. A
//! transaction is evaluated beforehand only if all of its puts together could be too many.
//!
//! **What a transaction deletes** is not taken off what it creates: at a full prefix a key is renamed by two requests, the deletion first.
use super::command::{Command, PrefixQuota};
use super::{Context, Machine, Outcome};
use crate::wire::etcdserverpb::request_op::Request as Op;
use crate::wire::etcdserverpb::{RequestOp, TxnRequest};
use crate::wire::status::ApiError;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use sternpost_engine::base::codec::Reader;
use sternpost_engine::mvcc::{COUNTED_RANGES_MAX, KeyRange, Store, Txn};
use tonic::Code;

/// Most prefixes with a quota.
pub const QUOTAS_MAX: usize = COUNTED_RANGES_MAX;
/// Longest prefix, bytes.
pub const PREFIX_BYTES_MAX: usize = 1024;

const FORMAT_VERSION: u8 = 1;
/// System records: this and a prefix; a format version u8 and the most keys u64, little-endian.
const RECORD_PREFIX: &[u8] = b"quota/";

/// A quota and what there is of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixUse {
    /// With what keys begin.
    pub prefix: Bytes,
    /// Most keys that may.
    pub keys_max: u64,
    /// Keys that do.
    pub keys: u64,
}

/// All quotas, by prefix.
#[derive(Default)]
pub(super) struct PrefixQuotas {
    keys_max: BTreeMap<Bytes, u64>,
}

impl PrefixQuotas {
    /// What the system records hold.
    ///
    /// # Panics
    /// A3: a record of another build.
    pub(super) fn load(store: &Store) -> Self {
        let one = |(key, record): (Bytes, Bytes)| -> Option<(Bytes, u64)> {
            let mut reader = Reader::new(&record);
            let is_known = reader.u8().ok()? == FORMAT_VERSION;
            let keys_max = reader.u64().ok()?;
            (is_known && reader.is_empty()).then(|| (key.slice(RECORD_PREFIX.len()..), keys_max))
        };
        let records = store.system_scan(RECORD_PREFIX);
        let load = |record: (Bytes, Bytes)| {
            let key = record.0.clone();
            one(record).unwrap_or_else(|| panic!("A3: the quota record {key:?} is of this build"))
        };
        Self { keys_max: records.into_iter().map(load).collect() }
    }

    fn is_empty(&self) -> bool {
        self.keys_max.is_empty()
    }

    fn ranges(&self) -> Vec<KeyRange> {
        self.keys_max.keys().cloned().map(KeyRange::of_prefix).collect()
    }

    /// The first quota that so many more keys would exceed; `more` says how many begin with a prefix.
    fn exceeded(&self, keys: impl Iterator<Item = u64>, more: impl Fn(&[u8]) -> u64) -> Option<PrefixUse> {
        let mut uses = self.keys_max.iter().zip(keys);
        let found = uses.find(|((prefix, keys_max), keys)| {
            let more = more(prefix);
            more > 0 && keys.saturating_add(more) > **keys_max
        });
        found.map(|((prefix, keys_max), keys)| PrefixUse {
            prefix: prefix.clone(),
            keys_max: *keys_max,
            keys,
        })
    }
}

/// Of a transaction's puts, on all branches, those that begin with `prefix`.
fn puts_below(txn: &TxnRequest, prefix: &[u8]) -> u64 {
    let of = |operation: &RequestOp| match &operation.request {
        Some(Op::RequestPut(put)) => u64::from(put.key.starts_with(prefix)),
        Some(Op::RequestTxn(txn)) => puts_below(txn, prefix),
        _ => 0,
    };
    txn.success.iter().chain(&txn.failure).map(of).sum()
}

/// No text of etcd's: it has no such quota.
fn refused(found: &PrefixUse) -> ApiError {
    let PrefixUse { prefix, keys_max, keys } = found;
    let text = format!(
        "sternpost: the quota of keys that begin with \"{}\" is used up: {keys} of {keys_max}",
        prefix.escape_ascii()
    );
    ApiError::Other(Code::ResourceExhausted, text.into())
}

impl Machine {
    /// Reads the quotas and counts what they are about.
    pub(super) fn load_prefix_quotas(&mut self) {
        self.prefix_quotas = PrefixQuotas::load(self.writer.store());
        self.count_prefixes().unwrap_or_else(|error| {
            panic!(
                "A5: the keys under a quota cannot be counted, since the disk of this member fails: {error}"
            )
        });
        self.publish_prefixes();
    }

    fn count_prefixes(&mut self) -> Result<(), ApiError> {
        Ok(self.writer.count_ranges(self.prefix_quotas.ranges())?)
    }

    /// What others read.
    pub(super) fn publish_prefixes(&mut self) {
        if self.prefix_quotas.is_empty() && !self.view.has_prefix_quotas() {
            return;
        }
        let quotas = self.prefix_quotas.keys_max.iter().zip(self.writer.counted_keys());
        let uses = quotas.map(|((prefix, keys_max), keys)| PrefixUse {
            prefix: prefix.clone(),
            keys_max: *keys_max,
            keys,
        });
        self.view.set_prefix_quotas(uses.collect());
    }

    /// Refuses what would create more keys than a quota lets be.
    pub(super) fn admit_by_prefix(&mut self, context: Context, command: &Command) -> Result<(), ApiError> {
        if self.prefix_quotas.is_empty() {
            return Ok(());
        }
        let exceeded = match command {
            Command::Put(put) => {
                let more = |prefix: &[u8]| u64::from(put.key.starts_with(prefix));
                match self.prefix_quotas.exceeded(self.writer.counted_keys(), more) {
                    Some(found) if self.writer.would_create(&put.clone().into())? => Some(found),
                    _ => None,
                }
            }
            Command::Txn(txn) => {
                let most = |prefix: &[u8]| puts_below(txn, prefix);
                if self.prefix_quotas.exceeded(self.writer.counted_keys(), most).is_none() {
                    return Ok(());
                }
                let created = self.writer.keys_created_by(&Txn::from(txn.clone()), &self.leases)?;
                let more =
                    |prefix: &[u8]| created.iter().filter(|key| key.starts_with(prefix)).count() as u64;
                self.prefix_quotas.exceeded(self.writer.counted_keys(), more)
            }
            _ => None,
        };
        match exceeded {
            Some(found) => {
                context.count(&self.view.counters.refused_by_prefix, 1);
                Err(refused(&found))
            }
            None => Ok(()),
        }
    }

    /// Sets, changes or takes back a quota.
    pub(super) fn set_prefix_quota(&mut self, quota: PrefixQuota) -> Result<Outcome, ApiError> {
        let PrefixQuota { prefix, keys_max } = quota;
        let prefix = Bytes::from(prefix);
        let mut key = BytesMut::with_capacity(RECORD_PREFIX.len() + prefix.len());
        key.put_slice(RECORD_PREFIX);
        key.put_slice(&prefix);
        let key = key.freeze();
        match keys_max {
            Some(keys_max) => {
                let quotas = &self.prefix_quotas.keys_max;
                if quotas.len() >= QUOTAS_MAX && !quotas.contains_key(&prefix) {
                    let text =
                        format!("sternpost: {QUOTAS_MAX} prefixes have a quota, and no more can have one");
                    return Err(ApiError::Other(Code::ResourceExhausted, text.into()));
                }
                let mut record = BytesMut::with_capacity(9);
                record.put_u8(FORMAT_VERSION);
                record.put_u64_le(keys_max);
                self.writer.system_put(key, record.freeze());
                self.prefix_quotas.keys_max.insert(prefix, keys_max);
            }
            None => {
                if self.prefix_quotas.keys_max.remove(&prefix).is_none() {
                    let text = "sternpost: this prefix has no quota";
                    return Err(ApiError::Other(Code::NotFound, text.into()));
                }
                self.writer.system_delete(&key);
            }
        }
        self.count_prefixes()?;
        self.publish_prefixes();
        Ok(Outcome::PrefixQuota { revision: self.writer.store().revision() })
    }
}
