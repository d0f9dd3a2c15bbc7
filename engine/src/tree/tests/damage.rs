//! Damaged pages: found, never believed, never a panic.
use super::store::{Change, DATABASE, Model, Script, Sink, Store, TREE, TestCells};
use crate::base::checksum::crc32;
use crate::base::ids::SegmentId;
use crate::base::rng::Rng;
use crate::error::{Error, Result};
use crate::tree::encode::{Identity, encode, seal};
use crate::tree::{Aggregate, CellKind, Page, PageRef, Pages, Tree, merge};
use bytes::Bytes;
use std::sync::Arc;

/// Every page of a tree with three levels and more, with its reference.
fn pages() -> Vec<(PageRef, Bytes)> {
    let (mut store, mut model) = (Store::new(700), Model::new());
    let mut rng = Rng::new(11);
    let mut changes = Vec::new();
    for number in 0..800 {
        let mut payload = vec![0; rng.below(60) as usize];
        rng.fill(&mut payload);
        let long = if number % 100 == 0 { "k".repeat(300) } else { String::new() };
        changes.push((format!("/registry/pods/{number:05}{long}").into_bytes(), Change::Put(payload)));
    }
    store.apply(&mut model, changes);
    let mut pages = Vec::new();
    store
        .tree()
        .visit_pages(&mut |r, _| {
            pages.push((*r, store.pages[&(r.segment, r.block)].clone()));
            Ok(())
        })
        .unwrap();
    assert!(store.root.unwrap().level >= 2);
    pages
}

/// Calls everything that a page offers.
fn exercise(page: &Page, rng: &mut Rng) {
    let mut last: Option<Vec<u8>> = None;
    for index in 0..page.count() {
        let key = page.key(index);
        assert_eq!(page.search(&key), Ok(index));
        assert!(last.is_none_or(|last| last < key), "T1 holds in every page that decodes");
        assert_eq!(page.payload_bytes(index), page.payload(index));
        if page.level() > 0 {
            assert_eq!(page.child(index).level + 1, page.level());
        }
        last = Some(key);
    }
    for _ in 0..5 {
        let mut key = page.key(rng.below(page.count() as u64) as usize);
        key.truncate(rng.below(key.len() as u64 + 1) as usize);
        key.push(rng.next_u64() as u8);
        let (Ok(at) | Err(at)) = page.search(&key);
        assert!(at <= page.count());
        assert!(page.child_index(&key) < page.count());
    }
    assert!(page.used_bytes() <= page.memory_bytes());
}

#[test]
fn every_changed_byte_of_a_page_is_detected() {
    let mut rng = Rng::new(1);
    for (r, bytes) in pages().iter().step_by(9) {
        let mut damaged = bytes.to_vec();
        assert!(Page::decode(bytes.clone(), r, TREE, &DATABASE).is_ok());
        for at in 0..damaged.len() {
            let flip = 1 + rng.below(255) as u8;
            damaged[at] ^= flip;
            let what = Page::decode(Bytes::copy_from_slice(&damaged), r, TREE, &DATABASE).unwrap_err();
            assert!(what.contains("checksum"), "{what}");
            damaged[at] ^= flip;
        }
    }
}

