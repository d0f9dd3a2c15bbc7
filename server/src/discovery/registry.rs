//! Members that register with a discovery service: any cluster that speaks etcd's API.
//!
//! **Data**, below `/_etcd/registry/TOKEN`: `_config/size`, written by a person, says in decimal how many members there will be; `members/ID` has one member, as
//! `name=url,name=url`. Those that were created first are the cluster, up to its size; later ones find it full.
//!
//! **Failure.** A service that does not answer is asked again, after pauses that double up to [`PAUSE_MAX`], for as long as it takes: members are
//! often started before it. What it says and makes no sense ends the start.
use super::{RegistryOptions, members_text, parse_members};
use crate::config::url::Url;
use crate::identity;
use crate::tls::connect::{self, ClientOptions};
use crate::wire::etcdserverpb::auth_client::AuthClient;
use crate::wire::etcdserverpb::kv_client::KvClient;
use crate::wire::etcdserverpb::{AuthenticateRequest, PutRequest, RangeRequest};
use crate::wire::mvccpb::KeyValue;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const PREFIX: &str = "/_etcd/registry";
/// Between two looks for members that are still missing.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// After the first request that was not answered.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// At most.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A discovery service, as one cluster's members use it.
pub struct Registry {
    options: RegistryOptions,
    channels: Vec<(String, Channel)>,
}

/// A member that has registered.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Registered {
    key: String,
    created_revision: i64,
    members: String,
}

type Members = Vec<(String, Vec<Url>)>;

