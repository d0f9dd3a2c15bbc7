//! One random life of a log with an image of the disk after every step, and the check that every disk a power cut may
//! leave of each image is recovered to what was promised.
//!
//! The model is the list of what was appended. After a crash the recovered entries are a prefix of it that holds every
//! acknowledged one; the newest hard state before the end of the log is delivered; the log goes on; and all of that
//! still holds if the power fails again at any step of the recovery.
use super::{Driver, Recovered, Seen, body, entries, entry, hard_state, options, recover};
use sternpost_engine::Error;
use sternpost_engine::base::ids::Lsn;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::fault_plan::{Effect, Fault, FaultPlan, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::wal::{RecordKind, SyncMethod, WalOptions, WalStats};

/// How much of a run is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depth {
    pub(crate) actions: u64,
    /// Policies per image, beside all and nothing kept; chosen at random.
    pub(crate) policies: usize,
    /// One in so many crashed disks is crashed again at every step of its recovery.
    pub(crate) again_one_in: u64,
}

/// What a run left to be checked.
pub(crate) struct Life {
    seed: u64,
    options: WalOptions,
    stats: WalStats,
    images: Vec<SimDisk>,
    appended: Vec<Seen>,
    /// (steps made, durable position, replay position) whenever the caller looked.
    told: Vec<(u64, Lsn, Lsn)>,
}

/// How many checks were made.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Checked {
    pub(crate) images: u64,
    pub(crate) crashes: u64,
    pub(crate) crashes_again: u64,
    pub(crate) kills: u64,
    pub(crate) cuts: u64,
}

impl std::ops::AddAssign for Checked {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.crashes += other.crashes;
        self.crashes_again += other.crashes_again;
        self.kills += other.kills;
        self.cuts += other.cuts;
    }
}

fn random_options(rng: &mut Rng) -> WalOptions {
    WalOptions {
        groups_in_flight_max: 1 + rng.below(4) as usize,
        group_bytes_max: [16 << 10, 32 << 10, 1 << 20][rng.below(3) as usize],
        group_records_max: [3, 4096][rng.below(2) as usize],
        sync: SyncMethod::ALL[rng.below(4) as usize],
        spares_min: 1 + rng.below(2) as usize,
        ..options()
    }
}

/// Failures that poison the log, and a device that is full for a while.
fn random_faults(rng: &mut Rng) -> FaultPlan {
    let nth = rng.below(60);
    let fault = match rng.below(6) {
        0 => Fault::nth(OperationKind::Write, nth, Effect::Fail),
        1 => Fault::nth(OperationKind::Write, nth, Effect::Fail).on(".wal"),
        2 => Fault::nth(OperationKind::Sync, nth, Effect::SyncFailsLosing),
        3 => Fault::nth(OperationKind::Sync, nth, Effect::SyncFailsKeeping),
        4 => Fault { count: 5, ..Fault::nth(OperationKind::Write, nth, Effect::NoSpace).on("spare-") },
        _ => Fault::nth(OperationKind::Write, nth, Effect::Stall(100_000)).on(".wal"),
    };
    FaultPlan::new([fault])
}

fn body_bytes(rng: &mut Rng) -> usize {
    (match rng.below(8) {
        0 => 0,
        1..=4 => rng.below(400),
        5 => rng.below(5_000),
        6 => rng.below(30_000),
        // In fragments.
        _ => 15_000 + rng.below(60_000),
    }) as usize
}

