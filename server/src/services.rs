//! etcd's gRPC services: decode, check, call, encode. They hold no state.
//!
//! **Contract.** One type per service, each cheap to clone. What a request does is in `request` and `apply`; the answer's header
//! is made here, by the table in `docs/compatibility.md`.
pub mod auth;
pub mod backups;
pub mod cluster;
pub mod election;
pub mod header;
pub mod health;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod ranges;
pub mod router;
pub mod usage;
pub mod watch;

use crate::auth::origin::{CertificateName, Credential};
use crate::request::Pipeline;
use crate::wire::status::ApiError;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// What a request brought to show who asks: a token, else the name in the client's certificate. A request that comes through a gateway brings the gateway's
/// certificate, whose name is not the user's (CVE-2018-16886).
pub fn credential<T>(request: &Request<T>) -> Credential {
    let metadata = request.metadata();
    if !metadata.is_empty()
        && let Some(token) = metadata.get("token").or_else(|| metadata.get("authorization"))
    {
        // Bytes that are no text are no token either.
        let token = std::str::from_utf8(token.as_bytes()).unwrap_or_default();
        return Credential::Token(token.strip_prefix("Bearer ").unwrap_or(token).into());
    }
    match request.extensions().get::<CertificateName>() {
        Some(CertificateName(name)) if !metadata.contains_key("grpcgateway-accept") => {
            Credential::CommonName(name.clone())
        }
        _ => Credential::Nobody,
    }
}

/// Checks of the request's metadata that every call begins with, as etcd's interceptors do.
///
/// A learner answers only what needs no quorum. A `client-api-version` that is no text is refused; `hasleader: true` asks to be refused where there is no leader.
pub fn check_metadata(metadata: &MetadataMap, pipeline: &Pipeline) -> Result<(), ApiError> {
    if pipeline.membership().is_learner() {
        return Err(ApiError::NotSupportedForLearner);
    }
    check_metadata_of_learner(metadata, pipeline)
}

/// The same of the few calls that a learner answers too.
pub fn check_metadata_of_learner(metadata: &MetadataMap, pipeline: &Pipeline) -> Result<(), ApiError> {
    // Nearly every client of ours sends one of the two or none; an empty map costs nothing.
    if metadata.is_empty() {
        return Ok(());
    }
    if let Some(version) = metadata.get("client-api-version")
        && std::str::from_utf8(version.as_bytes()).is_err()
    {
        return Err(ApiError::InvalidClientApiVersion);
    }
    if metadata.get("hasleader").is_some_and(|value| value == "true")
        && pipeline.replicator().status().leader == 0
    {
        return Err(ApiError::NoLeader);
    }
    Ok(())
}

/// An error as it leaves etcd's lock and election services: its text, and no code of its own.
fn untranslated(error: ApiError) -> Status {
    Status::unknown(error.to_string())
}
