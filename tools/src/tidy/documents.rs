//! Rules about documents: what they name exists, and what the code promises is written down.
//!
//! - Every path in backticks in ARCHITECTURE.md exists.
//! - Every invariant id (W1, M2, …) in a crate's `docs/` or in ARCHITECTURE.md is named in some source file; every id
//!   that an assert quotes is explained in a module document or in `docs/`.
//! - Every constant whose name ends in `FORMAT_VERSION` stands in `engine/docs/data_file.md` with its value, as
//!   `` `wal::format::FORMAT_VERSION` = 1 ``, and the document names no other.
//! - Every fault that is to be tried on clusters of real processes has a row in `server/docs/cluster_faults.md`, and the tests that the row names exist.
//! - Nothing names a path of the machine it was written on.
use super::paths::module_of;
use super::tokens::{Token, TokenKind};
use super::{Checkout, Document, Finding, SourceFile};
use std::collections::{BTreeMap, BTreeSet};

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const DATA_FILE: &str = "engine/docs/data_file.md";
const FAULTS: &str = "server/docs/cluster_faults.md";

/// Rows of the design's list of faults that are to be tried on real processes, without 29 and 46: the document says why.
const FAULT_ROWS: &[u32] = &[
    1, 2, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 30, 31, 33, 35, 36, 38, 39, 40, 43,
    45, 47, 48, 49, 50, 51, 52, 53, 55, 56,
];

/// First letters of invariant ids, by module: wal, segments and superblock, tree, revision log, disk state, checkpoint
/// (flush and pages), mvcc, compaction, replication, apply, lease, watch, and the crash rules.
const INVARIANT_LETTERS: &str = "WSTVDFPMCRALHI";

/// Folders whose Markdown states invariants.
const INVARIANT_DOCUMENTS: &[&str] = &["engine/docs/", "replication/docs/", "server/docs/"];

/// Macros whose message quotes an id.
const ASSERTS: &[&str] =
    &["assert", "assert_eq", "assert_ne", "debug_assert", "debug_assert_eq", "debug_assert_ne", "panic"];

/// Adds what is wrong with the documents, or between them and the code.
pub fn check(checkout: &Checkout, findings: &mut Vec<Finding>) {
    check_code_map(checkout, findings);
    check_invariants(checkout, findings);
    check_format_versions(checkout, findings);
    check_faults(checkout, findings);
    check_machine_paths(checkout, findings);
}

fn check_code_map(checkout: &Checkout, findings: &mut Vec<Finding>) {
    let Some(document) = document(checkout, ARCHITECTURE) else { return };
    for (line, text) in backticked(&document.text) {
        if is_path(text) && !checkout.root.join(text).exists() {
            findings.push(finding(&document.path, line, format!("`{text}` does not exist")));
        }
    }
}

/// A word in backticks is a path when it has a slash or a file's ending, and nothing but characters of paths.
fn is_path(text: &str) -> bool {
    let has_only_path_characters =
        text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    let has_ending = [".rs", ".md", ".toml", ".proto"].iter().any(|ending| text.ends_with(ending));
    // A route (`/metrics`) begins with a slash, a package (`etcd/api`) does not exist to be looked up by accident:
    // write it without backticks.
    has_only_path_characters && !text.starts_with('/') && (has_ending || text.contains('/'))
}

fn check_invariants(checkout: &Checkout, findings: &mut Vec<Finding>) {
    let mut in_documents: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    let stating = |d: &&Document| {
        d.path == ARCHITECTURE
            || (d.path.ends_with(".md")
                && INVARIANT_DOCUMENTS.iter().any(|folder| d.path.starts_with(folder)))
    };
    for document in checkout.documents.iter().filter(stating) {
        for (index, line) in document.text.lines().enumerate() {
            for id in invariant_ids(line) {
                in_documents.entry(id).or_insert((&document.path, index + 1));
            }
        }
    }
    let mut in_sources = BTreeSet::new();
    let mut explained: BTreeSet<&str> = in_documents.keys().copied().collect();
    for source in checkout.sources.iter().filter(|source| !source.path.starts_with("tools/src/tidy")) {
        in_sources.extend(source.text.lines().flat_map(invariant_ids));
        let module_documents = source.tokens.iter().filter(|token| token.kind == TokenKind::InnerDoc);
        explained.extend(module_documents.flat_map(|token| invariant_ids(&token.text)));
    }
    for (id, (file, line)) in &in_documents {
        if !in_sources.contains(id) {
            let what = format!("invariant {id} is named here and in no source file: assert it, or drop it");
            findings.push(finding(file, *line, what));
        }
    }
    for source in checkout.sources.iter().filter(|source| is_product(&source.path)) {
        for (id, line) in asserted_ids(source) {
            if !explained.contains(id) {
                let what =
                    format!("an assert quotes {id}, which no module document and no docs/ page explains");
                findings.push(finding(&source.path, line, what));
            }
        }
    }
}

