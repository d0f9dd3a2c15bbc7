//! Answers about members, endpoints, alarms and versions.
use super::{Format, Printer, header_json, no_fields, no_protobuf, no_table};
use crate::ctl::failure::Failure;
use crate::ctl::json::{Object, list, text};
use crate::ctl::quote::quote;
use crate::ctl::table;
use prost::Message;
use sternpost_server::wire::etcdserverpb::{
    AlarmResponse, AlarmType, DowngradeResponse, HashKvResponse, Member, MemberAddResponse,
    MemberListResponse, MemberUpdateResponse, MoveLeaderResponse, ResponseHeader,
};

/// How an endpoint is.
pub(crate) struct Health {
    /// As typed.
    pub(crate) endpoint: String,
    /// It committed something and has no alarm.
    pub(crate) is_healthy: bool,
    /// How long that took, in Go's form; empty where nothing was asked.
    pub(crate) took: String,
    /// What is wrong; empty for nothing.
    pub(crate) error: String,
}

const HEALTH_COLUMNS: [&str; 4] = ["endpoint", "health", "took", "error"];
const HASH_COLUMNS: [&str; 3] = ["endpoint", "hash", "hash revision"];
const MEMBER_COLUMNS: [&str; 6] = ["id", "status", "name", "peer addrs", "client addrs", "is learner"];

impl Printer {
    pub(crate) fn members(&mut self, response: &MemberListResponse) {
        match self.format {
            Format::Simple => {
                for member in &response.members {
                    self.line(member_row(member).join(", "));
                }
            }
            Format::Json => {
                let object = self.ids_object(response.header.as_ref());
                self.line(self.members_in(object, &response.members).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                for member in &response.members {
                    self.fields_member(member);
                }
            }
            Format::Table => {
                let rows: Vec<_> = response.members.iter().map(member_row).collect();
                self.table(&MEMBER_COLUMNS, &rows);
            }
            Format::Protobuf => self.message(response),
        }
    }

    /// A new member; in the simple form with the variables that its server is to be started with.
    pub(crate) fn member_added(
        &mut self,
        name: &str,
        peer_urls: &str,
        response: &MemberAddResponse,
    ) -> Result<(), Failure> {
        let added = response.member.clone().unwrap_or_default();
        match self.format {
            Format::Simple => {
                let learner = if added.is_learner { " as learner " } else { " " };
                let cluster_id = response.header.map_or(0, |header| header.cluster_id);
                self.line(format_args!("Member {:16x} added{learner}to cluster {cluster_id:16x}", added.id));
                let named = |member: &Member| {
                    if member.id == added.id { name.to_owned() } else { member.name.clone() }
                };
                let urls = response.members.iter().flat_map(|member| {
                    let name = named(member);
                    member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
                });
                let cluster = urls.collect::<Vec<_>>().join(",");
                self.line("");
                self.line(format_args!("ETCD_NAME={}", quote(name.as_bytes())));
                self.line(format_args!("ETCD_INITIAL_CLUSTER={}", quote(cluster.as_bytes())));
                let urls = quote(peer_urls.as_bytes());
                self.line(format_args!("ETCD_INITIAL_ADVERTISE_PEER_URLS={urls}"));
                self.line("ETCD_INITIAL_CLUSTER_STATE=\"existing\"");
            }
            Format::Json => {
                let object = self.ids_object(response.header.as_ref());
                let object = object.object("member", response.member.as_ref().map(|it| self.member_json(it)));
                self.line(self.members_in(object, &response.members).end());
            }
            Format::Fields => return Err(no_fields()),
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    /// A member that was changed; `what` stands between its id and that of the cluster.
    pub(crate) fn member_changed(
        &mut self,
        id: u64,
        what: &str,
        header: Option<&ResponseHeader>,
        members: &[Member],
    ) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                let cluster_id = header.map_or(0, |header| header.cluster_id);
                self.line(format_args!("Member {id:16x} {what} cluster {cluster_id:16x}"));
            }
            Format::Json => self.line(self.members_in(self.ids_object(header), members).end()),
            Format::Fields => return Err(no_fields()),
            Format::Table => return Err(no_table()),
            // All that change a member answer in these two fields.
            Format::Protobuf => {
                self.message(&MemberUpdateResponse { header: header.copied(), members: members.to_vec() })
            }
        }
        Ok(())
    }

