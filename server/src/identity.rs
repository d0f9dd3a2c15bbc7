//! Who a cluster and its members are, computed as etcd does, and the genesis that follows from it.
//!
//! **Contract.** Every member that bootstraps a cluster computes the same ids and the same genesis from `--initial-cluster` and
//! `--initial-cluster-token`; operators know these ids from etcd. A member that joins is who the running cluster says it is
//! ([`find_oneself`]).
//!
//! **Does not know** sockets: addresses to connect to are texts ([`dial_addresses`]).
//!
//! **Source**: `server/etcdserver/api/membership/{member,cluster}.go` of etcd 3.7.3.
use crate::apply::records::{self, FEATURE_LEVEL, GenesisState};
use crate::config::url::{self, Url};
use crate::wire::etcdserverpb::Member;
use bytes::Bytes;
use sha1::{Digest, Sha1};
use sternpost_engine::mvcc::Store;
use sternpost_replication::Genesis;
use sternpost_replication::transport::Address;

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
    genesis_of(name, initial_cluster, token, true)
}

/// The same where every member knows its own name alone (members that were found in DNS): names are none until each has said its own.
pub fn genesis_without_names(
    name: &str,
    initial_cluster: &[(String, Vec<String>)],
    token: &str,
) -> Result<Genesis, String> {
    genesis_of(name, initial_cluster, token, false)
}

fn genesis_of(
    name: &str,
    initial_cluster: &[(String, Vec<String>)],
    token: &str,
    has_names: bool,
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
        let name = if has_names { member_name.clone() } else { String::new() };
        members.push(Member { id, name, peer_ur_ls: peer_urls, ..Member::default() });
    }
    members.sort_unstable_by_key(|member| member.id);
    if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        let names: Vec<_> = initial_cluster
            .iter()
            .filter(|(_, peer_urls)| member_id(peer_urls, token) == pair[0].id)
            .map(|(name, _)| name)
            .collect();
        return Err(format!("members {:?} and {:?} have the same peer URLs", names[0], names[1]));
    }
    let member_id = own_id.ok_or_else(|| format!("member {name:?} is not in the initial cluster"))?;
    let voters: Vec<u64> = members.iter().map(|member| member.id).collect();
    let cluster_id = cluster_id(&voters);
    let state = GenesisState { cluster_id, feature_level: FEATURE_LEVEL, members, restored: None }.encode();
    Ok(Genesis { cluster_id, member_id, voters, state })
}

/// The members as the transport tells them to somebody who wants to join: the bytes of a [`GenesisState`], of now. Empty before the
/// genesis is there.
pub fn member_table(store: &Store) -> Bytes {
    records::cluster(store).map_or_else(Bytes::new, |state| state.encode().into())
}

/// Where a member is connected to, for each of its peer URLs. Says what is wrong with one of a Unix socket.
pub fn dial_addresses(member: &Member) -> Result<Vec<Address>, String> {
    let mut addresses = Vec::new();
    for text in &member.peer_ur_ls {
        for url in url::parse_list(text)? {
            if url.scheme.is_unix() {
                return Err(format!(
                    "member {:x} has the peer URL {url}: peers are served over TCP alone",
                    member.id
                ));
            }
            addresses.push(dial_address(&url));
        }
    }
    Ok(addresses)
}

/// Where the transport connects to for a peer URL.
pub fn dial_address(url: &Url) -> Address {
    Address { name: url.address.clone(), is_secure: url.scheme.is_secure() }
}

