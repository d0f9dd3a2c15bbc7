//! Room for answers: those that are being put together, and those that clients have not taken yet, shared by all connections.
//!
//! **Data.** [`AnswerBudget`] is a number of bytes. Each connection has an [`AnswerShare`] of it, each request in progress a [`HeldAnswer`]: [`REQUEST_BYTES`]
//! from before it is carried out, and what its encoded answer takes from then until the transport has it. Beside that, whoever reads many keys has a [`Turn`]
//! while the answer is put together, which takes up to [`TURN_BYTES`]; there are as many turns as go into a quarter of the budget.
//!
//! **Contract.**
//! - H1: what is refused was not carried out. So a request is refused where it begins, or, if it only reads, where the size of its answer is known; a write that
//!   is done is answered, whatever its answer takes.
//! - H2: the fuller it is the fewer may begin ([`AnswerClass`]): long lists and maintenance stop first, single keys later, leases and membership never do.
//! - H3: one connection holds at most a quarter, so a client that does not read hurts itself.
//! - H4: turns are waited for, in the order of asking; one connection has at most a quarter of them at a time, and one that waits holds none.
//!
//! **Why**: an answer costs memory until its client takes it, and a client decides itself when that is. etcd has no such bound, and a few dozen lists
//! of everything at once are its best-known way to run out of memory.
//!
//! **Does not know** what answers are. Lists that are larger than [`WHOLE_BYTES_MAX`] are not held at all, but read as they are sent: `large_answer.rs`.
use crate::wire::status::ApiError;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// What a request in progress counts, whatever its answer: its stream, its task, its headers.
pub const REQUEST_BYTES: usize = 1024;
/// Answers to lists up to here are read and encoded at once.
pub const WHOLE_BYTES_MAX: usize = 1 << 20;
/// Least budget: that many whole lists.
pub const BUDGET_BYTES_MIN: usize = 16 << 20;
/// What a list of up to [`WHOLE_BYTES_MAX`] takes while it is put together: as it was read, as messages, and encoded.
pub const TURN_BYTES: usize = 3 * WHOLE_BYTES_MAX;

/// Who has to stand back first, from the last to the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AnswerClass {
    /// Health, leases and membership: what keeps a cluster and its clients alive.
    Vital,
    /// Single keys and everything that writes.
    Key,
    /// Ranges of many keys.
    List,
    /// Hashes, status, users and roles.
    Maintenance,
}

impl AnswerClass {
    /// How full the budget may be, in percent, for one more of them; none for those that are never refused.
    fn percent_max(self) -> Option<usize> {
        match self {
            Self::Vital => None,
            Self::Key => Some(100),
            Self::List => Some(75),
            Self::Maintenance => Some(50),
        }
    }

    /// The class of a gRPC method.
    pub fn of(service: &str, method: &str) -> Self {
        match (service, method) {
            ("etcdserverpb.KV" | "v3lockpb.Lock" | "v3electionpb.Election", _)
            | ("etcdserverpb.Auth", "Authenticate") => Self::Key,
            ("etcdserverpb.Lease" | "etcdserverpb.Cluster" | "grpc.health.v1.Health", _)
            | ("etcdserverpb.Maintenance", "Alarm" | "Defragment" | "MoveLeader") => Self::Vital,
            _ => Self::Maintenance,
        }
    }
}

/// Bytes for answers; see the module.
#[derive(Debug)]
pub struct AnswerBudget {
    limit_bytes: usize,
    held_bytes: AtomicUsize,
    refused: AtomicUsize,
    turns: Arc<Semaphore>,
    turns_count: usize,
    waiting: AtomicUsize,
}

impl AnswerBudget {
    /// At least [`BUDGET_BYTES_MIN`].
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        let limit_bytes = limit_bytes.max(BUDGET_BYTES_MIN);
        let turns_count = (limit_bytes / 4 / TURN_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self {
            limit_bytes,
            held_bytes: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            turns: Arc::new(Semaphore::new(turns_count)),
            turns_count,
            waiting: AtomicUsize::new(0),
        })
    }

    /// Lists that are being put together.
    pub fn turns_taken(&self) -> usize {
        self.turns_count.saturating_sub(self.turns.available_permits())
    }

    /// Lists that wait for that.
    pub fn turns_waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Requests refused so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// The share of a new connection.
    pub fn share(self: &Arc<Self>) -> Arc<AnswerShare> {
        let turns = Arc::new(Semaphore::new((self.turns_count / 4).max(1)));
        Arc::new(AnswerShare { budget: self.clone(), held_bytes: AtomicUsize::new(0), turns })
    }

    fn refuse(&self, what: String) -> Status {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Status::resource_exhausted(what)
    }
}

/// What one connection holds.
#[derive(Debug)]
pub struct AnswerShare {
    budget: Arc<AnswerBudget>,
    held_bytes: AtomicUsize,
    /// Its own turns: whoever has one of them may ask for one of all.
    turns: Arc<Semaphore>,
}

