//! The state of a store as etcd's snapshot file.
//!
//! **Contract.** Everything is of one moment ([`Store::hold`]) and of one revision: the history from the compact revision on, tombstones included, so
//! that HashKV over the file is HashKV over the store; leases, alarms, users, roles and members. Bytes of the file are known before its
//! first one is written. In memory are, besides what the held state keeps, two bits for each record on disk and the leases.
//!
//! **Cost.** The history is read twice (see [`write`](super::write)).
//!
//! **Does not know** who takes the file.
use super::buckets::{self, LeaseMessage, REVISION_BYTES};
use super::write::{FileWriter, Plan};
use crate::apply::records;
use crate::config::ETCD_CLUSTER_VERSION;
use crate::request::kv_hash::encode_record;
use crate::wire::etcdserverpb::Member;
use prost::Message;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use sternpost_engine::OperationError;
use sternpost_engine::base::ids::Revision;
use sternpost_engine::mvcc::{HeldHistory, Store};

/// Why there is no file.
#[derive(Debug)]
pub enum ExportError {
    /// The store cannot be read.
    Store(OperationError),
    /// Whoever takes the file does not take more of it.
    Sink(io::Error),
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        Self::Sink(error)
    }
}

/// A bucket that is small enough to be in memory.
type Small = BTreeMap<Vec<u8>, Vec<u8>>;

/// A file that is planned and not written.
pub struct Export {
    held: HeldHistory,
    /// All but the history, by name.
    small: BTreeMap<&'static [u8], Small>,
    plan: Plan,
}

impl Export {
    /// Holds the store as it is now and plans its file. Blocks for as long as a reading of the history takes.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn plan(store: &Store) -> Result<Self, ExportError> {
        let held = store.hold();
        let small = small_buckets(&held);
        let plan = write_all(&held, &small, FileWriter::planning())?;
        Ok(Self { held, small, plan })
    }

    /// Bytes of the file, without a SHA-256.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// The revision that it is of.
    pub fn revision(&self) -> i64 {
        self.held.revision()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of the sink, and what cannot be read.
    pub fn write(&self, sink: impl Write) -> Result<(), ExportError> {
        write_all(&self.held, &self.small, FileWriter::new(sink, self.plan)?).map(drop)
    }
}

/// Buckets in the order of their names, as a file has them.
fn write_all<W: Write>(
    held: &HeldHistory,
    small: &BTreeMap<&'static [u8], Small>,
    mut writer: FileWriter<W>,
) -> Result<Plan, ExportError> {
    let mut names: Vec<&[u8]> = small.keys().copied().chain([buckets::KEY]).collect();
    names.sort_unstable();
    for name in names {
        match small.get(name) {
            Some(keys) => keys.iter().try_for_each(|(key, value)| writer.put(key, value))?,
            None => write_history(held, &mut writer)?,
        }
        writer.end_bucket(name)?;
    }
    Ok(writer.finish()?)
}

