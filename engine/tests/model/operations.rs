//! Random operations, and the search for a short list of them that still fails.
use sternpost_engine::Bytes;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::mvcc::*;

/// One step of a run.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Put(Put),
    DeleteRange(DeleteRange),
    DeleteLeaseKeys(i64),
    Txn(Txn),
    Compact(i64),
    Range(Range),
    Scan(Scan),
    Events {
        start: i64,
        events_max: usize,
        bytes_max: usize,
    },
    Retained(i64),
    LeaseKeys(i64),
    /// So many steps of background work.
    Maintain(u32),
    /// A new store with memtables of this size takes over, filled by repeating all changes so far. (It will be the
    /// log that repeats them.)
    Reopen {
        memtable_bytes: usize,
    },
}

/// What the choice of an operation depends on: revisions near the interesting ones.
pub(crate) struct Horizon {
    pub(crate) head: i64,
    pub(crate) compact: i64,
}

/// Added to a revision that counts from the head, so that it still means the same in a shorter list of operations.
const FROM_HEAD: i64 = -(1 << 40);

fn from_head(revision: i64, head: i64) -> i64 {
    revision - head + FROM_HEAD
}

fn to_absolute(revision: &mut i64, head: i64) {
    if *revision < FROM_HEAD / 2 {
        *revision += head - FROM_HEAD;
    }
}

impl Operation {
    /// Makes a revision that counts from the head smaller by one.
    fn move_closer(&mut self) {
        if let Operation::Compact(revision)
        | Operation::Retained(revision)
        | Operation::Events { start: revision, .. } = self
            && *revision < FROM_HEAD
        {
            *revision += 1;
        }
    }

    /// The operation with the revisions that it means at this head.
    pub(crate) fn absolute(&self, head: i64) -> Operation {
        let mut operation = self.clone();
        match &mut operation {
            Operation::Compact(revision) | Operation::Retained(revision) => to_absolute(revision, head),
            Operation::Events { start, .. } => to_absolute(start, head),
            Operation::Scan(scan) => to_absolute(&mut scan.revision, head),
            Operation::Range(range) => range_to_absolute(range, head),
            Operation::Txn(txn) => txn_to_absolute(txn, head),
            _ => {}
        }
        operation
    }
}

fn range_to_absolute(range: &mut Range, head: i64) {
    to_absolute(&mut range.revision, head);
    to_absolute(&mut range.min_mod_revision, head);
    to_absolute(&mut range.max_mod_revision, head);
    to_absolute(&mut range.min_create_revision, head);
    to_absolute(&mut range.max_create_revision, head);
}

fn txn_to_absolute(txn: &mut Txn, head: i64) {
    for compare in &mut txn.compares {
        if let CompareTarget::Create(revision) | CompareTarget::Mod(revision) = &mut compare.target {
            to_absolute(revision, head);
        }
    }
    for operation in txn.success.iter_mut().chain(&mut txn.failure) {
        match operation {
            TxnOperation::Range(range) => range_to_absolute(range, head),
            TxnOperation::Txn(nested) => txn_to_absolute(nested, head),
            _ => {}
        }
    }
}

/// Draws operations; which ones are frequent differs from run to run.
pub(crate) struct Generator {
    rng: Rng,
    keys_count: u64,
    maintain: u64,
    compact: u64,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Generator {
        let mut rng = Rng::new(seed);
        let keys_count = [2, 5, 20, 200][rng.below(4) as usize];
        let maintain = rng.below(15);
        let compact = rng.below(6);
        Generator { rng, keys_count, maintain, compact }
    }

    /// Sizes that make a memtable hold one record, some, or all.
    pub(crate) fn memtable_bytes(&mut self) -> usize {
        [1, 600, 3_000, 30_000, 2 << 20][self.rng.below(5) as usize]
    }

    pub(crate) fn operation(&mut self, horizon: &Horizon) -> Operation {
        match self.rng.below(100) {
            0..=29 => Operation::Put(self.put()),
            30..=37 => Operation::DeleteRange(self.delete_range()),
            38..=39 => Operation::DeleteLeaseKeys(1 + self.rng.below(4) as i64),
            40..=54 => Operation::Txn(self.txn(horizon, 3)),
            55..=64 => Operation::Range(self.range(horizon)),
            65..=69 => Operation::Scan(self.scan(horizon)),
            70..=75 => Operation::Events {
                start: self.revision(horizon),
                events_max: [1, 3, 1000][self.rng.below(3) as usize],
                bytes_max: [0, 100, 1 << 20][self.rng.below(3) as usize],
            },
            76..=78 => Operation::Retained(self.revision(horizon)),
            79 => Operation::LeaseKeys(1 + self.rng.below(4) as i64),
            80 if self.rng.chance(1, 10) => Operation::Reopen { memtable_bytes: self.memtable_bytes() },
            81..=95 if self.rng.chance(self.maintain, 15) => {
                Operation::Maintain(1 + self.rng.below(20) as u32)
            }
            96.. if self.rng.chance(self.compact, 6) => Operation::Compact(self.revision(horizon)),
            _ => Operation::Put(self.put()),
        }
    }

