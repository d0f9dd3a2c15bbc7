//! `member` and `move-leader`: who belongs to the cluster, and who leads it.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::printer::Printer;
use crate::endpoint::status_of;
use clap::{Args, Subcommand};
use sternpost_server::config::url;
use sternpost_server::wire::etcdserverpb as pb;

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct MemberCommand {
    #[command(subcommand)]
    command: MemberSubcommand,
}

#[derive(Subcommand)]
enum MemberSubcommand {
    /// Add a member, and print what its server is to be started with
    Add {
        /// Its peer URLs, separated by commas
        #[arg(long, default_value = "")]
        peer_urls: String,
        /// Without a vote until it is promoted
        #[arg(long)]
        learner: bool,
        /// Its name
        #[arg(value_name = "NAME")]
        arguments: Vec<String>,
    },
    /// Remove a member
    Remove {
        /// Its id in hexadecimal
        #[arg(value_name = "MEMBER_ID")]
        arguments: Vec<String>,
    },
    /// Give a member other peer URLs
    Update {
        /// Its peer URLs, separated by commas
        #[arg(long, default_value = "")]
        peer_urls: String,
        /// Its id in hexadecimal
        #[arg(value_name = "MEMBER_ID")]
        arguments: Vec<String>,
    },
    /// List all members
    List {
        /// Linearizable (l) or serializable (s)
        #[arg(long, default_value = "l")]
        consistency: String,
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Give a learner a vote
    Promote {
        /// Its id in hexadecimal
        #[arg(value_name = "MEMBER_ID")]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
pub(crate) struct MoveLeaderOptions {
    /// Id of the member that is to lead, in hexadecimal
    #[arg(value_name = "MEMBER_ID")]
    arguments: Vec<String>,
}

pub(crate) async fn run(
    client: &Client,
    mut printer: Printer,
    command: MemberCommand,
) -> Result<(), Failure> {
    match command.command {
        MemberSubcommand::Add { peer_urls, learner, arguments } => {
            let name = new_name(&arguments)?;
            let peer_ur_ls = urls(&peer_urls)?;
            check(&peer_ur_ls)?;
            let request = pb::MemberAddRequest { peer_ur_ls, is_learner: learner };
            let response = client.call(client.cluster().await?.member_add(request)).await?;
            printer.member_added(name, &peer_urls, &response)?;
        }
        MemberSubcommand::Remove { arguments } => {
            let id = member_argument(&arguments)?;
            let request = pb::MemberRemoveRequest { id };
            let response = client.call(client.cluster().await?.member_remove(request)).await?;
            printer.member_changed(id, "removed from", response.header.as_ref(), &response.members)?;
        }
        MemberSubcommand::Update { peer_urls, arguments } => {
            let id = member_argument(&arguments)?;
            let peer_ur_ls = urls(&peer_urls)?;
            check(&peer_ur_ls)?;
            let request = pb::MemberUpdateRequest { id, peer_ur_ls };
            let response = client.call(client.cluster().await?.member_update(request)).await?;
            printer.member_changed(id, "updated in", response.header.as_ref(), &response.members)?;
        }
        MemberSubcommand::List { consistency, .. } => {
            let linearizable = match consistency.as_str() {
                "l" => true,
                "s" => false,
                other => return Err(Failure::bad_feature(format!("unknown consistency flag {other:?}"))),
            };
            let request = pb::MemberListRequest { linearizable };
            printer.members(&client.call(client.cluster().await?.member_list(request)).await?);
        }
        MemberSubcommand::Promote { arguments } => {
            let id = member_argument(&arguments)?;
            let request = pb::MemberPromoteRequest { id };
            let response = client.call(client.cluster().await?.member_promote(request)).await?;
            printer.member_changed(id, "promoted in", response.header.as_ref(), &response.members)?;
        }
    }
    printer.flush()
}

/// Asks the endpoints one by one who leads, and tells the leader to hand over.
pub(crate) async fn move_leader(
    client: &Client,
    mut printer: Printer,
    options: MoveLeaderOptions,
) -> Result<(), Failure> {
    let [target] = &options.arguments[..] else {
        return Err(Failure::bad_arguments("move-leader command needs 1 argument"));
    };
    let target_id = parse_member_id(target).map_err(Failure::bad_arguments)?;
    let endpoints = client.endpoints();
    for endpoint in &endpoints {
        let status = status_of(client, endpoint).await?;
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            let request = pb::MoveLeaderRequest { target_id };
            let response = client.call(client.maintenance(endpoint).await?.move_leader(request)).await?;
            printer.leader_moved(status.leader, target_id, &response)?;
            return printer.flush();
        }
    }
    Err(Failure::bad_arguments(format!("no leader endpoint given at [{}]", endpoints.join(" "))))
}

fn new_name(arguments: &[String]) -> Result<&str, Failure> {
    match arguments {
        [] => Err(Failure::bad_arguments("member name not provided")),
        [name] => Ok(name),
        many => {
            let is_url = |argument: &&String| argument.to_ascii_lowercase().starts_with("http");
            let hints = many.iter().filter(is_url).map(|url| format!(", did you mean --peer-urls={url}"));
            Err(Failure::bad_arguments(format!("too many arguments{}", hints.collect::<String>())))
        }
    }
}

fn urls(typed: &str) -> Result<Vec<String>, Failure> {
    if typed.is_empty() {
        return Err(Failure::bad_arguments("member peer urls not provided"));
    }
    Ok(typed.split(',').map(str::to_owned).collect())
}

/// Each could be a member's; the server looks at them again.
fn check(urls: &[String]) -> Result<(), Failure> {
    urls.iter()
        .try_for_each(|url| url::parse_one(url).map(|_| ()))
        .map_err(|error| Failure::new(Exit::Error, error))
}

fn member_argument(arguments: &[String]) -> Result<u64, Failure> {
    let [id] = arguments else { return Err(Failure::bad_arguments("member ID is not provided")) };
    parse_member_id(id)
        .map_err(|error| Failure::bad_arguments(format!("bad member ID arg ({error}), expecting ID in Hex")))
}

/// A member's id as it is printed: hexadecimal. The error is worded as Go's.
fn parse_member_id(text: &str) -> Result<u64, String> {
    let failed = |what: &str| format!("strconv.ParseUint: parsing {text:?}: {what}");
    // Go takes no sign here.
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(failed("invalid syntax"));
    }
    u64::from_str_radix(text, 16).map_err(|_| failed("value out of range"))
}
