//! `compare keys`: which keys differ between members, found by asking them range by range.
//!
//! **Contract.** Every endpoint is asked for itself, at one revision. Exit code 0: nothing differs. 7: something does, and standard output says which keys and how.
//! Another: it was not found out, and standard error says why. Progress on standard error where that is a terminal.
//!
//! **Does not know** who is right, and changes nothing.
use crate::ctl::connect::{Calls, Client};
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::json::Object;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::quote::quote;
use crate::kv::prefix_range;
use crate::progress::ProgressLine;
use clap::{Args, Subcommand};
use sternpost_server::differences::{Asked, Difference, Failed, Found, find};
use sternpost_server::wire::sternpostpb as pb;
use sternpost_server::wire::sternpostpb::ranges_client::RangesClient;

/// What etcd says of a revision that is gone.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct CompareCommand {
    #[command(subcommand)]
    command: CompareSubcommand,
}

#[derive(Subcommand)]
enum CompareSubcommand {
    /// Find the keys that differ between the endpoints; exit code 7 if there are any
    Keys(KeysOptions),
}

#[derive(Args)]
struct KeysOptions {
    /// Only keys that begin with this
    #[arg(default_value = "")]
    prefix: String,
    /// At which revision; 0 for the newest that all of them have
    #[arg(long, default_value_t = 0)]
    revision: i64,
    /// Name at most so many keys; all others that differ are counted
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

pub(crate) async fn run(client: &Client, printer: Printer, command: CompareCommand) -> Result<(), Failure> {
    let CompareSubcommand::Keys(options) = command.command;
    keys(client, printer, &options).await
}

/// One endpoint.
struct Member<'a> {
    client: &'a Client,
    endpoint: String,
    ranges: RangesClient<Calls>,
}

impl Asked for Member<'_> {
    type Error = Failure;

    async fn sums(&mut self, request: pb::RangeSumsRequest) -> Result<pb::RangeSumsResponse, Failure> {
        self.client.call(self.ranges.sums(request)).await
    }

    async fn parts(&mut self, request: pb::RangePartsRequest) -> Result<pb::RangePartsResponse, Failure> {
        self.client.call(self.ranges.parts(request)).await
    }

    async fn keys(&mut self, request: pb::RangeKeysRequest) -> Result<pb::RangeKeysResponse, Failure> {
        self.client.call(self.ranges.keys(request)).await
    }
}

async fn keys(client: &Client, mut printer: Printer, options: &KeysOptions) -> Result<(), Failure> {
    let endpoints = client.endpoints();
    if endpoints.len() < 2 {
        return Err(Failure::bad_arguments("compare keys needs two endpoints or more (--endpoints)"));
    }
    let mut members = Vec::new();
    let mut positions = Vec::new();
    for endpoint in endpoints {
        let at = |failure: Failure| named(&endpoint, failure);
        let ranges = client.ranges(&endpoint).await.map_err(at)?;
        let mut member = Member { client, endpoint: endpoint.clone(), ranges };
        let answer = member.sums(pb::RangeSumsRequest::default()).await.map_err(at)?;
        positions.push(answer.position.unwrap_or_default());
        members.push(member);
    }
    if positions.iter().any(|position| position.cluster_id != positions[0].cluster_id) {
        eprintln!("Warning: these are members of different clusters");
    }
    let revision = readable_revision(&members, &positions, options.revision)?;
    let mut line = ProgressLine::new();
    let mut on_progress = |found: &Found| {
        let so_far = || format!("{} requests, {} keys differ", found.requests, found.differing_keys);
        line.show_text("comparing", &so_far);
    };
    let found = find(&mut members, span(&options.prefix), revision, options.limit, &mut on_progress).await;
    line.clear();
    let found = found.map_err(|failed| explained(&members, revision, failed))?;
    match printer.format {
        Format::Json => printer.line(found_json(&members, &positions, revision, &found)),
        _ => print(&mut printer, &members, &positions, revision, &found),
    }
    printer.flush()?;
    match found.differing_keys == 0 && found.unexplained.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Different, "")),
    }
}

fn named(endpoint: &str, failure: Failure) -> Failure {
    let message = match failure.message.contains("unknown service sternpostpb.Ranges") {
        true => format!("{endpoint} cannot compare keys: it is an etcd, or an older sternpost"),
        false => format!("{endpoint}: {}", failure.message),
    };
    Failure { message, ..failure }
}

fn span(prefix: &str) -> pb::KeySpan {
    let (key, range_end) = prefix_range(prefix.to_owned().into());
    pb::KeySpan { key, range_end }
}