fn write_history<W: Write>(held: &HeldHistory, writer: &mut FileWriter<W>) -> Result<(), ExportError> {
    let mut value = Vec::new();
    let mut failed = None;
    held.for_each_retained(&mut |record| {
        value.clear();
        encode_record(record, &mut value);
        let mut key = [0; REVISION_BYTES + 1];
        let key = buckets::encode_revision(record.revision, record.tombstone, &mut key);
        match writer.put(key, &value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })
    .map_err(ExportError::Store)?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn small_buckets(held: &HeldHistory) -> BTreeMap<&'static [u8], Small> {
    let mut meta = Small::new();
    let (index, term) = held.applied();
    let members = records::members(held);
    meta.insert(buckets::CONSISTENT_INDEX.into(), index.to_be_bytes().into());
    meta.insert(buckets::TERM.into(), term.to_be_bytes().into());
    meta.insert(buckets::CONF_STATE.into(), conf_state(&members));
    meta.insert(buckets::STORAGE_VERSION.into(), ETCD_CLUSTER_VERSION.into());
    if held.compact_revision() > 0 {
        let mut key = [0; REVISION_BYTES + 1];
        let compacted = buckets::encode_revision(Revision::new(held.compact_revision(), 0), false, &mut key);
        for name in [buckets::SCHEDULED_COMPACTION, buckets::FINISHED_COMPACTION] {
            meta.insert(name.into(), compacted.into());
        }
    }
    let leases = records::leases(held).into_iter().map(|(id, lease)| {
        let message = LeaseMessage { id, ttl: lease.ttl, remaining_ttl: 0 };
        (id.to_be_bytes().to_vec(), message.encode_to_vec())
    });
    let alarms = records::alarms(held).into_iter().map(|alarm| (alarm.encode_to_vec(), Vec::new()));
    let auth = records::auth(held);
    let settings = [
        (buckets::AUTH_ENABLED.to_vec(), vec![u8::from(auth.is_enabled())]),
        (buckets::AUTH_REVISION.to_vec(), auth.revision().to_be_bytes().to_vec()),
    ];
    let users = auth.user_names().into_iter().filter_map(|name| {
        let record = auth.user(&name)?.record.encode_to_vec();
        Some((name.into_bytes(), record))
    });
    let roles = auth.role_names().into_iter().filter_map(|name| {
        let record = auth.role(&name)?.encode_to_vec();
        Some((name.into_bytes(), record))
    });
    let members = members.iter().map(|member| (member_key(member.id), member_json(member)));
    let removed = records::removed(held).into_iter().map(|id| (member_key(id), b"removed".to_vec()));
    let version = (buckets::CLUSTER_VERSION.to_vec(), ETCD_CLUSTER_VERSION.into());
    BTreeMap::from([
        (buckets::META, meta),
        (buckets::LEASE, leases.collect()),
        (buckets::ALARM, alarms.collect()),
        (buckets::AUTH, settings.into_iter().collect()),
        (buckets::AUTH_USERS, users.collect()),
        (buckets::AUTH_ROLES, roles.collect()),
        (buckets::CLUSTER, Small::from([version])),
        (buckets::MEMBERS, members.collect()),
        (buckets::MEMBERS_REMOVED, removed.collect()),
    ])
}

fn member_key(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

fn conf_state(members: &[Member]) -> Vec<u8> {
    let ids = |learners: bool| -> Vec<u64> {
        members.iter().filter(|member| member.is_learner == learners).map(|member| member.id).collect()
    };
    let mut state = Map::from_iter([("voters".to_owned(), json!(ids(false)))]);
    let learners = ids(true);
    if !learners.is_empty() {
        state.insert("learners".to_owned(), json!(learners));
    }
    state.insert("auto_leave".to_owned(), json!(false));
    Value::from(state).to_string().into_bytes()
}

/// As Go leaves out what is empty.
fn member_json(member: &Member) -> Vec<u8> {
    let mut fields = Map::from_iter([
        ("id".to_owned(), json!(member.id)),
        ("peerURLs".to_owned(), json!(member.peer_ur_ls)),
    ]);
    if member.is_learner {
        fields.insert("isLearner".to_owned(), json!(true));
    }
    if !member.name.is_empty() {
        fields.insert("name".to_owned(), json!(member.name));
    }
    if !member.client_ur_ls.is_empty() {
        fields.insert("clientURLs".to_owned(), json!(member.client_ur_ls));
    }
    Value::from(fields).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_written_as_go_does() {
        let member = Member {
            id: u64::MAX,
            name: "a".into(),
            peer_ur_ls: vec!["http://a:1".into()],
            client_ur_ls: vec![],
            is_learner: true,
        };
        let text = member_json(&member);
        let found: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            found,
            json!({"id": u64::MAX, "peerURLs": ["http://a:1"], "isLearner": true, "name": "a"})
        );
        let state: Value = serde_json::from_slice(&conf_state(&[member])).unwrap();
        assert_eq!(state, json!({"voters": [], "learners": [u64::MAX], "auto_leave": false}));
    }
}
