//! State from other members: the first one of a member that joins, and that of one that was away for too long.
//!
//! **Contract.** Whatever is fetched lies beside the data until the next start puts it in place; a fetch that was cut short goes on where it was. A
//! member that joins knows nothing but the URLs of the others: it asks them who they are, finds itself among them by its own URLs
//! (`member add` was before), and fetches.
//!
//! A member whose data differs from that of most others ([`crate::comparison`]) fetches the state of one of them, whatever its log reaches back to.
//!
//! **Failure.** A member that cannot be asked is passed over for the next. etcd's texts where a person knows them.
use crate::apply::GenesisState;
use crate::comparison::Comparison;
use crate::config::{Config, url};
use crate::identity;
use crate::peers::{Peers, transport_config};
use crate::tls::Tls;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::transfer::Place;
use sternpost_replication::raft::boot_nonce;
use sternpost_replication::raft::state::{FetchProgress, fetch};
use sternpost_replication::transport::{Address, Discovery, TransportConfig, discover};
use tokio::sync::watch;

/// Between two attempts.
const AGAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts of a member that joins, each at all members, before it says that it cannot.
const ATTEMPTS_MAX: u32 = 60;

/// Attempts until it believes that the cluster's members are not those of its flags.
const UNFIT_ATTEMPTS_MAX: u32 = 5;

/// Fetches the state of a running cluster into the empty data directory of a member that was added to it.
pub fn fetch_first_state(config: &Config, tls: &Tls) -> Result<(), String> {
    let secure = tls.secure();
    let others: Vec<&url::Url> = config
        .initial_cluster
        .iter()
        .filter(|(name, _)| *name != config.name)
        .flat_map(|(_, urls)| urls)
        .collect();
    let mut last = String::new();
    for attempt in 1..=ATTEMPTS_MAX {
        let mut is_answered = false;
        let mut has_fit = false;
        let mut unfit = None;
        for url in &others {
            let address = identity::dial_address(url);
            let asked = discover(&address, secure.as_ref());
            let discovery = match asked {
                Ok(discovery) => discovery,
                Err(error) => {
                    last = format!("{url}: {error}");
                    continue;
                }
            };
            is_answered = true;
            let (member_id, has_started) = match find_oneself(config, &discovery) {
                Ok(found) => found,
                // It may not have applied yet what the others have.
                Err(error) => {
                    unfit = Some(error);
                    continue;
                }
            };
            has_fit = true;
            if has_started {
                return Err(lost_data(member_id));
            }
            let (cluster_id, genesis_hash) = (discovery.cluster_id, discovery.genesis_hash);
            let transport = transport_config(config, cluster_id, member_id, genesis_hash, boot_nonce(), tls)?;
            // Let go of again before the member starts.
            let place = Place::in_directory(&config.data_dir, config.io_backend(), Place::WAIT)
                .map_err(|error| error.to_string())?;
            match fetch_from(&place, &transport, discovery.member_id, &address) {
                Ok(_) => return Ok(()),
                Err(error) => last = format!("{url}: {error}"),
            }
        }
        if !is_answered {
            return Err(format!(
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs ({last})"
            ));
        }
        if let Some(error) = unfit.filter(|_| !has_fit) {
            if attempt >= UNFIT_ATTEMPTS_MAX {
                return Err(error);
            }
            last = error;
        }
        tracing::warn!(attempt, error = last, "no member gave its state; all are asked again");
        pause();
    }
    Err(format!("no member gave its state: {last}"))
}

/// A member without data in a cluster that has heard of it before.
fn lost_data(member_id: u64) -> String {
    format!(
        "member {member_id:x} has started before, and its data directory is empty: what it has acknowledged and how it has voted is lost, so \
         it must not take part under this id; remove it from the cluster (member remove {member_id:x}), add it anew, and start \
         it with --initial-cluster-state=existing"
    )
}

