//! The files in `cases`: command lines and what etcdctl 3.7.3 said against etcd 3.7.3.
//!
//! **Layout.** Blocks separated by blank lines. A block is lines of prose (`# …`), then a command line (`$ …`), lines of
//! standard input (`< …`), a line `----`, then what was said: `> …` on standard output, `! …` on standard error,
//! `exit N` if it was not 0. `README.md` says more.
//!
//! **Contract.** `render` with the recorded answers gives the file back byte for byte.
use std::path::{Path, PathBuf};

const RULER: &str = "----";

/// A command line and what was recorded of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    /// Lines of prose, `#` included.
    pub(crate) prose: Vec<String>,
    /// The command line and the lines below it; empty in a heading.
    pub(crate) request: Vec<String>,
    /// What was said.
    pub(crate) answer: Vec<String>,
    /// The line of the file, from 1, where the command line is.
    pub(crate) line: usize,
}

/// One file: its steps run in order against one fresh cluster.
#[derive(Clone, Debug)]
pub(crate) struct CaseFile {
    pub(crate) path: PathBuf,
    pub(crate) steps: Vec<Step>,
}

impl CaseFile {
    pub(crate) fn read(path: &Path) -> Self {
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
            let step = step.get_or_insert_default();
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
        Self { path: path.to_owned(), steps }
    }

    /// The steps that run something.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| !step.request.is_empty())
    }

    /// The file with these answers, one for each step that runs something.
    pub(crate) fn render(&self, answers: &[Vec<String>]) -> String {
        let mut answers = answers.iter();
        let mut blocks = Vec::new();
        for step in &self.steps {
            let mut lines = step.prose.clone();
            if !step.request.is_empty() {
                lines.extend(step.request.iter().cloned());
                lines.push(RULER.to_owned());
                lines.extend(answers.next().expect("an answer for each step").iter().cloned());
            }
            blocks.push(lines.join("\n"));
        }
        blocks.join("\n\n") + "\n"
    }

    pub(crate) fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}
