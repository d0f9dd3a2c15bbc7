//! An executor for the requests of HTTP/2 connections: the first turn of each is taken at once, by the connection that received it.
//!
//! **Why.** Most requests need one turn: a read of one key is answered in it. As tasks of their own they cost an allocation, a place in a
//! queue and mostly the waking of another thread, twice; and their answers come one by one, where those of one connection's turn leave
//! together ([`crate::corked`]).
//!
//! **Contract.**
//! - F1: whoever is not done after the first turn becomes a task. Nothing is lost by the change: a task's first poll takes the place of
//!   the waker that the first turn left behind.
//! - F2: a panic ends its request and nothing else, as in a task.
//! - F3: a request that may keep a thread for long says so with [`leave`] before it begins.
//!
//! **Does not know** what is executed.
use hyper::rt::Executor;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Takes the first turn of what it is given, then spawns it.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstTurn;

impl<F> Executor<F> for FirstTurn
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        // The hook for panics has told of it; the future is dropped and its stream reset.
        let first = catch_unwind(AssertUnwindSafe(|| turn(future.as_mut())));
        if let Ok(Poll::Pending) = first {
            tokio::spawn(future);
        }
    }
}

fn turn<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Ends the first turn: what follows runs in a task of its own, and other requests of the connection go on meanwhile.
pub async fn leave() {
    tokio::task::yield_now().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_ready_is_done_at_once_and_what_left_is_done_elsewhere() {
        let (sender, receiver) = mpsc::channel();
        let here = thread::current().id();
        let told = sender.clone();
        FirstTurn.execute(async move { told.send(thread::current().id()).unwrap() });
        assert_eq!(receiver.try_recv(), Ok(here), "the first turn is the caller's");
        FirstTurn.execute(async move {
            leave().await;
            sender.send(thread::current().id()).unwrap();
        });
        // The worker may be quicker than the caller: who did it is what counts, not when.
        assert!(receiver.recv().is_ok_and(|by| by != here), "a worker took it over");
    }

    #[tokio::test]
    async fn a_panic_ends_one_request() {
        FirstTurn.execute(async { panic!("planted") });
        let (sender, receiver) = mpsc::channel();
        FirstTurn.execute(async move { sender.send(()).unwrap() });
        assert_eq!(receiver.try_recv(), Ok(()));
    }
}
