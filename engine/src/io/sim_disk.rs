//! [`Io`] in memory, from one seed: simulated time, operations that overtake one another, faults, power cuts. Feature
//! `sim`.
//!
//! **Contract.** A [`SimDisk`] is a handle: clones are the same device, so that a test keeps one and gives the other
//! to the engine. Same seed, same calls: same completions in the same order at the same times. Nothing happens by
//! itself: time moves and operations take effect only inside [`Io::wait`].
//!
//! **Owners.** Two parts of an engine that drive a device each, as two rings in one directory do, get a handle each by
//! [`SimDisk::handle`]: it has an owner of its own, which a clone keeps. A wait moves the one clock and lets every
//! operation take effect, whoever submitted it, and returns its owner's completions only; those of others are kept until
//! their owner waits. Files belong to the owner that opened them, as descriptors to a ring; names are everybody's.
//!
//! **Steps.** Whatever changes what a power cut may leave is one step: a write landing, a sync ending, a name changing,
//! and the completion of everything else. `Write` with `Synced` or `Dsync` is two steps, the write and its sync. A test
//! that visits the state after every step has visited every state:
//! - [`SimDisk::stop_after`] cuts the power after so many steps: nothing completes any more, `wait` returns at once,
//!   [`Io::is_stopped`] is true. Run the workload once to learn [`SimDisk::steps`], then once for each of them.
//! - [`SimDisk::record_images`] keeps an image after every step of one run; what was acknowledged while
//!   [`SimDisk::steps`] was at most the image's must be in the image.
//!
//! From the stopped device or the image, [`SimDisk::crash`] makes the disks that may come of it, one for each
//! [`CrashPolicy`]; [`SimDisk::crash_policies`] lists the ones worth trying. [`SimDisk::crash_process`] is SIGKILL: the
//! machine runs on, what was completed can be read but is not durable yet.
//!
//! **Why a step is not a submission.** What is submitted and in flight is torn, kept or dropped by the crash policy,
//! which is the same set of outcomes as after its completion.
//!
//! **Does not know** what the bytes mean. What becomes durable when is in [`super::sim_content`], which fault comes
//! when in [`super::fault_plan`].
use super::buffer::{BufferPool, IoBuffer};
use super::disk::{
    BLOCK_BYTES, Backend, Completion, DeviceSpace, Durability, FileId, Io, IoError, IoErrorKind, Open,
    Operation, Outcome, Token, Wait, Waker, check_path,
};
use super::fault_plan::{Effect, Fault, FaultPlan, Latency, OperationKind};
use super::sim_content::{Block, Blocks, Bytes, Covers, Name, SimContent};
use super::sim_files::Refusal;
use crate::base::clock::Clock;
use crate::base::rng::Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use super::sim_content::{CrashPolicy, TornUnits, Unsynced, UnsyncedChange};

/// A simulated device with one directory. See the module's documentation.
#[derive(Clone)]
pub struct SimDisk {
    device: Arc<Mutex<Device>>,
    /// Whose operations and completions this handle's are.
    owner: u32,
    woken: Arc<AtomicBool>,
}

struct Device {
    content: SimContent,
    /// By owner, from 0; never shorter.
    owners: Vec<Owner>,
    open: BTreeMap<u32, OpenFile>,
    file_id_next: u32,
    /// When each operation in flight takes its next step: (due in microseconds, draw for ties, key in `in_flight`).
    due: BinaryHeap<Reverse<(u64, u64, u64)>>,
    in_flight: BTreeMap<u64, InFlight>,
    in_flight_next: u64,
    now_us: u64,
    steps: u64,
    /// See [`SimDisk::reads`].
    reads: u64,
    /// The power fails after this step; `u64::MAX` for never.
    steps_max: u64,
    stopped: bool,
    /// An image after each step, while recording.
    images: Option<Vec<SimDisk>>,
    rng: Rng,
    plan: FaultPlan,
    /// Inode and number of each block that is not given.
    lost_blocks: BTreeSet<(u64, u64)>,
    latency: Latency,
    capacity_bytes: Option<u64>,
    /// False as between two file systems.
    links: bool,
    buffers: BufferPool,
}

/// What the device knows of one owner.
#[derive(Default)]
struct Owner {
    /// Completed in a wait of somebody else, in order.
    mailbox: Vec<Completion>,
    /// Submitted and not yet returned by a wait, those in `mailbox` included; at most `in_flight_max`.
    in_flight: usize,
}