fn is_product(path: &str) -> bool {
    ["engine/src/", "replication/src/", "server/src/"].iter().any(|part| path.starts_with(part))
}

/// Ids in the messages of asserts: strings between the macro's name and the semicolon behind it.
fn asserted_ids(source: &SourceFile) -> Vec<(&str, usize)> {
    let mut ids = Vec::new();
    let mut inside = false;
    for pair in source.tokens.windows(2) {
        let [token, next]: &[Token; 2] = pair.try_into().expect("windows of two");
        if ASSERTS.iter().any(|name| token.is_word(name)) && next.is_mark("!") {
            inside = true;
        } else if token.is_mark(";") {
            inside = false;
        } else if inside && token.kind == TokenKind::Text {
            ids.extend(invariant_ids(&token.text).map(|id| (id, token.line)));
        }
    }
    ids
}

/// Words that look like an invariant id: one of the letters and one or two digits, without a leading zero.
fn invariant_ids(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-')).filter(|word| {
        let digits = &word[word.len().min(1)..];
        word.starts_with(|c| INVARIANT_LETTERS.contains(c))
            && matches!(digits.len(), 1 | 2)
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0')
    })
}

fn check_format_versions(checkout: &Checkout, findings: &mut Vec<Finding>) {
    let mut in_code = BTreeMap::new();
    for source in checkout.sources.iter().filter(|source| source.path.starts_with("engine/src/")) {
        for (name, value, line) in format_versions(source) {
            in_code.insert(name, (value, source.path.as_str(), line));
        }
    }
    let Some(document) = document(checkout, DATA_FILE) else {
        for (name, (_, file, line)) in in_code {
            findings.push(finding(
                file,
                line,
                format!("{name} is a format version and {DATA_FILE} does not exist"),
            ));
        }
        return;
    };
    for (name, (value, file, line)) in &in_code {
        let written = format!("`{name}` = {value}");
        let is_written = document
            .text
            .match_indices(&written)
            .any(|(at, _)| !document.text[at + written.len()..].starts_with(|c: char| c.is_ascii_digit()));
        if !is_written {
            findings.push(finding(file, *line, format!("{DATA_FILE} does not say {written}")));
        }
    }
    for (line, text) in backticked(&document.text) {
        if text.ends_with("FORMAT_VERSION") && !in_code.contains_key(text) {
            findings.push(finding(&document.path, line, format!("`{text}` is no constant of the engine")));
        }
    }
}

/// `const X_FORMAT_VERSION: u16 = 1;` as (path below the crate, value, line).
fn format_versions(source: &SourceFile) -> Vec<(String, String, usize)> {
    let code: Vec<&Token> =
        source.tokens.iter().filter(|t| matches!(t.kind, TokenKind::Word | TokenKind::Mark)).collect();
    let mut versions = Vec::new();
    for window in code.windows(6) {
        if window[0].is_word("const") && window[1].text.ends_with("FORMAT_VERSION") && window[4].is_mark("=")
        {
            let mut path = module_of(&source.path);
            path.push(window[1].text.clone());
            versions.push((path[1..].join("::"), window[5].text.clone(), window[1].line));
        }
    }
    versions
}

/// Paths that exist on one machine only have no place in a repository.
fn check_faults(checkout: &Checkout, findings: &mut Vec<Finding>) {
    let Some(document) = document(checkout, FAULTS) else { return };
    let mut rows = BTreeSet::new();
    for (index, line) in document.text.lines().enumerate() {
        let mut cells = line.split('|').map(str::trim);
        let Some(row) = cells.nth(1).and_then(|cell| cell.parse::<u32>().ok()) else { continue };
        rows.insert(row);
        // A file, and behind it names of tests in it.
        let mut file = None;
        let mut count = 0;
        for (_, name) in cells.nth(1).map(backticked).into_iter().flatten() {
            if name.ends_with(".rs") {
                let path = format!("server/tests/{name}");
                file = checkout.sources.iter().find(|source| source.path == path);
                if file.is_none() {
                    findings.push(finding(FAULTS, index + 1, format!("there is no {path}")));
                }
            } else if let Some(file) = file {
                count += 1;
                if !file.text.contains(&format!("fn {name}(")) {
                    findings.push(finding(FAULTS, index + 1, format!("{} has no test {name}", file.path)));
                }
            }
        }
        if count == 0 {
            findings.push(finding(FAULTS, index + 1, format!("row {row} names no test")));
        }
    }
    for row in FAULT_ROWS.iter().filter(|row| !rows.contains(row)) {
        findings.push(finding(FAULTS, 1, format!("row {row} of the design's list of faults is not here")));
    }
}

