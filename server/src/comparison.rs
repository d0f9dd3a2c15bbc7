//! Do the members hold the same data? Compared all the time, and the one that differs takes itself out and fetches what the others have.
//!
//! **Data.** A *mark* is a command like any other: who applies it notes the sum of its state at that index
//! ([`StateSum`]), which costs nothing. A *deep* mark also has every member hash all that it retains (etcd's HashKV at the mark's revision), which reads
//! everything. [`Marks`] keeps the newest few.
//!
//! **Contract.** The leader makes a mark every `--compact-hash-check-time` if anything was written since the last one, and a deep one every
//! `--corrupt-check-time`. At each mark every member asks every other one what it has there, and judges *itself* ([`judge`]): nobody throws away
//! data because one other says so, and the leader is judged like the others.
//!
//! | a majority of all members | this member |
//! |---|---|
//! | agrees with this one | goes on; the leader says who differs |
//! | agrees, and on something else | is quarantined, stops serving, fetches the state of one of them and starts again with it |
//! | does not agree, and all have answered | the leader raises CORRUPT for member 0, as etcd does: all writes are refused until a person decides |
//! | has not answered | goes on; the next mark asks again |
//!
//! **Differs from etcd**: its comparison runs only on demand, reads all data, and raises CORRUPT for the whole cluster where one member
//! differs; nothing is repaired.
//!
//! **Bounds.** [`marks::KEPT_MAX`] marks; one comparison at a time; one question a member.
//!
//! **Layout** of a question: kind u8 ([`QUESTION`]) · what u8 (1 what do you have at a mark, 2 write beyond, 3 I differ) · index u64 · for 3: who u64. Of an
//! answer to the first: outcome u8
//! (0 here it is, 1 not there yet, 2 not kept) · changes u64 · since revision i64 · system u64 · revision i64 · compact revision i64 · has hash u8 ·
//! hash u32 · its compact revision i64 · its revision i64, little-endian; to the others: nothing.
//!
//! **Reading order**: [`judge`], [`marks`], here.
pub mod judge;
pub mod marks;

use crate::apply::records;
use crate::auth::origin::Credential;
use crate::metrics::ComparisonMetrics;
use crate::request::Pipeline;
use crate::request::kv_hash::KvHash;
use crate::wire::etcdserverpb::alarm_request::AlarmAction;
use crate::wire::etcdserverpb::{AlarmRequest, AlarmType};
use judge::{Said, Verdict, judge};
use marks::{Kept, Mark, Marks};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::base::codec::{Reader, Truncated};
use sternpost_engine::mvcc::StateSum;
use sternpost_replication::Reply;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// First byte of such a question.
pub const QUESTION: u8 = 4;
const WHAT_AT_MARK: u8 = 1;
const WHAT_WRITE_BEYOND: u8 = 2;
const WHAT_DIFFERS: u8 = 3;
/// So long an answer of another member is waited for, and so long until it is asked again.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// A comparison waits so long for members that are behind or away.
const COMPARE_TIME: Duration = Duration::from_secs(10);
/// A deep one also for their hashing.
const COMPARE_DEEP_TIME: Duration = Duration::from_mins(30);
/// A member that starts waits so long to be compared.
const INITIAL_TIME: Duration = Duration::from_secs(5);
/// Entries that are written for a member that needs a state beyond an index, for each time that it asks.
const BEYOND_MAX: u64 = 64;

/// How often marks are made.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Between marks; `--compact-hash-check-time`.
    pub plain: Duration,
    /// Between deep ones, none for never; `--corrupt-check-time`.
    pub deep: Option<Duration>,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { plain: Duration::from_mins(1), deep: None }
    }
}

/// This member differs from a majority of all members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The mark at which that was found.
    pub index: u64,
    /// Who has the same, by id: its state may be fetched from any of them.
    pub from: Vec<u64>,
}

/// See the module.
pub struct Comparison {
    marks: Arc<Marks>,
    pipeline: Arc<Pipeline>,
    metrics: ComparisonMetrics,
    found: watch::Sender<Option<Difference>>,
    /// Index of the newest mark at which this member was judged.
    judged: watch::Sender<u64>,
}

impl Comparison {
    /// Compares what `marks` is told of.
    pub fn new(marks: Arc<Marks>, pipeline: Arc<Pipeline>, metrics: ComparisonMetrics) -> Self {
        Self { marks, pipeline, metrics, found: watch::Sender::new(None), judged: watch::Sender::new(0) }
    }