#[derive(Clone)]
struct OpenFile {
    inode: u64,
    path: PathBuf,
    /// `None` for files that are only read, by anybody.
    owner: Option<u32>,
}

struct InFlight {
    owner: u32,
    token: Token,
    operation: Operation,
    effect: Option<Effect>,
    stage: Stage,
}

/// Where an operation in flight is.
#[derive(Clone, Copy)]
enum Stage {
    /// Its next step is its last, and needs nothing remembered.
    Whole,
    /// A write that has not landed; `id` names it in the content, unless it was lost.
    Writing { inode: u64, id: Option<u64> },
    /// A sync of its own, or the second half of a write; it ends here.
    Syncing { inode: u64, covers: Covers },
    /// A sync of a directory, of the changes up to this moment.
    SyncingDirectory { moment: u64 },
}

impl SimDisk {
    /// An empty device with default latencies and no faults.
    pub fn new(seed: u64) -> Self {
        Self::with_content(SimContent::default(), seed)
    }

    fn with_content(content: SimContent, seed: u64) -> Self {
        let device = Device {
            content,
            owners: vec![Owner::default()],
            open: BTreeMap::new(),
            file_id_next: 0,
            due: BinaryHeap::new(),
            in_flight: BTreeMap::new(),
            in_flight_next: 0,
            now_us: 0,
            steps: 0,
            reads: 0,
            steps_max: u64::MAX,
            stopped: false,
            images: None,
            rng: Rng::new(seed),
            plan: FaultPlan::default(),
            lost_blocks: BTreeSet::new(),
            latency: Latency::default(),
            capacity_bytes: None,
            links: true,
            buffers: BufferPool::default(),
        };
        Self { device: Arc::new(Mutex::new(device)), owner: 0, woken: Arc::default() }
    }

    /// Another handle of this device, with an owner and a waker of its own.
    ///
    /// # Panics
    /// If there are 2^32 already.
    #[must_use]
    pub fn handle(&self) -> Self {
        let mut device = self.device();
        let owner = u32::try_from(device.owners.len()).expect("few owners");
        device.owners.push(Owner::default());
        Self { device: self.device.clone(), owner, woken: Arc::default() }
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // A test that failed while it held the lock is already reported.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- Power ---------------------------------------------------------------------------------------------------

    /// How many steps have been made.
    pub fn steps(&self) -> u64 {
        self.device().steps
    }

    /// How many reads were made of files that are open to be read: what work on a state costs, without a clock.
    pub fn reads(&self) -> u64 {
        self.device().reads
    }

    /// Cuts the power after `steps` more steps.
    pub fn stop_after(&self, steps: u64) {
        let mut device = self.device();
        device.steps_max = device.steps.saturating_add(steps);
        device.stopped = steps == 0;
    }

    /// From now on keeps an image after every step (and one of the state now). They share all unchanged blocks.
    pub fn record_images(&self) {
        let mut device = self.device();
        let image = device.image();
        device.images = Some(vec![image]);
    }

    /// The recorded images in order, each as a stopped device for [`Self::crash`] and [`Self::crash_process`]; its
    /// [`Self::steps`] says after which step it was taken. Ends the recording.
    pub fn take_images(&self) -> Vec<Self> {
        self.device().images.take().unwrap_or_default()
    }

    /// What a power cut now may undo. Its order gives the indices of [`CrashPolicy`].
    pub fn unsynced(&self) -> Vec<Unsynced> {
        self.device().content.unsynced()
    }

    /// See [`CrashPolicy::all_for`].
    pub fn crash_policies(&self) -> Vec<CrashPolicy> {
        CrashPolicy::all_for(&self.unsynced())
    }

    /// The disk after the power failed now: a new device, with no faults planned, everything on it durable.
    pub fn crash(&self, policy: &CrashPolicy) -> Self {
        let mut device = self.device();
        let content = device.content.after_power_cut(policy);
        Self::with_content(content, device.rng.clone().next_u64()).with_settings_of(&mut device)
    }

    /// The disk after the process was killed now: completed operations have happened, those in flight may have, and
    /// what was unsynced still is.
    pub fn crash_process(&self, seed: u64) -> Self {
        let mut device = self.device();
        let content = device.content.after_process_kill(seed);
        Self::with_content(content, device.rng.clone().next_u64()).with_settings_of(&mut device)
    }

    fn with_settings_of(self, other: &mut Device) -> Self {
        let mut device = self.device();
        device.latency = other.latency;
        device.capacity_bytes = other.capacity_bytes;
        device.links = other.links;
        drop(device);
        self
    }

    /// A number of the device's seed, for who would ask a real machine for randomness.
    pub(crate) fn draw(&self) -> u64 {
        self.device().rng.next_u64()
    }

    /// When the next operation in flight takes a step, in microseconds of the device's clock, whoever submitted it: for who has more than
    /// one device to let time pass on. None if nothing is in flight, or nothing will ever complete any more.
    pub fn next_step_us(&self) -> Option<u64> {
        let device = self.device();
        device.due.peek().filter(|_| !device.stopped).map(|Reverse((due_us, ..))| *due_us)
    }

    // --- Faults --------------------------------------------------------------------------------------------------

    /// Replaces the plan of faults.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.device().plan = plan;
    }

