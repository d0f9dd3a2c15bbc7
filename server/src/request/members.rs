//! Changes of the membership: checked and proposed by the leader, whoever was asked.
//!
//! **Contract.** A change is made once at most: it is given to the leader, and what becomes of it is answered; when no answer comes in time, it may
//! still be made, as with etcd. Its checks are etcd's, in etcd's order: [`Pipeline::may_add`] and its like look at who is started
//! and connected, `apply::members::check` at the table. Who asks is looked at by the member that was asked, before anything is sent to the leader.
//!
//! **Differs from etcd**: connected means heard of within the last election timeout, not for the last 5 s, so that a cluster that has just
//! started takes a change.
//!
//! **Layout** of a question to the leader: kind u8 ([`QUESTION`]) · change u8 (1 add, 2 remove, 3 promote) · the request's protobuf. Of an
//! answer: 0 · protobuf `MemberAddResponse` (members, and for an addition the member); 1 · gRPC code i32 · text; 2: does not lead.
use super::{Pipeline, id};
use crate::apply::command::{self, Kind, Origin};
use crate::apply::members::{MemberCommand, check};
use crate::apply::{Applied, Outcome, records};
use crate::auth::origin::Credential;
use crate::config::url;
use crate::wire::etcdserverpb as pb;
use crate::wire::status::ApiError;
use bytes::BufMut;
use prost::Message;
use sha1::{Digest, Sha1};
use std::time::Duration;
use sternpost_engine::base::codec::Reader;
use sternpost_replication::{MemberChange, ProposeError, Reply};
use tokio::time::Instant;

/// First byte of such a question.
pub const QUESTION: u8 = 3;
/// Between two attempts: to find the leader, or behind another change.
const AGAIN_INTERVAL: Duration = Duration::from_millis(20);
/// A learner may become a voter when it has this share of the leader's log.
const READY_SHARE: f64 = 0.9;

/// Flags that the leader goes by.
#[derive(Clone, Copy, Debug)]
pub struct MemberLimits {
    /// Refuse what could lose the quorum.
    pub is_strict: bool,
    /// Most learners.
    pub learners_max: usize,
}

impl Default for MemberLimits {
    fn default() -> Self {
        Self { is_strict: true, learners_max: 1 }
    }
}

/// What a client asks for.
#[derive(Clone, PartialEq, Debug)]
enum Wanted {
    Add(pb::MemberAddRequest),
    Remove(u64),
    Promote(u64),
}

/// The members after a change.
type Members = Vec<pb::Member>;

impl Pipeline {
    /// Adds a member: it, and all members.
    pub async fn member_add(
        &self,
        request: pb::MemberAddRequest,
        who: &Credential,
    ) -> Result<(pb::Member, Members), ApiError> {
        let urls = url::parse_list(&request.peer_ur_ls.join(","));
        if request.peer_ur_ls.is_empty() || urls.is_err() {
            return Err(ApiError::MemberBadUrls);
        }
        self.check_root(who).await?;
        let response = self.change_members(Wanted::Add(request)).await?;
        Ok((response.member.unwrap_or_default(), response.members))
    }

    /// Removes a member: those that are left.
    pub async fn member_remove(&self, id: u64, who: &Credential) -> Result<Members, ApiError> {
        self.check_root(who).await?;
        Ok(self.change_members(Wanted::Remove(id)).await?.members)
    }

    /// Makes a voter of a learner: all members.
    pub async fn member_promote(&self, id: u64, who: &Credential) -> Result<Members, ApiError> {
        self.check_root(who).await?;
        let promoted = self.change_members(Wanted::Promote(id)).await;
        if self.replicator.status().leader == self.member_id {
            let reason = promoted.as_ref().map(|_| ()).map_err(ToString::to_string);
            self.timing.promoted(reason.as_ref().copied().map_err(String::as_str));
        }
        Ok(promoted?.members)
    }

    /// Gives a member other peer URLs: all members. etcd does not look at the URLs here.
    pub async fn member_update(
        &self,
        id: u64,
        peer_ur_ls: Vec<String>,
        who: &Credential,
    ) -> Result<Members, ApiError> {
        let origin = self.check_root(who).await?;
        let member = pb::Member { id, peer_ur_ls, ..pb::Member::default() };
        match self.outcome(self.propose(Kind::MemberUpdate, origin, &member)?).await? {
            Outcome::Members(members) => Ok(members),
            other => super::mixed_up(&other),
        }
    }

