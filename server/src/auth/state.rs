//! Users, roles and whether authentication is on: the part of the replicated state that decides who may do what.
//!
//! **Data.** Users and roles by name as etcd's protobuf, beside each user the sets of keys that its roles make (see [`permissions`](super::permissions)).
//! A copy shares them, so that publishing one after a change costs a pointer for each user.
//!
//! **Contract.** Every change is a function of the state and the request, with etcd's checks in etcd's order; it says which records it
//! touched, for whoever stores them. No clock, no randomness, no password: those of requests are hashes already.
//!
//! **Source**: `server/auth/store.go` of etcd 3.7.3.
use super::permissions::{KeySet, is_valid_range};
use crate::wire::authpb::permission::Type;
use crate::wire::authpb::{Permission, Role, User, UserAddOptions};
use crate::wire::etcdserverpb as pb;
use crate::wire::status::ApiError;
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name of the user that must be there to switch authentication on, and of the role that may do everything.
pub const ROOT: &str = "root";

/// Go's decoder, which does not look at the bits behind the last byte.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A user with what its roles allow.
#[derive(Clone, PartialEq, Debug)]
pub struct UserEntry {
    /// As stored.
    pub record: User,
    /// It has the role root.
    pub is_root: bool,
    /// Keys that it may read.
    pub reads: KeySet,
    /// Keys that it may write.
    pub writes: KeySet,
}

impl UserEntry {
    /// True for a user that only a certificate can name.
    pub fn has_no_password(&self) -> bool {
        self.record.options.as_ref().is_some_and(|options| options.no_password)
    }
}

/// A record that a change has touched: it is to be stored as the state has it now, or removed if the state has none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Touched {
    Settings,
    User(String),
    Role(String),
}

/// What a change touched.
pub type Change = Result<Vec<Touched>, ApiError>;

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub struct AuthState {
    is_enabled: bool,
    revision: u64,
    users: BTreeMap<String, Arc<UserEntry>>,
    roles: BTreeMap<String, Arc<Role>>,
}

