//! A message out of a JSON value, as Go's `protojson` reads it.
//!
//! **Contract.** [`decode`] takes a value that [`super::values`] has passed, and any other bytes without harm. A field is named as in the
//! proto file or in lower camel case; unknown ones are skipped, and so are enum values of unknown names. A field may be named once, and
//! one of a union at most. 64-bit integers are numbers or strings, also with a fraction of zeros or an exponent that leaves them whole;
//! bytes are base64 of either alphabet, with padding or entirely without; enums are names or numbers; `null` is a field that is not there.
//!
//! **Why our own**: the decoder of prost-reflect takes a field twice, knows no line breaks in base64, takes half of a padding, and refuses
//! an enum that is written `1.0`: answers that a client of etcd would see. Its dynamic messages are used all the same.
//!
//! **Bounds.** Messages nest [`MESSAGES_NESTED_MAX`] levels at most: more the services would not decode. (Go takes 10,000.)
//!
//! **Source**: `encoding/protojson` of google.golang.org/protobuf 1.36.11, whose texts these are. It puts a no-break space after `proto:`
//! in one build out of two, so that nobody compares them; here it is a space.
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

/// Levels of messages in one another: prost decodes so many.
pub const MESSAGES_NESTED_MAX: usize = 100;

/// The message of this kind that the value is.
///
/// # Errors
/// Go's text.
pub fn decode(kind: &MessageDescriptor, value: &[u8]) -> Result<DynamicMessage, String> {
    let mut reader = Reader { text: value, at: 0, peeked: None };
    let message = reader.message(kind, MESSAGES_NESTED_MAX)?;
    match reader.next()? {
        Token { kind: TokenKind::End, .. } => Ok(message),
        token => Err(reader.unexpected(&token)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TokenKind {
    End,
    Null,
    Bool(bool),
    Number,
    Text,
    ObjectOpen,
    ObjectClose,
    ArrayOpen,
    ArrayClose,
}

#[derive(Clone, Debug)]
struct Token<'a> {
    kind: TokenKind,
    /// Where it starts.
    at: usize,
    raw: &'a [u8],
    /// What a text says.
    said: String,
}

impl Token<'_> {
    fn raw(&self) -> String {
        String::from_utf8_lossy(self.raw).into_owned()
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    peeked: Option<Token<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Token<'a>, String> {
        if let Some(token) = self.peeked.take() {
            return Ok(token);
        }
        // The order of values, commas and colons has been judged; here they say nothing more.
        let separators = self.text.get(self.at..).unwrap_or_default();
        self.at += separators
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':'))
            .count();
        let at = self.at;
        let rest = self.text.get(at..).unwrap_or_default();
        let (kind, length, said) = match rest.first() {
            None => (TokenKind::End, 0, String::new()),
            Some(b'{') => (TokenKind::ObjectOpen, 1, String::new()),
            Some(b'}') => (TokenKind::ObjectClose, 1, String::new()),
            Some(b'[') => (TokenKind::ArrayOpen, 1, String::new()),
            Some(b']') => (TokenKind::ArrayClose, 1, String::new()),
            Some(b'"') => {
                let (said, length) = self.read_text(at)?;
                (TokenKind::Text, length, said)
            }
            Some(_) => {
                let length = rest.iter().take_while(|byte| is_in_word(**byte)).count();
                let word = rest.get(..length).unwrap_or_default();
                let kind = match word {
                    b"null" => TokenKind::Null,
                    b"true" => TokenKind::Bool(true),
                    b"false" => TokenKind::Bool(false),
                    [b'-' | b'0'..=b'9', ..] => TokenKind::Number,
                    _ => {
                        let shown =
                            String::from_utf8_lossy(rest.get(..length.clamp(1, 32)).unwrap_or_default());
                        return Err(self.syntax_error(at, &format!("invalid value {shown}")));
                    }
                };
                (kind, length, String::new())
            }
        };
        self.at = at + length;
        Ok(Token { kind, at, raw: rest.get(..length).unwrap_or_default(), said })
    }

    fn peek(&mut self) -> Result<TokenKind, String> {
        let token = self.next()?;
        let kind = token.kind;
        self.peeked = Some(token);
        Ok(kind)
    }

    /// The text that starts at a quote, and its length with both quotes.
    fn read_text(&self, start: usize) -> Result<(String, usize), String> {
        let unended = || "proto: unexpected EOF".to_owned();
        let bytes = self.text.get(start + 1..).ok_or_else(unended)?;
        let mut said = Vec::new();
        let mut at = 0;
        loop {
            match bytes.get(at).ok_or_else(unended)? {
                b'"' => break,
                b'\\' => {
                    let escape = escaped(bytes.get(at..).unwrap_or_default());
                    let (character, length) = escape.map_err(|code| match code {
                        Some(code) => {
                            self.syntax_error(start, &format!("invalid escape code {code:?} in string"))
                        }
                        None => unended(),
                    })?;
                    said.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    at += length;
                }
                0..=0x1f => return Err(self.syntax_error(start, "invalid character in string")),
                byte => {
                    said.push(*byte);
                    at += 1;
                }
            }
        }
        let said =
            String::from_utf8(said).map_err(|_| self.syntax_error(start, "invalid UTF-8 in string"))?;
        Ok((said, at + 2))
    }

    fn message(&mut self, kind: &MessageDescriptor, levels_left: usize) -> Result<DynamicMessage, String> {
        let levels_left =
            levels_left.checked_sub(1).ok_or_else(|| "proto: exceeded max recursion depth".to_owned())?;
        let open = self.next()?;
        if open.kind != TokenKind::ObjectOpen {
            return Err(self.unexpected(&open));
        }
        let mut message = DynamicMessage::new(kind.clone());
        let (mut fields_seen, mut unions_seen) = (Vec::new(), Vec::new());
        loop {
            let name = self.next()?;
            match name.kind {
                TokenKind::ObjectClose => return Ok(message),
                TokenKind::Text => {}
                _ => return Err(self.unexpected(&name)),
            }
            let field =
                kind.get_field_by_json_name(&name.said).or_else(|| kind.get_field_by_name(&name.said));
            let Some(field) = field else {
                self.skip()?;
                continue;
            };
            if fields_seen.contains(&field.number()) {
                return Err(self.error(name.at, &format!("duplicate field {}", name.raw())));
            }
            fields_seen.push(field.number());
            if self.peek()? == TokenKind::Null {
                self.next()?;
                continue;
            }
            if field.is_list() {
                let list = self.list(&field, levels_left)?;
                message.set_field(&field, Value::List(list));
                continue;
            }
            if let Some(union) = field.containing_oneof() {
                if unions_seen.contains(&union.full_name().to_owned()) {
                    let text =
                        format!("error parsing {}, oneof {} is already set", name.raw(), union.full_name());
                    return Err(self.error(name.at, &text));
                }
                unions_seen.push(union.full_name().to_owned());
            }
            if let Some(value) = self.single(&field, levels_left)? {
                message.set_field(&field, value);
            }
        }
    }

    fn list(&mut self, field: &FieldDescriptor, levels_left: usize) -> Result<Vec<Value>, String> {
        let open = self.next()?;
        if open.kind != TokenKind::ArrayOpen {
            return Err(self.unexpected(&open));
        }
        let mut list = Vec::new();
        while self.peek()? != TokenKind::ArrayClose {
            list.extend(self.single(field, levels_left)?);
        }
        self.next()?;
        Ok(list)
    }

    /// One value of a field; none for an enum's name that nobody knows.
    fn single(&mut self, field: &FieldDescriptor, levels_left: usize) -> Result<Option<Value>, String> {
        if let Kind::Message(kind) = field.kind() {
            return self.message(&kind, levels_left).map(|message| Some(Value::Message(message)));
        }
        let token = self.next()?;
        let value = match field.kind() {
            Kind::Bool => match token.kind {
                TokenKind::Bool(value) => Some(Value::Bool(value)),
                _ => None,
            },
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number(&token).map(Value::I32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number(&token).map(Value::I64),
            Kind::Uint32 | Kind::Fixed32 => number(&token).map(Value::U32),
            Kind::Uint64 | Kind::Fixed64 => number(&token).map(Value::U64),
            Kind::String => (token.kind == TokenKind::Text).then(|| Value::String(token.said.clone())),
            Kind::Bytes if token.kind == TokenKind::Text => {
                bytes_of(&token.said).map(|bytes| Value::Bytes(bytes.into()))
            }
            Kind::Enum(values) => match token.kind {
                TokenKind::Text => match values.get_value_by_name(&token.said) {
                    Some(value) => Some(Value::EnumNumber(value.number())),
                    None => return Ok(None),
                },
                TokenKind::Number => {
                    whole(token.raw).and_then(|number| number.try_into().ok()).map(Value::EnumNumber)
                }
                _ => None,
            },
            // No message of etcd has a floating-point number; a test says so.
            _ => None,
        };
        match value {
            Some(value) => Ok(Some(value)),
            None => {
                let (kind, name, raw) = (kind_name(&field.kind()), field.json_name(), token.raw());
                Err(self.error(token.at, &format!("invalid value for {kind} field {name}: {raw}")))
            }
        }
    }

    fn skip(&mut self) -> Result<(), String> {
        let mut open = 0_usize;
        loop {
            match self.next()?.kind {
                TokenKind::ObjectOpen | TokenKind::ArrayOpen => open += 1,
                TokenKind::ObjectClose | TokenKind::ArrayClose => open = open.saturating_sub(1),
                TokenKind::End => return Err("proto: unexpected EOF".to_owned()),
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    fn unexpected(&self, token: &Token<'_>) -> String {
        self.syntax_error(token.at, &format!("unexpected token {}", token.raw()))
    }

    fn syntax_error(&self, at: usize, what: &str) -> String {
        let (line, column) = self.position(at);
        format!("proto: syntax error (line {line}:{column}): {what}")
    }

    fn error(&self, at: usize, what: &str) -> String {
        let (line, column) = self.position(at);
        format!("proto: (line {line}:{column}): {what}")
    }

    /// Line and column, from 1; a column is a character.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let in_line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        (line, String::from_utf8_lossy(in_line).chars().count() + 1)
    }
}

/// What belongs to a number or a literal, in the sense that it cannot follow one.
fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.' | b'_')
}

/// The character of an escape at the beginning of `bytes`, and its length; else what is wrong, or none where bytes are missing.
fn escaped(bytes: &[u8]) -> Result<(char, usize), Option<String>> {
    let shown =
        |from: usize, to: usize| bytes.get(from..to).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        digits
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
    };
    let character = match bytes.get(1) {
        Some(plain @ (b'"' | b'\\' | b'/')) => char::from(*plain),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let Some(first) = unit(2) else { return Err(shown(0, 6)) };
            if let Some(character) = char::from_u32(first.into()) {
                return Ok((character, 6));
            }
            let second = bytes.get(6..8).filter(|mark| *mark == b"\\u").and_then(|_| unit(8));
            let pair = second.and_then(|second| char::decode_utf16([first, second]).next());
            return match pair {
                Some(Ok(character)) => Ok((character, 12)),
                // Go shows the six bytes where the second half should be.
                _ => Err(shown(6, 12)),
            };
        }
        _ => return Err(shown(0, 2)),
    };
    Ok((character, 2))
}