    /// Returns when this member was found to differ; perhaps never.
    pub async fn difference(&self) -> Difference {
        let mut found = self.found.subscribe();
        // The sender lives as long as `self`.
        let found = found.wait_for(Option::is_some).await;
        match found.ok().and_then(|found| found.clone()) {
            Some(difference) => difference,
            None => std::future::pending().await,
        }
    }

    /// Compares this member with the others before it serves anybody, as etcd does by its gate InitialCorruptCheck: returns when it was judged beyond what it held at the
    /// start, or after [`INITIAL_TIME`]: a cluster without a leader has nobody to compare with, and etcd serves then too. What comes of it, [`Self::difference`] says.
    pub async fn judge_first(&self) {
        let applied = self.pipeline.store().applied().0;
        let mut judged = self.judged.subscribe();
        let asking = async {
            loop {
                match self.pipeline.replicator().status().proved_term {
                    Some(_) => self.write_beyond(applied).await,
                    None => self.ask_for_more(applied).await,
                }
                tokio::time::sleep(ANSWER_TIME / 5).await;
            }
        };
        let is_judged = async { judged.wait_for(|index| *index > applied).await.is_ok() };
        tokio::select! {
            _ = is_judged => tracing::info!(applied, "this member was compared with the others before it serves"),
            () = asking => {}
            () = tokio::time::sleep(INITIAL_TIME) => tracing::warn!(
                applied,
                "this member could not be compared with the others before it serves: too few of them answer"
            ),
        }
    }

    /// Another member asks.
    pub async fn answer(&self, question: &[u8], reply: Reply) {
        let mut reader = Reader::new(question);
        let (Ok(QUESTION), Ok(what), Ok(index)) = (reader.u8(), reader.u8(), reader.u64()) else { return };
        match what {
            WHAT_AT_MARK => reply(encode_answer(&self.marks.at(index, self.pipeline.store().applied().0))),
            WHAT_WRITE_BEYOND => {
                self.write_beyond(index).await;
                reply(Vec::new());
            }
            WHAT_DIFFERS => {
                let Ok(member) = reader.u64() else { return };
                self.note_differing(index, &[member]);
                reply(Vec::new());
            }
            // Of a later build; no answer is a time-out there.
            _ => {}
        }
    }

    /// As leader: makes marks until one lies beyond `index`, or some. A member that is to be compared needs one, and one that is quarantined can end that only with
    /// a state that reaches so far.
    async fn write_beyond(&self, index: u64) {
        for _ in 0..BEYOND_MAX {
            let is_beyond = self.marks.newest_index() > index;
            let Some(term) = self.pipeline.replicator().status().proved_term.filter(|_| !is_beyond) else {
                return;
            };
            if self.pipeline.make_mark(false, term).await.is_err() {
                return;
            }
        }
    }

    /// Asks for entries beyond `index`. All others are asked, and who leads does it: a quarantined member hears of no leader.
    pub async fn ask_for_more(&self, index: u64) {
        self.ask_others(&encode_question(WHAT_WRITE_BEYOND, index)).join_all().await;
    }

    /// Asks every other member, and waits for no more than that they have heard it. On its way when this returns.
    fn ask_others(&self, question: &[u8]) -> JoinSet<()> {
        let own_id = self.pipeline.membership().member_id();
        let mut asked = JoinSet::new();
        for member in records::members(self.pipeline.store()).iter().filter(|member| member.id != own_id) {
            let answer = self.pipeline.replicator().ask_member(member.id, question.to_vec());
            asked.spawn(async move { drop(tokio::time::timeout(ANSWER_TIME, answer).await) });
        }
        asked
    }

