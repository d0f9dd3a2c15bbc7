//! The Maintenance service.
use super::header::HeaderSource;
use super::{check_metadata, check_metadata_of_learner, credential};
use crate::config::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::request::snapshot::Piece;
use crate::request::{Pipeline, kv_hash};
use crate::wire::etcdserverpb::maintenance_server::Maintenance;
use crate::wire::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use crate::wire::status::ApiError;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// The file in pieces.
type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

/// See the module.
#[derive(Clone)]
pub struct MaintenanceService {
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl MaintenanceService {
    /// Answers from `pipeline` under `header`.
    pub fn new(pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { pipeline, header }
    }
}

/// An alarm as etcd prints it in Status: protobuf's text form.
fn alarm_text(alarm: &AlarmMember) -> String {
    let kind = match crate::wire::etcdserverpb::AlarmType::try_from(alarm.alarm) {
        Ok(kind) => kind.as_str_name().to_owned(),
        Err(_) => alarm.alarm.to_string(),
    };
    format!("memberID:{} alarm:{kind}", alarm.member_id)
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let (alarms, revision) = self.pipeline.alarm(request.into_inner(), &who).await?;
        Ok(Response::new(AlarmResponse { header: Some(self.header.at(revision)), alarms }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_user(&credential(&request)).await?;
        let replicator = self.pipeline.replicator().status();
        let view = self.pipeline.view();
        let mut errors = Vec::new();
        if replicator.leader == 0 {
            errors.push(ApiError::NoLeader.to_string());
        }
        errors.extend(replicator.quarantine.clone());
        errors.extend(replicator.full.clone());
        errors.extend(view.alarms().iter().map(alarm_text));
        let warnings = self.pipeline.warnings();
        if warnings.is_in_status() {
            errors.extend(warnings.list().iter().map(|warning| format!("sternpost: {}", warning.text())));
        }
        let size_bytes = view.size_bytes();
        Ok(Response::new(StatusResponse {
            header: Some(self.header.current()),
            version: ETCD_VERSION.to_owned(),
            db_size: size_bytes,
            leader: replicator.leader,
            raft_index: replicator.committed_index,
            raft_term: replicator.term,
            raft_applied_index: replicator.applied_index,
            errors,
            db_size_in_use: size_bytes,
            is_learner: self.pipeline.membership().is_learner(),
            storage_version: ETCD_CLUSTER_VERSION.to_owned(),
            db_size_quota: self.pipeline.options().quota.as_reported(),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// Answers at once and, as etcd, without a header: there is nothing to defragment.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let _lasting = self.pipeline.timing().defragment();
        self.pipeline.check_root(&credential(&request)).await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let _lasting = self.pipeline.timing().hash();
        let store = self.pipeline.store().clone();
        let hash = tokio::task::spawn_blocking(move || kv_hash::hash_all(&store)).await;
        let hash = hash.map_err(|_| ApiError::Stopped)?.map_err(ApiError::from)?;
        Ok(Response::new(HashResponse { header: Some(self.header.current()), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let found = self.pipeline.hash_kv(request.into_inner().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.header.current()),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.revision,
        }))
    }

    type SnapshotStream = SnapshotStream;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        let pieces = self.pipeline.snapshot(&credential(&request)).await?;
        let response = |piece: Result<Piece, ApiError>| {
            let Piece { remaining_bytes, blob } = piece?;
            Ok(SnapshotResponse {
                header: None,
                remaining_bytes,
                blob,
                version: ETCD_CLUSTER_VERSION.to_owned(),
            })
        };
        Ok(Response::new(Box::pin(ReceiverStream::new(pieces).map(response))))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        self.pipeline.move_leader(request.into_inner().target_id).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        Err(ApiError::Unimplemented("downgrades are not served yet").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_printed_as_protobuf_text() {
        let alarm = AlarmMember { member_id: 13_803_658_152_347_727_308, alarm: 1 };
        assert_eq!(alarm_text(&alarm), "memberID:13803658152347727308 alarm:NOSPACE");
    }
}
