//! Writer and reader against each other; what real tools say is in `server/tests/snapshot.rs`.
use super::format::{BRANCH, PAGE_BYTES, PageHeader};
use super::read::{Bucket, FileError, FileReader, Walk};
use super::write::{FileWriter, Plan};
use std::collections::BTreeMap;
use std::io::{self, Write};
use sternpost_engine::base::rng::Rng;

type Contents = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn write_into<W: Write>(mut writer: FileWriter<W>, contents: &Contents) -> io::Result<Plan> {
    for (name, keys) in contents {
        for (key, value) in keys {
            writer.put(key, value)?;
        }
        writer.end_bucket(name)?;
    }
    writer.finish()
}

fn file(contents: &Contents) -> Vec<u8> {
    let plan = write_into(FileWriter::planning(), contents).unwrap();
    let mut file = Vec::new();
    write_into(FileWriter::new(&mut file, plan).unwrap(), contents).unwrap();
    assert_eq!(file.len() as u64, plan.bytes());
    file
}

fn read(file: &Vec<u8>) -> Result<Contents, FileError> {
    let reader = FileReader::open(file)?;
    let (mut walk, buckets): (Walk<'_>, Vec<Bucket>) = reader.walk()?;
    let mut contents = Contents::new();
    for bucket in &buckets {
        let mut keys = BTreeMap::new();
        walk.bucket(bucket, &mut |key, value, _| -> Result<(), FileError> {
            keys.insert(key.to_vec(), value.to_vec());
            Ok(())
        })?;
        contents.insert(bucket.name.clone(), keys);
    }
    Ok(contents)
}

fn random_bytes(rng: &mut Rng, count: u64) -> Vec<u8> {
    (0..count).map(|_| rng.below(256) as u8).collect()
}

/// Buckets of all sizes: none, a page, thousands of pages; values longer than pages; now and then keys of bbolt's greatest length.
fn random_contents(rng: &mut Rng) -> Contents {
    let mut contents = Contents::new();
    for _ in 0..rng.below(8) {
        let mut keys = BTreeMap::new();
        let key_bytes_max = [20, 20, 300, 9_000][rng.below(4) as usize];
        let count = [0, 1, 5, 300, 3_000][rng.below(if key_bytes_max > 300 { 4 } else { 5 }) as usize];
        for _ in 0..count {
            let value_bytes = if rng.below(100) == 0 { rng.below(50_000) } else { rng.below(200) };
            let key_bytes = 1 + rng.below(key_bytes_max);
            keys.insert(random_bytes(rng, key_bytes), random_bytes(rng, value_bytes));
        }
        let name_bytes = 1 + rng.below(12);
        contents.insert(random_bytes(rng, name_bytes), keys);
    }
    contents
}

#[test]
fn what_is_written_is_read() {
    let mut rng = Rng::new(4);
    for round in 0..60 {
        let contents = random_contents(&mut rng);
        let file = file(&contents);
        assert!(read(&file).unwrap() == contents, "round {round}");
        w2_holds(&file);
    }
    assert_eq!(read(&file(&Contents::new())).unwrap(), Contents::new());
}

/// Every page of the file follows the one before, overflow included, so it can be gone through without the tree.
fn w2_holds(file: &[u8]) {
    let mut page = 2;
    while page * PAGE_BYTES < file.len() {
        let header = PageHeader::decode(&file[page * PAGE_BYTES..]).unwrap();
        assert_eq!(header.page, page as u64);
        assert!(header.kind != BRANCH || header.count >= 2, "W2: page {page} has {} children", header.count);
        page += 1 + header.overflow as usize;
    }
}

#[test]
fn w1_a_second_pass_that_differs_is_no_file() {
    let mut contents = Contents::new();
    contents.insert(b"key".to_vec(), BTreeMap::from([(b"a".to_vec(), vec![0; 10_000])]));
    let plan = write_into(FileWriter::planning(), &contents).unwrap();
    contents.insert(b"meta".to_vec(), BTreeMap::from([(b"a".to_vec(), vec![0; 10_000])]));
    let error = write_into(FileWriter::new(io::sink(), plan).unwrap(), &contents).unwrap_err();
    assert!(error.to_string().starts_with("W1"), "{error}");
}

/// Damage in the pages themselves: refused, or, where the bytes of a key or value are hit, another content. Never a panic, never without end.
#[test]
fn damaged_and_truncated_files_end_in_an_error_or_another_value() {
    let mut rng = Rng::new(7);
    let mut contents = Contents::new();
    for name in [&b"auth"[..], b"key", b"meta"] {
        let keys = (0..400_u64).map(|key| (key.to_be_bytes().to_vec(), random_bytes(&mut rng, 60)));
        contents.insert(name.to_vec(), keys.collect());
    }
    contents.insert(b"lease".to_vec(), BTreeMap::new());
    let file = file(&contents);
    let mut refused_count = 0;
    for _ in 0..3_000 {
        let mut bad = file.clone();
        for _ in 0..1 + rng.below(3) {
            let page = rng.below((file.len() / PAGE_BYTES) as u64) as usize;
            // The header and the elements, mostly.
            let within = if rng.below(4) > 0 { 64 } else { 4096 };
            let at = page * PAGE_BYTES + rng.below(within) as usize;
            bad[at] = rng.below(256) as u8;
        }
        refused_count += u32::from(read(&bad).is_err());
    }
    assert!(refused_count > 1_000, "{refused_count}");
    for pages in 0..file.len() / PAGE_BYTES {
        assert!(read(&file[..pages * PAGE_BYTES].to_vec()).is_err(), "cut behind page {pages}");
    }
}

/// A branch whose children are itself and each other.
#[test]
fn a_cycle_of_pages_is_refused() {
    let mut contents = Contents::new();
    let keys = (0..20_000_u64).map(|key| (key.to_be_bytes().to_vec(), vec![1; 40]));
    contents.insert(b"key".to_vec(), keys.collect());
    let mut file = file(&contents);
    let branch = (2..file.len() / PAGE_BYTES)
        .find(|page| PageHeader::decode(&file[page * PAGE_BYTES..]).unwrap().kind == BRANCH)
        .unwrap();
    let child = branch * PAGE_BYTES + 16 + 8;
    file[child..child + 8].copy_from_slice(&(branch as u64).to_le_bytes());
    let error = read(&file).unwrap_err().to_string();
    assert!(error.contains("referred to twice"), "{error}");
}
