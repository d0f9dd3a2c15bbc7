//! `top`: all members of a cluster and what they do, in a view of the terminal that refreshes itself.
//!
//! **Contract.** A look asks every member that the cluster lists, at once: what it says of itself, its metrics, and the cluster's alarms. Rates are the
//! difference of two looks. A member that does not answer keeps its row, with the reason. In a terminal each look takes the place of the
//! one before, until `q`, SIGINT or SIGTERM; the terminal is then as it was. Elsewhere each look is printed as lines, with an empty one
//! behind it.
//!
//! **Does not know** what a healthy cluster is: it shows, and judges nothing.
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::flags;
use crate::ctl::http;
use crate::ctl::printer::{Format, Printer};
use crate::ctl::table::bytes_text;
use crate::endpoint::status_of;
use crate::lock::Signals;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::time::Duration;
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use tokio::sync::mpsc;

/// Looks are not closer together than this, whatever is asked for.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const COLUMNS: [&str; 14] = [
    "MEMBER", "ENDPOINT", "ROLE", "VERSION", "REVISION", "TERM", "INDEX", "APPLIED", "DB SIZE", "IN USE",
    "PUT/S", "DEL/S", "GET/S", "WATCHERS",
];
/// These stand to the left; numbers to the right.
const TEXT_COLUMNS: usize = 4;
const PUTS: &str = "etcd_mvcc_put_total";
const DELETES: &str = "etcd_mvcc_delete_total";
const GETS: &str = "etcd_mvcc_range_total";
const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

#[derive(Args)]
pub(crate) struct TopOptions {
    /// Time between two looks; at least 100ms
    #[arg(long, default_value = "2s", value_parser = flags::duration)]
    interval: Duration,
    /// End after so many looks; 0 for none
    #[arg(long, default_value_t = 0, value_parser = flags::natural)]
    count: u64,
    #[arg(hide = true)]
    arguments: Vec<String>,
}

/// What one member said.
struct MemberLook {
    /// Its name; its endpoint if it has none.
    name: String,
    endpoint: String,
    /// What it says of itself, or why it says nothing.
    status: Result<pb::StatusResponse, String>,
    /// Counters and gauges of its metrics; empty if it gives none.
    metrics: BTreeMap<&'static str, f64>,
    /// When that was.
    at_us: u64,
}

/// All members at one time.
struct Look {
    members: Vec<MemberLook>,
    /// What is active, in words.
    alarms: Vec<String>,
}

pub(crate) async fn run(client: &Client, printer: Printer, options: TopOptions) -> Result<(), Failure> {
    if printer.format != Format::Simple {
        return Err(Failure::bad_feature("top is for people: -w simple alone"));
    }
    let mut signals = Signals::new()?;
    // The first answer says whether there is a cluster at all, and brings the token that all later calls have.
    client.cluster().await?;
    let mut view = View::new()?;
    let clock = MonotonicClock::default();
    let mut ticks = tokio::time::interval(options.interval.max(INTERVAL_MIN));
    let mut last: Option<Look> = None;
    let mut looks_count = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = signals.next() => return Ok(()),
            () = view.quit() => return Ok(()),
        }
        let look = tokio::select! {
            look = look(client, &clock) => look,
            () = signals.next() => return Ok(()),
            () = view.quit() => return Ok(()),
        };
        view.show(&lines(&look, last.as_ref()))?;
        last = Some(look);
        looks_count += 1;
        if looks_count == options.count {
            return Ok(());
        }
    }
}

async fn look(client: &Client, clock: &MonotonicClock) -> Look {
    let members = members(client).await;
    let mut asked = Vec::new();
    for (name, endpoint) in &members {
        let (client, endpoint) = (client.clone(), endpoint.clone());
        let asking = async move {
            let page = async { http::get(&client, &endpoint, "/metrics").await.unwrap_or_default() };
            tokio::join!(status_of(&client, &endpoint), page)
        };
        asked.push((name.clone(), tokio::spawn(asking)));
    }
    let mut looks = Vec::new();
    for ((name, asking), (_, endpoint)) in asked.into_iter().zip(members) {
        let (status, page) = match asking.await {
            Ok((status, page)) => (status.map_err(|failure| failure.message), page),
            Err(error) => (Err(error.to_string()), String::new()),
        };
        looks.push(MemberLook { name, endpoint, status, metrics: metrics(&page), at_us: clock.now_us() });
    }
    let alarms = alarms(client, &looks).await;
    Look { members: looks, alarms }
}

