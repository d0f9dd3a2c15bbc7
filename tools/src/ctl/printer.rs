//! Responses as text: one method per response, in the form that `-w` names.
//!
//! `simple` and `json` exist for everything, `fields` for all but a few, `table` for members and endpoints, `protobuf` for what is one
//! message; what does not exist fails with etcdctl's exit code 4. Text is collected and written at once by [`Printer::flush`].
mod auth;
mod cluster;

pub(crate) use cluster::Health;

use super::failure::Failure;
use super::json::{Object, base64, list};
use super::quote::quote;
use super::table;
use prost::Message;
use std::fmt::Display;
use std::io::Write;
use sternpost_server::wire::etcdserverpb::response_op::Response;
use sternpost_server::wire::etcdserverpb::{
    DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeResponse, LeaseTimeToLiveResponse, PutResponse, RangeResponse, ResponseHeader, StatusResponse,
    TxnResponse, WatchResponse,
};
use sternpost_server::wire::mvccpb::{Event, KeyValue, event::EventType};

/// A form of output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Lines for people and shell scripts.
    Simple,
    /// etcd's messages as JSON, one per line.
    Json,
    /// `"Name" : value` lines.
    Fields,
    /// Boxes.
    Table,
    /// etcd's messages in their binary form, nothing between them.
    Protobuf,
}

/// Collects the output of a command.
pub(crate) struct Printer {
    /// The form.
    pub(crate) format: Format,
    /// Keys and values as `\x00`, ids in hexadecimal.
    hex: bool,
    /// Values only (`get --print-value-only`).
    pub(crate) value_only: bool,
    out: Vec<u8>,
}

impl Printer {
    pub(crate) fn new(format: Format, hex: bool) -> Self {
        Self { format, hex, value_only: false, out: Vec::new() }
    }

