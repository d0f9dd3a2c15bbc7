//! Locks and elections: what etcd's services of these names do with keys, leases and watches.
//!
//! **Data.** Who wants the lock or the office `name` has one key, `name/` and its lease in hexadecimal. Whose key was created first has it; the others
//! stand in a queue by their create revisions, and each waits for the deletion of the key right before its own, so that one who goes wakes one. The
//! keys are ordinary keys: a client library's own recipe, which etcd's services are made of, stands in the same queue.
//!
//! **Contract**, as etcd 3.7.3.
//! - L1: who is answered by [`Recipes::lock`] or [`Recipes::campaign`] had the first key under `name/` at the moment of the last look, and no key created before
//!   its own comes afterwards. It holds as long as the key does: until it is given back or its lease ends, which a client must watch for itself.
//! - L2: a call that ends without success, because it failed or its client went away, takes its key back if it made it. (etcd deletes a key that was there
//!   before too, which takes the place of another call with the same lease.) Not if the call ends while the key is being made, or without knowing whether it was:
//!   then the key goes with its lease, as in etcd.
//! - L3: everything is done with the caller's rights.
//!
//! Lease 0 is a new lease of [`SESSION_TTL_S`] that nobody keeps alive.
//!
//! **Does not know** protobuf of services, headers.
//!
//! **Source**: `client/v3/concurrency` and `server/etcdserver/api/{v3lock,v3election}` of etcd 3.7.3.
use crate::auth::origin::Credential;
use crate::request::Pipeline;
use crate::watch::WatchHub;
use crate::watch::local::{LocalWatch, WatchEnd};
use crate::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::wire::etcdserverpb::request_op::Request;
use crate::wire::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::wire::status::ApiError;
use bytes::Bytes;
use std::sync::Arc;
use sternpost_engine::mvcc::{EventKind, KeyValue, TxnOperationOutcome, TxnOutcome};
use tokio::sync::mpsc;
use tonic::Code;

/// TTL in seconds of the lease that a caller without one gets.
pub const SESSION_TTL_S: i64 = 60;

/// See the module.
#[derive(Clone)]
pub struct Recipes {
    pipeline: Arc<Pipeline>,
    watch: Arc<WatchHub>,
}

/// A lock that is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lock {
    /// Exists as long as the lock is held.
    pub key: Bytes,
    /// The store's revision when that was seen.
    pub revision: i64,
}

/// An election that is won.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Office {
    /// Exists as long as its holder leads.
    pub key: Bytes,
    /// Create revision of the key: tells this term of office from others with the same key.
    pub created: i64,
    /// Whose end ends it.
    pub lease: i64,
    /// The store's revision when the key was made or found.
    pub revision: i64,
}

/// What a leader says, and the revision of the answer.
pub type Said = (i64, KeyValue);

impl Recipes {
    /// Over the data that `pipeline` serves and `watch` watches.
    pub fn new(pipeline: Arc<Pipeline>, watch: Arc<WatchHub>) -> Self {
        Self { pipeline, watch }
    }

    /// Waits for the lock `name`.
    ///
    /// # Errors
    /// `mutex: session is expired` if the lease ended meanwhile; those of a transaction and a range.
    pub async fn lock(&self, name: &[u8], lease: i64, who: &Credential) -> Result<Lock, ApiError> {
        let lease = self.lease_or_new(lease, who).await?;
        let prefix = prefix(name);
        let key = key_of(&prefix, lease);
        // What the queue's first key is stands in the same answer: nobody waits, mostly.
        let owner = Request::RequestRange(by_create_revision(&prefix, SortOrder::Ascend));
        let entry = self.enter(&key, Bytes::new(), lease, Some(owner), who).await?;
        let is_first = entry.first.as_ref().is_none_or(|first| first.create_revision == entry.created);
        if is_first {
            return Ok(entry.guard.keep(|key| Lock { key, revision: entry.revision }));
        }
        self.wait_for_earlier(&prefix, entry.created, who).await?;
        let own = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let seen = self.pipeline.range(own, who).await?;
        // Another key of the same name, made after the lease's end, is not what has waited.
        if seen.kvs.first().is_none_or(|kv| kv.create_revision != entry.created) {
            return Err(unknown("mutex: session is expired"));
        }
        Ok(entry.guard.keep(|key| Lock { key, revision: seen.revision }))
    }

    /// Gives a lock back, whoever holds it; answers the store's revision.
    pub async fn unlock(&self, key: Bytes, who: &Credential) -> Result<i64, ApiError> {
        let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        self.pipeline.delete_range(request, who).await.map(|outcome| outcome.revision)
    }