/// Names and endpoints of all members; the endpoints as typed where nobody lists them.
async fn members(client: &Client) -> Vec<(String, String)> {
    let listed = async {
        // Not linearizable: it is of use above all when there is no quorum.
        let request = pb::MemberListRequest { linearizable: false };
        client.call(client.cluster().await?.member_list(request)).await
    };
    let Ok(listed) = listed.await else {
        return client.endpoints().into_iter().map(|endpoint| (endpoint.clone(), endpoint)).collect();
    };
    let mut members: Vec<_> = listed
        .members
        .into_iter()
        .filter_map(|member| Some((member.name, member.client_ur_ls.into_iter().next()?)))
        .collect();
    members.sort();
    members
}

async fn alarms(client: &Client, members: &[MemberLook]) -> Vec<String> {
    let active = async {
        let request = pb::AlarmRequest { action: AlarmAction::Get.into(), ..Default::default() };
        client.call(client.any_maintenance().await?.alarm(request)).await
    };
    let Ok(active) = active.await else { return Vec::new() };
    let name = |id: u64| {
        let is_it = |member: &&MemberLook| member_id(member) == Some(id);
        members.iter().find(is_it).map_or_else(|| format!("{id:x}"), |member| member.name.clone())
    };
    let alarms = active.alarms.iter();
    alarms.map(|alarm| format!("{} {}", alarm.alarm().as_str_name(), name(alarm.member_id))).collect()
}

fn member_id(member: &MemberLook) -> Option<u64> {
    member.status.as_ref().ok().and_then(|status| status.header).map(|header| header.member_id)
}

/// Those of the metrics that are shown.
fn metrics(page: &str) -> BTreeMap<&'static str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let known = [PUTS, DELETES, GETS, WATCHERS].into_iter().find(|known| *known == name)?;
        Some((known, value.parse().ok()?))
    });
    pairs.collect()
}

/// A look as lines, with rates against the one before.
fn lines(look: &Look, last: Option<&Look>) -> Vec<String> {
    let answering = look.members.iter().filter(|member| member.status.is_ok()).count();
    let count = look.members.len();
    let revision =
        look.members.iter().filter_map(|member| header(member).map(|header| header.revision)).max();
    let leader = look.members.iter().find(|member| role(member) == "leader");
    let mut out = vec![format!(
        "{answering} of {count} members answer, revision {}, leader {}, {}",
        revision.unwrap_or(0),
        leader.map_or("unknown", |leader| &leader.name),
        match &look.alarms[..] {
            [] => "no alarm".to_owned(),
            alarms => format!("ALARM: {}", alarms.join(", ")),
        }
    )];
    let mut rows = vec![COLUMNS.map(str::to_owned).to_vec()];
    for member in &look.members {
        let before = last.and_then(|last| last.members.iter().find(|it| it.endpoint == member.endpoint));
        rows.push(row(member, before));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < TEXT_COLUMNS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        out.push(cells.collect::<Vec<_>>().join("  ").trim_end().to_owned());
    }
    for member in &look.members {
        match &member.status {
            Err(why) => out.push(format!("{}: {why}", member.name)),
            Ok(status) if !status.errors.is_empty() => {
                out.push(format!("{}: {}", member.name, status.errors.join("; ")));
            }
            Ok(_) => {}
        }
    }
    out
}

fn header(member: &MemberLook) -> Option<pb::ResponseHeader> {
    member.status.as_ref().ok().and_then(|status| status.header)
}

fn role(member: &MemberLook) -> &'static str {
    match &member.status {
        Err(_) => "silent",
        Ok(status) if status.is_learner => "learner",
        Ok(status) if member_id(member) == Some(status.leader) => "leader",
        Ok(status) if status.leader == 0 => "leaderless",
        Ok(_) => "follower",
    }
}

fn row(member: &MemberLook, before: Option<&MemberLook>) -> Vec<String> {
    let rate = |name: &str| {
        let before = before?;
        let seconds = member.at_us.saturating_sub(before.at_us) as f64 / 1e6;
        let difference = member.metrics.get(name)? - before.metrics.get(name)?;
        // A server that was started again counts from 0.
        (seconds > 0.0 && difference >= 0.0).then(|| format!("{:.0}", difference / seconds))
    };
    let rate = |name: &str| rate(name).unwrap_or_else(|| "-".to_owned());
    let status = member.status.clone().unwrap_or_default();
    let said = |text: String| if member.status.is_ok() { text } else { "-".to_owned() };
    let bytes = |bytes: i64| said(bytes_text(u64::try_from(bytes).unwrap_or(0)));
    let watchers = member.metrics.get(WATCHERS).map_or("-".to_owned(), |count| format!("{count:.0}"));
    vec![
        member.name.clone(),
        member.endpoint.clone(),
        role(member).to_owned(),
        said(status.version),
        said(status.header.map_or(0, |header| header.revision).to_string()),
        said(status.raft_term.to_string()),
        said(status.raft_index.to_string()),
        said(status.raft_applied_index.to_string()),
        bytes(status.db_size),
        bytes(status.db_size_in_use),
        rate(PUTS),
        rate(DELETES),
        rate(GETS),
        watchers,
    ]
}

