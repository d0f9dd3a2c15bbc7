//! `lease grant`, `revoke`, `timetolive`, `list` and `keep-alive`.
use crate::ctl::connect::{Client, stream_error_text};
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::printer::{Format, Printer};
use clap::{Args, Subcommand};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};
use tokio_stream::wrappers::ReceiverStream;

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct LeaseCommand {
    #[command(subcommand)]
    command: LeaseSubcommand,
}

#[derive(Subcommand)]
enum LeaseSubcommand {
    /// Create a lease
    Grant {
        /// Time to live in seconds
        #[arg(value_name = "TTL")]
        arguments: Vec<String>,
    },
    /// Revoke a lease
    Revoke {
        /// Lease id in hexadecimal
        #[arg(value_name = "LEASE_ID")]
        arguments: Vec<String>,
    },
    /// Get what is known of a lease
    Timetolive {
        /// Get the keys attached to the lease
        #[arg(long)]
        keys: bool,
        /// Lease id in hexadecimal
        #[arg(value_name = "LEASE_ID")]
        arguments: Vec<String>,
    },
    /// List all leases
    List {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Keep a lease alive
    KeepAlive {
        /// Renew once and exit
        #[arg(long)]
        once: bool,
        /// Lease id in hexadecimal
        #[arg(value_name = "LEASE_ID")]
        arguments: Vec<String>,
    },
}

pub(crate) async fn run(client: &Client, mut printer: Printer, command: LeaseCommand) -> Result<(), Failure> {
    match command.command {
        LeaseSubcommand::Grant { arguments } => {
            let ttl = only(&arguments, "lease grant command needs TTL argument")?;
            let ttl =
                parse_decimal(ttl).map_err(|error| Failure::bad_arguments(format!("bad TTL ({error})")))?;
            let request = LeaseGrantRequest { ttl, id: 0 };
            let mut lease = client.lease().await?;
            let response = client.call(lease.lease_grant(request)).await;
            let response = response.map_err(|failure| framed("failed to grant lease", failure))?;
            printer.grant(&response)?;
        }
        LeaseSubcommand::Revoke { arguments } => {
            let id = lease_argument(&arguments, "lease revoke command needs 1 argument")?;
            let mut lease = client.lease().await?;
            let response = client.call(lease.lease_revoke(LeaseRevokeRequest { id })).await;
            let response = response.map_err(|failure| framed("failed to revoke lease", failure))?;
            printer.revoke(id, &response)?;
        }
        LeaseSubcommand::Timetolive { keys, arguments } => {
            let id = lease_argument(&arguments, "lease timetolive command needs lease ID as argument")?;
            let mut lease = client.lease().await?;
            let response = client.call(lease.lease_time_to_live(LeaseTimeToLiveRequest { id, keys })).await;
            printer.time_to_live(&response.map_err(|f| f.with_exit(Exit::BadConnection))?, keys)?;
        }
        LeaseSubcommand::List { .. } => {
            let mut lease = client.lease().await?;
            let response = client.call(lease.lease_leases(LeaseLeasesRequest {})).await;
            printer.leases(&response.map_err(|f| f.with_exit(Exit::BadConnection))?)?;
        }
        LeaseSubcommand::KeepAlive { once, arguments } => {
            let id = lease_argument(&arguments, "lease keep-alive command needs lease ID as argument")?;
            keep_alive(client, &mut printer, id, once).await?;
        }
    }
    printer.flush()
}

/// Renews at a third of the TTL until the lease is gone, or once.
async fn keep_alive(client: &Client, printer: &mut Printer, id: i64, once: bool) -> Result<(), Failure> {
    let connection_lost =
        |status: tonic::Status| Failure::new(Exit::BadConnection, stream_error_text(&status));
    let mut lease = client.lease().await?;
    // One renewal is under way at a time.
    let (requests, received) = tokio::sync::mpsc::channel(1);
    requests.send(LeaseKeepAliveRequest { id }).await.expect("the receiver is held here");
    let responses = lease.lease_keep_alive(ReceiverStream::new(received)).await.map_err(connection_lost)?;
    let mut responses = responses.into_inner();
    loop {
        let Some(response) = responses.message().await.map_err(connection_lost)? else {
            return Err(Failure::new(Exit::BadConnection, "the server ended the stream"));
        };
        if response.ttl <= 0 && once {
            return Err(Failure::new(Exit::BadConnection, "etcdserver: requested lease not found"));
        }
        if response.ttl <= 0 {
            if printer.format == Format::Simple {
                printer.line(format_args!("lease {id:016x} expired or revoked."));
            }
            return Ok(());
        }
        printer.keep_alive(&response)?;
        if once {
            return Ok(());
        }
        printer.flush()?;
        let pause = Duration::from_millis(response.ttl.unsigned_abs().saturating_mul(1_000) / 3);
        tokio::time::sleep(pause).await;
        if requests.send(LeaseKeepAliveRequest { id }).await.is_err() {
            return Err(Failure::new(Exit::BadConnection, "the server ended the stream"));
        }
    }
}

fn framed(what: &str, failure: Failure) -> Failure {
    Failure::new(failure.exit, format!("{what} ({})", failure.message))
}

fn only<'a>(arguments: &'a [String], usage: &str) -> Result<&'a str, Failure> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(Failure::bad_arguments(usage)),
    }
}

fn lease_argument(arguments: &[String], usage: &str) -> Result<i64, Failure> {
    parse_lease_id(only(arguments, usage)?)
        .map_err(|error| Failure::bad_arguments(format!("bad lease ID arg ({error}), expecting ID in Hex")))
}

/// A lease id as it is printed: hexadecimal. The error is worded as Go's.
pub(crate) fn parse_lease_id(text: &str) -> Result<i64, String> {
    i64::from_str_radix(text, 16).map_err(|error| number_error(text, &error))
}

/// A decimal number. The error is worded as Go's.
pub(crate) fn parse_decimal(text: &str) -> Result<i64, String> {
    text.parse().map_err(|error| number_error(text, &error))
}

fn number_error(text: &str, error: &std::num::ParseIntError) -> String {
    use std::num::IntErrorKind;
    let what = match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.ParseInt: parsing {text:?}: {what}")
}