fn number<T: TryFrom<i128>>(token: &Token<'_>) -> Option<T> {
    let digits = match token.kind {
        TokenKind::Number => token.raw,
        // White space around a number is not looked past; what follows the number is not looked at.
        TokenKind::Text if token.said.trim() == token.said => {
            let text = token.said.as_bytes();
            let length = text.iter().take_while(|byte| is_in_word(**byte)).count();
            text.get(..length)?
        }
        _ => return None,
    };
    whole(digits)?.try_into().ok()
}

/// The whole number that a JSON number is, if it is one: `1.50e2` is 150. More than 20 digits by an exponent are none, as in Go.
fn whole(text: &[u8]) -> Option<i128> {
    const DIGITS_MAX: usize = 20;
    let text = std::str::from_utf8(text).ok()?;
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (integer, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some((integer, fraction)) => (integer, fraction),
        None => (mantissa, ""),
    };
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let has_leading_zero = integer.len() > 1 && integer.starts_with('0');
    if integer.is_empty() || has_leading_zero || !all_digits(integer) || !all_digits(fraction) {
        return None;
    }
    let integer = if integer == "0" { "" } else { integer };
    let fraction = fraction.trim_end_matches('0');
    if integer.is_empty() && fraction.is_empty() {
        return Some(0);
    }
    let digits = match usize::try_from(exponent) {
        Ok(exponent) => {
            let zeros = exponent.checked_sub(fraction.len())?;
            if integer.len().checked_add(exponent)? > DIGITS_MAX && exponent > 0 {
                return None;
            }
            format!("{integer}{fraction}{}", "0".repeat(zeros))
        }
        Err(_) => {
            let kept = integer.len().checked_sub(usize::try_from(exponent.unsigned_abs()).ok()?)?;
            let (kept, dropped) = integer.split_at(kept);
            if !fraction.is_empty() || dropped.bytes().any(|digit| digit != b'0') {
                return None;
            }
            kept.to_owned()
        }
    };
    let number = digits.parse::<i128>().ok()?;
    Some(if is_negative { -number } else { number })
}

