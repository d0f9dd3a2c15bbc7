//! What is read through the ring is what the engine's plain reads give, whatever is read in which order.
//!
//! Where the ring cannot be had the same tests run over the fallback, and say so.
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use sternpost_engine::backup::{Backup, BackupOptions, Reading, restore};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::disk::BLOCK_BYTES;
use sternpost_engine::io::{Files, IoErrorKind};
use sternpost_engine::{Db, Options};
use sternpost_ring_stream::open_files;

fn files(directory: &Path) -> Arc<dyn Files> {
    let (files, reader) = open_files(directory).expect("a directory");
    println!("read by {reader}");
    files
}

fn write(directory: &Path, name: &str, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    Rng::new(bytes as u64).fill(&mut content);
    std::fs::File::create(directory.join(name))
        .and_then(|mut file| file.write_all(&content))
        .expect("a file");
    content
}

#[test]
fn front_to_back_and_in_any_order_every_byte_is_the_files() {
    let root = tempfile::tempdir().expect("a directory");
    let files = files(root.path());
    for bytes in [0, 1, 4096, 1 << 20, (5 << 20) + 17, 9 << 20] {
        let content = write(root.path(), "file", bytes);
        let file = files.open(Path::new("file")).expect("the file");
        for piece in [BLOCK_BYTES, 256 << 10, 1 << 20, 4 << 20] {
            let mut read = Vec::new();
            loop {
                let piece_read = file.read(read.len() as u64, piece).expect("a read");
                read.extend_from_slice(&piece_read);
                if piece_read.len() < piece {
                    break;
                }
            }
            assert!(read == content, "{bytes} bytes in pieces of {piece}");
        }
        let mut rng = Rng::new(7);
        for _ in 0..60 {
            let offset = rng.below(12) as usize * (256 << 10) + rng.below(3) as usize * BLOCK_BYTES;
            let length = [BLOCK_BYTES, 256 << 10, 1 << 20][rng.below(3) as usize];
            let read = file.read(offset as u64, length).expect("a read");
            let expected = content.get(offset..).unwrap_or_default();
            assert!(
                read[..] == expected[..expected.len().min(length)],
                "{length} bytes at {offset} of {bytes}"
            );
        }
    }
}

#[test]
fn many_files_and_threads_at_once_do_not_wait_for_one_another() {
    let root = tempfile::tempdir().expect("a directory");
    let content: Vec<_> =
        (0..6).map(|number| write(root.path(), &number.to_string(), (3 << 20) + number * 4096)).collect();
    let files = files(root.path());
    // All are begun and none is read to its end: what waits for one must not hold up another.
    let open: Vec<_> =
        (0..6).map(|number| files.open(Path::new(&number.to_string())).expect("the file")).collect();
    for (file, content) in open.iter().zip(&content) {
        assert!(file.read(0, 1 << 20).expect("a read")[..] == content[..1 << 20]);
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            for (file, content) in open.iter().zip(&content) {
                scope.spawn(move || {
                    for piece in 0..4 {
                        let read = file.read(piece << 20, 1 << 20).expect("a read");
                        let expected = &content[(piece as usize) << 20..];
                        assert!(read[..] == expected[..expected.len().min(1 << 20)]);
                    }
                });
            }
        }
    });
    drop(open);
    drop(files);
}

#[test]
fn what_is_not_there_is_the_error_of_plain_reads() {
    let root = tempfile::tempdir().expect("a directory");
    let error = files(root.path()).open(Path::new("none")).err().expect("no file");
    assert_eq!((error.kind, error.what.as_str()), (IoErrorKind::NotFound, "open none"));
    assert!(open_files(&root.path().join("none")).is_err());
    // A length that is out of all proportion allocates no more than the file has.
    write(root.path(), "file", 3 * BLOCK_BYTES);
    let file = files(root.path()).open(Path::new("file")).expect("the file");
    assert_eq!(
        file.read(BLOCK_BYTES as u64, usize::MAX - (BLOCK_BYTES - 1)).expect("a read").len(),
        2 * BLOCK_BYTES
    );
    assert_eq!(file.read(1 << 62, 1 << 20).expect("a read").len(), 0);
}

#[test]
fn a_backup_is_made_verified_and_restored_through_it() {
    let root = tempfile::tempdir().expect("a directory");
    let options = Options::new().memtable_bytes(1 << 20).calibrate(false);
    let db = Db::open(root.path().join("data"), options.clone()).expect("a database");
    let mut rng = Rng::new(1);
    for number in 0..1_000 {
        let mut value = vec![0; 4_000];
        rng.fill(&mut value);
        drop(db.put_async(format!("key{number}"), value));
    }
    db.sync().expect("a sync");
    let reading = Reading::with(|directory: &Path| open_files(directory).map(|(files, _)| files));
    for links in [true, false] {
        let to = root.path().join(format!("backup {links}"));
        let options = BackupOptions::default().links(links).reading(reading.clone());
        let report = db.backup_to(&to, &options, &mut |_| {}).expect("a backup");
        let backup = Backup::open_reading(&to, &[], &reading).expect("a backup");
        assert_eq!(backup.verify(&mut |_| {}).expect("it is whole").bytes, report.bytes);
        restore(&backup, root.path().join(format!("restored {links}")), &mut |_| {}).expect("a restore");
        // One bit, and it is seen.
        let segment = to.join(&backup.manifest().files[1].path);
        let mut bytes = std::fs::read(&segment).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(&segment).and_then(|()| std::fs::write(&segment, bytes)).expect("a write");
        backup.verify(&mut |_| {}).expect_err("a bit is wrong");
        Backup::open(&to, &[]).and_then(|plain| plain.verify(&mut |_| {})).expect_err("by plain reads too");
    }
    let revision = db.latest().revision();
    db.close().expect("a close");
    for links in [true, false] {
        let restored =
            Db::open(root.path().join(format!("restored {links}")), options.clone()).expect("it opens");
        assert_eq!(restored.latest().revision(), revision);
    }
}

/// How long a gibibyte takes to be read and summed, both ways by turns, from the device: `STERNPOST_MEASURE=1`.
#[test]
fn a_gibibyte_is_read_both_ways_when_it_is_to_be_measured() {
    use sternpost_engine::base::checksum::crc32_seeded;
    use sternpost_engine::base::clock::{Clock, MonotonicClock};
    if std::env::var_os("STERNPOST_MEASURE").is_none() {
        println!("not measured: STERNPOST_MEASURE is not set");
        return;
    }
    let root =
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on the disk of the sources");
    for number in 0..16 {
        write(root.path(), &number.to_string(), 64 << 20);
        let file = std::fs::File::open(root.path().join(number.to_string())).expect("a file");
        file.sync_all().expect("a sync");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
    }
    let clock = MonotonicClock::default();
    for round in 0..3 {
        let plain = sternpost_engine::io::open_files(root.path()).expect("a directory");
        for (name, files) in [("plain", plain), ("ring", files(root.path()))] {
            let (begun_us, mut sum) = (clock.now_us(), 0);
            for number in 0..16 {
                let file = files.open(Path::new(&number.to_string())).expect("a file");
                for piece in 0..64 {
                    sum = crc32_seeded(sum, &file.read(piece << 20, 1 << 20).expect("a read"));
                }
            }
            println!("round {round}, {name}: {} ms, {sum:08x}", (clock.now_us() - begun_us) / 1_000);
        }
    }
}
