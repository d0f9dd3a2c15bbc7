//! Rules about single source files: module documents, unsafe code, unfinished code, length.
use super::tokens::{Token, TokenKind};
use super::{Checkout, Finding, SourceFile};

/// Parts of the tree whose every file opens with a module document.
const DOCUMENTED: &[&str] = &[
    "engine/src/",
    "replication/src/",
    "server/src/",
    "tools/src/",
    "fuzz/src/",
    "benches/compare/src/",
    "benches/engines/src/",
    "benches/store/src/",
    "benches/wal/src/",
];

/// The rooms that may hold unsafe code. A third one needs a decision record.
const UNSAFE_ROOMS: &[&str] = &["engine/src/io/", "engine/src/memtable/"];

/// Files outside of the product that call what a library offers in no other way.
const UNSAFE_CALLERS: &[&str] = &["benches/engines/src/peers/lmdb.rs"];

/// Macros that mark unfinished or forgotten code.
const UNFINISHED_MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// A file longer than this needs a seam, or a row in [`LONG_FILES`].
const FILE_LINES_MAX: usize = 1_000;

/// Files that may be longer, each with the reason why it has no seam.
const LONG_FILES: &[(&str, &str)] = &[];

/// Adds what is wrong with single files.
pub fn check(checkout: &Checkout, findings: &mut Vec<Finding>) {
    for source in &checkout.sources {
        check_module_document(source, findings);
        check_tokens(source, findings);
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(path, _)| *path == source.path) {
            let what = format!(
                "{lines} lines: look for a seam, or add a row with the reason to LONG_FILES in tools/src/tidy/sources.rs"
            );
            findings.push(finding(source, lines, what));
        }
    }
    for (path, _) in LONG_FILES {
        let lines = checkout.sources.iter().find(|s| s.path == *path).map_or(0, |s| s.text.lines().count());
        if lines <= FILE_LINES_MAX {
            let what = format!("{path} is no longer long: remove its row from LONG_FILES");
            findings.push(Finding { file: "tools/src/tidy/sources.rs".to_owned(), line: 1, what });
        }
    }
}

fn check_module_document(source: &SourceFile, findings: &mut Vec<Finding>) {
    let is_documented = DOCUMENTED.iter().any(|part| source.path.starts_with(part));
    let opens_with_document = source.tokens.first().is_some_and(|token| token.kind == TokenKind::InnerDoc);
    if is_documented && !opens_with_document {
        findings.push(finding(source, 1, "the file does not open with a module document (`//!`)".to_owned()));
    }
}

fn check_tokens(source: &SourceFile, findings: &mut Vec<Finding>) {
    let code: Vec<&Token> = source
        .tokens
        .iter()
        .filter(|token| !matches!(token.kind, TokenKind::Comment | TokenKind::InnerDoc))
        .collect();
    let is_unsafe_room = UNSAFE_ROOMS.iter().any(|room| source.path.starts_with(room))
        || UNSAFE_CALLERS.contains(&source.path.as_str());
    for (at, token) in code.iter().enumerate() {
        let next_is = |offset: usize, mark: &str| code.get(at + offset).is_some_and(|t| t.is_mark(mark));
        if token.is_word("unsafe") && !is_unsafe_room {
            let what = format!("unsafe code outside of {}", UNSAFE_ROOMS.join(" and "));
            findings.push(finding(source, token.line, what));
        }
        if UNFINISHED_MACROS.iter().any(|name| token.is_word(name)) && next_is(1, "!") {
            findings.push(finding(source, token.line, format!("{}! is not for code that lands", token.text)));
        }
        if token.is_mark("#") && next_is(1, "[") && code.get(at + 2).is_some_and(|t| t.is_word("ignore")) {
            let what = "an ignored test: assert today's behaviour and say why it is wrong".to_owned();
            findings.push(finding(source, token.line, what));
        }
    }
}

fn finding(source: &SourceFile, line: usize, what: String) -> Finding {
    Finding { file: source.path.clone(), line, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        let checkout =
            Checkout { root: ".".into(), sources: vec![SourceFile::new(path, text)], documents: Vec::new() };
        let mut findings = Vec::new();
        check(&checkout, &mut findings);
        findings.len()
    }

    #[test]
    fn each_planted_fault_is_found() {
        assert_eq!(count("engine/src/wal.rs", "// not a module document\n//! x"), 1);
        assert_eq!(count("engine/src/wal.rs", "//! x\nunsafe { y() }"), 1);
        assert_eq!(count("engine/src/wal.rs", "//! x\nfn f() { todo!() }"), 1);
        assert_eq!(count("engine/tests/wal.rs", "#[ignore] fn f() {}"), 1);
        assert_eq!(count("engine/tests/wal.rs", "#[ignore = \"slow\"] fn f() { unimplemented!() }"), 2);
        assert_eq!(count("engine/tests/wal.rs", &"\n".repeat(FILE_LINES_MAX + 1)), 1);
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        assert_eq!(count("engine/src/io/ring.rs", "//! x\nunsafe { y() }"), 0);
        assert_eq!(count("engine/src/memtable/arena.rs", "//! x\nunsafe impl Send for A {}"), 0);
        assert_eq!(count("engine/src/lib.rs", "//! unsafe, todo!()\n#![deny(unsafe_code)]"), 0);
        assert_eq!(count("engine/tests/wal.rs", "fn todo() { f(\"dbg!\") }"), 0);
    }
}
