//! The command line of `sternctl`: etcdctl's commands, flags, output forms and exit codes, and our own commands beside
//! them.
//!
//! **Contract.** A script written for etcdctl works with `sternctl` in its place: same commands, flags and variables, same standard output, same exit
//! codes, same `Error:` line on standard error. What differs on purpose is listed in `tests/etcdctl/README.md`, and nowhere else.
//!
//! **Does not know** storage: it speaks to a server and reads no data directory, but for `inspect`, `verify`, `salvage`, `backup` and `recover`, which
//! do nothing else and speak to none, and `snapshot restore`, which makes one.
//!
//! **Source**: etcdctl 3.7.3. `tests/etcdctl` runs the same command lines with both programs against both servers.
//!
//! Reading order: `flags` (how a command line is read), `options` (global flags), `connect`, `http`, `failure` (exit codes), `printer` (output forms, with
//! `json`, `table`, `quote` below it), `secret` (passwords); then the commands in `kv`, `watch`, `lease`, `auth`, `endpoint`, `member`, `maintenance`,
//! `session` with `lock` and `elect`, `mirror`, `check`, `compare`, `quota`, `warnings`, `heavy`, `top`, `about`, `snapshot`, `inspect`, `verify`, `salvage`, `backup`, `recover`.
pub(crate) mod connect;
pub(crate) mod failure;
pub(crate) mod flags;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod options;
pub(crate) mod printer;
pub(crate) mod quote;
pub(crate) mod secret;
pub(crate) mod table;

use crate::{
    about, auth, backup, bench, check, compare, elect, endpoint, heavy, inspect, kv, lease, lock,
    maintenance, member, mirror, quota, recover, salvage, snapshot, top, verify, warnings, watch,
};
use clap::{Parser, Subcommand};
use connect::Client;
use failure::{Exit, Failure};
use options::GlobalOptions;
use std::ffi::OsString;
use std::process::ExitCode;