/// The revision that was asked for, or the newest that all have, if all can read it.
fn readable_revision(
    members: &[Member<'_>],
    positions: &[pb::RangePosition],
    asked: i64,
) -> Result<i64, Failure> {
    let newest = positions.iter().map(|position| position.head_revision).min().unwrap_or(0);
    let revision = if asked > 0 { asked } else { newest };
    for (member, position) in members.iter().zip(positions) {
        let endpoint = &member.endpoint;
        if revision > position.head_revision {
            let message = format!(
                "{endpoint} does not have revision {revision} yet: its newest is {}",
                position.head_revision
            );
            return Err(Failure::new(Exit::Error, message));
        }
        if revision < position.compact_revision {
            return Err(compacted(endpoint, revision, Some(position.compact_revision)));
        }
    }
    Ok(revision)
}

fn compacted(endpoint: &str, revision: i64, oldest: Option<i64>) -> Failure {
    let message = match oldest {
        Some(oldest) => {
            format!("revision {revision} is compacted at {endpoint}: the oldest there is {oldest}")
        }
        None => {
            format!("revision {revision} was compacted at {endpoint} while it was compared: compare again")
        }
    };
    Failure::new(Exit::Error, message)
}

fn explained(members: &[Member<'_>], revision: i64, failed: Failed<Failure>) -> Failure {
    match failed {
        Failed::Member { number, error } if error.message == COMPACTED => {
            compacted(&members[number].endpoint, revision, None)
        }
        Failed::Member { number, error } => named(&members[number].endpoint, error),
        Failed::Answer { number, what } => {
            Failure::new(Exit::Error, format!("{}: {what}", members[number].endpoint))
        }
    }
}

fn print(
    printer: &mut Printer,
    members: &[Member<'_>],
    positions: &[pb::RangePosition],
    revision: i64,
    found: &Found,
) {
    printer.line(format!("at revision {revision}:"));
    for ((member, position), sum) in members.iter().zip(positions).zip(&found.sums) {
        let (endpoint, id, keys, hash) = (&member.endpoint, position.member_id, sum.keys, sum.hash_sum);
        printer.line(format!("  {endpoint}: member {id:x}, {keys} keys, sum of hashes {hash:016x}"));
    }
    for difference in &found.differences {
        printer.line(quote(&difference.key));
        for (member, held) in members.iter().zip(&difference.held) {
            let what = match held {
                None => "missing".to_owned(),
                Some(it) => format!(
                    "mod revision {}, create revision {}, version {}, lease {:x}, value of {} bytes with hash {:016x}",
                    it.mod_revision, it.create_revision, it.version, it.lease, it.value_bytes, it.value_hash
                ),
            };
            printer.line(format!("  {}: {what}", member.endpoint));
        }
    }
    let unnamed = found.differing_keys - found.differences.len() as u64;
    if unnamed > 0 {
        printer.line(format!("and {unnamed} more"));
    }
    for span in &found.unexplained {
        printer.line(format!(
            "sums of the keys from {} to {} differ, and each key is the same: the tree of a member is wrong (sternctl verify)",
            quote(&span.key),
            quote(&span.range_end)
        ));
    }
    printer.line(match found.differing_keys {
        0 if found.unexplained.is_empty() => "no key differs".to_owned(),
        0 => "no key differs, and sums do".to_owned(),
        1 => "1 key differs".to_owned(),
        count => format!("{count} keys differ"),
    });
}

fn found_json(
    members: &[Member<'_>],
    positions: &[pb::RangePosition],
    revision: i64,
    found: &Found,
) -> String {
    let member = |((member, position), sum): ((&Member<'_>, &pb::RangePosition), &pb::RangeSum)| {
        Object::new()
            .text("endpoint", &member.endpoint)
            .number_always("member_id", position.member_id)
            .number_always("head_revision", position.head_revision)
            .number_always("compact_revision", position.compact_revision)
            .number_always("keys", sum.keys)
            .text("hash_sum", &format!("{:016x}", sum.hash_sum))
            .end()
    };
    let differences = found.differences.iter().map(|difference| difference_json(members, difference));
    let span =
        |span: &pb::KeySpan| Object::new().bytes("key", &span.key).bytes("range_end", &span.range_end).end();
    Object::new()
        .number_always("revision", revision)
        .list("members", members.iter().zip(positions).zip(&found.sums).map(member).collect())
        .number_always("differing_keys", found.differing_keys)
        .list("differences", differences.collect())
        .list("unexplained", found.unexplained.iter().map(span).collect())
        .number_always("requests", found.requests)
        .number_always("keys_listed", found.keys_listed)
        .end()
}

fn difference_json(members: &[Member<'_>], difference: &Difference) -> String {
    let held = members.iter().zip(&difference.held).map(|(member, held)| {
        let object = Object::new().text("endpoint", &member.endpoint);
        match held {
            None => object.truth("missing", true).end(),
            Some(it) => object
                .number_always("create_revision", it.create_revision)
                .number_always("mod_revision", it.mod_revision)
                .number_always("version", it.version)
                .number_always("lease", it.lease)
                .number_always("value_bytes", it.value_bytes)
                .text("value_hash", &format!("{:016x}", it.value_hash))
                .text("record_hash", &format!("{:016x}", it.record_hash))
                .end(),
        }
    });
    Object::new().bytes("key", &difference.key).list("held", held.collect()).end()
}