    /// Adds a fault to the plan; it counts operations from now on.
    pub fn add_fault(&self, fault: Fault) {
        self.device().plan.add(fault);
    }

    /// From now on no read through [`Files`](super::files::Files) that touches block `block` of the file succeeds: a sector that the device
    /// does not give any more. What a new device is made of has none. False if there is no such file.
    pub fn lose_block(&self, path: impl AsRef<Path>, block: u64) -> bool {
        let mut device = self.device();
        let Some(Name::File(inode)) = device.content.name(path.as_ref()) else { return false };
        device.lost_blocks.insert((inode, block));
        true
    }

    /// Gives all blocks again.
    pub fn find_blocks(&self) {
        self.device().lost_blocks.clear();
    }

    /// Sets how long operations take.
    pub fn set_latency(&self, latency: Latency) {
        self.device().latency = latency;
    }

    /// Limits the bytes that all files together may occupy; `None` lifts the limit. Writes that need more fail with
    /// `NoSpace`; writes to blocks that are already there do not.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.device().capacity_bytes = bytes;
    }

    /// Whether a file can get a second name; true at first. Without, each link fails as between two file systems.
    pub fn set_links(&self, links: bool) {
        self.device().links = links;
    }

    /// Bytes that all files occupy.
    pub fn allocated_bytes(&self) -> u64 {
        self.device().allocated_bytes()
    }

    // --- Content -------------------------------------------------------------------------------------------------

    /// Paths of all files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.device().content.file_paths()
    }

    /// What a reader of the file sees now.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.device().content.file_at(path.as_ref()).map(|file| file.current.to_vec())
    }

    /// Puts a durable file there, with its directories.
    pub fn put_file(&self, path: impl AsRef<Path>, content: &[u8]) {
        self.device().content.put_file(path.as_ref(), content);
    }

    /// What is below a directory, as a device of its own with this seed: the same blocks, unsynced changes included.
    pub fn below(&self, directory: impl AsRef<Path>, seed: u64) -> Self {
        let mut device = self.device();
        let content = device.content.below(directory.as_ref());
        Self::with_content(content, seed).with_settings_of(&mut device)
    }

    /// Removes a file for good; false if there is none.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> bool {
        self.device().content.remove_file(path.as_ref())
    }

    /// Cuts a file for good; false if there is none.
    pub fn truncate_file(&self, path: impl AsRef<Path>, length: u64) -> bool {
        self.device().content.truncate(path.as_ref(), length)
    }

    /// Replaces bytes as damage does, in everything the disk holds of this file. False if they are not inside it.
    pub fn damage(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> bool {
        self.device().content.damage(path.as_ref(), offset, bytes)
    }

    /// Inverts one bit (0 to 7) of one byte. False if the byte is not inside the file.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) -> bool {
        let mut device = self.device();
        let mut byte = [0];
        match device.content.file_at(path.as_ref()) {
            Some(file) if file.current.read(offset, &mut byte) == 1 => {}
            _ => return false,
        }
        device.content.damage(path.as_ref(), offset, &[byte[0] ^ (1 << (bit % 8))])
    }

    /// Copies the content into an independent device with this seed, unsynced changes included.
    ///
    /// # Panics
    /// If an operation is in flight.
    pub fn duplicate(&self, seed: u64) -> Self {
        let mut device = self.device();
        assert!(
            device.in_flight.is_empty() || device.stopped,
            "a device is duplicated while nothing is in flight"
        );
        let content = device.content.clone();
        Self::with_content(content, seed).with_settings_of(&mut device)
    }
}

