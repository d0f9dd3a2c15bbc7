//! grpc.health.v1: one service, named "", serving once the member does; any other name is not found.
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

/// The service, and the switch behind it: not serving at first.
pub async fn health_service() -> (HealthReporter, HealthServer<impl Health>) {
    let (reporter, service) = health_reporter();
    reporter.set_service_status("", ServingStatus::NotServing).await;
    (reporter, service)
}

/// Says that the member serves.
pub async fn set_serving(reporter: &HealthReporter) {
    reporter.set_service_status("", ServingStatus::Serving).await;
}
