//! What is in etcd's buckets: names, keys and values as bytes.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | main revision i64 · `_` · sub revision i64, big-endian; `t` behind it for a delete | protobuf `KeyValue`; of a delete the key alone |
//! | `meta` | `consistent_index`, `term` | u64, big-endian |
//! | | `scheduledCompactRev`, `finishedCompactRev` | a revision as above |
//! | | `confState` | JSON: `voters`, `learners` |
//! | | `storageVersion` | `3.7.0` |
//! | `lease` | lease id i64, big-endian | protobuf `Lease`: ID, TTL, RemainingTTL |
//! | `alarm` | protobuf `AlarmMember` | nothing |
//! | `auth` | `authEnabled`; `authRevision` | u8; u64, big-endian |
//! | `authUsers`, `authRoles` | name | protobuf `authpb.User`, `authpb.Role` |
//! | `cluster` | `clusterVersion` | `3.7.0` |
//! | `members` | id, hexadecimal | JSON: id, peerURLs, isLearner, name, clientURLs |
//! | `members_removed` | id, hexadecimal | `removed` |
//!
//! **Source**: `server/storage/schema` and `server/storage/mvcc/revision.go` of etcd 3.7.3.
use sternpost_engine::base::ids::Revision;

/// The history of keys.
pub const KEY: &[u8] = b"key";
/// Where the file stands.
pub const META: &[u8] = b"meta";
/// Leases.
pub const LEASE: &[u8] = b"lease";
/// Active alarms.
pub const ALARM: &[u8] = b"alarm";
/// Whether authentication is on.
pub const AUTH: &[u8] = b"auth";
/// Users.
pub const AUTH_USERS: &[u8] = b"authUsers";
/// Roles.
pub const AUTH_ROLES: &[u8] = b"authRoles";
/// Version of the cluster.
pub const CLUSTER: &[u8] = b"cluster";
/// Members.
pub const MEMBERS: &[u8] = b"members";
/// Ids of former members.
pub const MEMBERS_REMOVED: &[u8] = b"members_removed";

/// Applied index.
pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
/// Term of the applied index.
pub const TERM: &[u8] = b"term";
/// Who votes.
pub const CONF_STATE: &[u8] = b"confState";
/// A compaction that was begun.
pub const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
/// A compaction that is done.
pub const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
/// Version of the file's schema.
pub const STORAGE_VERSION: &[u8] = b"storageVersion";
/// Whether authentication is on.
pub const AUTH_ENABLED: &[u8] = b"authEnabled";
/// Counts changes of users and roles.
pub const AUTH_REVISION: &[u8] = b"authRevision";
/// Version of the cluster.
pub const CLUSTER_VERSION: &[u8] = b"clusterVersion";

/// A lease, as in the file.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct LeaseMessage {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Seconds granted.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Seconds left when that was last noted, 0 if it never was.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// Bytes of a revision as a key.
pub const REVISION_BYTES: usize = 17;
const TOMBSTONE: u8 = b't';

/// A revision as a key of the bucket `key`; the slice has 17 bytes, or 18 for a delete.
pub fn encode_revision(revision: Revision, tombstone: bool, out: &mut [u8; REVISION_BYTES + 1]) -> &[u8] {
    out[..8].copy_from_slice(&revision.main.to_be_bytes());
    out[8] = b'_';
    out[9..17].copy_from_slice(&revision.sub.to_be_bytes());
    out[17] = TOMBSTONE;
    &out[..REVISION_BYTES + usize::from(tombstone)]
}

/// The same back: the revision, and whether it is of a delete. None for anything else.
pub fn decode_revision(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_first_chunk()?;
    let (sub, rest) = rest.strip_prefix(b"_")?.split_first_chunk()?;
    let revision = Revision::new(i64::from_be_bytes(*main), i64::from_be_bytes(*sub));
    match rest {
        [] => Some((revision, false)),
        [TOMBSTONE] => Some((revision, true)),
        _ => None,
    }
    .filter(|(revision, _)| revision.main >= 0 && revision.sub >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_come_back_and_sort_as_keys() {
        let mut keys = Vec::new();
        for (main, sub) in [(2, 0), (2, 1), (255, 0), (256, 0), (i64::MAX, 7)] {
            for tombstone in [false, true] {
                let mut buffer = [0; REVISION_BYTES + 1];
                let key = encode_revision(Revision::new(main, sub), tombstone, &mut buffer).to_vec();
                assert_eq!(decode_revision(&key), Some((Revision::new(main, sub), tombstone)));
                keys.push(key);
            }
        }
        assert!(keys.is_sorted());
        for wrong in
            [&b""[..], b"\0\0\0\0\0\0\0\x02-\0\0\0\0\0\0\0\0", b"\xff\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0"]
        {
            assert_eq!(decode_revision(wrong), None);
        }
        let mut buffer = [0; REVISION_BYTES + 1];
        let mut long = encode_revision(Revision::new(2, 0), true, &mut buffer).to_vec();
        long.push(b't');
        assert_eq!(decode_revision(&long), None);
        assert_eq!(decode_revision(&long[..16]), None);
    }
}