/// For [`super::sim_files`].
impl SimDisk {
    /// Enters a file into the table of open files.
    pub(super) fn open_to_read(&self, path: &Path) -> Result<u32, Refusal> {
        check_path(path);
        let mut device = self.device();
        device.begin_read(OperationKind::Open, path)?;
        match device.content.name(path) {
            Some(Name::File(inode)) => Ok(device.open_inode(inode, path, None).0),
            Some(Name::Directory) => Err(IS_DIRECTORY),
            None => Err(NO_SUCH_NAME),
        }
    }

    /// What an open file holds now, and what goes wrong with this read of these bytes of it.
    pub(super) fn content_to_read(
        &self,
        id: u32,
        bytes: Range<u64>,
    ) -> Result<(Arc<Bytes>, Option<Effect>), Refusal> {
        let mut device = self.device();
        device.reads += 1;
        let OpenFile { inode, path, .. } = device.open_file(FileId(id)).clone();
        let effect = device.begin_read(OperationKind::Read, &path)?;
        let block_bytes = BLOCK_BYTES as u64;
        let blocks = bytes.start / block_bytes..bytes.end.div_ceil(block_bytes);
        if device.lost_blocks.range((inode, blocks.start)..(inode, blocks.end)).next().is_some() {
            return Err(UNREADABLE);
        }
        let content = device.content.file(inode).map(|file| file.current.clone()).unwrap_or_default();
        Ok((content, effect))
    }

    /// Takes a file out of the table of open files.
    pub(super) fn close_read(&self, id: u32) {
        let mut device = self.device();
        device.open.remove(&id);
        let open = device.open_inodes();
        device.content.forget_unnamed(&open);
    }
}

/// Simulated time.
impl Clock for SimDisk {
    fn now_us(&self) -> u64 {
        self.device().now_us
    }
}

impl Io for SimDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        let in_flight_max = self.in_flight_max();
        let mut device = self.device();
        let in_flight = device.owner(self.owner).in_flight;
        assert!(
            in_flight < in_flight_max,
            "{in_flight} operations are in flight, at most {in_flight_max} may be"
        );
        device.submit(self.owner, token, operation);
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        let woken = self.woken.swap(false, Ordering::Acquire);
        let mut device = self.device();
        let limit_us = match wait {
            Wait::AtMostUs(limit_us) if !woken => limit_us,
            // A call costs a microsecond, so that a loop of polls gets somewhere.
            Wait::AtMostUs(_) | Wait::No => 1,
        };
        let until_us = device.now_us.saturating_add(limit_us.max(1));
        device.run_until(self.owner, until_us, completions);
    }

    fn waker(&self) -> Waker {
        let woken = self.woken.clone();
        Arc::new(move || woken.store(true, Ordering::Release))
    }

    fn buffer(&mut self, bytes: usize) -> IoBuffer {
        self.device().buffers.take(bytes)
    }

    fn recycle(&mut self, buffer: IoBuffer) {
        self.device().buffers.put(buffer);
    }

    fn now_us(&self) -> u64 {
        self.device().now_us
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }

    fn backend(&self) -> Backend {
        Backend { name: "simulated", detail: "in memory".to_string(), direct: true, dsync: true }
    }

    fn is_stopped(&self) -> bool {
        self.device().stopped
    }

    /// None without a capacity.
    fn space(&self) -> Option<DeviceSpace> {
        let device = self.device();
        let total_bytes = device.capacity_bytes?;
        Some(DeviceSpace { total_bytes, free_bytes: total_bytes.saturating_sub(device.allocated_bytes()) })
    }
}

impl Device {
    /// A stopped device with what this one holds now, for crashes.
    fn image(&self) -> SimDisk {
        let image = SimDisk::with_content(self.content.clone(), self.rng.clone().next_u64());
        let mut device = image.device();
        (device.steps, device.stopped, device.now_us) = (self.steps, true, self.now_us);
        (device.latency, device.capacity_bytes) = (self.latency, self.capacity_bytes);
        device.links = self.links;
        drop(device);
        image
    }

