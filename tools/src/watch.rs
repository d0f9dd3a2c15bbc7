//! `watch`: events as they happen, over lost connections, with a command run for each if wanted.
//!
//! **Contract.** Every event from the start revision on is printed once, in revision order for each watch: after a lost
//! connection the watches are made again from the revision behind the last one seen. A watch that the server cancels
//! is reported on standard error; when none is left, the command ends with code 5.
//!
//! Interactive mode (`-i`) reads `watch …` and `progress` lines from standard input and keeps all watches on one
//! stream; the end of the input ends the command.
//!
//! Source: etcdctl 3.7.3 for arguments, environment and output.
use crate::ctl::connect::{Client, stream_error_text};
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::flags;
use crate::ctl::printer::{Printer, event_type_text};
use crate::ctl::quote::{quote, split_words};
use crate::kv::prefix_range;
use crate::lock::{exit_text, start_error};
use bytes::Bytes;
use clap::{Args, Parser};
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

/// Requests on their way to a stream; the sender waits beyond.
const REQUESTS_MAX: usize = 16;

/// Responses that were read and not yet printed; the reading waits beyond.
const RESPONSES_MAX: usize = 16;

/// Pause between two tries to connect again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Args, Clone)]
pub(crate) struct WatchOptions {
    /// Read watch and progress lines from standard input
    #[arg(long, short)]
    interactive: bool,
    /// Watch all keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// Revision to start at
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    rev: i64,
    /// Get the key-value pair as it was before each event
    #[arg(long)]
    prev_kv: bool,
    /// Get progress notifications from the server now and then
    #[arg(long)]
    progress_notify: bool,
    /// Key or prefix, and the end of the range
    #[arg(value_name = "KEY [RANGE_END]")]
    arguments: Vec<OsString>,
    /// A command to run for each event
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A `watch …` line of the interactive mode.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct WatchLine {
    #[command(flatten)]
    options: WatchOptions,
}

/// One watch: what was asked for, where it stands, what to run.
struct Watch {
    /// The request that makes it; its start revision moves with what was seen.
    request: WatchCreateRequest,
    /// The command to run for each event; empty for none.
    command: Vec<OsString>,
    /// False once the server has cancelled it.
    is_live: bool,
}

pub(crate) async fn run(client: &Client, printer: Printer, options: WatchOptions) -> Result<(), Failure> {
    let key = std::env::var_os("ETCDCTL_WATCH_KEY").filter(|key| !key.is_empty());
    let range_end = std::env::var_os("ETCDCTL_WATCH_RANGE_END").filter(|end| !end.is_empty());
    if let (None, Some(end)) = (&key, &range_end) {
        let end = quote(end.as_bytes());
        let message = format!("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={end}");
        return Err(Failure::bad_arguments(message));
    }
    let environment = key.map(|key| (key, range_end));
    let mut session = Session { printer, watches: Vec::new() };
    let lines = if options.interactive {
        read_lines()
    } else {
        session.watches.push(watch_of(options, environment.as_ref())?);
        // No line will come, and the end of the input means nothing.
        let (sender, lines) = mpsc::channel(1);
        std::mem::forget(sender);
        lines
    };
    session.run(client, lines, environment.as_ref()).await
}

/// The lines of standard input. Reading blocks, so it has a thread of its own, which ends with the process.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(REQUESTS_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Options and environment into a watch.
fn watch_of(
    options: WatchOptions,
    environment: Option<&(OsString, Option<OsString>)>,
) -> Result<Watch, Failure> {
    let arguments = match environment {
        Some(_) if !options.arguments.is_empty() => {
            let message = "bad number of arguments (found conflicting environment key)";
            return Err(Failure::bad_arguments(message));
        }
        Some((key, range_end)) => std::iter::once(key).chain(range_end).cloned().collect(),
        None => options.arguments,
    };
    let mut arguments = arguments.into_iter().map(|argument| Bytes::from(argument.into_vec()));
    let (Some(key), range_end, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err(Failure::bad_arguments("bad number of arguments"));
    };
    let (key, range_end) = match range_end {
        Some(_) if options.prefix => {
            return Err(Failure::bad_arguments("`range_end` and `--prefix` are mutually exclusive"));
        }
        Some(range_end) => (key, range_end),
        None if options.prefix => prefix_range(key),
        None => (key, Bytes::new()),
    };
    let request = WatchCreateRequest {
        key,
        range_end,
        start_revision: options.rev,
        progress_notify: options.progress_notify,
        prev_kv: options.prev_kv,
        ..WatchCreateRequest::default()
    };
    Ok(Watch { request, command: options.command, is_live: true })
}

/// Both directions of a stream.
type Stream = (mpsc::Sender<WatchRequest>, mpsc::Receiver<Result<WatchResponse, Status>>);

/// What ends the reading of one stream.
enum StreamEnd {
    /// The command is over.
    Over(Failure),
    /// The connection is gone; holds why.
    Lost(String),
}

struct Session {
    printer: Printer,
    watches: Vec<Watch>,
}

impl Session {
    async fn run(
        &mut self,
        client: &Client,
        mut lines: mpsc::Receiver<String>,
        environment: Option<&(OsString, Option<OsString>)>,
    ) -> Result<(), Failure> {
        let mut is_first = true;
        loop {
            let opened = open(client).await;
            let (requests, responses) = match opened {
                Ok(stream) => stream,
                // The first connection is the user's business, later ones are ours.
                Err(failure) if is_first => return Err(failure),
                Err(_) => {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                    continue;
                }
            };
            is_first = false;
            match self.follow(requests, responses, &mut lines, environment).await {
                StreamEnd::Over(failure) => return Err(failure),
                StreamEnd::Lost(why) => {
                    eprintln!("Warning: the connection was lost ({why}); connecting again")
                }
            }
        }
    }

