//! JSON values one after another out of bytes that arrive in pieces: where each ends, and whether it is JSON at all.
//!
//! **Contract.** [`Values`] takes pieces and gives whole values, without what stands between them. A value is looked at byte by byte, once,
//! by a machine of states without recursion; what it passes is valid JSON but for the contents of its strings, which
//! [`super::decode`] judges. Whatever the bytes, it returns.
//!
//! **Bounds.** A value and what waits behind it have at most the bytes that the owner gives; nesting has [`DEPTH_MAX`] levels.
//!
//! **Source**: the texts and the depth are those of Go's `encoding/json`, through which etcd's gateway reads bodies.
use bytes::{Bytes, BytesMut};
use std::fmt::Write;

/// Levels of arrays and objects, as in Go.
pub const DEPTH_MAX: usize = 10_000;

/// Why there is no value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ValueError {
    /// The bytes are no JSON; Go's text.
    Syntax(String),
    /// The bytes end within a value.
    UnexpectedEnd,
    /// A value has more bytes than it may.
    TooLarge,
}

impl std::fmt::Display for ValueError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Syntax(text) => f.write_str(text),
            Self::UnexpectedEnd => f.write_str("unexpected EOF"),
            Self::TooLarge => f.write_str("the JSON is larger than the gateway takes"),
        }
    }
}

/// Values out of pieces.
#[derive(Debug)]
pub struct Values {
    /// Bytes that belong to no value yet; none of them is white space in front of one.
    waiting: BytesMut,
    /// How many of them the machine has seen.
    seen: usize,
    machine: Machine,
    bytes_max: usize,
}

impl Values {
    /// None yet; at most `bytes_max` may wait.
    pub fn new(bytes_max: usize) -> Self {
        Self { waiting: BytesMut::new(), seen: 0, machine: Machine::default(), bytes_max }
    }

    /// Takes a piece.
    ///
    /// # Errors
    /// [`ValueError::TooLarge`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), ValueError> {
        if self.waiting.len() + piece.len() > self.bytes_max {
            return Err(ValueError::TooLarge);
        }
        self.waiting.extend_from_slice(piece);
        Ok(())
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// The next value, or none before more has arrived.
    ///
    /// # Errors
    /// As [`ValueError`] says; there are no further values.
    pub fn next_value(&mut self) -> Result<Option<Bytes>, ValueError> {
        while let Some(&byte) = self.waiting.get(self.seen) {
            match self.machine.step(byte)? {
                Step::Before => {
                    debug_assert_eq!(self.seen, 0, "white space stands in front of a value");
                    let _ = self.waiting.split_to(1);
                }
                Step::Within => self.seen += 1,
                Step::LastByte => return Ok(Some(self.take(self.seen + 1))),
                Step::EndedBefore => return Ok(Some(self.take(self.seen))),
            }
        }
        Ok(None)
    }

    /// The last value, where the bytes end behind it; none if there is nothing but white space.
    ///
    /// # Errors
    /// [`ValueError::UnexpectedEnd`].
    pub fn end(&mut self) -> Result<Option<Bytes>, ValueError> {
        if self.waiting.is_empty() {
            return Ok(None);
        }
        match self.machine.may_end() {
            true => Ok(Some(self.take(self.waiting.len()))),
            false => Err(ValueError::UnexpectedEnd),
        }
    }

    fn take(&mut self, bytes: usize) -> Bytes {
        self.machine = Machine::default();
        self.seen = 0;
        self.waiting.split_to(bytes).freeze()
    }
}

/// What a byte is to the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// White space in front of it.
    Before,
    /// A part of it.
    Within,
    /// Its last one.
    LastByte,
    /// None of it: a number has ended with the byte before.
    EndedBefore,
}

/// What the next byte may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Value,
    /// Behind `[`.
    ValueOrClose,
    /// Behind `,` in an object.
    Name,
    /// Behind `{`.
    NameOrClose,
    /// Behind a value or a name.
    Behind,
    Text,
    Escape,
    /// So many hexadecimal digits are to come.
    Unicode(u8),
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// The word, and how much of it there is.
    Word(&'static str, usize),
}

/// Where a value within another one stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    InArray,
    NameOfObject,
    InObject,
}

#[derive(Debug, Default)]
struct Machine {
    state: State,
    places: Vec<Place>,
}

