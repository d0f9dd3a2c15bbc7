//! What changed in a state behind one of its revisions: how many changes, what they take to read, which keys they are of.
//!
//! Every change behind a revision that can be read is there: nothing above the compact revision is dead.
use super::DiskState;
use crate::base::ids::Revision;
use crate::error::Result;
use crate::revision_log::{Entry, ReadCosts};

impl DiskState {
    /// How many changes there are behind main revision `main`. Reads one index block at most.
    pub(crate) fn changes_behind(&self, main: i64) -> Result<u64> {
        let mut count = 0;
        let first = Revision::new(main.saturating_add(1), 0);
        for segment in self.segments_from(first.main) {
            let summary = segment.summary();
            let before = match summary.first < first {
                true => segment.entries(first).next().transpose()?.map_or(summary.records, |it| it.ordinal),
                false => 0,
            };
            count += u64::from(summary.records.saturating_sub(before));
        }
        Ok(count)
    }

    /// What [`Self::for_each_key_changed`] would take; none as soon as `goes_on` says so of a part of it.
    pub(crate) fn costs_of_changes(
        &self,
        main: i64,
        wanted: &dyn Fn(&Entry) -> bool,
        goes_on: &dyn Fn(&ReadCosts) -> bool,
    ) -> Result<Option<ReadCosts>> {
        let (mut costs, first) = (ReadCosts::default(), Revision::new(main.saturating_add(1), 0));
        for segment in self.segments_from(first.main) {
            if !segment.add_read_costs(first, wanted, &mut costs, goes_on)? {
                return Ok(None);
            }
        }
        Ok(Some(costs))
    }

    /// Visits the wanted changes behind main revision `main`, oldest first, with their keys.
    pub(crate) fn for_each_key_changed(
        &self,
        main: i64,
        wanted: &dyn Fn(&Entry) -> bool,
        visit: &mut dyn FnMut(&Entry, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let first = Revision::new(main.saturating_add(1), 0);
        for segment in self.segments_from(first.main) {
            let mut wanted = |entry: &Entry| wanted(entry);
            let mut records = segment.records(first, &mut wanted);
            while let Some(found) = records.next_key() {
                let (entry, key) = found?;
                visit(&entry, &key)?;
            }
        }
        Ok(())
    }
}