impl Life {
    /// Lives one life; `change` may plant a bug.
    pub(crate) fn live(seed: u64, depth: Depth, change: impl Fn(&mut WalOptions)) -> Self {
        let mut rng = Rng::new(seed);
        let mut options = random_options(&mut rng);
        change(&mut options);
        let disk = SimDisk::new(seed);
        let mut driver = Driver::create(&disk, options.clone(), seed).expect("nothing fails on this disk");
        disk.record_images();
        if seed % 4 == 3 {
            disk.set_plan(random_faults(&mut rng));
        }
        let mut life = Self {
            seed,
            options,
            stats: WalStats::default(),
            images: Vec::new(),
            appended: Vec::new(),
            told: Vec::new(),
        };
        let mut replay = Lsn(0);
        life.tell(&driver, replay);
        let mut index = 2;
        for _ in 0..depth.actions {
            if driver.wal.poisoned().is_some() {
                break;
            }
            match rng.below(16) {
                0..=8 => {
                    let bytes = body_bytes(&mut rng);
                    match driver.append(entry(index), body(seed, index, bytes)) {
                        Ok(_) => index += 1,
                        // The faults include a full device.
                        Err(Error::NoSpace(_)) => {}
                        Err(other) => panic!("seed {seed}: {other}"),
                    }
                }
                9 => {
                    let vote = body(!seed, index, 8);
                    match driver.append(hard_state(index - 1), vote) {
                        Ok(_) | Err(Error::NoSpace(_)) => {}
                        Err(other) => panic!("seed {seed}: {other}"),
                    }
                }
                10 | 11 => driver.turn(1 + rng.below(300)),
                12 => driver.settle(),
                13 => {
                    driver.wal.note_commit(entry(0).group, index - 1).expect("the group is known");
                    // Every other step of a long pause changes nothing.
                    driver.settle();
                    driver.pause(1_100_000);
                }
                _ => {
                    // What a checkpoint does: everything before some durable record is not needed any more.
                    let durable = driver.wal.durable_lsn();
                    let known: Vec<Lsn> =
                        driver.appended.iter().map(|seen| seen.lsn).filter(|&lsn| lsn < durable).collect();
                    if !known.is_empty() {
                        let from = known.len() as u64 / 2;
                        let at = from + rng.below(known.len() as u64 - from);
                        replay = replay.max(known[at as usize]);
                        driver.wal.set_replay_lsn(replay);
                    }
                }
            }
            if rng.chance(1, 2) {
                driver.turn(1 + rng.below(200));
            }
            life.tell(&driver, replay);
        }
        driver.settle();
        life.tell(&driver, replay);
        life.stats = driver.wal.stats();
        life.images = disk.take_images();
        life.appended = driver.appended;
        life
    }

    /// Rotations, recycled segments, records in fragments.
    pub(crate) fn reach(&self) -> [u64; 3] {
        let split = self.appended.iter().filter(|seen| seen.body.len() > 14_336).count();
        [self.stats.rotations_count, self.stats.segments_recycled_count, split as u64]
    }

    fn tell(&mut self, driver: &Driver, replay: Lsn) {
        self.told.push((driver.disk.steps(), driver.wal.durable_lsn(), replay));
    }

    /// What the caller had been told when an image was taken: (durable, replay).
    fn told_at(&self, steps: u64) -> (Lsn, Lsn) {
        let at = self.told.partition_point(|&(at, ..)| at <= steps);
        self.told.get(at.wrapping_sub(1)).map_or((Lsn(0), Lsn(0)), |&(_, durable, replay)| (durable, replay))
    }

    /// Checks every image; the error says which promise was broken, and where.
    pub(crate) fn check(&self, depth: Depth) -> Result<Checked, String> {
        let mut rng = Rng::new(!self.seed);
        let mut checked = Checked::default();
        for image in &self.images {
            checked.images += 1;
            let (durable, replay) = self.told_at(image.steps());
            let mut policies = image.crash_policies();
            let mut chosen: Vec<CrashPolicy> = policies.drain(..policies.len().min(2)).collect();
            while chosen.len() < 2 + depth.policies && !policies.is_empty() {
                chosen.push(policies.swap_remove(rng.below(policies.len() as u64) as usize));
            }
            for policy in chosen {
                checked.crashes += 1;
                let place = format!("seed {}, step {}, {policy:?}", self.seed, image.steps());
                let crashed = image.crash(&policy);
                let again = rng.chance(1, depth.again_one_in);
                if again {
                    crashed.record_images();
                }
                let recovered =
                    self.recover(&crashed, durable, replay).map_err(|broken| format!("{place}: {broken}"))?;
                checked.cuts += u64::from(recovered.report.cut.is_some());
                if again {
                    self.check_again(&crashed, &recovered, durable, replay, &mut checked)
                        .map_err(|broken| format!("{place}, {broken}"))?;
                }
                self.go_on(&crashed, recovered, replay).map_err(|broken| format!("{place}: {broken}"))?;
            }
            if rng.chance(1, 4) {
                checked.kills += 1;
                self.check_killed(image, durable, replay).map_err(|broken| {
                    format!("seed {}, killed at step {}: {broken}", self.seed, image.steps())
                })?;
            }
        }
        Ok(checked)
    }

