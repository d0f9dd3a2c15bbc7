//! Links between members: which of them carry nothing, and what becomes of a frame on the others.
//!
//! **Contract.** A frame is lost, or arrives once or more often, each time as a whole. Frames overtake one another, which those of one lane do not do in the
//! transport: whoever bears this bears that.
//!
//! **Does not know** what a frame says.
use super::plan::Faults;
use std::collections::BTreeSet;
use sternpost_engine::base::rng::Rng;

/// See the module. Members are numbers from 0 here.
#[derive(Default)]
pub(super) struct Network {
    /// Directed links that carry nothing.
    cut: BTreeSet<(usize, usize)>,
    is_healed: bool,
}

impl Network {
    /// After how many microseconds copies of a frame arrive; none if it is lost.
    pub(super) fn delays_us(&self, faults: &Faults, link: (usize, usize), rng: &mut Rng) -> Vec<u64> {
        let quick = |rng: &mut Rng| 150 + rng.below(500);
        if self.is_healed {
            return vec![quick(rng)];
        }
        if self.cut.contains(&link) || rng.chance(faults.loss, 1000) {
            return Vec::new();
        }
        let copies = 1 + u64::from(rng.chance(faults.duplication, 1000));
        let mut delays: Vec<u64> = (0..copies)
            .map(|_| {
                let late = if rng.chance(faults.late, 1000) { rng.below(400_000) } else { 0 };
                quick(rng) + late
            })
            .collect();
        if rng.chance(faults.late_copies, 1000) {
            delays.push(50_000 + rng.below(2_000_000));
        }
        delays
    }

    /// True if nothing comes through from the one to the other.
    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Cuts one direction.
    pub(super) fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    fn cut_both(&mut self, one: usize, two: usize) {
        self.cut.insert((one, two));
        self.cut.insert((two, one));
    }

    /// Cuts every pair for which `are_apart`.
    pub(super) fn cut_where(&mut self, count: usize, are_apart: impl Fn(usize, usize) -> bool) {
        for (one, two) in (0..count).flat_map(|one| (0..one).map(move |two| (one, two))) {
            if are_apart(one, two) || are_apart(two, one) {
                self.cut_both(one, two);
            }
        }
    }

    /// Every link carries again.
    pub(super) fn mend(&mut self) {
        self.cut.clear();
    }

    /// For good, and nothing is lost any more.
    pub(super) fn heal(&mut self) {
        self.mend();
        self.is_healed = true;
    }
}
