//! How a request gets to the server: a call of what the services call, gRPC over a socket, the JSON gateway over HTTP.
use crate::raw::{self, Raw};
use crate::support::Running;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost_reflect::{DynamicMessage, SerializeOptions};
use std::sync::Arc;
use std::time::Duration;
use sternpost_server::answers::AnswerBudget;
use sternpost_server::auth::origin::Credential;
use sternpost_server::config::url;
use sternpost_server::diagnostics::Diagnostics;
use sternpost_server::gateway::Gateway;
use sternpost_server::gateway::routes::{ROUTES, routes};
use sternpost_server::grpc::{Grpc, GrpcBounds, GrpcServices};
use sternpost_server::grpc_limits::InflightBudget;
use sternpost_server::http::{HttpState, client_routes};
use sternpost_server::listener::{ConnectionSettings, Listener, Served, Shutdown};
use sternpost_server::metrics::Metrics;
use sternpost_server::recipes::Recipes;
use sternpost_server::services::router::GrpcRouter;
use sternpost_server::wire::etcdserverpb::*;
use sternpost_server::wire::status::ApiError;
use sternpost_server::wire::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest};
use sternpost_server::wire::v3lockpb::{LockRequest, UnlockRequest};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// No answer takes longer, however busy the machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// etcd's text.
pub(crate) const DENIED: &str = "etcdserver: permission denied";

/// A request of any kind that somebody's rights decide.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Watch(WatchCreateRequest),
    KeepAlive(i64),
    KeysOfLease(i64),
    Leases,
    Revoke(i64),
    Lock(LockRequest),
    Unlock(Bytes),
    Campaign(CampaignRequest),
    Proclaim(LeaderKey),
    Leader(Bytes),
    Observe(Bytes),
    Resign(LeaderKey),
}

impl Asked {
    /// The method and its message.
    fn wire(&self) -> (&'static str, Raw) {
        match self {
            Self::Range(range) => ("etcdserverpb.KV/Range", range.into()),
            Self::RangeStream(range) => ("etcdserverpb.KV/RangeStream", range.into()),
            Self::Put(put) => ("etcdserverpb.KV/Put", put.into()),
            Self::DeleteRange(delete) => ("etcdserverpb.KV/DeleteRange", delete.into()),
            Self::Txn(txn) => ("etcdserverpb.KV/Txn", txn.into()),
            Self::Watch(create) => {
                let union = Some(watch_request::RequestUnion::CreateRequest(create.clone()));
                ("etcdserverpb.Watch/Watch", (&WatchRequest { request_union: union }).into())
            }
            Self::KeepAlive(id) => {
                ("etcdserverpb.Lease/LeaseKeepAlive", (&LeaseKeepAliveRequest { id: *id }).into())
            }
            Self::KeysOfLease(id) => {
                let request = LeaseTimeToLiveRequest { id: *id, keys: true };
                ("etcdserverpb.Lease/LeaseTimeToLive", (&request).into())
            }
            Self::Leases => ("etcdserverpb.Lease/LeaseLeases", (&LeaseLeasesRequest {}).into()),
            Self::Revoke(id) => ("etcdserverpb.Lease/LeaseRevoke", (&LeaseRevokeRequest { id: *id }).into()),
            Self::Lock(lock) => ("v3lockpb.Lock/Lock", lock.into()),
            Self::Unlock(key) => ("v3lockpb.Lock/Unlock", (&UnlockRequest { key: key.clone() }).into()),
            Self::Campaign(campaign) => ("v3electionpb.Election/Campaign", campaign.into()),
            Self::Proclaim(leader) => {
                let request = ProclaimRequest { leader: Some(leader.clone()), value: "w".into() };
                ("v3electionpb.Election/Proclaim", (&request).into())
            }
            Self::Leader(name) => {
                ("v3electionpb.Election/Leader", (&LeaderRequest { name: name.clone() }).into())
            }
            Self::Observe(name) => {
                ("v3electionpb.Election/Observe", (&LeaderRequest { name: name.clone() }).into())
            }
            Self::Resign(leader) => {
                let request =
                    sternpost_server::wire::v3electionpb::ResignRequest { leader: Some(leader.clone()) };
                ("v3electionpb.Election/Resign", (&request).into())
            }
        }
    }

