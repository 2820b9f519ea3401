//! The wire format of protocol buffers, as far as a `tokenizer.model` uses it.
//!
//! Fields are slices of their message, without copies; lengths are checked.

use crate::Result;

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// An integer, a boolean or an enumeration.
    Varint(u64),
    Fixed64(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in order.
pub(super) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// Returns the number and the value of the next field, or `None` at the end.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if the message ends within the field, or the field is invalid.
    ///
    /// # Source
    /// <https://protobuf.dev/programming-guides/encoding>. Groups, which are deprecated, are not supported.
    pub(super) fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.at == self.message.len() {
            return Ok(None);
        }
        let begin = self.at;
        let tag = self.varint()?;
        if !(1..1 << 29).contains(&(tag >> 3)) {
            return Err(malformed!("byte {begin}: a field of number {}; expected 1 to 2^29 - 1", tag >> 3));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            kind => {
                return Err(malformed!("byte {begin}: wire type {kind} is not supported; expected 0, 1, 2 or 5"));
            }
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64> {
        let begin = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed!("byte {begin}: an integer of more than 10 bytes"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let left = &self.message[self.at..];
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| left.get(..length))
            .ok_or_else(|| malformed!("byte {}: {length} bytes are announced, {} are left", self.at, left.len()))?;
        self.at += taken.len();
        Ok(taken)
    }
}

/// A message to write.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn varint(&mut self, field: u64, value: u64) {
        self.put_varint(field << 3);
        self.put_varint(value);
    }

    pub(super) fn fixed32(&mut self, field: u64, value: u32) {
        self.put_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u64, value: &[u8]) {
        self.put_varint(field << 3 | 2);
        self.put_varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::{Fields, Message, Value};
    use proptest::prelude::*;

    #[test]
    fn fields_are_read_in_order() {
        // Field 1: 300; field 2: "hi"; field 3: 1.0 as fixed32; field 16: 7 as fixed64.
        let message = b"\x08\xAC\x02\x12\x02hi\x1D\x00\x00\x80\x3F\x81\x01\x07\0\0\0\0\0\0\0";
        let mut fields = Fields::new(message);
        let expected = [
            (1, Value::Varint(300)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Fixed32(1f32.to_bits())),
            (16, Value::Fixed64(7)),
        ];
        for field in expected {
            assert_eq!(fields.next_field().expect("whole"), Some(field));
        }
        assert_eq!(fields.next_field().expect("the end"), None);
        for end in 1..message.len() {
            let mut fields = Fields::new(&message[..end]);
            let whole = std::iter::from_fn(|| fields.next_field().transpose()).all(|field| field.is_ok());
            assert_eq!(whole, [3, 7, 12].contains(&end), "cut at {end}");
        }
    }

    #[test]
    fn lengths_beyond_the_message_are_refused() {
        for message in [&b"\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01x"[..], b"\x0A\x05four", b"\x0B", b"\x08\xFF"] {
            assert!(Fields::new(message).next_field().is_err(), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(number in 1u64..1 << 29, value: u64, bits: u32, text in ".*") {
            let mut message = Message::default();
            message.varint(number, value);
            message.fixed32(number, bits);
            message.bytes(number, text.as_bytes());
            let mut fields = Fields::new(message.as_bytes());
            for value in [Value::Varint(value), Value::Fixed32(bits), Value::Bytes(text.as_bytes())] {
                prop_assert_eq!(fields.next_field().expect("whole"), Some((number, value)));
            }
            prop_assert_eq!(fields.next_field().expect("the end"), None);
        }

        #[test]
        fn random_bytes_end_in_fields_or_an_error(message in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut fields = Fields::new(&message);
            let mut count = 0;
            while let Ok(Some(_)) = fields.next_field() {
                count += 1;
            }
            prop_assert!(count <= message.len());
        }
    }
}