    /// Mostly retained revisions, sometimes just outside, sometimes 0 or negative.
    fn revision(&mut self, horizon: &Horizon) -> i64 {
        let oldest = horizon.compact.max(1);
        let revision = match self.rng.below(10) {
            0 => return 0,
            1 => horizon.compact - 1 + self.rng.below(3) as i64,
            2 => horizon.head - 1 + self.rng.below(4) as i64,
            3..=5 => horizon.head - self.rng.below((horizon.head - oldest + 1).min(5) as u64) as i64,
            _ => oldest + self.rng.below((horizon.head - oldest + 1) as u64) as i64,
        };
        from_head(revision, horizon.head)
    }

    /// Keys with common beginnings, with zero bytes and 0xff bytes; rarely an empty one.
    fn key(&mut self) -> Bytes {
        if self.rng.chance(1, 500) {
            return Bytes::new();
        }
        let number = self.rng.below(self.keys_count);
        let mut key = vec![[b'a', b'b', 0, 0xff][(number % 4) as usize]];
        let mut rest = number / 4;
        while rest > 0 {
            key.push([0, b'k', 0xff][(rest % 3) as usize]);
            rest /= 3;
        }
        Bytes::from(key)
    }

    fn key_range(&mut self) -> KeyRange {
        let key = self.key();
        let end = match self.rng.below(10) {
            0..=3 => Bytes::new(),
            4..=5 => Bytes::from_static(b"\0"),
            _ => self.key(),
        };
        let turn = end.len() > 1 && end < key && self.rng.chance(9, 10);
        if turn { KeyRange { key: end, end: key } } else { KeyRange { key, end } }
    }

    fn value(&mut self) -> Bytes {
        let bytes = if self.rng.chance(1, 50) { 3000 } else { self.rng.below(12) };
        Bytes::from(vec![b'0' + self.rng.below(10) as u8; bytes as usize])
    }

