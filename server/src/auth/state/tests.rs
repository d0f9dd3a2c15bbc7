//! Changes one by one; what etcd says to each is in `server/tests/api`.
use super::*;
use crate::auth::check::Access;
use crate::auth::origin::{Identity, Origin};

fn user_add(name: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.to_owned(), ..Default::default() }
}

fn grant(
    role: &str,
    key: &'static str,
    range_end: &'static str,
    kind: Type,
) -> pb::AuthRoleGrantPermissionRequest {
    let perm = Permission { perm_type: kind.into(), key: key.into(), range_end: range_end.into() };
    pb::AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(perm) }
}

/// Root, and "eve" with the role "some", which reads [a, b).
fn state() -> AuthState {
    let mut state = AuthState::default();
    state.user_add(user_add(ROOT)).unwrap();
    state.user_grant_role(ROOT.into(), ROOT.into()).unwrap();
    state.user_add(user_add("eve")).unwrap();
    state.role_add("some".into()).unwrap();
    state.role_grant_permission(grant("some", "a", "b", Type::Read)).unwrap();
    state.user_grant_role("eve".into(), "some".into()).unwrap();
    state.enable().unwrap();
    state
}

fn origin(state: &AuthState, user: &str) -> Origin {
    Origin::User(Identity { user: user.into(), revision: state.revision() })
}

fn may(state: &AuthState, user: &str, access: Access, key: &str) -> bool {
    state.check_range(&origin(state, user), access, key.as_bytes(), b"").is_ok()
}

#[test]
fn what_a_user_may_follows_its_roles() {
    let mut state = state();
    assert!(may(&state, "eve", Access::Read, "a1") && !may(&state, "eve", Access::Write, "a1"));
    state.role_grant_permission(grant("some", "a1", "", Type::Write)).unwrap();
    assert!(may(&state, "eve", Access::Write, "a1") && !may(&state, "eve", Access::Write, "a2"));
    state.user_revoke_role("eve".into(), "some").unwrap();
    assert!(!may(&state, "eve", Access::Read, "a1"));
    state.user_grant_role("eve".into(), "some".into()).unwrap();
    state.role_delete("some".into()).unwrap();
    assert!(!may(&state, "eve", Access::Read, "a1"));
    assert!(state.user("eve").unwrap().record.roles.is_empty());
    assert!(may(&state, ROOT, Access::Write, "zzz"));
    assert!(!may(&state, "nobody", Access::Read, "a1"));
}

#[test]
fn the_revision_counts_changes_and_an_older_one_is_refused() {
    let mut state = state();
    let (before, eve) = (state.revision(), origin(&state, "eve"));
    assert_eq!(before, 7, "one to begin with, six changes; switching on is none");
    assert_eq!(state.user_grant_role("eve".into(), "some".into()), Ok(vec![]), "no change");
    assert_eq!(state.role_add("some".into()), Err(ApiError::RoleAlreadyExist));
    assert_eq!(state.revision(), before);
    state.role_add("other".into()).unwrap();
    assert_eq!(state.check_range(&eve, Access::Read, b"a", b""), Err(ApiError::AuthOldRevision));
    let signed = Origin::User(Identity { user: "eve".into(), revision: 0 });
    assert_eq!(state.check_range(&signed, Access::Read, b"a", b""), Err(ApiError::UserEmpty));
    state.disable().unwrap();
    assert_eq!(state.revision(), before + 2);
    assert_eq!(state.disable(), Ok(vec![]));
    assert_eq!(state.check_range(&eve, Access::Write, b"z", b""), Ok(()), "it is off");
}

#[test]
fn a_copy_shares_users_and_is_not_changed_with_the_original() {
    let mut state = state();
    let published = state.clone();
    state.role_grant_permission(grant("some", "x", "\0", Type::Readwrite)).unwrap();
    assert!(!may(&published, "eve", Access::Read, "x"));
    assert!(may(&state, "eve", Access::Read, "x"));
    assert!(Arc::ptr_eq(&state.users[ROOT], &published.users[ROOT]), "root is not copied");
}

/// etcd looks only at the first permission that begins with the key.
#[test]
fn a_permission_behind_another_with_its_key_is_added_again() {
    let mut state = state();
    state.role_grant_permission(grant("some", "a", "c", Type::Read)).unwrap();
    state.role_grant_permission(grant("some", "a", "c", Type::Write)).unwrap();
    let ends = |state: &AuthState| -> Vec<Bytes> {
        state.role("some").unwrap().key_permission.iter().map(|it| it.range_end.clone()).collect()
    };
    assert_eq!(ends(&state), ["b", "c", "c"]);
    state.role_grant_permission(grant("some", "a", "b", Type::Readwrite)).unwrap();
    assert_eq!(ends(&state), ["b", "c", "c"]);
    let revoke =
        pb::AuthRoleRevokePermissionRequest { role: "some".into(), key: "a".into(), range_end: "c".into() };
    state.role_revoke_permission(revoke).unwrap();
    assert_eq!(ends(&state), ["b"]);
    assert!(may(&state, "eve", Access::Write, "a5"));
}

#[test]
fn what_is_stored_makes_the_same_state() {
    let state = state();
    let users = state.users.values().map(|user| user.record.clone()).collect();
    let roles = state.roles.values().map(|role| (**role).clone()).collect();
    assert_eq!(AuthState::new(true, state.revision(), users, roles), Some(state));
    let bad = User { name: vec![0xff].into(), ..User::default() };
    assert_eq!(AuthState::new(true, 1, vec![bad], vec![]), None);
}

#[test]
fn internal_commands_have_roots_rights_and_nobody_has_none() {
    let state = state();
    assert_eq!(state.check_root(&Origin::RootInternal), Ok(()));
    assert_eq!(state.check_range(&Origin::RootInternal, Access::Write, b"z", b"\0"), Ok(()));
    assert_eq!(state.check_root(&Origin::Client), Err(ApiError::UserEmpty));
    assert_eq!(state.check_user(&Origin::Client), Err(ApiError::UserEmpty));
    assert_eq!(state.check_root(&origin(&state, "eve")), Err(ApiError::PermissionDenied));
    assert_eq!(state.check_root(&origin(&state, "nobody")), Err(ApiError::UserNotFound));
    // A certificate without a name.
    assert_eq!(state.check_root(&origin(&state, "")), Err(ApiError::UserEmpty));
    assert_eq!(
        state.check_range(&origin(&state, ""), Access::Read, b"a", b""),
        Err(ApiError::PermissionDenied)
    );
}