/// The command line client of Sternpost and of any server that speaks etcd's v3 API.
#[derive(Parser)]
#[command(name = "sternctl", version, infer_subcommands = true, arg_required_else_help = true)]
struct CommandLine {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put the given key into the store
    Put(kv::PutOptions),
    /// Get a key or a range of keys
    Get(kv::GetOptions),
    /// Remove a key or a range of keys [key, range_end)
    Del(kv::DelOptions),
    /// Process requests read from standard input in one transaction
    Txn(kv::TxnOptions),
    /// Watch events on keys, ranges or prefixes
    Watch(watch::WatchOptions),
    /// Grant, revoke, renew and list leases
    Lease(lease::LeaseCommand),
    /// Forget what was overwritten or deleted before a revision
    Compaction(maintenance::CompactionOptions),
    /// List and disarm alarms
    Alarm(maintenance::AlarmCommand),
    /// Give unused space back (a server of ours does so by itself)
    Defrag(maintenance::DefragOptions),
    /// Members of the cluster
    Member(member::MemberCommand),
    /// Make another member the leader
    MoveLeader(member::MoveLeaderOptions),
    /// Downgrade the cluster to an older release
    Downgrade(maintenance::DowngradeCommand),
    /// Take a lock, and hold it while this program or a command runs
    Lock(lock::LockOptions),
    /// Take part in an election, or watch one
    Elect(elect::ElectOptions),
    /// Copy the keys of this cluster to another one, and every change as it happens
    MakeMirror(Box<mirror::MirrorOptions>),
    /// Whether the cluster bears a load
    Check(check::CheckCommand),
    /// A view of all members that refreshes itself; q ends it
    Top(top::TopOptions),
    /// Enable and disable authentication
    Auth(auth::AuthCommand),
    /// Users, their passwords and roles
    User(auth::UserCommand),
    /// Roles and their permissions
    Role(auth::RoleCommand),
    /// Print the status of each endpoint (short for `endpoint status`)
    Status {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Endpoint related commands
    Endpoint(endpoint::EndpointCommand),
    /// Find what differs between members
    Compare(compare::CompareCommand),
    /// How many keys may begin with a prefix
    Quota(quota::QuotaCommand),
    /// What costs a member the most
    Heavy(heavy::HeavyOptions),
    /// What is nearly full
    Warnings(warnings::WarningsOptions),
    /// Snapshot files of etcd's: fetched from a server, checked, restored into a data directory
    Snapshot(snapshot::SnapshotCommand),
    /// Show what a data directory holds; reads files, speaks to no server
    Inspect(inspect::InspectCommand),
    /// Read and check everything in a data directory; changes nothing, speaks to no server
    Verify(verify::VerifyCommand),
    /// Make a new data directory from what still verifies in a damaged one; changes nothing there, speaks to no server
    Salvage(salvage::SalvageCommand),
    /// Back up a data directory that is not in use, or have a running member do it; verify and restore backups
    Backup(backup::BackupCommand),
    /// Which member to go on with after a quorum is lost for good; reads files, speaks to no server
    Recover(recover::RecoverCommand),
    /// Put load on a server and measure it
    Bench(bench::BenchCommand),
    /// Print the flags that every command takes
    Options {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Print the versions of this program and of the API that it speaks
    Version {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Print a script that completes commands and flags in a shell
    Completion(about::CompletionOptions),
    /// Write man pages, the server's among them
    #[command(hide = true)]
    Man(about::ManOptions),
}

/// Runs `sternctl` with these arguments, the first being the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command_line = match flags::parse::<CommandLine>(arguments.iter().cloned()) {
        Ok(command_line) => command_line,
        Err(error) => return report_usage(&error, &arguments),
    };
    match run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("Error: {}", failure.message);
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

fn run(command_line: CommandLine) -> Result<(), Failure> {
    let CommandLine { mut options, command } = command_line;
    options.explain();
    match command {
        Command::Inspect(command) => return inspect::run(command, &options),
        Command::Verify(command) => return verify::run(&command, &options),
        Command::Salvage(command) => return salvage::run(&command, &options),
        Command::Backup(command) if !command.is_remote() => return backup::run(command, &options),
        Command::Recover(command) => return recover::run(&command, &options),
        Command::Options { .. } => return about::print_options(flags::command::<CommandLine>()),
        Command::Version { .. } => return about::print_version(),
        Command::Man(man) => return about::write_man_pages(flags::command::<CommandLine>(), &man),
        Command::Completion(completion) => {
            return about::print_completion(flags::command::<CommandLine>(), completion);
        }
        _ => {}
    }
    if let Command::Snapshot(command) = command {
        return match snapshot::run(command, &options)? {
            Some(path) => {
                let printer = options.printer()?;
                runtime()?.block_on(async {
                    options.discover().await?;
                    snapshot::save(&Client::new(options), printer, &path).await
                })
            }
            None => Ok(()),
        };
    }
    let runtime = runtime()?;
    runtime.block_on(options.discover())?;
    // The load generator brings its own threads.
    if let Command::Bench(command) = command {
        return bench::run(command, &options);
    }
    let printer = options.printer()?;
    let client = Client::new(options.clone());
    runtime.block_on(async {
        match command {
            Command::Put(put) => kv::put(&client, printer, put).await,
            Command::Get(get) => kv::get(&client, printer, get).await,
            Command::Del(del) => kv::del(&client, printer, del).await,
            Command::Txn(txn) => kv::txn(&client, printer, txn).await,
            Command::Watch(watch) => watch::run(&client, printer, watch).await,
            Command::Lease(lease) => lease::run(&client, printer, lease).await,
            Command::Auth(command) => auth::auth(&client, printer, command).await,
            Command::User(command) => auth::user(&client, printer, command).await,
            Command::Role(command) => auth::role(&client, printer, command).await,
            Command::Status { .. } => {
                let endpoints = client.endpoints();
                endpoint::status(&client, printer, endpoints).await
            }
            Command::Compaction(compaction) => maintenance::compaction(&client, printer, compaction).await,
            Command::Alarm(alarm) => maintenance::alarm(&client, printer, alarm).await,
            Command::Defrag(defrag) => maintenance::defrag(&client, printer, defrag).await,
            Command::Downgrade(downgrade) => maintenance::downgrade(&client, printer, downgrade).await,
            Command::Check(check) => check::run(&client, check).await,
            Command::Top(top) => top::run(&client, printer, top).await,
            Command::MakeMirror(mirror) => mirror::run(&client, &options, *mirror).await,
            Command::Lock(lock) => lock::run(&client, printer, lock).await,
            Command::Elect(elect) => elect::run(&client, printer, elect).await,
            Command::Member(command) => member::run(&client, printer, command).await,
            Command::MoveLeader(options) => member::move_leader(&client, printer, options).await,
            Command::Endpoint(command) => endpoint::run(&client, printer, command).await,
            Command::Compare(command) => compare::run(&client, printer, command).await,
            Command::Quota(command) => quota::run(&client, printer, command).await,
            Command::Heavy(options) => heavy::run(&client, printer, options).await,
            Command::Warnings(options) => warnings::run(&client, printer, options).await,
            Command::Backup(command) => backup::run_remote(&client, printer, command).await,
            Command::Bench(_)
            | Command::Inspect(_)
            | Command::Verify(_)
            | Command::Salvage(_)
            | Command::Recover(_)
            | Command::Options { .. }
            | Command::Version { .. }
            | Command::Completion(_)
            | Command::Man(_)
            | Command::Snapshot(_) => {
                unreachable!("handled above")
            }
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Error, format!("start the runtime: {error}")))
}

/// Help and version go to standard output with success, as does the help of a command that needs a subcommand; anything
/// else is etcdctl's usage error: code 1.
fn report_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind;
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    eprintln!("Error: {}", flags::usage_error_text(error, arguments, "sternctl"));
    ExitCode::from(Exit::Error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        flags::command::<CommandLine>().debug_assert();
    }
}
