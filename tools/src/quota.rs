//! `quota`: how many keys may begin with certain bytes, on all members of a cluster.
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::json::Object;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::quote::quote;
use clap::{Args, Subcommand};
use sternpost_server::wire::sternpostpb::{PrefixQuotasRequest, SetPrefixQuotaRequest};

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct QuotaCommand {
    #[command(subcommand)]
    command: QuotaSubcommand,
}

#[derive(Subcommand)]
enum QuotaSubcommand {
    /// What each prefix with a quota has and may have
    List,
    /// Let at most so many keys begin with a prefix; those that are there already stay
    Set {
        /// With what the keys begin
        prefix: String,
        /// Most keys
        #[arg(long)]
        keys: u64,
    },
    /// Take the quota of a prefix back
    Remove {
        /// Of which prefix
        prefix: String,
    },
}

pub(crate) async fn run(client: &Client, mut printer: Printer, command: QuotaCommand) -> Result<(), Failure> {
    let mut usage = client.usage().await?;
    let (prefix, keys_max) = match command.command {
        QuotaSubcommand::List => {
            let quotas = client.call(usage.prefix_quotas(PrefixQuotasRequest {})).await?.quotas;
            if printer.format == Format::Json {
                let one = |quota: &sternpost_server::wire::sternpostpb::PrefixQuota| {
                    Object::new()
                        .bytes("prefix", &quota.prefix)
                        .number_always("keys", quota.keys)
                        .number_always("keys_max", quota.keys_max)
                        .end()
                };
                printer.line(Object::new().list("quotas", quotas.iter().map(one).collect()).end());
            } else {
                for quota in &quotas {
                    printer.line(format!(
                        "{}: {} of {} keys",
                        quote(&quota.prefix),
                        quota.keys,
                        quota.keys_max
                    ));
                }
            }
            return printer.flush();
        }
        QuotaSubcommand::Set { prefix, keys } => (prefix, Some(keys)),
        QuotaSubcommand::Remove { prefix } => (prefix, None),
    };
    let request = SetPrefixQuotaRequest { prefix: prefix.clone().into(), keys_max };
    client.call(usage.set_prefix_quota(request)).await?;
    let prefix = quote(prefix.as_bytes());
    printer.line(match keys_max {
        Some(keys) => format!("{prefix}: at most {keys} keys"),
        None => format!("{prefix}: no quota"),
    });
    printer.flush()
}
