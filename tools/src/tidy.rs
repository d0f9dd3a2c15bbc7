//! Repository checks that run as an ordinary test: what the documents say about the code is true.
//!
//! **Contract.** [`check`] reads a checkout and returns every [`Finding`]; an empty list means that the rules hold.
//! It changes nothing, builds nothing and needs nothing but the files. `tools/tests/tidy.rs` runs it on this
//! repository, so that a broken rule is a failing test with file, line and reason.
//!
//! | Rule | Where it is written |
//! |---|---|
//! | layers: who may not name whom | `tidy/layers.rs`, the table of ARCHITECTURE.md |
//! | module documents, unsafe code, unfinished code, length of files | `tidy/sources.rs` |
//! | code map, invariant ids, format versions, paths of somebody's machine | `tidy/documents.rs` |
//!
//! **Why like this.** A compiler-based tool would see more, but needs a second compiler; a few hundred lines that
//! read tokens see `use` trees, paths and macros, which is where these rules are broken. Rules about what an
//! expression does (clocks, sleeps) are clippy's, in `clippy.toml`.
//!
//! Reading order: `tokens` (source text into tokens), `paths` (tokens into the paths they name), then the rules.
pub mod documents;
pub mod layers;
pub mod paths;
pub mod sources;
pub mod tokens;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use tokens::Token;

/// One broken rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Finding {
    /// The file, relative to the root of the checkout, with `/` between its parts.
    pub file: String,
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// One Rust file: its path relative to the root, its text and its tokens.
pub struct SourceFile {
    /// Relative to the root of the checkout, with `/` between its parts.
    pub path: String,
    /// The whole text.
    pub text: String,
    /// The text as tokens, comments included.
    pub tokens: Vec<Token>,
}

impl SourceFile {
    /// A file as if it lay at `path`.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), tokens: tokens::tokenize(text) }
    }
}

/// A document: Markdown or a manifest.
pub struct Document {
    /// Relative to the root of the checkout, with `/` between its parts.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// What the rules look at: every Rust file and every document of a checkout, sorted by path.
pub struct Checkout {
    /// Where it lies; for rules that ask whether a path exists.
    pub root: PathBuf,
    /// All `.rs` files.
    pub sources: Vec<SourceFile>,
    /// All `.md` and `.toml` files.
    pub documents: Vec<Document>,
}

impl Checkout {
    /// Reads a checkout: every text file but build output and dot-directories.
    ///
    /// # Errors
    /// When a directory or file cannot be read.
    pub fn read(root: &Path) -> std::io::Result<Self> {
        let mut checkout = Self { root: root.to_owned(), sources: Vec::new(), documents: Vec::new() };
        checkout.read_directory(root)?;
        checkout.sources.sort_by(|a, b| a.path.cmp(&b.path));
        checkout.documents.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(checkout)
    }

    fn read_directory(&mut self, directory: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    self.read_directory(&path)?;
                }
                continue;
            }
            let relative = relative_path(&self.root, &path);
            if name.ends_with(".rs") {
                self.sources.push(SourceFile::new(&relative, &fs::read_to_string(&path)?));
            } else if name.ends_with(".md") || name.ends_with(".toml") {
                self.documents.push(Document { path: relative, text: fs::read_to_string(&path)? });
            }
        }
        Ok(())
    }
}

/// Every rule over the checkout at `root`, findings sorted by place.
///
/// # Errors
/// When a directory or file cannot be read.
pub fn check(root: &Path) -> std::io::Result<Vec<Finding>> {
    let checkout = Checkout::read(root)?;
    let mut findings = Vec::new();
    layers::check(&checkout, &mut findings);
    sources::check(&checkout, &mut findings);
    documents::check(&checkout, &mut findings);
    findings.sort();
    Ok(findings)
}

fn relative_path(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    relative.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