    pub(crate) fn leader_moved(
        &mut self,
        from: u64,
        to: u64,
        response: &MoveLeaderResponse,
    ) -> Result<(), Failure> {
        self.line_or_message(
            format!("Leadership transferred from {from:x} to {to:x}"),
            Object::new().object("header", response.header.as_ref().map(header_json)),
            response,
        )
    }

    /// An answer about a downgrade; `what` was asked for.
    pub(crate) fn downgrade(&mut self, what: &str, response: &DowngradeResponse) -> Result<(), Failure> {
        let header = response.header.as_ref().map(header_json);
        self.line_or_message(
            format!("Downgrade {what} success, cluster version {}", response.version),
            Object::new().object("header", header).text("version", &response.version),
            response,
        )
    }

    pub(crate) fn alarms(&mut self, response: &AlarmResponse) -> Result<(), Failure> {
        let name = |alarm: i32| match AlarmType::try_from(alarm) {
            Ok(alarm) => alarm.as_str_name().to_owned(),
            Err(_) => alarm.to_string(),
        };
        match self.format {
            Format::Simple => {
                for alarm in &response.alarms {
                    let mut parts = Vec::new();
                    if alarm.member_id != 0 {
                        parts.push(format!("memberID:{}", alarm.member_id));
                    }
                    if alarm.alarm != 0 {
                        parts.push(format!("alarm:{}", name(alarm.alarm)));
                    }
                    self.line(parts.join(" "));
                }
            }
            Format::Json => {
                let alarms = response.alarms.iter().map(|alarm| {
                    Object::new().number("memberID", alarm.member_id).number("alarm", alarm.alarm).end()
                });
                let object = Object::new().object("header", response.header.as_ref().map(header_json));
                self.line(object.list("alarms", alarms.collect()).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                for alarm in &response.alarms {
                    self.fields_id("MemberID", alarm.member_id);
                    self.field("AlarmType", name(alarm.alarm));
                    self.line("");
                }
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    /// Unhealthy endpoints are named on standard error in the simple form.
    pub(crate) fn healths(&mut self, healths: &[Health]) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                for Health { endpoint, took, error, .. } in healths {
                    if error.is_empty() {
                        let done = "is healthy: successfully committed proposal";
                        self.line(format_args!("{endpoint} {done}: took = {took}"));
                    } else {
                        eprintln!("{endpoint} is unhealthy: failed to commit proposal: {error}");
                    }
                }
            }
            Format::Json => {
                let healths = healths.iter().map(|health| {
                    Object::new()
                        .raw("endpoint", &text(&health.endpoint))
                        .raw("health", if health.is_healthy { "true" } else { "false" })
                        .raw("took", &text(&health.took))
                        .text("error", &health.error)
                        .end()
                });
                self.line(list(healths.collect()));
            }
            Format::Fields => {
                for health in healths {
                    self.field("Endpoint", quote(health.endpoint.as_bytes()));
                    self.field("Health", health.is_healthy);
                    self.field("Took", &health.took);
                    self.field("Error", &health.error);
                    self.line("");
                }
            }
            Format::Table => {
                let rows = healths.iter().map(|health| {
                    let Health { endpoint, is_healthy, took, error } = health;
                    vec![endpoint.clone(), is_healthy.to_string(), took.clone(), error.clone()]
                });
                self.table(&HEALTH_COLUMNS, &rows.collect::<Vec<_>>());
            }
            Format::Protobuf => return Err(no_protobuf()),
        }
        Ok(())
    }

    pub(crate) fn hashes(&mut self, hashes: &[(String, HashKvResponse)]) -> Result<(), Failure> {
        let row = |(endpoint, hash): &(String, HashKvResponse)| {
            vec![endpoint.clone(), hash.hash.to_string(), hash.hash_revision.to_string()]
        };
        match self.format {
            Format::Simple => hashes.iter().for_each(|hash| self.line(row(hash).join(", "))),
            Format::Json => {
                let hashes: Vec<_> = hashes
                    .iter()
                    .map(|(endpoint, hash)| {
                        let object = Object::new()
                            .object("header", hash.header.as_ref().map(header_json))
                            .number("hash", hash.hash)
                            .number("compact_revision", hash.compact_revision)
                            .number("hash_revision", hash.hash_revision);
                        Object::new().raw("Endpoint", &text(endpoint)).raw("HashKV", &object.end()).end()
                    })
                    .collect();
                self.line(if hashes.is_empty() { "null".to_owned() } else { list(hashes) });
            }
            Format::Fields => {
                for (endpoint, hash) in hashes {
                    self.fields_header(hash.header.as_ref());
                    self.field("Endpoint", quote(endpoint.as_bytes()));
                    self.field("Hash", hash.hash);
                    self.field("HashRevision", hash.hash_revision);
                    self.line("");
                }
            }
            Format::Table => self.table(&HASH_COLUMNS, &hashes.iter().map(row).collect::<Vec<_>>()),
            Format::Protobuf => return Err(no_protobuf()),
        }
        Ok(())
    }

    /// For what has neither fields nor a table.
    fn line_or_message(
        &mut self,
        simple: String,
        json: Object,
        message: &impl Message,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Simple => self.line(simple),
            Format::Json => self.line(json.end()),
            Format::Fields => return Err(no_fields()),
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(message),
        }
        Ok(())
    }

