//! One replicated command in bytes.
//!
//! **Layout**, little-endian:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 1 | format version, 1 |
//! | 1 | 1 | kind, see [`Kind`] |
//! | 2 | 1 | origin: 0 a client without a user, 1 the cluster itself with root's rights (`root-internal`, which no request on the wire can produce), 2 a user |
//! | 3 | 1 | 0 |
//! | 4 | 8 | id, unique in the cluster; the result is delivered by it |
//! | 12 | 4 | bytes of the body |
//! | 16 | … | origin 2 alone: revision of users and roles that the user goes by u64 · bytes of its name u32 · name |
//! | … | … | body: the protobuf of the request after the serving member made it deterministic (lease id drawn, TTL raised to the minimum) and free of secrets (a password is its bcrypt hash, a token the SHA-256 of its letters) |
//!
//! **Invariants.** A2: every member decodes a command to the same value, so a command that this build does not know is
//! not skipped but stops the process: skipping it would let this member's state differ from the others'.
//!
//! **Why a length**: protobuf cut at a field's end still decodes; with the length every cut is seen.
pub use crate::auth::origin::{Identity, Origin};
use crate::wire::etcdserverpb as pb;
use bytes::BufMut;
use prost::Message;
use std::fmt;
use sternpost_engine::base::codec::{Reader, Truncated};

/// Bytes before origin and body.
const HEADER_BYTES: usize = 16;
const BY_CLIENT: u8 = 0;
const BY_ROOT_INTERNAL: u8 = 1;
const BY_USER: u8 = 2;
const FORMAT_VERSION: u8 = 1;

/// What a command does. Numbers are for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// `PutRequest`.
    Put = 1,
    /// `DeleteRangeRequest`.
    DeleteRange = 2,
    /// `TxnRequest`.
    Txn = 3,
    /// `CompactionRequest`.
    Compact = 4,
    /// `LeaseGrantRequest`, id and TTL final.
    LeaseGrant = 5,
    /// `LeaseRevokeRequest`.
    LeaseRevoke = 6,
    /// [`LeaseExpiry`].
    LeaseExpire = 7,
    /// `AlarmRequest`, action ACTIVATE or DEACTIVATE.
    Alarm = 8,
    /// `Member`: id, name, client URLs; what a member says of itself once it has started.
    MemberPublish = 9,
    /// `Member`: a new one. Travels in an entry that changes the configuration.
    MemberAdd = 10,
    /// `Member`, its id alone: it is removed. As above.
    MemberRemove = 11,
    /// `Member`, its id alone: a learner becomes a voter. As above.
    MemberPromote = 12,
    /// `Member`, id and peer URLs: it has other ones.
    MemberUpdate = 13,
    /// [`MarkCommand`].
    Mark = 14,
    /// `AuthEnableRequest`.
    AuthEnable = 15,
    /// `AuthDisableRequest`.
    AuthDisable = 16,
    /// [`Authenticate`].
    Authenticate = 17,
    /// `AuthUserAddRequest`, its password as hash alone.
    UserAdd = 18,
    /// `AuthUserDeleteRequest`.
    UserDelete = 19,
    /// `AuthUserChangePasswordRequest`, its password as hash alone.
    UserChangePassword = 20,
    /// `AuthUserGrantRoleRequest`.
    UserGrantRole = 21,
    /// `AuthUserRevokeRoleRequest`.
    UserRevokeRole = 22,
    /// `AuthRoleAddRequest`.
    RoleAdd = 23,
    /// `AuthRoleDeleteRequest`.
    RoleDelete = 24,
    /// `AuthRoleGrantPermissionRequest`.
    RoleGrantPermission = 25,
    /// `AuthRoleRevokePermissionRequest`.
    RoleRevokePermission = 26,
    /// [`PrefixQuota`].
    PrefixQuota = 27,
}

/// How many keys may begin with a prefix.
#[derive(Clone, PartialEq, Message)]
pub struct PrefixQuota {
    /// It.
    #[prost(bytes = "vec", tag = "1")]
    pub prefix: Vec<u8>,
    /// At most so many; none takes the quota back.
    #[prost(uint64, optional, tag = "2")]
    pub keys_max: Option<u64>,
}

