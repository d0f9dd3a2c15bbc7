//! Members from SRV records: `_etcd-server-ssl._tcp.DOMAIN` for peer URLs of https, `_etcd-server._tcp.DOMAIN` for http; and for clients
//! `_etcd-client-ssl._tcp.DOMAIN` and `_etcd-client._tcp.DOMAIN`.
//!
//! **Rules**, etcd's. Both names are asked and what they have is put together; it is enough if one of them has something. A record is this member's own if
//! its target is at an address of one of `--initial-advertise-peer-urls`; it has this member's name then, and the others are numbered. URLs are those of the
//! records, so that every member computes the same ids.
//!
//! **Differs from etcd**: names that cannot be looked up are looked up again for a while, because members and their records often come up together.
use super::{add_url, sort};
use crate::config::url::{self, Url};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Attempts before it is said that the members cannot be found.
const ATTEMPTS_MAX: u32 = 10;
/// Between two of them.
const AGAIN_INTERVAL: Duration = Duration::from_secs(1);

type Members = Vec<(String, Vec<Url>)>;

/// The members that the records of `domain` name, this one, which is called `name` and at `advertised`, among them.
///
/// # Errors
/// What the last attempt found wrong.
pub async fn members(domain: &str, suffix: &str, name: &str, advertised: &[Url]) -> Result<Members, String> {
    let mut attempt = 1;
    loop {
        match look_up_all(domain, suffix, name, advertised).await {
            Ok(members) => return Ok(members),
            Err(error) if attempt == ATTEMPTS_MAX => return Err(error),
            Err(error) => {
                tracing::warn!(attempt, error, "failed to resolve during SRV discovery; it is tried again");
            }
        }
        attempt += 1;
        tokio::time::sleep(AGAIN_INTERVAL).await;
    }
}

/// URLs of the members for clients, those of https first, as etcdctl finds them; asked once.
///
/// # Errors
/// What was found wrong, if neither name has records.
pub async fn client_urls(domain: &str, suffix: &str) -> Result<Vec<String>, String> {
    let resolver = resolver()?;
    let (mut urls, mut errors) = (Vec::new(), Vec::new());
    for (scheme, service) in [("https", "etcd-client-ssl"), ("http", "etcd-client")] {
        match look_up(&resolver, &record_name(service, suffix, domain)).await {
            Ok(found) => {
                urls.extend(found.into_iter().map(|(target, port)| format!("{scheme}://{target}:{port}")));
            }
            Err(error) => errors.push(error),
        }
    }
    if urls.is_empty() { Err(format!("dns lookup errors: {}", errors.join(" and "))) } else { Ok(urls) }
}

fn resolver() -> Result<TokioResolver, String> {
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    resolver.map_err(|error| format!("no name server can be asked: {error}"))
}

fn record_name(service: &str, suffix: &str, domain: &str) -> String {
    let dash = if suffix.is_empty() { "" } else { "-" };
    format!("_{service}{dash}{suffix}._tcp.{domain}")
}

async fn look_up_all(domain: &str, suffix: &str, name: &str, advertised: &[Url]) -> Result<Members, String> {
    let resolver = resolver()?;
    let own = addresses_of(advertised).await?;
    let mut members = Members::new();
    let mut errors = Vec::new();
    let mut next_number = 0;
    for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
        let looked_up = look_up(&resolver, &record_name(service, suffix, domain)).await;
        let service = if suffix.is_empty() { service.to_owned() } else { format!("{service}-{suffix}") };
        let found = match looked_up {
            Ok(found) => found,
            Err(error) => {
                errors.push(format!("error querying DNS SRV records for _{service} {error}"));
                continue;
            }
        };
        let targets: Vec<String> =
            found.iter().map(|(target, port)| format!("{scheme}://{target}:{port}")).collect();
        tracing::info!(service, discovery_srv = domain, ?targets, "got bootstrap from DNS for etcd-server");
        for ((target, port), text) in found.into_iter().zip(targets) {
            let addresses = match tokio::net::lookup_host((target.as_str(), port)).await {
                Ok(addresses) => addresses.collect::<BTreeSet<_>>(),
                Err(error) => {
                    errors.push(format!("error querying DNS SRV records for _{service} {target}: {error}"));
                    continue;
                }
            };
            let is_own = |(_, own): &&(&Url, BTreeSet<SocketAddr>)| !own.is_disjoint(&addresses);
            let matching = own.iter().find(is_own).map(|(url, _)| *url);
            if let Some(url) = matching.filter(|url| url.scheme.is_secure() != (scheme == "https")) {
                errors.push(format!(
                    "bootstrap at {text} from DNS for {service} has scheme mismatch with expected peer {url}"
                ));
                continue;
            }
            let url = url::parse_one(&text)?;
            match matching {
                Some(_) => add_url(&mut members, name, url),
                None => {
                    add_url(&mut members, &next_number.to_string(), url);
                    next_number += 1;
                }
            }
        }
    }
    if members.is_empty() {
        return Err(errors.join("; "));
    }
    if !members.iter().any(|(known, _)| known == name) {
        errors.insert(0, format!("cannot find local etcd member {name:?} in SRV records"));
        return Err(errors.join("; "));
    }
    sort(&mut members);
    Ok(members)
}

/// The addresses of each of these URLs.
async fn addresses_of(urls: &[Url]) -> Result<Vec<(&Url, BTreeSet<SocketAddr>)>, String> {
    let mut found = Vec::new();
    for url in urls {
        let addresses = tokio::net::lookup_host(url.address.as_str()).await;
        let addresses = addresses.map_err(|error| format!("{url}: {error}"))?;
        found.push((url, addresses.collect()));
    }
    Ok(found)
}

/// Targets and ports of a name's SRV records, sorted; targets without their last dot, as URLs have them.
async fn look_up(resolver: &TokioResolver, name: &str) -> Result<Vec<(String, u16)>, String> {
    // A dot at the end, so that no search list is tried.
    let answer = resolver.srv_lookup(format!("{}.", name.trim_end_matches('.'))).await;
    let answer = answer.map_err(|error| format!("lookup {name}: {error}"))?;
    let mut found: Vec<(String, u16)> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => {
                Some((srv.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(), srv.port))
            }
            _ => None,
        })
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() { Err(format!("lookup {name}: no such record")) } else { Ok(found) }
}