/// The right to put a list together; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    _of_all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

/// Counts somebody who waits for as long as it lives.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an answer holds until it is encoded: bytes, or a turn.
#[derive(Clone, Debug, Default)]
pub struct Room {
    turn: Option<Arc<Turn>>,
    held: Option<Arc<HeldAnswer>>,
}

impl Room {
    /// Of what there is.
    pub fn new(turn: Option<Turn>, held: Option<HeldAnswer>) -> Self {
        Self { turn: turn.map(Arc::new), held: held.map(Arc::new) }
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.turn.is_none() && self.held.is_none()
    }
}

impl AnswerShare {
    /// Begins a request.
    ///
    /// # Errors
    /// `ResourceExhausted` where it has to stand back.
    pub fn begin(self: &Arc<Self>, class: AnswerClass) -> Result<HeldAnswer, Status> {
        self.begin_with(class, REQUEST_BYTES)
    }

    /// Holds so many bytes.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_with(self: &Arc<Self>, class: AnswerClass, bytes: usize) -> Result<HeldAnswer, Status> {
        let mut held = HeldAnswer { share: self.clone(), bytes: 0 };
        held.ask(class, bytes)?;
        Ok(held)
    }

    /// Waits for a turn. Whoever holds one must not wait for another.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`] if none was free for so long.
    pub async fn turn(self: &Arc<Self>, timeout: Duration) -> Result<Turn, ApiError> {
        if let Ok(own) = self.turns.clone().try_acquire_owned()
            && let Ok(of_all) = self.budget.turns.clone().try_acquire_owned()
        {
            return Ok(Turn { _of_all: of_all, _own: own });
        }
        self.budget.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.budget.waiting);
        let both = async {
            let own = self.turns.clone().acquire_owned().await.map_err(|_| ApiError::Stopped)?;
            let of_all = self.budget.turns.clone().acquire_owned().await.map_err(|_| ApiError::Stopped)?;
            Ok(Turn { _of_all: of_all, _own: own })
        };
        tokio::time::timeout(timeout, both).await.unwrap_or(Err(ApiError::TooManyRequests))
    }
}

/// What one answer holds; given back when dropped.
#[derive(Debug)]
pub struct HeldAnswer {
    share: Arc<AnswerShare>,
    bytes: usize,
}

impl HeldAnswer {
    /// Takes so many bytes more, or none.
    ///
    /// # Errors
    /// `ResourceExhausted` where it has to stand back.
    pub fn ask(&mut self, class: AnswerClass, bytes: usize) -> Result<(), Status> {
        self.hold(bytes);
        let Some(percent_max) = class.percent_max() else { return Ok(()) };
        let share = &self.share;
        let (budget, limit_bytes) = (&share.budget, share.budget.limit_bytes);
        if share.held_bytes.load(Ordering::Relaxed) > limit_bytes / 4 {
            self.give_back(bytes);
            return Err(self.share.budget.refuse(format!(
                "sternpost: too many bytes of answers that this connection has not read, {} may wait",
                limit_bytes / 4
            )));
        }
        if budget.held_bytes() > limit_bytes / 100 * percent_max {
            self.give_back(bytes);
            return Err(self.share.budget.refuse(format!(
                "sternpost: too many bytes of answers that clients have not read, {limit_bytes} may wait"
            )));
        }
        Ok(())
    }

