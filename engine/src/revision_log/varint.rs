//! LEB128: unsigned numbers, seven bits a byte, lowest first, the high bit set on all bytes but the last.
//!
//! An `i64` travels as the `u64` of the same bits: numbers of this format are rarely negative, and then take ten bytes.
use crate::base::codec::{self, Reader, Truncated};

/// Appends `number`, in 1 to 10 bytes.
pub(super) fn put(out: &mut Vec<u8>, number: u64) {
    codec::put_varint(out, number);
}

/// Appends the bits of `number`.
pub(super) fn put_i64(out: &mut Vec<u8>, number: i64) {
    put(out, number.cast_unsigned());
}

/// How many bytes [`put`] appends.
pub(super) fn bytes(number: u64) -> u32 {
    (64 - (number | 1).leading_zeros()).div_ceil(7)
}

/// Reads a number; one that does not fit 64 bits is an error.
pub(super) fn take(reader: &mut Reader<'_>) -> Result<u64, Truncated> {
    reader.varint()
}

/// Reads a number of 32 bits.
pub(super) fn take_u32(reader: &mut Reader<'_>) -> Result<u32, Truncated> {
    u32::try_from(take(reader)?).map_err(|_| Truncated)
}

/// Reads 64 bits as a signed number.
pub(super) fn take_i64(reader: &mut Reader<'_>) -> Result<i64, Truncated> {
    take(reader).map(u64::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_comes_back_and_has_the_length_that_was_said() {
        for shift in 0..64 {
            for number in [(1_u64 << shift) - 1, 1 << shift, u64::MAX >> shift] {
                let mut out = Vec::new();
                put(&mut out, number);
                assert_eq!(out.len(), bytes(number) as usize, "{number}");
                let mut reader = Reader::new(&out);
                assert_eq!(take(&mut reader), Ok(number));
                assert!(reader.is_empty());
                for cut in 0..out.len() {
                    assert_eq!(take(&mut Reader::new(&out[..cut])), Err(Truncated));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(take(&mut Reader::new(&[0xFF; 11])).is_err(), "no end");
        let mut two_to_64 = [0x80; 10];
        two_to_64[9] = 2;
        assert!(take(&mut Reader::new(&two_to_64)).is_err());
        assert!(take_u32(&mut Reader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0x10])).is_err());
    }
}
