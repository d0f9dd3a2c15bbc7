//! `make-mirror`: the keys of one cluster copied to another one, and then every change as it happens.
//!
//! **Contract.** What stands under the prefix at one revision is put to the destination, then each later revision is applied there as one
//! transaction, in order (more than `--max-txn-ops` changes: as several). A lost watch is made again behind the last revision
//! that was applied. Leases are not mirrored. The command ends with an error alone: the source's history is compacted beyond where the
//! mirror is, or the destination refuses a change.
//!
//! Every 30 seconds the number of changes so far is printed, as etcdctl prints it.
use crate::ctl::connect::{Calls, Client};
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::flags;
use crate::ctl::options::{Destination, GlobalOptions};
use crate::kv::prefix_range;
use crate::session::Events;
use bytes::Bytes;
use clap::{ArgAction, Args};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::mvccpb::event::EventType;
use tokio::task::JoinSet;

/// Keys in one answer of the source.
const PAGE_KEYS: i64 = 1_000;
/// Puts under way while the first state is copied.
const PUTS_MAX: usize = 64;
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// After a watch was lost.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct MirrorOptions {
    /// Mirror the keys with this prefix
    #[arg(long, default_value = "")]
    prefix: String,
    /// Mirror what happens from this revision on, and not what stands
    #[arg(long, default_value_t = 0, value_parser = flags::integer)]
    rev: i64,
    /// Most changes in one transaction at the destination
    #[arg(long, default_value_t = 128, value_parser = flags::natural)]
    max_txn_ops: u64,
    /// Prefix at the destination, in the place of --prefix
    #[arg(long, default_value = "")]
    dest_prefix: String,
    /// No prefix at the destination
    #[arg(long)]
    no_dest_prefix: bool,
    /// Certificate to present to the destination
    #[arg(long)]
    dest_cert: Option<String>,
    /// Key of --dest-cert
    #[arg(long)]
    dest_key: Option<String>,
    /// CA bundle that the destination is verified against
    #[arg(long)]
    dest_cacert: Option<String>,
    /// Speak without TLS to a destination without a scheme, if no other flag asks for it
    #[arg(
        long,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        value_parser = flags::truth
    )]
    dest_insecure_transport: bool,
    /// Who writes at the destination, as name or name:password
    #[arg(long)]
    dest_user: Option<String>,
    /// Password of --dest-user, which then is a name alone
    #[arg(long)]
    dest_password: Option<String>,
    /// Endpoint of the destination
    #[arg(value_name = "DESTINATION")]
    arguments: Vec<String>,
}

/// Where a key goes.
struct Renaming {
    from: Bytes,
    to: Bytes,
}

impl Renaming {
    fn of(&self, key: &Bytes) -> Bytes {
        let rest = key.strip_prefix(&self.from[..]).unwrap_or(key);
        [&self.to[..], rest].concat().into()
    }
}

pub(crate) async fn run(
    client: &Client,
    global: &GlobalOptions,
    options: MirrorOptions,
) -> Result<(), Failure> {
    let [endpoint] = &options.arguments[..] else {
        return Err(Failure::bad_arguments("make-mirror takes one destination argument"));
    };
    if options.no_dest_prefix && !options.dest_prefix.is_empty() {
        let message = "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one";
        return Err(Failure::bad_arguments(message));
    }
    let destination = Client::new(global.towards(Destination {
        endpoint: endpoint.clone(),
        cert: options.dest_cert.clone(),
        key: options.dest_key.clone(),
        cacert: options.dest_cacert.clone(),
        insecure_transport: options.dest_insecure_transport,
        user: options.dest_user.clone(),
        password: options.dest_password.clone(),
    }));
    let prefix = Bytes::from(options.prefix.clone());
    let to = match (options.no_dest_prefix, options.dest_prefix.is_empty()) {
        (true, _) => Bytes::new(),
        (false, true) => prefix.clone(),
        (false, false) => Bytes::from(options.dest_prefix.clone()),
    };
    let mut mirror = Mirror {
        source: client,
        kv: destination.kv().await?,
        destination: &destination,
        renaming: Renaming { from: prefix.clone(), to },
        prefix,
        operations_max: usize::try_from(options.max_txn_ops).unwrap_or(usize::MAX).max(1),
        changes_count: Arc::default(),
    };
    let count = Arc::clone(&mirror.changes_count);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            println!("{}", count.load(Ordering::Relaxed));
        }
    });
    // Standing at revision 0 means that nothing was copied yet.
    let mut applied_revision = (options.rev - 1).max(0);
    if applied_revision == 0 {
        applied_revision = mirror.copy().await?;
    }
    loop {
        mirror.follow(&mut applied_revision).await?;
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
}

