//! Rust source text as tokens: identifiers, strings, comments and single punctuation marks, each with its line.
//!
//! Enough of the language to tell code from text: nested block comments, raw and byte strings, character literals
//! against lifetimes. Numbers come out as identifiers; nothing here reads them. Never fails: text that is not Rust
//! gives some tokens.

/// What a token is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TokenKind {
    /// An identifier, a keyword or a number.
    Word,
    /// A string literal of any sort; the text is what stands between the quotes, escapes unread.
    Text,
    /// A `//!` or `/*! */` comment.
    InnerDoc,
    /// Any other comment.
    Comment,
    /// One punctuation mark, or `::`.
    Mark,
    /// A character literal or a lifetime.
    Tick,
}

/// One token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Its text; of comments without the leading slashes.
    pub text: String,
    /// Where it starts, from 1.
    pub line: usize,
}

impl Token {
    /// True for this punctuation mark.
    pub fn is_mark(&self, mark: &str) -> bool {
        self.kind == TokenKind::Mark && self.text == mark
    }

    /// True for this identifier or keyword.
    pub fn is_word(&self, word: &str) -> bool {
        self.kind == TokenKind::Word && self.text == word
    }
}

/// Splits `source` into tokens.
pub fn tokenize(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { rest: source, line: 1, tokens: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.step();
    }
    lexer.tokens
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn step(&mut self) {
        let rest = self.rest;
        let first = rest.chars().next().expect("step is called on non-empty text");
        if first.is_whitespace() {
            self.take(first.len_utf8());
        } else if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            let kind = if rest.starts_with("//!") { TokenKind::InnerDoc } else { TokenKind::Comment };
            let text = rest[..end].trim_start_matches('/').trim_start_matches('!');
            self.push(kind, text, end);
        } else if rest.starts_with("/*") {
            let end = block_comment_end(rest);
            let kind = if rest.starts_with("/*!") { TokenKind::InnerDoc } else { TokenKind::Comment };
            self.push(kind, &rest[2..end.max(4) - 2], end);
        } else if let Some((text, end)) = string_literal(rest) {
            self.push(TokenKind::Text, text, end);
        } else if first == '\'' {
            let end = tick_end(rest);
            self.push(TokenKind::Tick, &rest[1..end], end);
        } else if is_word_character(first) {
            let end = rest.find(|c| !is_word_character(c)).unwrap_or(rest.len());
            self.push(TokenKind::Word, &rest[..end], end);
        } else {
            let end = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            self.push(TokenKind::Mark, &rest[..end], end);
        }
    }

    fn push(&mut self, kind: TokenKind, text: &str, end: usize) {
        self.tokens.push(Token { kind, text: text.to_owned(), line: self.line });
        self.take(end);
    }

    fn take(&mut self, end: usize) {
        let (taken, rest) = self.rest.split_at(end);
        self.line += taken.matches('\n').count();
        self.rest = rest;
    }
}

fn is_word_character(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_end(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The text and the end of a string literal at the start of `rest`: plain, byte, C, each also raw.
fn string_literal(rest: &str) -> Option<(&str, usize)> {
    let prefix = ["br", "cr", "b", "c", "r"].into_iter().find(|prefix| {
        let after = &rest.strip_prefix(prefix);
        after.is_some_and(|after| {
            after.starts_with('"')
                || (prefix.ends_with('r') && after.trim_start_matches('#').starts_with('"'))
        })
    });
    let prefix = prefix.unwrap_or("");
    let after = &rest[prefix.len()..];
    let hashes = if prefix.ends_with('r') { after.len() - after.trim_start_matches('#').len() } else { 0 };
    let start = prefix.len() + hashes + 1;
    if !after[hashes..].starts_with('"') {
        return None;
    }
    let body = &rest[start..];
    if prefix.ends_with('r') {
        let close = format!("\"{}", "#".repeat(hashes));
        let length = body.find(&close).unwrap_or(body.len());
        return Some((&body[..length], (start + length + close.len()).min(rest.len())));
    }
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((&body[..at], start + at + 1)),
            _ => {}
        }
    }
    Some((body, rest.len()))
}

/// The end of a lifetime or a character literal that starts at the tick.
fn tick_end(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    let Some((_, first)) = characters.next() else { return rest.len() };
    if first == '\\' {
        characters.next();
        return characters.find(|(_, c)| *c == '\'').map_or(rest.len(), |(at, _)| at + 1);
    }
    match characters.next() {
        Some((at, '\'')) => at + 1,
        _ => 1 + rest[1..].find(|c| !is_word_character(c)).unwrap_or(rest.len() - 1).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str, kind: &TokenKind) -> Vec<String> {
        tokenize(source).into_iter().filter(|token| &token.kind == kind).map(|token| token.text).collect()
    }

    #[test]
    fn words_in_comments_and_strings_are_not_words() {
        let source =
            "fn a() { b(\"unsafe \\\" x\", r#\"todo!\"#, 'u'); } // unsafe\n/* a /* unsafe */ b */ c";
        assert_eq!(texts(source, &TokenKind::Word), ["fn", "a", "b", "c"]);
        assert_eq!(texts(source, &TokenKind::Text), ["unsafe \\\" x", "todo!"]);
    }

    #[test]
    fn a_lifetime_does_not_swallow_what_follows() {
        assert_eq!(texts("impl<'a> X<'a> { '\\'' '\"' y }", &TokenKind::Word), ["impl", "X", "y"]);
    }

    #[test]
    fn lines_count_through_strings_and_comments() {
        let tokens = tokenize("\"a\nb\" /*\n*/ x");
        assert_eq!(tokens.last().map(|token| token.line), Some(3));
    }

    #[test]
    fn text_that_ends_anywhere_gives_tokens() {
        let source = "r#\"a\"# b'\\x00' \"b\\\"\" /* c */ 'd 'e' // f";
        for cut in 0..=source.len() {
            tokenize(&source[..cut]);
        }
    }
}