    /// What a message of the answer says against the request, where it is no error of the call.
    fn refusal_in(&self, answer: &[u8]) -> Result<(), String> {
        let Self::Watch(_) = self else { return Ok(()) };
        let response: WatchResponse = prost::Message::decode(answer).unwrap();
        assert!(response.created, "{response:?}");
        if !response.canceled {
            return Ok(());
        }
        let reason = response.cancel_reason;
        let text = reason.strip_prefix("rpc error: code = PermissionDenied desc = ");
        Err(text.map_or(reason.clone(), str::to_owned))
    }
}

/// The ways.
pub(crate) enum Way {
    /// What the services call, called.
    Direct(Recipes),
    Grpc(Channel),
    Gateway(HttpClient),
}

impl Way {
    pub(crate) fn direct(running: &Running) -> Self {
        let server = &running.server;
        Self::Direct(Recipes::new(Arc::clone(&server.pipeline), Arc::clone(&server.watch)))
    }

    pub(crate) async fn grpc(running: &Running) -> Self {
        let address = format!("http://127.0.0.1:{}", listen(running));
        Self::Grpc(Channel::from_shared(address).unwrap().connect().await.unwrap())
    }

    pub(crate) fn gateway(running: &Running) -> Self {
        Self::Gateway(HttpClient { port: listen(running), kept: None })
    }

