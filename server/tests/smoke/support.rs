//! A server on a socket of its own, with clients.
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::fmt::Debug;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::log::OpenProgress;
use sternpost_engine::options::LogOptions;
use sternpost_replication::{
    Class, Entry, Genesis, ProposeError, ReadBarrier, Rejection, Replicator, ReplicatorStatus, Solo,
    SoloOptions, StateMachine,
};
use sternpost_server::apply::Machine;
use sternpost_server::server::{Server, ServerOptions, StartedReplicator};
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::etcdserverpb::*;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// What the replicator does with the next commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Applies them.
    Apply,
    /// Takes them over and never applies them.
    Swallow,
    /// Says that too much is queued.
    Overload,
    /// Takes them over and rejects them for lack of space.
    DeviceFull,
    /// Takes them over and stops.
    Stop,
}

/// Applies every command in an entry of its own, on the caller's thread.
pub(crate) struct Immediate {
    pub(crate) machine: Mutex<Machine>,
    pub(crate) mode: AtomicU8,
    pub(crate) member_id: u64,
}

impl Replicator for Immediate {
    fn propose(&self, command: Vec<u8>, _class: Class) -> Result<(), ProposeError> {
        let mode = self.mode.load(Ordering::SeqCst);
        let mut machine = self.machine.lock().unwrap();
        if mode == Mode::Swallow as u8 {
            return Ok(());
        }
        if mode == Mode::Overload as u8 {
            return Err(ProposeError::TooManyRequests);
        }
        if mode == Mode::DeviceFull as u8 {
            machine.rejected(&command, &Rejection::NoSpace);
            return Ok(());
        }
        if mode == Mode::Stop as u8 {
            machine.stopped("the test said so");
            return Ok(());
        }
        let index = machine.applied_index() + 1;
        machine.apply(&Entry { index, term: 1, commands: vec![&command], replay: false });
        machine.flush();
        while machine.maintain() {}
        Ok(())
    }

    fn read_barrier(&self) -> ReadBarrier {
        ReadBarrier::ready(Ok(self.machine.lock().unwrap().applied_index()))
    }

    fn status(&self) -> ReplicatorStatus {
        let index = self.machine.lock().unwrap().applied_index();
        ReplicatorStatus {
            term: 1,
            leader: self.member_id,
            committed_index: index,
            applied_index: index,
            pending_count: 0,
            last_index: index,
            proved_term: Some(1),
            leader_changes_count: 1,
            quarantine: None,
            full: None,
        }
    }

    fn oldest_write_age_us(&self) -> u64 {
        0
    }

    fn shutdown(&self) -> Result<(), String> {
        self.machine.lock().unwrap().stopped("shut down");
        Ok(())
    }
}

/// A server that listens, and clients of it.
pub(crate) struct Running {
    pub(crate) server: Server,
    /// What to play with, where it is not a real one.
    pub(crate) replicator: Option<Arc<Immediate>>,
    pub(crate) channel: Channel,
    pub(crate) kv: KvClient<Channel>,
    pub(crate) lease: LeaseClient<Channel>,
    pub(crate) cluster: ClusterClient<Channel>,
    pub(crate) maintenance: MaintenanceClient<Channel>,
}

pub(crate) async fn start() -> Running {
    start_with(ServerOptions::default()).await
}

pub(crate) async fn start_with(options: ServerOptions) -> Running {
    let replicator = Arc::new(Mutex::new(None));
    let made = Arc::clone(&replicator);
    let server = Server::start_with(options, move |mut machine: Machine, genesis: Genesis, _| {
        machine.restore(1, 1, &genesis.state);
        machine.flush();
        let (cluster_id, member_id) = (genesis.cluster_id, genesis.member_id);
        let mode = AtomicU8::new(Mode::Apply as u8);
        let immediate = Arc::new(Immediate { machine: Mutex::new(machine), mode, member_id });
        *made.lock().unwrap() = Some(Arc::clone(&immediate));
        Ok(StartedReplicator { replicator: immediate, cluster_id, member_id })
    })
    .await
    .unwrap();
    let replicator = replicator.lock().unwrap().take();
    serve(server, replicator).await
}

/// A server over its log in `directory`.
pub(crate) async fn start_durable(directory: &Path) -> Running {
    let directory = directory.to_owned();
    let server =
        Server::start_with(ServerOptions::default(), move |machine: Machine, genesis: Genesis, _| {
            let (log, progress) = (LogOptions::default(), Box::new(|_: OpenProgress<'_>| {}));
            let solo = Solo::start(
                SoloOptions {
                    directory,
                    log,
                    checkpoint: CheckpointOptions::default(),
                    genesis,
                    progress,
                    on_checkpoint: None,
                },
                machine,
            )?;
            let (cluster_id, member_id) = (solo.opened().cluster_id, solo.opened().member_id);
            Ok(StartedReplicator { replicator: Arc::new(solo), cluster_id, member_id })
        });
    serve(server.await.unwrap(), None).await
}

async fn serve(server: Server, replicator: Option<Arc<Immediate>>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let grpc = server.grpc.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = TowerToHyperService::new(grpc.clone());
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    Running {
        kv: KvClient::new(channel.clone()),
        lease: LeaseClient::new(channel.clone()),
        cluster: ClusterClient::new(channel.clone()),
        maintenance: MaintenanceClient::new(channel.clone()),
        server,
        replicator,
        channel,
    }
}

impl Running {
    /// Lets the replicator do something else from now on.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.replicator.as_ref().unwrap().mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Puts a key; answers the header's revision.
    pub(crate) async fn put(&mut self, key: &str, value: &str) -> i64 {
        let response = self.kv.put(put(key, value)).await.unwrap().into_inner();
        response.header.unwrap().revision
    }

    /// The value of a key, if it exists.
    pub(crate) async fn get(&mut self, key: &str) -> Option<Bytes> {
        let response = self.kv.range(get(key)).await.unwrap().into_inner();
        response.kvs.into_iter().next().map(|kv| kv.value)
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub(crate) fn get(key: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), ..Default::default() }
}

/// Every key.
pub(crate) fn everything() -> RangeRequest {
    RangeRequest { key: bytes("\0"), range_end: bytes("\0"), ..Default::default() }
}

pub(crate) fn put_op(key: &str, value: &str) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(put(key, value))) }
}

pub(crate) fn get_op(key: &str) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(get(key))) }
}

pub(crate) fn delete_op(key: &str) -> RequestOp {
    let delete = DeleteRangeRequest { key: bytes(key), ..Default::default() };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

#[track_caller]
pub(crate) fn refused<T: Debug>(result: Result<Response<T>, Status>, code: Code, text: &str) {
    let status = result.expect_err("refused");
    assert_eq!((status.code(), status.message()), (code, text));
}
