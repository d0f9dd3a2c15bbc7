//! `endpoint status` and its short form `status`.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::printer::Printer;
use clap::{Args, Subcommand};
use sternpost_server::wire::etcdserverpb::{StatusRequest, StatusResponse};

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct EndpointCommand {
    #[command(subcommand)]
    command: EndpointSubcommand,
}

#[derive(Subcommand)]
enum EndpointSubcommand {
    /// Print the status of each endpoint
    Status,
}

pub(crate) async fn run(client: &Client, printer: Printer, command: EndpointCommand) -> Result<(), Failure> {
    match command.command {
        EndpointSubcommand::Status => status(client, printer).await,
    }
}

/// Prints what each endpoint says of itself. An endpoint that does not answer is named on standard error, and the
/// command fails at its end.
pub(crate) async fn status(client: &Client, mut printer: Printer) -> Result<(), Failure> {
    let mut statuses = Vec::new();
    let mut is_complete = true;
    for endpoint in client.endpoints() {
        match status_of(client, &endpoint).await {
            Ok(status) => statuses.push((endpoint, status)),
            Err(failure) => {
                is_complete = false;
                eprintln!("Failed to get the status of endpoint {endpoint} ({})", failure.message);
            }
        }
    }
    printer.statuses(&statuses);
    printer.flush()?;
    if is_complete { Ok(()) } else { Err(Failure::new(Exit::Error, "")) }
}

async fn status_of(client: &Client, endpoint: &str) -> Result<StatusResponse, Failure> {
    let mut maintenance = client.maintenance(endpoint).await?;
    client.call(maintenance.status(StatusRequest {})).await
}