    /// Makes all watches on a new stream and prints what comes until the stream ends.
    async fn follow(
        &mut self,
        requests: mpsc::Sender<WatchRequest>,
        mut responses: mpsc::Receiver<Result<WatchResponse, Status>>,
        lines: &mut mpsc::Receiver<String>,
        environment: Option<&(OsString, Option<OsString>)>,
    ) -> StreamEnd {
        // The server answers creations in their order.
        let mut unanswered = VecDeque::new();
        let mut positions: HashMap<i64, usize> = HashMap::new();
        for position in 0..self.watches.len() {
            if self.watches[position].is_live {
                unanswered.push_back(position);
                let request = RequestUnion::CreateRequest(self.watches[position].request.clone());
                if requests.send(WatchRequest { request_union: Some(request) }).await.is_err() {
                    return StreamEnd::Lost("the stream is closed".to_owned());
                }
            }
        }
        loop {
            tokio::select! {
                response = responses.recv() => {
                    let response = match response {
                        Some(Ok(response)) => response,
                        None => return StreamEnd::Lost("the server ended the stream".to_owned()),
                        Some(Err(status)) if is_connection_loss(&status) => {
                            return StreamEnd::Lost(stream_error_text(&status));
                        }
                        Some(Err(status)) => {
                            eprintln!("watch was canceled ({})", stream_error_text(&status));
                            return StreamEnd::Over(canceled_by_server());
                        }
                    };
                    if response.created && let Some(position) = unanswered.pop_front() {
                        positions.insert(response.watch_id, position);
                    }
                    let position = positions.get(&response.watch_id).copied();
                    if let Err(failure) = self.take(response, position) {
                        return StreamEnd::Over(failure);
                    }
                }
                line = lines.recv() => {
                    let Some(line) = line else {
                        let message = "error reading watch request line: EOF";
                        return StreamEnd::Over(Failure::invalid_input(message));
                    };
                    match self.take_line(&line, environment) {
                        Err(failure) => return StreamEnd::Over(failure),
                        Ok(None) => {}
                        Ok(Some(request)) => {
                            if let RequestUnion::CreateRequest(_) = request {
                                unanswered.push_back(self.watches.len() - 1);
                            }
                            if requests.send(WatchRequest { request_union: Some(request) }).await.is_err() {
                                return StreamEnd::Lost("the stream is closed".to_owned());
                            }
                        }
                    }
                }
            }
        }
    }

