//! Who waits for a read index or an answer: a slot between a task of any runtime and a thread.
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    answer: Option<T>,
    waker: Option<Waker>,
    /// Nobody waits any more.
    is_dropped: bool,
}

/// One that waits: the side that answers.
pub(super) struct Slot<T>(Arc<Mutex<State<T>>>);

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { answer: None, waker: None, is_dropped: false })))
    }
}

impl<T> Slot<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Plain data: a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answer(&self, answer: T) {
        let waker = {
            let mut state = self.state();
            state.answer = Some(answer);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.state().is_dropped
    }

    /// The side that waits.
    pub(super) fn future(&self) -> SlotFuture<T> {
        SlotFuture(self.clone())
    }
}

/// Resolves to the answer.
pub(super) struct SlotFuture<T>(Slot<T>);

impl<T> Future for SlotFuture<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state();
        match state.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for SlotFuture<T> {
    fn drop(&mut self) {
        self.0.state().is_dropped = true;
    }
}
