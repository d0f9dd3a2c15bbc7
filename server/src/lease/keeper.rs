//! Who keeps the time of leases: the leader. Renewals and questions that reach another member are asked of it.
//!
//! **Why the leader proves itself first**: one that was deposed without knowing would renew for nobody. A read barrier before each
//! renewal proves it, for all that wait together; a leader that follows gives every lease its full TTL once more, later than that.
//!
//! **Layout** of a question: kind u8 (1 renew, 2 what is left) · lease i64. Of an answer: outcome u8 (0 here it is, 1 no such lease, 2 not
//! the leader) · TTL i64 · granted TTL i64, little-endian.
use super::Leases;
use super::lessor::Remaining;
use crate::request::Pipeline;
use crate::wire::status::ApiError;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::base::codec::Reader;
use sternpost_replication::Reply;
use tokio::time::Instant;

/// Between two looks for a leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// So long an answer is waited for; then the leader may be another one.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// What is asked about a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Question {
    Renew = 1,
    Remaining = 2,
}

/// See the module.
#[derive(Clone)]
pub struct LeaseKeeper {
    pipeline: Arc<Pipeline>,
    leases: Arc<Leases>,
}

impl LeaseKeeper {
    /// Keeps `leases`.
    pub fn new(pipeline: Arc<Pipeline>, leases: Arc<Leases>) -> Self {
        Self { pipeline, leases }
    }

    /// Renews a lease: its TTL, or 0 if there is no such lease.
    pub async fn renew(&self, lease: i64) -> Result<i64, ApiError> {
        Ok(self.ask(Question::Renew, lease).await?.map_or(0, |remaining| remaining.ttl))
    }

    /// What is left of a lease, none if there is no such lease.
    pub async fn remaining(&self, lease: i64) -> Result<Option<Remaining>, ApiError> {
        self.ask(Question::Remaining, lease).await
    }

    /// Here or at the leader, until the time of a request is up.
    async fn ask(&self, question: Question, lease: i64) -> Result<Option<Remaining>, ApiError> {
        let end = Instant::now() + self.pipeline.options().timeout;
        loop {
            if let Some(outcome) = self.try_here(question, lease).await? {
                return Ok(outcome);
            }
            let mut bytes = vec![question as u8];
            bytes.extend_from_slice(&lease.to_le_bytes());
            let answer = self.pipeline.replicator().ask_leader(bytes);
            if let Ok(Some(answer)) = tokio::time::timeout(ANSWER_TIME, answer).await
                && let Some(outcome) = decode(&answer)
            {
                return Ok(outcome);
            }
            if Instant::now() >= end {
                let has_leader = self.pipeline.replicator().status().leader != 0;
                return Err(if has_leader { ApiError::Timeout } else { ApiError::NoLeader });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// The outcome, if this member is the leader and can prove it.
    async fn try_here(&self, question: Question, lease: i64) -> Result<Option<Option<Remaining>>, ApiError> {
        let Some(term) = self.pipeline.replicator().status().proved_term else { return Ok(None) };
        match self.pipeline.read_barrier().await {
            Ok(()) => {}
            Err(ApiError::Stopped) => return Err(ApiError::Stopped),
            // It leads no more, or nobody hears it.
            Err(_) => return Ok(None),
        }
        if self.pipeline.replicator().status().proved_term != Some(term) {
            return Ok(None);
        }
        self.leases.take_over(term);
        Ok(Some(match question {
            Question::Remaining => self.leases.remaining(lease),
            Question::Renew => {
                let ttl = self.leases.renew(lease, self.pipeline.options().timeout).await?;
                if ttl > 0 {
                    self.pipeline.timing().renewed();
                }
                (ttl > 0).then_some(Remaining { ttl, granted_ttl: ttl })
            }
        }))
    }

    /// Another member asks.
    pub async fn answer(&self, question: &[u8], reply: Reply) {
        let mut reader = Reader::new(question);
        let (Ok(kind), Ok(lease)) = (reader.u8(), reader.i64()) else { return };
        let question = match kind {
            1 => Question::Renew,
            2 => Question::Remaining,
            // Of a later build; no answer is a time-out there.
            _ => return,
        };
        let (outcome, remaining) = match self.try_here(question, lease).await {
            Ok(Some(Some(remaining))) => (0, remaining),
            Ok(Some(None)) => (1, Remaining { ttl: 0, granted_ttl: 0 }),
            Ok(None) | Err(_) => (2, Remaining { ttl: 0, granted_ttl: 0 }),
        };
        let mut answer = vec![outcome];
        answer.extend_from_slice(&remaining.ttl.to_le_bytes());
        answer.extend_from_slice(&remaining.granted_ttl.to_le_bytes());
        reply(answer);
    }
}

/// The outcome in an answer; none if the other one is not the leader, or the bytes are no answer of this build.
fn decode(answer: &[u8]) -> Option<Option<Remaining>> {
    let mut reader = Reader::new(answer);
    let outcome = reader.u8().ok()?;
    let remaining = Remaining { ttl: reader.i64().ok()?, granted_ttl: reader.i64().ok()? };
    match outcome {
        0 => Some(Some(remaining)),
        1 => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_were_written_and_what_is_none_is_no_answer() {
        let answer = |outcome: u8| {
            let mut bytes = vec![outcome];
            bytes.extend_from_slice(&7_i64.to_le_bytes());
            bytes.extend_from_slice(&9_i64.to_le_bytes());
            bytes
        };
        assert_eq!(decode(&answer(0)), Some(Some(Remaining { ttl: 7, granted_ttl: 9 })));
        assert_eq!(decode(&answer(1)), Some(None));
        assert_eq!(decode(&answer(2)), None);
        assert!((0..17).all(|cut| decode(&answer(0)[..cut]).is_none()));
    }
}
