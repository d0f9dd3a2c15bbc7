//! A bbolt file as a stream: every page is written once, in the order of its number, and nothing is kept of it.
//!
//! **Why it can be one.** Pages 0 and 1 come first, and say where the root is and how many pages there are. So everything is written twice: first
//! to nobody, which gives a [`Plan`] of these two numbers, then to whoever wants the file, where the same pages come out at the same
//! places. Between them, pages need not know their parents: leaves are written as they fill up, a branch page as soon as it has
//! enough children, the root of a bucket after its last page, and the root of all last. In memory is one unfinished page for each
//! level. The alternatives, a temporary file or a list of all leaves, cost disk or memory that grow with the data.
//!
//! **Invariants.**
//! - W1: both passes make the same pages; else the second one fails instead of ending a file that is none.
//! - W2: no branch page has fewer than two children: bbolt relies on it when it deletes.
//!
//! **Does not know** what buckets, keys and values are.
use super::format::{
    BRANCH, BUCKET_HEADER_BYTES, ELEMENT_BYTES, IS_BUCKET, LEAF, META, Meta, PAGE_BYTES, PAGE_HEADER_BYTES,
    PageHeader,
};
use std::io::{self, Write};

/// A branch page is not written before it has so many children, two of which wait for the next page (W2).
const CHILDREN_MIN: usize = 4;

/// What the first pass finds and the second one begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    root: u64,
    pages: u64,
}

impl Plan {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// A page number with the first key below it.
struct Child {
    key: Vec<u8>,
    page: u64,
}

/// Children that no page refers to yet.
#[derive(Default)]
struct Level {
    children: Vec<Child>,
    /// Of the page that they would make.
    bytes: usize,
}

/// The leaf page that is being filled.
#[derive(Default)]
struct Leaf {
    first_key: Vec<u8>,
    /// Flags, bytes of the key and of the value.
    elements: Vec<(u32, usize, usize)>,
    data: Vec<u8>,
}

impl Leaf {
    fn bytes_with(&self, added_bytes: usize) -> usize {
        PAGE_HEADER_BYTES + (self.elements.len() + 1) * ELEMENT_BYTES + self.data.len() + added_bytes
    }
}

/// See the module.
pub struct FileWriter<W> {
    sink: W,
    plan: Option<Plan>,
    next_page: u64,
    leaf: Leaf,
    levels: Vec<Level>,
    /// Name and root page (0: none, it is empty) of each bucket that is done.
    buckets: Vec<(Vec<u8>, u64)>,
    /// Scratch for a page.
    page: Vec<u8>,
    zeros: [u8; PAGE_BYTES],
}

impl FileWriter<io::Sink> {
    /// The first pass.
    pub fn planning() -> Self {
        Self::with(io::sink(), None)
    }
}

impl<W: Write> FileWriter<W> {
    /// The second pass: writes the meta pages.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn new(sink: W, plan: Plan) -> io::Result<Self> {
        let mut writer = Self::with(sink, Some(plan));
        for (page, transaction) in [(0, 2), (1, 1)] {
            let header = PageHeader { page, kind: META, count: 0, overflow: 0 };
            let meta =
                Meta { page_bytes: PAGE_BYTES as u32, root: plan.root, pages: plan.pages, transaction };
            writer.sink.write_all(&header.encode())?;
            writer.sink.write_all(&meta.encode())?;
            let rest = PAGE_BYTES - PAGE_HEADER_BYTES - super::format::META_BYTES;
            writer.sink.write_all(&writer.zeros[..rest])?;
        }
        Ok(writer)
    }

    fn with(sink: W, plan: Option<Plan>) -> Self {
        Self {
            sink,
            plan,
            next_page: 2,
            leaf: Leaf::default(),
            levels: Vec::new(),
            buckets: Vec::new(),
            page: Vec::new(),
            zeros: [0; PAGE_BYTES],
        }
    }