    fn table(&mut self, columns: &[&str], rows: &[Vec<String>]) {
        self.out.extend_from_slice(table::render(columns, rows).as_bytes());
    }

    fn fields_member(&mut self, member: &Member) {
        self.fields_id("ID", member.id);
        self.field("Name", quote(member.name.as_bytes()));
        for url in &member.peer_ur_ls {
            self.field("PeerURL", quote(url.as_bytes()));
        }
        for url in &member.client_ur_ls {
            self.field("ClientURL", quote(url.as_bytes()));
        }
        self.field("IsLearner", member.is_learner);
        self.line("");
    }

    fn fields_id(&mut self, name: &str, id: u64) {
        if self.hex { self.field(name, format_args!("{id:x}")) } else { self.field(name, id) }
    }

    /// An object that begins with the header, whose ids are in hexadecimal if ids are.
    fn ids_object(&self, header: Option<&ResponseHeader>) -> Object {
        let header = header.map(|header| match self.hex {
            false => header_json(header),
            true => Object::new()
                .raw("cluster_id", &text(&format!("{:x}", header.cluster_id)))
                .raw("member_id", &text(&format!("{:x}", header.member_id)))
                .number("revision", header.revision)
                .number("raft_term", header.raft_term)
                .end(),
        });
        Object::new().object("header", header)
    }

    fn members_in(&self, object: Object, members: &[Member]) -> Object {
        object.list("members", members.iter().map(|member| self.member_json(member)).collect())
    }

    fn member_json(&self, member: &Member) -> String {
        let texts = |texts: &[String]| texts.iter().map(|it| text(it)).collect();
        let id = match self.hex {
            true => Object::new().raw("ID", &text(&format!("{:x}", member.id))),
            false => Object::new().number("ID", member.id),
        };
        id.text("name", &member.name)
            .list("peerURLs", texts(&member.peer_ur_ls))
            .list("clientURLs", texts(&member.client_ur_ls))
            .truth("isLearner", member.is_learner)
            .end()
    }
}

fn member_row(member: &Member) -> Vec<String> {
    let status = if member.name.is_empty() { "unstarted" } else { "started" };
    vec![
        format!("{:x}", member.id),
        status.to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}
