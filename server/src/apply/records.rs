//! The system records of the server: what lives beside the key space, in the same log and checkpoint, without history.
//!
//! **Layout.** Integers in keys are big-endian so that a scan comes in numeric order; in values little-endian. Every value
//! starts with its format version, 1.
//!
//! | key | value after the version |
//! |---|---|
//! | `cluster` | cluster id u64 · feature level u32 |
//! | `member/` id u64 | protobuf `Member` |
//! | `removed/` id u64 | nothing: no member has this id again |
//! | `promised/` id u64 | term u64 · index u64: this member has taken part in the term, and holds the log up to the index |
//! | `lease/` id i64 | granted TTL i64, seconds · log index of the grant u64 |
//! | `alarm/` type i32 · member id u64 | nothing |
//! | `quota/` prefix | most keys that begin with the prefix u64 (`prefix_quota.rs`) |
//! | `auth` | authentication is on u8 · revision of users and roles u64 |
//! | `auth/user/` name | protobuf `authpb.User`: roles, bcrypt hash |
//! | `auth/role/` name | protobuf `authpb.Role` |
//!
//! The genesis state (see `replication::Genesis`) is: version u8 · cluster id u64 · feature level u32 · count u32 ·
//! that many members, each behind a u32 length. Every bootstrapping member computes the same bytes. Of a cluster that was restored
//! from a snapshot the version is 2, and 32 bytes follow that stand for the restored state. It is never applied: the checkpoint holds what it says.
//!
//! **Failure.** These bytes passed the engine's checksums, so one that does not decode is a bug or a foreign build: A3.
use crate::auth::AuthState;
use crate::auth::state::Touched;
use crate::wire::etcdserverpb::{AlarmMember, Member};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use sternpost_engine::base::codec::{Reader, Truncated, put_bytes};
use sternpost_engine::mvcc::{HeldHistory, Store, StoreWriter};

const FORMAT_VERSION: u8 = 1;
/// Of a genesis that follows a restored state.
const RESTORED_VERSION: u8 = 2;
const CLUSTER_KEY: &[u8] = b"cluster";
const MEMBER_PREFIX: &[u8] = b"member/";
const REMOVED_PREFIX: &[u8] = b"removed/";
const PROMISED_PREFIX: &[u8] = b"promised/";
const LEASE_PREFIX: &[u8] = b"lease/";
const ALARM_PREFIX: &[u8] = b"alarm/";
const AUTH_KEY: &[u8] = b"auth";
const AUTH_USER_PREFIX: &[u8] = b"auth/user/";
const AUTH_ROLE_PREFIX: &[u8] = b"auth/role/";

/// What commands, records and frames a cluster may hold; raised, never lowered.
pub const FEATURE_LEVEL: u32 = 1;

/// The cluster as all its first members agree on it.
#[derive(Clone, PartialEq, Debug)]
pub struct GenesisState {
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// See [`FEATURE_LEVEL`].
    pub feature_level: u32,
    /// All members, sorted by id.
    pub members: Vec<Member>,
    /// A hash of the state that the cluster began with, if that was not an empty one: members that began with another one are not let in.
    pub restored: Option<[u8; 32]>,
}

impl GenesisState {
    /// As bytes, see the module.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![if self.restored.is_some() { RESTORED_VERSION } else { FORMAT_VERSION }];
        out.put_u64_le(self.cluster_id);
        out.put_u32_le(self.feature_level);
        out.put_u32_le(u32::try_from(self.members.len()).expect("a cluster has few members"));
        for member in &self.members {
            put_bytes(&mut out, &member.encode_to_vec());
        }
        out.extend_from_slice(self.restored.as_ref().map_or(&[], |hash| hash.as_slice()));
        out
    }

    /// From bytes; none if they are no genesis of this build.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let is_restored = match reader.u8() {
            Ok(FORMAT_VERSION) => false,
            Ok(RESTORED_VERSION) => true,
            _ => return None,
        };
        let cluster_id = reader.u64().ok()?;
        let feature_level = reader.u32().ok()?;
        let count = reader.u32().ok()?;
        let mut members = Vec::new();
        for _ in 0..count {
            members.push(Member::decode(reader.bytes().ok()?).ok()?);
        }
        let restored = if is_restored { Some(reader.take(32).ok()?.try_into().ok()?) } else { None };
        reader.is_empty().then_some(Self { cluster_id, feature_level, members, restored })
    }
}