fn check_machine_paths(checkout: &Checkout, findings: &mut Vec<Finding>) {
    // Put together so that this file does not contain them.
    let foreign = ["work", "root", "home"].map(|name| format!("/{name}/"));
    let texts = checkout.sources.iter().map(|source| (&source.path, &source.text));
    for (path, text) in
        texts.chain(checkout.documents.iter().map(|document| (&document.path, &document.text)))
    {
        for (index, line) in text.lines().enumerate() {
            let is_named = |name: &String| {
                line.match_indices(name.as_str()).any(|(at, _)| {
                    // Inside a longer path or address the name means something else.
                    !line[..at]
                        .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '/'))
                })
            };
            if foreign.iter().any(is_named) {
                findings.push(finding(path, index + 1, "a path of somebody's machine".to_owned()));
            }
        }
    }
}

/// Words in single backticks outside of fenced blocks, each with its line.
fn backticked(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            words.extend(line.split('`').skip(1).step_by(2).map(|word| (index + 1, word)));
        }
    }
    words
}

fn document<'a>(checkout: &'a Checkout, path: &str) -> Option<&'a Document> {
    checkout.documents.iter().find(|document| document.path == path)
}

fn finding(file: &str, line: usize, what: String) -> Finding {
    Finding { file: file.to_owned(), line, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(files: &[(&str, &str)]) -> Vec<String> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut checkout = Checkout { root, sources: Vec::new(), documents: Vec::new() };
        for (path, text) in files {
            if path.ends_with(".rs") {
                checkout.sources.push(SourceFile::new(path, text));
            } else {
                checkout.documents.push(Document { path: (*path).to_owned(), text: (*text).to_owned() });
            }
        }
        let mut findings = Vec::new();
        check(&checkout, &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_path_of_the_code_map_that_does_not_exist_is_found() {
        assert_eq!(
            whats(&[("ARCHITECTURE.md", "`tools/src/tidy.rs` and `tools/src/gone.rs`, `/metrics`")]).len(),
            1
        );
        assert_eq!(
            whats(&[("ARCHITECTURE.md", "```text\nlooks `like/a/path` here\n```\n`Io` `a b`")]).len(),
            0
        );
    }

    #[test]
    fn an_invariant_must_be_in_documents_and_code() {
        let stated = ("engine/docs/durability.md", "**W1** the groups follow one another.");
        assert_eq!(whats(&[stated]).len(), 1);
        assert_eq!(whats(&[stated, ("engine/src/wal.rs", "//! W1 holds.")]).len(), 0);
        let asserting = "fn f() { assert!(a <= b, \"M2: {a} {b}\"); }";
        assert_eq!(whats(&[("engine/src/mvcc.rs", asserting)]).len(), 1);
        assert_eq!(
            whats(&[("engine/src/mvcc.rs", asserting), ("engine/src/lib.rs", "//! M2: a <= b.")]).len(),
            0
        );
    }

    #[test]
    fn a_format_version_is_written_with_its_value() {
        let code = ("engine/src/wal/format.rs", "pub(crate) const FORMAT_VERSION: u16 = 1;");
        assert_eq!(whats(&[code]).len(), 1);
        assert_eq!(whats(&[code, (DATA_FILE, "`wal::format::FORMAT_VERSION` = 1")]).len(), 0);
        assert_eq!(whats(&[code, (DATA_FILE, "`wal::format::FORMAT_VERSION` = 12")]).len(), 1);
        assert_eq!(whats(&[(DATA_FILE, "`tree::FORMAT_VERSION` = 1")]).len(), 1);
    }

    #[test]
    fn every_fault_names_tests_that_exist() {
        let tests = ("server/tests/leaders.rs", "fn one_dies() {}");
        let row = |row: u32, test: &str| format!("| {row} | it dies | `leaders.rs`: `{test}` |\n");
        let all = |but: u32, test: &str| {
            let rows = FAULT_ROWS.iter().filter(|number| **number != but);
            rows.map(|number| row(*number, "one_dies")).collect::<String>() + test
        };
        assert_eq!(whats(&[tests, (FAULTS, &all(0, ""))]).len(), 0);
        assert_eq!(whats(&[tests, (FAULTS, &all(56, ""))]).len(), 1);
        assert_eq!(whats(&[tests, (FAULTS, &all(56, &row(56, "two_die")))]).len(), 1);
        assert_eq!(whats(&[tests, (FAULTS, &all(56, "| 56 | it dies | |\n"))]).len(), 1);
        assert_eq!(
            whats(&[tests, (FAULTS, &all(56, "| 56 | it dies | `gone.rs`: `one_dies` |\n"))]).len(),
            2
        );
    }

    #[test]
    fn a_path_of_a_machine_is_found() {
        let line = ["see /", "work/x and https://example.org/", "work/y"].concat();
        assert_eq!(whats(&[("README.md", &line)]).len(), 1);
    }
}
