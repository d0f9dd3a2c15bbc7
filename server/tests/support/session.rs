//! Runs the steps of one case file against one server and prints the answers.
//!
//! **Contract.** The same steps against the same behaviour print the same lines: ids that the server draws get names, and
//! what may arrive in any order is put in order, namely the messages of different watches on one stream. What every watch
//! promises is asserted here on each response, so that no file has to show it:
//! W-A events of a watch come in revision order; W-B all events of one revision come in one response, unless it is a
//! fragment; W-C a response's header is never older than its events.
//!
//! **Failure.** A step that cannot be read, or a server that does not answer in `ANSWER_WITHIN`, panics.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use tokio::sync::mpsc;
use tonic::Status;

use super::case_file::Step;
use super::gateway_client::{GatewayClient, unspaced};
use super::process::{Program, Server};
use super::raw_client::{ANSWER_WITHIN, Incoming, RawClient, method_named};
use super::seen::Seen;
use super::text::{self, Line, Names};

/// How requests get to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// gRPC.
    Grpc,
    /// The JSON gateway.
    Gateway,
    /// The same, but gRPC for streams of requests.
    GatewayWithoutStreams,
}

/// Whether the server of a session asks who its clients are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// It does not, unless the steps say so.
    Off,
    /// It does before the first step, and each request that brings nothing of its own comes with root's token.
    Root,
}

/// A client that goes one of the ways.
#[derive(Clone)]
enum Client {
    Grpc(RawClient),
    Gateway(GatewayClient),
}

impl Client {
    fn new(endpoint: &str, way: Way, pool: &DescriptorPool) -> Client {
        match way {
            Way::Grpc => Client::Grpc(RawClient::new(endpoint)),
            _ => {
                Client::Gateway(GatewayClient::new(endpoint, pool.clone(), way == Way::GatewayWithoutStreams))
            }
        }
    }

