//! Protobuf messages as lines that read like the documentation of a request, by reflection: one form for every message.
//!
//! **Layout.** A message is a line of `field=value` words; below it, indented by two, one line per field that is itself a
//! message:
//!
//! ```text
//! Txn                                          header revision=4
//!   compare key="a" target=VALUE value="1"     succeeded
//!   success put key="a" value="2"              responses put
//!   failure range key="a"                        header revision=4 ids=none
//! ```
//!
//! - Fields have etcd's names. A zero field is not printed, as it is not on the wire.
//! - `flag` is `flag=true`. Bytes and strings are quoted; `"x"*1000` is a thousand times x. `[1, 2]` repeats a field.
//! - A bare word that names a message field goes down into it: `success put` is `success` with `request_put` inside; the
//!   prefixes `request_` and `response_` of etcd's unions may be left out, and are left out.
//! - `header revision=4` stands for a header with the server's own cluster id, member id and term; other ids are shown.
//!   `no header` says that a response which has such a field came without it.
//! - `$name` is an id that the server drew and an earlier step gave a name.
//!
//! **Does not know** what a request does, or where it is sent.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};

/// Longer bytes are printed as a repetition or by length and checksum.
const BYTES_PRINTED_MAX: usize = 120;
/// Ids are drawn from 63 bits; a smaller number that happens to equal a named id is just a number.
const NAMED_ID_MIN: u64 = 1 << 32;

/// What a printed answer leaves out because it differs from run to run.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Ids by name, without the `$`.
    pub ids: BTreeMap<String, u64>,
    /// Texts by name, without the `$`.
    pub texts: BTreeMap<String, String>,
    /// The server's cluster id, member id and term.
    pub header: (u64, u64, u64),
    /// The server's own URL, printed as `$endpoint`.
    pub endpoint: String,
    /// Fields whose value is printed as `_`.
    pub any: BTreeSet<String>,
}

/// One line of a request: its words, and the lines indented below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The words, quotes and brackets kept whole.
    pub words: Vec<String>,
    /// The indented lines below.
    pub below: Vec<Line>,
}

/// Lines from text whose nesting is told by indentation.
pub fn parse_lines(text: &[String]) -> Result<Vec<Line>, String> {
    let mut rest = text;
    let lines = lines_at_least(&mut rest, 0)?;
    assert!(rest.is_empty());
    Ok(lines)
}

fn lines_at_least(rest: &mut &[String], indent: usize) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    while let Some((first, after)) = rest.split_first() {
        let own = first.len() - first.trim_start().len();
        if own < indent {
            break;
        }
        if own > indent {
            let parent = lines.last_mut().ok_or_else(|| format!("indented too far: {first}"))?;
            parent.below = lines_at_least(rest, own)?;
            continue;
        }
        *rest = after;
        lines.push(Line { words: words(first)?, below: Vec::new() });
    }
    Ok(lines)
}

fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let (mut quoted, mut escaped, mut brackets) = (false, false, 0_u32);
    for letter in line.chars() {
        if letter == ' ' && !quoted && brackets == 0 {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(letter);
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '[' if !quoted => brackets += 1,
            ']' if !quoted => brackets = brackets.checked_sub(1).ok_or("a ] without its [")?,
            _ => {}
        }
    }
    if quoted || brackets > 0 {
        return Err(format!("a quote or bracket is left open: {line}"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// The message that the words and the lines below them describe.
pub fn read_message(
    kind: &MessageDescriptor,
    words: &[String],
    below: &[Line],
    names: &Names,
) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(kind.clone());
    for (at, word) in words.iter().enumerate() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), None),
        };
        let field = field_named(kind, name)?;
        match (field.kind(), value) {
            (Kind::Message(inner), None) => {
                // The rest of the line, and what is below, belongs to the inner message.
                let inner = read_message(&inner, &words[at + 1..], below, names)?;
                put_field(&mut message, &field, Value::Message(inner));
                return Ok(message);
            }
            (Kind::Bool, None) => message.set_field(&field, Value::Bool(true)),
            (_, None) => return Err(format!("{name} needs a value")),
            (_, Some(value)) if field.is_list() => {
                let items = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
                for item in items
                    .ok_or_else(|| format!("{name} is a list"))?
                    .split(", ")
                    .filter(|item| !item.is_empty())
                {
                    put_field(&mut message, &field, read_value(&field.kind(), item, names)?);
                }
            }
            (kind, Some(value)) => message.set_field(&field, read_value(&kind, value, names)?),
        }
    }
    for line in below {
        let (name, rest) = line.words.split_first().ok_or("an empty line")?;
        let field = field_named(kind, name)?;
        let Kind::Message(inner) = field.kind() else { return Err(format!("{name} holds no message")) };
        let inner = read_message(&inner, rest, &line.below, names)?;
        put_field(&mut message, &field, Value::Message(inner));
    }
    Ok(message)
}

