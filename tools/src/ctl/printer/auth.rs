//! Answers about authentication, users and roles.
use super::{Format, Printer, header_json, no_fields, no_table};
use crate::ctl::failure::Failure;
use crate::ctl::json::{Object, text};
use crate::ctl::quote::quote;
use crate::kv::prefix_range;
use bytes::Bytes;
use std::fmt::Display;
use sternpost_server::wire::authpb::Permission;
use sternpost_server::wire::authpb::permission::Type;
use sternpost_server::wire::etcdserverpb::{
    AuthRoleGetResponse, AuthRoleListResponse, AuthStatusResponse, AuthUserAddResponse, AuthUserGetResponse,
    AuthUserListResponse, ResponseHeader,
};

impl Printer {
    /// An answer that is a header and nothing else; `simple` says what was done.
    pub(crate) fn done(
        &mut self,
        simple: impl Display,
        header: Option<&ResponseHeader>,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Simple => self.line(simple),
            Format::Json => self.line(object(header).end()),
            Format::Fields => self.fields_header(header),
            Format::Table => return Err(no_table()),
            // A header is the first field of every answer.
            Format::Protobuf => self.message(&AuthUserAddResponse { header: header.copied() }),
        }
        Ok(())
    }

    pub(crate) fn auth_status(&mut self, response: &AuthStatusResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(format_args!("Authentication Status: {}", response.enabled));
                self.line(format_args!("AuthRevision: {}", response.auth_revision));
            }
            Format::Json => {
                let object = object(response.header.as_ref()).truth("enabled", response.enabled);
                self.line(object.number("authRevision", response.auth_revision).end());
            }
            Format::Fields => return Err(no_fields()),
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn user(&mut self, name: &str, response: &AuthUserGetResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(format_args!("User: {name}"));
                let roles = response.roles.iter().map(|role| format!(" {role}"));
                self.line(format_args!("Roles:{}", roles.collect::<String>()));
            }
            Format::Json => {
                let object = object(response.header.as_ref());
                self.line(object.list("roles", texts(&response.roles)).end());
            }
            Format::Fields => return Err(no_fields()),
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn users(&mut self, response: &AuthUserListResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => response.users.iter().for_each(|user| self.line(user)),
            Format::Json => {
                let object = object(response.header.as_ref());
                self.line(object.list("users", texts(&response.users)).end());
            }
            Format::Fields => return Err(no_fields()),
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn roles(&mut self, response: &AuthRoleListResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => response.roles.iter().for_each(|role| self.line(role)),
            Format::Json => {
                let object = object(response.header.as_ref());
                self.line(object.list("roles", texts(&response.roles)).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                let roles = response.roles.iter().map(|role| format!(" {}", quote(role.as_bytes())));
                self.line(format_args!("\"Roles\" :{}", roles.collect::<String>()));
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }

    pub(crate) fn role(&mut self, role: &str, response: &AuthRoleGetResponse) -> Result<(), Failure> {
        match self.format {
            Format::Simple => {
                self.line(format_args!("Role {role}"));
                for (title, kind) in [("KV Read:", Type::Read), ("KV Write:", Type::Write)] {
                    self.line(title);
                    let of_kind = [kind, Type::Readwrite].map(|kind| kind as i32);
                    for permission in response.perm.iter().filter(|it| of_kind.contains(&it.perm_type)) {
                        self.line(format_args!("\t{}", range_text(permission)));
                    }
                }
            }
            Format::Json => {
                let permissions = response.perm.iter().map(|permission| {
                    let object = Object::new().number("permType", permission.perm_type);
                    object.bytes("key", &permission.key).bytes("range_end", &permission.range_end).end()
                });
                let object = object(response.header.as_ref());
                self.line(object.list("perm", permissions.collect()).end());
            }
            Format::Fields => {
                self.fields_header(response.header.as_ref());
                for permission in &response.perm {
                    // Two blanks, as etcdctl.
                    self.field("PermType", format_args!(" {}", permission.perm_type().as_str_name()));
                    self.field("Key", quote(&permission.key));
                    self.field("RangeEnd", quote(&permission.range_end));
                }
            }
            Format::Table => return Err(no_table()),
            Format::Protobuf => self.message(response),
        }
        Ok(())
    }
}

fn object(header: Option<&ResponseHeader>) -> Object {
    Object::new().object("header", header.map(header_json))
}

fn texts(names: &[String]) -> Vec<String> {
    names.iter().map(|name| text(name)).collect()
}

/// A range as etcdctl prints it to people.
fn range_text(permission: &Permission) -> String {
    let key = String::from_utf8_lossy(&permission.key);
    match &*permission.range_end {
        [] => key.into_owned(),
        [0] if permission.key.is_empty() => format!("[{key}, <open ended>"),
        end => {
            let end_text = String::from_utf8_lossy(end);
            let range =
                if end == [0] { format!("[{key}, <open ended>") } else { format!("[{key}, {end_text})") };
            let is_prefix = prefix_range(Bytes::copy_from_slice(&permission.key)).1 == end;
            if is_prefix { format!("{range} (prefix {key})") } else { range }
        }
    }
}
