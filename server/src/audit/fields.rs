//! Fields of a protobuf message as it came in, without decoding all of it: what is read over is copied nowhere, secrets least of all.
//!
//! **Contract.** Never fails: where bytes are no message, its fields end.

/// What a field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field<'a> {
    /// A number.
    Number(u64),
    /// Bytes, text or a message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which nobody here asks for.
    Fixed,
}

/// The fields of a message, as (number, value), in their order.
pub struct Fields<'a>(pub &'a [u8]);

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(taken)
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u32, Field<'a>)> {
        let tag = varint(&mut self.0)?;
        let number = u32::try_from(tag >> 3).ok()?;
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut self.0)?),
            1 => take(&mut self.0, 8).map(|_| Field::Fixed)?,
            2 => {
                let length = varint(&mut self.0)?;
                Field::Bytes(take(&mut self.0, length)?)
            }
            5 => take(&mut self.0, 4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if read.is_none() {
            self.0 = &[];
        }
        read
    }
}

/// The bytes of a field; the last counts, as for every decoder. Empty if it is not there.
pub fn bytes(message: &[u8], number: u32) -> &[u8] {
    let of_number = Fields(message).filter_map(|(found, value)| match value {
        Field::Bytes(bytes) if found == number => Some(bytes),
        _ => None,
    });
    of_number.last().unwrap_or_default()
}

/// A number, 0 if it is not there.
pub fn number(message: &[u8], number: u32) -> u64 {
    let of_number = Fields(message).filter_map(|(found, value)| match value {
        Field::Number(value) if found == number => Some(value),
        _ => None,
    });
    of_number.last().unwrap_or(0)
}

/// All messages of a repeated field.
pub fn messages(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    Fields(message).filter_map(move |(found, value)| match value {
        Field::Bytes(bytes) if found == number => Some(bytes),
        _ => None,
    })
}

/// The message in a gRPC frame; none if it is not whole, or compressed.
pub fn in_frame(frame: &[u8]) -> Option<&[u8]> {
    let (head, rest) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 {
        return None;
    }
    rest.get(..usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcdserverpb::{Compare, RangeRequest};
    use prost::Message;

    #[test]
    fn fields_are_those_that_prost_wrote() {
        let range = RangeRequest {
            key: "key".into(),
            range_end: "kez".into(),
            limit: -1,
            revision: 300,
            serializable: true,
            ..Default::default()
        };
        let encoded = range.encode_to_vec();
        assert_eq!((bytes(&encoded, 1), bytes(&encoded, 2)), (&b"key"[..], &b"kez"[..]));
        assert_eq!((number(&encoded, 3), number(&encoded, 4)), (u64::MAX, 300));
        assert_eq!((number(&encoded, 40), bytes(&encoded, 40)), (0, &b""[..]));
        let far = Compare { key: "k".into(), range_end: "end".into(), ..Default::default() }.encode_to_vec();
        assert_eq!((bytes(&far, 3), bytes(&far, 64)), (&b"k"[..], &b"end"[..]));
    }

    #[test]
    fn bytes_that_are_no_message_end_somewhere() {
        let whole = RangeRequest { key: vec![7; 300].into(), limit: 9, ..Default::default() }.encode_to_vec();
        for cut in 0..whole.len() {
            assert!(Fields(&whole[..cut]).count() <= 2, "cut at {cut}");
        }
        for byte in 0..=u8::MAX {
            assert!(Fields(&[byte; 24]).count() <= 24);
        }
        assert_eq!(in_frame(&[0, 0, 0, 0, 2, 8, 1]), Some(&[8, 1][..]));
        assert_eq!(in_frame(&[0, 0, 0, 0, 3, 8, 1]), None);
        assert_eq!(in_frame(&[1, 0, 0, 0, 2, 8, 1]), None);
        assert_eq!(in_frame(&[0, 0, 0]), None);
    }
}