    fn put(&mut self) -> Put {
        let lease = if self.rng.chance(1, 3) { self.rng.below(4) as i64 } else { 0 };
        let lease = if self.rng.chance(1, 100) { 9 } else { lease };
        let (ignore_value, ignore_lease) = (self.rng.chance(1, 12), self.rng.chance(1, 12));
        Put {
            key: self.key(),
            value: if ignore_value { Bytes::new() } else { self.value() },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv: self.rng.chance(1, 3),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete_range(&mut self) -> DeleteRange {
        let mut range = self.key_range();
        // Wide deletes would leave the store empty most of the time.
        if !range.end.is_empty() && self.rng.chance(1, 2) {
            range.end = Bytes::new();
        }
        DeleteRange { range, prev_kv: self.rng.chance(1, 3) }
    }

    fn range(&mut self, horizon: &Horizon) -> Range {
        let mut rng = Rng::new(self.rng.next_u64());
        let mut filter = |generator: &mut Generator| {
            if rng.chance(1, 8) { generator.revision(horizon) } else { 0 }
        };
        let filters = [filter(self), filter(self), filter(self), filter(self)];
        use SortOrder::*;
        use SortTarget::*;
        Range {
            range: self.key_range(),
            revision: if self.rng.chance(1, 2) { 0 } else { self.revision(horizon) },
            limit: if self.rng.chance(1, 2) { 0 } else { self.rng.below(6) as i64 },
            sort_order: [None, None, Ascend, Descend][self.rng.below(4) as usize],
            sort_target: [Key, Key, Version, Create, Mod, Value][self.rng.below(6) as usize],
            keys_only: self.rng.chance(1, 5),
            count_only: self.rng.chance(1, 8),
            min_mod_revision: filters[0],
            max_mod_revision: filters[1],
            min_create_revision: filters[2],
            max_create_revision: filters[3],
        }
    }

    fn scan(&mut self, horizon: &Horizon) -> Scan {
        Scan {
            lower: if self.rng.chance(1, 2) { Bytes::new() } else { self.key() },
            upper: if self.rng.chance(1, 2) { None } else { Some(self.key()) },
            revision: if self.rng.chance(1, 2) { 0 } else { self.revision(horizon) },
            reverse: self.rng.chance(1, 2),
            limit: [0, 1, 3, 1000][self.rng.below(4) as usize],
            keys_only: self.rng.chance(1, 5),
        }
    }

    fn compare(&mut self, horizon: &Horizon) -> Compare {
        use CompareResult::*;
        let target = match self.rng.below(11) {
            0..=1 => CompareTarget::Version(self.rng.below(3) as i64),
            2..=3 => CompareTarget::Create(self.revision(horizon)),
            4..=5 => CompareTarget::Mod(self.revision(horizon)),
            6..=7 => CompareTarget::Value(self.value()),
            8..=9 => CompareTarget::Lease(self.rng.below(4) as i64),
            _ => CompareTarget::Unknown,
        };
        let result = [Equal, Greater, Less, NotEqual, NotEqual, Unknown][self.rng.below(6) as usize];
        Compare { range: self.key_range(), target, result }
    }

    fn txn(&mut self, horizon: &Horizon, depth: u32) -> Txn {
        let compares = (0..self.rng.below(3)).map(|_| self.compare(horizon)).collect();
        let mut branch = || {
            (0..self.rng.below(5))
                .map(|_| match self.rng.below(10) {
                    0..=3 => TxnOperation::Put(self.put()),
                    4..=5 => TxnOperation::DeleteRange(self.delete_range()),
                    6..=7 if depth > 0 => TxnOperation::Txn(self.txn(horizon, depth - 1)),
                    _ => {
                        // A range at a revision out of reach refuses the whole transaction; keep that rare.
                        let mut range = self.range(horizon);
                        if self.rng.chance(3, 4) {
                            range.revision = 0;
                        }
                        TxnOperation::Range(range)
                    }
                })
                .collect()
        };
        let (success, failure) = (branch(), branch());
        Txn { compares, success, failure }
    }
}

/// Drops operations as long as `fails` stays true: halves first, then ever smaller pieces (delta debugging, Zeller
/// and Hildebrandt 2002), then simplifies those that are left. Bounded: gives up after 20,000 tries with the shortest
/// list so far.
pub(crate) fn shrink(
    mut operations: Vec<Operation>,
    mut fails: impl FnMut(&[Operation]) -> bool,
) -> Vec<Operation> {
    let mut tries = 0;
    let mut fails = |operations: &[Operation]| {
        tries += 1;
        tries <= 20_000 && fails(operations)
    };
    loop {
        let before = format!("{operations:?}").len();
        let mut piece = operations.len().div_ceil(2);
        while piece > 0 {
            let mut start = 0;
            while start < operations.len() {
                let end = (start + piece).min(operations.len());
                let mut shorter = operations.clone();
                shorter.drain(start..end);
                // A dropped change moves the head, and with it what compactions and reads behind it mean.
                let mut moved = shorter.clone();
                moved[start..].iter_mut().for_each(Operation::move_closer);
                if fails(&shorter) {
                    operations = shorter;
                } else if piece == 1 && fails(&moved) {
                    operations = moved;
                } else {
                    start = end;
                }
            }
            piece /= 2;
        }
        for index in 0..operations.len() {
            while let Some(simpler) = simpler(&operations[index]).into_iter().find_map(|operation| {
                let mut simpler = operations.clone();
                simpler[index] = operation;
                fails(&simpler).then_some(simpler)
            }) {
                operations = simpler;
            }
        }
        if format!("{operations:?}").len() >= before {
            return operations;
        }
    }
}

/// Operations that say less than this one.
fn simpler(operation: &Operation) -> Vec<Operation> {
    match operation {
        Operation::Maintain(steps) if *steps > 1 => {
            vec![Operation::Maintain(steps / 2), Operation::Maintain(steps - 1)]
        }
        Operation::Put(put) if *put != (Put { key: put.key.clone(), ..Put::default() }) => {
            let keep = Put { prev_kv: false, value: Bytes::new(), ..put.clone() };
            vec![Operation::Put(Put { key: put.key.clone(), ..Put::default() }), Operation::Put(keep)]
                .into_iter()
                .filter(|simpler| !matches!(simpler, Operation::Put(simpler) if simpler == put))
                .collect()
        }
        Operation::Txn(txn) => {
            let alone = |operation: &TxnOperation| match operation.clone() {
                TxnOperation::Range(range) => Operation::Range(range),
                TxnOperation::Put(put) => Operation::Put(put),
                TxnOperation::DeleteRange(delete) => Operation::DeleteRange(delete),
                TxnOperation::Txn(txn) => Operation::Txn(txn),
            };
            let mut all: Vec<Operation> = txn.success.iter().chain(&txn.failure).map(alone).collect();
            let parts = [txn.compares.len(), txn.success.len(), txn.failure.len()];
            for (part, count) in parts.into_iter().enumerate() {
                for index in 0..count {
                    let mut shorter = txn.clone();
                    match part {
                        0 => drop(shorter.compares.remove(index)),
                        1 => drop(shorter.success.remove(index)),
                        _ => drop(shorter.failure.remove(index)),
                    }
                    all.push(Operation::Txn(shorter));
                }
            }
            all
        }
        _ => vec![],
    }
}
