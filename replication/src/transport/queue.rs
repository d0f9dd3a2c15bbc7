//! What one lane still has to send to one peer: bounded in bytes, filled by anybody, emptied by the lane's thread.
//!
//! **Contract.** Frames leave in the order in which they were put. A byte counts from the moment its frame is put until it was handed
//! to the kernel, so the bound covers what the thread has taken as well. At the bound a frame is refused; alone, a frame of any size
//! that the lane takes fits. While there is no connection nothing is taken: what was said before a connection was lost is of no use
//! to Raft after it.
//!
//! **Rules of access.** `state` is held for a few instructions; the thread parks under it, so no frame is put unseen. `wake` is
//! called outside of a lock only by [`SendQueue::wake_for`], which is called with it: an eventfd's write does not block.
use super::frame::Frame;
use super::stream::Address;
use super::wake::Wake;
use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a frame was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// No peer with this id was set.
    UnknownPeer,
    /// There is no connection at the moment.
    NotConnected,
    /// The lane's queue is at its bound.
    QueueFull,
    /// The frame is larger than the lane takes, ever.
    TooLong,
}

/// What somebody wants of the lane's thread beside frames.
#[derive(Default)]
pub(super) struct Orders {
    /// To end.
    pub(super) stop: bool,
    /// To connect now rather than after the pause: the peer was heard of.
    pub(super) retry: bool,
    /// To make the connection anew.
    pub(super) reset: bool,
    /// To use these addresses, in a new connection.
    pub(super) addresses: Option<Vec<Address>>,
}

impl Orders {
    /// Whether what the thread does is to be given up.
    fn interrupt(&self) -> bool {
        self.stop || self.reset || self.addresses.is_some()
    }
}

struct State {
    frames: VecDeque<Frame>,
    /// Bytes on the wire of `frames` and of what the thread holds.
    bytes: u64,
    /// There is a connection.
    open: bool,
    /// The thread waits and wants to be woken for a frame.
    parked: bool,
    orders: Orders,
}

/// See the module.
pub(super) struct SendQueue {
    state: Mutex<State>,
    /// What the thread waits on.
    pub(super) wake: Wake,
    bytes_max: u64,
    body_bytes_max: usize,
}

impl AsRef<Wake> for SendQueue {
    fn as_ref(&self) -> &Wake {
        &self.wake
    }
}

