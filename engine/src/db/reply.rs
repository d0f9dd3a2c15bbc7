//! The answer to one write, on its way from the engine's thread to the caller: a slot, filled once, waited for by
//! blocking or by polling.
//!
//! Rules of access: the engine's thread fills the slot once; the one [`WriteFuture`] empties it. The lock is held for
//! a few instructions on both sides.
use super::core::Answer;
use crate::error::{Error, Result};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    filled: Condvar,
}

#[derive(Default)]
struct SlotState {
    answer: Option<Result<Answer>>,
    waker: Option<Waker>,
}

/// The engine's end of a slot. Dropping it unfilled answers `Closed`, so that nobody waits for ever.
pub(crate) struct Reply(Option<Arc<Slot>>);

/// The caller's end: resolves to the answer, under any executor or through [`WriteFuture::wait`].
#[must_use = "the write goes ahead, but only the answer says whether it was applied"]
pub struct WriteFuture(Source);

enum Source {
    Slot(Arc<Slot>),
    Ready(Option<Result<Answer>>),
}

pub(crate) fn pair() -> (Reply, WriteFuture) {
    let slot = Arc::new(Slot::default());
    (Reply(Some(Arc::clone(&slot))), WriteFuture(Source::Slot(slot)))
}

impl Reply {
    pub(crate) fn send(mut self, answer: Result<Answer>) {
        self.fill(answer);
    }

    fn fill(&mut self, answer: Result<Answer>) {
        let Some(slot) = self.0.take() else { return };
        let waker = {
            let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.answer = Some(answer);
            state.waker.take()
        };
        slot.filled.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.fill(Err(Error::Closed));
    }
}

impl WriteFuture {
    pub(crate) fn ready(answer: Result<Answer>) -> Self {
        Self(Source::Ready(Some(answer)))
    }

    /// Blocks until the answer is there.
    pub fn wait(self) -> Result<Answer> {
        match self.0 {
            Source::Ready(answer) => answer.unwrap_or(Err(Error::Closed)),
            Source::Slot(slot) => {
                let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    if let Some(answer) = state.answer.take() {
                        return answer;
                    }
                    state = slot.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Future for WriteFuture {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Source::Ready(answer) => Poll::Ready(answer.take().unwrap_or(Err(Error::Closed))),
            Source::Slot(slot) => {
                let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
                match state.answer.take() {
                    Some(answer) => Poll::Ready(answer),
                    None => {
                        state.waker = Some(context.waker().clone());
                        Poll::Pending
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_reply_answers_closed() {
        let (reply, future) = pair();
        drop(reply);
        assert!(matches!(future.wait(), Err(Error::Closed)));
    }

    #[test]
    fn an_answer_from_another_thread_ends_the_wait() {
        let (reply, future) = pair();
        let thread = std::thread::spawn(move || reply.send(Ok(Answer::Synced(3))));
        assert!(matches!(future.wait(), Ok(Answer::Synced(3))));
        thread.join().unwrap();
    }
}
