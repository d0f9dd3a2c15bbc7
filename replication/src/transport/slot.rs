//! The place of a peer's incoming connection on one lane: at most one is *current*, the newest.
//!
//! **Rules.** A connection is newer if its process is another one than before, or its epoch is greater; an older one is refused, and
//! one that is replaced delivers nothing more: the layer above sees no frame of a connection after it was told of the next. A
//! delivery that blocks (the layer above is full) holds up the lane's next connection too, and only that lane.
//!
//! **Rules of access.** `state` is held for a few instructions, never during a delivery; `busy` says that there is one.
use super::handshake::{MemberHello, RefusalCode};
use super::shared::lock;
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, PoisonError};

/// See the module.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Token of the current connection; 0 for none. Tokens are unique in a transport.
    current: u64,
    /// Its socket, to end it.
    socket: Option<TcpStream>,
    /// (boot nonce, epoch) of the newest connection that ever was.
    newest: Option<(u64, u32)>,
    /// Boot nonce of the process before: a handshake of it that arrives late is refused.
    replaced_nonce: Option<u64>,
    /// A delivery is under way.
    busy: bool,
    waiting: usize,
}

impl State {
    fn end_current(&mut self) {
        self.current = 0;
        if let Some(socket) = self.socket.take() {
            // It fails only if the connection has ended.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Slot {
    /// Makes the connection `token` with this greeting the current one, if it is newer than all before.
    pub(super) fn claim(
        &self,
        hello: &MemberHello,
        token: u64,
        socket: TcpStream,
    ) -> Result<(), RefusalCode> {
        let mut state = lock(&self.state);
        if let Some((nonce, epoch)) = state.newest {
            if nonce == hello.boot_nonce {
                // Epochs wrap; of two, the one less than half way round behind is the older.
                if hello.epoch.wrapping_sub(epoch) as i32 <= 0 {
                    return Err(RefusalCode::Stale);
                }
            } else if state.replaced_nonce == Some(hello.boot_nonce) {
                return Err(RefusalCode::Stale);
            } else {
                state.replaced_nonce = Some(nonce);
            }
        }
        state.end_current();
        state.newest = Some((hello.boot_nonce, hello.epoch));
        state.current = token;
        state.socket = Some(socket);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Calls `deliver` while connection `token` is the current one and no other delivery is under way; false if it no longer is.
    pub(super) fn deliver(&self, token: u64, deliver: impl FnOnce()) -> bool {
        let mut state = lock(&self.state);
        while state.current == token && state.busy {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.current != token {
            return false;
        }
        state.busy = true;
        drop(state);
        let delivery = Delivery(self);
        deliver();
        drop(delivery);
        true
    }

    /// Connection `token` has ended: nobody is current, if it was.
    pub(super) fn vacate(&self, token: u64) {
        let mut state = lock(&self.state);
        if state.current == token {
            state.end_current();
        }
    }

    /// Ends the current connection, whichever it is; it delivers nothing more.
    pub(super) fn cut(&self) {
        let mut state = lock(&self.state);
        state.end_current();
        self.changed.notify_all();
    }

    /// True while there is a connection.
    pub(super) fn is_taken(&self) -> bool {
        lock(&self.state).current != 0
    }
}

/// Ends a delivery, also one that panics.
struct Delivery<'a>(&'a Slot);

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.busy = false;
        if state.waiting > 0 {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::mpsc;

    fn hello(boot_nonce: u64, epoch: u32) -> MemberHello {
        MemberHello {
            lane: 1,
            epoch,
            cluster_id: 1,
            from: 1,
            to: 2,
            boot_count: 0,
            boot_nonce,
            genesis_hash: 0,
            feature_level: 1,
            heartbeat_ms: 30,
            election_ms: 150,
            position: Default::default(),
            peer_urls: vec![],
        }
    }

    fn socket(listener: &TcpListener) -> TcpStream {
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn only_a_newer_connection_takes_the_place() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slot = Slot::default();
        let mut token = 0;
        let mut claim = |nonce, epoch| {
            token += 1;
            slot.claim(&hello(nonce, epoch), token, socket(&listener))
        };
        assert_eq!(claim(7, 5), Ok(()));
        assert_eq!(claim(7, 5), Err(RefusalCode::Stale));
        assert_eq!(claim(7, 4), Err(RefusalCode::Stale));
        assert_eq!(claim(7, 6), Ok(()));
        assert_eq!(claim(8, 1), Ok(()), "another process begins at its own epoch");
        assert_eq!(claim(7, 9), Err(RefusalCode::Stale), "the process before is gone");
        assert_eq!(claim(8, u32::MAX), Err(RefusalCode::Stale), "half way round is behind");
        assert_eq!(claim(9, u32::MAX), Ok(()));
        assert_eq!(claim(9, 0), Ok(()), "epochs wrap");
    }

    #[test]
    fn a_replaced_connection_delivers_nothing_and_its_blocked_delivery_holds_up_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slot = Slot::default();
        let (order, happened) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (entered, has_entered) = mpsc::channel();
        slot.claim(&hello(7, 1), 1, socket(&listener)).unwrap();
        std::thread::scope(|scope| {
            let (slot, old, new) = (&slot, order.clone(), order);
            scope.spawn(move || {
                assert!(slot.deliver(1, || {
                    entered.send(()).unwrap();
                    released.recv().unwrap();
                    old.send("the blocked frame of the old connection").unwrap();
                }));
                assert!(!slot.deliver(1, || old.send("a late frame").unwrap()));
            });
            has_entered.recv().unwrap();
            slot.claim(&hello(7, 2), 2, socket(&listener)).unwrap();
            scope.spawn(move || assert!(slot.deliver(2, || new.send("the new connection").unwrap())));
            release.send(()).unwrap();
        });
        assert_eq!(
            happened.iter().collect::<Vec<_>>(),
            ["the blocked frame of the old connection", "the new connection"]
        );
    }
}
