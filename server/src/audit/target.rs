//! What a request is about: keys, ranges, names and numbers, never values, passwords or tokens.
//!
//! **Contract.** Only fields that are named here are read. A method that is not named says nothing of itself but its name.
use super::fields::{bytes, messages, number};

/// Most targets that are named of one request.
pub const TARGETS_MAX: usize = 8;
/// Nested transactions are looked into so far; etcd's bounds let none be deeper than that has operations.
const DEPTH_MAX: usize = 32;

/// One of them. Empty is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Target<'a> {
    /// What is done.
    pub what: &'static str,
    /// First key, or the only one.
    pub key: &'a [u8],
    /// As in etcd's requests; empty for one key.
    pub range_end: &'a [u8],
    /// Of a user, a role, a lock, a backup.
    pub name: &'a [u8],
    /// Of a role that is given or taken.
    pub role: &'a [u8],
    /// A lease, a member or a revision.
    pub number: u64,
}

/// All of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Targets<'a> {
    /// The first of them.
    pub named: Vec<Target<'a>>,
    /// How many more there are.
    pub left_out: usize,
}

impl<'a> Targets<'a> {
    fn add(&mut self, target: Target<'a>) {
        if self.named.len() < TARGETS_MAX {
            self.named.push(target);
        } else {
            self.left_out += 1;
        }
    }

    fn range(&mut self, what: &'static str, message: &'a [u8], key: u32, end: u32) {
        let (key, range_end) = (bytes(message, key), bytes(message, end));
        self.add(Target { what, key, range_end, ..Target::default() });
    }

    fn txn(&mut self, message: &'a [u8], depth: usize) {
        for compare in messages(message, 1) {
            self.range("compare", compare, 3, 64);
        }
        for operation in messages(message, 2).chain(messages(message, 3)) {
            for range in messages(operation, 1) {
                self.range("range", range, 1, 2);
            }
            for put in messages(operation, 2) {
                self.add(Target { what: "put", key: bytes(put, 1), ..Target::default() });
            }
            for delete in messages(operation, 3) {
                self.range("delete", delete, 1, 2);
            }
            for nested in messages(operation, 4).filter(|_| depth > 0) {
                self.txn(nested, depth - 1);
            }
        }
    }

    fn name(&mut self, what: &'static str, name: &'a [u8]) {
        self.add(Target { what, name, ..Target::default() });
    }

    fn number(&mut self, what: &'static str, number: u64) {
        self.add(Target { what, number, ..Target::default() });
    }
}

/// What a request to this path is about, by its message.
pub fn targets<'a>(path: &str, message: &'a [u8]) -> Targets<'a> {
    let mut targets = Targets::default();
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return targets;
    };
    match (service, method) {
        ("etcdserverpb.KV", "Range" | "RangeStream") => targets.range("range", message, 1, 2),
        ("etcdserverpb.KV", "Put") => {
            targets.add(Target { what: "put", key: bytes(message, 1), ..Target::default() });
        }
        ("etcdserverpb.KV", "DeleteRange") => targets.range("delete", message, 1, 2),
        ("etcdserverpb.KV", "Txn") => targets.txn(message, DEPTH_MAX),
        ("etcdserverpb.KV", "Compact") => targets.number("revision", number(message, 1)),
        ("etcdserverpb.Lease", "LeaseGrant") => targets.number("lease", number(message, 2)),
        ("etcdserverpb.Lease", "LeaseRevoke" | "LeaseTimeToLive") => {
            targets.number("lease", number(message, 1));
        }
        ("etcdserverpb.Cluster", "MemberAdd") => {
            messages(message, 1).for_each(|url| targets.name("peer-url", url));
        }
        ("etcdserverpb.Cluster", "MemberRemove" | "MemberUpdate" | "MemberPromote")
        | ("etcdserverpb.Maintenance", "MoveLeader") => targets.number("member", number(message, 1)),
        ("etcdserverpb.Maintenance", "Alarm") => targets.number("member", number(message, 2)),
        ("etcdserverpb.Maintenance", "HashKV") => targets.number("revision", number(message, 1)),
        (
            "etcdserverpb.Auth",
            "Authenticate" | "UserAdd" | "UserGet" | "UserDelete" | "UserChangePassword",
        ) => targets.name("user", bytes(message, 1)),
        ("etcdserverpb.Auth", "UserGrantRole" | "UserRevokeRole") => {
            let (name, role) = (bytes(message, 1), bytes(message, 2));
            targets.add(Target { what: "user", name, role, ..Target::default() });
        }
        ("etcdserverpb.Auth", "RoleAdd" | "RoleGet" | "RoleDelete") => {
            targets.name("role", bytes(message, 1));
        }
        ("etcdserverpb.Auth", "RoleGrantPermission") => {
            let permission = bytes(message, 2);
            let (key, range_end) = (bytes(permission, 2), bytes(permission, 3));
            targets.add(Target {
                what: "role",
                name: bytes(message, 1),
                key,
                range_end,
                ..Target::default()
            });
        }
        ("etcdserverpb.Auth", "RoleRevokePermission") => {
            let (key, range_end) = (bytes(message, 2), bytes(message, 3));
            targets.add(Target {
                what: "role",
                name: bytes(message, 1),
                key,
                range_end,
                ..Target::default()
            });
        }
        ("v3lockpb.Lock", "Lock") | ("v3electionpb.Election", "Campaign" | "Leader" | "Observe") => {
            targets.add(Target { what: "below", key: bytes(message, 1), ..Target::default() });
        }
        ("v3lockpb.Lock", "Unlock") => {
            targets.add(Target { what: "delete", key: bytes(message, 1), ..Target::default() });
        }
        ("v3electionpb.Election", "Proclaim" | "Resign") => {
            let key = bytes(bytes(message, 1), 2);
            targets.add(Target { what: "below", key, ..Target::default() });
        }
        ("sternpostpb.Usage", "SetPrefixQuota") => {
            targets.add(Target { what: "below", key: bytes(message, 1), ..Target::default() });
        }
        ("sternpostpb.Backups", "Create") => targets.name("backup", bytes(message, 1)),
        _ => {}
    }
    targets
}