    /// Here or at the leader, until the time of a request is up.
    async fn change_members(&self, wanted: Wanted) -> Result<pb::MemberAddResponse, ApiError> {
        let end = Instant::now() + self.options().timeout;
        loop {
            if let Some(answer) = self.change_here(&wanted).await {
                return answer;
            }
            let answer = self.replicator().ask_leader(encode_question(&wanted));
            let answer = async {
                tokio::select! {
                    answer = answer => Some(answer),
                    () = self.removed_here(&wanted) => None,
                }
            };
            match tokio::time::timeout_at(end, answer).await {
                // Whether the leader has made it is not known, so it is not asked again.
                Err(_) => return Err(ApiError::Timeout),
                Ok(None) => {
                    let members = records::members(self.store());
                    return Ok(pb::MemberAddResponse { header: None, member: None, members });
                }
                Ok(Some(answer)) => {
                    if let Some(answer) = answer.and_then(|answer| decode_answer(&answer)) {
                        return answer;
                    }
                }
            }
            if Instant::now() >= end {
                let has_leader = self.replicator().status().leader != 0;
                return Err(if has_leader { ApiError::Timeout } else { ApiError::NoLeader });
            }
            tokio::time::sleep(AGAIN_INTERVAL).await;
        }
    }

    /// Returns when the member that is to be removed, and was one, is none here any more. A leader that removes itself may not get its answer through: its
    /// connections end where its removal is applied.
    async fn removed_here(&self, wanted: &Wanted) {
        let removed = |id| records::is_removed(self.store(), id);
        match wanted {
            Wanted::Remove(id) if !removed(*id) => {
                while !removed(*id) {
                    tokio::time::sleep(AGAIN_INTERVAL).await;
                }
            }
            _ => std::future::pending().await,
        }
    }

    /// Another member's server asks.
    pub async fn answer_member_question(&self, question: &[u8], reply: Reply) {
        let Some(wanted) = decode_question(question) else { return };
        let answer = self.change_here(&wanted).await;
        reply(encode_answer(answer));
    }

    /// Makes the change, if this member leads.
    async fn change_here(&self, wanted: &Wanted) -> Option<Result<pb::MemberAddResponse, ApiError>> {
        let end = Instant::now() + self.options().timeout;
        loop {
            // Its table is that of everything acknowledged.
            self.replicator().status().proved_term?;
            let (command, change, kind, member) = match self.judge(wanted) {
                Ok(judged) => judged,
                Err(error) => return Some(Err(error)),
            };
            if let Err(error) = check(self.store(), &command, Some(self.options().members.learners_max)) {
                return Some(Err(error));
            }
            let id = self.ids.next();
            let bytes = command::encode(kind, Origin::Client, id, &member);
            let waiting = match self.waiters.register(id) {
                Ok(waiting) => waiting,
                Err(error) => return Some(Err(error)),
            };
            if let Err(error) = self.replicator().propose_change(change, bytes) {
                return Some(Err(match error {
                    ProposeError::NotServed => ApiError::Unimplemented(
                        "this build runs single nodes; changes of the membership need a build with the feature \"raft\"",
                    ),
                    ProposeError::TooManyRequests => ApiError::TooManyRequests,
                    _ => ApiError::Stopped,
                }));
            }
            let Applied { result, .. } = waiting.await;
            return match result {
                Ok(Outcome::Members(members)) => {
                    let member = matches!(wanted, Wanted::Add(_)).then_some(member);
                    Some(Ok(pb::MemberAddResponse { header: None, member, members }))
                }
                Ok(other) => super::mixed_up(&other),
                // Another change is under way, or somebody else leads now. Not in the log.
                Err(ApiError::ChangeRefused) if Instant::now() < end => {
                    tokio::time::sleep(AGAIN_INTERVAL).await;
                    continue;
                }
                Err(ApiError::ChangeRefused) => Some(Err(ApiError::Timeout)),
                Err(error) => Some(Err(error)),
            };
        }
    }

