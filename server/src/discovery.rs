//! The first members of a cluster that nobody lists in a flag: found in DNS, or by a discovery service that members register with.
//!
//! **Contract.** Asked once, by a member with an empty data directory, before anything of its cluster exists; what comes out takes the place of
//! `--initial-cluster`. Every member must find the same peer URLs, because ids and genesis follow from them. A directory with data is started
//! from its data, and nobody is asked.
//!
//! **Failure.** What a service says is wrong (a cluster that is full, a size that is none) ends the start with etcd's text; a
//! service or name server that does not answer is asked again.
//!
//! **Source**: `server/embed/config.go`, `client/pkg/srv` and `server/etcdserver/api/v3discovery` of etcd 3.7.3.
pub mod registry;
pub mod srv;

use crate::config::Config;
use crate::config::url::{self, Url};
use registry::Registry;
use std::path::PathBuf;
use std::time::Duration;

/// How the first members are found, if not by `--initial-cluster`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Discovery {
    /// SRV records of this domain.
    Srv {
        /// The domain.
        domain: String,
        /// Behind the service's name, with a dash; empty for none.
        suffix: String,
    },
    /// A cluster of etcd or Sternpost in which members register.
    Registry(RegistryOptions),
}

/// The discovery service.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Names the cluster there; takes the place of `--initial-cluster-token`.
    pub token: String,
    /// `host:port` or URLs.
    pub endpoints: Vec<String>,
    /// For a connection.
    pub dial_timeout: Duration,
    /// For a request.
    pub request_timeout: Duration,
    /// Between pings of a connection, and how long an answer may take.
    pub keepalive: (Duration, Duration),
    /// Endpoints without a scheme are `http`.
    pub is_insecure: bool,
    /// Verify nothing.
    pub skips_verification: bool,
    /// Certificate and key to present.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// CA bundle.
    pub cacert: Option<PathBuf>,
    /// User and password.
    pub user: Option<(String, String)>,
}

// A password is in it.
impl std::fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions")
            .field("token", &self.token)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// Finds the members of the cluster that this one is to start, and puts them into `config`.
///
/// # Errors
/// One line for the user.
pub async fn find_members(config: &mut Config) -> Result<(), String> {
    match config.discovery.clone() {
        None => Ok(()),
        Some(Discovery::Srv { domain, suffix }) => {
            let found =
                srv::members(&domain, &suffix, &config.name, &config.initial_advertise_peer_urls).await;
            config.initial_cluster =
                found.map_err(|error| format!("error setting up initial cluster: {error}"))?;
            // Each of them knows its own name alone; a genesis with names would be another one on each.
            config.initial_names_known = false;
            Ok(())
        }
        Some(Discovery::Registry(options)) => {
            if config.initial_cluster_existing {
                return Err("discovery URL should not be set when joining existing initial cluster".into());
            }
            let token = options.token.clone();
            let joined =
                Registry::new(options)?.join(&config.name, &config.initial_advertise_peer_urls).await;
            let members = joined.map_err(|error| format!("failed to join discovery cluster ({error})"))?;
            let mut urls: Vec<&Url> = members.iter().flat_map(|(_, urls)| urls).collect();
            urls.sort_unstable();
            if urls.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(format!("discovery cluster {} has duplicate url", members_text(&members)));
            }
            config.initial_cluster = members;
            config.initial_cluster_token = token;
            Ok(())
        }
    }
}

/// Members as `--initial-cluster` has them: `name=url,name=url`, sorted by name.
fn members_text(members: &[(String, Vec<Url>)]) -> String {
    let texts = members.iter().flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")));
    texts.collect::<Vec<_>>().join(",")
}

/// The other way round. The members are sorted by name, and each one's URLs.
fn parse_members(text: &str) -> Result<Vec<(String, Vec<Url>)>, String> {
    let mut members: Vec<(String, Vec<Url>)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').ok_or_else(|| format!("{part:?} is no name=url"))?;
        add_url(&mut members, name, url::parse_one(url)?);
    }
    sort(&mut members);
    Ok(members)
}

fn add_url(members: &mut Vec<(String, Vec<Url>)>, name: &str, url: Url) {
    match members.iter_mut().find(|(known, _)| known == name) {
        Some((_, urls)) => urls.push(url),
        None => members.push((name.to_owned(), vec![url])),
    }
}

fn sort(members: &mut [(String, Vec<Url>)]) {
    members.iter_mut().for_each(|(_, urls)| urls.sort());
    members.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_sorted_and_what_is_no_url_is_refused() {
        let members = parse_members("b=http://h:2, a=http://h:1,b=http://g:2").unwrap();
        assert_eq!(members_text(&members), "a=http://h:1,b=http://g:2,b=http://h:2");
        assert!(parse_members("a").is_err() && parse_members("a=h:1").is_err());
    }
}
