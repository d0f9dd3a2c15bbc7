//! JSON out of a message, as Go's `protojson` writes it with etcd's options.
//!
//! **Contract.** Fields have the names of the proto file and come in its order, zero ones are left out; 64-bit integers are strings, bytes
//! are standard base64 with padding, enums are names, or numbers where there is no name. Nothing stands between the tokens. (Go puts a
//! space after each comma in one build out of two, so that nobody compares; etcd's streams have none.)
//!
//! **Why prost-reflect**: it writes exactly this. It goes by the numbers of fields and Go by their order in the file, which for every
//! message that is answered is the same order; a test says so.
use bytes::Bytes;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

/// The JSON of an encoded message of this kind.
///
/// # Errors
/// Internal: a service has answered with something else.
pub fn encode(kind: &MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Status> {
    let wrong = |error: &dyn std::fmt::Display| {
        Status::internal(format!("the answer cannot be written as JSON: {error}"))
    };
    let message = DynamicMessage::decode(kind.clone(), message).map_err(|error| wrong(&error))?;
    let mut json = Vec::new();
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)
        .map_err(|error| wrong(&error))?;
    Ok(json)
}

/// The JSON of an error; one without a text or details has just its code.
pub fn encode_status(status: &Status) -> Vec<u8> {
    let code = i32::from(status.code());
    match status.message() {
        "" => format!("{{\"code\":{code}}}"),
        text => format!("{{\"code\":{code},\"message\":{}}}", serde_json::Value::from(text)),
    }
    .into_bytes()
}

/// One line of a stream: `{"result":…}` or `{"error":…}`. Go's encoder for what is no message puts it around, and has HTML in mind.
pub fn line(name: &str, json: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(json.len() + name.len() + 8);
    line.extend_from_slice(b"{\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
    let mut rest = json;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2)) {
        let (plain, from) = rest.split_at(at);
        line.extend_from_slice(plain);
        let (escape, length): (&[u8], usize) = match from {
            [b'<', ..] => (b"\\u003c", 1),
            [b'>', ..] => (b"\\u003e", 1),
            [b'&', ..] => (b"\\u0026", 1),
            [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
            [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
            _ => (b"\xe2", 1),
        };
        line.extend_from_slice(escape);
        rest = from.get(length..).unwrap_or_default();
    }
    line.extend_from_slice(rest);
    line.extend_from_slice(b"}\n");
    line.into()
}

#[cfg(test)]
mod tests {
    use super::super::routes::{descriptors, routes};
    use super::*;
    use prost_reflect::Kind;
    use std::collections::BTreeSet;

    #[test]
    fn lines_are_safe_within_html() {
        assert_eq!(
            line("error", "\"<a & b>\u{2028}\u{2029}\u{20ac}é\"".as_bytes()),
            "{\"error\":\"\\u003ca \\u0026 b\\u003e\\u2028\\u2029\u{20ac}é\"}\n".as_bytes()
        );
    }

    #[test]
    fn errors_have_code_and_text() {
        assert_eq!(
            encode_status(&Status::not_found("a \"b\" \u{1}\u{8}\n<")),
            br#"{"code":5,"message":"a \"b\" \u0001\b\n<"}"#
        );
        assert_eq!(encode_status(&Status::unknown("")), br#"{"code":2}"#);
    }

    /// The encoder goes by numbers, Go by the order in the file.
    #[test]
    fn fields_of_answers_are_declared_in_the_order_of_their_numbers() {
        let mut waiting: Vec<MessageDescriptor> =
            routes().values().map(|route| route.output.clone()).collect();
        let mut seen = BTreeSet::new();
        while let Some(kind) = waiting.pop() {
            if !seen.insert(kind.full_name().to_owned()) {
                continue;
            }
            let declared =
                kind.descriptor_proto().field.iter().map(|field| field.number()).collect::<Vec<_>>();
            assert!(declared.is_sorted(), "{}: {declared:?}", kind.full_name());
            waiting.extend(kind.fields().filter_map(|field| match field.kind() {
                Kind::Message(inner) => Some(inner),
                _ => None,
            }));
        }
        assert!(seen.len() > 40 && descriptors().services().count() > 6);
    }
}