/// The first key that a request to a path is about, if it is about keys: for who only counts.
pub fn first_key<'a>(path: &str, message: &'a [u8]) -> &'a [u8] {
    let of_operation = |operation: &'a [u8]| {
        (1..=3).map(|kind| bytes(bytes(operation, kind), 1)).find(|key| !key.is_empty()).unwrap_or_default()
    };
    match path {
        "/etcdserverpb.KV/Range"
        | "/etcdserverpb.KV/RangeStream"
        | "/etcdserverpb.KV/Put"
        | "/etcdserverpb.KV/DeleteRange"
        | "/v3lockpb.Lock/Lock" => bytes(message, 1),
        "/etcdserverpb.KV/Txn" => {
            let mut operations = messages(message, 2).chain(messages(message, 3));
            let key = operations.next().map(of_operation).unwrap_or_default();
            let compared =
                || messages(message, 1).next().map(|compare| bytes(compare, 3)).unwrap_or_default();
            if key.is_empty() { compared() } else { key }
        }
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcdserverpb as pb;
    use pb::request_op::Request as Op;
    use prost::Message;

    fn op(request: Op) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    #[test]
    fn a_transaction_names_what_it_compares_and_does_on_both_branches_up_to_a_bound() {
        let put = |key: &str| {
            op(Op::RequestPut(pb::PutRequest {
                key: key.to_owned().into(),
                value: "secret".into(),
                ..Default::default()
            }))
        };
        let delete = pb::DeleteRangeRequest { key: "d".into(), range_end: "e".into(), ..Default::default() };
        let nested = pb::TxnRequest { success: vec![put("nested")], ..Default::default() };
        let txn = pb::TxnRequest {
            compare: vec![pb::Compare { key: "c".into(), ..Default::default() }],
            success: vec![put("p"), op(Op::RequestTxn(nested))],
            failure: vec![op(Op::RequestDeleteRange(delete)), put("f")],
        };
        let encoded = txn.encode_to_vec();
        let found = targets("/etcdserverpb.KV/Txn", &encoded);
        let named: Vec<_> = found.named.iter().map(|one| (one.what, one.key, one.range_end)).collect();
        let expected: [(&str, &[u8], &[u8]); 5] = [
            ("compare", b"c", b""),
            ("put", b"p", b""),
            ("put", b"nested", b""),
            ("delete", b"d", b"e"),
            ("put", b"f", b""),
        ];
        assert_eq!((&named[..], found.left_out), (&expected[..], 0));
        assert_eq!(first_key("/etcdserverpb.KV/Txn", &encoded), b"p");
        let many = pb::TxnRequest { success: (0..20).map(|_| put("k")).collect(), ..Default::default() };
        let encoded = many.encode_to_vec();
        let found = targets("/etcdserverpb.KV/Txn", &encoded);
        assert_eq!((found.named.len(), found.left_out), (TARGETS_MAX, 12));
    }

    #[test]
    fn no_secret_is_a_target() {
        let secret = "a secret of somebody";
        let add = pb::AuthUserAddRequest {
            name: "alice".into(),
            password: secret.into(),
            hashed_password: secret.into(),
            ..Default::default()
        };
        let authenticate = pb::AuthenticateRequest { name: "alice".into(), password: secret.into() };
        let change = pb::AuthUserChangePasswordRequest {
            name: "alice".into(),
            password: secret.into(),
            hashed_password: secret.into(),
        };
        let put = pb::PutRequest { key: "alice".into(), value: secret.into(), ..Default::default() };
        for (path, message) in [
            ("/etcdserverpb.Auth/UserAdd", add.encode_to_vec()),
            ("/etcdserverpb.Auth/Authenticate", authenticate.encode_to_vec()),
            ("/etcdserverpb.Auth/UserChangePassword", change.encode_to_vec()),
            ("/etcdserverpb.KV/Put", put.encode_to_vec()),
        ] {
            let text = format!("{:?}", targets(path, &message));
            assert_eq!(targets(path, &message).named.len(), 1, "{path}");
            assert!(!text.contains(&format!("{:?}", secret.as_bytes())), "{path}: {text}");
        }
    }
}