    /// Writes what was collected to standard output.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&self.out)?;
        stdout.flush()?;
        self.out.clear();
        Ok(())
    }

    /// What was collected.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub(crate) fn line(&mut self, line: impl Display) {
        self.out.extend_from_slice(line.to_string().as_bytes());
        self.out.push(b'\n');
    }

    pub(crate) fn put(&mut self, response: &PutResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line("OK");
                self.simple_kvs(response.prev_kv.as_slice());
            }
            Format::Json => self.line(put_json(response)),
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.fields_kvs("Prev", response.prev_kv.as_slice());
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn get(&mut self, response: &RangeResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => self.simple_kvs(&response.kvs),
            Format::Json => self.line(range_json(response)),
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.fields_kvs("", &response.kvs);
                self.field("More", response.more);
                self.field("Count", response.count);
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn del(&mut self, response: &DeleteRangeResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(response.deleted);
                self.simple_kvs(&response.prev_kvs);
            }
            Format::Json => self.line(delete_json(response)),
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.field("Deleted", response.deleted);
                self.fields_kvs("Prev", &response.prev_kvs);
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn txn(&mut self, response: &TxnResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => self.line(if response.succeeded { "SUCCESS" } else { "FAILURE" }),
            Format::Json => {
                self.line(txn_json(response));
                return Ok(());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.field("Succeeded", response.succeeded);
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => {
                self.message(response);
                return Ok(());
            }
        }
        for operation in &response.responses {
            if self.format == Format::Simple {
                self.line("");
            }
            match &operation.response {
                Some(Response::ResponseRange(range)) => self.get(range)?,
                Some(Response::ResponsePut(put)) => self.put(put)?,
                Some(Response::ResponseDeleteRange(delete)) => self.del(delete)?,
                // Transactions inside transactions cannot be typed in, so no answer holds one.
                Some(Response::ResponseTxn(_)) | None => self.line("unexpected response"),
            }
        }
        Ok(())
    }

    pub(crate) fn watch(&mut self, response: &WatchResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                for event in &response.events {
                    self.line(event_type_text(event));
                    self.simple_kvs(event.prev_kv.as_slice());
                    self.simple_kvs(event.kv.as_slice());
                }
            }
            Format::Json => self.line(watch_json(response)),
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                for event in &response.events {
                    self.field("Type", event_type_text(event));
                    self.fields_kvs("Prev", event.prev_kv.as_slice());
                    self.fields_kvs("", event.kv.as_slice());
                }
            }
            Format::Table => return Err(no_table()),
            // What etcdctl fills in.
            Format::Protobuf => self.message(&WatchResponse {
                header: response.header,
                created: response.created,
                canceled: response.canceled,
                compact_revision: response.compact_revision,
                events: response.events.clone(),
                ..WatchResponse::default()
            }),
        }
        Ok(())
    }

    pub(crate) fn grant(&mut self, response: &LeaseGrantResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(format_args!("lease {:016x} granted with TTL({}s)", response.id, response.ttl));
            }
            Format::Json => {
                let object = header_fields(Object::new(), response.header.as_ref());
                let object = object.number_always("ID", response.id).number_always("TTL", response.ttl);
                self.line(object.raw("Error", &super::json::text(&response.error)).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.fields_lease("ID", response.id);
                self.field("TTL", response.ttl);
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn revoke(&mut self, id: i64, response: &LeaseRevokeResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => self.line(format_args!("lease {id:016x} revoked")),
            Format::Json => {
                let object = Object::new().object("header", response.header.as_ref().map(header_json));
                self.line(object.end());
            }
            Format::Fields => self.fields_header(response.header.as_ref()),
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn keep_alive(&mut self, response: &LeaseKeepAliveResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(format_args!("lease {:016x} keepalived with TTL({})", response.id, response.ttl));
            }
            Format::Json => {
                let object = header_fields(Object::new(), response.header.as_ref());
                self.line(object.number_always("ID", response.id).number_always("TTL", response.ttl).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.fields_lease("ID", response.id);
                self.field("TTL", response.ttl);
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn time_to_live(
        &mut self,
        response: &LeaseTimeToLiveResponse,
        with_keys: bool,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Simple if response.granted_ttl == 0 && response.ttl == -1 => {
                self.line(format_args!("lease {:016x} already expired", response.id));
            }
            Format::Simple => {
                let LeaseTimeToLiveResponse { id, ttl, granted_ttl, .. } = response;
                let line = format!("lease {id:016x} granted with TTL({granted_ttl}s), remaining({ttl}s)");
                self.out.extend_from_slice(line.as_bytes());
                if with_keys {
                    self.out.extend_from_slice(b", attached keys([");
                    self.out.extend_from_slice(&response.keys.join(&b' '));
                    self.out.extend_from_slice(b"])");
                }
                self.line("");
            }
            Format::Json => {
                let keys: Vec<String> = response.keys.iter().map(|key| base64(key)).collect();
                let object = header_fields(Object::new(), response.header.as_ref())
                    .number_always("id", response.id)
                    .number_always("ttl", response.ttl)
                    .number_always("granted-ttl", response.granted_ttl);
                let keys = if keys.is_empty() { "null".to_owned() } else { list(keys) };
                self.line(object.raw("keys", &keys).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                self.fields_lease("ID", response.id);
                self.field("TTL", response.ttl);
                self.field("GrantedTTL", response.granted_ttl);
                for key in &response.keys {
                    self.field("Key", quote(key));
                }
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn leases(&mut self, response: &LeaseLeasesResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(format_args!("found {} leases", response.leases.len()));
                for lease in &response.leases {
                    self.line(format_args!("{:016x}", lease.id));
                }
            }
            Format::Json => {
                let leases =
                    response.leases.iter().map(|lease| Object::new().number_always("id", lease.id).end());
                let object = header_fields(Object::new(), response.header.as_ref());
                self.line(object.raw("leases", &list(leases.collect())).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                for lease in &response.leases {
                    self.fields_lease("ID", lease.id);
                }
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn statuses(&mut self, statuses: &[(String, StatusResponse)]) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                for (endpoint, status) in statuses {
                    self.line(status_row(endpoint, status).join(", "));
                }
            }
            Format::Json => {
                let objects = statuses.iter().map(|(endpoint, status)| {
                    Object::new().text("Endpoint", endpoint).raw("Status", &status_json(status)).end()
                });
                // Nothing is no list, for Go.
                self.line(if statuses.is_empty() { "null".to_owned() } else { list(objects.collect()) });
            }
            Format::Fields => {
                for (endpoint, status) in statuses {
                    self.fields_status(endpoint, status);
                }
            }
            Format::Table => {
                let rows: Vec<_> =
                    statuses.iter().map(|(endpoint, status)| status_row(endpoint, status)).collect();
                self.out.extend_from_slice(table::render(&STATUS_COLUMNS, &rows).as_bytes());
            }
            Format::Protobuf => return Err(no_protobuf()),
        }
        Ok(())
    }

    fn message(&mut self, message: &impl Message) {
        self.out.extend_from_slice(&message.encode_to_vec());
    }

    fn simple_kvs(&mut self, kvs: &[KeyValue]) {
        for kv in kvs {
            if !self.value_only {
                self.simple_bytes(&kv.key);
            }
            self.simple_bytes(&kv.value);
        }
    }

    fn simple_bytes(&mut self, bytes: &[u8]) {
        if self.hex {
            for byte in bytes {
                self.out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
            }
        } else {
            self.out.extend_from_slice(bytes);
        }
        self.out.push(b'\n');
    }

    fn field(&mut self, name: &str, value: impl Display) {
        self.line(format_args!("\"{name}\" : {value}"));
    }

    fn fields_header(&mut self, header: Option<&ResponseHeader>) {
        let header = header.copied().unwrap_or_default();
        if self.hex {
            self.field("ClusterID", format_args!("{:x}", header.cluster_id));
            self.field("MemberID", format_args!("{:x}", header.member_id));
        } else {
            self.field("ClusterID", header.cluster_id);
            self.field("MemberID", header.member_id);
        }
        if header.revision > 0 {
            self.field("Revision", header.revision);
        }
        self.field("RaftTerm", header.raft_term);
    }

    fn fields_kvs(&mut self, prefix: &str, kvs: &[KeyValue]) {
        for kv in kvs {
            self.field(&format!("{prefix}Key"), quote(&kv.key));
            self.field(&format!("{prefix}CreateRevision"), kv.create_revision);
            self.field(&format!("{prefix}ModRevision"), kv.mod_revision);
            self.field(&format!("{prefix}Version"), kv.version);
            self.field(&format!("{prefix}Value"), quote(&kv.value));
            self.fields_lease(&format!("{prefix}Lease"), kv.lease);
        }
    }

    fn fields_lease(&mut self, name: &str, id: i64) {
        if self.hex { self.field(name, format_args!("{id:016x}")) } else { self.field(name, id) }
    }

    fn fields_status(&mut self, endpoint: &str, status: &StatusResponse) {
        self.fields_header(status.header.as_ref());
        self.field("Version", quote(status.version.as_bytes()));
        self.field("StorageVersion", quote(status.storage_version.as_bytes()));
        self.field("DBSize", status.db_size);
        self.field("DBSizeInUse", status.db_size_in_use);
        self.field("DBSizeQuota", status.db_size_quota);
        self.field("Leader", status.leader);
        self.field("IsLearner", status.is_learner);
        self.field("RaftIndex", status.raft_index);
        self.field("RaftAppliedIndex", status.raft_applied_index);
        self.field("Errors", format_args!("[{}]", status.errors.join(" ")));
        self.field("Endpoint", quote(endpoint.as_bytes()));
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        self.field("DowngradeTargetVersion", quote(downgrade.target_version.as_bytes()));
        self.field("DowngradeEnabled", downgrade.enabled);
        self.line("");
    }
}

pub(crate) fn no_fields() -> Failure {
    Failure::bad_feature("fields not supported as output format")
}

pub(crate) fn no_protobuf() -> Failure {
    Failure::bad_feature("protobuf not supported as output format")
}

fn no_table() -> Failure {
    Failure::bad_feature("table not supported as output format")
}

pub(crate) fn event_type_text(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

fn header_fields(object: Object, header: Option<&ResponseHeader>) -> Object {
    let header = header.copied().unwrap_or_default();
    object
        .number("cluster_id", header.cluster_id)
        .number("member_id", header.member_id)
        .number("revision", header.revision)
        .number("raft_term", header.raft_term)
}

fn header_json(header: &ResponseHeader) -> String {
    header_fields(Object::new(), Some(header)).end()
}

fn kv_json(kv: &KeyValue) -> String {
    Object::new()
        .bytes("key", &kv.key)
        .number("create_revision", kv.create_revision)
        .number("mod_revision", kv.mod_revision)
        .number("version", kv.version)
        .bytes("value", &kv.value)
        .number("lease", kv.lease)
        .end()
}

fn put_json(response: &PutResponse) -> String {
    Object::new()
        .object("header", response.header.as_ref().map(header_json))
        .object("prev_kv", response.prev_kv.as_ref().map(kv_json))
        .end()
}

fn range_json(response: &RangeResponse) -> String {
    Object::new()
        .object("header", response.header.as_ref().map(header_json))
        .list("kvs", response.kvs.iter().map(kv_json).collect())
        .truth("more", response.more)
        .number("count", response.count)
        .end()
}

fn delete_json(response: &DeleteRangeResponse) -> String {
    Object::new()
        .object("header", response.header.as_ref().map(header_json))
        .number("deleted", response.deleted)
        .list("prev_kvs", response.prev_kvs.iter().map(kv_json).collect())
        .end()
}

fn txn_json(response: &TxnResponse) -> String {
    let operations = response.responses.iter().map(|operation| {
        let operation = match &operation.response {
            Some(Response::ResponseRange(range)) => Object::new().raw("response_range", &range_json(range)),
            Some(Response::ResponsePut(put)) => Object::new().raw("response_put", &put_json(put)),
            Some(Response::ResponseDeleteRange(delete)) => {
                Object::new().raw("response_delete_range", &delete_json(delete))
            }
            Some(Response::ResponseTxn(txn)) => Object::new().raw("response_txn", &txn_json(txn)),
            None => Object::new(),
        };
        Object::new().raw("Response", &operation.end()).end()
    });
    Object::new()
        .object("header", response.header.as_ref().map(header_json))
        .truth("succeeded", response.succeeded)
        .list("responses", operations.collect())
        .end()
}

/// etcdctl prints the Go client's own type here, which has no names for JSON: fields as in Go, none left out.
fn watch_json(response: &WatchResponse) -> String {
    let events = response.events.iter().map(|event| {
        Object::new()
            .number("type", event.r#type)
            .object("kv", event.kv.as_ref().map(kv_json))
            .object("prev_kv", event.prev_kv.as_ref().map(kv_json))
            .end()
    });
    let events: Vec<String> = events.collect();
    let events = if events.is_empty() { "null".to_owned() } else { list(events) };
    Object::new()
        .raw("Header", &response.header.as_ref().map_or_else(|| "{}".to_owned(), header_json))
        .raw("Events", &events)
        .number_always("CompactRevision", response.compact_revision)
        .raw("Canceled", if response.canceled { "true" } else { "false" })
        .raw("Created", if response.created { "true" } else { "false" })
        .raw("CancelReason", &super::json::text(&response.cancel_reason))
        .end()
}

const STATUS_COLUMNS: [&str; 16] = [
    "endpoint",
    "ID",
    "version",
    "storage version",
    "db size",
    "in use",
    "percentage not in use",
    "quota",
    "is leader",
    "is learner",
    "raft term",
    "raft index",
    "raft applied index",
    "errors",
    "downgrade target version",
    "downgrade enabled",
];

fn status_row(endpoint: &str, status: &StatusResponse) -> Vec<String> {
    let member_id = status.header.as_ref().map_or(0, |header| header.member_id);
    let size_text = |bytes: i64| table::bytes_text(u64::try_from(bytes).unwrap_or(0));
    // A server that reports no size has nothing that is out of use.
    let in_use_percent = status.db_size_in_use.saturating_mul(100).checked_div(status.db_size).unwrap_or(100);
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    vec![
        endpoint.to_owned(),
        format!("{member_id:x}"),
        status.version.clone(),
        status.storage_version.clone(),
        size_text(status.db_size),
        size_text(status.db_size_in_use),
        format!("{}%", 100 - in_use_percent),
        size_text(status.db_size_quota),
        (status.leader == member_id).to_string(),
        status.is_learner.to_string(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        status.errors.join(", "),
        downgrade.target_version,
        downgrade.enabled.to_string(),
    ]
}

fn status_json(status: &StatusResponse) -> String {
    let downgrade = status.downgrade_info.as_ref().map(|downgrade| {
        Object::new()
            .truth("enabled", downgrade.enabled)
            .text("targetVersion", &downgrade.target_version)
            .end()
    });
    let errors = status.errors.iter().map(|error| super::json::text(error)).collect();
    Object::new()
        .object("header", status.header.as_ref().map(header_json))
        .text("version", &status.version)
        .number("dbSize", status.db_size)
        .number("leader", status.leader)
        .number("raftIndex", status.raft_index)
        .number("raftTerm", status.raft_term)
        .number("raftAppliedIndex", status.raft_applied_index)
        .list("errors", errors)
        .number("dbSizeInUse", status.db_size_in_use)
        .truth("isLearner", status.is_learner)
        .text("storageVersion", &status.storage_version)
        .number("dbSizeQuota", status.db_size_quota)
        .object("downgradeInfo", downgrade)
        .end()
}