    /// Makes marks while this member leads, until it is dropped.
    pub async fn make_marks(self: Arc<Self>, intervals: Intervals) {
        let mut plain = tokio::time::interval(intervals.plain);
        // Never: once in a long time, and then not.
        let mut deep = tokio::time::interval(intervals.deep.unwrap_or(Duration::from_hours(24)));
        for ticks in [&mut plain, &mut deep] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            // The first tick of an interval comes at once.
            ticks.tick().await;
        }
        loop {
            let is_deep = tokio::select! {
                _ = plain.tick() => false,
                _ = deep.tick() => true,
            };
            if is_deep && intervals.deep.is_none() {
                continue;
            }
            let status = self.pipeline.replicator().status();
            let Some(term) = status.proved_term else { continue };
            let is_alone = records::members(self.pipeline.store()).len() < 2;
            // An idle cluster's log stays as it is; what lies on its disks may change.
            let is_new = status.applied_index > self.marks.newest_index();
            if is_alone || !(is_deep || is_new) {
                continue;
            }
            if let Err(error) = self.pipeline.make_mark(is_deep, term).await {
                tracing::debug!(%error, "no mark could be made to compare the members at");
            }
        }
    }

    /// Compares at every mark, until it is dropped.
    pub async fn compare_all(self: Arc<Self>) {
        let mut newest = self.marks.subscribe();
        while newest.changed().await.is_ok() {
            let Some(mark) = *newest.borrow_and_update() else { continue };
            if mark.is_deep {
                let hash = self.pipeline.hash_kv(mark.sum.revision).await;
                if let Err(error) = &hash {
                    tracing::warn!(index = mark.index, %error, "the data could not be hashed to compare it");
                }
                self.marks.set_hash(mark.index, hash.ok());
            }
            self.compare(mark).await;
        }
    }

    /// Compares at one mark, as far as the others answer in time.
    async fn compare(&self, mark: Mark) {
        let Kept::Here(own) = self.marks.at(mark.index, mark.index) else { return };
        let end = Instant::now() + if mark.is_deep { COMPARE_DEEP_TIME } else { COMPARE_TIME };
        let own_id = self.pipeline.membership().member_id();
        let mut said: BTreeMap<u64, Said> = BTreeMap::new();
        loop {
            // Asked each time: members come and go.
            let members: Vec<u64> =
                records::members(self.pipeline.store()).iter().map(|member| member.id).collect();
            said.retain(|id, _| members.contains(id));
            let unheard = members.iter().filter(|id| **id != own_id && !said.contains_key(id));
            let asked: Vec<u64> = unheard.copied().collect();
            let mut answers = JoinSet::new();
            for id in asked {
                let question = encode_question(WHAT_AT_MARK, mark.index);
                let answer = self.pipeline.replicator().ask_member(id, question);
                answers.spawn(async move { (id, tokio::time::timeout(ANSWER_TIME, answer).await) });
            }
            while let Some(answered) = answers.join_next().await {
                if let Ok((id, Ok(Some(answer)))) = answered
                    && let Ok(Kept::Here(one)) = decode_answer(&answer)
                {
                    said.insert(id, one);
                }
            }
            let is_complete = said.len() + 1 >= members.len();
            let verdict = judge(&own, &said, members.len());
            let is_decided = is_complete || matches!(verdict, Verdict::Differs { .. });
            if is_decided || Instant::now() >= end {
                return self.conclude(mark, verdict).await;
            }
            tokio::time::sleep(ANSWER_TIME).await;
        }
    }

    /// Members that differ, as this one has found or they have.
    fn note_differing(&self, index: u64, members: &[u64]) {
        self.metrics.differing.set(i64::try_from(members.len()).unwrap_or(i64::MAX));
        tracing::error!(
            members = names(members),
            index,
            "the data of members differs from that of most; each of them fetches it anew"
        );
    }

    /// Tells the others that this member differs: it may be gone before they have asked. On its way when this returns.
    fn tell_others(&self, index: u64) -> JoinSet<()> {
        let own_id = self.pipeline.membership().member_id();
        let mut question = encode_question(WHAT_DIFFERS, index);
        question.extend_from_slice(&own_id.to_le_bytes());
        self.ask_others(&question)
    }

    async fn conclude(&self, mark: Mark, verdict: Verdict) {
        let is_judged = matches!(verdict, Verdict::Agrees { .. } | Verdict::Differs { .. } | Verdict::Split);
        let leads = self.pipeline.replicator().status().proved_term.is_some();
        let Mark { index, is_deep, sum } = mark;
        match verdict {
            Verdict::Agrees { differing } => {
                self.metrics.agreed.inc();
                self.metrics.agreed_index.set(i64::try_from(index).unwrap_or(i64::MAX));
                self.metrics.differing.set(0);
                if !differing.is_empty() {
                    self.note_differing(index, &differing);
                } else if is_deep {
                    tracing::info!(index, revision = sum.revision, "all data of the members is the same");
                }
            }
            Verdict::Differs { from } => {
                self.metrics.differing.set(1);
                tracing::error!(
                    index,
                    revision = sum.revision,
                    same = names(&from),
                    "the data of this member differs from that of most members of its cluster: it stops serving and fetches theirs"
                );
                let told = self.tell_others(index);
                self.found.send_replace(Some(Difference { index, from }));
                told.join_all().await;
            }
            Verdict::Split => {
                tracing::error!(
                    index,
                    revision = sum.revision,
                    "the data of the members differs, and no majority has the same: nobody can tell who is right; compare them (sternctl \
                     endpoint hashkv), remove those that are wrong, and disarm the alarm"
                );
                if leads && !self.pipeline.view().has_alarm(AlarmType::Corrupt) {
                    // In the name of nobody, as etcd does where it cannot tell who is right.
                    let request = AlarmRequest {
                        action: AlarmAction::Activate.into(),
                        member_id: 0,
                        alarm: AlarmType::Corrupt.into(),
                    };
                    if let Err(error) = self.pipeline.alarm(request, &Credential::Internal).await {
                        tracing::error!(%error, "the alarm CORRUPT could not be raised");
                    }
                }
            }
            Verdict::Incomparable => {
                tracing::debug!(index, "the sums of the members began at different revisions")
            }
            Verdict::Open => tracing::debug!(index, "too few members said in time what they have"),
        }
        if is_judged {
            self.judged.send_replace(index);
        }
    }
}