impl Machine {
    fn step(&mut self, byte: u8) -> Result<Step, ValueError> {
        use State::{
            Behind, Escape, Exponent, ExponentDigits, ExponentSign, Fraction, Integer, Minus, Name,
            NameOrClose, Point, Text, Unicode, Value, ValueOrClose, Word, Zero,
        };
        let next = match (self.state, byte) {
            (Value | ValueOrClose | Name | NameOrClose | Behind, b' ' | b'\t' | b'\r' | b'\n') => {
                let is_before = self.state == Value && self.places.is_empty();
                return Ok(if is_before { Step::Before } else { Step::Within });
            }
            (ValueOrClose, b']') | (NameOrClose, b'}') => return Ok(self.close()),
            (Value | ValueOrClose, _) => return self.begin(byte),
            (Name | NameOrClose, b'"') => Text,
            (Name | NameOrClose, _) => return Err(wrong(byte, "looking for beginning of object key string")),
            (Behind, _) => return self.behind(byte),
            (Text, b'"') => return Ok(self.ended(Step::LastByte)),
            (Text, b'\\') => Escape,
            (Text, 0..=0x1f) => return Err(wrong(byte, "in string literal")),
            (Text, _) => Text,
            (Escape, b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => Text,
            (Escape, b'u') => Unicode(4),
            (Escape, _) => return Err(wrong(byte, "in string escape code")),
            (Unicode(left), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if left == 1 {
                    Text
                } else {
                    Unicode(left - 1)
                }
            }
            (Unicode(_), _) => return Err(wrong(byte, "in \\u hexadecimal character escape")),
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Integer, b'0'..=b'9') => Integer,
            (Minus, _) => return Err(wrong(byte, "in numeric literal")),
            (Zero | Integer, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Point, _) => return Err(wrong(byte, "after decimal point in numeric literal")),
            (Zero | Integer | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            (Exponent | ExponentSign, _) => return Err(wrong(byte, "in exponent of numeric literal")),
            (Zero | Integer | Fraction | ExponentDigits, _) => {
                return match self.places.is_empty() {
                    true => Ok(Step::EndedBefore),
                    false => {
                        self.state = Behind;
                        self.step(byte)
                    }
                };
            }
            (Word(word, had), _) => match word.as_bytes().get(had) {
                Some(&wanted) if wanted == byte && had + 1 == word.len() => {
                    return Ok(self.ended(Step::LastByte));
                }
                Some(&wanted) if wanted == byte => Word(word, had + 1),
                wanted => {
                    let wanted = char::from(wanted.copied().unwrap_or_default());
                    return Err(wrong(byte, &format!("in literal {word} (expecting '{wanted}')")));
                }
            },
        };
        self.state = next;
        Ok(Step::Within)
    }

    /// The first byte of a value.
    fn begin(&mut self, byte: u8) -> Result<Step, ValueError> {
        self.state = match byte {
            b'{' | b'[' if self.places.len() >= DEPTH_MAX => return Err(wrong(byte, "exceeded max depth")),
            b'{' => self.open(Place::NameOfObject, State::NameOrClose),
            b'[' => self.open(Place::InArray, State::ValueOrClose),
            b'"' => State::Text,
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Integer,
            b't' => State::Word("true", 1),
            b'f' => State::Word("false", 1),
            b'n' => State::Word("null", 1),
            _ => return Err(wrong(byte, "looking for beginning of value")),
        };
        Ok(Step::Within)
    }

    fn open(&mut self, place: Place, state: State) -> State {
        self.places.push(place);
        state
    }

    /// A byte behind a value or a name that is inside of something.
    fn behind(&mut self, byte: u8) -> Result<Step, ValueError> {
        let Some(place) = self.places.last_mut() else { return Ok(Step::EndedBefore) };
        self.state = match (*place, byte) {
            (Place::NameOfObject, b':') => {
                *place = Place::InObject;
                State::Value
            }
            (Place::NameOfObject, _) => return Err(wrong(byte, "after object key")),
            (Place::InObject, b',') => {
                *place = Place::NameOfObject;
                State::Name
            }
            (Place::InArray, b',') => State::Value,
            (Place::InObject, b'}') | (Place::InArray, b']') => return Ok(self.close()),
            (Place::InObject, _) => return Err(wrong(byte, "after object key:value pair")),
            (Place::InArray, _) => return Err(wrong(byte, "after array element")),
        };
        Ok(Step::Within)
    }

    fn close(&mut self) -> Step {
        self.places.pop();
        self.ended(Step::LastByte)
    }

    /// A value ends here: the whole one, or one inside.
    fn ended(&mut self, whole: Step) -> Step {
        self.state = State::Behind;
        if self.places.is_empty() { whole } else { Step::Within }
    }

    /// Whether the bytes may end now: behind a number that nothing is around.
    fn may_end(&self) -> bool {
        let is_number =
            matches!(self.state, State::Zero | State::Integer | State::Fraction | State::ExponentDigits);
        is_number && self.places.is_empty()
    }
}

fn wrong(byte: u8, context: &str) -> ValueError {
    ValueError::Syntax(format!("invalid character {} {context}", quoted(byte)))
}

/// A byte as Go quotes it: as the character of that number.
fn quoted(byte: u8) -> String {
    let mut text = String::from("'");
    match byte {
        b'\'' => text.push_str("\\'"),
        b'\\' => text.push_str("\\\\"),
        0x07 => text.push_str("\\a"),
        0x08 => text.push_str("\\b"),
        0x0b => text.push_str("\\v"),
        0x0c => text.push_str("\\f"),
        b'\n' => text.push_str("\\n"),
        b'\r' => text.push_str("\\r"),
        b'\t' => text.push_str("\\t"),
        0..=0x1f | 0x7f => drop(write!(text, "\\x{byte:02x}")),
        // What cannot be printed of Latin-1: controls, the no-break space and the soft hyphen.
        0x80..=0xa0 | 0xad => drop(write!(text, "\\u{byte:04x}")),
        _ => text.push(char::from(byte)),
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All values of a text that arrives in pieces of so many bytes, and how it ends.
    fn read(text: &[u8], piece: usize) -> (Vec<String>, Result<(), String>) {
        let mut values = Values::new(1 << 20);
        let mut found = Vec::new();
        let mut run = || -> Result<(), ValueError> {
            let mut keep = |value: Bytes| found.push(String::from_utf8_lossy(&value).into_owned());
            for piece in text.chunks(piece) {
                values.push(piece)?;
                while let Some(value) = values.next_value()? {
                    keep(value);
                }
            }
            while let Some(value) = values.end()? {
                keep(value);
            }
            Ok(())
        };
        let outcome = run().map_err(|error| error.to_string());
        (found, outcome)
    }

    #[test]
    fn values_are_found_however_the_bytes_are_cut() {
        let text = r#" {"a":[1,-2.5e+3,{"b":"}\"]\\"}],"c":{}} [] "x" true null 12 {"d":"é\u00e9"}0"#;
        let expected = [
            r#"{"a":[1,-2.5e+3,{"b":"}\"]\\"}],"c":{}}"#,
            "[]",
            r#""x""#,
            "true",
            "null",
            "12",
            r#"{"d":"é\u00e9"}"#,
            "0",
        ];
        for piece in 1..=text.len() {
            assert_eq!(
                read(text.as_bytes(), piece),
                (expected.map(str::to_owned).to_vec(), Ok(())),
                "pieces of {piece}"
            );
        }
    }

    /// The texts were printed by Go's decoder.
    #[test]
    fn what_is_no_json_has_gos_texts() {
        for (text, expected) in [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{1", "invalid character '1' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{\"a\" 1", "invalid character '1' after object key"),
            ("{\"a\":1 2", "invalid character '2' after object key:value pair"),
            ("[1 2", "invalid character '2' after array element"),
            ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
            ("\"\\q\"", "invalid character 'q' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("[1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("[1ex", "invalid character 'x' in exponent of numeric literal"),
            ("[01", "invalid character '1' after array element"),
            ("trux", "invalid character 'x' in literal true (expecting 'e')"),
            ("nil", "invalid character 'i' in literal null (expecting 'u')"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
            ("\x01", "invalid character '\\x01' looking for beginning of value"),
            ("{", "unexpected EOF"),
            ("{\"a\"", "unexpected EOF"),
            ("tru", "unexpected EOF"),
            ("-", "unexpected EOF"),
            ("1.", "unexpected EOF"),
        ] {
            assert_eq!(read(text.as_bytes(), 3).1, Err(expected.to_owned()), "{text:?}");
        }
        assert_eq!(
            read(b"[\x85", 1).1,
            Err("invalid character '\\u0085' looking for beginning of value".into())
        );
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = |levels: usize| [vec![b'['; levels], vec![b']'; levels]].concat();
        assert_eq!(read(&deep(DEPTH_MAX), 100).0.len(), 1);
        assert_eq!(
            read(&deep(DEPTH_MAX + 1), 100).1,
            Err("invalid character '[' exceeded max depth".to_owned())
        );
        let mut values = Values::new(10);
        values.push(b"\"12345678").unwrap();
        assert_eq!(values.next_value(), Ok(None));
        assert_eq!(values.push(b"90\""), Err(ValueError::TooLarge));
    }
}