/// Where system records are read: a store as it is now, or as it was at a moment.
pub trait SystemRecords {
    /// Records whose key starts with `prefix`, sorted by key.
    fn system_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)>;
}

impl SystemRecords for Store {
    fn system_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        Store::system_scan(self, prefix)
    }
}

impl SystemRecords for HeldHistory {
    fn system_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        HeldHistory::system_scan(self, prefix)
    }
}

/// A lease as it is stored: without time, which is the lessor's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// Seconds granted.
    pub ttl: i64,
    /// Log index of the grant: tells two leases of one id apart.
    pub granted_index: u64,
}

fn key(prefix: &[u8], parts: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::with_capacity(prefix.len() + 16);
    key.put_slice(prefix);
    parts.iter().for_each(|part| key.put_slice(part));
    key.freeze()
}

fn value() -> BytesMut {
    let mut value = BytesMut::with_capacity(32);
    value.put_u8(FORMAT_VERSION);
    value
}

/// The reader behind the format version.
fn body<'a>(key: &[u8], value: &'a [u8]) -> Reader<'a> {
    let mut reader = Reader::new(value);
    let version = reader.u8();
    assert_eq!(
        version,
        Ok(FORMAT_VERSION),
        "A3: system record {key:?} has a format version this build knows"
    );
    reader
}

fn broken<'a>(key: &'a [u8]) -> impl Fn(Truncated) -> String + 'a {
    move |_| format!("A3: system record {key:?} is cut short")
}

/// Writes the genesis.
pub(crate) fn put_genesis(writer: &mut StoreWriter, genesis: &GenesisState) {
    let mut record = value();
    record.put_u64_le(genesis.cluster_id);
    record.put_u32_le(genesis.feature_level);
    writer.system_put(Bytes::from_static(CLUSTER_KEY), record.freeze());
    for member in &genesis.members {
        put_member(writer, member);
    }
}

/// The cluster's id, none before the genesis.
pub fn cluster_id(store: &Store) -> Option<u64> {
    let record = store.system_get(CLUSTER_KEY)?;
    body(CLUSTER_KEY, &record).u64().ok()
}

/// The cluster as it is now; none before the genesis.
pub fn cluster(store: &Store) -> Option<GenesisState> {
    let record = store.system_get(CLUSTER_KEY)?;
    let mut reader = body(CLUSTER_KEY, &record);
    let cluster_id = reader.u64().ok()?;
    let feature_level = reader.u32().ok()?;
    Some(GenesisState { cluster_id, feature_level, members: members(store), restored: None })
}

pub(crate) fn put_member(writer: &mut StoreWriter, member: &Member) {
    let mut record = value();
    member.encode(&mut record).expect("a buffer grows");
    writer.system_put(key(MEMBER_PREFIX, &[&member.id.to_be_bytes()]), record.freeze());
}

/// Takes a member out of the table; its id is kept among those that were removed.
pub(crate) fn remove_member(writer: &mut StoreWriter, id: u64) {
    writer.system_delete(&key(MEMBER_PREFIX, &[&id.to_be_bytes()]));
    writer.system_delete(&key(PROMISED_PREFIX, &[&id.to_be_bytes()]));
    writer.system_put(key(REMOVED_PREFIX, &[&id.to_be_bytes()]), value().freeze());
}

