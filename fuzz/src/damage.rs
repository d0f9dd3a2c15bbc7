//! Damage to the bytes of an encoder, written down as an input: which image, and a list of edits.
//!
//! **Layout of an input.** byte 0: which of a target's images · byte 1: what the target makes of it · then edits of 9 bytes each:
//! kind u8 · place u32 · value u32, little-endian. Any bytes are an input; what is missing at the end is left out.
//!
//! An edit says where by a fraction of the image, not by an offset: a mutated input stays a sensible one, and the same edits
//! mean something in every image. A target applies them twice: as they are, where each answer must be the one that was
//! encoded or an error; and with every checksum made right again, so that what stands behind the checksums is reached.
use sternpost_engine::base::rng::Rng;

const EDIT_BYTES: usize = 9;
/// More edits than this are left out.
const EDITS_MAX: usize = 24;
/// Numbers that lengths, counts and offsets break at.
const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0x1000, 0x7fff_ffff, 0xffff_fff8, u64::MAX >> 1, u64::MAX];

/// One input, read.
pub(crate) struct Damage<'a> {
    /// Which image.
    pub(crate) image: usize,
    /// Switches for the target.
    pub(crate) switches: u8,
    edits: &'a [u8],
}

impl<'a> Damage<'a> {
    pub(crate) fn read(input: &'a [u8]) -> Self {
        let (head, edits) = input.split_at(input.len().min(2));
        let byte = |at: usize| head.get(at).copied().unwrap_or(0);
        Self { image: usize::from(byte(0)), switches: byte(1), edits }
    }

    /// True if nothing is changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.edits.len() < EDIT_BYTES
    }

    /// The edits as they are, for targets that have damage of their own: kind, place, value.
    pub(crate) fn edits(&self) -> impl Iterator<Item = (u8, u32, u32)> + use<'a> {
        self.edits.chunks_exact(EDIT_BYTES).take(EDITS_MAX).map(|edit| {
            let number = |at: usize| u32::from_le_bytes([edit[at], edit[at + 1], edit[at + 2], edit[at + 3]]);
            (edit[0], number(1), number(5))
        })
    }

    /// A number that differs with the edits, for what the target draws itself.
    pub(crate) fn seed(&self) -> u64 {
        self.edits.iter().fold(u64::from(self.switches), |seed, &byte| {
            (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// Makes the edits. `dense` are the places where structure is: three edits in four go there, if there are any.
    pub(crate) fn apply(&self, image: &mut [u8], dense: &[usize]) {
        for (kind, place, value) in self.edits() {
            if image.is_empty() {
                return;
            }
            let at = match dense.is_empty() || kind >> 6 == 0 {
                true => scale(place, image.len()),
                false => dense[scale(place, dense.len())].min(image.len() - 1),
            };
            let put = |image: &mut [u8], bytes: &[u8]| {
                image[at..].iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            };
            match kind & 7 {
                0 => image[at] ^= 1 << (value & 7),
                1 => image[at] = value as u8,
                2 => put(image, &value.to_le_bytes()),
                3 => put(image, &NUMBERS[value as usize % NUMBERS.len()].to_le_bytes()),
                // A small step up or down: what is off by one.
                4 => image[at] = image[at].wrapping_add((value as i8).clamp(-2, 2) as u8),
                5 => put(image, &vec![0; 1 + value as usize % 4096]),
                6 => {
                    // A part of the image in another place of it.
                    let from = scale(value, image.len());
                    let part =
                        image[from..].iter().copied().take(1 + value as usize % 4096).collect::<Vec<_>>();
                    put(image, &part);
                }
                _ => {
                    let mut noise = vec![0; 1 + value as usize % 64];
                    Rng::new(u64::from(value)).fill(&mut noise);
                    put(image, &noise);
                }
            }
        }
    }
}

/// An input of a few edits, which the driver then mutates.
pub(crate) fn seed(rng: &mut Rng) -> Vec<u8> {
    let mut input = vec![rng.next_u64() as u8, rng.next_u64() as u8];
    for _ in 0..rng.below(4) * EDIT_BYTES as u64 {
        input.push(rng.next_u64() as u8);
    }
    input
}

/// `place` of 2^32 as an index below `count`, which is not 0.
pub(crate) fn scale(place: u32, count: usize) -> usize {
    ((u64::from(place) * count as u64) >> 32) as usize
}
