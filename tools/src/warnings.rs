//! `warnings`: what is nearly full at each endpoint. Exit code 0 whatever they say.
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::json::{Object, list};
use crate::ctl::printer::{Format, Printer};
use crate::endpoint;
use clap::Args;
use sternpost_server::wire::sternpostpb::{Warning, WarningsRequest};

#[derive(Args)]
pub(crate) struct WarningsOptions {
    /// Use all endpoints from the cluster member list
    #[arg(long)]
    cluster: bool,
}

pub(crate) async fn run(
    client: &Client,
    mut printer: Printer,
    options: WarningsOptions,
) -> Result<(), Failure> {
    let mut objects = Vec::new();
    for endpoint in endpoint::endpoints(client, options.cluster).await? {
        let mut usage = client.usage_of(&endpoint).await?;
        let warnings = client.call(usage.warnings(WarningsRequest {})).await?.warnings;
        if printer.format == Format::Json {
            objects.extend(warnings.iter().map(|warning| warning_json(&endpoint, warning)));
        } else {
            for warning in &warnings {
                printer.line(format!("{endpoint}: {}", warning.text));
            }
        }
    }
    if printer.format == Format::Json {
        printer.line(list(objects));
    }
    printer.flush()
}

fn warning_json(endpoint: &str, warning: &Warning) -> String {
    Object::new()
        .text("endpoint", endpoint)
        .text("of", &warning.of)
        .bytes("prefix", &warning.prefix)
        .number_always("rung", warning.rung)
        .number_always("used", warning.used)
        .number_always("limit", warning.limit)
        .text("text", &warning.text)
        .end()
}