    /// Adds a key, above the one before, to the bucket that is being filled.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.add(0, key, value)
    }

    fn add(&mut self, flags: u32, key: &[u8], value: &[u8]) -> io::Result<()> {
        debug_assert!(!key.is_empty(), "bbolt knows no empty key");
        let added_bytes = key.len() + value.len();
        if !self.leaf.elements.is_empty() && self.leaf.bytes_with(added_bytes) > PAGE_BYTES {
            self.end_leaf()?;
        }
        if self.leaf.elements.is_empty() {
            self.leaf.first_key.clear();
            self.leaf.first_key.extend_from_slice(key);
        }
        self.leaf.elements.push((flags, key.len(), value.len()));
        self.leaf.data.extend_from_slice(key);
        self.leaf.data.extend_from_slice(value);
        Ok(())
    }

    /// Ends the bucket that was filled and names it, above the one before.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn end_bucket(&mut self, name: &[u8]) -> io::Result<()> {
        let root = self.end_tree()?;
        self.buckets.push((name.to_vec(), root));
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Those of the sink, and W1.
    pub fn finish(mut self) -> io::Result<Plan> {
        for (name, root) in std::mem::take(&mut self.buckets) {
            let mut value = Vec::with_capacity(BUCKET_HEADER_BYTES + PAGE_HEADER_BYTES);
            value.extend_from_slice(&root.to_le_bytes());
            value.extend_from_slice(&0_u64.to_le_bytes());
            if root == 0 {
                let inline = PageHeader { page: 0, kind: LEAF, count: 0, overflow: 0 };
                value.extend_from_slice(&inline.encode());
            }
            self.add(IS_BUCKET, &name, &value)?;
        }
        let root = match self.end_tree()? {
            // A file without buckets.
            0 => self.write_leaf()?,
            root => root,
        };
        self.sink.flush()?;
        let plan = Plan { root, pages: self.next_page };
        match self.plan {
            Some(planned) if planned != plan => {
                Err(io::Error::other(format!("W1: {planned:?} was planned and {plan:?} was written")))
            }
            _ => Ok(plan),
        }
    }

    /// The root of what was added since the last one; 0 if that is nothing.
    fn end_tree(&mut self) -> io::Result<u64> {
        if !self.leaf.elements.is_empty() {
            self.end_leaf()?;
        }
        let mut level = 0;
        while level < self.levels.len() {
            if level + 1 == self.levels.len()
                && let [only] = &self.levels[level].children[..]
            {
                let root = only.page;
                self.levels.clear();
                return Ok(root);
            }
            let count = self.levels[level].children.len();
            self.end_branch(level, count)?;
            level += 1;
        }
        Ok(0)
    }

    fn end_leaf(&mut self) -> io::Result<()> {
        let page = self.write_leaf()?;
        let key = self.leaf.first_key.clone();
        self.add_child(0, Child { key, page })
    }

    fn write_leaf(&mut self) -> io::Result<u64> {
        let count = self.leaf.elements.len();
        let mut place = count * ELEMENT_BYTES;
        self.page.clear();
        for (index, (flags, key_bytes, value_bytes)) in self.leaf.elements.iter().enumerate() {
            for word in [*flags as usize, place - index * ELEMENT_BYTES, *key_bytes, *value_bytes].map(word) {
                self.page.extend_from_slice(&word?.to_le_bytes());
            }
            place += key_bytes + value_bytes;
        }
        self.page.extend_from_slice(&self.leaf.data);
        self.leaf.elements.clear();
        self.leaf.data.clear();
        self.write_page(LEAF, count)
    }

    fn add_child(&mut self, level: usize, child: Child) -> io::Result<()> {
        if level == self.levels.len() {
            self.levels.push(Level { children: Vec::new(), bytes: PAGE_HEADER_BYTES });
        }
        let this = &mut self.levels[level];
        this.bytes += ELEMENT_BYTES + child.key.len();
        this.children.push(child);
        let count = this.children.len();
        if this.bytes > PAGE_BYTES && count >= CHILDREN_MIN {
            // What is left is two, so that the next page has as many at the end.
            self.end_branch(level, count - 2)?;
        }
        Ok(())
    }

    /// Writes the first `count` children of a level as a page.
    fn end_branch(&mut self, level: usize, count: usize) -> io::Result<()> {
        debug_assert!(count >= 2, "W2: a branch page has {count} children");
        let this = &mut self.levels[level];
        let children: Vec<Child> = this.children.drain(..count).collect();
        this.bytes = PAGE_HEADER_BYTES
            + this.children.iter().map(|child| ELEMENT_BYTES + child.key.len()).sum::<usize>();
        let mut place = count * ELEMENT_BYTES;
        self.page.clear();
        for (index, child) in children.iter().enumerate() {
            self.page.extend_from_slice(&word(place - index * ELEMENT_BYTES)?.to_le_bytes());
            self.page.extend_from_slice(&word(child.key.len())?.to_le_bytes());
            self.page.extend_from_slice(&child.page.to_le_bytes());
            place += child.key.len();
        }
        for child in &children {
            self.page.extend_from_slice(&child.key);
        }
        let page = self.write_page(BRANCH, count)?;
        let first = children.into_iter().next().map(|child| child.key).unwrap_or_default();
        self.add_child(level + 1, Child { key: first, page })
    }

    /// Writes the body in `self.page` with its header, and the rest of its last page.
    fn write_page(&mut self, kind: u16, count: usize) -> io::Result<u64> {
        let bytes = PAGE_HEADER_BYTES + self.page.len();
        let pages = bytes.div_ceil(PAGE_BYTES);
        let page = self.next_page;
        let count = u16::try_from(count).map_err(|_| io::Error::other("a page has too many elements"))?;
        let header = PageHeader { page, kind, count, overflow: word(pages - 1)? };
        self.sink.write_all(&header.encode())?;
        self.sink.write_all(&self.page)?;
        self.sink.write_all(&self.zeros[..pages * PAGE_BYTES - bytes])?;
        self.next_page += pages as u64;
        Ok(page)
    }
}

fn word(number: usize) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| io::Error::other("more than a bbolt file can hold"))
}
