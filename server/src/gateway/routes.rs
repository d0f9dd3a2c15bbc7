//! Which path is which method: etcd's table, from `google.api.http` in its proto files.
//!
//! **Data.** [`ROUTES`] has a row for each path, older names among them. All are POST, and the body is the request. `RangeStream` has no
//! path, as in etcd.
use prost_reflect::{DescriptorPool, MessageDescriptor};
use std::collections::HashMap;
use std::sync::OnceLock;

/// Paths and methods.
pub const ROUTES: &[(&str, &str)] = &[
    ("/v3/kv/range", "etcdserverpb.KV/Range"),
    ("/v3/kv/put", "etcdserverpb.KV/Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV/Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV/Compact"),
    ("/v3/watch", "etcdserverpb.Watch/Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("/v3/cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("/v3/cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("/v3/maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("/v3/maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("/v3/maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("/v3/auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth/UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("/v3/auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("/v3/auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("/v3/lock/lock", "v3lockpb.Lock/Lock"),
    ("/v3/lock/unlock", "v3lockpb.Lock/Unlock"),
    ("/v3/election/campaign", "v3electionpb.Election/Campaign"),
    ("/v3/election/proclaim", "v3electionpb.Election/Proclaim"),
    ("/v3/election/leader", "v3electionpb.Election/Leader"),
    ("/v3/election/observe", "v3electionpb.Election/Observe"),
    ("/v3/election/resign", "v3electionpb.Election/Resign"),
];

/// A method that a path leads to.
#[derive(Debug)]
pub struct Route {
    /// Its path in gRPC.
    pub grpc_path: String,
    /// What it is asked with.
    pub input: MessageDescriptor,
    /// What it answers with.
    pub output: MessageDescriptor,
    /// It takes requests until there are no more.
    pub has_many_requests: bool,
    /// It answers until there is no more to say.
    pub has_many_answers: bool,
}

/// All messages and services of the wire.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let set: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors"));
        DescriptorPool::decode(set).expect("build.rs wrote them")
    })
}

/// The routes by path.
pub fn routes() -> &'static HashMap<&'static str, Route> {
    static BY_PATH: OnceLock<HashMap<&'static str, Route>> = OnceLock::new();
    BY_PATH.get_or_init(|| ROUTES.iter().map(|(path, method)| (*path, route(method))).collect())
}

fn route(name: &str) -> Route {
    let method = name.split_once('/').and_then(|(service, name)| {
        let service = descriptors().get_service_by_name(service)?;
        service.methods().find(|method| method.name() == name)
    });
    let method = method.unwrap_or_else(|| panic!("{name} is not in the proto files"));
    Route {
        grpc_path: format!("/{name}"),
        input: method.input(),
        output: method.output(),
        has_many_requests: method.is_client_streaming(),
        has_many_answers: method.is_server_streaming(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::{METHODS, MethodKind};
    use std::collections::BTreeSet;

    #[test]
    fn every_method_of_etcds_has_a_route_but_range_stream() {
        let routed: BTreeSet<String> = routes().values().map(|route| route.grpc_path.clone()).collect();
        assert_eq!(routes().len(), ROUTES.len(), "no path twice");
        for (service, methods) in METHODS {
            for (method, kind) in *methods {
                let path = format!("/{service}/{method}");
                let is_etcds = !service.starts_with("sternpostpb") && !service.starts_with("grpc.");
                assert_eq!(routed.contains(&path), is_etcds && *method != "RangeStream", "{path}");
                if let Some(route) = routes().values().find(|route| route.grpc_path == path) {
                    let is = (route.has_many_requests, route.has_many_answers);
                    let expected = match kind {
                        MethodKind::Unary => (false, false),
                        MethodKind::ServerStream => (false, true),
                        MethodKind::BidiStream => (true, true),
                    };
                    assert_eq!(is, expected, "{path}");
                }
            }
        }
    }
}