    /// What is proposed for it, if who is started and connected allows it.
    fn judge(&self, wanted: &Wanted) -> Result<(MemberCommand, MemberChange, Kind, pb::Member), ApiError> {
        let members = records::members(self.store());
        let is_strict = self.options().members.is_strict;
        let only_id = |id| pb::Member { id, ..pb::Member::default() };
        match wanted {
            Wanted::Add(request) => {
                let member = new_member(request, id::wall_clock_ms() / 1000);
                if is_strict {
                    self.may_add(&members, member.is_learner)?;
                }
                let change = match member.is_learner {
                    true => MemberChange::AddLearner(member.id),
                    false => MemberChange::AddVoter(member.id),
                };
                Ok((MemberCommand::Add(member.clone()), change, Kind::MemberAdd, member))
            }
            Wanted::Remove(id) => {
                if is_strict {
                    self.may_remove(&members, *id)?;
                }
                let change = MemberChange::Remove(*id);
                Ok((MemberCommand::Remove(*id), change, Kind::MemberRemove, only_id(*id)))
            }
            Wanted::Promote(id) => {
                self.may_promote(&members, *id, is_strict)?;
                let change = MemberChange::AddVoter(*id);
                Ok((MemberCommand::Promote(*id), change, Kind::MemberPromote, only_id(*id)))
            }
        }
    }

    /// Voters that were heard of within the last election timeout, this one among them.
    fn active_count(&self, members: &[pb::Member]) -> usize {
        let peers = self.replicator().peers();
        let is_active =
            |id: u64| id == self.member_id || peers.iter().any(|peer| peer.id == id && peer.is_active);
        voters(members).filter(|member| is_active(member.id)).count()
    }

    fn may_add(&self, members: &[pb::Member], is_learner: bool) -> Result<(), ApiError> {
        let count = voters(members).count();
        let started_count = voters(members).filter(is_started).count();
        // One member that becomes two has no other way.
        let is_first = started_count == 1 && count == 1;
        if !(is_learner || is_first) && started_count < quorum(count + 1) {
            return Err(ApiError::MemberNotEnoughStarted);
        }
        if count > 1 && self.active_count(members) < quorum(count + 1) {
            return Err(ApiError::Unhealthy);
        }
        Ok(())
    }

    fn may_remove(&self, members: &[pb::Member], id: u64) -> Result<(), ApiError> {
        if members.iter().any(|member| member.id == id && member.is_learner) {
            return Ok(());
        }
        let others: Vec<_> = voters(members).filter(|member| member.id != id).cloned().collect();
        if others.iter().filter(is_started).count() < quorum(others.len()) {
            return Err(ApiError::MemberNotEnoughStarted);
        }
        let peers = self.replicator().peers();
        let is_silent = !peers.iter().any(|peer| peer.id == id && peer.is_active);
        if id != self.member_id && is_silent {
            return Ok(());
        }
        if self.active_count(members) - 1 < quorum(voters(members).count() - 1) {
            return Err(ApiError::Unhealthy);
        }
        Ok(())
    }

    fn may_promote(&self, members: &[pb::Member], id: u64, is_strict: bool) -> Result<(), ApiError> {
        let matched = if id == self.member_id {
            self.replicator().status().last_index
        } else {
            let peers = self.replicator().peers();
            let Some(peer) = peers.into_iter().find(|peer| peer.id == id) else {
                return Err(ApiError::MemberNotFound);
            };
            // A learner that is silent now would be a voter that is (bug class E4).
            let is_learner = members.iter().any(|member| member.id == id && member.is_learner);
            if is_learner && !peer.is_active {
                return Err(ApiError::LearnerNotReady);
            }
            peer.matched_index
        };
        if (matched as f64) < self.replicator().status().last_index as f64 * READY_SHARE {
            return Err(ApiError::LearnerNotReady);
        }
        // The learner counts as started.
        let count = voters(members).count();
        let started_count = voters(members).filter(is_started).count() + 1;
        if is_strict && started_count < quorum(count + 1) {
            return Err(ApiError::MemberNotEnoughStarted);
        }
        Ok(())
    }
}

fn voters(members: &[pb::Member]) -> impl Iterator<Item = &pb::Member> {
    members.iter().filter(|member| !member.is_learner)
}

/// A member that has said its name.
fn is_started(member: &&pb::Member) -> bool {
    !member.name.is_empty()
}

fn quorum(count: usize) -> usize {
    count / 2 + 1
}

