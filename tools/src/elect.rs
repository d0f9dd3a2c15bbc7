//! `elect`: campaigns under a name with a proposal, or watches who is elected there.
//!
//! **Contract.** A campaign prints its key and proposal when it has won, leads until SIGINT or SIGTERM, and then resigns. An observer (`-l`) prints
//! every leader and every new proposal of a leader from now on.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::printer::Printer;
use crate::kv::prefix_range;
use crate::lock::{Signals, called_off};
use crate::session::{Events, Session};
use bytes::Bytes;
use clap::Args;
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use sternpost_server::wire::etcdserverpb::{RangeRequest, RangeResponse, WatchCreateRequest};
use sternpost_server::wire::mvccpb::event::EventType;

/// How long an office outlives a leader that cannot resign; the Go client's.
const TTL_S: i64 = 60;
/// After a connection was lost.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct ElectOptions {
    /// Watch who is elected instead
    #[arg(long, short)]
    listen: bool,
    /// The election's name, and what to propose there
    #[arg(value_name = "NAME [PROPOSAL]")]
    arguments: Vec<String>,
}

pub(crate) async fn run(client: &Client, mut printer: Printer, options: ElectOptions) -> Result<(), Failure> {
    match (&options.arguments[..], options.listen) {
        ([name], true) => {
            let mut signals = Signals::new()?;
            tokio::select! {
                observed = observe(client, &mut printer, name) => observed,
                () = signals.next() => Ok(()),
            }
        }
        ([name, proposal], false) => {
            let mut session = Session::start(client, TTL_S).await?;
            let led = campaign(client, &mut printer, &mut session, name, proposal).await;
            session.end(client).await;
            led
        }
        ([_], false) => Err(Failure::bad_arguments("no proposal argument but -l not set")),
        ([_, _], true) => Err(Failure::bad_arguments("proposal given but -l is set")),
        _ => {
            let message = "elect takes one election name argument and an optional proposal argument";
            Err(Failure::bad_arguments(message))
        }
    }
}

async fn campaign(
    client: &Client,
    printer: &mut Printer,
    session: &mut Session,
    name: &str,
    proposal: &str,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let place = session.stand(client, name, &Bytes::copy_from_slice(proposal.as_bytes())).await?;
    let won = async {
        place.wait(client).await?;
        place.look(client).await
    };
    let found = tokio::select! {
        found = won => found,
        () = signals.next() => Err(called_off()),
        () = session.ended() => Err(Failure::new(Exit::Error, "elect: session expired")),
    };
    let found = match found {
        Ok(found) => found,
        Err(failure) => {
            // The session's end removes the key where this does not.
            let _ = place.resign(client).await;
            return Err(failure);
        }
    };
    printer.get(&found)?;
    printer.flush()?;
    tokio::select! {
        () = signals.next() => place.resign(client).await,
        () = session.ended() => Err(Failure::new(Exit::Error, "elect: session expired")),
    }
}

/// Prints the leader, then what it proposes, until its key is gone; then the next one.
async fn observe(client: &Client, printer: &mut Printer, name: &str) -> Result<(), Failure> {
    let prefix = Bytes::from(format!("{name}/"));
    let range_end = prefix_range(prefix.clone()).1;
    // Whose proposal was printed last, and as of which revision: another one may have stood for longer.
    let mut printed = (Bytes::new(), 0);
    loop {
        let request = RangeRequest {
            key: prefix.clone(),
            range_end: range_end.clone(),
            limit: 1,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..RangeRequest::default()
        };
        let found = client.call(client.kv().await?.range(request)).await?;
        let revision = found.header.map_or(0, |header| header.revision);
        let watched = match found.kvs.first() {
            Some(leader) => {
                let key = leader.key.clone();
                if leader.key != printed.0 || leader.mod_revision > printed.1 {
                    printed = (leader.key.clone(), leader.mod_revision);
                    show(printer, found)?;
                }
                WatchCreateRequest { key, start_revision: revision + 1, ..Default::default() }
            }
            // Nobody leads: the first who stands leads.
            None => WatchCreateRequest {
                key: prefix.clone(),
                range_end: range_end.clone(),
                start_revision: revision + 1,
                ..Default::default()
            },
        };
        let mut events = Events::open(client, watched).await?;
        let mut is_lost = true;
        'leader: while let Some(response) = events.next().await? {
            for event in response.events {
                let Some(kv) = event.kv.clone() else { continue };
                if event.r#type() == EventType::Delete {
                    is_lost = false;
                    break 'leader;
                }
                printed = (kv.key.clone(), kv.mod_revision);
                let is_first = found_nobody(&kv.key, &prefix, kv.version);
                show(
                    printer,
                    RangeResponse { header: response.header, kvs: vec![kv], ..Default::default() },
                )?;
                if is_first {
                    // Look again, to watch this leader's key alone.
                    is_lost = false;
                    break 'leader;
                }
            }
        }
        if is_lost {
            tokio::time::sleep(AGAIN_PAUSE).await;
        }
    }
}

/// A key that has just been created: it was waited for.
fn found_nobody(key: &Bytes, prefix: &Bytes, version: i64) -> bool {
    version == 1 && key.starts_with(prefix)
}

fn show(printer: &mut Printer, response: RangeResponse) -> Result<(), Failure> {
    printer.get(&response)?;
    printer.flush()
}