impl Registry {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// Files that cannot be read, endpoints that are none.
    pub fn new(options: RegistryOptions) -> Result<Self, String> {
        let tls = ClientOptions {
            cacert: options.cacert.clone(),
            identity: options.identity.clone(),
            skips_verification: options.skips_verification,
            server_name: None,
        };
        let mut channels = Vec::new();
        for text in &options.endpoints {
            let url = match text.contains("://") {
                true => text.clone(),
                false if options.is_insecure => format!("http://{text}"),
                false => format!("https://{text}"),
            };
            let endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| format!("--discovery-endpoints: {text}: {error}"))?
                .connect_timeout(options.dial_timeout)
                .http2_keep_alive_interval(options.keepalive.0)
                .keep_alive_timeout(options.keepalive.1);
            let channel = match url.starts_with("https://") {
                true => connect::lazy_channel(endpoint, tls.config()?),
                false => endpoint.connect_lazy(),
            };
            channels.push((text.clone(), channel));
        }
        Ok(Self { options, channels })
    }

    /// Registers the member called `name` at `urls`, waits for the others, and says who they all are.
    ///
    /// # Errors
    /// etcd's texts.
    pub async fn join(&self, name: &str, urls: &[Url]) -> Result<Members, String> {
        let texts: Vec<String> = urls.iter().map(ToString::to_string).collect();
        let id = identity::member_id(&texts, &self.options.token);
        let own_key = format!("{}/members/{id:x}", self.prefix());
        let own = members_text(&[(name.to_owned(), urls.to_vec())]);
        let size = self.size().await?;
        check_room(&self.registered().await, &own_key, size)?;
        self.put(&own_key, &own).await;
        tracing::info!(key = own_key, member = own, "register member itself successfully");
        let mut told = 0;
        loop {
            let registered = self.registered().await;
            check_room(&registered, &own_key, size)?;
            if registered.len() >= size {
                tracing::info!(size, "found all needed peers from discovery service");
                let texts: Vec<&str> = registered[..size].iter().map(|one| one.members.as_str()).collect();
                return parse_members(&texts.join(",")).map_err(|_| "discovery: invalid peer URL".to_owned());
            }
            if registered.len() != told {
                told = registered.len();
                tracing::info!(size, found = told, "waiting for peers from discovery service");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn prefix(&self) -> String {
        format!("{PREFIX}/{}", self.options.token)
    }

    /// How many members the cluster has.
    async fn size(&self) -> Result<usize, String> {
        let key = format!("{}/_config/size", self.prefix());
        let found = self.range(&key, Vec::new()).await;
        let Some(found) = found.first() else { return Err("discovery: size key not found".into()) };
        let size = std::str::from_utf8(&found.value).ok().and_then(|text| text.parse().ok());
        size.filter(|size| *size > 0).ok_or_else(|| "discovery: size key is bad".into())
    }

    /// Who has registered, the oldest first.
    async fn registered(&self) -> Vec<Registered> {
        let prefix = format!("{}/members", self.prefix());
        let mut end = prefix.clone().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let found = self.range(&prefix, end).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let registered = found.iter().map(|kv| Registered {
            key: text(&kv.key),
            created_revision: kv.create_revision,
            members: text(&kv.value),
        });
        in_order(registered)
    }

    async fn range(&self, key: &str, end: Vec<u8>) -> Vec<KeyValue> {
        let request =
            RangeRequest { key: key.to_owned().into(), range_end: end.into(), ..Default::default() };
        let answer = self.ask("read", async |channel: Channel, token: &Token| {
            KvClient::new(channel).range(with_token(request.clone(), token)).await
        });
        answer.await.into_inner().kvs
    }

    async fn put(&self, key: &str, value: &str) {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let answer = self.ask("register", async |channel: Channel, token: &Token| {
            KvClient::new(channel).put(with_token(request.clone(), token)).await
        });
        answer.await;
    }

    /// Asks one endpoint after the other until one answers.
    async fn ask<T>(&self, step: &str, call: impl AsyncFn(Channel, &Token) -> Result<T, Status>) -> T {
        let mut pause = PAUSE_MIN;
        loop {
            for (endpoint, channel) in &self.channels {
                let asking = async {
                    let token = self.token(channel).await?;
                    call(channel.clone(), &token).await
                };
                let time = self.options.dial_timeout + self.options.request_timeout;
                let error = match tokio::time::timeout(time, asking).await {
                    Ok(Ok(answer)) => return answer,
                    Ok(Err(status)) => status.message().to_owned(),
                    Err(_) => "it does not answer in time".to_owned(),
                };
                tracing::warn!(endpoint, error, reason = step, "the discovery service cannot be asked");
            }
            tracing::warn!(backoff = ?pause, reason = step, "retry connecting to discovery service");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// What shows who we are, if anything does. Made for each request: they are few.
    async fn token(&self, channel: &Channel) -> Result<Token, Status> {
        let Some((name, password)) = self.options.user.clone() else { return Ok(None) };
        let answer =
            AuthClient::new(channel.clone()).authenticate(AuthenticateRequest { name, password }).await?;
        let token = answer.into_inner().token.parse();
        token
            .map(Some)
            .map_err(|_| Status::unauthenticated("the discovery service gives a token that is none"))
    }
}

type Token = Option<MetadataValue<Ascii>>;

fn with_token<T>(message: T, token: &Token) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.clone());
    }
    request
}

/// The oldest first, each once, without what is no member.
fn in_order(registered: impl Iterator<Item = Registered>) -> Vec<Registered> {
    let mut all: Vec<Registered> = registered
        .filter(|one| {
            let is_member = one.members.contains('=');
            if !is_member {
                tracing::warn!(
                    key = one.key,
                    member = one.members,
                    "invalid peer info returned from discovery service"
                );
            }
            is_member
        })
        .collect();
    all.sort_by_key(|one| one.created_revision);
    all
}

/// A member is one of the cluster if it is among the oldest, or may still be.
fn check_room(registered: &[Registered], own_key: &str, size: usize) -> Result<(), String> {
    let oldest = &registered[..registered.len().min(size)];
    if registered.len() < size || oldest.iter().any(|one| one.key == own_key) {
        return Ok(());
    }
    Err("discovery: cluster is full".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(key: &str, created_revision: i64) -> Registered {
        Registered { key: key.to_owned(), created_revision, members: format!("{key}=http://{key}:1") }
    }

    #[test]
    fn the_oldest_are_the_cluster() {
        let nobody = Registered { members: "nothing".to_owned(), ..registered("z", 1) };
        let all = in_order([registered("b", 7), nobody, registered("c", 9), registered("a", 8)].into_iter());
        assert_eq!(all.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(check_room(&all, "a", 2), Ok(()));
        assert_eq!(check_room(&all, "c", 2), Err("discovery: cluster is full".to_owned()));
        assert_eq!(check_room(&all, "new", 3), Err("discovery: cluster is full".to_owned()));
        assert_eq!(check_room(&all, "new", 4), Ok(()));
    }
}