/// Where looks are shown.
struct View {
    /// Standard output is a terminal.
    is_terminal: bool,
    /// The terminal as it was, if keys are read from it.
    restored: Option<Termios>,
    keys: mpsc::Receiver<u8>,
    /// Keeps the channel open where no keys are read.
    _no_keys: Option<mpsc::Sender<u8>>,
}

impl View {
    fn new() -> Result<Self, Failure> {
        let (sender, keys) = mpsc::channel(16);
        let is_terminal = std::io::stdout().is_terminal();
        let mut view = Self { is_terminal, restored: None, keys, _no_keys: None };
        if !is_terminal || !std::io::stdin().is_terminal() {
            view._no_keys = Some(sender);
        } else {
            let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from)?;
            let mut by_key = before.clone();
            by_key.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(std::io::stdin(), OptionalActions::Flush, &by_key).map_err(std::io::Error::from)?;
            view.restored = Some(before);
            // Reading blocks, so it has a thread of its own, which ends with the process.
            std::thread::spawn(move || {
                for key in std::io::stdin().lock().bytes().map_while(Result::ok) {
                    if sender.blocking_send(key).is_err() {
                        return;
                    }
                }
            });
        }
        if is_terminal {
            // The other screen, without a cursor.
            write_out("\x1b[?1049h\x1b[?25l")?;
        }
        Ok(view)
    }

    /// Answers when `q` is typed.
    async fn quit(&mut self) {
        while let Some(key) = self.keys.recv().await {
            if matches!(key, b'q' | b'Q') {
                return;
            }
        }
    }

    fn show(&self, lines: &[String]) -> Result<(), Failure> {
        if !self.is_terminal {
            return write_out(&format!("{}\n\n", lines.join("\n")));
        }
        // A line that is too long would become two, and push the last ones out.
        // One that does not know its size says 0.
        let size = tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        let (columns, rows) = size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()));
        let mut out = String::from("\x1b[H");
        for (index, line) in lines.iter().take(std::cmp::max(rows, 1)).enumerate() {
            out += if index == 0 { "" } else { "\r\n" };
            out.extend(line.chars().take(columns));
            out += "\x1b[K";
        }
        write_out(&(out + "\x1b[J"))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        if self.is_terminal {
            let _ = write_out("\x1b[?25h\x1b[?1049l");
        }
        if let Some(before) = &self.restored {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
        }
    }
}

fn write_out(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, id: u64, puts: f64, at_us: u64) -> MemberLook {
        let header = pb::ResponseHeader { member_id: id, revision: 7, ..Default::default() };
        let status = pb::StatusResponse {
            header: Some(header),
            leader: 1,
            version: "3.7.3".into(),
            db_size: 20_480,
            raft_term: 2,
            ..Default::default()
        };
        let metrics = metrics(&format!("# HELP x\n{PUTS} {puts}\nother 3\n{WATCHERS} 4\n"));
        MemberLook {
            name: name.into(),
            endpoint: format!("http://{name}:1"),
            status: Ok(status),
            metrics,
            at_us,
        }
    }

    #[test]
    fn rates_are_the_difference_of_two_looks() {
        let first = Look { members: vec![member("a", 1, 100.0, 0), member("b", 2, 0.0, 0)], alarms: vec![] };
        let mut silent = member("b", 2, 0.0, 2_000_000);
        silent.status = Err("connection refused".into());
        let second = Look {
            members: vec![member("a", 1, 300.0, 2_000_000), silent],
            alarms: vec!["NOSPACE a".into()],
        };
        let said = lines(&second, Some(&first));
        assert_eq!(said[0], "1 of 2 members answer, revision 7, leader a, ALARM: NOSPACE a");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let expected = "a http://a:1 leader 3.7.3 7 2 0 0 20 kB 0 B 100 - - 4";
        assert_eq!(words(&said[2]), words(expected));
        assert!(said[3].contains("silent"), "{}", said[3]);
        assert_eq!(said[4], "b: connection refused");
        assert!(words(&lines(&first, None)[2]).ends_with(&words("0 B - - - 4")));
        // The server was started again.
        assert!(words(&lines(&first, Some(&second))[2]).ends_with(&words("0 B - - - 4")));
    }
}