/// As if the checksum were that of the damaged bytes: the structure is checked on its own, and what it lets through
/// is safe to use.
#[test]
fn changed_bytes_with_a_matching_checksum_never_panic() {
    let mut rng = Rng::new(2);
    let pages = pages();
    let mut accepted = 0;
    for round in 0..60_000 {
        let (r, bytes) = &pages[rng.below(pages.len() as u64) as usize];
        let mut damaged = bytes.to_vec();
        let used = Page::decode(bytes.clone(), r, TREE, &DATABASE).unwrap().used_bytes();
        for _ in 0..1 + rng.below(3) {
            // Half of the damage goes where structure is dense.
            let bound = if rng.chance(1, 2) { 160 } else { used as u64 };
            let at = rng.below(bound) as usize;
            damaged[at.min(bytes.len() - 1)] = match rng.below(3) {
                0 => 0,
                1 => 0xff,
                _ => rng.next_u64() as u8,
            };
        }
        if round % 50 == 0 {
            damaged.truncate(rng.below(damaged.len() as u64 + 1) as usize);
        }
        if let Ok(page) = Page::decode_content(damaged.into(), r, TREE, &DATABASE) {
            accepted += 1;
            exercise(&page, &mut rng);
        }
    }
    assert!(accepted > 0, "damage inside payloads is the checksum's to find");
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut rng = Rng::new(3);
    let pages = pages();
    for round in 0..20_000_u64 {
        let mut bytes = vec![0; (round % 700) as usize];
        rng.fill(&mut bytes);
        let (r, real) = &pages[rng.below(pages.len() as u64) as usize];
        // With the true header, so that the checks behind it are reached.
        let keep = [0, 8, 28, 64][rng.below(4) as usize].min(bytes.len());
        bytes[..keep].copy_from_slice(&real[..keep]);
        assert!(PageRef::decode(&bytes).is_err() || bytes.len() == 48);
        if let Ok(page) = Page::decode_content(bytes.into(), r, TREE, &DATABASE) {
            exercise(&page, &mut rng);
        }
    }
}

#[test]
fn a_sound_page_at_the_wrong_place_is_not_believed() {
    let pages = pages();
    let (r, bytes) = &pages[0];
    let decode = |bytes: &Bytes, r: &PageRef, tree, database: &[u8; 16]| {
        Page::decode(bytes.clone(), r, tree, database).map(|_| ()).unwrap_err()
    };
    let cases = [
        (decode(bytes, &PageRef { block: r.block + 1, ..*r }, TREE, &DATABASE), "own block"),
        (decode(bytes, &PageRef { segment: SegmentId(77), ..*r }, TREE, &DATABASE), "own segment"),
        (decode(bytes, &PageRef { level: r.level + 1, ..*r }, TREE, &DATABASE), "level"),
        (decode(bytes, r, TREE + 1, &DATABASE), "tree"),
        (decode(bytes, r, TREE, b"another database"), "database"),
        (decode(bytes, &PageRef { blocks: r.blocks + 1, ..*r }, TREE, &DATABASE), "bytes expected"),
        (decode(&pages[1].1, r, TREE, &DATABASE), "checksum"),
        (decode(bytes, &PageRef { aggregate: Aggregate::default(), ..*r }, TREE, &DATABASE), "T4"),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

/// A merge panicked, and a cursor went in circles, over a leaf with keys that belong elsewhere and a parent that vouches for
/// it: nobody writes such a tree, and no checksum finds it. The fuzzer did. Both now say that the leaf is damaged.
#[test]
fn a_leaf_with_the_keys_of_another_place_is_damage() {
    let identity = Identity { tree: TREE, database: DATABASE, checkpoint: 1 };
    let mut store = Store::new(512);
    let put = |store: &mut Store, block, level, cells: &[(&[u8], &[u8])], aggregate| {
        let mut page = Vec::new();
        encode(&mut page, &identity, level, 0, cells.iter().copied());
        let r = PageRef { aggregate, ..seal(&mut page, level, (SegmentId(90), block)) };
        store.pages.insert((r.segment, r.block), Bytes::from(page));
        r
    };
    let sum = |cells: &[(&[u8], &[u8])]| {
        let mut sum = Aggregate::default();
        cells.iter().for_each(|(_, payload)| sum.add(&TestCells.aggregate(payload)));
        sum
    };
    let left: [(&[u8], &[u8]); 2] = [(b"k1", b"1"), (b"k2", b"2")];
    for right in [[(&b"k0"[..], &b"3"[..]), (b"k5", b"4")], [(b"k1", b"3"), (b"k3", b"4")]] {
        let leaves = [put(&mut store, 1, 0, &left, sum(&left)), put(&mut store, 2, 0, &right, sum(&right))];
        let cells = [(&b""[..], &leaves[0].encode()[..]), (b"k2x", &leaves[1].encode())];
        let mut above = leaves[0].aggregate;
        above.add(&leaves[1].aggregate);
        let root = put(&mut store, 3, 1, &cells, above);
        let damage = |error: Error, block: u64| {
            let Error::Corruption { file, offset, what } = error else { panic!("{error}") };
            assert_eq!((&*file, offset), ("seg/00000090.k", block * 4096), "{what}");
        };
        // The left leaf is underfull and takes in the right one.
        let model = Model::from([(b"k1".to_vec(), b"1".to_vec()), (b"k2".to_vec(), b"2".to_vec())]);
        let mut script = Script::new(vec![(b"k1".to_vec(), Change::Put(vec![9]))], &model);
        let mut sink = Sink::new(SegmentId(91));
        let merged = merge(Some(root), &store, &TestCells, &store.options(), &mut script, &mut sink);
        damage(merged.unwrap_err(), 2);
        let tree = Tree::new(Some(root), &store);
        let mut cursor = tree.cursor();
        assert!(cursor.seek(b"k2").unwrap());
        damage(cursor.next().unwrap_err(), 2);
        assert!(!cursor.is_valid());
        // A cursor that comes from the other side cannot know which of the two is out of place.
        assert!(cursor.seek(b"k2x").unwrap());
        assert!(cursor.prev().unwrap());
        damage(cursor.prev().unwrap_err(), 1);
    }
}

/// A source in which the page at one place cannot be read.
struct Rotten<'a> {
    store: &'a Store,
    rotten: PageRef,
}

impl Pages for Rotten<'_> {
    fn load(&self, r: &PageRef) -> Result<Arc<Page>> {
        if *r == self.rotten {
            return Err(Error::Corruption { file: "a file".into(), offset: r.offset(), what: "rot".into() });
        }
        self.store.load(r)
    }
}