/// Which of the members that a running cluster has is the one called `name`, by its peer URLs in `initial_cluster`; every member of the
/// cluster must be there and nobody else. etcd's check and texts, but for names that are written differently and mean the same address.
pub fn find_oneself(
    name: &str,
    initial_cluster: &[(String, Vec<String>)],
    running: &[Member],
) -> Result<u64, String> {
    if running.len() != initial_cluster.len() {
        return Err("member count is unequal".to_owned());
    }
    let sorted = |urls: &[String]| {
        let mut urls = urls.to_vec();
        urls.sort_unstable();
        urls
    };
    let mut own_id = None;
    for member in running {
        let is_it = |(_, urls): &&(String, Vec<String>)| sorted(urls) == sorted(&member.peer_ur_ls);
        let Some((known_as, _)) = initial_cluster.iter().find(is_it) else {
            return Err(format!(
                "PeerURLs: no match found for existing member ({:x}, {:?})",
                member.id, member.peer_ur_ls
            ));
        };
        if known_as == name {
            own_id = Some(member.id);
        }
    }
    own_id.ok_or_else(|| format!("couldn't find local name {name:?} in the initial cluster configuration"))
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

    fn three() -> Vec<(String, Vec<String>)> {
        (1..=3).map(|n| (format!("m{n}"), url(&format!("http://127.0.0.{n}:2380")))).collect()
    }

    /// Recorded from three processes of etcd 3.7.3 with these flags.
    #[test]
    fn the_ids_of_three_members_are_etcds() {
        let genesis = genesis("m2", &three(), "tkn").unwrap();
        assert_eq!(format!("{:x}", genesis.cluster_id), "ca7f5ee6127cc294");
        assert_eq!(format!("{:x}", genesis.member_id), "1d40584bf61c1b52");
        let voters: Vec<String> = genesis.voters.iter().map(|id| format!("{id:x}")).collect();
        assert_eq!(voters, ["ed398ac0e0cb95a", "1d40584bf61c1b52", "9377a111dda6da21"]);
    }

    #[test]
    fn every_first_member_computes_the_same_genesis_whatever_the_order_of_its_flag() {
        let mut reversed = three();
        reversed.reverse();
        let all = ["m1", "m2", "m3"].map(|name| genesis(name, &three(), "t").unwrap());
        let other = genesis("m1", &reversed, "t").unwrap();
        assert_eq!(other, all[0]);
        for genesis in &all {
            assert!(genesis.voters.is_sorted() && genesis.voters.contains(&genesis.member_id));
            assert_eq!((&genesis.state, &genesis.voters), (&all[0].state, &all[0].voters));
            assert_eq!(genesis.hash(), all[0].hash());
        }
        assert_ne!(genesis("m1", &three(), "u").unwrap().hash(), all[0].hash());
        let renamed =
            three().into_iter().map(|(name, urls)| (name.replace('3', "4"), urls)).collect::<Vec<_>>();
        let renamed = genesis("m1", &renamed, "t").unwrap();
        assert_eq!(renamed.cluster_id, all[0].cluster_id, "etcd's ids know no names");
        assert_ne!(renamed.hash(), all[0].hash(), "the handshake's hash does");
    }

    #[test]
    fn a_member_that_joins_finds_itself_by_its_urls() {
        let running: Vec<Member> = three()
            .into_iter()
            .zip(5..)
            .map(|((_, peer_ur_ls), id)| Member { id, peer_ur_ls, ..Member::default() })
            .collect();
        assert_eq!(find_oneself("m3", &three(), &running), Ok(7));
        let complaint = |name, cluster: &[_]| find_oneself(name, cluster, &running).unwrap_err();
        assert_eq!(complaint("m1", &three()[..2]), "member count is unequal");
        let mut other = three();
        other[1].1 = url("http://127.0.0.9:2380");
        assert!(complaint("m1", &other).starts_with("PeerURLs: no match found for existing member (6, "));
        assert!(complaint("m9", &three()).contains("\"m9\""));
    }

    #[test]
    fn peers_are_connected_to_at_the_addresses_of_their_urls() {
        let member = |urls: &[&str]| Member {
            id: 0xab,
            peer_ur_ls: urls.iter().map(ToString::to_string).collect(),
            ..Member::default()
        };
        let addresses = dial_addresses(&member(&["http://a.b:1", "https://[::1]:2"])).unwrap();
        let addresses: Vec<_> = addresses.iter().map(|one| (one.name.as_str(), one.is_secure)).collect();
        assert_eq!(addresses, [("a.b:1", false), ("[::1]:2", true)]);
        let complaint = dial_addresses(&member(&["unix://a:1"])).unwrap_err();
        assert!(complaint.contains("member ab has the peer URL unix://a:1"), "{complaint}");
    }
}
