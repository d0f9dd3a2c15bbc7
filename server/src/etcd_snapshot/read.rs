//! A bbolt file read from one end of its keys to the other, whoever wrote it.
//!
//! **Contract.** [`FileReader::open`] finds the meta page that counts; a [`Walk`] visits each bucket at most once, keys in order. In memory are the pages
//! from the root to the leaf that is being read, and one bit for each page of the file.
//!
//! **Hostile files.** Every place, length and number is checked against the page or the file that it is in; no page is visited twice, so that
//! no cycle has no end; keys that do not ascend, or leave the range that the branch above gives them, are refused. What is
//! refused names the page. Nothing here panics or allocates more than the file has.
//!
//! **Not checked**: pages that nothing refers to. They are free, or the file has lost a part of itself, which only the SHA-256 can tell.
//!
//! **Does not know** what keys and values are.
use super::format::{
    BRANCH, BUCKET_HEADER_BYTES, ELEMENT_BYTES, IS_BUCKET, LEAF, Meta, PAGE_HEADER_BYTES, PageHeader,
    SUM_BYTES, has_sum, u32_at, u64_at,
};
use aws_lc_rs::digest::{Context, SHA256};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Levels of a tree: with two children each, more pages than any disk has.
const DEPTH_MAX: usize = 40;
/// bbolt puts at most four keys of 32 KiB each into a branch page that is longer than others.
const BRANCH_BYTES_MAX: u64 = 1 << 20;
/// No value is longer than a record of the log.
const LEAF_BYTES_MAX: u64 = 512 << 20;
/// etcd has eleven.
const BUCKETS_MAX: usize = 64;
/// bbolt looks for the second meta page at these sizes of pages if the first one is damaged.
const PAGE_BYTES_MIN: u32 = 1024;
const PAGE_BYTES_MAX: u32 = 1 << 24;
/// Read at once for the SHA-256.
const SUM_READ_BYTES: usize = 1 << 20;

/// Something with bytes at places.
pub trait Source {
    /// How many bytes there are.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from a place on.
    ///
    /// # Errors
    /// What the system says; an unexpected end.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl Source for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let found = from.and_then(|from| self.get(from..from.checked_add(bytes.len())?));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why a file is not read.
#[derive(Debug)]
pub enum FileError {
    /// The system does not give the bytes.
    Unreadable(io::Error),
    /// It is no database file, or not one that etcd has made.
    Refused(String),
    /// A page is not what the file says that it is.
    Damaged {
        /// Number of the page.
        page: u64,
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "the snapshot cannot be read: {error}"),
            Self::Refused(what) => f.write_str(what),
            Self::Damaged { page, what } => write!(f, "the snapshot is damaged: page {page}: {what}"),
        }
    }
}

impl std::error::Error for FileError {}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

fn damaged(page: u64, what: impl Into<String>) -> FileError {
    FileError::Damaged { page, what: what.into() }
}

/// Bytes of the database in a file, and whether a SHA-256 follows them.
///
/// # Errors
/// What the system says.
pub fn extent(source: &dyn Source) -> Result<(u64, bool), FileError> {
    let bytes = source.size()?;
    let has_sum = has_sum(bytes);
    Ok((if has_sum { bytes - SUM_BYTES as u64 } else { bytes }, has_sum))
}

/// SHA-256 of the database in a file; `progress` hears of bytes read.
///
/// # Errors
/// What the system says.
pub fn sum(source: &dyn Source, progress: &mut dyn FnMut(u64, u64)) -> Result<[u8; SUM_BYTES], FileError> {
    let (bytes, _) = extent(source)?;
    let mut digest = Context::new(&SHA256);
    let mut buffer = vec![0; SUM_READ_BYTES];
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(SUM_READ_BYTES as u64) as usize;
        source.read_at(at, &mut buffer[..count])?;
        digest.update(&buffer[..count]);
        at += count as u64;
        progress(at, bytes);
    }
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(digest.finish().as_ref());
    Ok(sum)
}

