//! The header of every answer: who answers, at which revision, in which term.
//!
//! **Contract.** [`HeaderSource`] is cheap to clone and to call; every service holds one. Which revision belongs into which
//! answer is the caller's knowledge (table in `docs/compatibility.md`).
use crate::apply::AppliedView;
use crate::wire::etcdserverpb::ResponseHeader;
use std::sync::Arc;
use sternpost_engine::mvcc::Store;

/// Makes headers.
#[derive(Clone)]
pub struct HeaderSource {
    cluster_id: u64,
    member_id: u64,
    store: Store,
    view: Arc<AppliedView>,
}

impl HeaderSource {
    /// Headers of member `member_id` in cluster `cluster_id`.
    pub fn new(cluster_id: u64, member_id: u64, store: Store, view: Arc<AppliedView>) -> Self {
        Self { cluster_id, member_id, store, view }
    }

    /// The cluster that is served.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The member that answers.
    pub fn member_id(&self) -> u64 {
        self.member_id
    }

    /// A header that says `revision`.
    pub fn at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.view.term(),
        }
    }

    /// A header that says the store's current revision.
    pub fn current(&self) -> ResponseHeader {
        self.at(self.store.revision())
    }

    /// A header without a revision, as the cluster service answers.
    pub fn without_revision(&self) -> ResponseHeader {
        self.at(0)
    }
}