/// A member is known to have taken part in a term and to hold the log up to an index: (term, index). Each only rises; of somebody who is no member nothing is kept.
pub(crate) fn raise_promised(writer: &mut StoreWriter, id: u64, (term, index): (u64, u64)) {
    if member(writer.store(), id).is_none() {
        return;
    }
    let known = promised(writer.store(), id);
    let raised = (known.0.max(term), known.1.max(index));
    if raised != known {
        let mut record = value();
        record.put_u64_le(raised.0);
        record.put_u64_le(raised.1);
        writer.system_put(key(PROMISED_PREFIX, &[&id.to_be_bytes()]), record.freeze());
    }
}

/// What [`raise_promised`] has kept of a member; zeros for nothing.
pub fn promised(store: &Store, id: u64) -> (u64, u64) {
    let key = key(PROMISED_PREFIX, &[&id.to_be_bytes()]);
    let Some(record) = store.system_get(&key) else { return (0, 0) };
    let mut reader = body(&key, &record);
    let fields = reader.u64().and_then(|term| Ok((term, reader.u64()?)));
    fields.unwrap_or_else(|cut| panic!("{}", broken(&key)(cut)))
}

/// True if a member with this id was removed.
pub fn is_removed(store: &Store, id: u64) -> bool {
    store.system_get(&key(REMOVED_PREFIX, &[&id.to_be_bytes()])).is_some()
}

/// Ids of all members that were removed.
pub fn removed(store: &impl SystemRecords) -> Vec<u64> {
    let one = |key: &Bytes| {
        let id = key.strip_prefix(REMOVED_PREFIX).and_then(|id| id.try_into().ok());
        id.map_or_else(|| panic!("A3: record {key:?} of a removed member"), u64::from_be_bytes)
    };
    store.system_scan(REMOVED_PREFIX).iter().map(|(key, _)| one(key)).collect()
}

/// True if any member was removed.
pub fn has_removed(store: &Store) -> bool {
    !store.system_scan(REMOVED_PREFIX).is_empty()
}

fn member_of(key: &[u8], record: &[u8]) -> Member {
    Member::decode(body(key, record).rest())
        .unwrap_or_else(|error| panic!("A3: member record {key:?}: {error}"))
}

/// One member.
pub fn member(store: &Store, id: u64) -> Option<Member> {
    let key = key(MEMBER_PREFIX, &[&id.to_be_bytes()]);
    store.system_get(&key).map(|record| member_of(&key, &record))
}

/// All members, sorted by id.
pub fn members(store: &impl SystemRecords) -> Vec<Member> {
    store.system_scan(MEMBER_PREFIX).iter().map(|(key, record)| member_of(key, record)).collect()
}

pub(crate) fn put_lease(writer: &mut StoreWriter, lease: i64, record: LeaseRecord) {
    let mut bytes = value();
    bytes.put_i64_le(record.ttl);
    bytes.put_u64_le(record.granted_index);
    writer.system_put(key(LEASE_PREFIX, &[&lease.to_be_bytes()]), bytes.freeze());
}

pub(crate) fn delete_lease(writer: &mut StoreWriter, lease: i64) {
    writer.system_delete(&key(LEASE_PREFIX, &[&lease.to_be_bytes()]));
}

/// Every lease.
pub fn leases(store: &impl SystemRecords) -> Vec<(i64, LeaseRecord)> {
    let one = |(key, record): &(Bytes, Bytes)| -> Result<(i64, LeaseRecord), String> {
        let broken = broken(key);
        let lease = key.strip_prefix(LEASE_PREFIX).and_then(|id| id.try_into().ok());
        let lease = i64::from_be_bytes(lease.ok_or_else(|| broken(Truncated))?);
        let mut reader = body(key, record);
        let ttl = reader.i64().map_err(&broken)?;
        Ok((lease, LeaseRecord { ttl, granted_index: reader.u64().map_err(&broken)? }))
    };
    let scan = store.system_scan(LEASE_PREFIX);
    scan.iter().map(one).collect::<Result<_, _>>().unwrap_or_else(|broken| panic!("{broken}"))
}

fn alarm_key(alarm: AlarmMember) -> Bytes {
    key(ALARM_PREFIX, &[&alarm.alarm.to_be_bytes(), &alarm.member_id.to_be_bytes()])
}

