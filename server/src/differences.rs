//! Which keys differ between members: the side of who asks them, range by range. For `sternctl compare keys`.
//!
//! **Contract.** [`find`] finds every key of a range that is not the same at all members at one revision. Where the sums of a range differ, the member that has most keys
//! there divides it, the others say what the parts add up to, and each part that differs is looked at in the same way, until it has so few keys that all are
//! listed: O(log keys) exchanges for a key that differs alone, and none for what is equal.
//!
//! **What is trusted**: nothing of an answer but what it says of its member. Parts that are not those of the range are an error, so every division ends: each
//! takes keys away from the member that has most.
//!
//! **Bounds.** Parts of a path through the keys are held, and as many differences as are asked for; the others are counted.
//!
//! **Does not know** how members are reached.
use crate::wire::sternpostpb as pb;
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;

/// A range with at most so many keys at each member is listed.
const LISTED_KEYS_MAX: u64 = 128;
/// Parts that a range is divided into.
const PARTS: u32 = 16;
/// Ranges that are left to be looked at: those beside a path of thousands of divisions, which no tree needs.
const LEFT_MAX: usize = 1 << 16;

/// A member, as something to ask.
pub trait Asked {
    /// Why it does not answer.
    type Error;

    /// See the service Ranges.
    fn sums(
        &mut self,
        request: pb::RangeSumsRequest,
    ) -> impl Future<Output = Result<pb::RangeSumsResponse, Self::Error>>;

    /// See the service Ranges.
    fn parts(
        &mut self,
        request: pb::RangePartsRequest,
    ) -> impl Future<Output = Result<pb::RangePartsResponse, Self::Error>>;

    /// See the service Ranges.
    fn keys(
        &mut self,
        request: pb::RangeKeysRequest,
    ) -> impl Future<Output = Result<pb::RangeKeysResponse, Self::Error>>;
}

/// A key that is not the same everywhere.
#[derive(Clone, PartialEq, Debug)]
pub struct Difference {
    /// The key.
    pub key: Bytes,
    /// What each member has of it, in their order.
    pub held: Vec<Option<pb::KeyFingerprint>>,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Found {
    /// What the range adds up to at each member.
    pub sums: Vec<pb::RangeSum>,
    /// The first keys that differ, in key order.
    pub differences: Vec<Difference>,
    /// All that do.
    pub differing_keys: u64,
    /// Ranges whose sums differ though each key in them is the same everywhere: a tree of one of the members is wrong.
    pub unexplained: Vec<pb::KeySpan>,
    /// Requests made.
    pub requests: u64,
    /// Keys that were listed, over all members.
    pub keys_listed: u64,
}

/// Why nothing was found out.
#[derive(Debug)]
pub enum Failed<E> {
    /// A member does not answer.
    Member {
        /// Which one.
        number: usize,
        /// What it says.
        error: E,
    },
    /// A member's answer is none.
    Answer {
        /// Which one.
        number: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl<E: fmt::Display> fmt::Display for Failed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member { error, .. } => error.fmt(f),
            Self::Answer { what, .. } => f.write_str(what),
        }
    }
}

/// A range with what it adds up to at each member.
struct Range {
    span: pb::KeySpan,
    sums: Vec<pb::RangeSum>,
}