struct Mirror<'a> {
    source: &'a Client,
    destination: &'a Client,
    kv: KvClient<Calls>,
    prefix: Bytes,
    renaming: Renaming,
    operations_max: usize,
    changes_count: Arc<AtomicU64>,
}

impl Mirror<'_> {
    /// Puts everything that stands at one revision, and returns that revision.
    async fn copy(&mut self) -> Result<i64, Failure> {
        let mut source = self.source.kv().await?;
        let (mut key, range_end) = prefix_range(self.prefix.clone());
        let mut revision = 0;
        loop {
            let request = pb::RangeRequest {
                key,
                range_end: range_end.clone(),
                limit: PAGE_KEYS,
                revision,
                ..pb::RangeRequest::default()
            };
            let page = self.source.call(source.range(request)).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            let next = page.kvs.last().map(|last| [&last.key[..], b"\0"].concat());
            self.put_all(page.kvs).await?;
            match next {
                Some(next) if page.more => key = next.into(),
                _ => return Ok(revision),
            }
        }
    }

    async fn put_all(&self, kvs: Vec<sternpost_server::wire::mvccpb::KeyValue>) -> Result<(), Failure> {
        let mut under_way = JoinSet::new();
        for kv in kvs {
            if under_way.len() == PUTS_MAX {
                self.take(under_way.join_next().await)?;
            }
            let request = pb::PutRequest {
                key: self.renaming.of(&kv.key),
                value: kv.value,
                ..pb::PutRequest::default()
            };
            let (client, mut destination) = (self.destination.clone(), self.kv.clone());
            under_way.spawn(async move { client.call(destination.put(request)).await.map(|_| ()) });
        }
        while let Some(put) = under_way.join_next().await {
            self.take(Some(put))?;
        }
        Ok(())
    }

    fn take(&self, put: Option<Result<Result<(), Failure>, tokio::task::JoinError>>) -> Result<(), Failure> {
        let Some(put) = put else { return Ok(()) };
        put.map_err(|error| Failure::new(Exit::Error, error.to_string()))??;
        self.changes_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Applies what comes behind a revision until the watch is lost.
    async fn follow(&mut self, applied_revision: &mut i64) -> Result<(), Failure> {
        let (key, range_end) = prefix_range(self.prefix.clone());
        let start_revision = *applied_revision + 1;
        // A revision comes whole or not at all, unless pieces are asked for.
        let create = pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
        let mut events = match Events::open(self.source, create).await {
            Ok(events) => events,
            Err(failure) if failure.exit == Exit::BadConnection => return Ok(()),
            Err(failure) => return Err(failure),
        };
        while let Some(response) = events.next().await? {
            let mut operations = Vec::new();
            let mut revision = 0;
            for event in response.events {
                let kind = event.r#type();
                let Some(kv) = event.kv else { continue };
                if kv.mod_revision != revision || operations.len() == self.operations_max {
                    self.commit(&mut operations).await?;
                    *applied_revision = revision.max(*applied_revision).min(kv.mod_revision - 1);
                    revision = kv.mod_revision;
                }
                let key = self.renaming.of(&kv.key);
                let request = match kind {
                    EventType::Put => {
                        Request::RequestPut(pb::PutRequest { key, value: kv.value, ..Default::default() })
                    }
                    EventType::Delete => {
                        Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() })
                    }
                };
                operations.push(pb::RequestOp { request: Some(request) });
            }
            self.commit(&mut operations).await?;
            *applied_revision = revision.max(*applied_revision);
        }
        Ok(())
    }

    async fn commit(&mut self, operations: &mut Vec<pb::RequestOp>) -> Result<(), Failure> {
        if operations.is_empty() {
            return Ok(());
        }
        let count = operations.len() as u64;
        let request = pb::TxnRequest { success: std::mem::take(operations), ..pb::TxnRequest::default() };
        self.destination.call(self.kv.txn(request)).await?;
        self.changes_count.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_under_the_other_prefix() {
        let renaming = |from: &'static str, to: &'static str| Renaming { from: from.into(), to: to.into() };
        assert_eq!(renaming("a/", "b/").of(&"a/a/x".into()), "b/a/x");
        assert_eq!(renaming("a/", "").of(&"a/x".into()), "x");
        assert_eq!(renaming("", "b/").of(&"a/x".into()), "b/a/x");
    }
}
