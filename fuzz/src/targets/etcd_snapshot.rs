//! etcd's snapshot files: whatever a file says, reading it ends, with an error or with what the writer has put in.
//!
//! A bbolt page has no checksum, so a file is judged once: where a key is not where its branch says, or a length leads out of its page, it must be
//! refused; bytes of keys and values may be others. The meta pages, which have one, are made right again on request.
use crate::damage::Damage;
use std::sync::OnceLock;
use sternpost_engine::base::rng::Rng;
use sternpost_server::etcd_snapshot::format::{META_BYTES, Meta, PAGE_BYTES, PAGE_HEADER_BYTES, u64_at};
use sternpost_server::etcd_snapshot::read::{FileError, FileReader};
use sternpost_server::etcd_snapshot::status::status;
use sternpost_server::etcd_snapshot::write::FileWriter;

/// Names and keys as etcd has them, so that what reads them gets beyond the first record.
fn fill<W: std::io::Write>(mut writer: FileWriter<W>, number: u64) -> std::io::Result<(FileWriter<W>, u64)> {
    let mut rng = Rng::new(number);
    let mut count = 0;
    for name in [&b"auth"[..], b"key", b"lease", b"meta"] {
        let keys = [0, 3, 60, 700][rng.below(4) as usize];
        for key in 0..keys {
            let mut bytes = (key + 2_u64).to_be_bytes().to_vec();
            bytes.push(b'_');
            bytes.extend_from_slice(&0_u64.to_be_bytes());
            // A KeyValue whose key is one byte, and a value that now and then is longer than a page.
            let value_bytes = if rng.chance(1, 200) { 9_000 } else { rng.below(90) as usize };
            let mut value = vec![0x0a, 1, key as u8];
            value.extend(std::iter::repeat_n([0x20_u8, 1], value_bytes / 2).flatten());
            writer.put(&bytes, &value)?;
            count += 1;
        }
        writer.end_bucket(name)?;
    }
    Ok((writer, count))
}

fn image(number: u64) -> (Vec<u8>, u64) {
    let (planning, count) = fill(FileWriter::planning(), number).expect("nobody refuses bytes");
    let plan = planning.finish().expect("nobody refuses bytes");
    let mut file = Vec::new();
    let writer = FileWriter::new(&mut file, plan).expect("memory takes bytes");
    fill(writer, number).and_then(|(writer, _)| writer.finish()).expect("W1");
    (file, count)
}

fn images() -> &'static [(Vec<u8>, u64)] {
    static IMAGES: OnceLock<Vec<(Vec<u8>, u64)>> = OnceLock::new();
    IMAGES.get_or_init(|| (0..6).map(image).collect())
}

/// Makes the sum of a meta page right for what it says.
fn seal(file: &mut [u8], page: usize) {
    let at = page * PAGE_BYTES + PAGE_HEADER_BYTES;
    let Some(body) = file.get_mut(at..at + META_BYTES) else { return };
    let field = |place| u64_at(body, place).unwrap_or_default();
    let page_bytes = field(8) as u32;
    let sealed = Meta { page_bytes, root: field(16), pages: field(40), transaction: field(48) }.encode();
    body.copy_from_slice(&sealed);
}

pub(super) fn file(input: &[u8]) {
    let damage = Damage::read(input);
    let images = images();
    let (image, count) = &images[damage.image % images.len()];
    let mut file = image.clone();
    // Headers and elements are what is to be hit.
    let dense: Vec<usize> = (0..file.len()).filter(|at| at % PAGE_BYTES < 64).collect();
    damage.apply(&mut file, &dense);
    if damage.switches & 1 != 0 {
        seal(&mut file, 0);
        seal(&mut file, 1);
    }
    if damage.switches & 2 != 0 {
        let bytes = (damage.seed() % (file.len() as u64 + 1)) as usize;
        file.truncate(bytes);
    }
    let is_whole = file == *image;
    let read = read(&file);
    assert!(!is_whole || read.as_ref().is_ok_and(|read| read == count), "a whole file is not read: {read:?}");
    let _ = status(&file, &mut |_, _| {});
}

/// How many keys there are.
fn read(file: &Vec<u8>) -> Result<u64, FileError> {
    let reader = FileReader::open(file)?;
    let (mut walk, buckets) = reader.walk()?;
    let mut count = 0;
    for bucket in &buckets {
        walk.bucket(bucket, &mut |_, _, _| -> Result<(), FileError> {
            count += 1;
            Ok(())
        })?;
    }
    Ok(count)
}
