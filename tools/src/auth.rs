//! `auth`, `user` and `role`: authentication, users, roles.
//!
//! Passwords come with a flag, with the name behind a colon, from standard input (`--interactive=false`), or from a person at the terminal, where they are not
//! shown and are asked for twice.
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::flags;
use crate::ctl::printer::Printer;
use crate::ctl::secret;
use crate::kv::prefix_range;
use bytes::Bytes;
use clap::{ArgAction, Args, Subcommand};
use sternpost_server::wire::authpb::permission::Type;
use sternpost_server::wire::authpb::{Permission, UserAddOptions};
use sternpost_server::wire::etcdserverpb as pb;

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct AuthCommand {
    #[command(subcommand)]
    command: AuthSubcommand,
}

#[derive(Subcommand)]
enum AuthSubcommand {
    /// Enable authentication
    Enable {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Disable authentication
    Disable {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Print whether authentication is on
    Status {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct UserCommand {
    #[command(subcommand)]
    command: UserSubcommand,
}

#[derive(Subcommand)]
enum UserSubcommand {
    /// Add a user
    Add {
        #[command(flatten)]
        interactive: Interactive,
        /// The password
        #[arg(long, default_value = "")]
        new_user_password: String,
        /// A user without a password, named by certificates alone
        #[arg(long)]
        no_password: bool,
        /// Its name, or name:password
        #[arg(value_name = "USER")]
        arguments: Vec<String>,
    },
    /// Delete a user
    Delete {
        /// Its name
        #[arg(value_name = "USER")]
        arguments: Vec<String>,
    },
    /// Print the roles of a user
    Get {
        /// Also the permissions of its roles
        #[arg(long)]
        detail: bool,
        /// Its name
        #[arg(value_name = "USER")]
        arguments: Vec<String>,
    },
    /// List all users
    List {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Change the password of a user
    Passwd {
        #[command(flatten)]
        interactive: Interactive,
        /// Its name
        #[arg(value_name = "USER")]
        arguments: Vec<String>,
    },
    /// Grant a role to a user
    GrantRole {
        /// Their names
        #[arg(value_name = "USER ROLE")]
        arguments: Vec<String>,
    },
    /// Revoke a role from a user
    RevokeRole {
        /// Their names
        #[arg(value_name = "USER ROLE")]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
struct Interactive {
    /// Ask at the terminal for the password; if false, it is read from standard input
    #[arg(
        long,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        value_parser = flags::truth
    )]
    interactive: bool,
}

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct RoleCommand {
    #[command(subcommand)]
    command: RoleSubcommand,
}

#[derive(Subcommand)]
enum RoleSubcommand {
    /// Add a role
    Add {
        /// Its name
        #[arg(value_name = "ROLE")]
        arguments: Vec<String>,
    },
    /// Delete a role
    Delete {
        /// Its name
        #[arg(value_name = "ROLE")]
        arguments: Vec<String>,
    },
    /// Print the permissions of a role
    Get {
        /// Its name
        #[arg(value_name = "ROLE")]
        arguments: Vec<String>,
    },
    /// List all roles
    List {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Grant a permission on keys to a role
    GrantPermission {
        #[command(flatten)]
        range: RangeFlags,
        /// Its name, the type (read, write or readwrite), a key and the end of a range
        #[arg(value_name = "ROLE TYPE KEY [END]")]
        arguments: Vec<String>,
    },
    /// Revoke a permission on keys from a role
    RevokePermission {
        #[command(flatten)]
        range: RangeFlags,
        /// Its name, a key and the end of a range
        #[arg(value_name = "ROLE KEY [END]")]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
struct RangeFlags {
    /// All keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// All keys from this one on
    #[arg(long)]
    from_key: bool,
}

pub(crate) async fn auth(client: &Client, mut printer: Printer, command: AuthCommand) -> Result<(), Failure> {
    let mut service = client.auth().await?;
    match command.command {
        AuthSubcommand::Enable { arguments } => {
            none(&arguments, "auth enable command does not accept any arguments")?;
            let mut enabled = client.call(service.auth_enable(pb::AuthEnableRequest {})).await;
            if enabled.as_ref().is_err_and(|failure| failure.message.ends_with("does not have root role")) {
                client.call(service.role_add(pb::AuthRoleAddRequest { name: "root".into() })).await?;
                let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
                client.call(service.user_grant_role(grant)).await?;
                enabled = client.call(service.auth_enable(pb::AuthEnableRequest {})).await;
            }
            enabled?;
            printer.line("Authentication Enabled");
        }
        AuthSubcommand::Disable { arguments } => {
            none(&arguments, "auth disable command does not accept any arguments")?;
            client.call(service.auth_disable(pb::AuthDisableRequest {})).await?;
            printer.line("Authentication Disabled");
        }
        AuthSubcommand::Status { arguments } => {
            none(&arguments, "auth status command does not accept any arguments")?;
            printer.auth_status(&client.call(service.auth_status(pb::AuthStatusRequest {})).await?)?;
        }
    }
    printer.flush()
}

pub(crate) async fn user(client: &Client, mut printer: Printer, command: UserCommand) -> Result<(), Failure> {
    match command.command {
        UserSubcommand::Add { interactive, new_user_password, no_password, arguments } => {
            let argument = only(&arguments, "user add command requires user name as its argument")?;
            let (name, password) = match argument.split_once(':') {
                _ if no_password => (argument, String::new()),
                _ if !new_user_password.is_empty() => (argument, new_user_password),
                Some(("", _)) => return Err(Failure::bad_arguments("empty user name is not allowed")),
                Some((name, password)) => (name, password.to_owned()),
                None => (argument, ask_new(argument, interactive.interactive)?),
            };
            let options = Some(UserAddOptions { no_password });
            let request =
                pb::AuthUserAddRequest { name: name.to_owned(), password, options, ..Default::default() };
            let response = client.call(client.auth().await?.user_add(request)).await?;
            printer.done(format_args!("User {name} created"), response.header.as_ref())?;
        }
        UserSubcommand::Delete { arguments } => {
            let name = only(&arguments, "user delete command requires user name as its argument")?;
            let request = pb::AuthUserDeleteRequest { name: name.to_owned() };
            let response = client.call(client.auth().await?.user_delete(request)).await?;
            printer.done(format_args!("User {name} deleted"), response.header.as_ref())?;
        }
        UserSubcommand::Get { detail, arguments } => {
            let name = only(&arguments, "user get command requires user name as its argument")?;
            let mut service = client.auth().await?;
            let request = pb::AuthUserGetRequest { name: name.to_owned() };
            let response = client.call(service.user_get(request)).await?;
            if !detail {
                printer.user(name, &response)?;
                return printer.flush();
            }
            printer.line(format_args!("User: {name}"));
            for role in response.roles {
                printer.line("");
                let request = pb::AuthRoleGetRequest { role: role.clone() };
                printer.role(&role, &client.call(service.role_get(request)).await?)?;
            }
        }
        UserSubcommand::List { arguments } => {
            none(&arguments, "user list command requires no arguments")?;
            let response = client.call(client.auth().await?.user_list(pb::AuthUserListRequest {})).await?;
            printer.users(&response)?;
        }
        UserSubcommand::Passwd { interactive, arguments } => {
            let name = only(&arguments, "user passwd command requires user name as its argument")?;
            let password = ask_new(name, interactive.interactive)?;
            let request =
                pb::AuthUserChangePasswordRequest { name: name.to_owned(), password, ..Default::default() };
            let response = client.call(client.auth().await?.user_change_password(request)).await?;
            printer.done("Password updated", response.header.as_ref())?;
        }
        UserSubcommand::GrantRole { arguments } => {
            let usage = "user grant command requires user name and role name as its argument";
            let (user, role) = two(&arguments, usage)?;
            let request = pb::AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
            let response = client.call(client.auth().await?.user_grant_role(request)).await?;
            printer.done(format_args!("Role {role} is granted to user {user}"), response.header.as_ref())?;
        }
        UserSubcommand::RevokeRole { arguments } => {
            let usage = "user revoke-role requires user name and role name as its argument";
            let (user, role) = two(&arguments, usage)?;
            let request = pb::AuthUserRevokeRoleRequest { name: user.to_owned(), role: role.to_owned() };
            let response = client.call(client.auth().await?.user_revoke_role(request)).await?;
            printer
                .done(format_args!("Role {role} is revoked from user {user}"), response.header.as_ref())?;
        }
    }
    printer.flush()
}

pub(crate) async fn role(client: &Client, mut printer: Printer, command: RoleCommand) -> Result<(), Failure> {
    match command.command {
        RoleSubcommand::Add { arguments } => {
            let name = only(&arguments, "role add command requires role name as its argument")?;
            let request = pb::AuthRoleAddRequest { name: name.to_owned() };
            let response = client.call(client.auth().await?.role_add(request)).await?;
            printer.done(format_args!("Role {name} created"), response.header.as_ref())?;
        }
        RoleSubcommand::Delete { arguments } => {
            let role = only(&arguments, "role delete command requires role name as its argument")?;
            let request = pb::AuthRoleDeleteRequest { role: role.to_owned() };
            let response = client.call(client.auth().await?.role_delete(request)).await?;
            printer.done(format_args!("Role {role} deleted"), response.header.as_ref())?;
        }
        RoleSubcommand::Get { arguments } => {
            let role = only(&arguments, "role get command requires role name as its argument")?;
            let request = pb::AuthRoleGetRequest { role: role.to_owned() };
            printer.role(role, &client.call(client.auth().await?.role_get(request)).await?)?;
        }
        RoleSubcommand::List { arguments } => {
            none(&arguments, "role list command requires no arguments")?;
            let response = client.call(client.auth().await?.role_list(pb::AuthRoleListRequest {})).await?;
            printer.roles(&response)?;
        }
        RoleSubcommand::GrantPermission { range, arguments } => {
            let usage =
                "role grant command requires role name, permission type, and key [endkey] as its argument";
            let [name, kind, keys @ ..] = arguments.as_slice() else {
                return Err(Failure::bad_arguments(usage));
            };
            let first = keys.first().ok_or_else(|| Failure::bad_arguments(usage))?;
            let perm_type = Type::from_str_name(&kind.to_ascii_uppercase())
                .ok_or_else(|| Failure::bad_arguments(format!("invalid permission type: {kind}")))?;
            let (key, range_end) = permission_range(first, keys.get(1), &range)?;
            let perm = Some(Permission { perm_type: perm_type.into(), key, range_end });
            let request = pb::AuthRoleGrantPermissionRequest { name: name.clone(), perm };
            let response = client.call(client.auth().await?.role_grant_permission(request)).await?;
            printer.done(format_args!("Role {name} updated"), response.header.as_ref())?;
        }
        RoleSubcommand::RevokePermission { range, arguments } => {
            let usage = "role revoke-permission command requires role name and key [endkey] as its argument";
            let [role, first, rest @ ..] = arguments.as_slice() else {
                return Err(Failure::bad_arguments(usage));
            };
            let (key, range_end) = permission_range(first, rest.first(), &range)?;
            let said = match &*range_end {
                [] => format!("Permission of key {first} is revoked from role {role}"),
                [0] => {
                    format!("Permission of range [{first}, <open ended> is revoked from role {role}")
                }
                end => {
                    let end = String::from_utf8_lossy(end);
                    format!("Permission of range [{first}, {end}) is revoked from role {role}")
                }
            };
            let request = pb::AuthRoleRevokePermissionRequest { role: role.clone(), key, range_end };
            let response = client.call(client.auth().await?.role_revoke_permission(request)).await?;
            printer.done(said, response.header.as_ref())?;
        }
    }
    printer.flush()
}

/// Key and range end of a permission, as the arguments and flags say. No key is every key.
fn permission_range(key: &str, end: Option<&String>, flags: &RangeFlags) -> Result<(Bytes, Bytes), Failure> {
    let open_end = || Bytes::from_static(&[0]);
    let both = || Failure::bad_arguments("--from-key and --prefix flags are mutually exclusive");
    if key.is_empty() {
        if flags.prefix && flags.from_key {
            return Err(both());
        }
        let is_all = flags.prefix || flags.from_key;
        return Ok((open_end(), if is_all { open_end() } else { Bytes::new() }));
    }
    let key = Bytes::copy_from_slice(key.as_bytes());
    match (end, flags) {
        (None, RangeFlags { prefix: true, from_key: true }) => Err(both()),
        (None, RangeFlags { prefix: true, .. }) => Ok(prefix_range(key)),
        (None, RangeFlags { from_key: true, .. }) => Ok((key, open_end())),
        (None, _) => Ok((key, Bytes::new())),
        (Some(_), RangeFlags { prefix: true, .. }) => {
            Err(Failure::bad_arguments("unexpected endkey argument with --prefix flag"))
        }
        (Some(_), RangeFlags { from_key: true, .. }) => {
            Err(Failure::bad_arguments("unexpected endkey argument with --from-key flag"))
        }
        (Some(end), _) => Ok((key, Bytes::copy_from_slice(end.as_bytes()))),
    }
}

/// A password for a user, twice from the terminal or once from standard input.
fn ask_new(user: &str, is_interactive: bool) -> Result<String, Failure> {
    if !is_interactive {
        return secret::read_word();
    }
    let ask = |prompt: String| {
        let failed = |error| Failure::bad_arguments(format!("failed to ask password: {error}"));
        secret::ask(&prompt).map_err(failed)
    };
    let password = ask(format!("Password of {user}: "))?;
    if password.is_empty() {
        return Err(Failure::bad_arguments("empty password"));
    }
    if ask(format!("Type password of {user} again for confirmation: "))? != password {
        return Err(Failure::bad_arguments("given passwords are different"));
    }
    Ok(password)
}

fn none(arguments: &[String], usage: &str) -> Result<(), Failure> {
    if arguments.is_empty() { Ok(()) } else { Err(Failure::bad_arguments(usage)) }
}

fn only<'a>(arguments: &'a [String], usage: &str) -> Result<&'a str, Failure> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(Failure::bad_arguments(usage)),
    }
}

fn two<'a>(arguments: &'a [String], usage: &str) -> Result<(&'a str, &'a str), Failure> {
    match arguments {
        [first, second] => Ok((first, second)),
        _ => Err(Failure::bad_arguments(usage)),
    }
}