/// The id is the first 8 bytes of SHA-1 over the sorted URLs and the time, as etcd's.
fn new_member(request: &pb::MemberAddRequest, now_s: u64) -> pb::Member {
    let mut peer_ur_ls = request.peer_ur_ls.clone();
    peer_ur_ls.sort_unstable();
    let mut hash = Sha1::new();
    peer_ur_ls.iter().for_each(|url| hash.update(url));
    hash.update(now_s.to_string());
    let id = hash.finalize().iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte));
    // 0 is nobody.
    pb::Member { id: id.max(1), peer_ur_ls, is_learner: request.is_learner, ..pb::Member::default() }
}

fn encode_question(wanted: &Wanted) -> Vec<u8> {
    let (change, body) = match wanted {
        Wanted::Add(request) => (1, request.encode_to_vec()),
        Wanted::Remove(id) => (2, pb::MemberRemoveRequest { id: *id }.encode_to_vec()),
        Wanted::Promote(id) => (3, pb::MemberPromoteRequest { id: *id }.encode_to_vec()),
    };
    let mut question = vec![QUESTION, change];
    question.extend_from_slice(&body);
    question
}

fn decode_question(question: &[u8]) -> Option<Wanted> {
    match question {
        [QUESTION, 1, body @ ..] => pb::MemberAddRequest::decode(body).ok().map(Wanted::Add),
        [QUESTION, 2, body @ ..] => {
            pb::MemberRemoveRequest::decode(body).ok().map(|it| Wanted::Remove(it.id))
        }
        [QUESTION, 3, body @ ..] => {
            pb::MemberPromoteRequest::decode(body).ok().map(|it| Wanted::Promote(it.id))
        }
        // Of a later build; no answer is a time-out there.
        _ => None,
    }
}

fn encode_answer(answer: Option<Result<pb::MemberAddResponse, ApiError>>) -> Vec<u8> {
    match answer {
        Some(Ok(response)) => {
            let mut out = vec![0];
            out.extend_from_slice(&response.encode_to_vec());
            out
        }
        Some(Err(error)) => {
            let (code, text) = error.code_and_text();
            let mut out = vec![1];
            out.put_i32_le(code as i32);
            out.extend_from_slice(text.as_bytes());
            out
        }
        None => vec![2],
    }
}

/// None if the other one does not lead, or the bytes are no answer of this build.
fn decode_answer(answer: &[u8]) -> Option<Result<pb::MemberAddResponse, ApiError>> {
    match answer {
        [0, body @ ..] => pb::MemberAddResponse::decode(body).ok().map(Ok),
        [1, body @ ..] => {
            let mut reader = Reader::new(body);
            let code = tonic::Code::from_i32(reader.u32().ok()? as i32);
            let text = std::str::from_utf8(reader.rest()).ok()?;
            Some(Err(ApiError::Other(code, text.to_owned().into())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_as_they_were_written() {
        let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://a:1".into()], is_learner: true };
        for wanted in [Wanted::Add(add), Wanted::Remove(7), Wanted::Promote(9)] {
            assert_eq!(decode_question(&encode_question(&wanted)), Some(wanted));
        }
        assert_eq!(decode_question(&[QUESTION, 9]), None);
        let response = pb::MemberAddResponse {
            members: vec![pb::Member { id: 3, ..pb::Member::default() }],
            ..pb::MemberAddResponse::default()
        };
        assert_eq!(decode_answer(&encode_answer(Some(Ok(response.clone())))), Some(Ok(response)));
        let error = decode_answer(&encode_answer(Some(Err(ApiError::Unhealthy)))).unwrap().unwrap_err();
        assert_eq!(error.code_and_text(), ApiError::Unhealthy.code_and_text());
        assert_eq!(decode_answer(&encode_answer(None)), None);
        assert_eq!(decode_answer(&[]), None);
    }

    #[test]
    fn an_id_is_made_of_urls_and_time_and_is_etcds() {
        let request = |urls: &[&str]| pb::MemberAddRequest {
            peer_ur_ls: urls.iter().map(ToString::to_string).collect(),
            is_learner: false,
        };
        let one = new_member(&request(&["http://b:1", "http://a:1"]), 1_700_000_000);
        assert_eq!(one.id, new_member(&request(&["http://a:1", "http://b:1"]), 1_700_000_000).id);
        assert_ne!(one.id, new_member(&request(&["http://a:1", "http://b:1"]), 1_700_000_001).id);
        assert_eq!(one.peer_ur_ls, ["http://a:1", "http://b:1"]);
        assert_eq!(one.name, "", "it has not started");
    }
}