/// A user whose password was right is given a token.
#[derive(Clone, PartialEq, Message)]
pub struct Authenticate {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// SHA-256 of a simple token's letters; empty for tokens that are signed.
    #[prost(bytes = "vec", tag = "2")]
    pub letters: Vec<u8>,
}

/// Ends a lease that ran out, but only the one that was granted at `granted_index`: a lease that was revoked and
/// granted again under the same id since is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseExpiry {
    /// Its id.
    pub lease: i64,
    /// Log index of its grant.
    pub granted_index: u64,
}

/// A place to compare the members at, and what they had acknowledged by then. Body: deep u8 (0 or 1) · term u64 · count u8 · for each member id u64 · index u64.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MarkCommand {
    /// All that is retained is to be hashed too.
    pub is_deep: bool,
    /// The term of who made it, in which all of these have taken part.
    pub term: u64,
    /// Members and the last index that each is known to hold durably, at most [`MarkCommand::PROMISED_MAX`].
    pub promised: Vec<(u64, u64)>,
}

impl MarkCommand {
    /// More than a group has members.
    pub const PROMISED_MAX: usize = 255;
}

/// A command as it is applied.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the variants are the kinds")]
pub enum Command {
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    LeaseExpire(LeaseExpiry),
    Alarm(pb::AlarmRequest),
    MemberPublish(pb::Member),
    MemberAdd(pb::Member),
    MemberRemove(pb::Member),
    MemberPromote(pb::Member),
    MemberUpdate(pb::Member),
    Mark(MarkCommand),
    AuthEnable,
    AuthDisable,
    Authenticate(Authenticate),
    UserAdd(pb::AuthUserAddRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserChangePassword(pb::AuthUserChangePasswordRequest),
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    RoleAdd(pb::AuthRoleAddRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
    PrefixQuota(PrefixQuota),
}

impl Command {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Put(_) => Kind::Put,
            Self::DeleteRange(_) => Kind::DeleteRange,
            Self::Txn(_) => Kind::Txn,
            Self::Compact(_) => Kind::Compact,
            Self::LeaseGrant(_) => Kind::LeaseGrant,
            Self::LeaseRevoke(_) => Kind::LeaseRevoke,
            Self::LeaseExpire(_) => Kind::LeaseExpire,
            Self::Alarm(_) => Kind::Alarm,
            Self::MemberPublish(_) => Kind::MemberPublish,
            Self::MemberAdd(_) => Kind::MemberAdd,
            Self::MemberRemove(_) => Kind::MemberRemove,
            Self::MemberPromote(_) => Kind::MemberPromote,
            Self::MemberUpdate(_) => Kind::MemberUpdate,
            Self::Mark(_) => Kind::Mark,
            Self::Authenticate(_) => Kind::Authenticate,
            Self::UserAdd(_) => Kind::UserAdd,
            Self::UserDelete(_) => Kind::UserDelete,
            Self::UserChangePassword(_) => Kind::UserChangePassword,
            Self::UserGrantRole(_) => Kind::UserGrantRole,
            Self::UserRevokeRole(_) => Kind::UserRevokeRole,
            Self::RoleAdd(_) => Kind::RoleAdd,
            Self::RoleDelete(_) => Kind::RoleDelete,
            Self::RoleGrantPermission(_) => Kind::RoleGrantPermission,
            Self::RoleRevokePermission(_) => Kind::RoleRevokePermission,
            Self::PrefixQuota(_) => Kind::PrefixQuota,
            Self::AuthEnable => Kind::AuthEnable,
            Self::AuthDisable => Kind::AuthDisable,
        }
    }
}

/// A command with its envelope.
#[derive(Clone, PartialEq, Debug)]
pub struct Decoded {
    /// The result is delivered by it.
    pub id: u64,
    /// Who it acts for.
    pub origin: Origin,
    /// What it does.
    pub command: Command,
}