/// Finds the keys of `span` that differ between `members` at `revision`, and keeps the first `differences_max` of them. `on_progress` hears what was found so far.
///
/// # Errors
/// The first member that does not answer, or answers nonsense.
pub async fn find<A: Asked>(
    members: &mut [A],
    span: pb::KeySpan,
    revision: i64,
    differences_max: usize,
    on_progress: &mut dyn FnMut(&Found),
) -> Result<Found, Failed<A::Error>> {
    let mut search = Search { members, revision, differences_max, found: Found::default() };
    let mut sums = Vec::new();
    for number in 0..search.members.len() {
        sums.extend(search.sums_at(number, vec![span.clone()]).await?);
    }
    search.found.sums.clone_from(&sums);
    // Ranges that differ, the first one on top.
    let mut left = vec![Range { span, sums }];
    while let Some(range) = left.pop() {
        on_progress(&search.found);
        if !differs(&range.sums) {
            continue;
        }
        let most_keys = range.sums.iter().map(|sum| sum.keys).max().unwrap_or(0);
        if most_keys <= LISTED_KEYS_MAX {
            search.list(range.span).await?;
            continue;
        }
        let parts = search.divide(&range).await?;
        left.extend(parts.into_iter().rev().filter(|part| differs(&part.sums)));
        if left.len() > LEFT_MAX {
            return Err(Failed::Answer { number: 0, what: "its parts of a range do not end" });
        }
    }
    Ok(search.found)
}

fn differs(sums: &[pb::RangeSum]) -> bool {
    sums.iter().any(|sum| *sum != sums[0])
}

struct Search<'a, A> {
    members: &'a mut [A],
    revision: i64,
    differences_max: usize,
    found: Found,
}

impl<A: Asked> Search<'_, A> {
    async fn sums_at(
        &mut self,
        number: usize,
        spans: Vec<pb::KeySpan>,
    ) -> Result<Vec<pb::RangeSum>, Failed<A::Error>> {
        self.found.requests += 1;
        let count = spans.len();
        let request = pb::RangeSumsRequest { revision: self.revision, spans };
        let answer = self.members[number].sums(request).await;
        let sums = answer.map_err(|error| Failed::Member { number, error })?.sums;
        match sums.len() == count {
            true => Ok(sums),
            false => Err(Failed::Answer { number, what: "it did not say what each range adds up to" }),
        }
    }

    /// Parts of a range, by the member that has most keys there, and what they add up to at each.
    async fn divide(&mut self, range: &Range) -> Result<Vec<Range>, Failed<A::Error>> {
        let by_keys = range.sums.iter().enumerate().max_by_key(|(_, sum)| sum.keys);
        let divider = by_keys.map_or(0, |(number, _)| number);
        self.found.requests += 1;
        let request = pb::RangePartsRequest {
            revision: self.revision,
            span: Some(range.span.clone()),
            parts_max: PARTS,
        };
        let answer = self.members[divider].parts(request).await;
        let parts = answer.map_err(|error| Failed::Member { number: divider, error })?.parts;
        let Some((spans, own)) = checked_parts(&range.span, range.sums[divider].keys, parts) else {
            return Err(Failed::Answer { number: divider, what: "its parts of a range are not those of it" });
        };
        let mut divided: Vec<_> =
            spans.iter().map(|span| Range { span: span.clone(), sums: Vec::new() }).collect();
        for number in 0..self.members.len() {
            let sums = match number == divider {
                true => own.clone(),
                false => self.sums_at(number, spans.clone()).await?,
            };
            divided.iter_mut().zip(sums).for_each(|(part, sum)| part.sums.push(sum));
        }
        Ok(divided)
    }

    /// Compares a range key by key.
    async fn list(&mut self, span: pb::KeySpan) -> Result<(), Failed<A::Error>> {
        let mut lists = Vec::new();
        for number in 0..self.members.len() {
            lists.push(self.keys_at(number, span.clone()).await?.into_iter().peekable());
        }
        let before = self.found.differing_keys;
        loop {
            let next = lists.iter_mut().filter_map(|list| list.peek().map(|held| held.key.clone())).min();
            let Some(key) = next else { break };
            let held: Vec<_> = lists.iter_mut().map(|list| list.next_if(|held| held.key == key)).collect();
            if held.iter().any(|one| *one != held[0]) {
                self.found.differing_keys += 1;
                if self.found.differences.len() < self.differences_max {
                    self.found.differences.push(Difference { key, held });
                }
            }
        }
        if self.found.differing_keys == before && self.found.unexplained.len() < self.differences_max.max(1) {
            self.found.unexplained.push(span);
        }
        Ok(())
    }

    /// All keys of a range, of which there are few.
    async fn keys_at(
        &mut self,
        number: usize,
        span: pb::KeySpan,
    ) -> Result<Vec<pb::KeyFingerprint>, Failed<A::Error>> {
        let mut keys: Vec<pb::KeyFingerprint> = Vec::new();
        let mut from = span.key.clone();
        loop {
            let rest = pb::KeySpan { key: from, range_end: span.range_end.clone() };
            let request = pb::RangeKeysRequest {
                revision: self.revision,
                span: Some(rest),
                keys_max: LISTED_KEYS_MAX as u32,
            };
            self.found.requests += 1;
            let answer = self.members[number].keys(request).await;
            let answer = answer.map_err(|error| Failed::Member { number, error })?;
            self.found.keys_listed += answer.keys.len() as u64;
            let is_next = |held: &pb::KeyFingerprint| keys.last().is_none_or(|last| last.key < held.key);
            let is_sound = answer.keys.first().is_none_or(is_next)
                && answer.keys.is_sorted_by(|left, right| left.key < right.key)
                && (keys.len() + answer.keys.len()) as u64 <= LISTED_KEYS_MAX
                && !(answer.keys.is_empty() && answer.more);
            if !is_sound {
                return Err(Failed::Answer {
                    number,
                    what: "its keys of a range are not those that it counted",
                });
            }
            keys.extend(answer.keys);
            match keys.last().filter(|_| answer.more) {
                Some(last) => from = sternpost_engine::mvcc::key_after(&last.key),
                None => return Ok(keys),
            }
        }
    }
}