    fn open_inodes(&self) -> BTreeSet<u64> {
        self.open.values().map(|open| open.inode).collect()
    }

    fn allocated_bytes(&self) -> u64 {
        self.content.allocated_bytes(&self.open_inodes())
    }

    fn owner(&mut self, owner: u32) -> &mut Owner {
        &mut self.owners[owner as usize]
    }

    fn open_file(&self, file: FileId) -> &OpenFile {
        self.open.get(&file.0).unwrap_or_else(|| panic!("file {} is used and not open", file.0))
    }

    fn file_path(&self, file: FileId) -> String {
        self.open.get(&file.0).map_or_else(String::new, |open| open.path.display().to_string())
    }

    /// Counts one blocking open or read; the fault that it suffers and survives, or how it fails.
    fn begin_read(&mut self, kind: OperationKind, path: &Path) -> Result<Option<Effect>, Refusal> {
        if self.stopped {
            return Err((IoErrorKind::Device, "the device has stopped"));
        }
        let effect = self.plan.decide(kind, path);
        refusal(effect).map_or(Ok(effect), Err)
    }

    fn submit(&mut self, owner: u32, token: Token, operation: Operation) {
        if self.stopped {
            // The power is off; the caller has not noticed yet.
            return;
        }
        operation.check();
        self.check_owner(owner, &operation);
        let (kind, path) = self.kind_and_path(&operation);
        let effect = self.plan.decide(kind, &path);
        let stage = match &operation {
            Operation::Write { file, offset, buffer, .. } => {
                let inode = self.open_file(*file).inode;
                self.begin_write(inode, *offset, buffer, effect)
            }
            Operation::Sync { file } | Operation::SyncUrgent { file } => {
                let inode = self.open_file(*file).inode;
                Stage::Syncing { inode, covers: Covers::UpTo(self.content.now()) }
            }
            Operation::SyncDirectory { .. } => Stage::SyncingDirectory { moment: self.content.now() },
            _ => Stage::Whole,
        };
        let range = match kind {
            OperationKind::Read => self.latency.read_us,
            OperationKind::Write => self.latency.write_us,
            OperationKind::Sync | OperationKind::SyncDirectory => self.latency.sync_us,
            _ => self.latency.control_us,
        };
        let key = self.in_flight_next;
        self.in_flight_next += 1;
        self.in_flight.insert(key, InFlight { owner, token, operation, effect, stage });
        self.owner(owner).in_flight += 1;
        self.schedule(key, range, effect);
    }

    /// Stops the process if an owner uses another's file: a real device would find another file, or none.
    fn check_owner(&self, owner: u32, operation: &Operation) {
        if let Operation::Close { file }
        | Operation::Read { file, .. }
        | Operation::Write { file, .. }
        | Operation::Sync { file }
        | Operation::SyncUrgent { file }
        | Operation::Allocate { file, .. }
        | Operation::Length { file } = operation
        {
            let opened_by = self.open_file(*file).owner;
            assert_eq!(opened_by, Some(owner), "file {} is used by who did not open it", file.0);
        }
    }

    fn schedule(&mut self, key: u64, range: (u64, u64), effect: Option<Effect>) {
        let stall_us = if let Some(Effect::Stall(us)) = effect { us } else { 0 };
        let due_us = self.now_us + Latency::draw(range, &mut self.rng).max(1) + stall_us;
        self.due.push(Reverse((due_us, self.rng.next_u64(), key)));
    }

    fn begin_write(&mut self, inode: u64, offset: u64, buffer: &[u8], effect: Option<Effect>) -> Stage {
        let offset = match effect {
            Some(Effect::LostWrite | Effect::NoSpace) => return Stage::Writing { inode, id: None },
            Some(Effect::MisdirectedWrite { offset }) => offset,
            _ => offset,
        };
        assert_eq!(offset % BLOCK_BYTES as u64, 0, "a write starts at a multiple of {BLOCK_BYTES}");
        let mut blocks: Vec<(u64, Arc<Block>)> = (offset / BLOCK_BYTES as u64..)
            .zip(buffer.chunks_exact(BLOCK_BYTES))
            .map(|(index, chunk)| {
                let mut block = [0; BLOCK_BYTES];
                block.copy_from_slice(chunk);
                (index, Arc::new(block))
            })
            .collect();
        if let Some(Effect::Fail) = effect {
            match self.rng.below(4) {
                0 | 1 => blocks.clear(),
                2 => blocks.retain(|_| self.rng.chance(1, 2)),
                _ => {}
            }
        }
        let id = self.content.write_begins(inode, Blocks::from(blocks));
        Stage::Writing { inode, id: Some(id) }
    }