/// Why bytes are no command of this build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// They end early, or more follows than the header says.
    Length,
    /// A format version this build does not know.
    FormatVersion(u8),
    /// A kind or origin this build does not know.
    Kind(u8, u8),
    /// The body is not the kind's message.
    Body(String),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("its length is not what its header says"),
            Self::FormatVersion(version) => {
                write!(f, "it has format version {version}, this build knows {FORMAT_VERSION}")
            }
            Self::Kind(kind, origin) => write!(f, "this build does not know kind {kind} of origin {origin}"),
            Self::Body(error) => write!(f, "its body does not decode: {error}"),
        }
    }
}

impl std::error::Error for CommandError {}

impl From<Truncated> for CommandError {
    fn from(_: Truncated) -> Self {
        Self::Length
    }
}

/// Encodes a command whose body is `message`.
pub fn encode(kind: Kind, origin: Origin, id: u64, message: &impl Message) -> Vec<u8> {
    let body_bytes = message.encoded_len();
    let mut out = Vec::with_capacity(HEADER_BYTES + origin_bytes(&origin) + body_bytes);
    put_header(&mut out, kind, &origin, id, body_bytes);
    message.encode(&mut out).expect("a vector grows");
    out
}

/// Encodes a [`Kind::LeaseExpire`].
pub fn encode_lease_expiry(id: u64, expiry: LeaseExpiry) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + 16);
    put_header(&mut out, Kind::LeaseExpire, &Origin::RootInternal, id, 16);
    out.put_i64_le(expiry.lease);
    out.put_u64_le(expiry.granted_index);
    out
}

/// Encodes a [`Kind::Mark`]; of more members than fit the first.
pub fn encode_mark(id: u64, mark: &MarkCommand) -> Vec<u8> {
    let promised = &mark.promised[..mark.promised.len().min(MarkCommand::PROMISED_MAX)];
    let body_bytes = 10 + 16 * promised.len();
    let mut out = Vec::with_capacity(HEADER_BYTES + body_bytes);
    put_header(&mut out, Kind::Mark, &Origin::RootInternal, id, body_bytes);
    out.put_u8(u8::from(mark.is_deep));
    out.put_u64_le(mark.term);
    out.put_u8(promised.len() as u8);
    for (member, index) in promised {
        out.put_u64_le(*member);
        out.put_u64_le(*index);
    }
    out
}

fn decode_mark(body: &[u8]) -> Result<MarkCommand, CommandError> {
    let mut reader = Reader::new(body);
    let is_deep = match reader.u8()? {
        0 => false,
        1 => true,
        other => return Err(CommandError::Body(format!("a mark of kind {other}"))),
    };
    let term = reader.u64()?;
    let count = reader.u8()?;
    let promised =
        (0..count).map(|_| Ok((reader.u64()?, reader.u64()?))).collect::<Result<_, Truncated>>()?;
    if reader.is_empty() { Ok(MarkCommand { is_deep, term, promised }) } else { Err(CommandError::Length) }
}

/// Bytes between header and body.
fn origin_bytes(origin: &Origin) -> usize {
    match origin {
        Origin::Client | Origin::RootInternal => 0,
        Origin::User(identity) => 12 + identity.user.len(),
    }
}

fn put_header(out: &mut Vec<u8>, kind: Kind, origin: &Origin, id: u64, body_bytes: usize) {
    let length = |bytes: usize| u32::try_from(bytes).expect("requests are bounded far below 4 GiB");
    out.put_u8(FORMAT_VERSION);
    out.put_u8(kind as u8);
    out.put_u8(match origin {
        Origin::Client => BY_CLIENT,
        Origin::RootInternal => BY_ROOT_INTERNAL,
        Origin::User(_) => BY_USER,
    });
    out.put_u8(0);
    out.put_u64_le(id);
    out.put_u32_le(length(body_bytes));
    if let Origin::User(identity) = origin {
        out.put_u64_le(identity.revision);
        out.put_u32_le(length(identity.user.len()));
        out.put_slice(identity.user.as_bytes());
    }
}