fn names(ids: &[u64]) -> String {
    ids.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(",")
}

fn encode_question(what: u8, index: u64) -> Vec<u8> {
    let mut bytes = vec![QUESTION, what];
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes
}

fn encode_answer(kept: &Kept) -> Vec<u8> {
    let Said { sum, hash } = match kept {
        Kept::Here(said) => *said,
        Kept::NotYet => return vec![1],
        Kept::Gone => return vec![2],
    };
    let mut bytes = vec![0];
    bytes.extend_from_slice(&sum.changes.to_le_bytes());
    bytes.extend_from_slice(&sum.since_revision.to_le_bytes());
    bytes.extend_from_slice(&sum.system.to_le_bytes());
    bytes.extend_from_slice(&sum.revision.to_le_bytes());
    bytes.extend_from_slice(&sum.compact_revision.to_le_bytes());
    if let Some(KvHash { hash, compact_revision, revision }) = hash {
        bytes.push(1);
        bytes.extend_from_slice(&hash.to_le_bytes());
        bytes.extend_from_slice(&compact_revision.to_le_bytes());
        bytes.extend_from_slice(&revision.to_le_bytes());
    } else {
        bytes.push(0);
    }
    bytes
}

fn decode_answer(answer: &[u8]) -> Result<Kept, Truncated> {
    let mut reader = Reader::new(answer);
    match reader.u8()? {
        0 => {}
        1 => return Ok(Kept::NotYet),
        _ => return Ok(Kept::Gone),
    }
    let sum = StateSum {
        changes: reader.u64()?,
        since_revision: reader.i64()?,
        system: reader.u64()?,
        revision: reader.i64()?,
        compact_revision: reader.i64()?,
    };
    let hash = match reader.u8()? {
        0 => None,
        _ => {
            let hash = reader.u32()?;
            Some(KvHash { hash, compact_revision: reader.i64()?, revision: reader.i64()? })
        }
    };
    Ok(Kept::Here(Said { sum, hash }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_and_what_is_cut_is_none() {
        let sum = StateSum { changes: 1, since_revision: 2, system: 3, revision: 4, compact_revision: -1 };
        let hash = KvHash { hash: 7, compact_revision: 8, revision: 9 };
        for hash in [None, Some(hash)] {
            let kept = Kept::Here(Said { sum, hash });
            let bytes = encode_answer(&kept);
            assert_eq!(decode_answer(&bytes), Ok(kept));
            assert!((0..bytes.len()).all(|cut| decode_answer(&bytes[..cut]).is_err()));
        }
        assert_eq!(decode_answer(&encode_answer(&Kept::NotYet)), Ok(Kept::NotYet));
        assert_eq!(decode_answer(&encode_answer(&Kept::Gone)), Ok(Kept::Gone));
    }
}