    fn recover(&self, disk: &SimDisk, durable: Lsn, replay: Lsn) -> Result<Recovered, String> {
        let recovered = recover(disk, self.options.clone(), self.seed ^ disk.steps(), replay)
            .map_err(|error| format!("recovery fails: {error}"))?;
        let read = entries(&recovered.records);
        let model: Vec<&Seen> =
            entries(&self.appended).into_iter().filter(|seen| seen.lsn >= replay).collect();
        if let Some(at) = (0..read.len()).find(|&at| model.get(at) != read.get(at)) {
            let (read, model) = (read.get(at).map(|it| it.meta), model.get(at).map(|it| it.meta));
            return Err(format!("entry {at} is invented or not in order: {read:?} instead of {model:?}"));
        }
        let promised = model.iter().filter(|seen| seen.lsn < durable).count();
        if read.len() < promised {
            let (read, end) = (read.len(), recovered.report.end_lsn);
            return Err(format!(
                "{read} of {promised} acknowledged entries are left; durable was {durable}, replay {replay}, the log \
                 ends at {end}"
            ));
        }
        let end = recovered.report.end_lsn;
        let is_hard_state = |seen: &&Seen| seen.meta.kind == RecordKind::HardState;
        let newest = self.appended.iter().filter(is_hard_state).rfind(|seen| seen.lsn < end);
        let delivered = recovered.records.iter().rfind(is_hard_state);
        match (newest, delivered) {
            (None, None) => {}
            (Some(newest), Some(delivered))
                if newest.body == delivered.body && newest.meta.index <= delivered.meta.index => {}
            _ => return Err(format!("the newest hard state is {newest:?}, delivered was {delivered:?}")),
        }
        Ok(recovered)
    }

    /// The process is killed and started again, and then the power fails: what the start delivered was acted upon,
    /// so it must still be there.
    fn check_killed(&self, image: &SimDisk, durable: Lsn, replay: Lsn) -> Result<(), String> {
        let killed = image.crash_process(self.seed ^ image.steps());
        let first = self.recover(&killed, durable, replay)?;
        for policy in [CrashPolicy::DropAll, CrashPolicy::Random(image.steps())] {
            let second = self.recover(&killed.crash(&policy), durable, replay)?;
            if second.records.len() < first.records.len() {
                return Err(format!("then {policy:?}: records that were delivered are gone"));
            }
        }
        Ok(())
    }

    /// The power fails again at every step of the recovery that gave `first`.
    fn check_again(
        &self,
        crashed: &SimDisk,
        first: &Recovered,
        durable: Lsn,
        replay: Lsn,
        checked: &mut Checked,
    ) -> Result<(), String> {
        for image in crashed.take_images() {
            let whole = image.steps() == crashed.steps();
            for policy in [CrashPolicy::KeepAll, CrashPolicy::DropAll, CrashPolicy::Random(image.steps())] {
                checked.crashes_again += 1;
                let place = || format!("again at step {} of recovery, {policy:?}", image.steps());
                let disk = image.crash(&policy);
                let recovered = self
                    .recover(&disk, durable, replay)
                    .map_err(|broken| format!("{}: {broken}", place()))?;
                // What a finished recovery delivered may have been acted upon.
                if whole && recovered.records.len() < first.records.len() {
                    return Err(format!("{}: records that were delivered are gone", place()));
                }
            }
        }
        Ok(())
    }

    /// The recovered log takes new records, and they are read back behind the old ones.
    fn go_on(&self, disk: &SimDisk, recovered: Recovered, replay: Lsn) -> Result<(), String> {
        let Recovered { wal, records, .. } = recovered;
        let mut driver = Driver { disk: disk.clone(), wal, appended: Vec::new() };
        let next = records.iter().map(|seen| seen.meta.index).max().unwrap_or(1) + 1;
        for (number, bytes) in [10, 20_000, 300].into_iter().enumerate() {
            let index = next + number as u64;
            driver
                .append(entry(index), body(!self.seed, index, bytes))
                .map_err(|error| format!("append after recovery: {error}"))?;
        }
        driver.settle();
        if let Some(what) = driver.wal.poisoned() {
            return Err(format!("the log is poisoned after recovery: {what}"));
        }
        let power_off = disk.crash(&CrashPolicy::DropAll);
        let again = recover(&power_off, self.options.clone(), !self.seed, replay)
            .map_err(|error| format!("second recovery fails: {error}"))?;
        let (old, new) = (entries(&records), entries(&driver.appended));
        let expected: Vec<&Seen> = old.into_iter().chain(new).collect();
        if entries(&again.records) != expected {
            let found = again.records.len();
            return Err(format!(
                "after going on {} entries were expected, {found} records read",
                expected.len()
            ));
        }
        Ok(())
    }
}

/// Lives and checks one seed.
pub(crate) fn run(seed: u64, depth: Depth, change: impl Fn(&mut WalOptions)) -> Result<Checked, String> {
    Life::live(seed, depth, change).check(depth)
}
