//! grpc.health.v1: one service, named "", serving once the member does.
//!
//! The messages are tonic-health's; its service is not used because its text for an unknown name is not grpc-go's, which clients
//! of etcd see.
use std::pin::Pin;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// See the module. Clones share the switch: not serving at first.
#[derive(Clone)]
pub struct HealthService {
    serving: watch::Sender<bool>,
}

impl Default for HealthService {
    fn default() -> Self {
        Self { serving: watch::Sender::new(false) }
    }
}

impl HealthService {
    /// Says whether the member serves.
    pub fn set_serving(&self, serving: bool) {
        self.serving.send_replace(serving);
    }
}

fn answer(serving: bool) -> HealthCheckResponse {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(*self.serving.borrow())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The status now and at each change. An unknown name is said to be unknown, and the stream stays open, as the protocol asks.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !request.get_ref().service.is_empty() {
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            let once = tokio_stream::once(Ok(unknown)).chain(tokio_stream::pending());
            return Ok(Response::new(Box::pin(once)));
        }
        let changes = WatchStream::new(self.serving.subscribe());
        Ok(Response::new(Box::pin(changes.map(|serving| Ok(answer(serving))))))
    }
}
