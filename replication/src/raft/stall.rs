//! When a leader whose disk hangs hands over, and to whom.
//!
//! A disk that hangs does not silence a leader whose log is written elsewhere: heartbeats go on, nobody is elected, and nothing is acknowledged (design
//! 2.4). So it gives leadership away, if there is somebody who can do better: the other voters whose disks are known to be well must
//! be a quorum (R20). A hand-over that fails is tried with the next one; after three it rests for a second.

/// Hand-overs in a row.
const TRIES_MAX: u32 = 3;

/// See the module.
#[derive(Default)]
pub(super) struct Watchdog {
    tries: u32,
    last_target: u64,
    /// Not before this tick.
    next_tick: u64,
}

impl Watchdog {
    /// The disk is well.
    pub(super) fn recovered(&mut self) {
        self.tries = 0;
        self.last_target = 0;
    }

    /// The disk of this leader hangs: the member to hand over to, if it is to be done now. `healthy`: (last index known to be there, id) of
    /// the other voters whose disks are well.
    pub(super) fn target(
        &mut self,
        tick: u64,
        healthy: &[(u64, u64)],
        voters_count: usize,
        transfer_ticks: u64,
        rest_ticks: u64,
    ) -> Option<u64> {
        if tick < self.next_tick || healthy.len() <= voters_count / 2 {
            return None;
        }
        let best = healthy
            .iter()
            .filter(|(_, id)| *id != self.last_target)
            .max()
            .or_else(|| healthy.iter().max())?;
        self.tries += 1;
        self.last_target = best.1;
        self.next_tick =
            tick + if self.tries.is_multiple_of(TRIES_MAX) { rest_ticks } else { transfer_ticks };
        Some(best.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_over_to_the_best_with_a_quorum_of_healthy_disks_only() {
        let mut watchdog = Watchdog::default();
        assert_eq!(watchdog.target(1, &[(9, 2)], 3, 15, 100), None, "R20: one of three is no quorum");
        assert_eq!(watchdog.target(1, &[(9, 2), (8, 3)], 3, 15, 100), Some(2));
        assert_eq!(watchdog.target(2, &[(9, 2), (8, 3)], 3, 15, 100), None, "that one is under way");
        assert_eq!(watchdog.target(16, &[(9, 2), (8, 3)], 3, 15, 100), Some(3), "R20: the next one");
        assert_eq!(watchdog.target(31, &[(9, 2), (8, 3)], 3, 15, 100), Some(2));
        assert_eq!(watchdog.target(46, &[(9, 2), (8, 3)], 3, 15, 100), None, "R20: after three it rests");
        assert_eq!(watchdog.target(131, &[(9, 2), (8, 3)], 3, 15, 100), Some(3));
    }
}