/// Asks all of these addresses at once who is there; whoever does not answer says nothing.
fn ask_all(addresses: &[Address], tls: &Tls) -> Vec<(Discovery, GenesisState)> {
    let secure = tls.secure();
    let secure = secure.as_ref();
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            addresses.iter().map(|address| scope.spawn(move || discover(address, secure))).collect();
        let answers = asked.into_iter().filter_map(|asking| asking.join().ok()?.ok());
        answers
            .filter_map(|discovery| {
                let state = GenesisState::decode(&discovery.member_table)?;
                Some((discovery, state))
            })
            .collect()
    })
}

fn addresses_of_others(config: &Config) -> Vec<Address> {
    let others = config.initial_cluster.iter().filter(|(name, _)| *name != config.name);
    others.flat_map(|(_, urls)| urls.iter().map(identity::dial_address)).collect()
}

/// A first member with an empty directory is new, or it has lost its data: other members that run know which.
pub fn refuse_lost_data(config: &Config, tls: &Tls) -> Result<(), String> {
    let text = |urls: &[url::Url]| {
        let mut texts: Vec<String> = urls.iter().map(ToString::to_string).collect();
        texts.sort_unstable();
        texts
    };
    let own = config.initial_cluster.iter().find(|(name, _)| *name == config.name);
    let own_urls = own.map(|(_, urls)| text(urls)).unwrap_or_default();
    for (_, state) in ask_all(&addresses_of_others(config), tls) {
        // Whoever knows nobody at our URLs says nothing.
        let known = state.members.iter().find(|member| member.peer_ur_ls == own_urls);
        if let Some(known) = known.filter(|known| !known.client_ur_ls.is_empty()) {
            return Err(lost_data(known.id));
        }
    }
    Ok(())
}

/// `--force-new-cluster` tells every other member that it was removed, and then it ends. While they have a quorum among them, that would end a
/// cluster that works. Asked are the members of `--initial-cluster` and those that they know.
pub fn refuse_needless_force(config: &Config, tls: &Tls) -> Result<(), String> {
    let mut asked = addresses_of_others(config);
    let mut answered = ask_all(&asked, tls);
    // Not to be asked: this member itself, which does not answer yet.
    asked.extend(config.initial_advertise_peer_urls.iter().map(identity::dial_address));
    let mut unasked = Vec::new();
    for member in answered.iter().flat_map(|(_, state)| &state.members) {
        for address in identity::dial_addresses(member).unwrap_or_default() {
            if !asked.contains(&address) {
                asked.push(address.clone());
                unasked.push(address);
            }
        }
    }
    answered.extend(ask_all(&unasked, tls));
    let answering: BTreeSet<u64> = answered.iter().map(|(discovery, _)| discovery.member_id).collect();
    for (_, state) in &answered {
        let voters = state.members.iter().filter(|member| !member.is_learner);
        let voters: Vec<u64> = voters.map(|member| member.id).collect();
        let there = voters.iter().filter(|id| answering.contains(*id)).count();
        if there > voters.len() / 2 {
            return Err(format!(
                "--force-new-cluster would end a cluster that works: {there} of its {} voting members answer without this one; start without \
                 the flag, or stop the others first",
                voters.len()
            ));
        }
    }
    Ok(())
}

/// This member's id, by its URLs in the initial cluster, and whether it has ever said its client URLs.
fn find_oneself(config: &Config, discovery: &Discovery) -> Result<(u64, bool), String> {
    let state = GenesisState::decode(&discovery.member_table)
        .ok_or("the member table of the running cluster is of a format that this build does not know")?;
    let texts = |urls: &[url::Url]| urls.iter().map(ToString::to_string).collect();
    let initial_cluster: Vec<(String, Vec<String>)> =
        config.initial_cluster.iter().map(|(name, urls)| (name.clone(), texts(urls))).collect();
    let id = identity::find_oneself(&config.name, &initial_cluster, &state.members)
        .map_err(|error| format!("error validating peerURLs of the initial cluster: {error}"))?;
    let has_started = state.members.iter().any(|member| member.id == id && !member.client_ur_ls.is_empty());
    Ok((id, has_started))
}