    async fn call(
        &self,
        path: &str,
        request: Bytes,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<Vec<Bytes>, Status> {
        match self {
            Client::Grpc(client) => client.call(path, request, metadata).await,
            Client::Gateway(client) => client.call(path, request, metadata).await,
        }
    }

    async fn open(
        &self,
        path: &str,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<(mpsc::Sender<Bytes>, Incoming), Status> {
        match self {
            Client::Grpc(client) => client.open(path, metadata).await,
            Client::Gateway(client) => client.open(path, metadata).await,
        }
    }
}

/// One server and all that the steps so far left open on it.
pub struct Session {
    program: Program,
    way: Way,
    auth: Auth,
    /// Root's, where requests come with it.
    token: Option<String>,
    pool: DescriptorPool,
    names: Names,
    /// Methods asked and fields that were not zero, in requests and in what was compared of answers.
    pub seen: Seen,
    flags: Vec<String>,
    running: Option<Running>,
}

struct Running {
    server: Server,
    client: Client,
    streams: BTreeMap<String, Stream>,
}

struct Stream {
    method: MethodDescriptor,
    /// `None` after `close`.
    sender: Option<mpsc::Sender<Bytes>>,
    incoming: Incoming,
    /// Items of the last response that no `expect` has asked for yet.
    pending: Vec<Item>,
    /// Messages since the last step.
    answered: Vec<DynamicMessage>,
    /// The newest event of each watch, for W-A and W-B.
    newest: BTreeMap<i64, (i64, bool)>,
}

/// One thing a stream said: an event or a control message of a watch, or a whole message of another stream.
struct Item {
    watch_id: i64,
    lines: Vec<String>,
}

/// The words below a request that are about the step, not part of the message.
#[derive(Default)]
struct Options {
    metadata: Vec<(String, Vec<u8>)>,
    named: Vec<(String, String)>,
    any: BTreeSet<String>,
    expect: Option<usize>,
    merged: bool,
}

impl Session {
    /// A session that starts its server at the first request.
    pub fn new(program: Program, way: Way, auth: Auth, pool: DescriptorPool) -> Session {
        let (names, seen, flags) = (Names::default(), Seen::default(), Vec::new());
        Session { program, way, auth, token: None, pool, names, seen, flags, running: None }
    }

    /// The answer to one step, as lines.
    pub async fn run(&mut self, step: &Step) -> Result<Vec<String>, String> {
        let lines = text::parse_lines(&step.request)?;
        let (head, below) = lines.split_first().ok_or("no request")?;
        if lines.len() > 1 {
            return Err(format!("one request a step, but a second is: {}", lines[1].words.join(" ")));
        }
        debug_assert!(below.is_empty());
        let (word, rest) = head.words.split_first().ok_or("no request")?;
        if self.auth == Auth::Root && !["server", "restart"].contains(&word.as_str()) {
            // For the token.
            self.running().await;
        }
        let (mut options, below) = split_options(&head.below, &self.names)?;
        let shows_who = |(key, _): &(String, Vec<u8>)| {
            ["token", "authorization"].contains(&key.to_ascii_lowercase().as_str())
        };
        if let Some(token) = self.token.as_ref().filter(|_| !options.metadata.iter().any(shows_who)) {
            let key = if word == "http" { "authorization" } else { "token" };
            options.metadata.push((key.to_owned(), token.clone().into_bytes()));
        }
        self.names.any.clone_from(&options.any);
        match word.as_str() {
            "server" => {
                if self.running.is_some() {
                    return Err(
                        "`server` comes first: it gives the flags of a server that then starts".to_owned()
                    );
                }
                self.flags = rest.to_vec();
                self.running().await;
                Ok(vec!["ready".to_owned()])
            }
            "restart" => self.restart(rest).await,
            "http" => self.http(rest, &options).await,
            "raw" => self.raw(rest, &options).await,
            _ => {
                let method = method_named(&self.pool, word).ok_or_else(|| format!("no method {word}"))?;
                // What a request says may name ids of the server.
                self.running().await;
                if method.is_client_streaming() {
                    self.stream(method, rest, &below, &options).await
                } else {
                    let request = text::read_message(&method.input(), rest, &below, &self.names)?;
                    self.seen.method(&method);
                    self.seen.message(&request, &BTreeSet::new());
                    self.call(&path_of(&method), &method.output(), request.encode_to_vec(), &options).await
                }
            }
        }
    }

    /// The last lines of the server's log, for a message about a failure.
    pub fn log_tail(&self) -> String {
        self.running.as_ref().map_or_else(String::new, |running| running.server.log_tail())
    }

    async fn running(&mut self) -> &mut Running {
        if self.running.is_none() {
            let (program, flags) = (self.program, self.flags.clone());
            let server = tokio::task::spawn_blocking(move || Server::start(program, &flags)).await;
            let server = server.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            self.names.endpoint = server.endpoint();
            let client = Client::new(&server.endpoint(), self.way, &self.pool);
            self.running = Some(Running { server, client, streams: BTreeMap::new() });
            self.wait_for_versions().await;
            self.learn_ids().await;
            if self.auth == Auth::Root {
                self.switch_auth_on().await;
            }
        }
        self.running.as_mut().expect("started above")
    }

    /// etcd decides on its storage version shortly after it says that it is ready; what shows it would differ from run to run.
    async fn wait_for_versions(&mut self) {
        let address = self.running.as_ref().expect("called once it runs").server.address();
        let decided = async {
            loop {
                let address = address.clone();
                let answer =
                    tokio::task::spawn_blocking(move || http_request(&address, "GET", "/version", "", &[]))
                        .await;
                let answer = answer.expect("no panic").unwrap_or_default();
                if String::from_utf8_lossy(&answer).contains("\"storage\":\"3.7.0\"") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(ANSWER_WITHIN, decided).await.is_err() {
            panic!("no storage version at /version");
        }
    }

    /// Ids of cluster and member, and the term, are the server's own: what counts is that all answers agree on them.
    async fn learn_ids(&mut self) {
        let running = self.running.as_ref().expect("called once it runs");
        // Of all answers with a header the one that is given to anybody, also while authentication is on.
        let status = method_named(&self.pool, "AuthStatus").expect("a method of Auth");
        let request = DynamicMessage::new(status.input());
        let answer = running.client.call(&path_of(&status), request.encode_to_vec().into(), &[]).await;
        let answer = answer.unwrap_or_else(|status| panic!("first request: {status}"));
        let message =
            DynamicMessage::decode(status.output(), answer[0].clone()).expect("an AuthStatusResponse");
        let header = message.get_field_by_name("header").expect("it has a header").into_owned();
        let header = header.as_message().expect("a message").clone();
        let number =
            |name: &str| header.get_field_by_name(name).and_then(|value| value.as_u64()).unwrap_or(0);
        self.names.header = (number("cluster_id"), number("member_id"), number("raft_term"));
        assert!(
            self.names.header.0 != 0 && self.names.header.1 != 0 && self.names.header.2 != 0,
            "ids are never zero"
        );
        self.names.ids.insert("cluster".to_owned(), self.names.header.0);
        self.names.ids.insert("member".to_owned(), self.names.header.1);
    }

    async fn restart(&mut self, words: &[String]) -> Result<Vec<String>, String> {
        let running = self.running.take().ok_or("nothing runs yet")?;
        let killed = match words {
            [] => false,
            [word] if word == "kill" => true,
            _ => return Err("restart, or restart kill".to_owned()),
        };
        let mut server = running.server;
        drop((running.streams, running.client));
        let server = tokio::task::spawn_blocking(move || {
            if killed {
                server.kill()
            } else {
                server.stop()
            }
            server.start_again();
            server
        });
        let server = server.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let client = Client::new(&server.endpoint(), self.way, &self.pool);
        self.running = Some(Running { server, client, streams: BTreeMap::new() });
        self.wait_for_versions().await;
        self.learn_ids().await;
        if self.auth == Auth::Root {
            self.log_in().await;
        }
        Ok(vec!["ready".to_owned()])
    }

    /// Takes no revision of the store.
    async fn switch_auth_on(&mut self) {
        for (method, fields) in [
            ("UserAdd", "name=\"root\" password=\"root\""),
            ("RoleAdd", "name=\"root\""),
            ("UserGrantRole", "user=\"root\" role=\"root\""),
            ("AuthEnable", ""),
        ] {
            self.ask_once(method, fields).await;
        }
        self.log_in().await;
    }

    /// A start forgets tokens.
    async fn log_in(&mut self) {
        let answer = self.ask_once("Authenticate", "name=\"root\" password=\"root\"").await;
        let token = answer.get_field_by_name("token").expect("a field").into_owned();
        self.token = Some(token.as_str().expect("a text").to_owned());
    }

    /// A request of the session's own, by gRPC.
    async fn ask_once(&mut self, name: &str, fields: &str) -> DynamicMessage {
        let method = method_named(&self.pool, name).expect("a method of Auth");
        let line = text::parse_lines(&[format!("{name} {fields}")]).expect("well formed").remove(0);
        let request = text::read_message(&method.input(), &line.words[1..], &[], &self.names);
        let request = request.expect("its fields").encode_to_vec();
        let client = RawClient::new(&self.names.endpoint);
        let answer = client.call(&path_of(&method), request.into(), &[]).await;
        let answer = answer.unwrap_or_else(|status| panic!("{name}: {status}"));
        DynamicMessage::decode(method.output(), answer[0].clone()).expect("the server sends valid messages")
    }

    async fn call(
        &mut self,
        path: &str,
        output: &MessageDescriptor,
        request: Vec<u8>,
        options: &Options,
    ) -> Result<Vec<String>, String> {
        let client = self.running().await.client.clone();
        let answer = client.call(path, request.into(), &options.metadata).await;
        let messages = match answer {
            Ok(messages) => messages,
            Err(status) => return Ok(vec![print_status(&status, &options.any)]),
        };
        let decode =
            |bytes: Bytes| DynamicMessage::decode(output.clone(), bytes).map_err(|error| error.to_string());
        if options.merged {
            // Protobuf merges by concatenation.
            let message = decode(messages.concat().into())?;
            self.seen.message(&message, &options.any);
            return Ok(text::print_answer(&message, &self.names));
        }
        let single = messages.len() == 1;
        let mut lines = Vec::new();
        for (index, bytes) in messages.into_iter().enumerate() {
            let message = decode(bytes)?;
            self.seen.message(&message, &options.any);
            for (field, name) in &options.named {
                let value =
                    message.get_field_by_name(field).ok_or_else(|| format!("no field {field}"))?.into_owned();
                if let Some(text) = value.as_str() {
                    self.names.texts.insert(name.clone(), text.to_owned());
                    continue;
                }
                let id = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
                self.names.ids.insert(name.clone(), id.ok_or_else(|| format!("{field} is no id"))?);
            }
            if !single {
                lines.push(format!("message {}", index + 1));
            }
            let indent = if single { "" } else { "  " };
            lines.extend(
                text::print_answer(&message, &self.names).iter().map(|line| format!("{indent}{line}")),
            );
        }
        Ok(lines)
    }

    async fn raw(&mut self, words: &[String], options: &Options) -> Result<Vec<String>, String> {
        let [path, payload] = words else { return Err("raw package.Service/Method \"payload\"".to_owned()) };
        let payload = text::read_bytes(payload, &self.names)?;
        let output = path
            .rsplit_once('.')
            .and_then(|(_, name)| method_named(&self.pool, name))
            .or_else(|| method_named(&self.pool, "Put"))
            .expect("a method of KV");
        self.call(&format!("/{path}"), &output.output(), payload, options).await
    }

    async fn stream(
        &mut self,
        method: MethodDescriptor,
        words: &[String],
        below: &[Line],
        options: &Options,
    ) -> Result<Vec<String>, String> {
        let [name, rest @ ..] = words else { return Err("a stream has a name".to_owned()) };
        let path = path_of(&method);
        let request = match rest {
            [word] if word == "close" => None,
            [word, _] if word == "expect" => None,
            _ => Some(text::read_message(&method.input(), rest, below, &self.names)?),
        };
        self.seen.method(&method);
        if let Some(request) = &request {
            self.seen.message(request, &BTreeSet::new());
        }
        let names = self.names.clone();
        let running = self.running().await;
        if !running.streams.contains_key(name) {
            let (sender, incoming) =
                running.client.open(&path, &options.metadata).await.map_err(|status| status.to_string())?;
            let stream = Stream {
                method,
                sender: Some(sender),
                incoming,
                pending: Vec::new(),
                answered: Vec::new(),
                newest: BTreeMap::new(),
            };
            running.streams.insert(name.clone(), stream);
        }
        let stream = running.streams.get_mut(name).expect("inserted above");
        let lines = match request {
            Some(request) => {
                // A stream that the server has ended shows in the answer that does not come.
                let sender = stream.sender.as_ref().ok_or("the stream is closed")?;
                let _ = sender.send(request.encode_to_vec().into()).await;
                stream.expect(options.expect.unwrap_or(1), &names).await
            }
            None if rest[0] == "close" => {
                stream.sender = None;
                vec!["closed".to_owned()]
            }
            None => stream.expect(rest[1].parse().map_err(|_| "expect takes a count")?, &names).await,
        };
        let answered = std::mem::take(&mut stream.answered);
        for message in &answered {
            self.seen.message(message, &options.any);
        }
        Ok(lines)
    }

    async fn http(&mut self, words: &[String], options: &Options) -> Result<Vec<String>, String> {
        self.running().await;
        let (method, path, body) = match words {
            [method, path] => (method.clone(), path.clone(), Vec::new()),
            [method, path, body] => (method.clone(), path.clone(), text::read_bytes(body, &self.names)?),
            _ => return Err("http METHOD /path \"body\"".to_owned()),
        };
        let mut headers = String::new();
        for (name, value) in &options.metadata {
            headers.push_str(&format!("{name}: {}\r\n", String::from_utf8_lossy(value)));
        }
        let address = self.running().await.server.address();
        let asking =
            tokio::task::spawn_blocking(move || http_request(&address, &method, &path, &headers, &body));
        let answer = asking.await.expect("no panic").map_err(|error| error.to_string())?;
        Ok(print_http(&answer, &self.names))
    }
}

impl Stream {
    /// The next `count` items, those of each watch in their order, the watches by id.
    async fn expect(&mut self, count: usize, names: &Names) -> Vec<String> {
        while self.pending.len() < count {
            match tokio::time::timeout(ANSWER_WITHIN, self.incoming.message()).await {
                Err(_) => {
                    return self.all_and(format!("and no more, where {count} were expected"));
                }
                Ok(Ok(Some(bytes))) => self.take(bytes, names),
                Ok(end) => {
                    return self.all_and(print_end(end.map(|_| ())));
                }
            }
        }
        print_items(self.pending.drain(..count).collect())
    }

    /// What is still pending, and then this.
    fn all_and(&mut self, last: String) -> Vec<String> {
        let mut lines =
            if self.pending.is_empty() { Vec::new() } else { print_items(self.pending.drain(..).collect()) };
        lines.push(last);
        lines
    }

    fn take(&mut self, bytes: Bytes, names: &Names) {
        let message =
            DynamicMessage::decode(self.method.output(), bytes).expect("the server sends valid messages");
        if self.method.output().name() == "WatchResponse" {
            self.take_watch_response(&message, names);
        } else {
            self.pending.push(Item { watch_id: 0, lines: text::print_answer(&message, names) });
        }
        self.answered.push(message);
    }

    fn take_watch_response(&mut self, message: &DynamicMessage, names: &Names) {
        let number =
            |name: &str| message.get_field_by_name(name).and_then(|value| value.as_i64()).unwrap_or(0);
        let flag =
            |name: &str| message.get_field_by_name(name).and_then(|value| value.as_bool()).unwrap_or(false);
        let header = message.get_field_by_name("header").expect("a field").as_message().cloned();
        let header = header.expect("every watch response has a header");
        let revision = header.get_field_by_name("revision").and_then(|value| value.as_i64()).unwrap_or(0);
        let ids = ["cluster_id", "member_id", "raft_term"]
            .map(|name| header.get_field_by_name(name).and_then(|value| value.as_u64()).unwrap_or(0));
        assert_eq!((ids[0], ids[1], ids[2]), names.header, "the header of a watch response");

        let watch_id = number("watch_id");
        let events = message.get_field_by_name("events").expect("a field").into_owned();
        let events = events.as_list().expect("repeated").to_vec();
        let mut say = |line: String, rest: Vec<String>| {
            let lines = [vec![format!("watch {watch_id}: {line}")], rest].concat();
            self.pending.push(Item { watch_id, lines });
        };
        if flag("created") || flag("canceled") {
            let mut line = if flag("created") { "created" } else { "" }.to_owned();
            if flag("canceled") {
                line = format!("{line} canceled").trim_start().to_owned();
            }
            if revision != 0 {
                line += &format!(" revision={revision}");
            }
            if number("compact_revision") != 0 {
                line += &format!(" compact_revision={}", number("compact_revision"));
            }
            let reason = message.get_field_by_name("cancel_reason").expect("a field");
            let reason = reason.as_str().unwrap_or_default();
            if !reason.is_empty() {
                line += &format!(" reason={}", text::print_bytes(reason.as_bytes()));
            }
            say(line, vec![]);
        } else if events.is_empty() {
            say(format!("progress revision={revision}"), vec![]);
        }
        let before = self.newest.get(&watch_id).copied();
        for event in &events {
            let event = event.as_message().expect("events are messages");
            let kv =
                event.get_field_by_name("kv").expect("a field").as_message().cloned().expect("a message");
            let mod_revision =
                kv.get_field_by_name("mod_revision").and_then(|value| value.as_i64()).unwrap_or(0);
            assert!(mod_revision <= revision, "W-C: header {revision}, event {mod_revision}");
            if let Some((newest, whole)) = before {
                assert!(mod_revision >= newest, "W-A: {mod_revision} after {newest}");
                assert!(mod_revision > newest || !whole, "W-B: revision {mod_revision} in two responses");
            }
            let last = self.newest.entry(watch_id).or_insert((0, true));
            assert!(mod_revision >= last.0, "W-A: {mod_revision} after {}", last.0);
            *last = (mod_revision, !flag("fragment"));

            let kind = event.get_field_by_name("type").and_then(|value| value.as_enum_number()).unwrap_or(0);
            let mut lines = Vec::new();
            text::print_under(if kind == 0 { "PUT" } else { "DELETE" }, &kv, names, 0, &mut lines);
            let mut rest = Vec::new();
            if event.has_field_by_name("prev_kv") {
                let prev = event.get_field_by_name("prev_kv").expect("a field").as_message().cloned();
                text::print_under("prev_kv", &prev.expect("a message"), names, 2, &mut rest);
            }
            say(lines.remove(0), rest);
        }
        if flag("fragment") {
            say("fragment".to_owned(), vec![]);
        }
    }
}

fn print_items(mut items: Vec<Item>) -> Vec<String> {
    items.sort_by_key(|item| item.watch_id);
    let lines: Vec<String> = items.into_iter().flat_map(|item| item.lines).collect();
    if lines.is_empty() { vec!["nothing".to_owned()] } else { lines }
}

fn print_end(end: Result<(), Status>) -> String {
    match end {
        Ok(()) => "end".to_owned(),
        Err(status) => print_status(&status, &BTreeSet::new()),
    }
}

fn print_status(status: &Status, any: &BTreeSet<String>) -> String {
    let text = if any.contains("text") { "_" } else { status.message() };
    format!("error {:?}: {text}", status.code())
}

fn path_of(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

fn split_options(below: &[Line], names: &Names) -> Result<(Options, Vec<Line>), String> {
    let (mut options, mut rest) = (Options::default(), Vec::new());
    for line in below {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["any", fields @ ..] => options.any.extend(fields.iter().map(|field| (*field).to_owned())),
            ["let", binding] => {
                let (name, field) = binding.split_once('=').ok_or("let name=FIELD")?;
                options.named.push((field.to_owned(), name.to_owned()));
            }
            ["metadata", pair] => {
                let (key, value) = pair.split_once('=').ok_or("metadata key=\"value\"")?;
                options.metadata.push((key.to_owned(), text::read_bytes(value, names)?));
            }
            ["as", name] => {
                let token = names.texts.get(*name).ok_or_else(|| format!("nothing is named {name}"))?;
                options.metadata.push(("token".to_owned(), token.clone().into_bytes()));
            }
            ["expect", count] => options.expect = Some(count.parse().map_err(|_| "expect takes a count")?),
            ["merged"] => options.merged = true,
            _ => rest.push(line.clone()),
        }
    }
    Ok((options, rest))
}

/// One HTTP/1.1 request on a connection of its own: the whole answer.
fn http_request(
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut connection = std::net::TcpStream::connect(address)?;
    connection.set_read_timeout(Some(ANSWER_WITHIN))?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    connection.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    match connection.read_to_end(&mut answer) {
        // etcd does not read the body of what it answers 404, waits half a second and closes, which resets the connection behind the answer.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && !answer.is_empty() => {}
        read => drop(read?),
    }
    Ok(answer)
}

/// Status, content type and the lines of the body that are not empty; of the headers those that say where to go or who may read. JSON is put as
/// it comes out of any build of Go, and the server's own numbers have names.
fn print_http(answer: &[u8], names: &Names) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut head = head.lines();
    let status = head.next().and_then(|line| line.split_once(' ')).map_or("", |(_, status)| status);
    let headers: BTreeMap<String, &str> = head
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let content_type = headers.get("content-type").copied().unwrap_or_default();
    let mut lines = vec![format!("{status} {content_type}").trim_end().to_owned()];
    for name in ["location", "www-authenticate", "grpc-metadata-content-type"] {
        if let Some(value) = headers.get(name) {
            lines.push(format!("{name}: {value}"));
        }
    }
    let body = match headers.get("transfer-encoding") {
        Some(&"chunked") => unchunked(body),
        _ => body.to_owned(),
    };
    let mut body: Vec<String> = body.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if content_type == "application/json" {
        let (cluster, member, term) = names.header;
        for line in &mut body {
            *line = unspaced(line.as_bytes())
                .replace(&format!("\"cluster_id\":\"{cluster}\""), "\"cluster_id\":\"$cluster\"")
                .replace(&format!("\"member_id\":\"{member}\""), "\"member_id\":\"$member\"")
                .replace(&format!("\"raft_term\":\"{term}\""), "\"raft_term\":\"$term\"")
                // Which of two parts of grpc-go notices the end of the time first.
                .replace(
                    "stream terminated by RST_STREAM with error code: CANCEL",
                    "context deadline exceeded",
                );
        }
    }
    if body.iter().any(|line| line.starts_with('[')) {
        // The list of checks comes in no order.
        body.sort();
    }
    lines.extend(body);
    lines
}

/// A body out of its chunks, as far as it has come.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some((chunk, rest)) = rest.split_at_checked(size).filter(|_| size > 0) else { break };
        whole.push_str(chunk);
        body = rest.strip_prefix("\r\n").unwrap_or(rest);
    }
    whole
}
