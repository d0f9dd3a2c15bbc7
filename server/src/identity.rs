//! Who a cluster and its members are, computed as etcd does, and the genesis that follows from it.
//!
//! **Contract.** Every member that bootstraps a cluster computes the same ids and the same genesis from `--initial-cluster` and
//! `--initial-cluster-token`; operators know these ids from etcd.
//!
//! **Source**: `server/etcdserver/api/membership/{member,cluster}.go` of etcd 3.7.3.
use crate::apply::records::{FEATURE_LEVEL, GenesisState};
use crate::wire::etcdserverpb::Member;
use sha1::{Digest, Sha1};
use sternpost_replication::Genesis;

/// First 8 bytes of SHA-1 over the sorted peer URLs, one behind the other, and the token.
pub fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut peer_urls: Vec<_> = peer_urls.iter().map(String::as_str).collect();
    peer_urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in peer_urls {
        hash.update(url);
    }
    hash.update(token);
    first_8_bytes(hash)
}

/// First 8 bytes of SHA-1 over the members' ids, sorted.
pub fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut member_ids = member_ids.to_vec();
    member_ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in member_ids {
        hash.update(id.to_be_bytes());
    }
    first_8_bytes(hash)
}

fn first_8_bytes(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes)
}

/// The genesis of the cluster whose first members are `initial_cluster` (name, peer URLs), as seen by the member called `name`.
/// Says what is wrong if `name` is not among them, or if two members have the same id.
pub fn genesis(
    name: &str,
    initial_cluster: &[(String, Vec<String>)],
    token: &str,
) -> Result<Genesis, String> {
    let mut members = Vec::new();
    let mut own_id = None;
    for (member_name, peer_urls) in initial_cluster {
        let id = member_id(peer_urls, token);
        if member_name == name {
            own_id = Some(id);
        }
        let mut peer_urls = peer_urls.clone();
        peer_urls.sort_unstable();
        members.push(Member { id, name: member_name.clone(), peer_ur_ls: peer_urls, ..Member::default() });
    }
    members.sort_unstable_by_key(|member| member.id);
    if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(format!("members {:?} and {:?} have the same peer URLs", pair[0].name, pair[1].name));
    }
    let member_id = own_id.ok_or_else(|| format!("member {name:?} is not in the initial cluster"))?;
    let voters: Vec<u64> = members.iter().map(|member| member.id).collect();
    let cluster_id = cluster_id(&voters);
    let state = GenesisState { cluster_id, feature_level: FEATURE_LEVEL, members }.encode();
    Ok(Genesis { cluster_id, member_id, voters, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str) -> Vec<String> {
        vec![url.to_owned()]
    }

    /// The ids that every etcd with default flags has.
    #[test]
    fn the_default_ids_are_etcds() {
        let cluster = [("default".to_owned(), url("http://localhost:2380"))];
        let genesis = genesis("default", &cluster, "etcd-cluster").unwrap();
        assert_eq!(format!("{:x}", genesis.member_id), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", genesis.cluster_id), "cdf818194e3a8c32");
        assert_eq!(genesis.voters, [genesis.member_id]);
    }

    #[test]
    fn neither_the_order_of_urls_nor_that_of_members_matters() {
        let urls = ["http://b:1".to_owned(), "http://a:1".to_owned()];
        let reversed = ["http://a:1".to_owned(), "http://b:1".to_owned()];
        assert_eq!(member_id(&urls, "t"), member_id(&reversed, "t"));
        assert_ne!(member_id(&urls, "t"), member_id(&urls, "u"));
        assert_eq!(cluster_id(&[1, 2]), cluster_id(&[2, 1]));
    }

    #[test]
    fn a_cluster_without_this_member_or_with_twins_is_refused() {
        let alone = [("a".to_owned(), url("http://a:1"))];
        assert!(genesis("b", &alone, "t").unwrap_err().contains("\"b\""));
        let twins = [("a".to_owned(), url("http://a:1")), ("b".to_owned(), url("http://a:1"))];
        assert!(genesis("a", &twins, "t").unwrap_err().contains("same peer URLs"));
    }
}
