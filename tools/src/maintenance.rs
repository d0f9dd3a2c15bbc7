//! `compaction`, `alarm`, `defrag` and `downgrade`: what an operator asks of a running cluster.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::printer::Printer;
use crate::endpoint::{endpoints, took_text};
use crate::lease::parse_decimal;
use clap::{Args, Subcommand};
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::downgrade_request::DowngradeAction;
use sternpost_server::wire::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, DefragmentRequest, DowngradeRequest,
};

#[derive(Args)]
pub(crate) struct CompactionOptions {
    /// Answer when what is compacted is gone
    #[arg(long)]
    physical: bool,
    /// Everything that was overwritten or deleted before this revision goes
    #[arg(value_name = "REVISION")]
    arguments: Vec<String>,
}

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct AlarmCommand {
    #[command(subcommand)]
    command: AlarmSubcommand,
}

#[derive(Subcommand)]
enum AlarmSubcommand {
    /// Disarm all alarms
    Disarm {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// List all alarms
    List {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
pub(crate) struct DefragOptions {
    /// Use the client URLs of all members of the cluster instead of --endpoints
    #[arg(long)]
    cluster: bool,
    #[arg(hide = true)]
    arguments: Vec<String>,
}

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct DowngradeCommand {
    #[command(subcommand)]
    command: DowngradeSubcommand,
}

#[derive(Subcommand)]
enum DowngradeSubcommand {
    /// Ask whether a downgrade to this version could be made
    Validate {
        /// The version
        #[arg(value_name = "TARGET_VERSION")]
        arguments: Vec<String>,
    },
    /// Begin a downgrade of the cluster to this version
    Enable {
        /// The version
        #[arg(value_name = "TARGET_VERSION")]
        arguments: Vec<String>,
    },
    /// Call off a downgrade that was begun
    Cancel {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
}

pub(crate) async fn compaction(
    client: &Client,
    mut printer: Printer,
    options: CompactionOptions,
) -> Result<(), Failure> {
    let [revision] = &options.arguments[..] else {
        return Err(Failure::bad_arguments("compaction command needs 1 argument"));
    };
    let revision = parse_decimal(revision).map_err(|error| Failure::new(Exit::Error, error))?;
    let request = CompactionRequest { revision, physical: options.physical };
    client.call(client.kv().await?.compact(request)).await?;
    printer.line(format_args!("compacted revision {revision}"));
    printer.flush()
}

pub(crate) async fn alarm(
    client: &Client,
    mut printer: Printer,
    command: AlarmCommand,
) -> Result<(), Failure> {
    let none = |arguments: &[String], what: &str| match arguments {
        [] => Ok(()),
        _ => Err(Failure::bad_arguments(format!("alarm {what} command accepts no arguments"))),
    };
    let response = match command.command {
        AlarmSubcommand::Disarm { arguments } => {
            none(&arguments, "disarm")?;
            disarm(client).await?
        }
        AlarmSubcommand::List { arguments } => {
            none(&arguments, "list")?;
            active(client).await?
        }
    };
    printer.alarms(&response)?;
    printer.flush()
}

async fn active(client: &Client) -> Result<AlarmResponse, Failure> {
    let request = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
    client.call(client.any_maintenance().await?.alarm(request)).await
}

/// Disarms what is active, one by one; answers with all that went.
async fn disarm(client: &Client) -> Result<AlarmResponse, Failure> {
    let active = active(client).await?;
    let mut gone = AlarmResponse::default();
    for alarm in active.alarms {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let response = client.call(client.any_maintenance().await?.alarm(request)).await?;
        gone.alarms.extend(response.alarms);
    }
    Ok(gone)
}

/// Asks each endpoint to give unused space back. Ours does so by itself all the time, and says that it did.
pub(crate) async fn defrag(
    client: &Client,
    mut printer: Printer,
    options: DefragOptions,
) -> Result<(), Failure> {
    let mut is_complete = true;
    for endpoint in endpoints(client, options.cluster).await? {
        let clock = MonotonicClock::default();
        let started_us = clock.now_us();
        let done = async {
            let mut maintenance = client.maintenance(&endpoint).await?;
            client.call(maintenance.defragment(DefragmentRequest {})).await
        };
        let done = done.await;
        let took = took_text(clock.now_us() - started_us);
        match done {
            Ok(_) => {
                printer.line(format_args!("Finished defragmenting etcd member[{endpoint}]. took {took}"));
                // One member after the other: who watches sees how far it is.
                printer.flush()?;
            }
            Err(failure) => {
                is_complete = false;
                let why = failure.message;
                eprintln!("Failed to defragment etcd member[{endpoint}]. took {took}. ({why})");
            }
        }
    }
    if is_complete { Ok(()) } else { Err(Failure::new(Exit::Error, "")) }
}

pub(crate) async fn downgrade(
    client: &Client,
    mut printer: Printer,
    command: DowngradeCommand,
) -> Result<(), Failure> {
    let (what, action, version) = match command.command {
        DowngradeSubcommand::Validate { arguments } => {
            ("validate", DowngradeAction::Validate, target(arguments)?)
        }
        DowngradeSubcommand::Enable { arguments } => ("enable", DowngradeAction::Enable, target(arguments)?),
        DowngradeSubcommand::Cancel { .. } => ("cancel", DowngradeAction::Cancel, String::new()),
    };
    let request = DowngradeRequest { action: action.into(), version };
    let response = client.call(client.any_maintenance().await?.downgrade(request)).await?;
    printer.downgrade(what, &response)?;
    printer.flush()
}

fn target(arguments: Vec<String>) -> Result<String, Failure> {
    let mut arguments = arguments.into_iter();
    match (arguments.next(), arguments.next()) {
        (None, _) => Err(Failure::bad_arguments("TARGET_VERSION not provided")),
        (Some(_), Some(_)) => Err(Failure::bad_arguments("too many arguments")),
        (Some(version), None) if version.is_empty() => {
            Err(Failure::bad_arguments("target version not provided"))
        }
        (Some(version), None) => Ok(version),
    }
}
