//! `lock`: one at a time under a name, for as long as this program runs or a command that it starts.
//!
//! **Contract.** With a command: it runs when the lock is held, with `ETCD_LOCK_KEY` and `ETCD_LOCK_REV` in its environment; its exit code is
//! ours. Without one: the key is printed, and the lock is held until SIGINT or SIGTERM, or until its lease is lost.
//!
//! The lock is free when the program has ended, also where the command failed. A killed program's lock is free after `--ttl`.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::flags;
use crate::ctl::printer::Printer;
use crate::session::{Place, Session};
use bytes::Bytes;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the Go client takes for a TTL that is none.
const TTL_DEFAULT_S: i64 = 60;

#[derive(Args)]
pub(crate) struct LockOptions {
    /// Seconds that the lock outlives this program, if it cannot give it back
    #[arg(long, default_value_t = 10, value_parser = flags::integer)]
    ttl: i64,
    /// The lock's name, and a command to run while it is held
    #[arg(value_name = "NAME [COMMAND [ARGUMENT]...]")]
    arguments: Vec<OsString>,
}

/// SIGINT and SIGTERM, which end what waits and not the program.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What a Go program says whose wait was called off.
pub(crate) fn called_off() -> Failure {
    Failure::new(Exit::Error, "context canceled")
}

pub(crate) async fn run(client: &Client, mut printer: Printer, options: LockOptions) -> Result<(), Failure> {
    let mut arguments = options.arguments.into_iter();
    let Some(name) = arguments.next() else {
        let message = "lock takes a lock name argument and an optional command to execute";
        return Err(Failure::bad_arguments(message));
    };
    let name = name.to_string_lossy().into_owned();
    let command: Vec<OsString> = arguments.collect();
    let ttl_s = if options.ttl > 0 { options.ttl } else { TTL_DEFAULT_S };
    let mut session = Session::start(client, ttl_s).await?;
    let held = hold(client, &mut printer, &mut session, &name, &command).await;
    session.end(client).await;
    held
}

async fn hold(
    client: &Client,
    printer: &mut Printer,
    session: &mut Session,
    name: &str,
    command: &[OsString],
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let place = session.stand(client, name, &Bytes::new()).await?;
    let turn = async {
        place.wait(client).await?;
        // The lease may have ended while others held the lock.
        place.look(client).await
    };
    let found = tokio::select! {
        found = turn => found,
        () = signals.next() => Err(called_off()),
    };
    let found = match found {
        Ok(found) => found,
        Err(failure) => {
            // The session's end removes the key where this does not.
            let _ = place.leave(client).await;
            return Err(failure);
        }
    };
    if found.kvs.is_empty() {
        return Err(Failure::new(Exit::Error, "mutex: session is expired"));
    }
    if !command.is_empty() {
        let done = run_command(command, &place, found.header.map_or(0, |header| header.revision)).await;
        let left = place.leave(client).await;
        return done.and(left);
    }
    printer.get(&found)?;
    printer.flush()?;
    tokio::select! {
        () = signals.next() => place.leave(client).await,
        () = session.ended() => Err(Failure::new(Exit::Error, "session expired")),
    }
}

/// The command's failure is ours, with its exit code.
async fn run_command(command: &[OsString], place: &Place, revision: i64) -> Result<(), Failure> {
    let mut child = std::process::Command::new(&command[0]);
    child.args(&command[1..]);
    for (name, value) in [
        ("ETCD_LOCK_KEY", OsStr::from_bytes(&place.key)),
        ("ETCD_LOCK_REV", OsStr::new(&revision.to_string())),
    ] {
        // What somebody has set already stays.
        if std::env::var_os(name).is_none() {
            child.env(name, value);
        }
    }
    child.stdin(std::process::Stdio::null());
    let shown = command[0].to_string_lossy().into_owned();
    // Renewals go on meanwhile.
    let ended = tokio::task::spawn_blocking(move || child.status()).await;
    let ended = ended.map_err(|error| Failure::new(Exit::Error, error.to_string()))?;
    let status = ended.map_err(|error| Failure::new(Exit::Error, start_error(&shown, &error)))?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    Err(Failure::new(Exit::Other(code), exit_text(status)))
}

/// How a command ended, as Go says it.
pub(crate) fn exit_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => format!("signal: {}", signal_name(signal.unwrap_or(0))),
    }
}

/// Why a command could not be started, as Go says it.
pub(crate) fn start_error(command: &str, error: &std::io::Error) -> String {
    let what = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory",
        std::io::ErrorKind::PermissionDenied => "permission denied",
        _ => return format!("fork/exec {command}: {error}"),
    };
    match (command.contains('/'), error.kind()) {
        (true, _) => format!("fork/exec {command}: {what}"),
        (false, std::io::ErrorKind::NotFound) => {
            format!("exec: {command:?}: executable file not found in $PATH")
        }
        (false, _) => format!("exec: {command:?}: {what}"),
    }
}

fn signal_name(number: i32) -> String {
    match number {
        1 => "hangup".to_owned(),
        2 => "interrupt".to_owned(),
        3 => "quit".to_owned(),
        6 => "aborted".to_owned(),
        9 => "killed".to_owned(),
        11 => "segmentation fault".to_owned(),
        15 => "terminated".to_owned(),
        other => format!("signal {other}"),
    }
}