impl SendQueue {
    pub(super) fn new(bytes_max: u64, body_bytes_max: usize) -> io::Result<Self> {
        let state = State {
            frames: VecDeque::new(),
            bytes: 0,
            open: false,
            parked: false,
            orders: Orders::default(),
        };
        Ok(Self { state: Mutex::new(state), wake: Wake::new()?, bytes_max, body_bytes_max })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame over, or says why not. Never blocks.
    pub(super) fn put(&self, frame: Frame) -> Result<(), Dropped> {
        if frame.body_bytes() > self.body_bytes_max {
            return Err(Dropped::TooLong);
        }
        let mut state = self.state();
        if !state.open {
            return Err(Dropped::NotConnected);
        }
        let bytes = frame.wire_bytes() as u64;
        if state.bytes > 0 && state.bytes + bytes > self.bytes_max {
            return Err(Dropped::QueueFull);
        }
        state.bytes += bytes;
        state.frames.push_back(frame);
        self.wake_for(&mut state);
        Ok(())
    }

    fn wake_for(&self, state: &mut State) {
        if std::mem::take(&mut state.parked) {
            self.wake.wake();
        }
    }

    /// Moves frames to `batch` until that holds about `bytes` bytes, at least one if there is one.
    pub(super) fn take(&self, bytes: usize, mut add: impl FnMut(Frame)) {
        let mut state = self.state();
        state.parked = false;
        let mut taken = 0;
        while taken < bytes
            && let Some(frame) = state.frames.pop_front()
        {
            taken += frame.wire_bytes();
            add(frame);
        }
    }

    /// `bytes` of what was taken are with the kernel.
    pub(super) fn written(&self, bytes: u64) {
        let mut state = self.state();
        debug_assert!(state.bytes >= bytes, "more was written than was put: {bytes} of {}", state.bytes);
        state.bytes = state.bytes.saturating_sub(bytes);
    }

    /// The thread is about to wait. With `for_frames` it wants to be woken for the next one; false, if there is one already, or an
    /// order.
    pub(super) fn park(&self, for_frames: bool) -> bool {
        let mut state = self.state();
        if state.orders.interrupt() || (for_frames && !state.frames.is_empty()) {
            return false;
        }
        state.parked = for_frames;
        true
    }

    /// A connection is there: frames are taken from now on.
    pub(super) fn open(&self) {
        let mut state = self.state();
        debug_assert_eq!(state.bytes, 0, "a lane opens with nothing queued");
        state.open = true;
    }

    /// The connection is gone; returns how many frames and bytes go with it, those that the thread has taken only in the bytes.
    pub(super) fn close(&self) -> (u64, u64) {
        let mut state = self.state();
        state.open = false;
        let frames = std::mem::take(&mut state.frames);
        (frames.len() as u64, std::mem::take(&mut state.bytes))
    }

    /// Bytes queued and not yet with the kernel.
    pub(super) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// True while there is a connection.
    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    pub(super) fn order_stop(&self) {
        self.state().orders.stop = true;
        self.wake.wake();
    }

    pub(super) fn order_addresses(&self, addresses: Vec<Address>) {
        self.state().orders.addresses = Some(addresses);
        self.wake.wake();
    }

    /// Only a connection that stands is made anew.
    pub(super) fn order_reset(&self) {
        let mut state = self.state();
        if state.open {
            state.orders.reset = true;
            self.wake.wake();
        }
    }

    pub(super) fn order_retry(&self) {
        let mut state = self.state();
        if !state.open && !std::mem::replace(&mut state.orders.retry, true) {
            self.wake.wake();
        }
    }

    /// Whether to connect now; asked once for each order.
    pub(super) fn take_retry(&self) -> bool {
        std::mem::take(&mut self.state().orders.retry)
    }

    /// True when what the thread does is to be given up.
    pub(super) fn is_interrupted(&self) -> bool {
        self.state().orders.interrupt()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state().orders.stop
    }

    /// Takes over what was ordered; `stop` stays ordered.
    pub(super) fn take_orders(&self) -> Orders {
        let mut state = self.state();
        let stop = state.orders.stop;
        std::mem::replace(&mut state.orders, Orders { stop, ..Orders::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn frame(body_bytes: usize) -> Frame {
        Frame::new(1, 0, 0, vec![Bytes::from(vec![0; body_bytes])])
    }

    #[test]
    fn a_queue_refuses_at_its_bound_and_takes_again_when_bytes_are_written() {
        let queue = SendQueue::new(200, 1_000).unwrap();
        assert_eq!(queue.put(frame(1)), Err(Dropped::NotConnected));
        queue.open();
        assert_eq!(queue.put(frame(80)), Ok(()));
        assert_eq!(queue.put(frame(80)), Ok(()));
        assert_eq!(queue.put(frame(1)), Err(Dropped::QueueFull));
        // Taken is not written: the bound still holds.
        let mut taken = Vec::new();
        queue.take(1_000, |frame| taken.push(frame));
        assert_eq!((taken.len(), queue.put(frame(1))), (2, Err(Dropped::QueueFull)));
        queue.written(100);
        assert_eq!(queue.put(frame(1)), Ok(()));
        assert_eq!(queue.bytes(), 121);
        assert_eq!(queue.close(), (1, 121));
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_frame_above_the_bound_travels_alone_and_one_above_the_lanes_never() {
        let queue = SendQueue::new(200, 1_000).unwrap();
        queue.open();
        assert_eq!(queue.put(frame(1_001)), Err(Dropped::TooLong));
        assert_eq!(queue.put(frame(1_000)), Ok(()));
        assert_eq!(queue.put(frame(0)), Err(Dropped::QueueFull));
    }

    #[test]
    fn nobody_parks_beside_a_frame_or_an_order() {
        let queue = SendQueue::new(200, 1_000).unwrap();
        queue.open();
        assert!(queue.park(true));
        queue.put(frame(1)).unwrap();
        assert!(!queue.park(true));
        assert!(queue.park(false), "a thread that waits for its socket does not mind frames");
        queue.order_addresses(vec![String::from("a:1").into()]);
        assert!(!queue.park(false));
        assert_eq!(queue.take_orders().addresses, Some(vec![String::from("a:1").into()]));
        queue.order_stop();
        assert!(queue.take_orders().stop && queue.is_stopped() && !queue.park(false));
    }
}
