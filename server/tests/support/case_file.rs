//! The files in `tests/api`: steps of prose, request and recorded answer.
//!
//! **Layout.** Blocks separated by blank lines. A block is lines of prose (`# …`), then a request, then a line `----`, then
//! the answer as the real etcd gave it. A block of prose alone is a heading. `api/README.md` says what a request can be.
//!
//! **Contract.** `render` with the recorded answers gives the file back byte for byte, so that a recording changes answers
//! and nothing else.

use std::path::{Path, PathBuf};

const RULER: &str = "----";

/// One request and its recorded answer.
#[derive(Clone, Debug)]
pub struct Step {
    /// Lines of prose, `#` included.
    pub prose: Vec<String>,
    /// Lines of the request; empty in a heading.
    pub request: Vec<String>,
    /// Lines of the recorded answer.
    pub answer: Vec<String>,
    /// The line of the file, from 1, where the request starts.
    pub line: usize,
}

/// One file: all its steps run in order against one fresh server.
#[derive(Clone, Debug)]
pub struct CaseFile {
    /// Where the file is.
    pub path: PathBuf,
    /// Its steps, headings among them.
    pub steps: Vec<Step>,
}

impl CaseFile {
    /// Reads a file.
    pub fn read(path: &Path) -> CaseFile {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut steps = Vec::new();
        let mut step: Option<Step> = None;
        let mut in_answer = false;
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() {
                steps.extend(step.take());
                in_answer = false;
                continue;
            }
            let step =
                step.get_or_insert_with(|| Step { prose: vec![], request: vec![], answer: vec![], line: 0 });
            if in_answer {
                step.answer.push(line.to_owned());
            } else if line == RULER {
                in_answer = true;
            } else if line.starts_with('#') && step.request.is_empty() {
                step.prose.push(line.to_owned());
            } else {
                if step.request.is_empty() {
                    step.line = index + 1;
                }
                step.request.push(line.to_owned());
            }
        }
        steps.extend(step);
        CaseFile { path: path.to_owned(), steps }
    }

    /// The steps that ask for something.
    pub fn requests(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| !step.request.is_empty())
    }

    /// The file with these answers, one for each request.
    pub fn render(&self, answers: &[Vec<String>]) -> String {
        let mut answers = answers.iter();
        let mut blocks = Vec::new();
        for step in &self.steps {
            let mut lines = step.prose.clone();
            if !step.request.is_empty() {
                lines.extend(step.request.iter().cloned());
                lines.push(RULER.to_owned());
                lines.extend(answers.next().expect("an answer for each request").iter().cloned());
            }
            blocks.push(lines.join("\n"));
        }
        blocks.join("\n\n") + "\n"
    }

    /// The file's name, for messages.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