    /// Makes every step that is due until `until_us`, and stops early at the moment of the first completion for `owner`;
    /// appends what there is for it.
    fn run_until(&mut self, owner: u32, until_us: u64, completions: &mut Vec<Completion>) {
        self.make_steps(owner, until_us);
        let Owner { mailbox, in_flight } = self.owner(owner);
        *in_flight -= mailbox.len();
        completions.append(mailbox);
    }

    fn make_steps(&mut self, owner: u32, until_us: u64) {
        while !self.stopped {
            let due_us = self.due.peek().map_or(u64::MAX, |Reverse((due_us, ..))| *due_us);
            let complete = !self.owner(owner).mailbox.is_empty();
            if due_us > until_us || (complete && due_us > self.now_us) {
                if !complete {
                    self.now_us = until_us;
                }
                return;
            }
            let Some(Reverse((due_us, _, key))) = self.due.pop() else { return };
            self.now_us = self.now_us.max(due_us);
            let Some(in_flight) = self.in_flight.remove(&key) else { continue };
            let step_owner = in_flight.owner;
            if let Some(completion) = self.step(key, in_flight) {
                self.owner(step_owner).mailbox.push(completion);
            }
            self.steps += 1;
            self.stopped = self.steps >= self.steps_max;
            if self.images.is_some() {
                let image = self.image();
                self.images.get_or_insert_default().push(image);
            }
        }
    }

    /// Makes one step of one operation; its completion, if that was the last.
    fn step(&mut self, key: u64, in_flight: InFlight) -> Option<Completion> {
        let InFlight { owner, token, operation, effect, stage } = in_flight;
        let failed = refusal(effect);
        let outcome = match stage {
            Stage::Writing { inode, id } => match self.write_lands(inode, id, failed) {
                Ok(()) => match self.begin_own_sync(inode, id, &operation) {
                    Some((stage, effect)) => {
                        self.in_flight.insert(key, InFlight { owner, token, operation, effect, stage });
                        self.schedule(key, self.latency.sync_us, effect);
                        return None;
                    }
                    None => Ok(Outcome::Bytes(written_bytes(&operation))),
                },
                Err(error) => Err(error),
            },
            Stage::Syncing { inode, covers } => match failed {
                None => {
                    self.content.sync(inode, covers);
                    match &operation {
                        Operation::Write { .. } => Ok(Outcome::Bytes(written_bytes(&operation))),
                        _ => Ok(Outcome::Done),
                    }
                }
                Some(error) => {
                    if let Some(Effect::SyncFailsLosing) = effect {
                        self.content.sync_loses(inode, covers);
                    }
                    Err(error)
                }
            },
            Stage::SyncingDirectory { moment } => match (&operation, failed) {
                (_, Some(error)) => Err(error),
                (Operation::SyncDirectory { path }, None) => match self.content.name(path) {
                    Some(Name::Directory) => {
                        self.content.sync_directory(path, moment);
                        self.content.forget_unnamed(&self.open_inodes());
                        Ok(Outcome::Done)
                    }
                    _ => Err(NO_SUCH_NAME),
                },
                _ => unreachable!("only a sync of a directory is in this stage"),
            },
            Stage::Whole => match failed {
                Some(error) => Err(error),
                None => return Some(self.complete_whole(owner, token, operation, effect)),
            },
        };
        Some(self.completion(token, operation, outcome))
    }

    fn write_lands(&mut self, inode: u64, id: Option<u64>, failed: Option<Refusal>) -> Result<(), Refusal> {
        let Some(id) = id else { return failed.map_or(Ok(()), Err) };
        if let Some(capacity_bytes) = self.capacity_bytes {
            let new_bytes = self.content.new_bytes_of_write(inode, id);
            if new_bytes > 0 && self.allocated_bytes() + new_bytes > capacity_bytes {
                self.content.write_vanishes(inode, id);
                return Err(NO_SPACE);
            }
        }
        self.content.write_completes(inode, id);
        failed.map_or(Ok(()), Err)
    }

