//! The log survives a power cut at every step.
mod wal_support;
use wal_support::*;

use sternpost_engine::base::ids::Lsn;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::wal::WalOptions;

#[test]
fn what_was_acknowledged_is_read_back_after_a_clean_close() {
    for sync in SYNC_METHODS {
        let disk = SimDisk::new(1);
        let options = WalOptions { sync, ..options() };
        let mut driver = Driver::create(&disk, options.clone(), 1).unwrap();
        for index in 1..200 {
            driver.append(entry(index), body(1, index, (index * 37 % 30_000) as usize)).unwrap();
            if index % 3 == 0 {
                driver.turn(100);
            }
        }
        driver.settle();
        driver.wal.close(&mut driver.disk).unwrap();
        let recovered = recover(&disk, options, 2, Lsn(0)).unwrap();
        assert!(
            driver.appended == recovered.records,
            "{} of {}",
            recovered.records.len(),
            driver.appended.len()
        );
        assert_eq!(recovered.report.cut, None);
    }
}