    /// Waits until the office `name` is the caller's, who then says `value`.
    pub async fn campaign(
        &self,
        name: &[u8],
        lease: i64,
        value: Bytes,
        who: &Credential,
    ) -> Result<Office, ApiError> {
        let lease = self.lease_or_new(lease, who).await?;
        let prefix = prefix(name);
        let key = key_of(&prefix, lease);
        let entry = self.enter(&key, value.clone(), lease, None, who).await?;
        if entry.found.is_some_and(|found| found.value != value) {
            self.proclaim(key, entry.created, lease, value, who).await?;
        }
        self.wait_for_earlier(&prefix, entry.created, who).await?;
        let (created, revision) = (entry.created, entry.revision);
        Ok(entry.guard.keep(|key| Office { key, created, lease, revision }))
    }

    /// Says something else as leader; answers the revision of it.
    ///
    /// # Errors
    /// `election: not leader` if the key is another one by now.
    pub async fn proclaim(
        &self,
        key: Bytes,
        created: i64,
        lease: i64,
        value: Bytes,
        who: &Credential,
    ) -> Result<i64, ApiError> {
        let lease = self.lease_or_new(lease, who).await?;
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let txn = if_created(&key, created, vec![Request::RequestPut(put)], Vec::new());
        let outcome = self.pipeline.txn(txn, who).await?;
        if outcome.succeeded { Ok(outcome.revision) } else { Err(unknown("election: not leader")) }
    }

    /// Who leads. Errors with `election: no leader` if nobody does.
    pub async fn leader(&self, name: &[u8], who: &Credential) -> Result<Said, ApiError> {
        let (revision, leader) = self.first(&prefix(name), who).await?;
        Ok((revision, leader.ok_or_else(|| unknown("election: no leader"))?))
    }

    /// Gives an office up, if `key` still is the one that was created at `created`; answers the store's revision.
    pub async fn resign(
        &self,
        key: Bytes,
        created: i64,
        lease: i64,
        who: &Credential,
    ) -> Result<i64, ApiError> {
        self.lease_or_new(lease, who).await?;
        self.pipeline.txn(delete_if_created(key, created), who).await.map(|outcome| outcome.revision)
    }

    /// Sends what the leaders of `name` say, beginning with the present one, until nobody listens.
    pub async fn observe(self, name: Bytes, who: Credential, out: mpsc::Sender<Result<Said, ApiError>>) {
        let observed = async {
            loop {
                if let Err(error) = self.observe_one(&prefix(&name), &who, &out).await {
                    let _ = out.send(Err(error)).await;
                    return;
                }
            }
        };
        tokio::select! {
            () = observed => {}
            () = out.closed() => {}
        }
    }

    /// One leader, from its first word to its end; returns early where history was lost, to look again.
    async fn observe_one(
        &self,
        prefix: &Bytes,
        who: &Credential,
        out: &mpsc::Sender<Result<Said, ApiError>>,
    ) -> Result<(), ApiError> {
        let (mut revision, leader) = self.first(prefix, who).await?;
        let leader = match leader {
            Some(leader) => leader,
            None => {
                let mut watch =
                    LocalWatch::new(&self.watch, prefix.clone(), end_of(prefix), revision.saturating_add(1));
                let Some((_, put)) = next_change(&mut watch, |kind| kind == EventKind::Put).await? else {
                    return Ok(());
                };
                revision = put.mod_revision;
                put
            }
        };
        let mut watch =
            LocalWatch::new(&self.watch, leader.key.clone(), Bytes::new(), revision.saturating_add(1));
        if out.send(Ok((revision, leader))).await.is_err() {
            return Ok(());
        }
        loop {
            let response = match watch.next().await {
                Ok(response) => response,
                Err(end) => return look_again(end),
            };
            for event in &response.events {
                let event = event.event();
                if event.kind == EventKind::Delete {
                    return Ok(());
                }
                if out.send(Ok((response.revision, event.kv.clone()))).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn lease_or_new(&self, lease: i64, who: &Credential) -> Result<i64, ApiError> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = LeaseGrantRequest { ttl: SESSION_TTL_S, ..LeaseGrantRequest::default() };
        self.pipeline.lease_grant(request, who).await.map(|(lease, _)| lease)
    }

    /// Makes `key`, unless it is there; `owner` is answered beside it.
    async fn enter(
        &self,
        key: &Bytes,
        value: Bytes,
        lease: i64,
        owner: Option<Request>,
        who: &Credential,
    ) -> Result<Entry, ApiError> {
        let put = Request::RequestPut(PutRequest { key: key.clone(), value, lease, ..PutRequest::default() });
        let get = Request::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() });
        let branch = |first: Request| std::iter::once(first).chain(owner.clone()).collect();
        let outcome = self.pipeline.txn(if_created(key, 0, branch(put), branch(get)), who).await?;
        let (revision, was_made) = (outcome.revision, outcome.succeeded);
        let (found, first) = keys_of(outcome);
        let created = if was_made {
            revision
        } else {
            // The transaction has just seen it.
            found.as_ref().map_or(revision, |found| found.create_revision)
        };
        let guard =
            Place { recipes: was_made.then(|| self.clone()), key: key.clone(), created, who: who.clone() };
        Ok(Entry { created, revision, found, first, guard })
    }