fn put_field(message: &mut DynamicMessage, field: &FieldDescriptor, value: Value) {
    if field.is_list() {
        let Value::List(list) = message.get_field_mut(field) else { unreachable!("the field is a list") };
        list.push(value);
    } else {
        message.set_field(field, value);
    }
}

fn field_named(kind: &MessageDescriptor, name: &str) -> Result<FieldDescriptor, String> {
    kind.get_field_by_name(name)
        .or_else(|| kind.get_field_by_name(&format!("request_{name}")))
        .or_else(|| kind.get_field_by_name(&format!("{name}_request")))
        .ok_or_else(|| format!("{} has no field {name}", kind.name()))
}

fn read_value(kind: &Kind, text: &str, names: &Names) -> Result<Value, String> {
    let number = || -> Result<i64, String> {
        if let Some(name) = text.strip_prefix('$') {
            let id = names.ids.get(name).ok_or_else(|| format!("nothing is named ${name} yet"))?;
            return Ok(id.cast_signed());
        }
        text.parse::<i64>()
            .or_else(|_| text.parse::<u64>().map(u64::cast_signed))
            .map_err(|_| format!("not a number: {text}"))
    };
    let small = |_| format!("too large: {text}");
    Ok(match kind {
        Kind::Bool => Value::Bool(text == "true"),
        Kind::Int64 => Value::I64(number()?),
        Kind::Uint64 => Value::U64(number()?.cast_unsigned()),
        Kind::Int32 => Value::I32(number()?.try_into().map_err(small)?),
        Kind::Uint32 => Value::U32(number()?.try_into().map_err(small)?),
        Kind::Enum(kind) => Value::EnumNumber(match kind.get_value_by_name(text) {
            Some(value) => value.number(),
            None => number()?.try_into().map_err(small)?,
        }),
        Kind::Bytes => Value::Bytes(Bytes::from(read_bytes(text, names)?)),
        Kind::String => {
            Value::String(String::from_utf8(read_bytes(text, names)?).map_err(|error| error.to_string())?)
        }
        other => return Err(format!("no text form for {other:?}")),
    })
}

/// `"text"`, with the escapes of a Rust byte string, or `"text"*count`; `$endpoint` inside stands for the server's URL.
pub fn read_bytes(text: &str, names: &Names) -> Result<Vec<u8>, String> {
    let body = text.strip_prefix('"').ok_or_else(|| format!("not quoted: {text}"))?;
    let (body, after) = body.rsplit_once('"').ok_or_else(|| format!("not quoted: {text}"))?;
    let times = match after.strip_prefix('*') {
        Some(count) => count.parse().map_err(|_| format!("not a count: {after}"))?,
        None if after.is_empty() => 1,
        None => return Err(format!("after the quote: {after}")),
    };
    let mut body = body.replace("$endpoint", &names.endpoint);
    for (name, text) in &names.texts {
        body = body.replace(&format!("${name}"), text);
    }
    let mut bytes = Vec::new();
    let mut letters = body.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            bytes.extend(letter.to_string().as_bytes());
            continue;
        }
        bytes.push(match letters.next() {
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('x') => {
                let digits: String = letters.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).map_err(|_| format!("not a byte: \\x{digits}"))?
            }
            Some(other @ ('"' | '\\' | '\'')) => other as u8,
            other => return Err(format!("no such escape: {other:?}")),
        });
    }
    Ok(bytes.repeat(times))
}

/// The lines of a message, the outermost one of an answer.
pub fn print_answer(message: &DynamicMessage, names: &Names) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(field) = message.descriptor().get_field_by_name("header") {
        match message.has_field(&field).then(|| message.get_field(&field).into_owned()) {
            Some(Value::Message(header)) => lines.push(print_header(&header, names)),
            _ => lines.push("no header".to_owned()),
        }
    }
    let words = scalar_words(message, names);
    if !words.is_empty() {
        lines.push(words.join(" "));
    }
    print_inner(message, names, 0, true, &mut lines);
    if lines.is_empty() {
        lines.push("empty".to_owned());
    }
    lines
}

/// A message on one line, with what it holds below it: the form of everything that is not outermost.
pub fn print_under(
    head: &str,
    message: &DynamicMessage,
    names: &Names,
    indent: usize,
    lines: &mut Vec<String>,
) {
    let mut line = format!("{:indent$}{head}", "");
    // A union prints as the member that is set, on the same line.
    let mut message = message.clone();
    while let Some((name, inner)) = only_union_member(&message) {
        line.push(' ');
        line.push_str(&name);
        message = inner;
    }
    for word in scalar_words(&message, names) {
        line.push(' ');
        line.push_str(&word);
    }
    lines.push(line);
    print_inner(&message, names, indent + 2, false, lines);
}

