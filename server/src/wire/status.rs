//! The one table from an error to etcd's gRPC code and text.
//!
//! **Contract.** Both columns are protocol: clients map an error by its text and decide retries by its code. A row is what
//! is seen on the wire, so where etcd loses its own code (overload, not enough started members) the row says `Unknown`.
//!
//! **Source**: etcd 3.7.3 `api/v3rpc/rpctypes/error.go` and `server/etcdserver/api/v3rpc/util.go`.
use std::borrow::Cow;
use std::fmt;
use sternpost_engine::OperationError;
use tonic::{Code, Status};

macro_rules! error_table {
    ($($name:ident $code:ident $text:literal)*) => {
        /// Why a request was refused, by the names of etcd's table.
        #[derive(Clone, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "the texts of the table say it")]
        pub enum ApiError {
            $($name,)*
            /// A change of the members that could not be proposed now; never on the wire: it is tried again.
            ChangeRefused,
            /// Something this build does not do; says what to do instead.
            Unimplemented(&'static str),
            /// Something on this member's disk could not be read or does not verify; says what.
            Unreadable(String),
            /// The change was made; a value that its answer should hold could not be read. Says which.
            Unanswered(String),
            /// An error outside etcd's table.
            Other(Code, Cow<'static, str>),
        }

        impl ApiError {
            /// Every row of the table, for tests and documents.
            pub const TABLE: &[ApiError] = &[$(ApiError::$name,)*];

            /// Code and text on the wire.
            pub fn code_and_text(&self) -> (Code, &str) {
                match self {
                    $(Self::$name => (Code::$code, $text),)*
                    Self::ChangeRefused => (Code::Aborted, "another change of the members is under way"),
                    Self::Unimplemented(text) => (Code::Unimplemented, text),
                    Self::Unreadable(text) | Self::Unanswered(text) => (Code::DataLoss, text),
                    Self::Other(code, text) => (*code, text),
                }
            }
        }
    };
}

error_table! {
    EmptyKey InvalidArgument "etcdserver: key is not provided"
    KeyNotFound InvalidArgument "etcdserver: key not found"
    ValueProvided InvalidArgument "etcdserver: value is provided"
    LeaseProvided InvalidArgument "etcdserver: lease is provided"
    TooManyOps InvalidArgument "etcdserver: too many operations in txn request"
    DuplicateKey InvalidArgument "etcdserver: duplicate key given in txn request"
    InvalidClientApiVersion InvalidArgument "etcdserver: invalid client api version"
    InvalidSortOption InvalidArgument "etcdserver: invalid sort option"
    Compacted OutOfRange "etcdserver: mvcc: required revision has been compacted"
    FutureRevision OutOfRange "etcdserver: mvcc: required revision is a future revision"
    NoSpace ResourceExhausted "etcdserver: mvcc: database space exceeded"
    LeaseNotFound NotFound "etcdserver: requested lease not found"
    LeaseExists FailedPrecondition "etcdserver: lease already exists"
    LeaseTtlTooLarge OutOfRange "etcdserver: too large lease TTL"
    WatchCanceled Cancelled "etcdserver: watch canceled"
    MemberExists FailedPrecondition "etcdserver: member ID already exist"
    PeerUrlExists FailedPrecondition "etcdserver: Peer URLs already exists"
    MemberNotEnoughStarted Unknown "etcdserver: re-configuration failed due to not enough started members"
    MemberBadUrls InvalidArgument "etcdserver: given member URLs are invalid"
    MemberNotFound NotFound "etcdserver: member not found"
    MemberNotLearner FailedPrecondition "etcdserver: can only promote a learner member"
    LearnerNotReady FailedPrecondition
        "etcdserver: can only promote a learner member which is in sync with leader"
    TooManyLearners FailedPrecondition "etcdserver: too many learner members in cluster"
    ClusterIdMismatch FailedPrecondition "etcdserver: cluster ID mismatch"
    RequestTooLarge InvalidArgument "etcdserver: request is too large"
    TooManyRequests Unknown "etcdserver: too many requests"
    RootUserNotExist FailedPrecondition "etcdserver: root user does not exist"
    RootRoleNotExist FailedPrecondition "etcdserver: root user does not have root role"
    UserAlreadyExist FailedPrecondition "etcdserver: user name already exists"
    UserEmpty InvalidArgument "etcdserver: user name is empty"
    UserNotFound FailedPrecondition "etcdserver: user name not found"
    RoleAlreadyExist FailedPrecondition "etcdserver: role name already exists"
    RoleNotFound FailedPrecondition "etcdserver: role name not found"
    RoleEmpty InvalidArgument "etcdserver: role name is empty"
    AuthFailed InvalidArgument "etcdserver: authentication failed, invalid user ID or password"
    NoPasswordUser Unknown "auth: authentication failed, password was given for no password user"
    PasswordTooLong Unknown "bcrypt: password length exceeds 72 bytes"
    VerifyOnlyKey Unknown "auth: token signing attempted with verify-only key"
    PermissionNotGiven InvalidArgument "etcdserver: permission not given"
    PermissionDenied PermissionDenied "etcdserver: permission denied"
    RoleNotGranted FailedPrecondition "etcdserver: role is not granted to the user"
    PermissionNotGranted FailedPrecondition "etcdserver: permission is not granted to the role"
    AuthNotEnabled FailedPrecondition "etcdserver: authentication is not enabled"
    InvalidAuthToken Unauthenticated "etcdserver: invalid auth token"
    InvalidAuthManagement InvalidArgument "etcdserver: invalid auth management"
    AuthOldRevision InvalidArgument "etcdserver: revision of auth store is old"
    NoLeader Unavailable "etcdserver: no leader"
    NotLeader FailedPrecondition "etcdserver: not leader"
    LeaderChanged Unavailable "etcdserver: leader changed"
    NotCapable FailedPrecondition "etcdserver: not capable"
    Stopped Unavailable "etcdserver: server stopped"
    Timeout Unavailable "etcdserver: request timed out"
    TimeoutLeaderFail Unavailable "etcdserver: request timed out, possibly due to previous leader failure"
    TimeoutConnectionLost Unavailable "etcdserver: request timed out, possibly due to connection lost"
    TimeoutWaitAppliedIndex Unavailable
        "etcdserver: request timed out, waiting for the applied index took too long"
    TimeoutLeaderTransfer Unknown "etcdserver: request timed out, leader transfer took too long"
    Unhealthy Unavailable "etcdserver: unhealthy cluster"
    Corrupt DataLoss "etcdserver: corrupt cluster"
    NotSupportedForLearner FailedPrecondition "etcdserver: rpc not supported for learner"
    BadLeaderTransferee FailedPrecondition "etcdserver: bad leader transferee"
    WrongDowngradeVersionFormat InvalidArgument "etcdserver: wrong downgrade target version format"
    InvalidDowngradeTargetVersion InvalidArgument "etcdserver: invalid downgrade target version"
    ClusterVersionUnavailable FailedPrecondition "etcdserver: cluster version not found during downgrade"
    DowngradeInProcess FailedPrecondition "etcdserver: cluster has a downgrade job in progress"
    NoInflightDowngrade FailedPrecondition "etcdserver: no inflight downgrade job"
    Canceled Cancelled "etcdserver: request canceled"
    DeadlineExceeded DeadlineExceeded "etcdserver: context deadline exceeded"
    RangeStreamSort Unimplemented "RangeStream does not support custom sort orders"
    RangeStreamFilter Unimplemented "RangeStream does not support revision filters"
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code_and_text().1)
    }
}