    /// The sync that belongs to a write which has just landed, if it has one.
    fn begin_own_sync(
        &mut self,
        inode: u64,
        id: Option<u64>,
        operation: &Operation,
    ) -> Option<(Stage, Option<Effect>)> {
        let Operation::Write { file, durability, .. } = operation else { return None };
        match durability {
            Durability::None => None,
            Durability::Synced => {
                let path = self.open.get(&file.0).map(|open| open.path.clone()).unwrap_or_default();
                let effect = self.plan.decide(OperationKind::Sync, &path);
                Some((Stage::Syncing { inode, covers: Covers::UpTo(self.content.now()) }, effect))
            }
            // A lost write has no id; its sync covers nothing.
            Durability::Dsync => {
                Some((Stage::Syncing { inode, covers: id.map_or(Covers::UpTo(0), Covers::Only) }, None))
            }
        }
    }

    /// Does what takes one step and cannot be undone by halves.
    fn complete_whole(
        &mut self,
        owner: u32,
        token: Token,
        mut operation: Operation,
        effect: Option<Effect>,
    ) -> Completion {
        let outcome = match &mut operation {
            Operation::Open { path, open } => match (self.content.name(path), open) {
                (Some(Name::File(inode)), Open::Existing) => {
                    Ok(Outcome::Opened(self.open_inode(inode, path, Some(owner))))
                }
                (None, Open::CreateNew) => match self.parent_is_there(path) {
                    true => {
                        let inode = self.content.create(path);
                        Ok(Outcome::Opened(self.open_inode(inode, path, Some(owner))))
                    }
                    false => Err(NO_SUCH_NAME),
                },
                (Some(_), Open::CreateNew) => Err(NAME_EXISTS),
                (None, Open::Existing) => Err(NO_SUCH_NAME),
                (Some(Name::Directory), Open::Existing) => Err(IS_DIRECTORY),
            },
            Operation::Close { file } => {
                self.open.remove(&file.0).unwrap_or_else(|| panic!("file {} is closed twice", file.0));
                self.content.forget_unnamed(&self.open_inodes());
                Ok(Outcome::Done)
            }
            Operation::Read { file, offset, buffer } => {
                let inode = self.open_file(*file).inode;
                let count = self.content.file(inode).map_or(0, |file| file.current.read(*offset, buffer));
                if let Some(Effect::RottenRead { byte, bit }) = effect
                    && count > 0
                {
                    buffer[byte % count] ^= 1 << (bit % 8);
                }
                Ok(Outcome::Bytes(count))
            }
            Operation::Length { file } => {
                let inode = self.open_file(*file).inode;
                Ok(Outcome::Length(self.content.file(inode).map_or(0, |file| file.current.length)))
            }
            Operation::Allocate { file, bytes } => {
                let inode = self.open_file(*file).inode;
                let taken = self.allocated_bytes();
                match self.capacity_bytes.is_some_and(|capacity_bytes| taken + *bytes > capacity_bytes) {
                    true => Err(NO_SPACE),
                    false => {
                        let zeros = Arc::new([0; BLOCK_BYTES]);
                        let blocks: Vec<_> =
                            (0..*bytes / BLOCK_BYTES as u64).map(|index| (index, zeros.clone())).collect();
                        let id = self.content.write_begins(inode, Blocks::from(blocks));
                        self.content.write_completes(inode, id);
                        Ok(Outcome::Done)
                    }
                }
            }
            Operation::Link { .. } if !self.links => Err(CANNOT_LINK),
            Operation::Link { from, to } => match (self.content.name(from), self.content.name(to)) {
                (Some(Name::File(inode)), None) if self.parent_is_there(to) => {
                    self.content.link(from, to, inode);
                    Ok(Outcome::Done)
                }
                (Some(Name::Directory), _) => Err(IS_DIRECTORY),
                (Some(_), Some(_)) => Err(NAME_EXISTS),
                (None, _) | (_, None) => Err(NO_SUCH_NAME),
            },
            Operation::Rename { from, to } => match self.content.name(from) {
                Some(Name::File(inode)) => {
                    self.content.rename(from, to, inode);
                    Ok(Outcome::Done)
                }
                Some(Name::Directory) => Err(IS_DIRECTORY),
                None => Err(NO_SUCH_NAME),
            },
            Operation::Unlink { path } | Operation::Retire { path } => match self.content.name(path) {
                Some(Name::File(_)) => {
                    self.content.unlink(path);
                    Ok(Outcome::Done)
                }
                Some(Name::Directory) => Err(IS_DIRECTORY),
                None => Err(NO_SUCH_NAME),
            },
            Operation::List { path } => match self.content.name(path) {
                Some(Name::Directory) => Ok(Outcome::Names(self.content.list(path))),
                _ => Err(NO_SUCH_NAME),
            },
            Operation::CreateDirectory { path } => match self.content.name(path) {
                Some(Name::Directory) => Ok(Outcome::Done),
                Some(Name::File(_)) => Err(NAME_EXISTS),
                None if self.parent_is_there(path) => {
                    self.content.create_directory(path);
                    Ok(Outcome::Done)
                }
                None => Err(NO_SUCH_NAME),
            },
            Operation::Write { .. }
            | Operation::Sync { .. }
            | Operation::SyncUrgent { .. }
            | Operation::SyncDirectory { .. } => {
                unreachable!("writes and syncs have stages of their own")
            }
        };
        self.completion(token, operation, outcome)
    }

