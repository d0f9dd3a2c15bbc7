//! Go's quoted strings: what etcdctl prints with `%q` and what its `txn` and `watch -i` read.
//!
//! Source: the string literals of the Go language specification, section "String literals".

/// `bytes` in double quotes, escaped as Go's `%q`: printable characters as they are, others as `\n`, `\x00`, `\u00a0`.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            quote_character(c, &mut out);
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn quote_character(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if (c as u32) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
        c if c.is_control() || (c.is_whitespace() && c != ' ') => {
            out.push_str(&format!("\\u{:04x}", c as u32))
        }
        c => out.push(c),
    }
}

/// Reads one quoted string from the front of `text` and returns its bytes and the rest. Double quotes with escapes,
/// or backquotes without.
pub(crate) fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (body, rest) = raw.split_once('`')?;
        return Some((body.as_bytes().to_vec(), rest));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut out = Vec::new();
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((out, rest)),
            '\n' => return None,
            '\\' => rest = unescape(rest, &mut out)?,
            c => push_character(c, &mut out),
        }
    }
}

fn unescape<'a>(text: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let c = text.chars().next()?;
    let rest = &text[c.len_utf8()..];
    let number = |digits: usize, radix: u32, from: &'a str| -> Option<(u32, &'a str)> {
        let digits_text = from.get(..digits)?;
        let is_number = digits_text.chars().all(|c| c.is_digit(radix));
        is_number.then(|| Some((u32::from_str_radix(digits_text, radix).ok()?, &from[digits..])))?
    };
    let byte = match c {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '"' => c as u8,
        'x' => {
            let (value, rest) = number(2, 16, rest)?;
            out.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        'u' | 'U' => {
            let (value, rest) = number(if c == 'u' { 4 } else { 8 }, 16, rest)?;
            push_character(char::from_u32(value)?, out);
            return Some(rest);
        }
        '0'..='7' => {
            let (value, rest) = number(3, 8, text)?;
            out.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        _ => return None,
    };
    out.push(byte);
    Some(rest)
}

fn push_character(c: char, out: &mut Vec<u8>) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Splits a line into words as etcdctl does: `"…"` with escapes, `'…'` without, and runs without space.
pub(crate) fn split_words(line: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = if first == '"' {
            unquote(rest).ok_or_else(|| format!("bad quoted string in: {line}"))?
        } else if let Some((word, after)) = rest.strip_prefix('\'').and_then(|rest| rest.split_once('\'')) {
            (word.as_bytes().to_vec(), after)
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            (rest.as_bytes()[..end].to_vec(), &rest[end..])
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_quoted_is_unquoted() {
        for bytes in
            [&b"plain"[..], b"a\"b\\c\n\t\x00\x7f", b"\xff\xfe\x80", "häß\u{a0}\u{1f600}".as_bytes(), b""]
        {
            let quoted = quote(bytes);
            assert_eq!(unquote(&quoted), Some((bytes.to_vec(), "")), "{quoted}");
        }
        assert_eq!(quote(b"\xffa\n\x01"), r#""\xffa\n\x01""#);
    }

    #[test]
    fn both_sorts_of_quotes_and_all_escapes_are_read() {
        assert_eq!(unquote(r#""\x41\102\u00e9\a" x"#), Some(("AB\u{e9}\x07".as_bytes().to_vec(), " x")));
        assert_eq!(unquote("`a\\n` y"), Some((b"a\\n".to_vec(), " y")));
        for bad in ["", "a", "\"a", "\"\\q\"", "\"\\x4\"", "\"\\400\"", "\"\\ud800\"", "`a"] {
            assert_eq!(unquote(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_line_is_split_as_etcdctl_splits_it() {
        let words = split_words(r#"put key1 "some \"extra\" value" 'a b' --prev-kv"#).unwrap();
        assert_eq!(words, [&b"put"[..], b"key1", b"some \"extra\" value", b"a b", b"--prev-kv"]);
        assert!(split_words("put \"a").is_err());
        assert_eq!(split_words("it's").unwrap(), [b"it's"]);
    }
}