    /// What the server says to a user: nothing against it, or the text of its refusal.
    pub(crate) async fn ask(&mut self, running: &Running, asked: &Asked, token: &str) -> Result<(), String> {
        let answering = async {
            match self {
                Self::Direct(recipes) => {
                    let who = Credential::Token(token.into());
                    call(running, recipes, asked.clone(), &who).await.map_err(|error| error.to_string())
                }
                Self::Grpc(channel) => {
                    let (method, message) = asked.wire();
                    let path = format!("/{method}");
                    let answer = raw::ask(channel.clone(), &path, message, Some(token)).await;
                    match answer.map_err(|status| status.message().to_owned())? {
                        Some(answer) => asked.refusal_in(&answer),
                        None => Err(format!("{method} ended without an answer")),
                    }
                }
                Self::Gateway(client) => client.ask(asked, token).await,
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, answering)
            .await
            .unwrap_or_else(|_| panic!("no answer: {asked:?}"))
    }
}

async fn call(running: &Running, recipes: &Recipes, asked: Asked, who: &Credential) -> Result<(), ApiError> {
    let pipeline = &running.server.pipeline;
    match asked {
        Asked::Range(range) => pipeline.range(range, who).await.map(drop),
        Asked::RangeStream(range) => pipeline.range_stream(range, who, None).await.map(drop),
        Asked::Put(put) => pipeline.put(put, who).await.map(drop),
        Asked::DeleteRange(delete) => pipeline.delete_range(delete, who).await.map(drop),
        Asked::Txn(txn) => pipeline.txn(txn, who).await.map(drop),
        Asked::Watch(create) => pipeline.check_watch(who, &create.key, &create.range_end),
        Asked::KeepAlive(lease) => pipeline.check_renew(who, lease).await,
        Asked::KeysOfLease(lease) => {
            let origin = pipeline.check_user(who).await?;
            pipeline.check_lease_keys(&origin, &pipeline.store().lease_keys(lease))
        }
        Asked::Leases => pipeline.check_lease_list(who, &super::model::LEASES).await,
        Asked::Revoke(lease) => pipeline.lease_revoke(lease, who).await.map(drop),
        Asked::Lock(lock) => recipes.lock(&lock.name, lock.lease, who).await.map(drop),
        Asked::Unlock(key) => recipes.unlock(key, who).await.map(drop),
        Asked::Campaign(CampaignRequest { name, lease, value }) => {
            recipes.campaign(&name, lease, value, who).await.map(drop)
        }
        Asked::Proclaim(LeaderKey { key, rev, lease, .. }) => {
            recipes.proclaim(key, rev, lease, "w".into(), who).await.map(drop)
        }
        Asked::Leader(name) => recipes.leader(&name, who).await.map(drop),
        Asked::Observe(name) => {
            let (sender, mut said) = mpsc::channel(1);
            tokio::spawn(recipes.clone().observe(name, who.clone(), sender));
            said.recv().await.expect("a word or an error").map(drop)
        }
        Asked::Resign(LeaderKey { key, rev, lease, .. }) => {
            recipes.resign(key, rev, lease, who).await.map(drop)
        }
    }
}

/// A client URL of the server as the program opens it, with gRPC and the gateway on one port.
fn listen(running: &Running) -> u16 {
    let server = &running.server;
    let shutdown = Shutdown::default();
    let metrics = Arc::new(Metrics::new(&GrpcRouter::SERVICES, false));
    let (inflight, answers) = (InflightBudget::new(1 << 30), AnswerBudget::new(1 << 30));
    let services = GrpcServices::default().with_router(&GrpcRouter::SERVICES, server.grpc.clone());
    let bounds = GrpcBounds { message_bytes_max: 1 << 20, warning_unary_duration: ANSWER_WITHIN };
    let (of_grpc, of_answers) = (Arc::clone(&inflight), Arc::clone(&answers));
    let grpc = Grpc::new(&services, bounds, of_grpc, of_answers, Arc::clone(&metrics), shutdown.clone());
    let grpc = Arc::new(grpc);
    let diagnostics = Arc::new(Diagnostics {
        pipeline: Arc::clone(&server.pipeline),
        member_id: server.header.member_id(),
        feature_gates: Vec::new(),
        inflight,
        answers,
        disk_stats: Box::new(|| None),
        peers: Arc::default(),
    });
    let state = HttpState {
        health: Arc::clone(&diagnostics) as _,
        metrics: Arc::clone(&metrics),
        samples: diagnostics,
        host_whitelist: None,
        origins: None,
        gateway: Some(Gateway::new(Arc::clone(&grpc))),
    };
    let http = Some(client_routes(Arc::new(state)));
    let url = &url::parse_list("http://127.0.0.1:0").unwrap()[0];
    let listener = Listener::bind(url, false).unwrap();
    let port = listener.port();
    let settings = ConnectionSettings {
        concurrent_streams_max: u32::MAX,
        keepalive_interval: None,
        keepalive_timeout: Duration::from_secs(20),
    };
    let served = Served { grpc: Some(grpc), http, tls: None };
    tokio::spawn(listener.serve(served, settings, metrics, shutdown));
    port
}

/// HTTP/1.1 and JSON.
pub(crate) struct HttpClient {
    port: u16,
    /// A connection whose last answer was read to its end.
    kept: Option<http1::SendRequest<Full<Bytes>>>,
}

impl HttpClient {
    async fn ask(&mut self, asked: &Asked, token: &str) -> Result<(), String> {
        let (method, Raw(message)) = asked.wire();
        let (path, _) = ROUTES
            .iter()
            .find(|(_, routed)| *routed == method)
            .unwrap_or_else(|| panic!("no path to {method}"));
        let route = &routes()[path];
        let request = json_of(&DynamicMessage::decode(route.input.clone(), message).unwrap());
        let request = http::Request::post(*path)
            .header("host", format!("127.0.0.1:{}", self.port))
            .header("authorization", token)
            .body(Full::new(Bytes::from(request)))
            .unwrap();
        let mut sender = match self.kept.take() {
            Some(sender) => sender,
            None => {
                let connection = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
                let (sender, driven) = http1::handshake(TokioIo::new(connection)).await.unwrap();
                tokio::spawn(driven);
                sender
            }
        };
        sender.ready().await.unwrap();
        let (head, mut body) = sender.send_request(request).await.unwrap().into_parts();
        let answer = if route.has_many_answers {
            // The first line, which comes alone; what would come after it is given up with the connection.
            body.frame().await.expect("a line").unwrap().into_data().expect("a line")
        } else {
            let whole = body.collect().await.unwrap().to_bytes();
            self.kept = Some(sender);
            whole
        };
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let error = if route.has_many_answers { answer.get("error") } else { Some(&answer) };
        if !head.status.is_success() {
            return Err(error.unwrap()["message"].as_str().unwrap().to_owned());
        }
        let answer = if route.has_many_answers { &answer["result"] } else { &answer };
        let answer = DynamicMessage::deserialize(route.output.clone(), answer).unwrap();
        asked.refusal_in(&prost::Message::encode_to_vec(&answer))
    }
}

fn json_of(message: &DynamicMessage) -> String {
    let mut json = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &SerializeOptions::new())
        .unwrap();
    String::from_utf8(json).unwrap()
}