/// Compares the SHA-256 behind the database with that of its bytes, and gives it; `progress` hears of bytes read.
///
/// # Errors
/// etcd's texts where it is missing or another one.
pub fn verify_sum(
    source: &dyn Source,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<[u8; SUM_BYTES], FileError> {
    let (bytes, has_sum) = extent(source)?;
    if !has_sum {
        return Err(FileError::Refused("snapshot missing hash but --skip-hash-check=false".into()));
    }
    let mut expected = [0; SUM_BYTES];
    source.read_at(bytes, &mut expected)?;
    let found = sum(source, progress)?;
    if found != expected {
        let (expected, found) = (decimals(&expected), decimals(&found));
        return Err(FileError::Refused(format!("expected sha256 {expected}, got {found}")));
    }
    Ok(found)
}

/// Bytes as Go prints a slice of them.
fn decimals(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", bytes.join(" "))
}

/// See the module.
pub struct FileReader<'a> {
    source: &'a dyn Source,
    meta: Meta,
}

/// A bucket of the file.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: Vec<u8>,
    root: u64,
    /// Its page, if it has none of its own.
    inline: Vec<u8>,
}

impl<'a> FileReader<'a> {
    /// Finds the meta page that counts.
    ///
    /// # Errors
    /// What is no database file, or is cut short.
    pub fn open(source: &'a dyn Source) -> Result<Self, FileError> {
        let (bytes, _) = extent(source)?;
        let meta_at = |at: u64| {
            let mut page = [0; PAGE_HEADER_BYTES + super::format::META_BYTES];
            source.read_at(at, &mut page).map_err(|_| "invalid database")?;
            Meta::decode(&page[PAGE_HEADER_BYTES..])
        };
        let first = meta_at(0);
        let sizes = std::iter::successors(Some(PAGE_BYTES_MIN), |bytes| bytes.checked_mul(2))
            .take_while(|bytes| *bytes <= PAGE_BYTES_MAX);
        let second = match &first {
            Ok(meta) => meta_at(u64::from(meta.page_bytes)).ok(),
            Err(_) => {
                let mut found = sizes.filter_map(|bytes| Some((bytes, meta_at(bytes.into()).ok()?)));
                found.find(|(bytes, meta)| meta.page_bytes == *bytes).map(|(_, meta)| meta)
            }
        };
        let meta = match (first, second) {
            (Ok(first), Some(second)) if second.transaction > first.transaction => second,
            (Ok(meta), _) | (Err(_), Some(meta)) => meta,
            (Err(what), None) => return Err(FileError::Refused(what.into())),
        };
        let page_bytes = meta.page_bytes;
        if !page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes) {
            return Err(FileError::Refused(format!("a database with pages of {page_bytes} bytes")));
        }
        let needed = meta.pages.checked_mul(page_bytes.into());
        if meta.pages < 3 || needed.is_none_or(|needed| needed > bytes) {
            return Err(FileError::Refused(format!(
                "the snapshot is cut short: it should have {} pages of {page_bytes} bytes, and has {bytes} bytes",
                meta.pages
            )));
        }
        Ok(Self { source, meta })
    }

    /// Bytes of the database's pages.
    pub fn bytes(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_bytes)
    }

    /// Begins to visit the buckets.
    ///
    /// # Errors
    /// What is wrong on the way to them.
    pub fn walk(&self) -> Result<(Walk<'_>, Vec<Bucket>), FileError> {
        let bits = usize::try_from(self.meta.pages.div_ceil(8)).map_err(|_| damaged(0, "too many pages"))?;
        let mut walk = Walk { reader: self, seen: vec![0; bits], bytes_read: 0, last_key: Vec::new() };
        let mut buckets = Vec::new();
        walk.begin();
        walk.tree(self.meta.root, &Bounds::default(), 0, &mut |page, flags, name, value| {
            if flags & IS_BUCKET == 0 {
                return Err(damaged(page, "a key outside of any bucket"));
            }
            if buckets.len() == BUCKETS_MAX {
                return Err(damaged(page, format!("more than {BUCKETS_MAX} buckets")));
            }
            let root = u64_at(value, 0).filter(|_| value.len() >= BUCKET_HEADER_BYTES);
            let root = root.ok_or_else(|| damaged(page, "the header of a bucket is cut short"))?;
            let inline = if root == 0 { value[BUCKET_HEADER_BYTES..].to_vec() } else { Vec::new() };
            buckets.push(Bucket { name: name.to_vec(), root, inline });
            Ok(())
        })?;
        Ok((walk, buckets))
    }
}

