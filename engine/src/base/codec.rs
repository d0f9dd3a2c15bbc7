//! Little-endian fixed fields and length-prefixed bytes, with readers that check every bound.
//!
//! Formats on disk are written with these and nothing else, so that a stranger could write a reader.

/// The bytes ended before the value did, or a length in them is impossible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Truncated;

/// Reads values from the front of a slice; never panics, whatever the bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

macro_rules! read_int {
    ($($name:ident: $type:ty),*) => {$(
        #[doc = concat!("Reads a little-endian `", stringify!($type), "`.")]
        pub fn $name(&mut self) -> Result<$type, Truncated> {
            let bytes = self.take(size_of::<$type>())?;
            let mut array = [0; size_of::<$type>()];
            array.copy_from_slice(bytes);
            Ok(<$type>::from_le_bytes(array))
        }
    )*};
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    read_int!(u8: u8, u16: u16, u32: u32, u64: u64, i64: i64);

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Bytes behind a u32 length.
    pub fn bytes(&mut self) -> Result<&'a [u8], Truncated> {
        let count = self.u32()?;
        self.take(usize::try_from(count).map_err(|_| Truncated)?)
    }

    /// An unsigned LEB128 number: seven bits a byte, lowest first, the high bit set on all bytes but the last.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Truncated> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Truncated);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Truncated)
    }

    /// A [`Self::varint`] below 2^63.
    #[inline]
    pub fn varint_i64(&mut self) -> Result<i64, Truncated> {
        i64::try_from(self.varint()?).map_err(|_| Truncated)
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// True when everything has been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Appends a number as [`Reader::varint`] reads it: 1 to 10 bytes.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends `bytes` behind their u32 length.
///
/// # Panics
/// If `bytes` is 4 GiB or longer: callers bound their input far below.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let count = u32::try_from(bytes.len()).expect("a field is shorter than 4 GiB");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_read_and_every_cut_is_an_error() {
        let mut bytes = 7_u64.to_le_bytes().to_vec();
        put_bytes(&mut bytes, b"key");
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u64(), Ok(7));
        assert_eq!(reader.bytes(), Ok(&b"key"[..]));
        assert!(reader.is_empty());
        for cut in 0..bytes.len() {
            let mut reader = Reader::new(&bytes[..cut]);
            assert!(reader.u64().and_then(|_| reader.bytes()).is_err(), "cut at {cut}");
        }
    }
}