fn fetch_from(
    place: &Place,
    transport: &TransportConfig,
    from: u64,
    address: &Address,
) -> Result<u64, String> {
    let mut told_tenths = 0;
    let mut progress = |progress: FetchProgress| {
        let tenths = progress.bytes_done * 10 / progress.bytes_total.max(1);
        if tenths != told_tenths {
            told_tenths = tenths;
            tracing::info!(
                round = progress.round,
                bytes_done = progress.bytes_done,
                bytes_total = progress.bytes_total,
                "fetching the state of another member"
            );
        }
    };
    tracing::info!(from = format!("{from:x}"), %address, "fetching the state of another member");
    let fetched = fetch(place, transport, from, address, &mut progress)?;
    tracing::info!(
        index = fetched.index,
        revision = fetched.revision,
        bytes = fetched.bytes,
        rounds = fetched.rounds,
        "fetched the state of another member"
    );
    Ok(fetched.index)
}

/// The transport, as soon as this is a member of a group.
pub type PeersWatch = watch::Receiver<Option<Arc<Peers>>>;

/// Waits for it; None if there will be none.
pub async fn there_are(peers: &PeersWatch) -> Option<Arc<Peers>> {
    let mut peers = peers.clone();
    let found = peers.wait_for(Option::is_some).await.ok()?;
    found.clone()
}

/// Returns when the state of another member was fetched because the log does not reach back to what this one misses; for ever, otherwise.
pub async fn keep_up(peers: &PeersWatch) {
    let Some(peers) = there_are(peers).await else { return std::future::pending().await };
    let mut orders = peers.fetch_orders();
    loop {
        if orders.changed().await.is_err() {
            return std::future::pending().await;
        }
        let from = *orders.borrow_and_update();
        // Late words of somebody who leads no more would cost a restart, of a leader perhaps.
        if !peers.is_led_by(from) {
            continue;
        }
        match fetch_staged(&peers, from).await {
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(
                    from = format!("{from:x}"),
                    error,
                    "cannot fetch the state of another member; it says again that we should"
                );
            }
        }
    }
}

/// Fetches a state for a member whose own differs: from one of `from`, or from any other member if nobody is named. It has all that this one has ever
/// acknowledged. Returns when it is staged for the next start.
///
/// # Errors
/// If the member could not be taken out of its cluster.
pub async fn fetch_sound_state(
    peers: &Arc<Peers>,
    comparison: &Comparison,
    from: Vec<u64>,
) -> Result<(), String> {
    let quarantining = Arc::clone(peers);
    let least_index = tokio::task::spawn_blocking(move || quarantining.quarantine()).await;
    let least_index = least_index.unwrap_or_else(|error| Err(error.to_string()))?;
    tracing::warn!(least_index, "this member takes no part until it has the state of another one");
    loop {
        // Before anything is fetched: of a cluster in which nobody writes no state would ever reach so far.
        comparison.ask_for_more(least_index).await;
        for source in if from.is_empty() { peers.others() } else { from.clone() } {
            match fetch_staged(peers, source).await {
                Ok(index) if index >= least_index => return Ok(()),
                Ok(index) => tracing::warn!(
                    from = format!("{source:x}"),
                    index,
                    least_index,
                    "the state of another member does not reach far enough yet; it is fetched again"
                ),
                Err(error) => tracing::warn!(
                    from = format!("{source:x}"),
                    error,
                    "cannot fetch the state of another member"
                ),
            }
        }
        tokio::time::sleep(AGAIN_INTERVAL).await;
    }
}

/// Fetches the state of `from` and stages it: the index that it reaches to.
async fn fetch_staged(peers: &Peers, from: u64) -> Result<u64, String> {
    let source = peers.source(from);
    let place = peers.staging_place();
    peers.set_fetching(true);
    let fetching = tokio::task::spawn_blocking(move || {
        let (transport, addresses) = source?;
        let mut last = "it has no address".to_owned();
        for address in addresses {
            match fetch_from(&place, &transport, from, &address) {
                Ok(index) => return Ok(index),
                Err(error) => last = error,
            }
        }
        Err(last)
    });
    let fetched = fetching.await.unwrap_or_else(|error| Err(error.to_string()));
    peers.set_fetching(false);
    fetched
}

#[expect(clippy::disallowed_methods, reason = "a member that joins has nothing else to do")]
fn pause() {
    std::thread::sleep(AGAIN_INTERVAL);
}