    fn parent_is_there(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| self.content.name(parent) == Some(Name::Directory))
    }

    fn open_inode(&mut self, inode: u64, path: &Path, owner: Option<u32>) -> FileId {
        let id = self.file_id_next;
        self.file_id_next += 1;
        self.open.insert(id, OpenFile { inode, path: path.to_path_buf(), owner });
        FileId(id)
    }

    fn completion(
        &self,
        token: Token,
        operation: Operation,
        outcome: Result<Outcome, Refusal>,
    ) -> Completion {
        let result = outcome.map_err(|(kind, cause)| IoError {
            kind,
            what: operation.describe(|file| self.file_path(file)),
            cause: cause.to_string(),
        });
        Completion { token, result, buffer: operation.into_buffer() }
    }

    fn kind_and_path(&self, operation: &Operation) -> (OperationKind, PathBuf) {
        let of_file = |file: &FileId| self.open_file(*file).path.clone();
        match operation {
            Operation::Open { path, .. } => (OperationKind::Open, path.clone()),
            Operation::Close { file } => (OperationKind::Close, of_file(file)),
            Operation::Read { file, .. } => (OperationKind::Read, of_file(file)),
            Operation::Write { file, .. } => (OperationKind::Write, of_file(file)),
            Operation::Sync { file } | Operation::SyncUrgent { file } => (OperationKind::Sync, of_file(file)),
            Operation::SyncDirectory { path } => (OperationKind::SyncDirectory, path.clone()),
            Operation::Link { to, .. } => (OperationKind::Link, to.clone()),
            Operation::Rename { from, .. } => (OperationKind::Rename, from.clone()),
            Operation::Unlink { path } | Operation::Retire { path } => (OperationKind::Unlink, path.clone()),
            Operation::List { path } => (OperationKind::List, path.clone()),
            Operation::CreateDirectory { path } => (OperationKind::CreateDirectory, path.clone()),
            Operation::Length { file } => (OperationKind::Length, of_file(file)),
            Operation::Allocate { file, .. } => (OperationKind::Allocate, of_file(file)),
        }
    }
}

const NO_SUCH_NAME: Refusal = (IoErrorKind::NotFound, "No such file or directory");
const NAME_EXISTS: Refusal = (IoErrorKind::AlreadyExists, "File exists");
const CANNOT_LINK: Refusal = (IoErrorKind::CannotLink, "Invalid cross-device link (simulated)");
const UNREADABLE: Refusal = (IoErrorKind::Device, "Input/output error (simulated)");
const IS_DIRECTORY: Refusal = (IoErrorKind::Device, "Is a directory");
const NO_SPACE: Refusal = (IoErrorKind::NoSpace, "No space left on device (simulated)");

/// How an operation with this fault fails, if it does.
fn refusal(effect: Option<Effect>) -> Option<Refusal> {
    match effect? {
        Effect::Fail | Effect::SyncFailsLosing | Effect::SyncFailsKeeping => {
            Some((IoErrorKind::Device, "Input/output error (simulated)"))
        }
        Effect::NoSpace => Some(NO_SPACE),
        _ => None,
    }
}

fn written_bytes(operation: &Operation) -> usize {
    if let Operation::Write { buffer, .. } = operation { buffer.len() } else { 0 }
}