impl std::error::Error for ApiError {}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let (code, text) = error.code_and_text();
        Status::new(code, text)
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::EmptyKey => Self::EmptyKey,
            OperationError::KeyNotFound => Self::KeyNotFound,
            OperationError::LeaseNotFound => Self::LeaseNotFound,
            OperationError::DuplicateKey => Self::DuplicateKey,
            OperationError::Compacted(_) => Self::Compacted,
            OperationError::FutureRevision(_) => Self::FutureRevision,
            OperationError::Unreadable(what) => Self::Unreadable(what.error().to_string()),
            made @ OperationError::Unanswered(_) => Self::Unanswered(made.to_string()),
            other => Self::Other(Code::Unknown, other.to_string().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_because_clients_tell_errors_apart_by_them() {
        let mut texts: Vec<_> = ApiError::TABLE.iter().map(|error| error.to_string()).collect();
        texts.sort();
        let count = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }

    #[test]
    fn overload_loses_its_code_as_in_etcd() {
        let status = Status::from(ApiError::TooManyRequests);
        assert_eq!((status.code(), status.message()), (Code::Unknown, "etcdserver: too many requests"));
    }

    #[test]
    fn a_compacted_revision_is_out_of_range() {
        let status = Status::from(ApiError::from(OperationError::Compacted(7)));
        let text = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!((status.code(), status.message()), (Code::OutOfRange, text));
    }
}