    /// Takes so many bytes more, whatever is held already.
    pub fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.share.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.share.budget.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives so many of its bytes back.
    pub fn give_back(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "{bytes} bytes are given back of {} that are held", self.bytes);
        self.bytes -= bytes;
        self.share.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.share.budget.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The connection's.
    pub fn share(&self) -> &Arc<AnswerShare> {
        &self.share
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes of an answer that hold their room until the transport has let go of the last of them, which is after it has polled the body to its end.
struct Counted<T> {
    bytes: Bytes,
    _held: T,
}

impl<T> AsRef<[u8]> for Counted<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The same bytes; `held` is dropped with the last of them.
pub fn counted<T: Send + 'static>(bytes: Bytes, held: T) -> Bytes {
    Bytes::from_owner(Counted { bytes, _held: held })
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_fuller_it_is_the_fewer_may_begin_and_vital_ones_always() {
        let budget = AnswerBudget::new(16 * MIB);
        // No connection above its quarter.
        let fill = |mib| -> Vec<HeldAnswer> {
            (0..mib)
                .map(|_| {
                    let mut held = budget.share().begin(AnswerClass::Vital).unwrap();
                    held.hold(MIB - REQUEST_BYTES);
                    held
                })
                .collect()
        };
        let may_begin = |class| budget.share().begin(class).is_ok();
        use AnswerClass::{Key, List, Maintenance, Vital};
        for (mib, refused) in [
            (7, &[][..]),
            (8, &[Maintenance]),
            (11, &[Maintenance]),
            (12, &[Maintenance, List]),
            (16, &[Maintenance, List, Key]),
            (40, &[Maintenance, List, Key]),
        ] {
            let held = fill(mib);
            assert_eq!(budget.held_bytes(), mib * MIB);
            for class in [Vital, Key, List, Maintenance] {
                assert_eq!(may_begin(class), !refused.contains(&class), "{class:?} with {mib} MiB");
            }
            drop(held);
            assert_eq!(budget.held_bytes(), 0);
        }
        assert_eq!(budget.refused(), 1 + 1 + 2 + 3 + 3);
    }

    #[test]
    fn a_connection_has_a_quarter_and_what_is_refused_holds_nothing() {
        let budget = AnswerBudget::new(16 * MIB);
        let share = budget.share();
        let mut first = share.begin(AnswerClass::Key).unwrap();
        first.ask(AnswerClass::List, 4 * MIB - 2 * REQUEST_BYTES).unwrap();
        let mut second = share.begin(AnswerClass::Key).unwrap();
        let error = second.ask(AnswerClass::List, 1).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert!(error.message().contains("this connection"), "{error}");
        assert_eq!((second.bytes(), budget.held_bytes()), (REQUEST_BYTES, 4 * MIB));
        assert!(share.begin(AnswerClass::Key).is_err());
        assert!(share.begin(AnswerClass::Vital).is_ok());
        assert!(budget.share().begin(AnswerClass::Key).is_ok(), "others do not notice");
        // A write that is done is answered.
        second.hold(MIB);
        drop(first);
        let bytes = counted(Bytes::from_static(b"answer"), second);
        let part = bytes.slice(2..);
        drop(bytes);
        assert_eq!((&part[..], budget.held_bytes()), (&b"swer"[..], MIB + REQUEST_BYTES));
        drop(part);
        assert_eq!(budget.held_bytes(), 0);
        assert!(share.begin(AnswerClass::Key).is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn lists_are_put_together_a_few_at_a_time_and_those_of_one_connection_fewer() {
        const WAIT: Duration = Duration::from_secs(60);
        let budget = AnswerBudget::new(16 * TURN_BYTES * 4);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let run = async |connections: usize| {
            most.store(0, Ordering::SeqCst);
            let shares: Vec<_> = (0..connections).map(|_| budget.share()).collect();
            let lists = (0..400).map(|number| {
                let (share, now, most) = (shares[number % connections].clone(), now.clone(), most.clone());
                tokio::spawn(async move {
                    let turn = share.turn(WAIT).await.unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(turn);
                })
            });
            for list in lists.collect::<Vec<_>>() {
                list.await.unwrap();
            }
            most.load(Ordering::SeqCst)
        };
        let of_many = run(40).await;
        assert!((5..=16).contains(&of_many), "{of_many} at a time");
        let of_one = run(1).await;
        assert!((1..=4).contains(&of_one), "{of_one} at a time of one connection");
        assert_eq!((budget.turns_taken(), budget.turns_waiting()), (0, 0));
    }

    #[tokio::test]
    async fn who_gets_no_turn_in_time_hears_of_overload_and_who_gives_up_holds_none() {
        let budget = AnswerBudget::new(BUDGET_BYTES_MIN);
        let (first, second) = (budget.share(), budget.share());
        let wait = Duration::from_secs(60);
        let turn = first.turn(wait).await.unwrap();
        assert_eq!(budget.turns_taken(), 1);
        assert_eq!(second.turn(Duration::ZERO).await.unwrap_err(), ApiError::TooManyRequests);
        {
            let mut waiting = std::pin::pin!(second.turn(wait));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            assert_eq!(budget.turns_waiting(), 1);
        }
        assert_eq!(budget.turns_waiting(), 0);
        drop(turn);
        assert!(second.turn(wait).await.is_ok());
    }

    #[test]
    fn every_method_has_a_class() {
        use crate::metrics::names::METHODS;
        let mut vital = Vec::new();
        for (service, methods) in METHODS {
            for (method, _) in *methods {
                match AnswerClass::of(service, method) {
                    AnswerClass::Vital => vital.push(*method),
                    AnswerClass::List => panic!("which ranges are lists is said by what they ask for"),
                    AnswerClass::Key | AnswerClass::Maintenance => {}
                }
            }
        }
        for method in ["LeaseKeepAlive", "LeaseRevoke", "MemberRemove", "Alarm", "Check"] {
            assert!(vital.contains(&method), "{method}");
        }
        assert_eq!(AnswerClass::of("etcdserverpb.KV", "Put"), AnswerClass::Key);
        assert_eq!(AnswerClass::of("etcdserverpb.Maintenance", "HashKV"), AnswerClass::Maintenance);
    }
}
