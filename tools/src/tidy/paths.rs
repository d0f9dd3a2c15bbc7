//! Tokens into the paths that a file names: `use` trees spread out, `self` and `super` resolved.
//!
//! A path is a list of segments as written, and for paths that begin in the file's own crate the absolute form
//! that starts with `crate`. Code inside a module called `tests` is left out: a test may look into any room.
use super::tokens::{Token, TokenKind};

/// A path that a file names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedPath {
    /// Its segments; the first is `crate` for everything of the file's own crate that was written relatively.
    pub segments: Vec<String>,
    /// Where it is named, from 1.
    pub line: usize,
}

impl NamedPath {
    /// True when the path is `prefix` or lies below it. `prefix` is written as in Rust: `std::time`.
    pub fn is_under(&self, prefix: &str) -> bool {
        let mut segments = self.segments.iter();
        prefix.split("::").all(|part| segments.next().is_some_and(|segment| segment == part))
    }
}

/// The module path of a file below a `src` directory: `engine/src/wal/reader.rs` is `crate::wal::reader`.
pub fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("src/").map_or(file, |(_, inside)| inside);
    let inside = inside.strip_suffix(".rs").unwrap_or(inside);
    let mut module = vec!["crate".to_owned()];
    if !matches!(inside, "lib" | "main") {
        module.extend(inside.split('/').filter(|part| *part != "mod").map(str::to_owned));
    }
    module
}

/// Every path that `tokens` name outside of modules called `tests`.
pub fn named_paths(file: &str, tokens: &[Token]) -> Vec<NamedPath> {
    let code: Vec<&Token> = tokens
        .iter()
        .filter(|token| !matches!(token.kind, TokenKind::Comment | TokenKind::InnerDoc))
        .collect();
    let mut walk = Walk { code, at: 0, paths: Vec::new() };
    walk.module(&module_of(file));
    walk.paths
}

struct Walk<'a> {
    code: Vec<&'a Token>,
    at: usize,
    paths: Vec<NamedPath>,
}

impl Walk<'_> {
    /// Reads until the brace that closes the module, or the end.
    fn module(&mut self, module: &[String]) {
        let mut depth = 0_usize;
        while let Some(token) = self.code.get(self.at).copied() {
            if token.is_mark("{") {
                depth += 1;
                self.at += 1;
            } else if token.is_mark("}") {
                self.at += 1;
                if depth == 0 {
                    return;
                }
                depth -= 1;
            } else if token.is_word("mod") && self.code.get(self.at + 2).is_some_and(|t| t.is_mark("{")) {
                let name = self.code[self.at + 1].text.clone();
                self.at += 3;
                let kept = self.paths.len();
                let mut inner = module.to_vec();
                inner.push(name.clone());
                self.module(&inner);
                if name == "tests" {
                    self.paths.truncate(kept);
                }
            } else if token.is_word("use") {
                self.at += 1;
                self.use_tree(module, &[]);
            } else if token.kind == TokenKind::Word || token.is_mark("::") {
                let line = token.line;
                let segments = self.segments();
                self.name(module, segments, line);
            } else {
                self.at += 1;
            }
        }
    }

    /// `a::b::{c, d::*}`: one path for each leaf.
    fn use_tree(&mut self, module: &[String], prefix: &[String]) {
        let line = self.code.get(self.at).map_or(0, |token| token.line);
        let mut path = prefix.to_vec();
        path.extend(self.segments());
        match self.code.get(self.at) {
            Some(token) if token.is_mark("{") => {
                self.at += 1;
                while let Some(token) = self.code.get(self.at) {
                    if token.is_mark("}") {
                        self.at += 1;
                        return;
                    }
                    let before = self.at;
                    self.use_tree(module, &path);
                    if self.code.get(self.at).is_some_and(|token| token.is_mark(",")) || self.at == before {
                        self.at += 1;
                    }
                }
            }
            _ => {
                self.name(module, path, line);
                // `as name` and `*` say nothing about what is named.
                while let Some(token) = self.code.get(self.at) {
                    if token.is_mark(",") || token.is_mark("}") || token.is_mark(";") {
                        return;
                    }
                    self.at += 1;
                }
            }
        }
    }

    /// Words with `::` between them, from here on. A trailing `::` before a brace, star or `<` is taken as well.
    fn segments(&mut self) -> Vec<String> {
        let mut segments = Vec::new();
        if self.code.get(self.at).is_some_and(|token| token.is_mark("::")) {
            self.at += 1;
        }
        while let Some(token) = self.code.get(self.at).filter(|token| token.kind == TokenKind::Word) {
            segments.push(token.text.clone());
            self.at += 1;
            if !self.code.get(self.at).is_some_and(|token| token.is_mark("::")) {
                break;
            }
            self.at += 1;
        }
        segments
    }

    fn name(&mut self, module: &[String], mut segments: Vec<String>, line: usize) {
        let ups = segments.iter().take_while(|segment| *segment == "super").count();
        if ups > 0 {
            let kept = module.len().saturating_sub(ups).max(1);
            segments.splice(..ups, module[..kept].iter().cloned());
        } else if segments.first().is_some_and(|first| first == "self") && segments.len() > 1 {
            segments.splice(..1, module.iter().cloned());
        }
        if !segments.is_empty() {
            self.paths.push(NamedPath { segments, line });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tokenize;
    use super::*;

    fn names(file: &str, source: &str, prefix: &str) -> bool {
        named_paths(file, &tokenize(source)).iter().any(|path| path.is_under(prefix))
    }

    #[test]
    fn a_use_tree_names_each_of_its_leaves() {
        let source = "use crate::{base::{ids::Lsn, codec}, mvcc::store as s, io::*};";
        for prefix in ["crate::base::ids::Lsn", "crate::base::codec", "crate::mvcc", "crate::io"] {
            assert!(names("engine/src/wal.rs", source, prefix), "{prefix}");
        }
        assert!(!names("engine/src/wal.rs", source, "crate::wal"));
    }

    #[test]
    fn super_is_resolved_from_the_place_of_the_file_and_its_inner_modules() {
        assert!(names("engine/src/wal/reader.rs", "use super::super::mvcc::Store;", "crate::mvcc"));
        assert!(names("engine/src/wal/reader.rs", "use super::format;", "crate::wal::format"));
        assert!(names("engine/src/wal.rs", "mod inner { use super::super::mvcc; }", "crate::mvcc"));
        assert!(names("engine/src/wal.rs", "mod inner {} fn f() { super::mvcc::g() }", "crate::mvcc"));
    }

    #[test]
    fn a_path_inside_an_expression_is_named_and_one_inside_tests_is_not() {
        assert!(names("a/src/b.rs", "fn f() { let x = std::time::Instant::now(); }", "std::time::Instant"));
        let test = "#[cfg(test)] mod tests { use crate::mvcc; } fn f() {}";
        assert!(!names("a/src/b.rs", test, "crate::mvcc"));
    }
}