#[test]
fn a_bad_page_fails_what_needs_it_and_nothing_else() {
    let (mut store, mut model) = (Store::new(512), Model::new());
    let key = |number: u64| number.to_be_bytes().to_vec();
    store.apply(&mut model, (0..2000).map(|number| (key(number), Change::Put(vec![1; 30]))).collect());
    let mut leaves = Vec::new();
    store
        .tree()
        .visit_pages(&mut |r, page| {
            leaves.extend((r.level == 0).then(|| (*r, page.key(0), page.key(page.count() - 1))));
            Ok(())
        })
        .unwrap();
    let middle = leaves.len() / 2;
    let (rotten, first, last) = leaves[middle].clone();
    let tree = Tree::new(store.root, Rotten { store: &store, rotten });
    let mut failed = 0;
    for number in 0..2000 {
        let key = key(number);
        match tree.get(&key) {
            Ok(hit) => assert_eq!(hit.unwrap().key(), key),
            Err(Error::Corruption { .. }) => {
                failed += 1;
                assert!((&first..=&last).contains(&&key));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(failed > 0);
    let pages: Arc<dyn Pages + '_> = Arc::new(Rotten { store: &store, rotten });
    let tree = Tree::new(store.root, pages);
    let mut cursor = tree.cursor();
    cursor.seek(&key(0)).unwrap();
    let error = loop {
        match cursor.next() {
            Ok(true) => {}
            Ok(false) => panic!("the cursor passed a page that cannot be read"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Corruption { .. }));
    assert!(!cursor.is_valid());
    assert!(!cursor.next().unwrap(), "only a seek leads out");
    assert!(cursor.seek(&leaves[middle + 1].1).unwrap());
    assert!(cursor.prev().is_err());
    assert!(cursor.seek(&leaves[middle - 1].2).unwrap());
    assert!(cursor.next().is_err());
    assert!(cursor.seek_before(Some(&leaves[middle - 1].2)).unwrap());
    let end = key(1999);
    assert!(tree.aggregate(&super::store::TestCells, &key(5), Some(&end)).is_ok(), "sums need no inner leaf");
}

#[test]
fn references_come_back_and_reserved_bytes_are_zero() {
    let r = PageRef {
        segment: SegmentId(0x0102_0304),
        block: 77,
        blocks: 0xfffe,
        level: 3,
        crc: 0xdead_beef,
        aggregate: Aggregate { live_keys: 1 << 40, max_mod_revision: i64::MAX, hash_sum: u64::MAX - 5 },
    };
    let bytes = r.encode();
    assert_eq!(PageRef::decode(&bytes), Ok(r));
    for at in [11, 40, 47] {
        let mut other = bytes;
        other[at] = 1;
        assert!(PageRef::decode(&other).is_err(), "byte {at}");
    }
    assert!(PageRef::decode(&bytes[..47]).is_err());
    assert!(PageRef::decode(&PageRef { blocks: 0, ..r }.encode()).is_err());
}

#[test]
fn bytes_behind_the_last_cell_are_zero_and_less_than_a_block() {
    let (r, bytes) = &pages()[0];
    let used = Page::decode(bytes.clone(), r, TREE, &DATABASE).unwrap().used_bytes();
    for at in [used, bytes.len() - 1] {
        let mut other = bytes.to_vec();
        other[at] = 1;
        let what = Page::decode_content(other.into(), r, TREE, &DATABASE).unwrap_err();
        assert!(what.contains("padding"), "{what}");
    }
    let longer = [&bytes[..], &[0; 4096]].concat();
    assert!(Page::decode_content(longer.into(), r, TREE, &DATABASE).is_err());
}

#[test]
fn aggregates_are_sums_modulo_two_to_the_64() {
    let mut sum = Aggregate { live_keys: u64::MAX - 1, max_mod_revision: 5, hash_sum: u64::MAX };
    sum.add(&Aggregate { live_keys: 1, max_mod_revision: 3, hash_sum: 7 });
    assert_eq!(sum, Aggregate { live_keys: u64::MAX, max_mod_revision: 5, hash_sum: 6 });
    sum.add(&Aggregate { live_keys: 1, max_mod_revision: 8, hash_sum: 0 });
    assert_eq!(sum, Aggregate { live_keys: 0, max_mod_revision: 8, hash_sum: 6 });
}

/// The bytes of a page are a promise to every later version.
#[test]
fn golden_pages_never_change() {
    let identity = Identity { tree: 1, database: *b"0123456789abcdef", checkpoint: 9 };
    let leaf = [(&b"key/a"[..], &b"1"[..]), (b"key/b", b""), (b"key/cc", &[5; 200])];
    let mut page = Vec::new();
    encode(&mut page, &identity, 0, 4, leaf.into_iter());
    let r = seal(&mut page, 0, (SegmentId(7), 3));
    assert_eq!(page.len(), 4096);
    assert_eq!(
        page[..95],
        *b"STPG\x01\x00\x01\x00\x03\x00\x00\x00\x04\x00\x00\x00\
           \x24\x01\x00\x00\x24\x01\x00\x00\x00\x00\x00\x0001234567\
           \x09\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\
           \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
           \x50\x00\x00\x00\x54\x00\x00\x00\x57\x00\x00\x00key/\x01\x01a1\x01\x00b\x02\xc8\x01cc\x05\x05\x05"
    );
    assert_eq!(r.crc, crc32(&page));
    let inner = [(&b""[..], r.encode()), (b"key/b", r.encode())];
    encode(&mut page, &identity, 1, 0, inner.iter().map(|(key, r)| (*key, &r[..])));
    let above = seal(&mut page, 1, (SegmentId(7), 4));
    assert_eq!((r.crc, above.crc), (0x62b9_6676, 0xad72_015f), "{:#010x} {:#010x}", r.crc, above.crc);
}
