//! JSON as etcdctl prints it: the fields of a message in the order of its definition, empty ones left out, bytes in
//! base64, numbers as numbers.

/// An object that is being written.
pub(crate) struct Object {
    out: String,
}

impl Object {
    pub(crate) fn new() -> Self {
        Self { out: String::from("{") }
    }

    /// A field whose value is JSON already.
    pub(crate) fn raw(mut self, name: &str, value: &str) -> Self {
        if self.out.len() > 1 {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
        self.out.push_str(value);
        self
    }

    /// A number, left out when it is zero.
    pub(crate) fn number(self, name: &str, value: impl Into<i128>) -> Self {
        let value = value.into();
        if value == 0 { self } else { self.raw(name, &value.to_string()) }
    }

    /// A number, zero or not.
    pub(crate) fn number_always(self, name: &str, value: impl Into<i128>) -> Self {
        self.raw(name, &value.into().to_string())
    }

    /// A truth, left out when false.
    pub(crate) fn truth(self, name: &str, value: bool) -> Self {
        if value { self.raw(name, "true") } else { self }
    }

    /// Bytes in base64, left out when empty.
    pub(crate) fn bytes(self, name: &str, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.raw(name, &base64(value)) }
    }

    /// A text, left out when empty.
    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.raw(name, &text(value)) }
    }

    /// A list, left out when empty.
    pub(crate) fn list(self, name: &str, values: Vec<String>) -> Self {
        if values.is_empty() { self } else { self.raw(name, &list(values)) }
    }

    /// An object, left out when absent.
    pub(crate) fn object(self, name: &str, value: Option<String>) -> Self {
        match value {
            Some(value) => self.raw(name, &value),
            None => self,
        }
    }

    pub(crate) fn end(mut self) -> String {
        self.out.push('}');
        self.out
    }
}

/// A list of JSON values.
pub(crate) fn list(values: Vec<String>) -> String {
    format!("[{}]", values.join(","))
}

/// A JSON string; what HTML would read as markup is escaped, as Go does.
pub(crate) fn text(value: &str) -> String {
    let mut out = serde_json::Value::from(value).to_string();
    for c in ['<', '>', '&', '\u{2028}', '\u{2029}'] {
        if out.contains(c) {
            out = out.replace(c, &format!("\\u{:04x}", u32::from(c)));
        }
    }
    out
}

/// Bytes as a JSON string in base64 (RFC 4648, with padding).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
    out.push('"');
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * position)) as usize & 63];
            out.push(if position <= chunk.len() { digit as char } else { '=' });
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfcs_examples() {
        let examples = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in examples {
            assert_eq!(base64(plain.as_bytes()), format!("\"{coded}\""));
        }
    }

    #[test]
    fn empty_fields_are_left_out() {
        let object = Object::new().number("a", 0_u64).number("b", -1_i64).bytes("c", b"").text("d", "x\"y");
        assert_eq!(object.end(), r#"{"b":-1,"d":"x\"y"}"#);
        assert_eq!(text("a<b>&c"), r#""a\u003cb\u003e\u0026c""#);
    }
}
