//! Changes of the membership, asked of one of the members.
use super::cluster::{self, Cluster, until};
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
};
use tonic::Status;

impl Calls for Cluster {}

/// Changes of the membership through one of its members.
pub trait Calls {
    async fn add(member: &cluster::Member, url: String, is_learner: bool) -> Result<u64, Status> {
        let request = MemberAddRequest { peer_ur_ls: vec![url], is_learner };
        let answer = ClusterClient::new(member.channel()).member_add(request).await?.into_inner();
        let added = answer.member.unwrap();
        assert!(added.name.is_empty() && added.is_learner == is_learner, "{added:?}");
        assert!(answer.members.iter().any(|member| member.id == added.id));
        Ok(added.id)
    }

    async fn remove(member: &cluster::Member, id: u64) -> Result<Vec<Member>, Status> {
        let request = MemberRemoveRequest { id };
        Ok(ClusterClient::new(member.channel()).member_remove(request).await?.into_inner().members)
    }

    async fn promote(member: &cluster::Member, id: u64) -> Result<Vec<Member>, Status> {
        let request = MemberPromoteRequest { id };
        Ok(ClusterClient::new(member.channel()).member_promote(request).await?.into_inner().members)
    }

    async fn list(member: &cluster::Member) -> Result<Vec<Member>, Status> {
        let request = MemberListRequest { linearizable: true };
        Ok(ClusterClient::new(member.channel()).member_list(request).await?.into_inner().members)
    }
}

/// A member's id, as soon as it says it.
pub async fn id(member: &cluster::Member) -> u64 {
    until("a member's status", async || Some(member.status().await.ok()?.header?.member_id)).await
}