    /// Prints a response, runs commands for its events, and moves the watch's position.
    fn take(&mut self, response: WatchResponse, position: Option<usize>) -> Result<(), Failure> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.created && !response.canceled {
            if let Some(watch) = position.map(|position| &mut self.watches[position])
                && watch.request.start_revision <= 0
            {
                watch.request.start_revision = revision + 1;
            }
            return Ok(());
        }
        if response.canceled {
            eprintln!("watch was canceled ({})", cancel_text(&response));
        } else if response.events.is_empty() && response.compact_revision == 0 && revision != 0 {
            self.printer.line(format_args!("progress notify: {revision}"));
        }
        self.printer.watch(&response)?;
        self.printer.flush()?;
        let Some(position) = position else { return Ok(()) };
        let watch = &mut self.watches[position];
        for event in &response.events {
            if let Some(kv) = &event.kv {
                watch.request.start_revision = watch.request.start_revision.max(kv.mod_revision + 1);
            }
            if !watch.command.is_empty() {
                let (key, value) = event.kv.as_ref().map_or((&b""[..], &b""[..]), |kv| (&kv.key, &kv.value));
                run_command(&watch.command, revision, event_type_text(event), key, value)?;
            }
        }
        if response.canceled {
            watch.is_live = false;
            if self.watches.iter().all(|watch| !watch.is_live) {
                return Err(canceled_by_server());
            }
        }
        Ok(())
    }

    /// An interactive line into a request; a line that is none is reported and forgotten.
    fn take_line(
        &mut self,
        line: &str,
        environment: Option<&(OsString, Option<OsString>)>,
    ) -> Result<Option<RequestUnion>, Failure> {
        let words = split_words(line).map_err(Failure::invalid_input)?;
        match words.first().map(Vec::as_slice) {
            None => eprintln!("Invalid command: {line} (watch and progress supported)"),
            Some(b"watch") if words.len() < 2 && environment.is_none() => {
                eprintln!("Invalid command {line} (command type or key is not provided)");
            }
            Some(b"watch") => {
                let words = words.into_iter().skip(1).map(OsString::from_vec);
                let parsed = flags::parse::<WatchLine>(words)
                    .map_err(|error| Failure::bad_arguments(error.kind().to_string()))?;
                let watch = watch_of(parsed.options, environment)?;
                let request = watch.request.clone();
                self.watches.push(watch);
                return Ok(Some(RequestUnion::CreateRequest(request)));
            }
            Some(b"progress") => return Ok(Some(RequestUnion::ProgressRequest(WatchProgressRequest {}))),
            Some(_) => eprintln!("Invalid command {line} (only support watch)"),
        }
        Ok(None)
    }
}

/// Opens a stream. The call itself runs in a task of its own: etcd answers it only with the first response, which
/// does not come before the first request.
async fn open(client: &Client) -> Result<Stream, Failure> {
    let mut watch = client.watch().await?;
    let (requests, received) = mpsc::channel(REQUESTS_MAX);
    let (sender, responses) = mpsc::channel(RESPONSES_MAX);
    let mut request = Request::new(ReceiverStream::new(received));
    // Without a leader the server ends the stream instead of keeping silent.
    request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
    tokio::spawn(async move {
        let mut stream = match watch.watch(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return sender.send(Err(status)).await.unwrap_or_default(),
        };
        while let Some(response) = stream.message().await.transpose() {
            let is_last = response.is_err();
            if sender.send(response).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok((requests, responses))
}

fn is_connection_loss(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

fn canceled_by_server() -> Failure {
    Failure::new(Exit::Interrupted, "watch is canceled by the server")
}

/// Why a watch was cancelled, as etcd's Go client words it.
fn cancel_text(response: &WatchResponse) -> String {
    if response.compact_revision != 0 {
        return "etcdserver: mvcc: required revision has been compacted".to_owned();
    }
    match response.cancel_reason.as_str() {
        "" => "etcdserver: mvcc: required revision is a future revision".to_owned(),
        reason if reason.starts_with("etcdserver: ") || reason.starts_with("rpc error: ") => {
            reason.to_owned()
        }
        reason => format!("rpc error: code = FailedPrecondition desc = {reason}"),
    }
}

fn run_command(
    command: &[OsString],
    revision: i64,
    event_type: &str,
    key: &[u8],
    value: &[u8],
) -> Result<(), Failure> {
    let status = std::process::Command::new(&command[0])
        .args(&command[1..])
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(event_type.as_bytes()))
        .env("ETCD_WATCH_KEY", quote(key))
        .env("ETCD_WATCH_VALUE", quote(value))
        .status();
    let why = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => exit_text(status),
        Err(error) => start_error(&command[0].to_string_lossy(), &error),
    };
    let words: Vec<String> = command.iter().map(|word| quote(OsStr::as_bytes(word))).collect();
    eprintln!("command [{}] error ({why})", words.join(" "));
    Err(Failure::new(Exit::Error, ""))
}