/// The id of a command, without looking at the rest.
pub fn id(command: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(command.get(4..12)?.try_into().ok()?))
}

/// The kind of a command, without looking at the rest.
pub fn kind(command: &[u8]) -> Option<u8> {
    command.get(1).copied()
}

/// Decodes a command.
pub fn decode(bytes: &[u8]) -> Result<Decoded, CommandError> {
    let mut reader = Reader::new(bytes);
    let version = reader.u8()?;
    if version != FORMAT_VERSION {
        return Err(CommandError::FormatVersion(version));
    }
    let kind = reader.u8()?;
    let origin = reader.u8()?;
    let reserved = reader.u8()?;
    let id = reader.u64()?;
    let body_bytes = reader.u32()?;
    let by = match origin {
        _ if reserved != 0 => return Err(CommandError::Kind(kind, origin)),
        BY_CLIENT => Origin::Client,
        BY_ROOT_INTERNAL => Origin::RootInternal,
        BY_USER => {
            let revision = reader.u64()?;
            let user = std::str::from_utf8(reader.bytes()?);
            Origin::User(Identity {
                user: user.map_err(|_| CommandError::Kind(kind, origin))?.into(),
                revision,
            })
        }
        _ => return Err(CommandError::Kind(kind, origin)),
    };
    let body = reader.rest();
    if u32::try_from(body.len()) != Ok(body_bytes) {
        return Err(CommandError::Length);
    }
    let command = match kind {
        1 => Command::Put(message(body)?),
        2 => Command::DeleteRange(message(body)?),
        3 => Command::Txn(message(body)?),
        4 => Command::Compact(message(body)?),
        5 => Command::LeaseGrant(message(body)?),
        6 => Command::LeaseRevoke(message(body)?),
        7 => {
            let mut reader = Reader::new(body);
            let expiry = LeaseExpiry { lease: reader.i64()?, granted_index: reader.u64()? };
            if !reader.is_empty() {
                return Err(CommandError::Length);
            }
            Command::LeaseExpire(expiry)
        }
        8 => Command::Alarm(message(body)?),
        9 => Command::MemberPublish(message(body)?),
        10 => Command::MemberAdd(message(body)?),
        11 => Command::MemberRemove(message(body)?),
        12 => Command::MemberPromote(message(body)?),
        13 => Command::MemberUpdate(message(body)?),
        14 => Command::Mark(decode_mark(body)?),
        15 => message::<pb::AuthEnableRequest>(body).map(|_| Command::AuthEnable)?,
        16 => message::<pb::AuthDisableRequest>(body).map(|_| Command::AuthDisable)?,
        17 => Command::Authenticate(message(body)?),
        18 => Command::UserAdd(message(body)?),
        19 => Command::UserDelete(message(body)?),
        20 => Command::UserChangePassword(message(body)?),
        21 => Command::UserGrantRole(message(body)?),
        22 => Command::UserRevokeRole(message(body)?),
        23 => Command::RoleAdd(message(body)?),
        24 => Command::RoleDelete(message(body)?),
        25 => Command::RoleGrantPermission(message(body)?),
        26 => Command::RoleRevokePermission(message(body)?),
        27 => Command::PrefixQuota(message(body)?),
        _ => return Err(CommandError::Kind(kind, origin)),
    };
    Ok(Decoded { id, origin: by, command })
}

