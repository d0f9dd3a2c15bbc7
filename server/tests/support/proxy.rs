//! A TCP proxy in front of one address: it slows down, damages and cuts what comes back through it.
//!
//! **Contract.** What the dialing side sends goes through as it is. What comes back to it waits for the pace, if there is one; a delay is one of both directions; and each damage is done once, to the
//! first connection on which so many bytes have come back. Between members, what comes back on other connections than those of states is little.
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is done to the byte that comes back as number so many, from 0.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// One of its bits is the other one.
    Flip(u64),
    /// It and what follows never comes: the connection ends.
    Cut(u64),
}

#[derive(Default)]
struct State {
    damages: Mutex<VecDeque<Damage>>,
    bytes_back: AtomicU64,
    /// 0 is no limit; of each connection.
    bytes_per_second: AtomicU64,
    /// In each direction.
    delay_ms: AtomicU64,
}

/// See the module. It works as long as its runtime does.
#[derive(Clone)]
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Called on a runtime.
    pub fn start(target: (String, u16)) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = TcpListener::from_std(listener).unwrap();
        let target = SocketAddr::new(target.0.parse().unwrap(), target.1);
        let state: Arc<State> = Arc::default();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(target).await {
                        let _ = (near.set_nodelay(true), far.set_nodelay(true));
                        shared.carry(near, far).await;
                    }
                });
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// One more damage, after those that are not done yet.
    pub fn plan(&self, damage: Damage) {
        self.state.damages.lock().unwrap().push_back(damage);
    }

    /// Damages that are not done yet.
    pub fn planned(&self) -> usize {
        self.state.damages.lock().unwrap().len()
    }

    /// Bytes that came back, of all connections.
    pub fn bytes_back(&self) -> u64 {
        self.state.bytes_back.load(Ordering::Relaxed)
    }

    /// What is sent arrives so much later, in both directions.
    pub fn set_delay(&self, ms: u64) {
        self.state.delay_ms.store(ms, Ordering::Relaxed);
    }

    /// 0 is no limit.
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }
}

impl State {
    async fn carry(&self, near: TcpStream, far: TcpStream) {
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let there = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count) = near_in.read(&mut buffer).await
                && count > 0
            {
                self.wait().await;
                if far_out.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
            let _ = far_out.shutdown().await;
        };
        let back = async {
            let mut buffer = vec![0; 16 << 10];
            let mut passed = 0;
            while let Ok(count) = far_in.read(&mut buffer).await {
                if count == 0 {
                    break;
                }
                self.wait().await;
                let bytes = &mut buffer[..count];
                let (count, is_cut) = self.damage(passed, bytes);
                passed += count as u64;
                self.bytes_back.fetch_add(count as u64, Ordering::Relaxed);
                if near_out.write_all(&bytes[..count]).await.is_err() || is_cut {
                    break;
                }
                let pace = self.bytes_per_second.load(Ordering::Relaxed);
                if let Some(us) = (count as u64 * 1_000_000).checked_div(pace) {
                    tokio::time::sleep(Duration::from_micros(us)).await;
                }
            }
        };
        // Whoever ends first ends both.
        tokio::select! {
            () = there => {}
            () = back => {}
        }
    }

    async fn wait(&self) {
        let ms = self.delay_ms.load(Ordering::Relaxed);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    /// Does what is due to these bytes; how many of them go on, and whether nothing follows.
    fn damage(&self, passed: u64, bytes: &mut [u8]) -> (usize, bool) {
        let mut damages = self.damages.lock().unwrap();
        let range = passed..passed + bytes.len() as u64;
        match damages.front() {
            Some(Damage::Flip(at)) if range.contains(at) => {
                bytes[(at - passed) as usize] ^= 4;
                damages.pop_front();
                (bytes.len(), false)
            }
            Some(Damage::Cut(at)) if range.contains(at) => {
                let count = (at - passed) as usize;
                damages.pop_front();
                (count, true)
            }
            _ => (bytes.len(), false),
        }
    }
}