/// What keys below a branch element may be.
#[derive(Default)]
struct Bounds {
    /// None is below it.
    from: Vec<u8>,
    /// None is at or above it.
    to: Option<Vec<u8>>,
}

/// Hears of keys of a bucket: key, value, bytes read so far.
pub type OnKey<'v, E> = dyn FnMut(&[u8], &[u8], u64) -> Result<(), E> + 'v;

/// Hears of elements: page, flags, key, value.
type OnElement<'v, E> = dyn FnMut(u64, u32, &[u8], &[u8]) -> Result<(), E> + 'v;

/// See the module.
pub struct Walk<'a> {
    reader: &'a FileReader<'a>,
    /// One bit for each page.
    seen: Vec<u8>,
    bytes_read: u64,
    /// Of the tree that is being visited; empty before the first.
    last_key: Vec<u8>,
}

impl Walk<'_> {
    /// Bytes of pages visited so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Visits the keys of a bucket, in order.
    ///
    /// # Errors
    /// What is wrong with a page, and what `visit` says.
    pub fn bucket<E: From<FileError>>(&mut self, bucket: &Bucket, visit: &mut OnKey<'_, E>) -> Result<(), E> {
        self.begin();
        let before = self.bytes_read;
        let mut bytes_read = before;
        let mut on_element = |page, flags: u32, key: &[u8], value: &[u8]| {
            if flags & IS_BUCKET != 0 {
                return Err(damaged(page, "a bucket in a bucket").into());
            }
            bytes_read += (ELEMENT_BYTES + key.len() + value.len()) as u64;
            visit(key, value, bytes_read)
        };
        if bucket.root != 0 {
            return self.tree(bucket.root, &Bounds::default(), 0, &mut on_element);
        }
        let header =
            PageHeader::decode(&bucket.inline).ok_or_else(|| damaged(0, "an inline page is cut short"))?;
        if header.kind != LEAF {
            return Err(damaged(0, format!("an inline page of kind {:#x}", header.kind)).into());
        }
        self.leaf(0, header.count, &bucket.inline, &Bounds::default(), &mut on_element)
    }

    fn begin(&mut self) {
        self.last_key.clear();
    }

    fn tree<E: From<FileError>>(
        &mut self,
        page: u64,
        bounds: &Bounds,
        depth: usize,
        visit: &mut OnElement<'_, E>,
    ) -> Result<(), E> {
        if depth == DEPTH_MAX {
            return Err(damaged(page, format!("it is more than {DEPTH_MAX} levels below its root")).into());
        }
        let (header, bytes) = self.page(page)?;
        if header.kind == LEAF {
            return self.leaf(page, header.count, &bytes, bounds, visit);
        }
        let element = |index: usize| -> Result<(&[u8], u64), FileError> {
            let at = PAGE_HEADER_BYTES + index * ELEMENT_BYTES;
            let fields = || Some((u32_at(&bytes, at)?, u32_at(&bytes, at + 4)?, u64_at(&bytes, at + 8)?));
            let (place, key_bytes, child) =
                fields().ok_or_else(|| damaged(page, "its elements do not fit into it"))?;
            Ok((self::bytes(page, &bytes, at, place, 0, key_bytes)?, child))
        };
        if header.count == 0 {
            return Err(damaged(page, "a branch without children").into());
        }
        for index in 0..usize::from(header.count) {
            let (key, child) = element(index)?;
            let to = match index + 1 < usize::from(header.count) {
                true => Some(element(index + 1)?.0.to_vec()),
                false => bounds.to.clone(),
            };
            // The first key of all may be higher than what its branch says, never lower.
            if key < &bounds.from[..] || to.as_ref().is_some_and(|to| key >= &to[..]) {
                return Err(damaged(page, format!("the key of child {index} is out of order")).into());
            }
            self.tree(child, &Bounds { from: key.to_vec(), to }, depth + 1, visit)?;
        }
        Ok(())
    }

    fn leaf<E: From<FileError>>(
        &mut self,
        page: u64,
        count: u16,
        bytes: &[u8],
        bounds: &Bounds,
        visit: &mut OnElement<'_, E>,
    ) -> Result<(), E> {
        for index in 0..usize::from(count) {
            let at = PAGE_HEADER_BYTES + index * ELEMENT_BYTES;
            let field = |number: usize| {
                u32_at(bytes, at + 4 * number).ok_or_else(|| damaged(page, "its elements do not fit into it"))
            };
            let (flags, place, key_bytes, value_bytes) = (field(0)?, field(1)?, field(2)?, field(3)?);
            let key = self::bytes(page, bytes, at, place, 0, key_bytes)?;
            let value = self::bytes(page, bytes, at, place, key_bytes, value_bytes)?;
            let is_in_order = match self.last_key.is_empty() {
                true => key >= &bounds.from[..],
                false => key > &self.last_key[..] && key >= &bounds.from[..],
            };
            if key.is_empty() || !is_in_order || bounds.to.as_ref().is_some_and(|to| key >= &to[..]) {
                return Err(damaged(page, format!("key {index} is out of order")).into());
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
            visit(page, flags, key, value)?;
        }
        Ok(())
    }

    /// Reads a page with its overflow, once.
    fn page(&mut self, page: u64) -> Result<(PageHeader, Vec<u8>), FileError> {
        let Meta { page_bytes, pages, .. } = self.reader.meta;
        let page_bytes = u64::from(page_bytes);
        if page < 2 || page >= pages {
            return Err(damaged(
                page,
                format!("it is referred to, and the file has the pages 2 to {}", pages - 1),
            ));
        }
        // Not beyond the file: `open` has looked.
        let mut bytes = vec![0; page_bytes as usize];
        self.reader.source.read_at(page * page_bytes, &mut bytes)?;
        let header = PageHeader::decode(&bytes).ok_or_else(|| damaged(page, "it has no header"))?;
        if header.page != page {
            return Err(damaged(page, format!("it says that it is page {}", header.page)));
        }
        let bytes_max = match header.kind {
            BRANCH => BRANCH_BYTES_MAX.max(page_bytes),
            LEAF => LEAF_BYTES_MAX,
            kind => return Err(damaged(page, format!("it is of kind {kind:#x}"))),
        };
        let count = u64::from(header.overflow) + 1;
        if count > pages - page || count * page_bytes > bytes_max {
            return Err(damaged(page, format!("it has {} overflow pages", header.overflow)));
        }
        for page in page..page + count {
            let (byte, bit) = ((page / 8) as usize, 1 << (page % 8));
            if self.seen[byte] & bit != 0 {
                return Err(damaged(page, "it is referred to twice"));
            }
            self.seen[byte] |= bit;
        }
        if count > 1 {
            bytes.resize((count * page_bytes) as usize, 0);
            let rest = &mut bytes[page_bytes as usize..];
            self.reader.source.read_at((page + 1) * page_bytes, rest)?;
        }
        self.bytes_read += count * page_bytes;
        Ok((header, bytes))
    }
}

/// `count` bytes of a page, `skip` behind the place that the element at `at` names.
fn bytes(page: u64, bytes: &[u8], at: usize, place: u32, skip: u32, count: u32) -> Result<&[u8], FileError> {
    let range = || {
        let from = at.checked_add(place as usize)?.checked_add(skip as usize)?;
        bytes.get(from..from.checked_add(count as usize)?)
    };
    range().ok_or_else(|| damaged(page, "an element is not within it"))
}