fn message<M: Message + Default>(body: &[u8]) -> Result<M, CommandError> {
    M::decode(body).map_err(|error| CommandError::Body(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn examples() -> Vec<(Vec<u8>, Command)> {
        let put = pb::PutRequest {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
            ..Default::default()
        };
        let delete = pb::DeleteRangeRequest { key: Bytes::from_static(b"k"), ..Default::default() };
        let request = pb::request_op::Request::RequestPut(put.clone());
        let txn =
            pb::TxnRequest { success: vec![pb::RequestOp { request: Some(request) }], ..Default::default() };
        let compact = pb::CompactionRequest { revision: 7, physical: true };
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 9 };
        let revoke = pb::LeaseRevokeRequest { id: 9 };
        let alarm = pb::AlarmRequest { action: 1, member_id: 3, alarm: 1 };
        let member = pb::Member { id: 3, name: "a".to_owned(), ..Default::default() };
        let expiry = LeaseExpiry { lease: -9, granted_index: 12 };
        let client = || Origin::Client;
        let plain = MarkCommand::default();
        let deep = MarkCommand { is_deep: true, term: 7, promised: vec![(3, 9), (u64::MAX, 1)] };
        let user_add = pb::AuthUserAddRequest {
            name: "a".to_owned(),
            hashed_password: "aGFzaA==".to_owned(),
            ..Default::default()
        };
        let authenticate = Authenticate { name: "a".to_owned(), letters: vec![7; 32] };
        let auth = vec![
            (encode(Kind::AuthEnable, by_user(), 42, &pb::AuthEnableRequest {}), Command::AuthEnable),
            (encode(Kind::UserAdd, by_user(), 42, &user_add), Command::UserAdd(user_add)),
            (encode(Kind::Authenticate, client(), 42, &authenticate), Command::Authenticate(authenticate)),
        ];
        let others = vec![
            (encode(Kind::Put, client(), 42, &put), Command::Put(put)),
            (encode(Kind::DeleteRange, client(), 42, &delete), Command::DeleteRange(delete)),
            (encode(Kind::Txn, client(), 42, &txn), Command::Txn(txn)),
            (encode(Kind::Compact, client(), 42, &compact), Command::Compact(compact)),
            (encode(Kind::LeaseGrant, client(), 42, &grant), Command::LeaseGrant(grant)),
            (encode(Kind::LeaseRevoke, client(), 42, &revoke), Command::LeaseRevoke(revoke)),
            (encode_lease_expiry(42, expiry), Command::LeaseExpire(expiry)),
            (encode_mark(42, &plain), Command::Mark(plain)),
            (encode_mark(42, &deep), Command::Mark(deep)),
            (encode(Kind::Alarm, client(), 42, &alarm), Command::Alarm(alarm)),
            (encode(Kind::MemberPublish, Origin::RootInternal, 42, &member), Command::MemberPublish(member)),
        ];
        [others, auth].concat()
    }

    fn by_user() -> Origin {
        Origin::User(Identity { user: "ü".into(), revision: 9 })
    }

    #[test]
    fn every_kind_comes_back_and_every_truncation_is_refused() {
        for (bytes, command) in examples() {
            let decoded = decode(&bytes).unwrap();
            assert_eq!((decoded.id, decoded.command), (42, command));
            assert_eq!(id(&bytes), Some(42));
            for cut in 0..bytes.len() {
                assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            let mut longer = bytes;
            longer.push(0);
            assert_eq!(decode(&longer), Err(CommandError::Length));
        }
    }

    #[test]
    fn what_a_later_build_wrote_is_named_not_guessed() {
        let (bytes, _) = examples().remove(0);
        let with = |offset: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[offset] = value;
            decode(&bytes)
        };
        assert_eq!(with(0, 2), Err(CommandError::FormatVersion(2)));
        assert_eq!(with(1, 200), Err(CommandError::Kind(200, 0)));
        assert_eq!(with(2, 3), Err(CommandError::Kind(1, 3)));
        assert_eq!(with(3, 1), Err(CommandError::Kind(1, 0)));
    }

    #[test]
    fn the_layout_is_as_documented() {
        let bytes = encode(Kind::LeaseRevoke, Origin::Client, 0x0102, &pb::LeaseRevokeRequest { id: 1 });
        assert_eq!(bytes, [1, 6, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 8, 1]);
        let bytes = encode(Kind::LeaseRevoke, by_user(), 0x0102, &pb::LeaseRevokeRequest { id: 1 });
        assert_eq!(bytes[..16], [1, 6, 2, 0, 2, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[16..], [9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0xC3, 0xBC, 8, 1]);
        assert_eq!(decode(&bytes).unwrap().origin, by_user());
    }
}
