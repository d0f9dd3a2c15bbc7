//! grpc.health.v1: one service, named "", serving once the member does; any other name is not found.
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// The service, and the switch behind it: not serving at first.
pub async fn health_service() -> (HealthReporter, HealthServer<HealthService>) {
    let reporter = HealthReporter::new();
    set_serving(&reporter, false).await;
    (reporter.clone(), HealthServer::new(HealthService::from_health_reporter(reporter)))
}

/// Says whether the member serves.
pub async fn set_serving(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", status).await;
}
