//! `heavy`: which prefixes, methods or clients cost a member the most.
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::json::Object;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::quote::quote;
use crate::ctl::table::{bytes_text, render};
use clap::{Args, ValueEnum};
use sternpost_server::wire::sternpostpb::heavy_hitters_request::Dimension;
use sternpost_server::wire::sternpostpb::{HeavyHitter, HeavyHittersRequest};

#[derive(Args)]
pub(crate) struct HeavyOptions {
    /// By what
    #[arg(value_enum, default_value_t = By::Prefix)]
    by: By,
    /// Name at most so many
    #[arg(long, default_value_t = 20)]
    limit: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// The beginning of keys, up to the second slash
    Prefix,
    /// The method that is called
    Method,
    /// The client's address
    Client,
}

pub(crate) async fn run(client: &Client, mut printer: Printer, options: HeavyOptions) -> Result<(), Failure> {
    let dimension = match options.by {
        By::Prefix => Dimension::Prefix,
        By::Method => Dimension::Method,
        By::Client => Dimension::Client,
    };
    let mut usage = client.usage().await?;
    let request = HeavyHittersRequest { dimension: dimension.into(), limit: options.limit };
    let answer = client.call(usage.heavy_hitters(request)).await?;
    if printer.format == Format::Json {
        let one = |of: &HeavyHitter| {
            Object::new()
                .bytes("name", &of.name)
                .number_always("cost", of.cost)
                .number_always("error", of.error)
                .number_always("requests", of.requests)
                .number_always("failed", of.failed)
                .number_always("received_bytes", of.received_bytes)
                .number_always("sent_bytes", of.sent_bytes)
                .end()
        };
        let object = Object::new()
            .number_always("covered_s", answer.covered_s)
            .number_always("total_cost", answer.total_cost)
            .list("entries", answer.entries.iter().map(one).collect());
        printer.line(object.end());
        return printer.flush();
    }
    printer.line(format!("the last {} s:", answer.covered_s));
    let percent = |cost: u64| match answer.total_cost {
        0 => String::new(),
        total => format!("{:.1} %", cost as f64 * 100.0 / total as f64),
    };
    let rows = answer.entries.iter().map(|of| {
        vec![
            quote(&of.name),
            percent(of.cost),
            of.requests.to_string(),
            of.failed.to_string(),
            bytes_text(of.received_bytes),
            bytes_text(of.sent_bytes),
            if of.error > 0 { percent(of.error) } else { String::new() },
        ]
    });
    let header = ["NAME", "COST", "REQUESTS", "FAILED", "RECEIVED", "SENT", "COST AT MOST TOO HIGH BY"];
    printer.line(render(&header, &rows.collect::<Vec<_>>()).trim_end());
    printer.flush()
}