fn print_inner(
    message: &DynamicMessage,
    names: &Names,
    indent: usize,
    outermost: bool,
    lines: &mut Vec<String>,
) {
    for (field, value) in message.fields() {
        match value {
            // The outermost header has been printed before everything else.
            Value::Message(_) if outermost && field.name() == "header" => {}
            Value::Message(header) if field.name() == "header" => {
                lines.push(format!("{:indent$}{}", "", print_header(header, names)));
            }
            Value::Message(inner) => print_under(field.name(), inner, names, indent, lines),
            Value::List(items) => {
                for item in items {
                    if let Value::Message(inner) = item {
                        print_under(field.name(), inner, names, indent, lines);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The one member of a message that is nothing but a union (RequestOp, ResponseOp).
fn only_union_member(message: &DynamicMessage) -> Option<(String, DynamicMessage)> {
    let kind = message.descriptor();
    if kind.oneofs().count() != 1 || kind.fields().any(|field| field.containing_oneof().is_none()) {
        return None;
    }
    let (field, value) = message.fields().next()?;
    let Value::Message(inner) = value else { return None };
    Some((field.name().trim_start_matches("response_").to_owned(), inner.clone()))
}

fn print_header(header: &DynamicMessage, names: &Names) -> String {
    let number = |name: &str| header.get_field_by_name(name).and_then(|value| value.as_u64()).unwrap_or(0);
    let revision = header.get_field_by_name("revision").and_then(|value| value.as_i64()).unwrap_or(0);
    let ids = (number("cluster_id"), number("member_id"), number("raft_term"));
    let mut line = "header".to_owned();
    if revision != 0 {
        line.push_str(&format!(" revision={revision}"));
    }
    if ids == (0, 0, 0) {
        line.push_str(" ids=none");
    } else if ids != names.header {
        line.push_str(&format!(" cluster_id={} member_id={} raft_term={}", ids.0, ids.1, ids.2));
    }
    line
}

fn scalar_words(message: &DynamicMessage, names: &Names) -> Vec<String> {
    let mut words = Vec::new();
    for (field, value) in message.fields() {
        let printed = match value {
            Value::Message(_) => continue,
            Value::List(items) if items.iter().any(|item| matches!(item, Value::Message(_))) => continue,
            _ if names.any.contains(field.name()) => "_".to_owned(),
            Value::Bool(true) => {
                words.push(field.name().to_owned());
                continue;
            }
            Value::List(items) => {
                let items: Vec<_> = items.iter().map(|item| print_value(&field, item, names)).collect();
                format!("[{}]", items.join(", "))
            }
            value => print_value(&field, value, names),
        };
        words.push(format!("{}={printed}", field.name()));
    }
    words
}

fn print_value(field: &FieldDescriptor, value: &Value, names: &Names) -> String {
    let id = |number: u64| -> Option<String> {
        let (name, _) = names.ids.iter().find(|(_, id)| **id == number && number >= NAMED_ID_MIN)?;
        Some(format!("${name}"))
    };
    match value {
        Value::Bytes(bytes) => print_bytes(bytes),
        Value::String(text) => {
            let mut text = text.replace(&names.endpoint, "$endpoint");
            for (name, named) in &names.texts {
                text = text.replace(named, &format!("${name}"));
            }
            print_bytes(text.as_bytes())
        }
        Value::I64(number) => id(number.cast_unsigned()).unwrap_or_else(|| number.to_string()),
        Value::U64(number) => id(*number).unwrap_or_else(|| number.to_string()),
        Value::I32(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(kind) => {
                kind.get_value(*number).map_or_else(|| number.to_string(), |value| value.name().to_owned())
            }
            _ => number.to_string(),
        },
        other => format!("{other:?}"),
    }
}

/// Bytes as a quoted string that `read_bytes` takes back, unless they are long and irregular.
pub fn print_bytes(bytes: &[u8]) -> String {
    let escape = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|letter| letter.is_control() && letter != '\n') => {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
        }
        _ => format!("\"{}\"", bytes.escape_ascii()),
    };
    match bytes.first() {
        Some(first) if bytes.len() > BYTES_PRINTED_MAX => {
            if bytes.iter().all(|byte| byte == first) {
                format!("{}*{}", escape(&[*first]), bytes.len())
            } else {
                format!("{}...{}", escape(&bytes[..16]), bytes.len())
            }
        }
        _ => escape(bytes),
    }
}