pub(crate) fn put_alarm(writer: &mut StoreWriter, alarm: AlarmMember) {
    writer.system_put(alarm_key(alarm), value().freeze());
}

pub(crate) fn delete_alarm(writer: &mut StoreWriter, alarm: AlarmMember) {
    writer.system_delete(&alarm_key(alarm));
}

/// Every active alarm, sorted by type, then by member.
pub fn alarms(store: &impl SystemRecords) -> Vec<AlarmMember> {
    let one = |key: &Bytes| -> Option<AlarmMember> {
        let (kind, id) = key.strip_prefix(ALARM_PREFIX)?.split_at_checked(4)?;
        let alarm = i32::from_be_bytes(kind.try_into().ok()?);
        Some(AlarmMember { member_id: u64::from_be_bytes(id.try_into().ok()?), alarm })
    };
    let scan = store.system_scan(ALARM_PREFIX);
    scan.iter().map(|(key, _)| one(key).unwrap_or_else(|| panic!("A3: alarm record {key:?}"))).collect()
}

/// Stores what a change of users and roles touched, as `state` has it now.
pub(crate) fn put_auth(writer: &mut StoreWriter, state: &AuthState, touched: &[Touched]) {
    for touched in touched {
        let (key, message) = match touched {
            Touched::Settings => {
                let mut record = value();
                record.put_u8(state.is_enabled().into());
                record.put_u64_le(state.revision());
                writer.system_put(Bytes::from_static(AUTH_KEY), record.freeze());
                continue;
            }
            Touched::User(name) => {
                let user = state.user(name).map(|user| user.record.encode_to_vec());
                (key(AUTH_USER_PREFIX, &[name.as_bytes()]), user)
            }
            Touched::Role(name) => {
                (key(AUTH_ROLE_PREFIX, &[name.as_bytes()]), state.role(name).map(Message::encode_to_vec))
            }
        };
        match message {
            Some(message) => {
                let mut record = value();
                record.put_slice(&message);
                writer.system_put(key, record.freeze());
            }
            None => writer.system_delete(&key),
        }
    }
}

/// Users and roles.
pub fn auth(store: &impl SystemRecords) -> AuthState {
    let settings = store.system_scan(AUTH_KEY).into_iter().next().filter(|(key, _)| key == AUTH_KEY);
    let Some((_, settings)) = settings else { return AuthState::default() };
    let mut reader = body(AUTH_KEY, &settings);
    let (is_enabled, revision) = (reader.u8(), reader.u64());
    let state = match (is_enabled, revision) {
        (Ok(is_enabled @ (0 | 1)), Ok(revision)) => AuthState::new(
            is_enabled == 1,
            revision,
            messages(store, AUTH_USER_PREFIX),
            messages(store, AUTH_ROLE_PREFIX),
        ),
        _ => None,
    };
    state.unwrap_or_else(|| panic!("A3: the records of users and roles are of this build"))
}

fn messages<M: Message + Default>(store: &impl SystemRecords, prefix: &[u8]) -> Vec<M> {
    let one = |(key, record): &(Bytes, Bytes)| {
        M::decode(body(key, record).rest()).unwrap_or_else(|error| panic!("A3: record {key:?}: {error}"))
    };
    store.system_scan(prefix).iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn genesis_comes_back_and_every_truncation_is_refused() {
        let member =
            Member { id: 7, name: "a".into(), peer_ur_ls: vec!["http://a:1".into()], ..Default::default() };
        for restored in [None, Some([7; 32])] {
            let members = vec![member.clone()];
            let genesis = GenesisState { cluster_id: 9, feature_level: FEATURE_LEVEL, members, restored };
            let bytes = genesis.encode();
            assert_eq!(GenesisState::decode(&bytes), Some(genesis));
            for cut in 0..bytes.len() {
                assert_eq!(GenesisState::decode(&bytes[..cut]), None, "cut at {cut}");
            }
        }
    }
}