/// Spans and sums of parts, if they are a division of `whole`, where there are `keys`, that gets on.
fn checked_parts(
    whole: &pb::KeySpan,
    keys: u64,
    parts: Vec<pb::RangePart>,
) -> Option<(Vec<pb::KeySpan>, Vec<pb::RangeSum>)> {
    let both = |part: pb::RangePart| Some((part.span?, part.sum?));
    let (spans, sums): (Vec<_>, Vec<_>) =
        parts.into_iter().map(both).collect::<Option<Vec<_>>>()?.into_iter().unzip();
    let ends_behind = |left: &pb::KeySpan, right: &pb::KeySpan| {
        left.range_end == right.key && left.key.cmp(&left.range_end) == Ordering::Less
    };
    let fences: BTreeSet<_> = spans.iter().map(|span| &span.key).collect();
    let is_whole = spans.len() <= PARTS as usize
        && fences.len() == spans.len()
        && spans.first()?.key == whole.key
        && spans.last()?.range_end == whole.range_end
        && spans.windows(2).all(|pair| ends_behind(&pair[0], &pair[1]));
    let gets_on = sums.iter().all(|sum| sum.keys < keys);
    (is_whole && gets_on).then_some((spans, sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sternpost_engine::OperationError;
    use sternpost_engine::base::rng::Rng;
    use sternpost_engine::mvcc::{
        AnyLease, DeleteRange, KeyFingerprint, KeyRange, Put, Store, StoreOptions, StoreWriter,
    };

    /// A store, asked as a member is.
    struct Held(Store);

    fn range_of(span: Option<pb::KeySpan>) -> KeyRange {
        let pb::KeySpan { key, range_end } = span.unwrap_or_default();
        KeyRange { key, end: range_end }
    }

    fn sum_of(sum: sternpost_engine::RangeSum) -> pb::RangeSum {
        pb::RangeSum { keys: sum.keys_count, hash_sum: sum.hash_sum }
    }

    fn fingerprint_of(of: KeyFingerprint) -> pb::KeyFingerprint {
        let KeyFingerprint { kv, value_bytes, value_hash, record_hash } = of;
        pb::KeyFingerprint {
            key: kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
            value_bytes,
            value_hash,
            record_hash,
        }
    }

    impl Asked for Held {
        type Error = OperationError;

        async fn sums(
            &mut self,
            request: pb::RangeSumsRequest,
        ) -> Result<pb::RangeSumsResponse, OperationError> {
            let ranges: Vec<_> = request.spans.into_iter().map(|span| range_of(Some(span))).collect();
            let (sums, _) = self.0.range_sums(&ranges, request.revision)?;
            Ok(pb::RangeSumsResponse { position: None, sums: sums.into_iter().map(sum_of).collect() })
        }

        async fn parts(
            &mut self,
            request: pb::RangePartsRequest,
        ) -> Result<pb::RangePartsResponse, OperationError> {
            let parts_max = request.parts_max as usize;
            let (parts, _) = self.0.range_parts(&range_of(request.span), request.revision, parts_max)?;
            let part = |part: sternpost_engine::mvcc::RangePart| pb::RangePart {
                span: Some(pb::KeySpan { key: part.range.key, range_end: part.range.end }),
                sum: Some(sum_of(part.sum)),
            };
            Ok(pb::RangePartsResponse { position: None, parts: parts.into_iter().map(part).collect() })
        }

        async fn keys(
            &mut self,
            request: pb::RangeKeysRequest,
        ) -> Result<pb::RangeKeysResponse, OperationError> {
            // Few at a time, so that lists go on.
            let keys_max = request.keys_max.min(50) as usize;
            let (listed, _) =
                self.0.fingerprints(&range_of(request.span), request.revision, keys_max, 1000)?;
            let keys = listed.keys.into_iter().map(fingerprint_of).collect();
            Ok(pb::RangeKeysResponse { position: None, keys, more: listed.more })
        }
    }

    fn everything() -> pb::KeySpan {
        pb::KeySpan { key: "\0".into(), range_end: "\0".into() }
    }

    fn found<A: Asked<Error: fmt::Debug>>(members: &mut [A], keep: usize) -> Result<Found, Failed<A::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(find(members, everything(), 0, keep, &mut |_| {}))
    }

    fn put(writer: &mut StoreWriter, key: u64, value: u64) {
        let key = format!("{:07}", key).into();
        let put = Put { key, value: value.to_string().into(), ..Put::default() };
        writer.put(&put, &AnyLease).expect("a put");
    }

    fn delete(writer: &mut StoreWriter, first: u64, end: u64) {
        let range = KeyRange { key: format!("{first:07}").into(), end: format!("{end:07}").into() };
        writer.delete_range(&DeleteRange { range, prev_kv: false }).expect("a delete");
    }

    fn content(store: &Store) -> Vec<pb::KeyFingerprint> {
        let (all, _) =
            store.fingerprints(&range_of(Some(everything())), 0, usize::MAX, u64::MAX).expect("whole");
        all.keys.into_iter().map(fingerprint_of).collect()
    }

    /// Few differences, many, and members of which one lacks most: always those of a comparison of everything.
    #[test]
    fn what_is_found_is_what_differs() {
        for seed in 0..12 {
            let mut rng = Rng::new(seed);
            let keys = [40, 300, 5_000][seed as usize % 3];
            let mut members = Vec::new();
            let mut writers = Vec::new();
            for _ in 0..3 {
                let (store, mut writer) = StoreWriter::new(StoreOptions::default());
                (0..keys).for_each(|key| put(&mut writer, key * 3, key));
                members.push(Held(store));
                writers.push(writer);
            }
            for _ in 0..[0, 1, 7, 400][seed as usize % 4] {
                let (number, key) = (rng.below(3) as usize, rng.below(keys * 3));
                match rng.below(4) {
                    0 => delete(&mut writers[number], key, key + 1 + rng.below(9)),
                    _ => put(&mut writers[number], key, rng.next_u64()),
                }
            }
            if seed % 5 == 4 {
                delete(&mut writers[1], 0, keys * 2);
            }
            let contents: Vec<_> = members.iter().map(|member| content(&member.0)).collect();
            let mut all: Vec<_> = contents.iter().flatten().map(|held| held.key.clone()).collect();
            all.sort();
            all.dedup();
            let held_of = |key: &Bytes| -> Vec<_> {
                contents.iter().map(|held| held.iter().find(|held| held.key == *key).cloned()).collect()
            };
            let differing: Vec<_> = all
                .into_iter()
                .map(|key| Difference { held: held_of(&key), key })
                .filter(|difference| difference.held.iter().any(|held| *held != difference.held[0]))
                .collect();
            let result = found(&mut members, 5).expect("all answer");
            assert_eq!(result.differing_keys, differing.len() as u64, "seed {seed}");
            assert_eq!(result.differences, differing[..differing.len().min(5)], "seed {seed}");
            assert_eq!(result.unexplained, [], "seed {seed}");
            if differing.len() == 1 {
                assert!(result.requests <= 3 * 6 && result.keys_listed <= 3 * LISTED_KEYS_MAX, "{result:?}");
            }
        }
    }

    /// A member that says what cannot be.
    struct Lying {
        held: Held,
        lie: fn(&mut pb::RangePartsResponse),
        keys_are_empty: bool,
        hash_xor: u64,
    }

    impl Asked for Lying {
        type Error = OperationError;

        async fn sums(
            &mut self,
            request: pb::RangeSumsRequest,
        ) -> Result<pb::RangeSumsResponse, OperationError> {
            let mut answer = self.held.sums(request).await?;
            answer.sums.iter_mut().for_each(|sum| sum.hash_sum ^= self.hash_xor);
            Ok(answer)
        }

        async fn parts(
            &mut self,
            request: pb::RangePartsRequest,
        ) -> Result<pb::RangePartsResponse, OperationError> {
            let mut answer = self.held.parts(request).await?;
            (self.lie)(&mut answer);
            Ok(answer)
        }

        async fn keys(
            &mut self,
            request: pb::RangeKeysRequest,
        ) -> Result<pb::RangeKeysResponse, OperationError> {
            let answer = self.held.keys(request).await?;
            match self.keys_are_empty {
                true => Ok(pb::RangeKeysResponse { more: true, ..Default::default() }),
                false => Ok(answer),
            }
        }
    }

    #[test]
    fn answers_that_cannot_be_end_it() {
        let lies: [fn(&mut pb::RangePartsResponse); 6] = [
            |answer| answer.parts.clear(),
            |answer| answer.parts.truncate(1),
            |answer| drop(answer.parts.remove(1)),
            |answer| answer.parts.swap(0, 1),
            |answer| answer.parts[0].sum = None,
            |answer| answer.parts[2].sum = Some(pb::RangeSum { keys: 1 << 40, hash_sum: 0 }),
        ];
        let member = |lie, keys: u64, keys_are_empty, hash_xor| {
            let (store, mut writer) = StoreWriter::new(StoreOptions::default());
            (0..keys).for_each(|key| put(&mut writer, key, key));
            Lying { held: Held(store), lie, keys_are_empty, hash_xor }
        };
        for lie in lies {
            let result = found(&mut [member(lie, 999, false, 0), member(lie, 1000, false, 0)], 5);
            assert!(matches!(result, Err(Failed::Answer { number: 1, .. })), "{result:?}");
        }
        let honest = |_: &mut pb::RangePartsResponse| {};
        let result = found(&mut [member(honest, 10, true, 0), member(honest, 11, true, 0)], 5);
        assert!(matches!(result, Err(Failed::Answer { number: 0, .. })), "{result:?}");
        // Sums that differ over the same keys.
        let result =
            found(&mut [member(honest, 10, false, 0), member(honest, 10, false, 1)], 5).expect("an answer");
        assert_eq!((result.differing_keys, result.unexplained), (0, vec![everything()]));
    }
}