/// Base64 as Go reads it: line breaks are not looked at, and a text whose length is no multiple of four has no padding.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    const fn engine(alphabet: &alphabet::Alphabet, is_padded: bool) -> GeneralPurpose {
        let mode = match is_padded {
            true => DecodePaddingMode::RequireCanonical,
            false => DecodePaddingMode::RequireNone,
        };
        let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        GeneralPurpose::new(alphabet, config.with_decode_padding_mode(mode))
    }
    const STANDARD: [GeneralPurpose; 2] =
        [engine(&alphabet::STANDARD, false), engine(&alphabet::STANDARD, true)];
    const URL: [GeneralPurpose; 2] = [engine(&alphabet::URL_SAFE, false), engine(&alphabet::URL_SAFE, true)];
    let engines = if text.contains(['-', '_']) { &URL } else { &STANDARD };
    let engine = &engines[usize::from(text.len().is_multiple_of(4))];
    if !text.contains(['\r', '\n']) {
        return engine.decode(text).ok();
    }
    let letters: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    engine.decode(letters).ok()
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double => "double",
        Kind::Float => "float",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Uint32 => "uint32",
        Kind::Uint64 => "uint64",
        Kind::Sint32 => "sint32",
        Kind::Sint64 => "sint64",
        Kind::Fixed32 => "fixed32",
        Kind::Fixed64 => "fixed64",
        Kind::Sfixed32 => "sfixed32",
        Kind::Sfixed64 => "sfixed64",
        Kind::Bool => "bool",
        Kind::String => "string",
        Kind::Bytes => "bytes",
        Kind::Message(_) => "message",
        Kind::Enum(_) => "enum",
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::encode;
    use super::super::routes::descriptors;
    use super::*;
    use prost_reflect::prost::Message;

    fn read(kind: &str, json: &str) -> Result<String, String> {
        let kind = descriptors().get_message_by_name(kind).expect("a message of etcd's");
        let message = decode(&kind, json.as_bytes())?;
        Ok(String::from_utf8(encode(&kind, message.encode_to_vec().into()).expect("just encoded"))
            .expect("JSON is text"))
    }

    fn range(json: &str) -> Result<String, String> {
        read("etcdserverpb.RangeRequest", json)
    }

    #[test]
    fn fields_are_read_in_every_form_that_go_takes() {
        for (json, expected) in [
            ("{}", "{}"),
            (r#"{"range_end":"AA==","rangeEnd2":[{"x":[1,"]"]}]}"#, r#"{"range_end":"AA=="}"#),
            (r#"{"rangeEnd":"AA"}"#, r#"{"range_end":"AA=="}"#),
            (r#"{"key":"-_8="}"#, r#"{"key":"+/8="}"#),
            (r#"{"key":"Zm9\nv\r\n"}"#, r#"{"key":"Zm9v"}"#),
            (r#"{"key":"\u005am9v"}"#, r#"{"key":"Zm9v"}"#),
            (r#"{"key":null,"limit":null}"#, "{}"),
            (r#"{"limit":"12"}"#, r#"{"limit":"12"}"#),
            (r#"{"limit":1.50e2}"#, r#"{"limit":"150"}"#),
            (r#"{"limit":"100e-2"}"#, r#"{"limit":"1"}"#),
            (r#"{"limit":"12 34"}"#, r#"{"limit":"12"}"#),
            (r#"{"limit":-0}"#, "{}"),
            (r#"{"limit":-9223372036854775808}"#, r#"{"limit":"-9223372036854775808"}"#),
            (
                r#"{"sort_order":"DESCEND","sortTarget":2}"#,
                r#"{"sort_order":"DESCEND","sort_target":"CREATE"}"#,
            ),
            (r#"{"sort_order":1.0}"#, r#"{"sort_order":"ASCEND"}"#),
            (r#"{"sort_order":17}"#, r#"{"sort_order":17}"#),
            (r#"{"sort_order":"SIDEWAYS"}"#, "{}"),
            (r#"{"serializable":true,"keys_only":false}"#, r#"{"serializable":true}"#),
        ] {
            assert_eq!(range(json).as_deref(), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_go_refuses_has_its_text() {
        for (json, expected) in [
            (r#"{"key":5}"#, "proto: (line 1:8): invalid value for bytes field key: 5"),
            (r#"{"key":"Zg="}"#, r#"proto: (line 1:8): invalid value for bytes field key: "Zg=""#),
            (r#"{"key":"-/8="}"#, r#"proto: (line 1:8): invalid value for bytes field key: "-/8=""#),
            (r#"{"key":"Zg==\n"}"#, r#"proto: (line 1:8): invalid value for bytes field key: "Zg==\n""#),
            (r#"{"limit":1.5}"#, "proto: (line 1:10): invalid value for int64 field limit: 1.5"),
            (r#"{"limit":" 1"}"#, r#"proto: (line 1:10): invalid value for int64 field limit: " 1""#),
            (r#"{"limit":""}"#, r#"proto: (line 1:10): invalid value for int64 field limit: """#),
            (r#"{"limit":"01"}"#, r#"proto: (line 1:10): invalid value for int64 field limit: "01""#),
            (r#"{"limit":1e21}"#, "proto: (line 1:10): invalid value for int64 field limit: 1e21"),
            (
                r#"{"limit":9223372036854775808}"#,
                "proto: (line 1:10): invalid value for int64 field limit: 9223372036854775808",
            ),
            (r#"{"limit":true}"#, "proto: (line 1:10): invalid value for int64 field limit: true"),
            (r#"{"limit":{}}"#, "proto: (line 1:10): invalid value for int64 field limit: {"),
            (
                r#"{"serializable":"true"}"#,
                r#"proto: (line 1:17): invalid value for bool field serializable: "true""#,
            ),
            (r#"{"range_end":1}"#, "proto: (line 1:14): invalid value for bytes field rangeEnd: 1"),
            (
                "{\"a\":1,\n \"é\":2, \"limit\":[]}",
                "proto: (line 2:17): invalid value for int64 field limit: [",
            ),
            (r#"{"key":"","key":""}"#, r#"proto: (line 1:11): duplicate field "key""#),
            (r#"{"range_end":"","rangeEnd":""}"#, r#"proto: (line 1:17): duplicate field "rangeEnd""#),
            ("null", "proto: syntax error (line 1:1): unexpected token null"),
            ("[]", "proto: syntax error (line 1:1): unexpected token ["),
            (r#"{"x":"\ud800"}"#, "proto: unexpected EOF"),
            (
                r#"{"x":"\ud800","y":1}"#,
                r#"proto: syntax error (line 1:6): invalid escape code "\",\"y\":" in string"#,
            ),
        ] {
            assert_eq!(range(json).unwrap_err(), expected, "{json}");
        }
        let not_text = decode(
            &descriptors().get_message_by_name("etcdserverpb.RangeRequest").expect("a message"),
            b"{\"x\":\"\xff\"}",
        );
        assert_eq!(
            not_text.err().as_deref(),
            Some("proto: syntax error (line 1:6): invalid UTF-8 in string")
        );
        assert_eq!(
            read("etcdserverpb.RequestOp", r#"{"request_put":{},"request_range":{}}"#).unwrap_err(),
            r#"proto: (line 1:19): error parsing "request_range", oneof etcdserverpb.RequestOp.request is already set"#
        );
        assert_eq!(
            read("etcdserverpb.TxnRequest", r#"{"compare":{}}"#).unwrap_err(),
            "proto: syntax error (line 1:12): unexpected token {"
        );
        assert_eq!(
            read("etcdserverpb.TxnRequest", r#"{"compare":[null]}"#).unwrap_err(),
            "proto: syntax error (line 1:13): unexpected token null"
        );
    }

    #[test]
    fn a_member_of_a_union_counts_even_if_it_is_zero() {
        let compare = r#"{"target":"VALUE","key":"YQ==","version":"0"}"#;
        assert_eq!(read("etcdserverpb.Compare", compare).as_deref(), Ok(compare));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |levels: usize| {
            let open = r#"{"success":[{"request_txn":"#.repeat(levels);
            format!("{open}{{}}{}", "}]}".repeat(levels))
        };
        assert!(read("etcdserverpb.TxnRequest", &nested(49)).is_ok());
        assert_eq!(
            read("etcdserverpb.TxnRequest", &nested(50)).unwrap_err(),
            "proto: exceeded max recursion depth"
        );
    }

    /// What the reader leaves out because no message of etcd's has it.
    #[test]
    fn messages_have_neither_maps_nor_fractions_nor_foreign_types() {
        for kind in descriptors().all_messages() {
            let package = kind.package_name().to_owned();
            if package.starts_with("google") || kind.is_map_entry() {
                continue;
            }
            for field in kind.fields() {
                assert!(!field.is_map() && !matches!(field.kind(), Kind::Double | Kind::Float), "{field:?}");
                if let Kind::Message(inner) = field.kind() {
                    assert!(!inner.package_name().starts_with("google"), "{field:?}");
                }
            }
        }
    }
}