    /// Waits until no key under `prefix` is older than `created`.
    async fn wait_for_earlier(&self, prefix: &Bytes, created: i64, who: &Credential) -> Result<(), ApiError> {
        loop {
            let latest = RangeRequest {
                max_create_revision: created.saturating_sub(1),
                keys_only: true,
                ..by_create_revision(prefix, SortOrder::Descend)
            };
            let seen = self.pipeline.range(latest, who).await?;
            let Some(before) = seen.kvs.into_iter().next() else { return Ok(()) };
            let start = seen.revision.saturating_add(1);
            let mut watch = LocalWatch::new(&self.watch, before.key, Bytes::new(), start);
            next_change(&mut watch, |kind| kind == EventKind::Delete).await?;
        }
    }

    /// The store's revision and the first key under `prefix`.
    async fn first(&self, prefix: &Bytes, who: &Credential) -> Result<(i64, Option<KeyValue>), ApiError> {
        let request = by_create_revision(prefix, SortOrder::Ascend);
        let seen = self.pipeline.range(request, who).await?;
        Ok((seen.revision, seen.kvs.into_iter().next()))
    }
}

/// A key in the queue.
struct Entry {
    /// Its create revision.
    created: i64,
    /// The store's, at that moment.
    revision: i64,
    /// As it was, if it was there.
    found: Option<KeyValue>,
    /// The queue's first, if it was asked for and is another one or was there before.
    first: Option<KeyValue>,
    guard: Place,
}

/// L2: takes the key back when it is dropped, unless it is to be kept.
struct Place {
    /// None if there is nothing to take back.
    recipes: Option<Recipes>,
    key: Bytes,
    created: i64,
    who: Credential,
}

impl Place {
    fn keep<T>(mut self, answer: impl FnOnce(Bytes) -> T) -> T {
        self.recipes = None;
        answer(std::mem::take(&mut self.key))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(recipes) = self.recipes.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (txn, who) = (delete_if_created(std::mem::take(&mut self.key), self.created), self.who.clone());
        runtime.spawn(async move {
            if let Err(error) = recipes.pipeline.txn(txn, &who).await {
                tracing::warn!(%error, "the key of a lock or election that was given up could not be deleted; it goes with its lease");
            }
        });
    }
}

/// Waits for a change of the wanted kind: the revision of its response and its state. None if what was watched is compacted.
async fn next_change(
    watch: &mut LocalWatch,
    is_wanted: impl Fn(EventKind) -> bool,
) -> Result<Option<Said>, ApiError> {
    loop {
        let response = match watch.next().await {
            Ok(response) => response,
            Err(end) => return look_again(end).map(|()| None),
        };
        let found = response.events.iter().find(|event| is_wanted(event.event().kind));
        if let Some(event) = found {
            return Ok(Some((response.revision, event.event().kv.clone())));
        }
    }
}

/// A compaction overtook the watch: whoever waits looks at the store again. Everything else is an error.
fn look_again(end: WatchEnd) -> Result<(), ApiError> {
    match end {
        WatchEnd::Compacted => Ok(()),
        WatchEnd::Stopped => Err(ApiError::Stopped),
        WatchEnd::Refused(why) => Err(ApiError::Other(Code::Unknown, why.into())),
    }
}

fn unknown(text: &'static str) -> ApiError {
    ApiError::Other(Code::Unknown, text.into())
}

/// What stands before the lease in a key.
fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The end of the range of all keys that begin with `prefix`, which ends with `/`.
fn end_of(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The lease as Go prints it: a negative one with its sign.
fn key_of(prefix: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [&prefix[..], format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// One key under `prefix`: the first that was created, or the last.
fn by_create_revision(prefix: &Bytes, order: SortOrder) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: order.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

fn if_created(key: &Bytes, created: i64, success: Vec<Request>, failure: Vec<Request>) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(created)),
        ..Compare::default()
    };
    let operations =
        |list: Vec<Request>| list.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    TxnRequest { compare: vec![compare], success: operations(success), failure: operations(failure) }
}

fn delete_if_created(key: Bytes, created: i64) -> TxnRequest {
    let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
    if_created(&key, created, vec![Request::RequestDeleteRange(delete)], Vec::new())
}

/// The first keys that its two operations answered, where they are ranges.
fn keys_of(outcome: TxnOutcome) -> (Option<KeyValue>, Option<KeyValue>) {
    let mut keys = outcome.responses.into_iter().map(|response| match response {
        TxnOperationOutcome::Range(range) => range.kvs.into_iter().next(),
        _ => None,
    });
    (keys.next().flatten(), keys.next().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_the_client_library_names_them() {
        let room = prefix(b"room");
        assert_eq!(&room[..], b"room/");
        assert_eq!(&end_of(&room)[..], b"room0");
        assert_eq!(&key_of(&room, 0x694d_8f6c)[..], b"room/694d8f6c");
        assert_eq!(&key_of(&room, -255)[..], b"room/-ff", "as %x of a negative number in Go");
        assert_eq!(&key_of(&prefix(b""), 7)[..], b"/7");
    }
}
