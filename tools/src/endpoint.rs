//! `endpoint health`, `status` and `hashkv`, the short form `status`, and the endpoints that `--cluster` stands for.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::flags;
use crate::ctl::printer::{Health, Printer};
use clap::{Args, Subcommand};
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::{
    AlarmRequest, AlarmType, HashKvRequest, HashKvResponse, MemberListRequest, RangeRequest, StatusRequest,
    StatusResponse,
};

/// Whoever asks may not read this key, or it is not there: the answer went through the log's order either way.
const HEALTH_KEY: &str = "health";
const PERMISSION_DENIED: &str = "etcdserver: permission denied";

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct EndpointCommand {
    /// Use the client URLs of all members of the cluster instead of --endpoints
    #[arg(long, global = true)]
    cluster: bool,
    #[command(subcommand)]
    command: EndpointSubcommand,
}

#[derive(Subcommand)]
enum EndpointSubcommand {
    /// Whether each endpoint commits what it is asked for, and has no alarm
    Health {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Print the status of each endpoint
    Status {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Print the hash over the history of each endpoint
    Hashkv {
        /// Newest revision to hash; 0 is the latest
        #[arg(long, default_value_t = 0, value_parser = flags::integer)]
        rev: i64,
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
}

pub(crate) async fn run(client: &Client, printer: Printer, command: EndpointCommand) -> Result<(), Failure> {
    let endpoints = endpoints(client, command.cluster).await?;
    match command.command {
        EndpointSubcommand::Health { .. } => health(client, printer, endpoints).await,
        EndpointSubcommand::Status { .. } => status(client, printer, endpoints).await,
        EndpointSubcommand::Hashkv { rev, .. } => hash(client, printer, endpoints, rev).await,
    }
}

/// The endpoints as typed, or the client URLs of all members.
pub(crate) async fn endpoints(client: &Client, is_cluster: bool) -> Result<Vec<String>, Failure> {
    if !is_cluster {
        return Ok(client.endpoints());
    }
    let mut cluster = client.cluster().await?;
    let members = client.call(cluster.member_list(MemberListRequest { linearizable: true })).await;
    let members = members.map_err(|failure| {
        let what = "failed to fetch endpoints from etcd cluster member list";
        Failure::new(Exit::Error, format!("{what}: {}", failure.message))
    })?;
    Ok(members.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

/// Asks all at once, so that one that does not answer holds nobody up.
async fn health(client: &Client, mut printer: Printer, endpoints: Vec<String>) -> Result<(), Failure> {
    let mut asked = Vec::new();
    for endpoint in endpoints {
        let client = client.clone();
        asked.push(tokio::spawn(async move { health_of(&client, endpoint).await }));
    }
    let mut healths = Vec::new();
    for health in asked {
        healths.push(health.await.map_err(|error| Failure::new(Exit::Error, error.to_string()))?);
    }
    printer.healths(&healths)?;
    printer.flush()?;
    if healths.iter().all(|health| health.error.is_empty()) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Error, "unhealthy cluster"))
    }
}

async fn health_of(client: &Client, endpoint: String) -> Health {
    let mut health = Health { endpoint, is_healthy: false, took: String::new(), error: String::new() };
    let kv = match client.kv_of(&health.endpoint).await {
        Ok(kv) => kv,
        Err(failure) => {
            health.error = failure.message;
            return health;
        }
    };
    let clock = MonotonicClock::default();
    let started_us = clock.now_us();
    let mut kv = kv;
    let request = RangeRequest { key: HEALTH_KEY.into(), ..RangeRequest::default() };
    let answer = client.call(kv.range(request)).await;
    health.took = took_text(clock.now_us() - started_us);
    if let Err(failure) = answer
        && failure.message != PERMISSION_DENIED
    {
        health.error = failure.message;
        return health;
    }
    let alarms = async {
        let mut maintenance = client.maintenance(&health.endpoint).await?;
        let request = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
        client.call(maintenance.alarm(request)).await
    };
    health.error = match alarms.await {
        Err(_) => "Unable to fetch the alarm list".to_owned(),
        Ok(alarms) if alarms.alarms.is_empty() => String::new(),
        Ok(alarms) => {
            let names = alarms.alarms.iter().map(|alarm| match alarm.alarm() {
                AlarmType::Nospace => "NOSPACE ",
                AlarmType::Corrupt => "CORRUPT ",
                AlarmType::None => "UNKNOWN ",
            });
            format!("Active Alarm(s): {}", names.collect::<String>())
        }
    };
    health.is_healthy = health.error.is_empty();
    health
}

/// A duration as Go prints it.
pub(crate) fn took_text(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{}ms", us as f64 / 1e3),
        _ => format!("{}s", us as f64 / 1e6),
    }
}

/// Prints what each endpoint says of itself. An endpoint that does not answer is named on standard error, and the
/// command fails at its end.
pub(crate) async fn status(
    client: &Client,
    mut printer: Printer,
    endpoints: Vec<String>,
) -> Result<(), Failure> {
    let mut statuses = Vec::new();
    let mut is_complete = true;
    for endpoint in endpoints {
        match status_of(client, &endpoint).await {
            Ok(status) => statuses.push((endpoint, status)),
            Err(failure) => {
                is_complete = false;
                eprintln!("Failed to get the status of endpoint {endpoint} ({})", failure.message);
            }
        }
    }
    printer.statuses(&statuses)?;
    printer.flush()?;
    if is_complete { Ok(()) } else { Err(Failure::new(Exit::Error, "")) }
}

/// What one endpoint says of itself.
pub(crate) async fn status_of(client: &Client, endpoint: &str) -> Result<StatusResponse, Failure> {
    let mut maintenance = client.maintenance(endpoint).await?;
    client.call(maintenance.status(StatusRequest {})).await
}

async fn hash(
    client: &Client,
    mut printer: Printer,
    endpoints: Vec<String>,
    revision: i64,
) -> Result<(), Failure> {
    let mut hashes = Vec::new();
    let mut last_failure = None;
    for endpoint in endpoints {
        match hash_of(client, &endpoint, revision).await {
            Ok(hash) => hashes.push((endpoint, hash)),
            Err(failure) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({})", failure.message);
                last_failure = Some(failure);
            }
        }
    }
    printer.hashes(&hashes)?;
    printer.flush()?;
    last_failure.map_or(Ok(()), |failure| Err(failure.with_exit(Exit::Error)))
}

async fn hash_of(client: &Client, endpoint: &str, revision: i64) -> Result<HashKvResponse, Failure> {
    let mut maintenance = client.maintenance(endpoint).await?;
    client.call(maintenance.hash_kv(HashKvRequest { revision })).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (us, text) in [(999, "999µs"), (3_720, "3.72ms"), (1_000, "1ms"), (1_002_000, "1.002s")] {
            assert_eq!(took_text(us), text);
        }
    }
}
