//! What one member says to another of a state: the manifest of a transfer. It comes from outside before anything else of the state does, and names files.
//!
//! The input is the body; the target puts the envelope around it, so that mutation reaches what is behind the checksum.
use super::page::reference_seed;
use super::revisions::summary_seed;
use std::collections::BTreeSet;
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::base::envelope::{EnvelopeKind, seal};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::revision_log::SegmentSummary;
use sternpost_engine::transfer::Manifest;
use sternpost_engine::tree::PageRef;

/// Refused, or what its sender wrote and can be a state.
pub(crate) fn manifest(input: &[u8]) {
    // The second is the first and one root more.
    for version in [1, 2] {
        manifest_of(version, input);
    }
}

fn manifest_of(version: u16, input: &[u8]) {
    let sealed = seal(EnvelopeKind::TransferManifest, version, &input.to_vec());
    let mut damaged = sealed.clone();
    let at = crc32(input) as usize % damaged.len();
    damaged[at] ^= 1 << (input.len() % 8);
    assert!(Manifest::decode(&damaged).is_err(), "byte {at} of a manifest is not what was sent");
    let Ok(manifest) = Manifest::decode(&sealed) else { return };
    let again = manifest.encode().expect("what was decoded can be encoded");
    assert!(again == sealed, "a manifest changes when it is read and written: {manifest:?}");
    let mut names = BTreeSet::new();
    for file in &manifest.files {
        assert!(names.insert(file.id), "two files of one number would be one: {manifest:?}");
        assert!(file.id.0 < manifest.next_segment, "a number that is given again: {manifest:?}");
        assert!(file.path().starts_with("seg") && file.path().components().count() == 2, "{manifest:?}");
        assert!(file.bytes > 0 && file.bytes.is_multiple_of(4096), "{manifest:?}");
    }
    assert!(manifest.bytes() >= 4096 * manifest.files.len() as u64);
    assert!(manifest.applied.0 > 0, "an empty state: {manifest:?}");
    assert!(manifest.compact_revision <= manifest.revision, "{manifest:?}");
    assert_eq!(manifest.roots.pending.is_some(), version == 2, "{manifest:?}");
}

/// The body of a state with some segments of both kinds, by the layout that is written down.
pub(crate) fn manifest_seed(rng: &mut Rng) -> Vec<u8> {
    let root = reference_seed(rng);
    let k_segment = PageRef::decode(&root).expect("it is one").segment.0;
    let mut summary = Vec::new();
    if rng.chance(1, 2) {
        summary = summary_seed(rng);
    }
    let r_segment = SegmentSummary::decode(&summary).ok().filter(|it| it.id.0 != k_segment);
    let mut out = vec![3; 16];
    out.push(1 + rng.below(2) as u8);
    for _ in 0..3 {
        out.extend_from_slice(&rng.below(u64::MAX).to_le_bytes());
    }
    out.extend_from_slice(&(64_u32 << 10).to_le_bytes());
    out.extend_from_slice(&(1 + rng.below(1 << 40)).to_le_bytes());
    out.extend_from_slice(&rng.next_u64().to_le_bytes());
    for revision in [900_i64, 500, 400] {
        out.extend_from_slice(&revision.to_le_bytes());
    }
    out.extend_from_slice(&root);
    out.extend_from_slice(&[0; 48]);
    out.extend_from_slice(&root);
    let more: Vec<u32> = (0..rng.below(4) as u32).map(|number| 1_000_000 + number).collect();
    out.extend_from_slice(&2_000_000_u32.to_le_bytes());
    out.extend_from_slice(&(1 + more.len() as u32 + u32::from(r_segment.is_some())).to_le_bytes());
    for id in [k_segment].into_iter().chain(more) {
        out.extend_from_slice(&id.to_le_bytes());
        out.push(2);
        out.extend_from_slice(&(4096 * (1 + rng.below(9))).to_le_bytes());
    }
    if let Some(it) = r_segment {
        out.extend_from_slice(&it.id.0.to_le_bytes());
        out.push(1);
        out.extend_from_slice(&it.file_bytes.to_le_bytes());
        out.extend_from_slice(&summary);
    }
    if rng.chance(1, 2) {
        out.extend_from_slice(&root);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else nothing but refusals is tested.
    #[test]
    fn mutation_starts_from_manifests() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let body = manifest_seed(&mut rng);
            let is_one =
                |version| Manifest::decode(&seal(EnvelopeKind::TransferManifest, version, &body)).is_ok();
            assert!(is_one(1) != is_one(2), "a state can be so");
        }
    }
}