impl Default for AuthState {
    fn default() -> Self {
        Self { is_enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl AuthState {
    /// From what is stored. A name that is no text cannot have come by a request: none then.
    pub fn new(is_enabled: bool, revision: u64, users: Vec<User>, roles: Vec<Role>) -> Option<Self> {
        let name = |name: &Bytes| String::from_utf8(name.to_vec()).ok();
        let roles = roles.into_iter().map(|role| Some((name(&role.name)?, Arc::new(role))));
        let mut state =
            Self { is_enabled, revision, users: BTreeMap::new(), roles: roles.collect::<Option<_>>()? };
        for user in users {
            let name = name(&user.name)?;
            state.set_user(name, user);
        }
        Some(state)
    }

    /// Whether authentication is on.
    pub fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// Counts changes of users and roles, from 1.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// One user.
    pub fn user(&self, name: &str) -> Option<&UserEntry> {
        self.users.get(name).map(|user| &**user)
    }

    /// One role, as stored.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(|role| &**role)
    }

    /// Names of all users, sorted.
    pub fn user_names(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    /// Names of all roles, sorted.
    pub fn role_names(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// What RoleGet answers: the role root has no permissions stored, and all of them.
    pub fn permissions_of(&self, role: &str) -> Option<Vec<Permission>> {
        let found = self.role(role)?;
        if role == ROOT {
            let all = Permission {
                perm_type: Type::Readwrite.into(),
                key: Bytes::new(),
                range_end: Bytes::from_static(&[0]),
            };
            return Some(vec![all]);
        }
        Some(found.key_permission.clone())
    }

    /// Switches authentication on; nothing is touched if it was.
    pub fn enable(&mut self) -> Change {
        if self.is_enabled {
            return Ok(Vec::new());
        }
        let root = self.user(ROOT).ok_or(ApiError::RootUserNotExist)?;
        if !root.is_root {
            return Err(ApiError::RootRoleNotExist);
        }
        self.is_enabled = true;
        Ok(vec![Touched::Settings])
    }

    /// Switches authentication off; nothing is touched if it was.
    pub fn disable(&mut self) -> Change {
        if !self.is_enabled {
            return Ok(Vec::new());
        }
        self.is_enabled = false;
        self.touched(Vec::new())
    }

    /// Adds a user; the password is a hash in base64.
    pub fn user_add(&mut self, request: pb::AuthUserAddRequest) -> Change {
        if request.name.is_empty() {
            return Err(ApiError::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(ApiError::UserAlreadyExist);
        }
        let options = request.options.unwrap_or(UserAddOptions { no_password: false });
        let password = if options.no_password { Bytes::new() } else { hash_of(&request.hashed_password)? };
        let name = Bytes::from(request.name.clone().into_bytes());
        let user = User { name, password, roles: Vec::new(), options: Some(options) };
        self.set_user(request.name.clone(), user);
        self.touched(vec![Touched::User(request.name)])
    }

    /// Removes a user.
    pub fn user_delete(&mut self, name: String) -> Change {
        if self.is_enabled && name == ROOT {
            return Err(ApiError::InvalidAuthManagement);
        }
        self.users.remove(&name).ok_or(ApiError::UserNotFound)?;
        self.touched(vec![Touched::User(name)])
    }

    /// Gives a user another password; one that has none keeps none.
    pub fn user_change_password(&mut self, request: pb::AuthUserChangePasswordRequest) -> Change {
        let entry = self.user(&request.name).ok_or(ApiError::UserNotFound)?;
        let password =
            if entry.has_no_password() { Bytes::new() } else { hash_of(&request.hashed_password)? };
        let record = User { password, ..entry.record.clone() };
        self.set_user(request.name.clone(), record);
        self.touched(vec![Touched::User(request.name)])
    }

    /// Gives a user a role; one that it has is no change. The role root need not exist.
    pub fn user_grant_role(&mut self, user: String, role: String) -> Change {
        let entry = self.user(&user).ok_or(ApiError::UserNotFound)?;
        if role != ROOT && !self.roles.contains_key(&role) {
            return Err(ApiError::RoleNotFound);
        }
        let Err(place) = entry.record.roles.binary_search(&role) else { return Ok(Vec::new()) };
        let mut record = entry.record.clone();
        record.roles.insert(place, role);
        self.set_user(user.clone(), record);
        self.touched(vec![Touched::User(user)])
    }

    /// Takes a role from a user.
    pub fn user_revoke_role(&mut self, user: String, role: &str) -> Change {
        if self.is_enabled && user == ROOT && role == ROOT {
            return Err(ApiError::InvalidAuthManagement);
        }
        let entry = self.user(&user).ok_or(ApiError::UserNotFound)?;
        let mut record = entry.record.clone();
        record.roles.retain(|granted| granted != role);
        if record.roles.len() == entry.record.roles.len() {
            return Err(ApiError::RoleNotGranted);
        }
        self.set_user(user.clone(), record);
        self.touched(vec![Touched::User(user)])
    }

    /// Adds a role without permissions.
    pub fn role_add(&mut self, name: String) -> Change {
        if name.is_empty() {
            return Err(ApiError::RoleEmpty);
        }
        if self.roles.contains_key(&name) {
            return Err(ApiError::RoleAlreadyExist);
        }
        let role = Role { name: Bytes::from(name.clone().into_bytes()), key_permission: Vec::new() };
        self.roles.insert(name.clone(), Arc::new(role));
        self.touched(vec![Touched::Role(name)])
    }

    /// Removes a role, also from its users.
    pub fn role_delete(&mut self, name: String) -> Change {
        if self.is_enabled && name == ROOT {
            return Err(ApiError::InvalidAuthManagement);
        }
        self.roles.remove(&name).ok_or(ApiError::RoleNotFound)?;
        let mut touched = Vec::new();
        for user in self.users_with(&name) {
            let Some(entry) = self.user(&user) else { continue };
            let mut record = entry.record.clone();
            record.roles.retain(|granted| *granted != name);
            self.set_user(user.clone(), record);
            touched.push(Touched::User(user));
        }
        touched.push(Touched::Role(name));
        self.touched(touched)
    }

    /// Gives a role a permission. One on the same range is replaced, if it is the first of those that begin with its key, as in etcd: any other stays,
    /// and the new one stands beside it.
    pub fn role_grant_permission(&mut self, request: pb::AuthRoleGrantPermissionRequest) -> Change {
        let given = request.perm.ok_or(ApiError::PermissionNotGiven)?;
        if !is_valid_range(&given.key, &given.range_end) {
            return Err(ApiError::InvalidAuthManagement);
        }
        let role = self.roles.get_mut(&request.name).ok_or(ApiError::RoleNotFound)?;
        let permissions = &mut Arc::make_mut(role).key_permission;
        let first = permissions.partition_point(|permission| permission.key < given.key);
        match permissions.get_mut(first) {
            Some(same) if same.key == given.key && same.range_end == given.range_end => {
                same.perm_type = given.perm_type;
            }
            _ => {
                let behind = permissions.partition_point(|permission| permission.key <= given.key);
                permissions.insert(behind, given);
            }
        }
        self.role_changed(request.name)
    }

    /// Takes the permissions on exactly this range from a role.
    pub fn role_revoke_permission(&mut self, request: pb::AuthRoleRevokePermissionRequest) -> Change {
        let role = self.roles.get_mut(&request.role).ok_or(ApiError::RoleNotFound)?;
        let is_it = |permission: &Permission| {
            permission.key == request.key && permission.range_end == request.range_end
        };
        if !role.key_permission.iter().any(is_it) {
            return Err(ApiError::PermissionNotGranted);
        }
        Arc::make_mut(role).key_permission.retain(|permission| !is_it(permission));
        self.role_changed(request.role)
    }

    fn role_changed(&mut self, role: String) -> Change {
        for user in self.users_with(&role) {
            if let Some(entry) = self.user(&user) {
                let record = entry.record.clone();
                self.set_user(user, record);
            }
        }
        self.touched(vec![Touched::Role(role)])
    }

    fn users_with(&self, role: &str) -> Vec<String> {
        let has = |entry: &UserEntry| entry.record.roles.iter().any(|granted| granted == role);
        self.users.iter().filter(|(_, entry)| has(entry)).map(|(name, _)| name.clone()).collect()
    }

    /// Puts a user in place with the sets of keys that its roles make now.
    fn set_user(&mut self, name: String, record: User) {
        let granted = || {
            let roles = record.roles.iter().filter_map(|role| self.roles.get(role));
            roles.flat_map(|role| &role.key_permission)
        };
        let set = |types: [Type; 2]| {
            let wanted = granted().filter(|it| types.iter().any(|kind| it.perm_type == *kind as i32));
            KeySet::new(wanted.map(|permission| (&permission.key, &permission.range_end)))
        };
        let entry = UserEntry {
            is_root: record.roles.iter().any(|role| role == ROOT),
            reads: set([Type::Read, Type::Readwrite]),
            writes: set([Type::Write, Type::Readwrite]),
            record,
        };
        self.users.insert(name, Arc::new(entry));
    }

    /// Counts the change.
    fn touched(&mut self, mut records: Vec<Touched>) -> Change {
        self.revision += 1;
        records.push(Touched::Settings);
        Ok(records)
    }
}

/// The hash that a request carries. Text that is no base64 is answered as etcd does.
fn hash_of(base64: &str) -> Result<Bytes, ApiError> {
    let text: Vec<u8> = base64.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    BASE64.decode(text).map(Bytes::from).map_err(|_| ApiError::NoPasswordUser)
}

#[cfg(test)]
mod tests;
